//! Requests to a file system device, and what must not come of them.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::PathBuf;

use amphi_devices::virtio::fs::{Fs, Owners, Settings, Share};
use tempfile::TempDir;

use crate::guest::{BUFFERS, Guest, NEEDS_RESET, SECOND_REGION, STATUS, readable, writable};

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const SYMLINK: u32 = 6;
const MKNOD: u32 = 8;
const MKDIR: u32 = 9;
const UNLINK: u32 = 10;
const RMDIR: u32 = 11;
const RENAME: u32 = 12;
const LINK: u32 = 13;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const SETXATTR: u32 = 21;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const READDIR: u32 = 28;
const CREATE: u32 = 35;
const READDIRPLUS: u32 = 44;

const ROOT: u64 = 1;
const QUEUE: usize = 1;

/// A guest with a folder of the host's: `f`, `d/`, `s` (a symlink that leads out), `p` (a pipe).
struct World {
    guest: Guest,
    folder: TempDir,
}

pub(crate) fn settings() -> Settings {
    // SAFETY: these calls have no effect but their result.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    Settings { read_only: false, owners: Owners::One { user, group }, descriptors: 100 }
}

impl World {
    fn new() -> Self {
        Self::with(settings())
    }

    fn with(settings: Settings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path().join("top");
        fs::create_dir_all(top.join("d")).unwrap();
        fs::write(top.join("f"), "contents").unwrap();
        fs::write(folder.path().join("outside"), "secret").unwrap();
        symlink("../outside", top.join("s")).unwrap();
        let path = std::ffi::CString::new(top.join("p").into_os_string().into_encoded_bytes()).unwrap();
        // SAFETY: the path is a C string.
        assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
        let guest = share(File::open(&top).unwrap(), settings);
        Self { guest, folder }
    }

    fn top(&self) -> PathBuf {
        self.folder.path().join("top")
    }

    fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        ask(&mut self.guest, opcode, node, body)
    }

    fn find(&mut self, name: &str) -> u64 {
        u64_at(&self.ask(LOOKUP, ROOT, &text(name)).unwrap(), 0)
    }

    /// Opens `name` for reading and writing; the handle.
    fn open(&mut self, name: &str) -> u64 {
        let node = self.find(name);
        u64_at(&self.ask(OPEN, node, &words(&[libc::O_RDWR as u32, 0])).unwrap(), 0)
    }
}

/// A guest that `top` is shared with, in a session.
pub(crate) fn share(top: File, settings: Settings) -> Guest {
    let mut guest = Guest::new(Fs::new(Share::new(top.into(), settings).unwrap(), "tag").unwrap());
    guest.start(0);
    let reply = ask(&mut guest, INIT, 0, &words(&[7, 38, 1 << 17, u32::MAX])).unwrap();
    assert_eq!(&reply[..8], words(&[7, 38]), "the version");
    guest
}

/// Sends a request in several buffers, and returns the reply's contents or error.
fn ask(guest: &mut Guest, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
    let mut request = words(&[40 + body.len() as u32, opcode]);
    for value in [0x1234, node, 0, 0] {
        request.extend(value.to_le_bytes());
    }
    request.extend(body);
    // The request is divided where no field ends, and the reply lies across two regions of memory.
    guest.put(BUFFERS, &request);
    let head = 27;
    let buffers = [
        readable(BUFFERS, head),
        readable(BUFFERS + u64::from(head), request.len() as u32 - head),
        writable(SECOND_REGION - 5, 8192),
    ];
    guest.add(QUEUE, &buffers);
    guest.notify(QUEUE);
    let (_, len) = guest.used(QUEUE).expect("an answer");
    let reply = guest.get(SECOND_REGION - 5, len as usize);
    assert_eq!(u64_at(&reply, 8), 0x1234, "the reply is to that request");
    assert_eq!(u32_at(&reply, 0), len, "the reply is as long as it says");
    match u32_at(&reply, 4).cast_signed() {
        0 => Ok(reply[16..].to_vec()),
        error => {
            assert_eq!(len, 16);
            Err(-error)
        }
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_le_bytes()).collect()
}

fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn read(handle: u64, offset: u64, size: u32) -> Vec<u8> {
    [longs(&[handle, offset]), words(&[size, 0, 0, 0, 0, 0])].concat()
}

fn write(handle: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    [longs(&[handle, offset]), words(&[data.len() as u32, 0, 0, 0, 0, 0]), data.to_vec()].concat()
}

#[test]
fn a_reset_closes_what_is_open() {
    let mut world = World::new();
    let file = world.top().join("f");
    let is_open = || {
        let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
        open.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|path| path == file)
    };
    world.open("f");
    assert!(is_open());
    world.guest.transport.reset();
    world.guest.run();
    assert!(!is_open());
    world.guest.start(0);
    ask(&mut world.guest, INIT, 0, &words(&[7, 38, 1 << 17, u32::MAX])).unwrap();
    world.open("f");
    assert!(is_open());
}

