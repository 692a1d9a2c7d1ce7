//! What can end a command, how it is said, and the exit status it gives.

use std::error::Error as _;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use amphi::bench::BenchError;
use amphi::image::ImageError;
use amphi::instance::InstanceError;
use amphi::isolation::IsolationError;
use amphi::isolation::vm::VmError;
use amphi::spec::SpecError;

/// The exit status that says that amphi itself failed, as docker and podman use it.
const AMPHI_FAILED: u8 = 125;

/// Why a command failed: one variant a stage.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The command line is malformed, or asks for help.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// An option makes no sense here.
    #[error("{option}: {problem}")]
    Option {
        /// The option as the user wrote it.
        option: &'static str,
        /// What is wrong, and what to do instead.
        problem: String,
    },
    /// The image's name is not UTF-8.
    #[error("image {0:?} is not UTF-8 text")]
    ImageName(OsString),
    /// The image cannot be opened.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The settings make no sense.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The isolation failed.
    #[error(transparent)]
    Isolation(#[from] IsolationError),
    /// A command about images failed.
    #[error(transparent)]
    Images(#[from] crate::cli::ImageCommandError),
    /// An instance cannot be used.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// An image cannot be built.
    #[error(transparent)]
    Build(#[from] amphi::build::BuildError),
    /// A kernel cannot be installed, built or looked at.
    #[error(transparent)]
    Kernel(#[from] crate::cli::KernelCommandError),
    /// A directly booted guest came to a bad end.
    #[error("the guest's kernel panicked")]
    GuestPanicked,
    /// A directly booted guest was silent for too long.
    #[error("the guest did not feed its watchdog (--watchdog)")]
    GuestHung,
    /// A direct boot failed.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// There is nothing to compare, because VMs do not run on this host.
    #[error(
        "no microVM runs here ({status}): {remedy}; or measure the container alone with --isolation container, or both in \
         the lab with `make demo`"
    )]
    NoVm {
        /// What is wrong with KVM.
        status: String,
        /// How to mend it.
        remedy: String,
    },
    /// A measurement failed.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// A file named on the command line cannot be read or written.
    #[error("cannot {action} {path}", path = path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// Something of amphi's own process failed.
    #[error("cannot {action}")]
    Process {
        /// What was attempted.
        action: &'static str,
        /// What the operating system says.
        source: io::Error,
    },
}

impl CliError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(error) if !error.use_stderr() => 0,
            Self::Isolation(error) => error.exit_code(),
            _ => AMPHI_FAILED,
        }
    }
}

/// Says on standard error what went wrong, and returns the exit status for it. Help and version go to standard output.
pub(crate) fn report(error: &CliError) -> ExitCode {
    if let CliError::Usage(usage) = error {
        if usage.use_stderr() && usage.kind() != clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            let text = usage.render().to_string();
            eprint!("amphi: {}", text.strip_prefix("error: ").unwrap_or(&text));
        } else {
            // Nobody is left to tell where even this cannot be written.
            let _ = usage.print();
        }
    } else {
        eprintln!("amphi: {}", chain(error));
    }
    ExitCode::from(error.exit_code())
}

/// The error and its causes on one line.
fn chain(error: &CliError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_follow_on_the_same_line() {
        let source = io::Error::from_raw_os_error(libc::ENOENT);
        let error = CliError::File { action: "read", path: "/x".into(), source };
        assert_eq!(chain(&error), "cannot read /x: No such file or directory (os error 2)");
    }

    #[test]
    fn statuses_follow_the_contract() {
        let not_found = CliError::Isolation(IsolationError::CommandNotFound("x".into()));
        assert_eq!(not_found.exit_code(), 127);
        let option = CliError::Option { option: "-d", problem: "no".into() };
        assert_eq!(option.exit_code(), 125);
    }
}
