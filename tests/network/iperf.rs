//! iperf3 in both directions. How fast it is does not matter here.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::{tap, user, vhost};
use crate::harness::installed::{self, Kernel};
use crate::harness::{Amphi, Case, Isolation, netns, rootfs, vm};

/// How much each run transfers.
const AMOUNT: &str = "32M";
const PORT: u16 = 5201;

pub(crate) fn cases() -> Vec<Case> {
    let stock = || installed::stock("6.12.");
    vec![
        vm("iperf_over_tap", || netns::run(|| over_tap(&installed::own()))),
        vm("iperf_over_tap_on_a_stock_kernel", move || netns::run(|| over_tap(&stock()))),
        vm("iperf_over_vhost", || netns::run(|| over_vhost(&installed::own()))),
        vm("iperf_over_vhost_on_a_stock_kernel", move || netns::run(|| over_vhost(&stock()))),
        vm("iperf_over_passt", || netns::run(|| over_passt(&installed::own()))),
        vm("iperf_over_passt_on_a_stock_kernel", move || netns::run(|| over_passt(&stock()))),
        vm("iperf_into_a_published_port", || netns::run(into_a_published_port)),
    ]
}

/// The busybox root with iperf3 and its libraries.
fn root() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let copied = Command::new("cp").arg("-a").arg(rootfs::busybox()).arg(folder.path().join("root")).status().unwrap();
    assert!(copied.success());
    let program = PathBuf::from("/usr/bin/iperf3");
    assert!(program.exists(), "no iperf3 here: apt-get install iperf3 (or: make setup)");
    let listed = Command::new("ldd").arg(&program).output().unwrap().stdout;
    let listed = String::from_utf8(listed).unwrap();
    let libraries = listed.split_ascii_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    for file in libraries.chain([program]) {
        let to = folder.path().join("root").join(file.strip_prefix("/").unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(&file, &to).unwrap();
    }
    folder
}

fn run(root: &Path, command: &str, network: &str) -> Amphi {
    let image = format!("dir:{}", root.join("root").display());
    Amphi::run_image(Isolation::Vm, image.as_ref(), ["/bin/sh", "-c", command]).with(["--network", network])
}

/// A server on the host; killed when dropped.
struct Server(Child);

impl Server {
    fn start(address: Ipv4Addr) -> Self {
        let child = Command::new("iperf3")
            .args(["-s", "-p", &PORT.to_string(), "-B", &address.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn over_tap(kernel: &Kernel) {
    tap::make();
    both_ways(kernel, tap::HOST, tap::NETWORK);
}

fn over_vhost(kernel: &Kernel) {
    vhost::make();
    both_ways(kernel, tap::HOST, &vhost::network());
}

fn over_passt(kernel: &Kernel) {
    user::make_host();
    both_ways(kernel, user::HOST, "user");
}

/// Guest to host, host to guest, and both at once.
fn both_ways(kernel: &Kernel, host: Ipv4Addr, network: &str) {
    let root = root();
    let _server = Server::start(host);
    let client = format!("/usr/bin/iperf3 -J -c {host} -p {PORT} -n {AMOUNT}");
    let command = format!("{client} && {client} -R && {client} --bidir");
    let finished = run(root.path(), &command, network).with(["--kernel", &kernel.name]).finish().expect(0);
    let reports: Result<Vec<Value>, _> = serde_json::Deserializer::from_slice(&finished.stdout).into_iter().collect();
    let reports = reports.unwrap_or_else(|error| panic!("{error} {finished}"));
    assert_eq!(reports.len(), 3, "{finished}");
    for report in reports {
        let bytes = |sum: &str| report["end"][sum]["bytes"].as_u64().unwrap_or(0);
        let received = bytes("sum_received") + bytes("sum_received_bidir_reverse");
        // The last of them may be under way when the receiver is asked.
        assert!(received >= 24 << 20, "{received} bytes: {report}");
    }
}

/// TCP and UDP to a server in the guest.
fn into_a_published_port() {
    user::make_host();
    let root = root();
    let port = format!("{PORT}:{PORT}");
    // Not one server for each transfer (`-1`): an attempt that comes too early would use one up.
    let command = format!("exec /usr/bin/iperf3 -s --forceflush -p {PORT}");
    let guest = run(root.path(), &command, "user").with(["-p", &port, "-p", &format!("{port}/udp")]);
    let mut started = guest.start();
    started.wait_for_output("Server listening");
    for protocol in [["-n", "16M"].as_slice(), &["-u", "-b", "10M", "-n", "1M"]] {
        let mut attempts = 0;
        loop {
            // passt of Debian 12 does not bring answers to UDP back to 127.0.0.1.
            let host = user::HOST.to_string();
            let client = Command::new("iperf3").args(["-J", "-c", &host]).args(protocol).output().unwrap();
            let report: Value = serde_json::from_slice(&client.stdout).unwrap();
            if client.status.success() {
                assert!(report["end"].to_string().contains("bytes"), "{report}");
                break;
            }
            // The server may not be done with the last transfer yet.
            attempts += 1;
            assert!(attempts < 20, "{protocol:?}: {report}");
            std::thread::sleep(std::time::Duration::from_millis(500));
        }
    }
    started.signal(Signal::KILL);
    started.finish().expect_signal(Signal::KILL);
}
