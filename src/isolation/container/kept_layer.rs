//! What a container's instance has written, read and changed without running it.
//!
//! A container has written it, so it may hold any names, links and modes: it is walked by descriptors without following a link, and
//! paths are looked up with the root as their limit (`openat2`). The trees that go in and out are those of microVMs
//! (`amphi_guest_init::tree`).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use amphi_guest_init::tree::{
    Decoder, Encoder, FileError, Item, PackError, PackOptions, Place, Sink, TreeError, Unpacker, pack,
};
use rustix::fs::{AtFlags, Mode, OFlags, statat};
use rustix::io::Errno;

use super::Root;
use super::error::ContainerError;
use super::kept::KeptFolder;
use super::last_run;
use super::layers::{self, Upper};
use crate::image::Rootfs;
use crate::spec::WritableLayer;

/// How long a container whose amphi was killed is given to end: on a busy host hundreds of processes take seconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// The writable layer of an instance that ran, or is to run, as a container. Nobody else may use it meanwhile, but for
/// [`changes`](Self::changes) of a container that runs.
///
/// Trees are told item by item, as [`Item`] describes: a directory before what is in it, sorted by name in each directory, and a
/// file's contents, in ascending order without the holes, right behind its entry. The last item is [`Item::End`].
#[derive(Debug, Clone)]
pub struct KeptLayer(WritableLayer);

impl KeptLayer {
    /// The layer, which must have a folder.
    #[must_use]
    pub fn new(layer: &WritableLayer) -> Self {
        Self(layer.clone())
    }

    /// Ends what a killed amphi has left running on the layer, and waits until nothing of it can write to the layer any more. To be called by
    /// who knows that no amphi runs it, before the layer is used.
    ///
    /// # Errors
    /// It has not ended within ten seconds, since a process waits for a disk or a network, for instance.
    pub fn end_last_run(&self) -> Result<(), ContainerError> {
        let Some(folder) = &self.0.folder else { return Ok(()) };
        last_run::end(folder, PATIENCE).map_err(ContainerError::LastRun)
    }

    /// Tells `visit` all that the layer has of its own, in the form in which overlayfs keeps it: a name of the image that is
    /// removed is a character device 0:0, a directory that was removed and made anew has the attribute `trusted.overlay.opaque`, or
    /// `user.overlay.opaque` where amphi is not root.
    ///
    /// # Errors
    /// Something cannot be read, or `visit` fails.
    pub fn changes(&self, visit: Visit<'_>) -> Result<(), ContainerError> {
        let folder = self.open()?;
        // Without privilege everything belongs to the caller, who is root inside.
        let owner = (!rustix::process::geteuid().is_root()).then_some((0, 0));
        let contents = statat(&folder, "upper", AtFlags::SYMLINK_NOFOLLOW).is_ok();
        let name: &[u8] = if contents { b"upper" } else { b"." };
        send(&folder, name, PackOptions { owner, contents, ..PackOptions::default() }, visit)
    }

    /// Tells `visit` what the root, `rootfs` with this layer above it, has at `path`: the top of the tree is what is there, a directory
    /// or not. Symbolic links on the way are followed inside the root; one at the path's end is told as a link, unless a slash,
    /// or `/.`, is behind it. With `contents` false only the top is told, and of a file its contents.
    ///
    /// # Errors
    /// There is nothing, or it cannot be read; amphi is not root, who alone may put image and layer together; or `visit` fails.
    pub fn pack(&self, rootfs: &Rootfs, path: &Path, contents: bool, visit: Visit<'_>) -> Result<(), ContainerError> {
        let root = self.root(rootfs)?;
        let place = Place::of_existing(root.as_fd(), path.as_os_str().as_bytes())
            .map_err(|errno| files(format!("cannot read {}", path.display()), errno.into()))?;
        send(&place.directory, place.name, PackOptions { contents, ..PackOptions::default() }, visit)
    }

