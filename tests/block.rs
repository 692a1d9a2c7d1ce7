//! Disks that a microVM gets beside its root.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use crate::harness::initramfs::{self, DO};
use crate::harness::installed::{self, Kernel, WithKernel};
use crate::harness::{Amphi, Case, Isolation, container, rootfs, vm};

const ENGINES: [&str; 2] = ["sync", "io_uring"];

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = vec![
        vm("a_direct_boot_has_disks", a_direct_boot_has_disks),
        vm("a_block_device_is_a_disk", a_block_device_is_a_disk),
        vm("disks_that_are_none", disks_that_are_none),
        container("a_container_has_no_disks", a_container_has_no_disks),
    ];
    let with_each_kernel: [(&str, WithKernel); 6] = [
        ("disks_come_in_order_after_the_root", disks_come_in_order_after_the_root),
        ("a_file_system_on_a_disk", a_file_system_on_a_disk),
        ("what_is_synced_survives_a_kill", what_is_synced_survives_a_kill),
        ("fio_finds_no_error", fio_finds_no_error),
        ("a_discard_shrinks_the_file", a_discard_shrinks_the_file),
        ("a_read_only_disk_beside_the_root_refuses_writes", a_read_only_disk_refuses_writes),
    ];
    for (name, case) in with_each_kernel {
        cases.push(vm(name, move || case(&installed::own())));
        cases.push(vm(&format!("{name}_on_a_stock_kernel"), move || case(&installed::stock("6.12."))));
    }
    cases
}

/// A sparse file of that many mebibytes.
fn file(folder: &Path, name: &str, mebibytes: u64) -> PathBuf {
    let path = folder.join(name);
    File::create(&path).unwrap().set_len(mebibytes << 20).unwrap();
    path
}

/// The value of `--disk`.
fn disk(path: &Path, options: &str) -> String {
    format!("{}{options}", path.display())
}

fn sh(kernel: &Kernel, script: &str, disks: &[String]) -> Amphi {
    let amphi = Amphi::sh(Isolation::Vm, script).with(["--kernel", &kernel.name]);
    disks.iter().fold(amphi, |amphi, disk| amphi.with(["--disk", disk]))
}

/// A root with programs of the host, as an image.
fn image_with(folder: &Path, programs: &[&str]) -> String {
    let root = folder.join("root");
    rootfs::with_programs(&root, programs);
    format!("dir:{}", root.display())
}

fn run_image(kernel: &Kernel, image: &str, script: &str, disks: &[String]) -> Amphi {
    let amphi = Amphi::run_image(Isolation::Vm, image.as_ref(), ["/bin/sh", "-ec", script]);
    let amphi = amphi.with(["--kernel", &kernel.name]);
    disks.iter().fold(amphi, |amphi, disk| amphi.with(["--disk", disk]))
}

fn disks_come_in_order_after_the_root(kernel: &Kernel) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root.img");
    make_ext4(&root, &["-d", rootfs::busybox().to_str().unwrap()], "32M");
    let disks = [
        disk(&file(folder.path(), "b", 3), ",serial=the-first"),
        disk(&file(folder.path(), "a,comma", 2).with_file_name("a,,comma"), ",ro"),
        disk(&file(folder.path(), "c", 1), ",engine=io_uring"),
    ];
    let show = "for d in /sys/block/vd*; do echo $(cat $d/size $d/ro $d/serial); done";
    let others = ["6144 0 the-first", "4096 1 amphi", "2048 0 amphi"];
    let finished = sh(kernel, show, &disks).finish().expect(0);
    let lines: Vec<_> = finished.text().lines().map(ToOwned::to_owned).collect();
    assert!(lines.len() == 3 && lines.iter().zip(others).all(|(line, other)| line.starts_with(other)), "{finished}");
    let finished = run_image(kernel, &format!("disk:{}", root.display()), show, &disks).finish().expect(0);
    let lines: Vec<_> = finished.text().lines().map(ToOwned::to_owned).collect();
    assert!(lines.len() == 4 && lines[0].starts_with("65536 0 "), "the root comes first {finished}");
    assert!(lines[1..].iter().zip(others).all(|(line, other)| line.starts_with(other)), "{finished}");
}

