//! Minutes of load on everything at once. Runs only when it is asked for: `make stress`.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::installed::{self, Kernel};
use crate::harness::netns::{self, ip};
use crate::harness::{Amphi, Case, Isolation, rootfs, vm};

/// How long the load lasts.
const SECONDS: u64 = 300;
/// By how much the VMM's own memory may grow from a fifth of that time to its end: what a thread's arena and buffers of
/// connections take at the most, far less than what a leak for each request would.
const MOST_GROWTH_KIB: u64 = 1024;
/// The guest's RAM.
const GUEST_KIB: u64 = 1024 * 1024;
const HOST: &str = "192.0.2.1";

pub(crate) fn cases() -> Vec<Case> {
    let own = vm("stress", || netns::run(|| stress(&installed::own())));
    let stock = vm("stress_on_a_stock_kernel", || netns::run(|| stress(&installed::stock("6.12."))));
    [own, stock].map(|case| case.alone().on_request()).into()
}

/// Processors, memory, processes, a disk with verified contents, and a network both ways; two vCPUs.
fn stress(kernel: &Kernel) {
    ip("tuntap add tap0 mode tap");
    ip(&format!("addr add {HOST}/24 dev tap0"));
    let mut server = Command::new("iperf3").args(["-s"]).stdout(Stdio::null()).spawn().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    rootfs::with_programs(&root, &["fio", "iperf3", "stress-ng"]);
    let disk = folder.path().join("disk");
    fs::File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    let script = format!(
        "b=$(dmesg | wc -l)
         stress-ng --quiet --temp-path /tmp --cpu 2 --vm 1 --vm-bytes 64M --fork 1 --pipe 1 --timeout {SECONDS}s >/tmp/stress 2>&1 & s=$!
         for v in /sys/block/vd*; do test $(cat $v/serial) != scratch || d=/dev/${{v##*/}}; done
         fio --name=load --filename=$d --direct=1 --rw=randwrite --bs=16k --iodepth=8 --ioengine=libaio --size=64M \\
             --verify=crc32c --time_based --runtime={SECONDS} --verify_fatal=1 >/tmp/fio 2>&1 & f=$!
         iperf3 -c {HOST} -t {SECONDS} --bidir >/tmp/iperf 2>&1 & i=$!
         for part in 1 2 3 4 5; do sleep {}; echo part $part; done
         wait $s || {{ cat /tmp/stress; echo stress-ng failed; }}
         wait $f || {{ cat /tmp/fio; echo fio failed; }}
         wait $i || {{ cat /tmp/iperf; echo iperf3 failed; }}
         dmesg -r | tail -n +$((b + 1)) | grep -iE '^<[0-3]>|bug|warning|hung|stall|lockup|oom|error'; echo end",
        SECONDS / 5
    );
    let image = format!("dir:{}", root.display());
    let disk = format!("{},serial=scratch", disk.display());
    let kernel = ["--kernel", &kernel.name];
    let options = ["--cpus", "2", "--memory", "1G", "--disk", &disk, "--network", "tap:tap0,ip=192.0.2.2/24"];
    let mut started = Amphi::run_image(Isolation::Vm, image.as_ref(), ["/bin/sh", "-c", &script])
        .with(kernel)
        .with(options)
        .start()
        .within(Duration::from_secs(2 * SECONDS));
    started.wait_for_output("part 1");
    let before = memory_of_the_vmm(started.id());
    started.wait_for_output("part 5");
    let after = memory_of_the_vmm(started.id());
    println!("the VMM's own memory: {before} KiB after {} s, {after} KiB after {SECONDS} s", SECONDS / 5);
    let finished = started.finish().expect(0);
    let _ = server.kill();
    let _ = server.wait();
    assert_eq!(finished.text(), "part 1\npart 2\npart 3\npart 4\npart 5\nend", "{finished}");
    assert!(after < before + MOST_GROWTH_KIB, "the VMM grew from {before} to {after} KiB");
}

/// What of a VMM's memory is resident, in KiB, without the guest's RAM: the one mapping as large as that. Its name is not on
/// every kernel.
fn memory_of_the_vmm(process: u32) -> u64 {
    let mut resident = 0;
    let mut is_guest = false;
    for line in fs::read_to_string(format!("/proc/{process}/smaps")).unwrap().lines() {
        let kib = |rest: &str| rest.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        if let Some(rest) = line.strip_prefix("Size:") {
            is_guest = kib(rest) == GUEST_KIB;
        } else if let Some(rest) = line.strip_prefix("Rss:") {
            resident += if is_guest { 0 } else { kib(rest) };
        }
    }
    resident
}