#[test]
fn has_a_tag_and_one_queue_for_requests() {
    let mut world = World::new();
    assert_eq!(world.guest.read(0x08), 26, "the device is a file system");
    let space: [u8; 40] = world.guest.config(0);
    assert_eq!((&space[..4], &space[36..]), (&b"tag\0"[..], &[1, 0, 0, 0][..]));
}

#[test]
fn contents_go_both_ways() {
    let mut world = World::new();
    let handle = world.open("f");
    assert_eq!(world.ask(READ, 0, &read(handle, 0, 100)).unwrap(), b"contents");
    assert_eq!(world.ask(READ, 0, &read(handle, 3, 2)).unwrap(), b"te");
    assert_eq!(world.ask(READ, 0, &read(handle, 9, 2)).unwrap(), b"");
    assert_eq!(u32_at(&world.ask(WRITE, 0, &write(handle, 8, b" and more")).unwrap(), 0), 9);
    assert_eq!(fs::read(world.top().join("f")).unwrap(), b"contents and more");
    world.ask(RELEASE, 0, &longs(&[handle, 0, 0])).unwrap();
    assert_eq!(world.ask(READ, 0, &read(handle, 0, 1)), Err(libc::EBADF));
}

#[test]
fn odd_offsets_and_lengths_are_errors() {
    let mut world = World::new();
    let handle = world.open("f");
    for offset in [u64::MAX, 1 << 63, i64::MAX as u64] {
        assert_eq!(world.ask(READ, 0, &read(handle, offset, 8)).unwrap_or_default(), b"", "{offset:#x}");
        assert!(world.ask(WRITE, 0, &write(handle, offset, b"x")).is_err(), "{offset:#x}");
    }
    let mut short = write(handle, 0, b"abc");
    short.pop();
    assert_eq!(world.ask(WRITE, 0, &short), Err(libc::EINVAL), "fewer data than it says");
    assert_eq!(world.ask(READ, 0, &[0; 3]), Err(libc::EINVAL));
    // More than there is room for is an error, and no flood.
    assert_eq!(world.ask(READ, 0, &read(handle, 0, u32::MAX)).unwrap(), b"contents");
    assert_eq!(world.ask(READ, 0, &read(77, 0, 1)), Err(libc::EBADF));
    assert_eq!(world.ask(GETATTR, 77, &[0; 16]), Err(libc::ESTALE));
    assert_eq!(world.ask(999, ROOT, &[]), Err(libc::ENOSYS));
}

#[test]
fn nothing_leads_out() {
    let mut world = World::new();
    for name in ["", ".", "..", "../outside", "d/..", "/etc/passwd"] {
        let named = text(name);
        assert_eq!(world.ask(LOOKUP, ROOT, &named), Err(libc::EINVAL), "{name:?}");
        assert_eq!(world.ask(UNLINK, ROOT, &named), Err(libc::EINVAL), "{name:?}");
        let renamed = [longs(&[ROOT]), text("f"), named].concat();
        assert_eq!(world.ask(RENAME, ROOT, &renamed), Err(libc::EINVAL), "{name:?}");
    }
    // A symlink is what it is, and nothing behind it.
    let link = world.find("s");
    assert_eq!(world.ask(OPEN, link, &words(&[0, 0])), Err(libc::EPERM));
    assert_eq!(world.ask(OPENDIR, link, &words(&[0, 0])), Err(libc::ENOTDIR));
    assert_eq!(world.ask(LOOKUP, link, &text("x")), Err(libc::ENOTDIR));
    let create = [words(&[libc::O_RDWR as u32, 0o100_600, 0, 0]), text("s")].concat();
    assert_eq!(world.ask(CREATE, ROOT, &create), Err(libc::ESTALE), "never what is there already");
    assert_eq!(fs::read(world.folder.path().join("outside")).unwrap(), b"secret");
    // What the guest knows stays what it was, when its name becomes another file's.
    let node = world.find("f");
    fs::remove_file(world.top().join("f")).unwrap();
    symlink("../outside", world.top().join("f")).unwrap();
    let opened = u64_at(&world.ask(OPEN, node, &words(&[libc::O_RDWR as u32, 0])).unwrap(), 0);
    assert_eq!(world.ask(READ, 0, &read(opened, 0, 100)).unwrap(), b"contents");
}