fn a_direct_boot_has_disks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    fs::write(&path, format!("{:511}\n", "from the disk")).unwrap();
    let (_initrd_folder, initrd) = initramfs::write();
    let finished = Amphi::new(["run", "--kernel", &installed::own().name, "--memory", "128M", "--initrd"])
        .with([&initrd])
        .with(["--kernel-arg", &format!("{DO}=disk"), "--kernel-arg", "quiet", "--disk", &disk(&path, ",ro")])
        .finish()
        .expect(0);
    assert!(finished.text().contains("from the disk"), "{finished}");
}

fn make_ext4(path: &Path, options: &[&str], size: &str) {
    let made = Command::new("/sbin/mke2fs").args(["-q", "-t", "ext4"]).args(options).arg(path).arg(size).output();
    let made = made.unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

fn check_ext4(path: &Path) {
    let check = Command::new("/sbin/e2fsck").args(["-f", "-n"]).arg(path).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
}

fn a_file_system_on_a_disk(kernel: &Kernel) {
    let folder = tempfile::tempdir().unwrap();
    let image = image_with(folder.path(), &["mke2fs", "e2fsck"]);
    let path = file(folder.path(), "disk", 64);
    for engine in ENGINES {
        let script = "for b in /sys/block/vd*; do test $(cat $b/serial) != scratch || d=/dev/${b##*/}; done
            /bin/mke2fs -q -t ext4 $d; mkdir /tmp/m; mount -t ext4 -o discard $d /tmp/m
            cp -r /bin /tmp/m; rm -r /tmp/m/bin/busybox; seq 20000 >/tmp/m/numbers; umount /tmp/m
            /bin/e2fsck -f -n $d >/dev/null; mount -t ext4 -o ro $d /tmp/m; md5sum </tmp/m/numbers; seq 20000 | md5sum";
        let finished = run_image(kernel, &image, script, &[disk(&path, &format!(",serial=scratch,engine={engine}"))])
            .finish()
            .expect(0);
        let text = finished.text();
        let (read, expected) = text.split_once('\n').unwrap_or_default();
        assert!(read == expected && !read.is_empty(), "{finished}");
        check_ext4(&path);
    }
}

fn what_is_synced_survives_a_kill(kernel: &Kernel) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    for engine in ENGINES {
        make_ext4(&path, &["-F"], "32M");
        let disks = [disk(&path, &format!(",engine={engine}"))];
        let script =
            "mkdir /tmp/m; mount -t ext4 /dev/vda /tmp/m && seq 100000 | dd of=/tmp/m/numbers conv=fsync 2>/dev/null &&
            echo synced; while :; do seq 1000 >>/tmp/m/more; done";
        let mut started = sh(kernel, script, &disks).start();
        started.wait_for_output("synced");
        started.signal(Signal::KILL);
        started.finish().expect_signal(Signal::KILL);
        let read =
            "mkdir /tmp/m; mount -t ext4 /dev/vda /tmp/m; md5sum </tmp/m/numbers; seq 100000 | md5sum; umount /tmp/m";
        let finished = sh(kernel, read, &disks).finish().expect(0);
        let text = finished.text();
        let (read, expected) = text.split_once('\n').unwrap_or_default();
        assert!(read == expected && !read.is_empty(), "with {engine} {finished}");
        check_ext4(&path);
    }
}

fn fio_finds_no_error(kernel: &Kernel) {
    let folder = tempfile::tempdir().unwrap();
    let image = image_with(folder.path(), &["fio"]);
    let disks = ENGINES.map(|engine| disk(&file(folder.path(), engine, 4), &format!(",engine={engine}")));
    // On each disk at once: blocks of any size one by one through the guest's page cache, and many at a time past it. Each
    // is read back and compared.
    let jobs = ["/dev/vdb", "/dev/vdc"].map(|disk| {
        format!(
            "--name=any --filename={disk} --rw=randwrite --bsrange=512-64k --blockalign=512 --ioengine=psync --fsync=32 \
             --name=many --filename={disk} --offset=2m --rw=randrw --bs=4k --ioengine=libaio --iodepth=32 --direct=1 "
        )
    });
    let script = format!(
        "fio --thread --size=2m --verify=crc32c --verify_fatal=1 --output=/tmp/out {} || {{ cat /tmp/out; exit 9; }}
         grep -c 'err= 0' /tmp/out; dmesg | grep -i 'I/O error' || echo no error",
        jobs.concat()
    );
    let finished = run_image(kernel, &image, &script, &disks).with(["--cpus", "2"]).finish().expect(0);
    assert_eq!(finished.text(), "4\nno error", "{finished}");
}

