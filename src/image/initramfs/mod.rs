//! The guest's first file system: PID 1, its specification, kernel modules, and a small root if there is one.
//!
//! The format is "newc", as the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst` has it. The
//! `cpio` crate takes only names in UTF-8, which those in a root file system need not be. `write` writes it.

mod write;

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;

use amphi_guest_init::{DIRECTORIES, INLINE_ROOT, InitSpec, MODULES_DIR, SPEC_PATH};

use super::tree::{Node, Tree, TreeError};

/// The guest's PID 1, which is also all programs of the built-in image.
pub(crate) const GUEST_INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/amphi-guest-init"));
/// The same where it is to do a service instead of running a workload.
const GUEST_SERVICE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/amphi-guest-service"));

/// The longest name that the kernel unpacks, with the zero at its end; the longest link target, too.
const MAX_NAME: usize = 4096;
const HEADER: u64 = 110;
const TRAILER: &[u8] = b"TRAILER!!!";

/// A file system as an archive that is written on the fly.
#[derive(Debug)]
pub struct Initramfs {
    entries: Vec<Entry>,
    tree: Option<Tree>,
    length: u64,
    /// How many files are open.
    kept: AtomicUsize,
}

/// Why there is no initramfs, or why what was written is not to be used.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// The root's directory cannot be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A kernel module cannot be read, or has changed.
    #[error("cannot read the kernel module {path}", path = path.display())]
    Module {
        /// The module's file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The format has no room for a file of 4 GiB and more, nor the kernel for a path of 4 KiB and more.
    #[error("{path} does not fit in an initramfs", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The archive could not be written.
    #[error("cannot write the initramfs")]
    Write(#[source] io::Error),
}

#[derive(Debug)]
struct Entry {
    /// Without a slash at its beginning.
    name: Vec<u8>,
    mode: u32,
    uid: u32,
    gid: u32,
    links: u32,
    inode: u32,
    mtime: u32,
    device: (u32, u32),
    size: u32,
    body: Body,
    /// What was found on the host when the archive was first written. Later on the process may not be able to open anything.
    source: OnceLock<Source>,
}

#[derive(Debug)]
enum Source {
    File(File),
    /// Where a symbolic link points.
    Target(OsString),
}

#[derive(Debug)]
enum Body {
    Static(&'static [u8]),
    Bytes(Vec<u8>),
    Module(PathBuf),
    /// An entry of the root's tree.
    Node(usize),
}

impl Entry {
    fn plain(name: Vec<u8>, mode: u32, size: u32, body: Body) -> Self {
        Self {
            name,
            mode,
            uid: 0,
            gid: 0,
            links: 1,
            inode: 0,
            mtime: 0,
            device: (0, 0),
            size,
            body,
            source: OnceLock::new(),
        }
    }
}

impl Initramfs {
    /// Plans the archive: `spec` with `modules`, in loading order, in place of its own, and what is in the tree
    /// `inline_root`, if that is to be the guest's root.
    ///
    /// # Errors
    /// A file cannot be found, or does not fit.
    pub(crate) fn new(spec: &InitSpec, modules: &[PathBuf], inline_root: Option<Tree>) -> Result<Self, InitramfsError> {
        let mut plan = Self { entries: Vec::new(), tree: None, length: 0, kept: AtomicUsize::new(0) };
        let directories = DIRECTORIES.iter().filter(|&&directory| directory != INLINE_ROOT || inline_root.is_none());
        for directory in directories {
            plan.add(directory, 0o40_755, (0, 0), Body::Static(b""), 0)?;
        }
        // The kernel opens it for PID 1's standard streams before any device node is mounted.
        plan.add("/dev/console", 0o20_600, (5, 1), Body::Static(b""), 0)?;
        let program = if spec.service.is_some() { GUEST_SERVICE } else { GUEST_INIT };
        plan.add("/init", 0o100_755, (0, 0), Body::Static(program), program.len() as u64)?;

        let mut names = Vec::new();
        for (number, path) in modules.iter().enumerate() {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            let name = format!("{number:03}-{file}");
            let size = path.metadata().map_err(|source| InitramfsError::Module { path: path.clone(), source })?.len();
            plan.add(&format!("{MODULES_DIR}/{name}"), 0o100_644, (0, 0), Body::Module(path.clone()), size)?;
            names.push(name);
        }
        let spec = InitSpec { modules: names, ..spec.clone() }.encode();
        let size = spec.len() as u64;
        plan.add(SPEC_PATH, 0o100_600, (0, 0), Body::Bytes(spec), size)?;
        if let Some(tree) = inline_root {
            plan.add_tree(&tree)?;
            plan.tree = Some(tree);
        }
        plan.length += entry_length(TRAILER.len(), 0);
        Ok(plan)
    }

    /// The archive's length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether the archive is empty, which it never is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    fn add(&mut self, path: &str, mode: u32, device: (u32, u32), body: Body, size: u64) -> Result<(), InitramfsError> {
        let name = path.trim_start_matches('/').as_bytes().to_vec();
        let size = u32::try_from(size).map_err(|_| InitramfsError::TooLarge { path: path.into() })?;
        let inode = self.next_inode();
        self.push(Entry { inode, device, ..Entry::plain(name, mode, size, body) })
    }

    fn next_inode(&self) -> u32 {
        u32::try_from(self.entries.len() + 1).unwrap_or(u32::MAX)
    }

    fn push(&mut self, entry: Entry) -> Result<(), InitramfsError> {
        if entry.name.len() >= MAX_NAME {
            return Err(InitramfsError::TooLarge { path: std::ffi::OsString::from_vec(entry.name).into() });
        }
        self.length += entry_length(entry.name.len(), entry.size);
        self.entries.push(entry);
        Ok(())
    }

    fn add_tree(&mut self, tree: &Tree) -> Result<(), InitramfsError> {
        // Names of one file share its number; only the first carries the contents.
        let mut linked: HashMap<(u64, u64), u32> = HashMap::new();
        for (index, node) in tree.nodes.iter().enumerate() {
            let metadata = &node.metadata;
            let too_large = || InitramfsError::TooLarge { path: tree.path(node) };
            let (mut inode, mut links, mut size) = (self.next_inode(), 1, 0);
            if metadata.is_file() || metadata.is_symlink() {
                size = u32::try_from(metadata.size()).map_err(|_| too_large())?;
            }
            if metadata.is_symlink() && size as usize >= MAX_NAME {
                return Err(too_large());
            }
            if metadata.is_file() && metadata.nlink() > 1 {
                links = 2;
                match linked.entry((metadata.dev(), metadata.ino())) {
                    std::collections::hash_map::Entry::Occupied(first) => (inode, size) = (*first.get(), 0),
                    std::collections::hash_map::Entry::Vacant(first) => _ = first.insert(inode),
                }
            }
            self.push(Entry {
                uid: metadata.uid(),
                gid: metadata.gid(),
                links,
                inode,
                // The format has 32 bits without a sign; what is out of their reach is moved to their ends.
                mtime: u32::try_from(metadata.mtime().max(0)).unwrap_or(u32::MAX),
                device: node.device_numbers(),
                ..Entry::plain(name_in_archive(node), metadata.mode(), size, Body::Node(index))
            })?;
        }
        Ok(())
    }
}

fn name_in_archive(node: &Node) -> Vec<u8> {
    let mut name = INLINE_ROOT.trim_start_matches('/').as_bytes().to_vec();
    if !node.path.as_os_str().is_empty() {
        name.push(b'/');
        name.extend_from_slice(node.path.as_os_str().as_bytes());
    }
    name
}

fn padding(length: u64) -> u64 {
    length.wrapping_neg() % 4
}

fn entry_length(name: usize, size: u32) -> u64 {
    let head = HEADER + name as u64 + 1;
    head + padding(head) + u64::from(size) + padding(u64::from(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Unpacked = Vec<(String, [u32; 13], Vec<u8>)>;

    /// Reads an archive as the kernel does.
    fn unpack(mut archive: &[u8]) -> Unpacked {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&archive[..6], b"070701");
            let field = |n: usize| std::str::from_utf8(&archive[6 + 8 * n..][..8]).unwrap();
            let fields: [u32; 13] = std::array::from_fn(|n| u32::from_str_radix(field(n), 16).unwrap());
            let (size, name_size) = (fields[6] as usize, fields[11] as usize);
            let name = archive[110..][..name_size - 1].to_vec();
            assert_eq!(archive[110 + name_size - 1], 0);
            let body = (110 + name_size).next_multiple_of(4);
            if name == TRAILER {
                assert_eq!(body, archive.len());
                return entries;
            }
            entries.push((String::from_utf8(name).unwrap(), fields, archive[body..][..size].to_vec()));
            archive = &archive[(body + size).next_multiple_of(4)..];
        }
    }

    fn find<'a>(entries: &'a Unpacked, name: &str) -> &'a (String, [u32; 13], Vec<u8>) {
        entries.iter().find(|(other, ..)| other == name).unwrap_or_else(|| panic!("no {name}"))
    }

    #[test]
    fn the_guest_program_is_small() {
        println!("guest init: {} bytes", GUEST_INIT.len());
        assert_eq!(&GUEST_INIT[..4], b"\x7fELF");
        assert!(GUEST_INIT.len() < 600 << 10, "{} bytes", GUEST_INIT.len());
    }

    #[test]
    fn the_archive_holds_what_was_planned() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("bin")).unwrap();
        std::fs::write(root.join("bin/a"), b"twelve bytes").unwrap();
        std::fs::hard_link(root.join("bin/a"), root.join("bin/b")).unwrap();
        std::os::unix::fs::symlink("a", root.join("bin/c")).unwrap();
        let module = dir.path().join("virtio.ko");
        std::fs::write(&module, b"\x7fELF.").unwrap();

        let spec = InitSpec { hostname: b"h".to_vec(), ..InitSpec::default() };
        let archive = Initramfs::new(&spec, std::slice::from_ref(&module), Some(Tree::scan(&root).unwrap())).unwrap();
        let mut bytes = Vec::new();
        archive.write_to(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, archive.len());

        // Again, from what was opened: the names may be gone by then.
        std::fs::rename(&root, dir.path().join("elsewhere")).unwrap();
        std::fs::remove_file(&module).unwrap();
        let mut again = Vec::new();
        archive.write_to(&mut again).unwrap();
        assert!(again == bytes);

        let entries = unpack(&bytes);
        let spec = InitSpec { modules: vec!["000-virtio.ko".into()], ..spec };
        assert_eq!(InitSpec::decode(&find(&entries, "amphi/spec").2), Ok(spec));
        assert_eq!(find(&entries, "amphi/modules/000-virtio.ko").2, b"\x7fELF.");
        assert_eq!(find(&entries, "init").2, GUEST_INIT);
        assert_eq!(find(&entries, "amphi/root/bin/c").2, b"a");
        let (a, b) = (find(&entries, "amphi/root/bin/a"), find(&entries, "amphi/root/bin/b"));
        assert_eq!((a.1[0], a.1[4], &*a.2), (b.1[0], 2, &b"twelve bytes"[..]));
        assert_eq!((b.1[6], b.1[4]), (0, 2), "the second name of a file carries no contents");
        for name in DIRECTORIES {
            let name = &name[1..];
            assert_eq!(entries.iter().filter(|(other, ..)| other == name).count(), 1, "{name}");
        }
        let parents_first = entries.iter().enumerate().all(|(at, (name, ..))| {
            name.rsplit_once('/').is_none_or(|(parent, _)| entries[..at].iter().any(|(other, ..)| other == parent))
        });
        assert!(parents_first);
    }

    #[test]
    fn a_file_that_changes_spoils_neither_the_length_nor_the_silence() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        for (now, then) in [(&b"longer than that"[..], &b"short"[..]), (b"short", b"longer than that")] {
            std::fs::write(&file, now).unwrap();
            let archive = Initramfs::new(
                &InitSpec::default(),
                std::slice::from_ref(&file),
                Some(Tree::scan(dir.path()).unwrap()),
            )
            .unwrap();
            std::fs::write(&file, then).unwrap();
            let mut bytes = Vec::new();
            assert!(matches!(archive.write_to(&mut bytes), Err(InitramfsError::Module { .. })));
            assert_eq!(bytes.len() as u64, archive.len());
            unpack(&bytes);
        }
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(
            Initramfs::new(&InitSpec::default(), std::slice::from_ref(&file), None),
            Err(InitramfsError::Module { .. })
        ));
    }
}
