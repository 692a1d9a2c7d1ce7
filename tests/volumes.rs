//! Volumes: directories and files of the host that a workload sees.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::harness::installed;
use crate::harness::leftovers::Snapshot;
use crate::harness::{Amphi, Case, Isolation, both, rootfs, vm};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(both("volume_carries_data_both_ways", carries_data_both_ways));
    cases.extend(both("volume_serves_programs", serves_programs));
    cases.extend(both("volume_has_owners", has_owners));
    cases.extend(both("volume_read_only_refuses_writes", read_only_refuses_writes));
    cases.extend(both("volumes_beside_and_in_each_other", beside_and_in_each_other));
    cases.extend(both("volume_that_is_a_file", that_is_a_file));
    cases.extend(both("volume_keeps_to_its_folder", keeps_to_its_folder));
    cases.extend(both("volume_with_10000_entries", with_10000_entries));
    cases.extend(both("volume_that_makes_no_sense", that_makes_no_sense));
    cases.extend(both("volume_after_kill_9", after_kill_9).into_iter().map(Case::alone));
    cases.push(vm("volume_without_privileges", without_privileges));
    cases.push(vm("volume_with_kernel_own", || with_kernel(&installed::own().name)));
    cases.push(vm("volume_with_kernel_stock_6_12", || with_kernel(&installed::stock("6.12.").name)));
    cases
}

/// `-v FOLDER/NAME:PLACE`
fn option(folder: &Path, name: &str, place: &str) -> [String; 2] {
    ["-v".to_owned(), format!("{}:{place}", folder.join(name).display())]
}

/// A folder that everybody may enter, with an empty folder `data` in it.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(folder.path().join("data")).unwrap();
    folder
}

fn sum(path: &Path) -> String {
    let printed = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(printed.stdout).unwrap()[..64].to_owned()
}

fn carries_data_both_ways(isolation: Isolation) {
    let folder = folder();
    let data = folder.path().join("data");
    // No two blocks are the same, and the end is not at the end of one.
    let bytes: Vec<u8> =
        (0..1_u32 << 20).flat_map(|n| n.wrapping_mul(0x9E37_79B9).to_le_bytes()).chain([1, 2, 3]).collect();
    fs::write(data.join("in"), &bytes).unwrap();
    let script = "cd /made/for/it; sha256sum in | cut -c 1-64; cp in out; echo more >>out; sync; echo ready; read line; \
                  cat later; stat -c %s in";
    let mut started = Amphi::sh(isolation, script)
        .with(["-i"])
        .with(option(folder.path(), "data", "/made/for/it"))
        .input("go\n")
        .open_input()
        .start();
    started.wait_for_output("ready");
    drop(started);
    assert_eq!(fs::read(data.join("out")).unwrap(), [&bytes[..], b"more\n"].concat(), "what came out");

    // What the host changes is seen, if not at once.
    let script = "cd /made/for/it; cat changing; echo ready; until grep -q new changing; do sleep 0.1; done; cat changing; \
                  until test -e later; do sleep 0.1; done; cat later; sha256sum in | cut -c 1-64";
    fs::write(data.join("changing"), "old\n").unwrap();
    let mut started = Amphi::sh(isolation, script).with(option(folder.path(), "data", "/made/for/it")).start();
    started.wait_for_output("ready");
    fs::write(data.join("changing"), "new text\n").unwrap();
    fs::write(data.join("later"), "later\n").unwrap();
    started.finish().expect_text(&format!("old\nready\nnew text\nlater\n{}", sum(&data.join("in"))));
}

