//! What an instance has written, whichever its isolation.

use std::io;
use std::path::Path;

use amphi_guest_init::tree::{Encoder, Item, Sink};

use super::{IsolationError, IsolationKind, container, vm};
use crate::image::Rootfs;
use crate::spec::RunSpec;

/// The writable layer of an instance that does not run: what both [`container::KeptLayer`] and [`vm::KeptLayer`] do.
#[derive(Debug)]
pub enum KeptLayer {
    /// It ran as a container.
    Container(container::KeptLayer),
    /// It ran as a microVM.
    Vm(vm::KeptLayer),
}

/// A tree that is put into a layer.
pub trait TreeSource {
    /// Writes the tree without its end.
    ///
    /// # Errors
    /// It cannot be read, or the encoder's sink does not take it.
    fn write<S: Sink<Error = io::Error>>(&self, encoder: &mut Encoder<S>) -> io::Result<()>;
}

impl KeptLayer {
    /// The layer of `spec`, which ran in that isolation.
    #[must_use]
    pub fn new(kind: IsolationKind, spec: &RunSpec) -> Self {
        match kind {
            IsolationKind::Container => Self::Container(container::KeptLayer::new(&spec.writable)),
            IsolationKind::Vm => {
                let layer = vm::KeptLayer::new(spec.writable.folder.clone().unwrap_or_default());
                Self::Vm(match &spec.vm.kernel {
                    Some(kernel) => layer.kernel(kernel),
                    None => layer,
                })
            }
        }
    }

    /// Ends what a killed amphi has left running on the layer: see [`container::KeptLayer::end_last_run`]. A microVM is gone with its
    /// amphi, but for the kernel's last writes to its disk, whose lock is waited for when it is opened.
    ///
    /// # Errors
    /// It takes too long.
    pub fn end_last_run(&self) -> Result<(), IsolationError> {
        match self {
            Self::Container(layer) => layer.end_last_run().map_err(IsolationError::from),
            Self::Vm(_) => Ok(()),
        }
    }

    /// Tells `visit` all that the layer has of its own: see [`container::KeptLayer::changes`].
    ///
    /// # Errors
    /// Something cannot be read, or `visit` fails.
    pub fn changes(&self, visit: &mut dyn FnMut(Item<'_>) -> io::Result<()>) -> Result<(), IsolationError> {
        match self {
            Self::Container(layer) => layer.changes(visit).map_err(IsolationError::from),
            Self::Vm(layer) => layer.changes(visit).map_err(IsolationError::from),
        }
    }

    /// Tells `visit` what the root, `rootfs` with this layer above it, has at `path`: see [`container::KeptLayer::pack`].
    ///
    /// # Errors
    /// There is nothing, it cannot be read, or `visit` fails.
    pub fn pack(
        &self,
        rootfs: &Rootfs,
        path: &Path,
        contents: bool,
        visit: &mut dyn FnMut(Item<'_>) -> io::Result<()>,
    ) -> Result<(), IsolationError> {
        match self {
            Self::Container(layer) => layer.pack(rootfs, path, contents, visit).map_err(IsolationError::from),
            Self::Vm(layer) => layer.pack(rootfs, path, contents, visit).map_err(IsolationError::from),
        }
    }

    /// Puts a tree into the root, `rootfs` with this layer above it: see [`container::KeptLayer::unpack`].
    ///
    /// # Errors
    /// Something cannot be made, or `source` fails.
    pub fn unpack(
        &self,
        rootfs: &Rootfs,
        path: &Path,
        name: &[u8],
        source: &impl TreeSource,
    ) -> Result<(), IsolationError> {
        match self {
            Self::Container(layer) => {
                layer.unpack(rootfs, path, name, |encoder| source.write(encoder)).map_err(IsolationError::from)
            }
            Self::Vm(layer) => {
                layer.unpack(rootfs, path, name, |encoder| source.write(encoder)).map_err(IsolationError::from)
            }
        }
    }
}
