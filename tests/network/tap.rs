//! Tap interfaces.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::harness::installed::{self, Kernel};
use crate::harness::netns::{self, has_interface, ip};
use crate::harness::{Amphi, Case, Isolation, vm, world};

/// The host's and the guest's address.
pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(super) const GUEST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// `--network` for a case that has called [`make`].
pub(super) const NETWORK: &str = "tap:tap0,ip=192.0.2.2/24,gateway=192.0.2.1,dns=192.0.2.53";

pub(crate) fn cases() -> Vec<Case> {
    vec![
        vm("tap_with_own_kernel", || netns::run(|| ping_and_tcp(&installed::own(), NETWORK))),
        vm("tap_with_stock_kernel_6_1", || netns::run(|| ping_and_tcp(&installed::stock("6.1."), NETWORK))),
        vm("tap_with_stock_kernel_6_12", || netns::run(|| ping_and_tcp(&installed::stock("6.12."), NETWORK))),
        vm("tap_of_which_nothing_is_said", || netns::run(tap_of_which_nothing_is_said)),
        vm("tap_moves_a_gibibyte_unharmed", || netns::run(|| moves_a_gibibyte_unharmed(&installed::own(), NETWORK)))
            .alone(),
        vm("tap_moves_a_gibibyte_unharmed_on_a_stock_kernel", || {
            netns::run(|| moves_a_gibibyte_unharmed(&installed::stock("6.12."), NETWORK));
        })
        .alone(),
        vm("tap_rates_are_limited", || netns::run(tap_rates_are_limited)),
        vm("tap_that_is_removed", || netns::run(tap_that_is_removed)),
    ]
}

/// Makes `tap0` with the host's address.
pub(super) fn make() {
    ip("tuntap add tap0 mode tap");
    ip(&format!("addr add {HOST}/24 dev tap0"));
}

/// Connects as soon as somebody listens.
pub(super) fn connect(address: impl Into<std::net::IpAddr>, port: u16) -> TcpStream {
    let (address, deadline) = (address.into(), Instant::now() + world::seconds(20));
    loop {
        match TcpStream::connect_timeout(&(address, port).into(), Duration::from_secs(5)) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "nobody listens at {address}:{port}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub(super) fn ping_and_tcp(kernel: &Kernel, network: &str) {
    make();
    let listener = TcpListener::bind((HOST, 5000)).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        stream.write_all(b"and back\n").unwrap();
        (text, peer.ip())
    });
    let script = format!(
        "ping -c 2 -W 10 {HOST} >/dev/null && echo pinged; echo there | nc {HOST} 5000; cat /etc/resolv.conf; \
         cat /sys/class/net/eth0/address; nc -l -p 7000"
    );
    let mac = format!("{network},mac=02:00:5e:00:53:01");
    let started = Amphi::sh(Isolation::Vm, &script).with(["--kernel", &kernel.name, "--network", &mac]).start();
    assert_eq!(server.join().unwrap(), ("there\n".to_owned(), GUEST.into()));
    let mut stream = connect(GUEST, 7000);
    stream.write_all(b"from the host\n").unwrap();
    drop(stream);
    started.finish().expect_text("pinged\nand back\nnameserver 192.0.2.53\n02:00:5e:00:53:01\nfrom the host");
    assert!(has_interface("tap0"), "it was there before, and stays");
}

/// amphi makes the interface, and the guest has a link but no address.
fn tap_of_which_nothing_is_said() {
    let script = "cat /sys/class/net/eth0/carrier; cut -c 1-2 /sys/class/net/eth0/address; \
                  ip -4 addr show eth0 | grep -c inet; test -e /etc/resolv.conf || echo no servers";
    let finished = Amphi::sh(Isolation::Vm, script).with(["--network", "tap:mine0"]).finish().expect(0);
    assert_eq!(finished.text(), "1\n02\n0\nno servers", "{finished}");
    assert!(!has_interface("mine0"), "it goes with the microVM");
}

/// Bytes that nobody makes by accident.
pub(super) fn noise(len: usize) -> Vec<u8> {
    let mut noise = vec![0; len];
    let mut state = 1_u64;
    for word in noise.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    noise
}

/// 64 MiB of noise to the guest once, and back fifteen times. What comes back is compared byte by byte.
pub(super) fn moves_a_gibibyte_unharmed(kernel: &Kernel, network: &str) {
    const SIZE: usize = 64 << 20;
    make();
    let noise = noise(SIZE);
    let listener = TcpListener::bind((HOST, 5000)).unwrap();
    let script = format!("nc {HOST} 5000 </dev/null >/tmp/noise; httpd -p 80 -h /tmp; echo ready; nc -l -p 7000");
    let options = ["--kernel", &kernel.name, "--network", network, "--memory", "512M"];
    let started = Amphi::sh(Isolation::Vm, &script).with(options).start();
    // So much takes minutes in a lab that shares its processor.
    let started = started.within(world::seconds(150));
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(&noise).unwrap();
    drop(stream);
    let mut received = Vec::with_capacity(SIZE + 1000);
    for round in 1..=15 {
        let mut stream = connect(GUEST, 80);
        stream.write_all(b"GET /noise HTTP/1.0\r\n\r\n").unwrap();
        received.clear();
        stream.read_to_end(&mut received).unwrap();
        assert!(received.len() > SIZE, "round {round}: {} bytes", received.len());
        assert!(received[received.len() - SIZE..] == noise, "round {round}: other bytes");
    }
    drop(connect(GUEST, 7000));
    started.finish().expect_text("ready");
}

/// Time is not asserted upwards, but it cannot go faster than the limit, by the guest's clock: from before the connection until
/// the host has had everything, when `nc` ends.
fn tap_rates_are_limited() {
    make();
    let listener = TcpListener::bind((HOST, 5000)).unwrap();
    let limited = format!("{NETWORK},tx-bandwidth=1M/s,rx-ops=1000/s");
    let now = "cut -d ' ' -f 1 /proc/uptime";
    let script = format!("{now}; head -c 3000000 /dev/zero | nc {HOST} 5000; {now}");
    let started = Amphi::sh(Isolation::Vm, &script).with(["--network", &limited]).start();
    let (mut stream, _) = listener.accept().unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    assert_eq!(received.len(), 3_000_000);
    drop(stream);
    let finished = started.finish().expect(0);
    let times: Vec<f64> = finished.text().lines().map(|line| line.parse().unwrap()).collect();
    // A tenth of a second's worth comes at once.
    assert!(times[1] - times[0] > 2.0, "3 MB at 1 MiB a second {finished}");
}

fn tap_that_is_removed() {
    make();
    let script = "echo up; while [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do sleep 0.1; done; echo down";
    let mut started = Amphi::sh(Isolation::Vm, script).with(["--network", NETWORK]).start();
    started.wait_for_output("up");
    ip("link del tap0");
    started.finish().expect_text("up\ndown");
}
