//! Images are read back here by a reader that follows the format's description, and by the tools and the kernel where
//! the machine has them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use super::format::{FORMAT_INLINE, FORMAT_PLAIN};
use super::*;

/// What an image says about a path: mode, links, size, time, contents (of a file or link), attributes' bytes.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    inode: u64,
    mode: u16,
    links: u32,
    mtime: i64,
    contents: Vec<u8>,
    attributes: Vec<u8>,
}

struct Reader(Vec<u8>);

impl Reader {
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.0[at..at + 2].try_into().unwrap())
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap())
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap())
    }

    fn inode(&self, number: u64) -> Found {
        let at = usize::try_from(number).unwrap() * 32;
        let (format, count, size) = (self.u16(at), self.u16(at + 2), usize::try_from(self.u64(at + 8)).unwrap());
        let attributes = if count == 0 { 0 } else { 12 + 4 * (usize::from(count) - 1) };
        let block = self.u32(at + 16) as usize * 4096;
        let behind = at + 64 + attributes;
        let contents = match format {
            FORMAT_PLAIN if size == 0 => Vec::new(),
            FORMAT_PLAIN => self.0[block..block + size].to_vec(),
            FORMAT_INLINE => {
                let whole = size / 4096 * 4096;
                assert_eq!(at / 4096, (behind + size - whole - 1) / 4096, "inode and tail lie in one block");
                let blocks = if whole == 0 { &[][..] } else { &self.0[block..block + whole] };
                [blocks, &self.0[behind..behind + size - whole]].concat()
            }
            other => panic!("format {other}"),
        };
        Found {
            inode: number,
            mode: self.u16(at + 4),
            links: self.u32(at + 44),
            mtime: self.u64(at + 32).cast_signed(),
            contents,
            attributes: self.0[at + 64..behind].to_vec(),
        }
    }

    /// All entries below the directory `number`, by path.
    fn walk(&self, number: u64, path: &[u8], all: &mut BTreeMap<Vec<u8>, Found>) {
        let directory = self.inode(number);
        let mut names: Vec<Vec<u8>> = Vec::new();
        for block in directory.contents.chunks(4096) {
            let field = |at: usize| usize::from(u16::from_le_bytes([block[at], block[at + 1]]));
            let count = field(8) / 12;
            for n in 0..count {
                let end = if n + 1 < count { field(n * 12 + 20) } else { block.len() };
                let name = &block[field(n * 12 + 8)..end];
                let name = name.split(|&b| b == 0).next().unwrap().to_vec();
                assert!(names.last().is_none_or(|last| *last < name), "names ascend");
                let child = u64::from_le_bytes(block[n * 12..][..8].try_into().unwrap());
                if name == b"." {
                    assert_eq!(child, number);
                } else if name != b".." {
                    let path = [path, b"/", &*name].concat();
                    if block[n * 12 + 10] == 2 {
                        self.walk(child, &path, all);
                    } else {
                        all.insert(path, self.inode(child));
                    }
                }
                names.push(name);
            }
        }
        assert!(names.contains(&b"..".to_vec()));
        all.insert(path.to_vec(), directory);
    }
}

fn read(image: &Path) -> BTreeMap<Vec<u8>, Found> {
    let reader = Reader(fs::read(image).unwrap());
    assert_eq!(reader.u32(1024), 0xe0f5_e1e2);
    assert_eq!(reader.0.len() as u64, u64::from(reader.u32(1024 + 36)) * BLOCK);
    let mut all = BTreeMap::new();
    reader.walk(reader.u16(1024 + 14).into(), b"", &mut all);
    all
}

fn build(root: &Path, image: &Path) {
    let tree = Tree::scan(root).unwrap();
    write(&tree, &File::options().read(true).write(true).create(true).truncate(true).open(image).unwrap()).unwrap();
}

/// Sizes about the borders of blocks, and of what fits behind an inode.
const SIZES: [usize; 12] = [0, 1, 100, 2047, 4031, 4032, 4033, 4095, 4096, 4097, 12_288, 100_001];

fn contents(size: usize) -> Vec<u8> {
    (0..size).map(|n| u8::try_from(n * 7 % 251).unwrap()).collect()
}

/// A tree with all that is difficult, as far as the user running the test may make it.
fn make_tree(root: &Path) {
    fs::create_dir_all(root.join("dir/empty")).unwrap();
    for size in SIZES {
        fs::write(root.join(format!("dir/{size}")), contents(size)).unwrap();
    }
    fs::create_dir(root.join("big")).unwrap();
    for n in 0..700 {
        fs::write(root.join(format!("big/{n}-{}", "n".repeat(n % 240))), n.to_string()).unwrap();
    }
    fs::write(root.join(OsStr::from_bytes(b"not \xff UTF-8\n")), b"x").unwrap();
    for name in ["+before the dots", "..after them", "~"] {
        fs::write(root.join(name), name).unwrap();
    }
    fs::hard_link(root.join("dir/4097"), root.join("hard")).unwrap();
    symlink("dir/100", root.join("soft")).unwrap();
    symlink("l".repeat(4000), root.join("long")).unwrap();
    fs::set_permissions(root.join("dir/1"), fs::Permissions::from_mode(0o4711)).unwrap();
    let old = std::time::UNIX_EPOCH - std::time::Duration::from_secs(1_000_000_000);
    File::open(root.join("dir/100")).unwrap().set_modified(old).unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len((8 << 20) + 5).unwrap();
    sparse.write_all_at(b"in the middle", 4 << 20).unwrap();
    assert!(Command::new("mkfifo").arg(root.join("fifo")).status().unwrap().success());
}