fn a_discard_shrinks_the_file(kernel: &Kernel) {
    let folder = tempfile::tempdir().unwrap();
    for engine in ENGINES {
        let path = folder.path().join("disk");
        fs::write(&path, vec![0xab; 8 << 20]).unwrap();
        let before = fs::metadata(&path).unwrap().blocks();
        let script = "blkdiscard -o 1048576 -l 6291456 /dev/vda";
        sh(kernel, script, &[disk(&path, &format!(",engine={engine}"))]).finish().expect(0);
        let after = fs::metadata(&path).unwrap();
        assert!(after.blocks() + (6 << 11) <= before, "{before} blocks, then {}", after.blocks());
        let contents = fs::read(&path).unwrap();
        assert_eq!(contents.len(), 8 << 20);
        let kept = |range: std::ops::Range<usize>| contents[range].iter().all(|&byte| byte == 0xab);
        assert!(kept(0..1 << 20) && kept(7 << 20..8 << 20), "what was not discarded is lost");
    }
}

fn a_read_only_disk_refuses_writes(kernel: &Kernel) {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "disk", 1);
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
    let script = "cat /sys/block/vda/ro; dd if=/dev/urandom of=/dev/vda bs=4k count=1 2>/dev/null || echo refused";
    sh(kernel, script, &[disk(&path, ",ro")]).finish().expect_text("1\nrefused");
    assert!(fs::read(&path).unwrap().iter().all(|&byte| byte == 0), "the disk was written to");
}

/// A loop device over a file, taken down when dropped.
struct Loop(String);

impl Loop {
    fn new(file: &Path) -> Self {
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self(String::from_utf8(made.stdout).unwrap().trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

fn a_block_device_is_a_disk() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: a loop device takes root");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut backing = File::create(folder.path().join("backing")).unwrap();
    backing.write_all(&vec![0x5a; 4 << 20]).unwrap();
    let device = Loop::new(&folder.path().join("backing"));
    for engine in ENGINES {
        // The first write is aligned for direct I/O, the second one's memory in the guest need not be.
        let script = "cat /sys/block/vda/size; dd if=/dev/zero of=/dev/vda bs=4k count=16 oflag=direct 2>/dev/null &&
            dd if=/dev/zero of=/dev/vda bs=512 seek=8191 count=1 conv=fsync 2>/dev/null && head -c 65537 /dev/vda | tail -c 1";
        let options = format!(",direct,engine={engine}");
        let finished = sh(&installed::own(), script, &[disk(device.0.as_ref(), &options)]).finish().expect(0);
        assert_eq!(finished.text(), "8192\nZ", "{finished}");
        let contents = fs::read(&device.0).unwrap();
        let zeroes = |range: std::ops::Range<usize>| contents[range].iter().all(|&byte| byte == 0);
        assert!(zeroes(0..65536) && zeroes(8191 * 512..8192 * 512), "what was written is not there");
    }
}

fn disks_that_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "disk", 1);
    let good = path.to_str().unwrap();
    for (disk, word) in [
        ("/no/such/disk", "/no/such/disk"),
        ("/dev", "/dev"),
        ("/dev/null", "/dev/null"),
        (&format!("{good},rw"), "rw"),
        (&format!("{good},engine=fast"), "engine"),
        (&format!("{good},serial="), "serial"),
        (&format!("{good},ops=0/s"), "ops"),
        (",ro", "--disk"),
    ] {
        Amphi::new(["run", "--disk", disk, "builtin"]).finish().expect_error(125, &["--disk", word]);
    }
    let twice = Amphi::new(["run", "--disk", good, "--disk", good, "builtin"]);
    twice.finish().expect_error(125, &["--disk", good, "in use"]);
    let mut holder = sh(&installed::own(), "echo running; sleep 100", &[good.to_owned()]).start();
    holder.wait_for_output("running");
    Amphi::new(["run", "--disk", &format!("{good},ro"), "builtin"]).finish().expect_error(125, &[good, "in use"]);
    drop(holder);
    let kernel = installed::own().name;
    let direct = Amphi::new(["run", "--kernel", &kernel, "--initrd", "/no/such/initrd", "--disk", "/no/such/disk"]);
    direct.finish().expect_error(125, &["--disk", "/no/such/disk"]);
}

fn a_container_has_no_disks() {
    Amphi::new(["run", "--isolation", "container", "--disk", "x", "builtin"]).finish().expect_error(125, &["--disk"]);
}
