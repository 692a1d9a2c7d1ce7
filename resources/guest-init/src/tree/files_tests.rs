//! Streams of real directories.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};

use super::*;

/// A directory that goes with the test.
pub(super) struct Scratch(pub(super) PathBuf);

impl Scratch {
    pub(super) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("amphi-tree-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

pub(super) fn open(path: &Path) -> rustix::fd::OwnedFd {
    rustix::fs::openat(CWD, bytes(path), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
}

fn pack_bytes(path: &Path, name: &str) -> Vec<u8> {
    use rustix::fd::AsFd;
    let mut encoder = Encoder::new(Vec::new()).unwrap();
    pack(open(path).as_fd(), name.as_bytes(), PackOptions::default(), &mut encoder).unwrap();
    encoder.end().unwrap()
}

fn unpack(stream: &[u8], path: &Path, name: &str) -> Result<(), FileError> {
    let mut unpacker = Unpacker::new(open(path), name.as_bytes(), rustix::process::geteuid().is_root());
    let mut decoder = Decoder::new();
    for piece in stream.chunks(100_000) {
        decoder.push(piece);
        while let Some(item) = decoder.next_item().unwrap() {
            unpacker.apply(&item)?;
        }
    }
    decoder.finish().unwrap();
    Ok(())
}

#[test]
fn a_directory_is_the_same_after_the_journey() {
    let scratch = Scratch::new("same");
    let root = scratch.0.join("from");
    let deep = root.join(OsStr::from_bytes(b"d\xff/e"));
    fs::create_dir_all(&deep).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    for number in 0..3000 {
        File::create(deep.join(format!("{number}"))).unwrap();
    }
    fs::write(root.join("data"), (0..400_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>()).unwrap();
    fs::hard_link(root.join("data"), deep.join("again")).unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    sparse.write_all_at(b"x", 1 << 39).unwrap();
    symlink("/nowhere/../x", root.join("link")).unwrap();
    rustix::fs::mknodat(CWD, bytes(&root.join("pipe")), rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
    if rustix::process::geteuid().is_root() {
        let device = rustix::fs::makedev(7, 300);
        rustix::fs::mknodat(CWD, bytes(&root.join("disk")), rustix::fs::FileType::BlockDevice, Mode::RUSR, device)
            .unwrap();
        std::os::unix::fs::chown(root.join("empty"), Some(7), Some(8)).unwrap();
        std::os::unix::fs::lchown(root.join("link"), Some(9), Some(10)).unwrap();
    }
    let time = std::time::SystemTime::UNIX_EPOCH - std::time::Duration::new(5, 7);
    File::open(root.join("data")).unwrap().set_modified(time).unwrap();
    fs::set_permissions(&deep, fs::Permissions::from_mode(0o1500)).unwrap();
    let _ = rustix::fs::setxattr(bytes(&root.join("data")), "user.key", b"value", rustix::fs::XattrFlags::empty());

    let stream = pack_bytes(&scratch.0, "from");
    assert!(stream.len() < 3 << 20, "holes do not travel: {}", stream.len());
    unpack(&stream, &scratch.0, "to").unwrap();
    let to = scratch.0.join("to");
    assert!(pack_bytes(&scratch.0, "to") == stream, "what came says the same again");
    let (data, sparse) = (fs::metadata(to.join("data")).unwrap(), fs::metadata(to.join("sparse")).unwrap());
    assert_eq!((data.nlink(), data.mtime(), data.mtime_nsec()), (2, -6, 999_999_993));
    assert!(sparse.len() == 1 << 40 && sparse.blocks() < 1000);
    // Once more over itself: directories stay as they are, but for the time.
    unpack(&stream, &scratch.0, "to").unwrap();
    assert_eq!(pack_bytes(&to, "data"), pack_bytes(&root, "data"));
    unpack(&pack_bytes(&scratch.0.join("from"), "link"), &to, "alone").unwrap();
    assert_eq!(fs::read_link(to.join("alone")).unwrap(), Path::new("/nowhere/../x"));
}

#[test]
fn links_that_are_there_lead_nowhere() {
    let scratch = Scratch::new("links");
    let (outside, to) = (scratch.0.join("outside"), scratch.0.join("to"));
    fs::create_dir_all(scratch.0.join("from/d")).unwrap();
    fs::write(scratch.0.join("from/d/f"), "new").unwrap();
    fs::write(scratch.0.join("from/g"), "new").unwrap();
    let stream = pack_bytes(&scratch.0, "from");
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("g"), "old").unwrap();
    fs::create_dir(&to).unwrap();
    symlink(&outside, to.join("d")).unwrap();
    let error = unpack(&stream, &scratch.0, "to").unwrap_err();
    assert_eq!((error.attempt, &*error.path), ("make the directory", &b"d"[..]));
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    fs::remove_file(to.join("d")).unwrap();
    symlink(outside.join("g"), to.join("g")).unwrap();
    unpack(&stream, &scratch.0, "to").unwrap();
    assert_eq!(fs::read(outside.join("g")).unwrap(), b"old", "the link was replaced");
    assert_eq!(fs::read(to.join("g")).unwrap(), b"new");
    // A directory is not replaced by a file.
    let error = unpack(&pack_bytes(&scratch.0.join("from"), "g"), &to, "d").unwrap_err();
    assert_eq!((error.attempt, error.errno), ("replace", rustix::io::Errno::ISDIR));
}
