//! A root file system of busybox alone.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

/// Where Debian's busybox-static puts it.
const BUSYBOX: [&str; 3] = ["/bin/busybox", "/usr/bin/busybox", "/sbin/busybox"];

static ROOT: OnceLock<TempDir> = OnceLock::new();

/// The tree's folder; made on first use.
pub(crate) fn busybox() -> &'static Path {
    let made = ROOT.get_or_init(|| {
        let root = tempfile::Builder::new().prefix("amphi-test-root").tempdir().unwrap();
        make(root.path());
        root
    });
    made.path()
}

/// A copy of the busybox tree at `root`, with programs of the host and the libraries that they are linked with.
pub(crate) fn with_programs(root: &Path, programs: &[&str]) {
    let copied = Command::new("cp").arg("-a").arg(busybox()).arg(root).status().unwrap();
    assert!(copied.success());
    for program in programs {
        let folders = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].map(|folder| Path::new(folder).join(program));
        let path = folders.iter().find(|path| path.exists());
        let path = path.unwrap_or_else(|| panic!("no {program} here: install it (or: make setup)"));
        // Beside busybox, whose own applet of that name it replaces.
        let _ = fs::remove_file(root.join("bin").join(program));
        fs::copy(path, root.join("bin").join(program)).unwrap();
        for library in libraries(path) {
            let copy = root.join(library.strip_prefix("/").unwrap());
            fs::create_dir_all(copy.parent().unwrap()).unwrap();
            if !copy.exists() {
                fs::copy(&library, &copy).unwrap();
            }
        }
    }
}

/// What the dynamic loader would load, itself included.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let listed = Command::new("ldd").arg(program).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    listed.split_ascii_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

/// Removes the shared tree: a static is never dropped.
pub(crate) fn remove() {
    if let Some(root) = ROOT.get() {
        let _ = fs::remove_dir_all(root.path());
    }
}

/// The host's static busybox.
pub(crate) fn busybox_program() -> PathBuf {
    let found = BUSYBOX.iter().map(PathBuf::from).find(|path| path.exists());
    found.expect("no busybox here: apt-get install busybox-static (or: make setup)")
}

fn make(root: &Path) {
    for folder in ["bin", "dev", "etc", "home/alice", "proc", "root", "sys", "tmp", "usr"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    let program = busybox_program();
    fs::copy(&program, root.join("bin/busybox")).unwrap();
    fs::set_permissions(root.join("bin/busybox"), fs::Permissions::from_mode(0o755)).unwrap();
    let applets = Command::new(&program).arg("--list").output().unwrap();
    for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1001:Alice:/home/alice:/bin/sh\n")
        .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nstaff:x:50:alice\nalice:x:1001:\n").unwrap();
    fs::write(root.join("etc/not-executable"), "no program\n").unwrap();
    fs::set_permissions(root.join("etc/not-executable"), fs::Permissions::from_mode(0o644)).unwrap();
}

/// An ext4 disk in `folder` with the busybox root, as an IMAGE.
pub(crate) fn ext4(folder: &Path) -> String {
    let disk = folder.join("disk.img");
    let made = Command::new("/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .arg(busybox())
        .arg(&disk)
        .arg("32M")
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    format!("disk:{}", disk.display())
}
