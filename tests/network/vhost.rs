//! Tap interfaces whose packets the host's kernel moves.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use amphi::isolation::Stdio;
use amphi::isolation::vm::{VmIsolation, VmSandbox};
use amphi::{ExitStatus, Image, RunSpec, Sandbox};
use rustix::process::Signal;

use super::tap::{self, GUEST, HOST, NETWORK};
use crate::harness::installed::{self, Kernel};
use crate::harness::netns::{self, has_interface, ip};
use crate::harness::{Amphi, Case, Isolation, rootfs, vm, world};

const DEVICE: &str = "/dev/vhost-net";

pub(crate) fn cases() -> Vec<Case> {
    vec![
        vm("vhost_with_own_kernel", || netns::run(|| ping_and_tcp(&installed::own()))),
        vm("vhost_with_stock_kernel_6_1", || netns::run(|| ping_and_tcp(&installed::stock("6.1.")))),
        vm("vhost_with_stock_kernel_6_12", || netns::run(|| ping_and_tcp(&installed::stock("6.12.")))),
        vm("vhost_moves_a_gibibyte_unharmed", || netns::run(|| moves_a_gibibyte_unharmed(&installed::own()))).alone(),
        vm("vhost_moves_a_gibibyte_unharmed_on_a_stock_kernel", || {
            netns::run(|| moves_a_gibibyte_unharmed(&installed::stock("6.12.")));
        })
        .alone(),
        vm("vhost_whose_driver_is_changed", || netns::run(whose_driver_is_changed)),
        vm("vhost_rests_while_the_guest_is_paused", || netns::run(rests_while_the_guest_is_paused)).alone(),
        vm("vhost_survives_many_pauses", || netns::run(survives_many_pauses)),
        vm("vhost_begins_anew_with_its_machine", || netns::run(begins_anew_with_its_machine)),
        vm("vhost_without_its_interface", || netns::run(without_its_interface)).alone(),
        vm("vhost_leaves_nothing_behind", || netns::run(leaves_nothing_behind)).alone(),
        vm("vhost_that_is_missing", || netns::run(that_is_missing)),
    ]
}

/// `--network` for a case that has called [`make`].
pub(super) fn network() -> String {
    format!("{NETWORK},vhost")
}

/// Makes the tap interface and loads the module.
pub(super) fn make() {
    tap::make();
    load_module();
}

fn load_module() {
    if !Path::new(DEVICE).exists() {
        let loaded = Command::new("modprobe").arg("vhost_net").status().unwrap();
        assert!(loaded.success(), "this host has no {DEVICE}, nor the module vhost_net");
    }
}

fn ping_and_tcp(kernel: &Kernel) {
    load_module();
    tap::ping_and_tcp(kernel, &network());
}

fn moves_a_gibibyte_unharmed(kernel: &Kernel) {
    load_module();
    tap::moves_a_gibibyte_unharmed(kernel, &network());
}

/// The device is reset and activated again, with a stock kernel's driver and the one of amphi's kernel.
fn whose_driver_is_changed() {
    make();
    let script = format!(
        "cd /sys/bus/virtio/drivers/virtio_net; for device in virtio*; do break; done; \
         for round in 1 2 3; do \
           ping -c 2 -W 10 {HOST} >/dev/null && echo $round; \
           echo $device >unbind; test -e /sys/class/net/eth0 && echo still there; \
           echo $device >bind; ip addr add 192.0.2.2/24 dev eth0; ip link set eth0 up; \
         done; ping -c 2 -W 10 {HOST} >/dev/null && echo last; dmesg | grep -i -e 'call trace' -e 'nobody cared'"
    );
    for kernel in [installed::own(), installed::stock("6.12.")] {
        let amphi = Amphi::sh(Isolation::Vm, &script).with(["--kernel", &kernel.name, "--network", &network()]);
        let finished = amphi.finish();
        assert_eq!(finished.text(), "1\n2\n3\nlast", "{} {finished}", kernel.name);
    }
}

/// What `proc_pid_stat(5)` says of the kernel's threads for vhost. They are processes of their own, or, from Linux 6.4 on, threads of `id`.
fn workers(id: u32) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let threads = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    let stats = processes.chain(threads).filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    stats.filter(|stat| stat.contains("(vhost-")).collect()
}

/// A guest in this process that runs `script`.
fn start(script: &str) -> VmSandbox {
    let image = Image::open(&format!("dir:{}", rootfs::busybox().display())).unwrap();
    let spec = RunSpec::builder(&image).args(["/bin/sh", "-c", script]).memory_mib(256);
    let spec = spec.kernel(&installed::own().name).network(network().parse().unwrap()).build().unwrap();
    let sandbox = VmIsolation::new().create_vm(&spec, Stdio::null().unwrap()).unwrap();
    sandbox.start().unwrap();
    sandbox
}

/// The processor time that the kernel's thread for this process's only machine has had, in ticks.
fn time_of_worker() -> u64 {
    let workers = workers(std::process::id());
    let [stat] = workers.as_slice() else { panic!("threads of the kernel's: {workers:?}") };
    let fields = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2);
    fields.map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