#[test]
fn special_files_are_neither_opened_nor_devices_made() {
    let mut world = World::new();
    let pipe = world.find("p");
    // To open it would wait for ever.
    assert_eq!(world.ask(OPEN, pipe, &words(&[libc::O_WRONLY as u32, 0])), Err(libc::EPERM));
    let size = [words(&[1 << 3, 0]), vec![0; 80]].concat();
    assert_eq!(world.ask(SETATTR, pipe, &size), Err(libc::EPERM), "nor to change its size");
    for kind in [libc::S_IFCHR, libc::S_IFBLK, libc::S_IFDIR, 0] {
        let node = [words(&[kind | 0o600, 0x103, 0, 0]), text("new")].concat();
        assert_eq!(world.ask(MKNOD, ROOT, &node), Err(libc::EPERM), "{kind:#o}");
    }
    world.ask(MKNOD, ROOT, &[words(&[libc::S_IFIFO | 0o600, 0, 0, 0]), text("new")].concat()).unwrap();
    assert!(fs::symlink_metadata(world.top().join("new")).unwrap().file_type().is_fifo());
}

#[test]
fn a_read_only_share_changes_nothing() {
    let mut world = World::with(Settings { read_only: true, ..settings() });
    let (file, folder) = (world.find("f"), world.find("d"));
    let new = |head: &[u32]| [words(head), text("new")].concat();
    let requests = [
        (SETATTR, file, [words(&[1, 0]), vec![0; 80]].concat()),
        (SYMLINK, ROOT, [text("new"), text("x")].concat()),
        (MKNOD, ROOT, new(&[libc::S_IFREG | 0o600, 0, 0, 0])),
        (MKDIR, ROOT, new(&[0o700, 0])),
        (UNLINK, ROOT, text("f")),
        (RMDIR, ROOT, text("d")),
        (RENAME, ROOT, [longs(&[folder]), text("f"), text("f")].concat()),
        (LINK, ROOT, [longs(&[file]), text("new")].concat()),
        (OPEN, file, words(&[libc::O_WRONLY as u32, 0])),
        (OPEN, file, words(&[libc::O_TRUNC as u32, 0])),
        (CREATE, ROOT, new(&[0, 0o600, 0, 0])),
        (51, ROOT, new(&[libc::O_RDWR as u32, 0o600, 0, 0])),
        (SETXATTR, file, [words(&[1, 0]), text("user.a"), b"x".to_vec()].concat()),
        (24, file, text("user.a")),
    ];
    for (opcode, node, body) in requests {
        assert_eq!(world.ask(opcode, node, &body), Err(libc::EROFS), "opcode {opcode}");
    }
    let handle = u64_at(&world.ask(OPEN, file, &words(&[0, 0])).unwrap(), 0);
    assert_eq!(world.ask(WRITE, 0, &write(handle, 0, b"x")), Err(libc::EBADF));
    assert_eq!(world.ask(READ, 0, &read(handle, 0, 100)).unwrap(), b"contents");
    assert_eq!(fs::read_dir(world.top()).unwrap().count(), 4);
}

#[test]
fn descriptors_have_a_bound() {
    let mut world = World::with(Settings { descriptors: 4, ..settings() });
    // The root is one.
    let file = world.find("f");
    world.find("d");
    world.find("s");
    assert_eq!(world.ask(LOOKUP, ROOT, &text("p")), Err(libc::ENFILE));
    assert_eq!(world.find("f"), file, "what is known needs no new one");
    assert_eq!(world.ask(OPEN, file, &words(&[0, 0])), Err(libc::ENFILE));
    assert_eq!(world.ask(OPENDIR, ROOT, &words(&[0, 0])), Err(libc::ENFILE));
    let create = [words(&[libc::O_RDWR as u32, 0o600, 0, 0]), text("new")].concat();
    assert_eq!(world.ask(CREATE, ROOT, &create), Err(libc::ENFILE));
    assert!(!world.top().join("new").exists(), "what cannot be told is not made");
    // Two lookups, two to forget; the last one frees it. There is no answer to wait for.
    let request = [words(&[48, FORGET]), longs(&[1, file, 0, 0, 2])].concat();
    world.guest.put(BUFFERS, &request);
    world.guest.add(0, &[readable(BUFFERS, 48)]);
    world.guest.notify(0);
    assert_eq!(world.guest.used(0).map(|(_, len)| len), Some(0));
    assert_eq!(world.ask(GETATTR, file, &[0; 16]), Err(libc::ESTALE));
    world.find("p");
    // A new session has all of them.
    world.ask(INIT, 0, &words(&[7, 38, 0, 0])).unwrap();
    world.find("f");
    world.find("d");
}

