//! The host's connections, by way of passt.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::tap::connect;
use crate::harness::installed::{self, Kernel};
use crate::harness::netns::{self, ip};
use crate::harness::{Amphi, Case, Isolation, vm, world};

/// An address of the host's that the guest can reach.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

pub(crate) fn cases() -> Vec<Case> {
    vec![
        vm("user_network_with_own_kernel", || netns::run(|| there_and_back(&installed::own()))),
        vm("user_network_with_stock_kernel_6_1", || netns::run(|| there_and_back(&installed::stock("6.1.")))),
        vm("user_network_with_stock_kernel_6_12", || netns::run(|| there_and_back(&installed::stock("6.12.")))),
        vm("user_network_on_a_read_only_root", || netns::run(on_a_read_only_root)),
        vm("user_network_hides_the_hosts_loopback", || netns::run(hides_the_hosts_loopback)),
        vm("user_network_without_its_passt", || netns::run(without_its_passt)),
        vm("sigkill_leaves_no_passt_and_no_tap", || netns::run(sigkill_leaves_no_passt_and_no_tap)),
    ]
}

/// Gives the host an interface with a default route, without which passt does not start.
pub(crate) fn make_host() {
    ip("link add ext0 type dummy");
    ip(&format!("addr add {HOST}/24 dev ext0"));
    ip("link set ext0 up");
    ip("route add default via 198.51.100.254");
}

fn user(script: &str) -> Amphi {
    Amphi::sh(Isolation::Vm, script).with(["--network", "user"])
}

/// HTTP in both directions. (passt of Debian 12 keeps a connection that was closed in one direction first.)
fn there_and_back(kernel: &Kernel) {
    make_host();
    let listener = TcpListener::bind((HOST, 5000)).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4];
        stream.read_exact(&mut request).unwrap();
        stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\nand back\n").unwrap();
        // Until the guest has all of it.
        let _ = stream.read_to_end(&mut Vec::new());
        request
    });
    let script = format!(
        "wget -q -O - http://{HOST}:5000/there; cat /etc/resolv.conf /sys/class/net/eth0/mtu; \
         ip -4 addr show eth0 | grep -o 'inet [0-9./]*'; echo from the guest >/tmp/page; exec httpd -f -p 80 -h /tmp"
    );
    let ports = ["--kernel", &kernel.name, "-p", "127.0.0.1:8080:80", "-p", "8081:81"];
    let started = user(&script).with(ports).start();
    assert_eq!(server.join().unwrap(), *b"GET ");
    // passt accepts also when nobody listens in the guest: what counts is the answer.
    let deadline = Instant::now() + world::seconds(20);
    while fetch().is_none_or(|answer| !answer.ends_with("from the guest\n")) {
        assert!(Instant::now() < deadline, "the port does not lead anywhere");
        std::thread::sleep(Duration::from_millis(200));
    }
    started.signal(Signal::TERM);
    let finished = started.finish().expect_signal(Signal::TERM);
    assert_eq!(finished.text(), "and back\nnameserver 10.0.2.3\n65520\ninet 10.0.2.15/24", "{finished}");
}

/// What the guest serves at the published port.
fn fetch() -> Option<String> {
    let mut stream = connect(Ipv4Addr::LOCALHOST, 8080);
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    stream.write_all(b"GET /page HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn on_a_read_only_root() {
    make_host();
    let script = "cat /etc/resolv.conf; touch /file || echo refused";
    user(script).with(["--read-only"]).finish().expect_text("nameserver 10.0.2.3\nrefused");
}

/// What listens on 127.0.0.1 is nobody else's business.
fn hides_the_hosts_loopback() {
    make_host();
    let _listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 5000)).unwrap();
    let script =
        "for host in 10.0.2.2 10.0.2.3; do nc -w 3 $host 5000 </dev/null && echo reached $host; done; echo end";
    user(script).finish().expect_text("end");
}

/// The processes of passt that have that word in their command lines.
fn passts(word: &str) -> Vec<Pid> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut words = command.split(|&byte| byte == 0);
        let is_passt = words.next().is_some_and(|program| String::from_utf8_lossy(program).contains("passt"));
        if is_passt && words.any(|argument| argument == word.as_bytes()) {
            found.extend(entry.file_name().to_string_lossy().parse().ok().and_then(Pid::from_raw));
        }
    }
    found
}

fn expect_no_passt(word: &str) {
    let deadline = Instant::now() + world::seconds(5);
    while !passts(word).is_empty() {
        assert!(Instant::now() < deadline, "passt stays behind");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn without_its_passt() {
    make_host();
    let script = "echo up; while [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do sleep 0.1; done; echo down";
    let mut started = user(script).with(["-p", "18001:1"]).start();
    started.wait_for_output("up");
    passts("18001:1").into_iter().for_each(|pid| kill_process(pid, Signal::KILL).unwrap());
    started.finish().expect_text("up\ndown");
}

fn sigkill_leaves_no_passt_and_no_tap() {
    make_host();
    let mut started = user("echo up; sleep 1000").with(["-p", "18002:1"]).start();
    started.wait_for_output("up");
    assert_eq!(passts("18002:1").len(), 1);
    started.signal(Signal::KILL);
    started.finish().expect_signal(Signal::KILL);
    expect_no_passt("18002:1");

    let tap = Amphi::sh(Isolation::Vm, "echo up; sleep 1000").with(["--network", "tap:mine1"]);
    let mut started = tap.start();
    started.wait_for_output("up");
    assert!(netns::has_interface("mine1"));
    started.signal(Signal::KILL);
    started.finish().expect_signal(Signal::KILL);
    let deadline = Instant::now() + world::seconds(5);
    while netns::has_interface("mine1") {
        assert!(Instant::now() < deadline, "the tap interface stays behind");
        std::thread::sleep(Duration::from_millis(50));
    }
    // And with an end of its own.
    user("true").with(["-p", "18003:1"]).finish().expect(0);
    expect_no_passt("18003:1");
}