fn serves_programs(isolation: Isolation) {
    let folder = folder();
    let data = folder.path().join("data");
    let built = Command::new("cc")
        .args(["-static", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(data.join("files"))
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guest/files.c"))
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    Amphi::run(isolation, ["/v/files", "/v"]).with(option(folder.path(), "data", "/v")).finish().expect_text("ok");
    let odd = fs::read(data.join(OsStr::from_bytes(b"\xff\xfe \n\""))).unwrap();
    assert_eq!(odd, b"odd");
    assert_eq!(fs::read_dir(&data).unwrap().count(), 2, "all else was removed");
}

fn has_owners(isolation: Isolation) {
    let folder = folder();
    let data = folder.path().join("data");
    fs::set_permissions(&data, fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(data.join("secret"), "").unwrap();
    fs::set_permissions(data.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    let script = "umask; cd /v; touch mine; mkdir folder; ln -s x link; cat secret 2>/dev/null || echo refused; \
                  stat -c '%u %g %a' . mine folder";
    let finished =
        Amphi::sh(isolation, script).with(["-u", "alice"]).with(option(folder.path(), "data", "/v")).finish();
    finished.expect_text("0022\nrefused\n0 0 1777\n1000 1001 644\n1000 1001 755");
    for name in ["mine", "folder", "link"] {
        let found = fs::symlink_metadata(data.join(name)).unwrap();
        assert_eq!((found.uid(), found.gid()), (1000, 1001), "{name}");
    }
    let script = "cd /v; chown 5:6 mine; chgrp 50 folder; chmod 2775 folder; touch folder/inherits; stat -c '%u %g' mine folder/inherits";
    Amphi::sh(isolation, script).with(option(folder.path(), "data", "/v")).finish().expect_text("5 6\n0 50");
    let found = fs::metadata(data.join("mine")).unwrap();
    assert_eq!((found.uid(), found.gid()), (5, 6));
}

/// Without capabilities all of the guest's users are amphi's one, whom the guest sees as root.
fn without_privileges() {
    let folder = folder();
    let data = folder.path().join("data");
    fs::set_permissions(&data, fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(data.join("other"), "another's").unwrap();
    std::os::unix::fs::chown(data.join("other"), Some(1000), Some(1000)).unwrap();
    fs::set_permissions(data.join("other"), fs::Permissions::from_mode(0o600)).unwrap();
    let script = "cd /v; stat -c '%u %g' . other; cat other 2>/dev/null || echo refused; touch mine; chmod 640 mine; \
                  chown 0:0 mine && chown 5 mine 2>/dev/null || echo refused; stat -c '%u %g %a' mine; mv other mine sub 2>/dev/null; ls";
    let amphi = Amphi::sh(Isolation::Vm, script).with(option(folder.path(), "data", "/v"));
    let finished = amphi.finish_under(&["setpriv", "--bounding-set=-all", "--"]);
    finished.expect_text("0 0\n65534 65534\nrefused\nrefused\n0 0 640\nmine\nother");
    let amphi = Amphi::sh(Isolation::Vm, "touch /v/hers; stat -c '%u' /v/hers").with(["-u", "alice"]);
    let finished =
        amphi.with(option(folder.path(), "data", "/v")).finish_under(&["setpriv", "--bounding-set=-all", "--"]);
    finished.expect_text("0");
    assert_eq!(fs::metadata(data.join("hers")).unwrap().uid(), 0);
}

fn read_only_refuses_writes(isolation: Isolation) {
    let folder = folder();
    let data = folder.path().join("data");
    fs::write(data.join("file"), "as it was\n").unwrap();
    let script = "cd /v; cat file; for c in 'touch new' 'rm file' 'mkdir d' 'mv file x' 'chmod 0 file' 'ln file l' \
                  'ln -s a b' 'truncate -s 0 file' 'chown 1 file' 'touch file' 'mount -o remount,rw /v && touch new'; do \
                  sh -c \"$c\" 2>/dev/null && echo \"$c went through\"; done; (echo x >>file) 2>/dev/null || echo refused";
    let volume = option(folder.path(), "data", "/v:ro");
    Amphi::sh(isolation, script).with(volume).finish().expect_text("as it was\nrefused");
    assert_eq!(fs::read_dir(&data).unwrap().count(), 1);
    assert_eq!(fs::read(data.join("file")).unwrap(), b"as it was\n");
    // A root that refuses writes is no matter to a volume, where its place is there.
    let volume = option(folder.path(), "data", "/home/alice");
    let script = "touch /x 2>/dev/null || echo refused; touch new && ls";
    let options = ["--read-only", "-w", "/home/alice"];
    Amphi::sh(isolation, script).with(options).with(volume).finish().expect_text("refused\nfile\nnew");
}

fn beside_and_in_each_other(isolation: Isolation) {
    let folder = folder();
    for name in ["data", "one", "two"] {
        fs::create_dir_all(folder.path().join(name)).unwrap();
        fs::write(folder.path().join(name).join("name"), name).unwrap();
    }
    // The inner one is named first.
    let finished = Amphi::sh(isolation, "cat /v/name /v/in/side/name /else/name; echo x >/v/in/side/new")
        .with(option(folder.path(), "one", "/v/in/side"))
        .with(option(folder.path(), "data", "/v"))
        .with(option(folder.path(), "two", "/else:ro"))
        .finish();
    finished.expect_text("dataonetwo");
    assert!(folder.path().join("one/new").exists() && folder.path().join("data/in/side").is_dir());
}

fn that_is_a_file(isolation: Isolation) {
    let folder = folder();
    fs::write(folder.path().join("motd"), "from the host\n").unwrap();
    fs::write(folder.path().join("passwd"), "root:x:0:0::/:/bin/sh\nbob:x:7:7::/:/bin/sh\n").unwrap();
    let script = "cat /new/motd; echo more >>/new/motd; ls /new; echo x >>/etc/passwd || echo refused; id -u bob; rm /new/motd || echo stays";
    let finished = Amphi::sh(isolation, script)
        .with(option(folder.path(), "motd", "/new/motd"))
        .with(option(folder.path(), "passwd", "/etc/passwd:ro"))
        .finish()
        .expect(0);
    assert_eq!(finished.text(), "from the host\nmotd\nrefused\n7\nstays", "{finished}");
    assert_eq!(fs::read(folder.path().join("motd")).unwrap(), b"from the host\nmore\n");
}

/// Nothing leads out of a volume: neither a symlink, nor `..`, nor a name that changes its meaning all the time.
fn keeps_to_its_folder(isolation: Isolation) {
    let folder = folder();
    let data = folder.path().join("data");
    fs::create_dir(folder.path().join("outside")).unwrap();
    fs::write(folder.path().join("outside/secret"), "the host's secret\n").unwrap();
    fs::create_dir(data.join("turning")).unwrap();
    fs::write(data.join("turning/secret"), "inside\n").unwrap();
    symlink(folder.path().join("outside"), data.join("link")).unwrap();
    symlink("../outside/secret", data.join("up")).unwrap();
    symlink("/proc/self/root/etc/passwd", data.join("magic")).unwrap();

    let script = "cd /v; cat link/secret up ../outside/secret 2>/dev/null; ls -d ../bin; grep -c . magic; echo ready; \
                  n=0; while test ! -e stop; do cat turning/secret; mv turning/secret turning/secret2; \
                  mv turning/secret2 turning/secret; done 2>/dev/null | sort -u; echo end";
    let mut started = Amphi::sh(isolation, script).with(option(folder.path(), "data", "/v")).start();
    started.wait_for_output("ready");
    // The folder becomes a symlink that leads out, and a folder again, over and over.
    let done = AtomicBool::new(false);
    let finished = std::thread::scope(|scope| {
        scope.spawn(|| {
            let (turning, kept) = (data.join("turning"), data.join("kept"));
            while !done.load(Ordering::Relaxed) {
                fs::rename(&turning, &kept).unwrap();
                symlink(folder.path().join("outside"), &turning).unwrap();
                fs::remove_file(&turning).unwrap();
                fs::rename(&kept, &turning).unwrap();
            }
        });
        std::thread::sleep(std::time::Duration::from_secs(3));
        fs::write(data.join("stop"), "").unwrap();
        let finished = started.finish();
        done.store(true, Ordering::Relaxed);
        finished
    });
    let finished = finished.expect(0);
    assert!(!finished.text().contains("the host's secret"), "{finished}");
    assert!(finished.text().ends_with("end"), "{finished}");
    assert_eq!(fs::read_dir(folder.path().join("outside")).unwrap().count(), 1, "nothing was moved there");
    // The image's own passwd has two lines.
    assert!(finished.text().starts_with("../bin\n2\nready"), "{finished}");
}

fn with_10000_entries(isolation: Isolation) {
    let folder = folder();
    let data = folder.path().join("data");
    for n in 0..10_000 {
        fs::write(data.join(format!("entry-{n}")), "").unwrap();
    }
    let script = "cd /v; ls | wc -l; ls | sort -u | wc -l; ls -l | grep -c entry-; ls | grep '7$' | xargs rm; ls | wc -l; \
                  mkdir new; cd new; for n in 1 2 3; do touch $n; done; ls; cd ..; mkdir many; cd many; seq 1 200 | xargs touch; \
                  cd ..; rm -r many && ls | wc -l";
    let finished = Amphi::sh(isolation, script).with(option(folder.path(), "data", "/v")).finish();
    finished.expect_text("10000\n10000\n10000\n9000\n1\n2\n3\n9001");
    assert_eq!(fs::read_dir(&data).unwrap().count(), 9001);
}

fn that_makes_no_sense(isolation: Isolation) {
    let folder = folder();
    let data = folder.path().join("data");
    let data = data.display();
    let error = |volume: &str, code, words: &[&str]| {
        Amphi::run(isolation, ["true"]).with(["-v", volume]).finish().expect_error(code, words);
    };
    error(&format!("{data}/none:/v"), 125, &["--volume", &format!("{data}/none"), "no such file"]);
    error("/dev/null:/v", 125, &["--volume", "/dev/null", "neither a directory nor a regular file"]);
    error(&format!("{data}:/bin/busybox"), 125, &["/bin/busybox", "not a directory"]);
    error(&format!("{data}:/a:/b:x"), 125, &["no option"]);
    error("name:/v", 125, &["not supported yet", "absolute path"]);
    error("./data:/v", 125, &["relative", "$PWD"]);
    error(&format!("{data}:/proc"), 125, &["/proc"]);
    let twice = ["-v", &format!("{data}:/v"), "-v", &format!("{data}:/v/.")];
    Amphi::run(isolation, ["true"]).with(twice).finish().expect_error(125, &["--volume", "two", "/v"]);
    let read_only = ["--read-only", "-v", &format!("{data}:/nowhere")];
    if isolation == Isolation::Vm {
        let disk = rootfs::ext4(folder.path());
        let run = Amphi::run_image(isolation, disk.as_ref(), ["true"]).with(read_only);
        run.finish().expect_error(125, &["/nowhere", "read-only"]);
    }
}

fn after_kill_9(isolation: Isolation) {
    let folder = folder();
    let data = folder.path().join("data");
    let state = folder.path().join("state");
    let marker = "volume-after-kill-9";
    // With what an earlier case may have left to the next start.
    Amphi::run(isolation, ["true"]).finish().expect(0);
    let before = Snapshot::take(marker, &state);
    let script = format!(": {marker}; cd /v; echo written >kept; sync; echo ready; while :; do echo x >>busy; done");
    let mut started = Amphi::sh(isolation, &script).with(option(folder.path(), "data", "/v")).start();
    started.wait_for_output("ready");
    started.signal(Signal::KILL);
    started.finish().expect_signal(Signal::KILL);
    // A container's empty cgroup is removed by the next one.
    Amphi::run(isolation, ["true"]).finish().expect(0);
    before.expect_nothing_new(marker, &state);
    assert_eq!(fs::read(data.join("kept")).unwrap(), b"written\n");
    fs::remove_dir_all(&data).unwrap();
}

fn with_kernel(kernel: &str) {
    let folder = folder();
    fs::write(folder.path().join("data/in"), "in\n").unwrap();
    fs::write(folder.path().join("file"), "file\n").unwrap();
    let script = "cat /v/in /f; cp /v/in /v/out; ls /v | wc -l";
    let amphi = Amphi::sh(Isolation::Vm, script).with(["--kernel", kernel]);
    let amphi = amphi.with(option(folder.path(), "data", "/v")).with(option(folder.path(), "file", "/f:ro"));
    amphi.finish().expect_text("in\nfile\n2");
    assert_eq!(fs::read(folder.path().join("data/out")).unwrap(), b"in\n");
}
