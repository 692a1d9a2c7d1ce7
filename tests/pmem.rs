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

/// A file system that holds a file of 64 MiB, with blocks of a page.
fn file_system(folder: &Path) -> PathBuf {
    let tree = folder.join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("large"), vec![0x5a; 64 << 20]).unwrap();
    let image = folder.join("image");
    let made = Command::new("/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-b", "4096", "-O", "^has_journal", "-d"])
        .args([tree.as_os_str(), image.as_os_str(), "72M".as_ref()])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    fs::remove_dir_all(&tree).unwrap();
    image
}

/// What a process has of the host's memory, in bytes.
#[derive(Debug, Default)]
struct Taken {
    /// Of its own: for a microVM, what its guest has touched of its RAM.
    anonymous: u64,
    /// Of `file`, as much as it has mapped.
    mapped: u64,
    /// Of that its share, where others have mapped the same pages.
    share: u64,
}

fn taken(started: &Started, file: &Path) -> Taken {
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", started.id())).unwrap();
    let number = |line: &str| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10;
    let (mut taken, mut of_file) = (Taken::default(), false);
    for line in smaps.lines() {
        match line.split_once(':') {
            Some(("Rss", _)) if of_file => taken.mapped += number(line),
            Some(("Pss", _)) if of_file => taken.share += number(line),
            Some(("Anonymous", _)) => taken.anonymous += number(line),
            _ if line.contains('-') => of_file = line.ends_with(file.to_str().unwrap()),
            _ => {}
        }
    }
    taken
}

/// What two guests with `options` have taken that have done what `source` says.
fn two_readers(kernel: &Kernel, file: &Path, options: [&str; 2], source: &str) -> [Taken; 2] {
    let script = format!("{{ {source}; }} && echo ready; sleep 1000");
    let started = [0, 1].map(|_| {
        let amphi =
            Amphi::sh(Isolation::Vm, &script).with(options).with(["--memory", "256M", "--kernel", &kernel.name]);
        let mut started = amphi.start();
        started.wait_for_output("ready");
        started
    });
    started.each_ref().map(|started| taken(started, file))
}

fn shares_the_page_cache(kernel: &Kernel) {
    let folder = tempfile::tempdir().unwrap();
    let image = file_system(folder.path());
    let option = format!("{},ro", image.display());
    let read = |device: &str| format!("mkdir /mnt && mount -t ext4 -o ro,{device} /mnt && cat /mnt/large | wc -c");
    let none = two_readers(kernel, &image, ["--cpus", "1"], "true");
    let disk = two_readers(kernel, &image, ["--disk", &option], &read("noload /dev/vda"));
    let pmem = two_readers(kernel, &image, ["--pmem", &option], &read("noload,dax /dev/pmem0"));
    println!("{}: neither {none:?}\na disk {disk:?}\npmem {pmem:?}", kernel.name);
    let own = |taken: &[Taken; 2]| taken.iter().map(|taken| taken.anonymous).sum::<u64>();
    // Of the two copies a part lies in huge pages that the guests have in any case.
    assert!(own(&disk) > own(&none) + 64 * MIB, "by a disk each guest has a copy");
    assert!(own(&pmem) < own(&none) + 16 * MIB, "by persistent memory they have none");
    assert!(pmem.iter().all(|taken| taken.mapped >= 64 * MIB), "it was read");
    let shares: u64 = pmem.iter().map(|taken| taken.share).sum();
    assert!((64 * MIB..72 * MIB).contains(&shares), "the host has one copy for both: {shares} bytes");
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