#[test]
fn directories_are_listed_whole() {
    let mut world = World::new();
    for n in 0..300 {
        fs::write(world.top().join("d").join(format!("{n}{}", "x".repeat(n % 200))), "").unwrap();
    }
    for opcode in [READDIR, READDIRPLUS] {
        let node = world.find("d");
        let handle = u64_at(&world.ask(OPENDIR, node, &words(&[0, 0])).unwrap(), 0);
        let (mut offset, mut names) = (0, Vec::new());
        loop {
            let listed = world.ask(opcode, node, &read(handle, offset, 1000)).unwrap();
            let mut rest = &listed[..];
            if rest.is_empty() {
                break;
            }
            while !rest.is_empty() {
                let entry = &rest[if opcode == READDIRPLUS { 128 } else { 0 }..];
                let len = u32_at(entry, 16) as usize;
                offset = u64_at(entry, 8);
                names.push(entry[24..24 + len].to_vec());
                rest = &entry[(24 + len).next_multiple_of(8)..];
            }
        }
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!((count, names.len()), (302, 302), "with . and ..");
        world.ask(29, node, &longs(&[handle, 0, 0])).unwrap();
    }
    assert_eq!(world.ask(READDIR, ROOT, &read(77, 0, 1000)), Err(libc::EBADF));
    let handle = u64_at(&world.ask(OPENDIR, ROOT, &words(&[0, 0])).unwrap(), 0);
    assert_eq!(world.ask(READDIR, ROOT, &read(handle, 1 << 63, 1000)), Err(libc::EINVAL));
    assert_eq!(world.ask(READDIR, ROOT, &read(handle, 0, 10)).unwrap(), b"", "no room for any entry");
}

/// Entries are removed while they are listed, as `rm -r` does it.
#[test]
fn a_directory_that_gets_emptied_meanwhile_is_listed_whole() {
    // On a file system in memory, a position may be a mere count.
    let memory = std::path::Path::new("/dev/shm");
    let folder = tempfile::tempdir_in(if memory.is_dir() { memory } else { std::path::Path::new("/tmp") }).unwrap();
    for n in 0..500 {
        fs::write(folder.path().join(format!("{n}")), "").unwrap();
    }
    let mut guest = share(File::open(folder.path()).unwrap(), Settings { descriptors: 1000, ..settings() });
    let handle = u64_at(&ask(&mut guest, OPENDIR, ROOT, &words(&[0, 0])).unwrap(), 0);
    let mut offset = 0;
    loop {
        let listed = ask(&mut guest, READDIRPLUS, ROOT, &read(handle, offset, 4096)).unwrap();
        if listed.is_empty() {
            break;
        }
        let mut rest = &listed[..];
        while !rest.is_empty() {
            let entry = &rest[128..];
            let len = u32_at(entry, 16) as usize;
            offset = u64_at(entry, 8);
            let name = String::from_utf8(entry[24..24 + len].to_vec()).unwrap();
            if !name.starts_with('.') {
                ask(&mut guest, UNLINK, ROOT, &text(&name)).unwrap();
            }
            rest = &entry[(24 + len).next_multiple_of(8)..];
        }
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_shared_file_is_all_there_is() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("one"), "one").unwrap();
    fs::write(folder.path().join("file"), "another").unwrap();
    let mut guest = share(File::open(folder.path().join("one")).unwrap(), settings());
    assert_eq!(ask(&mut guest, LOOKUP, ROOT, &text("one")), Err(libc::ENOENT));
    let attributes = ask(&mut guest, GETATTR, ROOT, &[0; 16]).unwrap();
    assert_eq!(u32_at(&attributes, 16 + 60), libc::S_IFDIR | 0o555, "the mode");
    let entry = ask(&mut guest, LOOKUP, ROOT, &text("file")).unwrap();
    let handle = u64_at(&ask(&mut guest, OPEN, u64_at(&entry, 0), &words(&[0, 0])).unwrap(), 0);
    assert_eq!(ask(&mut guest, READ, 0, &read(handle, 0, 100)).unwrap(), b"one");
    for (opcode, body) in
        [(UNLINK, text("file")), (OPENDIR, words(&[0, 0])), (MKDIR, [words(&[0, 0]), text("x")].concat())]
    {
        assert_eq!(ask(&mut guest, opcode, ROOT, &body), Err(libc::EACCES), "opcode {opcode}");
    }
    assert_eq!(fs::metadata(folder.path().join("one")).unwrap().nlink(), 1);
}

#[test]
fn requests_without_room_stop_the_device() {
    for chain in
        [&[readable(BUFFERS, 39), writable(BUFFERS + 64, 64)][..], &[readable(BUFFERS, 40), writable(BUFFERS + 64, 15)]]
    {
        let mut world = World::new();
        world.guest.put(BUFFERS, &[0; 40]);
        world.guest.add(QUEUE, chain);
        world.guest.notify(QUEUE);
        assert_ne!(world.guest.read(STATUS) & NEEDS_RESET, 0, "{chain:?}");
        assert!(world.guest.used(QUEUE).is_none());
        world.guest.start(0);
        world.ask(INIT, 0, &words(&[7, 38, 0, 0])).unwrap();
        world.find("f");
    }
}
