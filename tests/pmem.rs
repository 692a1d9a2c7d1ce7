//! Files of the host's as persistent memory of a guest.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::command::Started;
use crate::harness::installed::{self, Kernel};
use crate::harness::{Amphi, Case, Isolation, vm};

pub(crate) fn cases() -> Vec<Case> {
    let stock = || installed::stock("6.12.");
    vec![
        vm("pmem_is_written_and_flushed", || is_written_and_flushed(&installed::own())),
        vm("pmem_on_a_stock_kernel", move || is_written_and_flushed(&stock())),
        vm("pmem_in_order_and_read_only", in_order_and_read_only),
        vm("pmem_shares_the_page_cache", || shares_the_page_cache(&installed::own())).alone(),
        vm("pmem_shares_the_page_cache_on_a_stock_kernel", move || shares_the_page_cache(&stock())).alone(),
        vm("pmem_that_is_none", that_is_none),
    ]
}

const MIB: u64 = 1 << 20;

fn file(folder: &Path, name: &str, size: u64) -> PathBuf {
    let path = folder.join(name);
    File::create(&path).unwrap().set_len(size).unwrap();
    path
}

fn sh(script: &str, options: &[&str]) -> Amphi {
    options.iter().fold(Amphi::sh(Isolation::Vm, script), |amphi, option| amphi.with(["--pmem", option]))
}

fn is_written_and_flushed(kernel: &Kernel) {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "pmem", 8 * MIB);
    let script = "cat /sys/block/pmem0/size; printf hello | dd of=/dev/pmem0 bs=5 seek=1000 conv=fsync 2>/dev/null; \
        dd if=/dev/pmem0 bs=5 skip=1000 count=1 2>/dev/null";
    let finished = sh(script, &[path.to_str().unwrap()]).with(["--kernel", &kernel.name]).finish();
    finished.expect_text(&format!("{}\nhello", 8 * MIB / 512));
    let mut written = [0; 7];
    File::open(&path).unwrap().read_exact_at(&mut written, 4999).unwrap();
    assert_eq!(&written, b"\0hello\0");
}

fn in_order_and_read_only() {
    let folder = tempfile::tempdir().unwrap();
    let first = file(folder.path(), "one, two", 2 * MIB);
    let second = folder.path().join("second");
    // Of no particular size.
    fs::write(&second, b"second").unwrap();
    let options = [first.to_str().unwrap().replace(',', ",,"), format!("{},ro", second.display())];
    let script = "for n in 0 1; do cat /sys/block/pmem$n/size; done; head -c 8 /dev/pmem1 | tr '\\0' .; echo; \
        dd if=/dev/zero of=/dev/pmem1 bs=4k count=1 conv=fsync 2>/dev/null; head -c 6 /dev/pmem1; echo; echo first >/dev/pmem0; sync";
    let finished = sh(script, &[&options[0], &options[1]]).finish();
    assert_eq!(fs::read(&second).unwrap(), b"second", "{finished}");
    assert!(fs::read(&first).unwrap().starts_with(b"first\n"), "{finished}");
    assert!(finished.text().starts_with("4096\n4096\nsecond.."), "{finished}");
}

/// A file system that holds a file of 64 MiB of noise, with blocks of a page.
fn file_system(folder: &Path) -> PathBuf {
    let tree = folder.join("tree");
    fs::create_dir(&tree).unwrap();
    let to = format!("of={}", tree.join("noise").display());
    let noise = Command::new("dd").args(["if=/dev/urandom", "bs=1M", "count=64", "status=none", &to]).status();
    assert!(noise.unwrap().success());
    let image = folder.join("image");
    let made = Command::new("/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-b", "4096", "-O", "^has_journal", "-d"])
        .args([tree.as_os_str(), image.as_os_str(), "96M".as_ref()])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    fs::remove_dir_all(&tree).unwrap();
    image
}

/// What the process takes of the host's memory, each shared page by its share, in bytes.
fn proportional(started: &Started) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", started.id())).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

/// What two guests with `options` take that have done what `source` says.
fn of_two_readers(kernel: &Kernel, options: [&str; 2], source: &str) -> u64 {
    let script = format!("{{ {source}; }} && echo ready; sleep 1000");
    let run = || {
        let amphi =
            Amphi::sh(Isolation::Vm, &script).with(options).with(["--memory", "256M", "--kernel", &kernel.name]);
        let mut started = amphi.start();
        started.wait_for_output("ready");
        started
    };
    let (first, second) = (run(), run());
    proportional(&first) + proportional(&second)
}

fn shares_the_page_cache(kernel: &Kernel) {
    let folder = tempfile::tempdir().unwrap();
    let image = file_system(folder.path());
    let option = format!("{},ro", image.display());
    let read = |device: &str| format!("mkdir /mnt && mount -t ext4 -o ro,{device} /mnt && md5sum </mnt/noise");
    let none = of_two_readers(kernel, ["--cpus", "1"], "true");
    let disk = of_two_readers(kernel, ["--disk", &option], &read("noload /dev/vda"));
    let pmem = of_two_readers(kernel, ["--pmem", &option], &read("noload,dax /dev/pmem0"));
    let mib = |bytes: u64| bytes / MIB;
    println!("{}: neither {} MiB, a disk {} MiB, pmem {} MiB", kernel.name, mib(none), mib(disk), mib(pmem));
    assert!(disk > none + 120 * MIB, "by a disk each has a copy: {} and {} MiB", mib(none), mib(disk));
    assert!(pmem < none + 76 * MIB, "by persistent memory there is one: {} and {} MiB", mib(none), mib(pmem));
    assert!(pmem > none + 60 * MIB, "it was read: {} and {} MiB", mib(none), mib(pmem));
}

fn that_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let odd = file(folder.path(), "odd", 3 * MIB);
    let empty = file(folder.path(), "empty", 0);
    let run = |option: &str| sh("true", &[option]).finish();
    run("").expect_error(125, &["--pmem"]);
    run("/no/such/file").expect_error(125, &["--pmem", "/no/such/file", "no such file"]);
    run("/").expect_error(125, &["--pmem"]);
    run(odd.to_str().unwrap()).expect_error(125, &["--pmem", "odd", "2 MiB", "truncate"]);
    run(empty.to_str().unwrap()).expect_error(125, &["--pmem", "empty"]);
    run(&format!("{},rw", odd.display())).expect_error(125, &["--pmem", "FILE[,ro]"]);
    sh("true", &[&format!("{},ro", odd.display())]).finish().expect(0);
    let twice = file(folder.path(), "twice", 2 * MIB);
    let twice = twice.to_str().unwrap();
    sh("true", &[twice, twice]).finish().expect_error(125, &["--pmem", "in use"]);
    let container = Amphi::run(Isolation::Container, ["true"]).with(["--pmem", twice]);
    container.finish().expect_error(125, &["--pmem"]);
}