    /// Puts the tree that `write` writes into the root, `rootfs` with this layer above it. Where `path` leads to a directory, the tree's top
    /// becomes `name` in it, or with an empty `name` what is in the tree's top goes right into it. Where there is nothing at `path`, or
    /// a file, the tree's top gets that path; its directory must be there.
    ///
    /// What is there already is replaced, but no directory by anything else, nor anything else by a directory. Directories
    /// that are there keep their owner and mode. Symbolic links in the root lead nowhere outside of it, and those below `path`
    /// are not followed. What was made before an error stays. The end of the tree is added.
    ///
    /// # Errors
    /// Something cannot be made; amphi is not root; or `write` fails.
    pub fn unpack(
        &self,
        rootfs: &Rootfs,
        path: &Path,
        name: &[u8],
        write: impl FnOnce(&mut Encoder<TreeReceiver<'_>>) -> io::Result<()>,
    ) -> Result<(), ContainerError> {
        let root = self.root(rootfs)?;
        let place = Place::of_new(root.as_fd(), path.as_os_str().as_bytes(), name)
            .map_err(|errno| files(format!("cannot write {}", path.display()), errno.into()))?;
        let mut unpacker = Unpacker::new(place.directory, place.name, true);
        let mut failure = None;
        let mut visit = |item: Item<'_>| {
            unpacker.apply(&item).map_err(|error| {
                let source = io::Error::from(error.errno);
                failure = Some(error);
                source
            })
        };
        let receiver = TreeReceiver { decoder: Decoder::new(), visit: &mut visit };
        let sent = (|| {
            let mut encoder = Encoder::new(receiver)?;
            write(&mut encoder)?;
            encoder.end().map(drop)
        })();
        match (sent, failure) {
            (Err(_), Some(error)) => {
                Err(files(format!("cannot write {}: {error}", path.display()), error.errno.into()))
            }
            (Err(source), None) => Err(files("cannot take over the files".to_owned(), source)),
            (Ok(()), _) => Ok(()),
        }
    }

    fn folder(&self) -> Result<KeptFolder, ContainerError> {
        KeptFolder::open(&self.0)?.ok_or(ContainerError::NoKeptLayer)
    }

    /// The folder that has the layer's directories. What has a limit is mounted for that.
    fn open(&self) -> Result<OwnedFd, ContainerError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let failed = |errno: Errno| files("cannot open the instance's folder".to_owned(), errno.into());
        match &self.0.folder {
            Some(folder) if !folder.join(WritableLayer::FILE).exists() => {
                rustix::fs::open(folder, flags, Mode::empty()).map_err(failed)
            }
            _ => self.folder()?.mount(),
        }
    }

    /// The image below the layer, as the container's root, with the owners that the workload sees.
    fn root(&self, rootfs: &Rootfs) -> Result<OwnedFd, ContainerError> {
        let root = match rootfs {
            Rootfs::Directory(directory) => Root::of_directory(directory)?,
            Rootfs::Layers(stack) => Root::of_layers(stack)?,
            Rootfs::Disk(_) => return Err(ContainerError::DiskImage),
        };
        if root.trees.is_empty() {
            return Err(ContainerError::MergeNeedsRoot);
        }
        let folder = self.folder()?.mount()?;
        let trees: Vec<_> = root.trees.iter().map(AsFd::as_fd).collect();
        layers::merged(&trees, Upper::Kept(folder.as_fd())).map_err(|failure| {
            let item = None;
            ContainerError::SetUp { step: failure.step.to_string(), item, source: failure.errno.into() }
        })
    }
}

/// What is told of a tree.
pub type Visit<'a> = &'a mut dyn FnMut(Item<'_>) -> io::Result<()>;

fn files(what: String, source: io::Error) -> ContainerError {
    ContainerError::KeptFiles { what, source }
}

fn of_file(error: &FileError) -> ContainerError {
    files(error.to_string(), error.errno.into())
}

/// Where a tree is written, whose items are told at once.
pub struct TreeReceiver<'a> {
    decoder: Decoder,
    visit: Visit<'a>,
}

impl Sink for TreeReceiver<'_> {
    type Error = io::Error;

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.decoder.push(bytes);
        let malformed = |error: TreeError| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
        while let Some(item) = self.decoder.next_item().map_err(malformed)? {
            (self.visit)(item)?;
        }
        Ok(())
    }
}

/// Tells `visit` what `directory` has under `name`.
fn send(directory: &OwnedFd, name: &[u8], options: PackOptions, visit: Visit<'_>) -> Result<(), ContainerError> {
    let failed = |source| files("cannot hand on the files".to_owned(), source);
    let mut encoder = Encoder::new(TreeReceiver { decoder: Decoder::new(), visit }).map_err(failed)?;
    match pack(directory.as_fd(), name, options, &mut encoder) {
        Ok(()) => encoder.end().map(drop).map_err(failed),
        Err(PackError::Sink(source)) => Err(failed(source)),
        Err(PackError::File(error)) => Err(of_file(&error)),
    }
}
