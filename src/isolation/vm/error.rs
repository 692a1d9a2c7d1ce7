//! Why a microVM could not be run.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use amphi_guest_init::MessageError;
use amphi_guest_init::tree::TreeError;

use super::kernel_image::KernelImageError;
use super::network::NetworkError;
use super::state::MachineExit;
use crate::host::kvm::KvmStatus;
use crate::image::DiskError;
use crate::isolation::writable_disk::WritableDiskError;
use crate::kernel::KernelError;
use crate::spec::SpecError;

/// Why a microVM could not be run.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// There is no usable kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The kernel's file cannot be loaded into the guest.
    #[error(transparent)]
    KernelImage(#[from] KernelImageError),
    /// KVM is missing, not for this user, or not able to run kernels.
    #[error("no microVM runs here: {0}: {remedy}; or use --isolation container", remedy = .0.remedy().unwrap_or_default())]
    NoKvm(KvmStatus),
    /// KVM refused something.
    #[error("KVM cannot {attempt}")]
    Kvm {
        /// What was attempted.
        attempt: &'static str,
        /// What the operating system says.
        source: io::Error,
    },
    /// The disk that keeps what is written to the root cannot be made.
    #[error(transparent)]
    WritableDisk(#[from] WritableDiskError),
    /// A microVM that was to read or change files of an instance could not.
    #[error("{0}")]
    Service(String),
    /// What a guest sends is no file tree.
    #[error("the guest does not send what it should")]
    Tree(#[source] TreeError),
    /// What was to be done with files that come from a guest, or go to it, has failed.
    #[error("cannot transfer files")]
    Transfer(#[source] io::Error),
    /// The guest's memory cannot be had.
    #[error("cannot map {size} bytes of guest memory")]
    Memory {
        /// The size asked for, in bytes.
        size: u64,
        /// What the operating system says.
        source: io::Error,
    },
    /// Something does not fit into the guest's memory.
    #[error("--memory is too small: {what} needs {needed} MiB of guest memory and {available} MiB are there")]
    TooSmall {
        /// What needs the room.
        what: &'static str,
        /// How much the guest would need, in MiB.
        needed: u64,
        /// How much it has, in MiB.
        available: u64,
    },
    /// The command line is longer than a kernel takes.
    #[error(
        "the kernel's command line is {0} bytes long, and at most 2047 are possible: use fewer or shorter --kernel-arg"
    )]
    CommandLineTooLong(usize),
    /// A file that the guest needs cannot be read.
    #[error("cannot read {what} {path}", path = path.display())]
    Read {
        /// What the file is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The root file system cannot be prepared for the guest.
    #[error("cannot prepare the root file system for the guest")]
    Root(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A disk beside the root cannot be used.
    #[error("--disk cannot be attached")]
    Disk(#[source] DiskError),
    /// A file cannot be persistent memory.
    #[error("--pmem {path} is not possible", path = path.display())]
    Pmem {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// The host does not let a disk be used as it is wanted.
    #[error("--disk {path},{option} is not possible on this host: leave the option out", path = path.display())]
    DiskOption {
        /// The disk's file.
        path: PathBuf,
        /// The option.
        option: &'static str,
        /// What the operating system says.
        source: io::Error,
    },
    /// What a volume shares cannot be shared.
    #[error("--volume: cannot share {path} with the guest", path = path.display())]
    Volume {
        /// The host's directory or file.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// There is no network such as was asked for.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A setting that makes no sense, or not on this host.
    #[error(transparent)]
    Setting(#[from] SpecError),
    /// A setting that a microVM cannot honour.
    #[error("{0}")]
    Unsupported(String),
    /// The host's socket of a socket device cannot be made.
    #[error("--vsock: cannot listen at {path}", path = path.display())]
    Socket {
        /// The socket's path.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// A device, thread or descriptor of the host could not be set up.
    #[error("cannot {attempt}")]
    Host {
        /// What was attempted.
        attempt: &'static str,
        /// What the operating system says.
        source: io::Error,
    },
    /// PID 1 of the guest could not do its work.
    #[error("the guest cannot run the workload: {0}")]
    Guest(String),
    /// The machine ended before the workload did.
    #[error("the guest ended before the workload did: {exit}{console}")]
    Ended {
        /// How the machine ended.
        exit: MachineExit,
        /// What the guest's console said last; empty, or starting with a line break.
        console: String,
    },
    /// What PID 1 of the guest reports is none of its messages.
    #[error("the guest's reports are malformed")]
    Reports(#[source] MessageError),
    /// KVM met something that it can neither run nor emulate.
    #[error("KVM could not go on (internal error {suberror}) at guest instruction {rip:#x}")]
    KvmInternal {
        /// The kind of error, a `KVM_INTERNAL_ERROR_...` of the KVM API.
        suberror: u32,
        /// The address of the instruction in the guest.
        rip: u64,
    },
    /// The machine could not go on while a workload ran in it.
    #[error("{}{console}", in_words(.cause))]
    Broken {
        /// Why.
        cause: Arc<VmError>,
        /// What the guest's console said last; empty, or starting with a line break.
        console: String,
    },
    /// The machine could not go on.
    #[error("the microVM failed: {0}")]
    Failed(String),
    /// An error that was told before, and is told to each who asks.
    #[error(transparent)]
    Shared(Arc<VmError>),
}

/// An error with its causes, for where more text follows.
fn in_words(error: &VmError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

impl VmError {
    /// An error maker for a KVM call.
    pub(super) fn kvm(attempt: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self::Kvm { attempt, source: io::Error::from_raw_os_error(error.errno()) }
    }

    /// An error maker for a call to the host's operating system.
    pub(super) fn host(attempt: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { attempt, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once_and_before_the_console() {
        let source = io::Error::from_raw_os_error(libc::EFAULT);
        let cause = Arc::new(VmError::Kvm { attempt: "run a vCPU", source });
        let broken = Arc::new(VmError::Broken { cause, console: "\nsaid last".to_owned() });
        let text = in_words(&VmError::Shared(broken));
        assert_eq!(text, "KVM cannot run a vCPU: Bad address (os error 14)\nsaid last");
    }

    #[test]
    fn what_kvm_lacks_comes_with_a_way_out() {
        let text = VmError::NoKvm(KvmStatus::EmulatedRing0 { ring0_mips: 2.0, refused: vec!["int3"] }).to_string();
        assert!(
            text.contains("stops at int3: use bare metal") && text.ends_with("or use --isolation container"),
            "{text}"
        );
    }
}
