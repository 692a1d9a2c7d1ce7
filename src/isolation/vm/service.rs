//! What is on the disk of an instance's writable layer, read and changed without running the instance's workload.
//!
//! A guest had that disk, so the file system on it may be anything. Nothing on the host looks into it: a microVM
//! of its own does, whose guest init mounts it and sends or receives file trees (`amphi_guest_init::tree`), which are checked as
//! they arrive. What a crafted file system can break is the kernel of that microVM.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use amphi_guest_init::Service;
use amphi_guest_init::tree::{Decoder, Encoder, Item, Sink, TreeError};

use super::error::VmError;
use super::plan::Plan;
use super::sandbox::VmSandbox;
use crate::image::Rootfs;
use crate::isolation::{ExitStatus, IsolationError, Sandbox, Signal, Stdio};
use crate::spec::WritableLayer;

/// How much is read from a guest at once.
const BUFFER: usize = 256 << 10;

/// The writable layer of an instance that ran, or is to run, as a microVM: the disk [`WritableLayer::FILE`] in its folder.
///
/// Each method boots a microVM for its work and ends it, and needs what every microVM needs: KVM and a guest kernel. The disk
/// is locked meanwhile: while the instance runs the methods fail with [`WritableDiskError::InUse`](crate::isolation::writable_disk::WritableDiskError).
/// Where the instance did not end in order, the guest's kernel brings the file system into order first. Where there is no disk, an empty
/// one is made.
///
/// Trees are told item by item, as [`Item`] describes: entries whose paths cannot lead out of the tree, a directory before what is in
/// it, sorted by name in each directory, and a file's contents, in ascending order without the holes, right behind its entry. The last item is
/// [`Item::End`]; only when it has come, and the method has returned without error, was the tree complete.
#[derive(Debug, Clone)]
pub struct KeptLayer {
    folder: PathBuf,
    kernel: Option<PathBuf>,
}