#[test]
fn what_is_written_can_be_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let (root, image) = (dir.path().join("root"), dir.path().join("image"));
    make_tree(&root);
    build(&root, &image);
    let all = read(&image);

    let expected: Vec<_> = Tree::scan(&root).unwrap().nodes.into_iter().map(|node| node.path).collect();
    assert_eq!(all.len(), expected.len());
    for path in expected {
        let full = root.join(&path);
        let metadata = fs::symlink_metadata(&full).unwrap();
        let key = if path.as_os_str().is_empty() { Vec::new() } else { [b"/", path.as_os_str().as_bytes()].concat() };
        let found = &all[&key];
        assert_eq!(u32::from(found.mode), metadata.mode(), "{}", path.display());
        assert_eq!(u64::from(found.links), metadata.nlink(), "{}", path.display());
        assert_eq!(found.mtime, metadata.mtime(), "{}", path.display());
        if metadata.is_file() {
            assert!(found.contents == fs::read(&full).unwrap(), "{}", path.display());
        } else if metadata.is_symlink() {
            assert_eq!(found.contents, fs::read_link(&full).unwrap().as_os_str().as_bytes());
        }
    }
    assert_eq!(all[&b"/hard"[..]].inode, all[&b"/dir/4097"[..]].inode);
    assert!(fs::metadata(&image).unwrap().blocks() * 512 < 6 << 20, "holes stay holes");
}

#[test]
fn the_same_tree_makes_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (root, one, two) = (dir.path().join("root"), dir.path().join("1"), dir.path().join("2"));
    make_tree(&root);
    build(&root, &one);
    build(&root, &two);
    assert!(fs::read(one).unwrap() == fs::read(two).unwrap());
}

#[test]
fn attributes_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (root, image) = (dir.path().join("root"), dir.path().join("image"));
    fs::create_dir(&root).unwrap();
    fs::write(root.join("f"), contents(5000)).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    if let Err(errno) = rustix::fs::setxattr(root.join("f"), "user.key", b"value", flags) {
        eprintln!("SKIPPED: the temporary directory has no extended attributes ({errno})");
        return;
    }
    build(&root, &image);
    let found = &read(&image)[&b"/f"[..]];
    assert_eq!(found.contents, contents(5000));
    assert_eq!(found.attributes[12..], *b"\x03\x01\x05\0keyvalue");
}

#[test]
fn a_changing_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("f"), contents(9000)).unwrap();
    let tree = Tree::scan(&root).unwrap();
    fs::write(root.join("f"), contents(8000)).unwrap();
    let image = tempfile::tempfile().unwrap();
    assert!(matches!(write(&tree, &image), Err(ErofsError::Tree(TreeError::Changed { .. }))));
}

#[test]
fn the_tools_find_no_fault() {
    let dir = tempfile::tempdir().unwrap();
    let (root, image) = (dir.path().join("root"), dir.path().join("image"));
    make_tree(&root);
    build(&root, &image);
    match Command::new("fsck.erofs").arg("--extract").arg(&image).output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout)),
        Err(error) => eprintln!("SKIPPED: fsck.erofs cannot be run ({error}); it is in the package erofs-utils"),
    }
}

#[test]
fn the_kernel_mounts_it() {
    let dir = tempfile::tempdir().unwrap();
    let (root, image, place) = (dir.path().join("root"), dir.path().join("image"), dir.path().join("mounted"));
    make_tree(&root);
    build(&root, &image);
    fs::create_dir(&place).unwrap();
    let mounted = Command::new("mount").args(["-t", "erofs", "-o", "loop,ro"]).args([&image, &place]).output();
    if !mounted.as_ref().is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: this user or kernel cannot mount EROFS: {mounted:?}");
        return;
    }
    assert_eq!(fs::metadata(place.join("fifo")).unwrap().mode(), fs::metadata(root.join("fifo")).unwrap().mode());
    let same = Command::new("diff").args(["-r", "--no-dereference", "--exclude=fifo"]).args([&root, &place]).output();
    assert!(Command::new("umount").arg(&place).status().unwrap().success());
    let same = same.unwrap();
    assert!(same.status.success(), "{}", String::from_utf8_lossy(&same.stdout));
}