/// Both directions are at work, and stand still.
fn rests_while_the_guest_is_paused() {
    make();
    let listener = TcpListener::bind((HOST, 5000)).unwrap();
    let sandbox = start(&format!("nc {HOST} 5000 </dev/zero & ping -i 0.01 {HOST}"));
    let datagrams = UdpSocket::bind((HOST, 0)).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let mut buffer = vec![0; 1 << 20];
    for _ in 0..3 {
        stream.set_read_timeout(Some(world::seconds(20))).unwrap();
        for _ in 0..4 {
            assert!(stream.read(&mut buffer).unwrap() > 0);
        }
        sandbox.pause().unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        // What the host has already.
        while stream.read(&mut buffer).is_ok() {}
        let before = time_of_worker();
        for _ in 0..100 {
            datagrams.send_to(b"wait", (GUEST, 9)).unwrap();
        }
        assert!(stream.read(&mut buffer).is_err(), "it is paused");
        assert_eq!(time_of_worker(), before, "processor time while it is paused");
        sandbox.resume().unwrap();
    }
    stream.set_read_timeout(Some(world::seconds(20))).unwrap();
    assert!(stream.read(&mut buffer).unwrap() > 0);
    sandbox.pause().unwrap();
    sandbox.kill(amphi::isolation::Signal::KILL).unwrap();
    assert_eq!(sandbox.wait().unwrap(), ExitStatus::Signal(amphi::isolation::Signal::KILL));
}

/// What goes to the guest and comes back is the same, however often it is paused meanwhile.
fn survives_many_pauses() {
    make();
    let listener = TcpListener::bind((HOST, 5000)).unwrap();
    let sandbox = start(&format!("nc {HOST} 5000 </dev/null >/x && nc {HOST} 5000 </x"));
    let noise = tap::noise(4 << 20);
    let pauses = std::thread::scope(|scope| {
        let transfer = scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(&noise).unwrap();
            drop(stream);
            let (mut stream, _) = listener.accept().unwrap();
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            assert!(received == noise, "{} other bytes", received.len());
        });
        let mut pauses = 0;
        while !transfer.is_finished() {
            sandbox.pause().unwrap();
            std::thread::sleep(Duration::from_millis(5));
            sandbox.resume().unwrap();
            std::thread::sleep(Duration::from_millis(5));
            pauses += 1;
        }
        transfer.join().unwrap();
        pauses
    });
    assert!(pauses > 3, "{pauses}");
    assert_eq!(sandbox.wait().unwrap(), ExitStatus::Code(0));
}

/// The reset button, while there is traffic.
fn begins_anew_with_its_machine() {
    make();
    let listener = TcpListener::bind((HOST, 5000)).unwrap();
    let sandbox = start(&format!("echo hello | nc {HOST} 5000; nc {HOST} 5000 </dev/zero"));
    for _ in 0..3 {
        let (mut stream, _) = listener.accept().unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello\n");
        drop(stream);
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut vec![0; 1 << 20]).unwrap();
        sandbox.reset().unwrap();
    }
    sandbox.kill(amphi::isolation::Signal::KILL).unwrap();
    sandbox.wait().unwrap();
}

/// What the guest sends is lost, and the kernel's thread does not spin.
fn without_its_interface() {
    make();
    let listener = TcpListener::bind((HOST, 5000)).unwrap();
    let sandbox =
        start(&format!("nc {HOST} 5000 </dev/null; sleep 1; for i in 1 2 3; do ping -c 1 -W 1 {HOST}; done; exit 5"));
    listener.accept().unwrap();
    ip("link del tap0");
    std::thread::sleep(Duration::from_millis(100));
    let before = time_of_worker();
    std::thread::sleep(Duration::from_millis(500));
    assert!(time_of_worker() - before < 10, "ticks");
    assert_eq!(sandbox.wait().unwrap(), ExitStatus::Code(5));
}

/// However amphi ends: the interface that it made goes, and the kernel's thread.
fn leaves_nothing_behind() {
    load_module();
    for signal in [Signal::TERM, Signal::KILL] {
        let script = "trap 'exit 7' TERM; echo up; while :; do sleep 0.1; done";
        let mut started = Amphi::sh(Isolation::Vm, script).with(["--network", "tap:mine0,vhost"]).start();
        started.wait_for_output("up");
        let id = started.id();
        assert_eq!(workers(id).len(), 1, "threads of the kernel's");
        assert!(has_interface("mine0"));
        started.signal(signal);
        let finished = started.finish();
        if signal == Signal::KILL {
            finished.expect_signal(signal)
        } else {
            finished.expect(7)
        };
        let deadline = Instant::now() + world::seconds(5);
        while !workers(id).is_empty() || has_interface("mine0") {
            assert!(Instant::now() < deadline, "{signal:?}: left behind: {:?}", workers(id));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// In a view of the machine that has no such device.
fn that_is_missing() {
    ip("link set lo up");
    let amphi = Amphi::sh(Isolation::Vm, "true").with(["--network", "tap:t0,vhost"]).line();
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        "mount -t tmpfs dev {0} && cd {0} && mkdir net && \
         for node in null zero urandom kvm net/tun; do touch $node && mount --bind /dev/$node $node; done && \
         mount --move . /dev && cd / && {amphi}",
        folder.path().display()
    );
    let output = Command::new("unshare").args(["--mount", "sh", "-c", &script]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{errors}");
    for word in ["--network tap:t0,vhost", DEVICE, "modprobe vhost_net", "leave vhost out"] {
        assert!(errors.contains(word), "no {word}: {errors}");
    }
    assert!(!has_interface("t0"));
}
