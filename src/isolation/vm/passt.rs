//! passt, which gives a guest the host's connections without any privilege: it takes the guest's frames from a socket,
//! and makes ordinary connections of them.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, Mode, fchmod, memfd_create};
use rustix::io::Errno;

use super::network::{USER_ADDRESS, USER_DNS, USER_GATEWAY, USER_MTU, USER_PREFIX};
use crate::spec::{PortMapping, Protocol};

const PROGRAM: &str = "passt";
/// How long passt may take to be ready, in seconds. It takes some hundredths.
const PATIENCE: i64 = 20;
/// Where passt says that it is ready: its standard output.
const READY: &str = "/proc/self/fd/1";
/// What passt says that is not about us: it has no log, or changes its user.
const NOISE: [&str; 4] = ["Failed to send", "Don't run as root", "No external routable", "Couldn't get any nameserver"];

/// Why passt does not run.
#[derive(Debug, thiserror::Error)]
pub enum PasstError {
    /// It is not installed.
    #[error(
        "--network user needs the program passt, which is not in PATH: install it (apt-get install passt), or use --network tap:NAME"
    )]
    Missing,
    /// It cannot be started.
    #[error("--network user: cannot {attempt}")]
    Start {
        /// What was attempted.
        attempt: &'static str,
        /// What the operating system says.
        source: io::Error,
    },
    /// It ended at once.
    #[error("--network user: passt ended at once: {said}{hint}")]
    Ended {
        /// What it said.
        said: String,
        /// What to do; empty, or in parentheses.
        hint: &'static str,
    },
    /// It does not get ready.
    #[error("--network user: passt is not ready after {PATIENCE} seconds")]
    Stuck,
}

/// A running passt. It ends with this value, and also when the other end of its socket is closed, as the kernel does
/// whichever way amphi ends.
pub(super) struct Passt {
    child: Child,
    /// Readable when passt is ready or has ended.
    ready: File,
    said: File,
}

impl Passt {
    /// Starts passt with the host's `ports` leading to the guest, and returns it with the other end of its socket.
    pub(super) fn start(ports: &[PortMapping]) -> Result<(Self, UnixStream), PasstError> {
        let failed = |attempt| move |source| PasstError::Start { attempt, source };
        let errno = |attempt| move |error: Errno| PasstError::Start { attempt, source: error.into() };
        let (ours, theirs) = UnixStream::pair().map_err(failed("make a socket pair for passt"))?;
        let (ready, written) = io::pipe().map_err(failed("make a pipe for passt"))?;
        // Started by root, passt is another user when it opens the pipe.
        fchmod(&written, Mode::from_raw_mode(0o666)).map_err(errno("open passt's pipe to it"))?;
        // A file, so that nobody has to keep reading.
        let said = memfd_create("passt", MemfdFlags::CLOEXEC).map_err(errno("make a file for passt's messages"))?;
        let said = File::from(said);
        let stderr = said.try_clone().map_err(failed("duplicate a descriptor"))?;
        let mut command = Command::new(PROGRAM);
        command.args(arguments(&theirs, ports)).stdin(Stdio::null()).stdout(written).stderr(stderr);
        // Keys typed at the terminal are for the workload.
        command.process_group(0);
        let socket = theirs.as_raw_fd();
        // SAFETY: fcntl may be called between fork and exec; the descriptor is open, because the parent holds it.
        unsafe {
            command.pre_exec(move || match libc::fcntl(socket, libc::F_SETFD, 0) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        let child = command.spawn().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => PasstError::Missing,
            _ => PasstError::Start { attempt: "start passt", source },
        })?;
        Ok((Self { child, ready: File::from(OwnedFd::from(ready)), said }, ours))
    }

    /// Waits until passt can take frames and all ports are open.
    pub(super) fn wait_ready(&mut self) -> Result<(), PasstError> {
        let limit = Timespec { tv_sec: PATIENCE, tv_nsec: 0 };
        loop {
            match poll(&mut [PollFd::new(&self.ready, PollFlags::IN)], Some(&limit)) {
                Ok(0) => return Err(PasstError::Stuck),
                Err(Errno::INTR) => {}
                _ => break,
            }
        }
        let mut pid = [0; 32];
        match self.ready.read(&mut pid) {
            Ok(1..) => Ok(()),
            _ => Err(self.last_words()),
        }
    }

    fn last_words(&mut self) -> PasstError {
        let _ = self.child.wait();
        let mut said = Vec::new();
        let read = self.said.seek(SeekFrom::Start(0)).and_then(|_| self.said.read_to_end(&mut said));
        if let Err(error) = read {
            log::debug!("passt's messages cannot be read: {error}");
        }
        let said = meaningful(&String::from_utf8_lossy(&said));
        let hint = if said.contains("bind") {
            " (a port of -p is in use, or below 1024 and not for this user)"
        } else if said.contains("interface not usable") {
            " (the host has no default route)"
        } else {
            ""
        };
        PasstError::Ended { said, hint }
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        // It has seen the end of its socket already, or does not look at it any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn arguments(socket: &UnixStream, ports: &[PortMapping]) -> Vec<String> {
    let mut arguments: Vec<String> = ["--foreground", "--quiet", "--no-map-gw", "--pid", READY].map(Into::into).into();
    let options = [
        ("--fd", socket.as_raw_fd().to_string()),
        ("--address", USER_ADDRESS.to_string()),
        ("--netmask", USER_PREFIX.to_string()),
        ("--gateway", USER_GATEWAY.to_string()),
        ("--dns-forward", USER_DNS.to_string()),
        ("--mtu", USER_MTU.to_string()),
    ];
    let ports = ports.iter().map(|port| {
        let option = match port.protocol {
            Protocol::Tcp => "--tcp-ports",
            Protocol::Udp => "--udp-ports",
        };
        let address = port.address.map(|address| format!("{address}/")).unwrap_or_default();
        (option, format!("{address}{}:{}", port.host, port.guest))
    });
    for (option, value) in options.into_iter().chain(ports) {
        arguments.extend([option.to_owned(), value]);
    }
    arguments
}

/// What of passt's messages is of use to the user.
fn meaningful(said: &str) -> String {
    let lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines: Vec<_> = lines.filter(|line| !NOISE.iter().any(|noise| line.starts_with(noise))).collect();
    if lines.is_empty() { "it does not say why".to_owned() } else { lines.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_become_options() {
        let (socket, _other) = UnixStream::pair().unwrap();
        let ports: Vec<PortMapping> =
            ["8080:80", "127.0.0.1:53:5353/udp", "[::1]:1:2"].map(|port| port.parse().unwrap()).into();
        let arguments = arguments(&socket, &ports);
        let tail = &arguments[arguments.len() - 6..];
        assert_eq!(tail, ["--tcp-ports", "8080:80", "--udp-ports", "127.0.0.1/53:5353", "--tcp-ports", "::1/1:2"]);
    }

    #[test]
    fn noise_is_left_out() {
        let said =
            "Failed to send 47 bytes to syslog\nDon't run as root. Changing to nobody...\nFailed to bind any port\n";
        assert_eq!(meaningful(said), "Failed to bind any port");
        assert_eq!(meaningful("\n"), "it does not say why");
    }
}