impl KeptLayer {
    /// The layer whose disk is in `folder`.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), kernel: None }
    }

    /// Boots this guest kernel, a file or the name of an installed one, instead of the best one installed.
    #[must_use]
    pub fn kernel(mut self, kernel: impl Into<PathBuf>) -> Self {
        self.kernel = Some(kernel.into());
        self
    }

    /// How many bytes the layer takes up on the host's disk; nothing where nothing has run yet.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn size_on_host(&self) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt;
        match self.folder.join(WritableLayer::FILE).metadata() {
            Ok(metadata) => Ok(metadata.blocks() * 512),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Tells `visit` all that the layer has of its own, in the form in which overlayfs keeps it: what is added or changed is there with
    /// all of its contents; a name of the layers below that is removed is a character device 0:0
    /// ([`Entry::is_whiteout`](amphi_guest_init::tree::Entry::is_whiteout)); a directory that was removed and made anew has the
    /// attribute `trusted.overlay.opaque` ([`Entry::is_opaque`](amphi_guest_init::tree::Entry::is_opaque)). A directory in which something
    /// changed is there too, with its attributes as they are now. Other attributes named `trusted.overlay.` are overlayfs's notes, and no
    /// part of the tree. The top is `/`, and its attributes mean something only where anything is in it: where nothing was ever run on the
    /// layer, they are those of the disk's own top.
    ///
    /// An error of `visit` ends the microVM and is returned as [`VmError::Transfer`].
    ///
    /// # Errors
    /// The microVM cannot be started, the disk cannot be mounted or read, or the guest sends something else.
    pub fn changes(&self, visit: &mut dyn FnMut(Item<'_>) -> io::Result<()>) -> Result<(), VmError> {
        self.receive(None, Service::Changes, visit)
    }

    /// Tells `visit` what the root, `rootfs` with this layer above it, has at `path`: the top of the tree is what is there, a directory
    /// or not. Symbolic links on the way are followed inside the root; one at the path's end is told as a link, unless a slash,
    /// or `/.`, is behind it. With `contents` false only the top is told, and no contents of it: what is there at all.
    ///
    /// # Errors
    /// As [`changes`](Self::changes); [`VmError::Service`] names `path` where there is nothing.
    pub fn pack(
        &self,
        rootfs: &Rootfs,
        path: &Path,
        contents: bool,
        visit: &mut dyn FnMut(Item<'_>) -> io::Result<()>,
    ) -> Result<(), VmError> {
        let path = path.as_os_str().as_bytes().to_vec();
        self.receive(Some(rootfs), Service::Pack { path, contents }, visit)
    }

    /// Puts the tree that `send` writes into the root, `rootfs` with this layer above it. Where `path` leads to a directory, the tree's top
    /// becomes `name` in it, or with an empty `name` what is in the tree's top goes right into it. Where there is nothing at `path`, or
    /// a file, the tree's top gets that path; its directory must be there.
    ///
    /// What is there already is replaced, but no directory by anything else, nor anything else by a directory: that is an error. Directories
    /// that are there keep their owner and mode. Owners, modes, times and attributes are made as the tree says, by root of the guest;
    /// symbolic links in the root lead nowhere outside of it, and those below `path` are not followed. What was made before an
    /// error stays. When this returns, all of it is on the disk as if the instance had ended.
    ///
    /// `send` only writes entries and data; the end is added. An error of `send` ends the microVM, and is returned as [`VmError::Transfer`].
    /// [`pack`](amphi_guest_init::tree::pack()) writes what a directory of the host has.
    ///
    /// # Errors
    /// The microVM cannot be started, or something cannot be made: [`VmError::Service`] names it.
    pub fn unpack(
        &self,
        rootfs: &Rootfs,
        path: &Path,
        name: &[u8],
        send: impl FnOnce(&mut Encoder<TreeSender>) -> io::Result<()>,
    ) -> Result<(), VmError> {
        let path = path.as_os_str().as_bytes().to_vec();
        let (reader, writer) = io::pipe().map_err(VmError::host("make a pipe"))?;
        let stdio = Stdio { stdin: reader.into(), ..null()? };
        let sandbox = self.start(Some(rootfs), Service::Unpack { path, name: name.to_vec() }, stdio)?;
        thread::scope(|scope| {
            let ended = scope.spawn(|| ended(&sandbox));
            let sent = send_tree(writer, send);
            if matches!(&sent, Err(error) if error.kind() != io::ErrorKind::BrokenPipe) {
                let _ = sandbox.kill(Signal::KILL);
            }
            let ended = ended.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            match sent {
                Ok(()) => ended,
                // Why it takes no more the guest says itself.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ended.and(Err(VmError::Transfer(error))),
                Err(error) => Err(VmError::Transfer(error)),
            }
        })
    }

    fn start(&self, rootfs: Option<&Rootfs>, service: Service, stdio: Stdio) -> Result<VmSandbox, VmError> {
        let plan = Plan::for_service(self.kernel.as_deref(), rootfs, &self.folder, service)?;
        let sandbox = VmSandbox::new(plan, stdio, Arc::new(|| Ok(())));
        sandbox.start().map_err(of_isolation)?;
        Ok(sandbox)
    }

    fn receive(
        &self,
        rootfs: Option<&Rootfs>,
        service: Service,
        visit: &mut dyn FnMut(Item<'_>) -> io::Result<()>,
    ) -> Result<(), VmError> {
        let (reader, writer) = io::pipe().map_err(VmError::host("make a pipe"))?;
        let stdio = Stdio { stdout: writer.into(), ..null()? };
        let sandbox = self.start(rootfs, service, stdio)?;
        thread::scope(|scope| {
            // The last descriptor of the pipe's other end goes when the machine has ended.
            let ended = scope.spawn(|| ended(&sandbox));
            let received = read_tree(OwnedFd::from(reader).into(), visit);
            if !matches!(received, Ok(()) | Err(VmError::Tree(TreeError::Truncated))) {
                let _ = sandbox.kill(Signal::KILL);
            }
            let ended = ended.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            match received {
                // Why it stopped the guest says itself.
                Err(VmError::Tree(TreeError::Truncated)) => ended.and(Err(VmError::Tree(TreeError::Truncated))),
                Err(error) => Err(error),
                Ok(()) => ended,
            }
        })
    }
}

fn send_tree(to: io::PipeWriter, send: impl FnOnce(&mut Encoder<TreeSender>) -> io::Result<()>) -> io::Result<()> {
    let mut encoder = Encoder::new(TreeSender(to))?;
    send(&mut encoder)?;
    encoder.end().map(drop)
}

fn null() -> Result<Stdio, VmError> {
    Stdio::null().map_err(VmError::host("open /dev/null"))
}

fn of_isolation(error: IsolationError) -> VmError {
    match error {
        IsolationError::Vm(error) => error,
        other => VmError::Failed(other.to_string()),
    }
}

/// Waits for the end of a machine that does a service, and tells how it went.
fn ended(sandbox: &VmSandbox) -> Result<(), VmError> {
    let status = sandbox.wait().map_err(|error| match of_isolation(error) {
        VmError::Shared(ref cause) if let VmError::Guest(text) = &**cause => VmError::Service(text.clone()),
        error => error,
    })?;
    match status {
        ExitStatus::Code(0) => Ok(()),
        status => Err(VmError::Failed(format!("the guest ended with {status:?} before its work was done"))),
    }
}

/// Reads a tree to its end, and tells `visit`.
fn read_tree(mut from: File, visit: &mut dyn FnMut(Item<'_>) -> io::Result<()>) -> Result<(), VmError> {
    let mut decoder = Decoder::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return decoder.finish().map_err(VmError::Tree),
            Ok(length) => decoder.push(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(VmError::Transfer(error)),
        }
        while let Some(item) = decoder.next_item().map_err(VmError::Tree)? {
            visit(item).map_err(VmError::Transfer)?;
        }
    }
}

/// Where a tree for a guest is written.
#[derive(Debug)]
pub struct TreeSender(io::PipeWriter);

impl Sink for TreeSender {
    type Error = io::Error;

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }
}
