//! The image carried inside amphi: one program under several names, and the directories that programs expect.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::ImageError;
use super::initramfs::GUEST_INIT;

/// The name under which the program is stored; the others are links to it.
const PROGRAM: &str = "hello";
const OTHER_NAMES: [&str; 9] = ["cat", "echo", "env", "false", "id", "pwd", "sleep", "true", "uname"];

const DIRECTORIES: [(&str, u32); 8] = [
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
];

const FILES: [(&str, &str); 2] = [
    ("etc/passwd", "root:x:0:0:root:/root:/bin/hello\nnobody:x:65534:65534:nobody:/:/bin/hello\n"),
    ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
];

/// Unpacks the built-in image, unless it is unpacked already, and returns its root.
pub(super) fn unpack() -> Result<PathBuf, ImageError> {
    unpack_below(&crate::host::data_dir().join("builtin"))
}

fn unpack_below(directory: &Path) -> Result<PathBuf, ImageError> {
    // The name says what is in it, and it gets the name only when all of that is there.
    let root = directory.join(env!("AMPHI_BUILTIN_DIGEST"));
    if !root.is_dir() {
        make(directory, &root).map_err(|source| ImageError::Builtin { path: root.clone(), source })?;
    }
    Ok(root)
}

fn make(directory: &Path, root: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let temporary = tempfile::Builder::new().prefix(".new-").tempdir_in(directory)?;
    let new = temporary.path();
    let permit = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode));
    for (name, mode) in DIRECTORIES {
        fs::create_dir(new.join(name))?;
        permit(&new.join(name), mode)?;
    }
    for (name, contents) in FILES {
        fs::write(new.join(name), contents)?;
        permit(&new.join(name), 0o644)?;
    }
    fs::write(new.join("bin").join(PROGRAM), GUEST_INIT)?;
    permit(&new.join("bin").join(PROGRAM), 0o755)?;
    for name in OTHER_NAMES {
        symlink(PROGRAM, new.join("bin").join(name))?;
    }
    permit(new, 0o755)?;
    match fs::rename(new, root) {
        // Another amphi has been faster.
        Err(_) if root.is_dir() => Ok(()),
        renamed => renamed,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn it_is_unpacked_once_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("not/yet/there");
        let root = unpack_below(&data).unwrap();
        assert_eq!(fs::metadata(root.join("tmp")).unwrap().permissions().mode() & 0o7777, 0o1777);
        let made = fs::metadata(&root).unwrap().modified().unwrap();
        assert_eq!(unpack_below(&data).unwrap(), root);
        assert_eq!(fs::metadata(&root).unwrap().modified().unwrap(), made);
        assert_eq!(fs::read_dir(&data).unwrap().count(), 1, "nothing temporary is left");
    }

    #[test]
    fn its_programs_run() {
        let dir = tempfile::tempdir().unwrap();
        let bin = unpack_below(dir.path()).unwrap().join("bin");
        let run = |name: &str, arguments: &[&str]| {
            let output = Command::new(bin.join(name)).args(arguments).env_clear().env("A", "B").output().unwrap();
            (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
        };
        assert_eq!(run("true", &[]), (0, String::new()));
        assert_eq!(run("false", &[]), (1, String::new()));
        assert_eq!(run("echo", &["a", "b c"]), (0, "a b c\n".into()));
        assert_eq!(run("env", &[]), (0, "A=B\n".into()));
        assert_eq!(run("cat", &["/proc/self/nonexistent"]).0, 1);
        assert_eq!(run("sleep", &["0.001"]).0, 0);
        assert!(run("hello", &[]).1.starts_with("Hello from amphi.\nkernel "));
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        assert_eq!(run("uname", &["-r"]), (0, release));
    }
}
