//! Work that guest init does itself: sending a tree to the host, or receiving one.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec;

use amphi_guest_init::tree::{Decoder, Encoder, FileError, Item, PackError, PackOptions, Place, Sink, Unpacker, pack};
use amphi_guest_init::{FromGuest, INLINE_ROOT, InitSpec, OVER_DIR, Service};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::process::{Resource, Rlimit};

use super::failure::{Context, Failure};
use super::ports::{Control, Ports};
use super::root::{self, WRITABLE_FSTYPE};

/// A descriptor for each directory that a path can lead through, and some.
const OPEN_FILES: u64 = 4096;
/// How much is received at once.
const BUFFER: usize = 64 << 10;

/// Does it; returns the message to end with.
pub(super) fn run(
    spec: &InitSpec,
    service: &Service,
    ports: Ports,
    control: &mut Control,
) -> Result<FromGuest, Failure> {
    let limit = Rlimit { current: Some(OPEN_FILES), maximum: Some(OPEN_FILES) };
    rustix::process::setrlimit(Resource::Nofile, limit).context(|| "cannot set resource limits".into())?;
    // For attributes of what cannot be opened, and for the disk's statistics.
    for (fstype, place) in [("proc", "/proc"), ("sysfs", "/sys")] {
        match rustix::fs::mkdir(place, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => mount(fstype, place, fstype, MountFlags::empty(), None),
            Err(errno) => Err(errno),
        }
        .context(|| format!("cannot mount {place}"))?;
    }
    match service {
        Service::Changes => changes(spec, ports, control)?,
        Service::Pack { path, contents } => {
            let mounted = root::mount_root(spec)?;
            control.send(&FromGuest::Ready);
            let place = find(path)?;
            let packed = send(&place.directory, place.name, *contents, ports.stdout);
            mounted.finish();
            packed?;
        }
        Service::Unpack { path, name } => {
            let mounted = root::mount_root(spec)?;
            control.send(&FromGuest::Ready);
            let unpacked = receive(path, name, ports);
            mounted.finish();
            unpacked?;
        }
    }
    Ok(FromGuest::Exited { wait_status: 0 })
}

/// Sends the writable layer. Its disk is mounted read-only: where it was not left in order, the kernel mends it all the same.
fn changes(spec: &InitSpec, ports: Ports, control: &mut Control) -> Result<(), Failure> {
    let Some(device) = &spec.writable else { return Err(Failure("there is no writable layer".into())) };
    root::mount_device(device, WRITABLE_FSTYPE, OVER_DIR, MountFlags::RDONLY, None)?;
    control.send(&FromGuest::Ready);
    let disk = root::open_directory(OVER_DIR).context(|| "cannot open the writable layer".into())?;
    match rustix::fs::statat(&disk, "upper", rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => send(&disk, b"upper", true, ports.stdout),
        // Nothing has ever been run on it.
        Err(_) => send(&disk, b".", false, ports.stdout),
    }
}

/// Sends what `directory` has under `name`.
fn send(directory: &OwnedFd, name: &[u8], contents: bool, port: OwnedFd) -> Result<(), Failure> {
    let failed = || String::from("cannot send files to the host");
    let mut encoder = Encoder::new(Port(port)).context(failed)?;
    let options = PackOptions { contents, ..PackOptions::default() };
    match pack(directory.as_fd(), name, options, &mut encoder) {
        Ok(()) => encoder.end().context(failed).map(drop),
        Err(PackError::Sink(errno)) => Err(errno).context(failed),
        Err(PackError::File(error)) => Err(of_file(error)),
    }
}

fn of_file(error: FileError) -> Failure {
    let text = format!("{error}");
    match Err::<(), _>(error.errno).context(|| text) {
        Err(failure) => failure,
        Ok(()) => Failure(String::new()),
    }
}

/// The image's root.
fn open_root() -> Result<OwnedFd, Failure> {
    root::open_directory(INLINE_ROOT).context(|| "cannot open the root".into())
}

/// What is in the root at `path`.
fn find(path: &[u8]) -> Result<Place<'_>, Failure> {
    let what = || format!("cannot read {}", String::from_utf8_lossy(path));
    Place::of_existing(open_root()?.as_fd(), path).context(what)
}

/// Receives a tree, and makes it where it belongs.
fn receive(path: &[u8], name: &[u8], ports: Ports) -> Result<(), Failure> {
    let what = || format!("cannot write {}", String::from_utf8_lossy(path));
    let place = Place::of_new(open_root()?.as_fd(), path, name).context(what)?;
    let Some(port) = ports.stdin else { return Err(Failure("the host sends nothing".into())) };
    let mut unpacker = Unpacker::new(place.directory, place.name, true);
    let mut decoder = Decoder::new();
    let mut buffer: Box<[u8]> = vec![0; BUFFER].into();
    loop {
        match rustix::io::read(&port, &mut *buffer) {
            Ok(0) => break,
            Ok(length) => decoder.push(&buffer[..length]),
            Err(Errno::AGAIN) => wait_for(&port, PollFlags::IN),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context(|| "cannot receive files from the host".into()),
        }
        while let Some(item) = decoder.next_item().map_err(|error| Failure(format!("{error}")))? {
            unpacker.apply(&item).map_err(of_file)?;
            if item == Item::End {
                return Ok(());
            }
        }
    }
    decoder.finish().map_err(|error| Failure(format!("{error}")))
}

fn wait_for(port: &OwnedFd, event: PollFlags) {
    let _ = poll(&mut [PollFd::new(port, event)], None);
}

/// A port, which does not wait by itself.
struct Port(OwnedFd);

impl Sink for Port {
    type Error = Errno;

    fn put(&mut self, mut bytes: &[u8]) -> Result<(), Errno> {
        while !bytes.is_empty() {
            match rustix::io::write(&self.0, bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let mut fds = [PollFd::new(&self.0, PollFlags::OUT)];
                    let _ = poll(&mut fds, None);
                    if fds[0].revents().contains(PollFlags::HUP) {
                        return Err(Errno::PIPE);
                    }
                }
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}
