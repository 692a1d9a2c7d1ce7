//! Which namespaces this process may make, found out by making them in a child process.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::diagnosis::{Check, Level};

const KINDS: [(&str, i32); 6] = [
    ("mount", libc::CLONE_NEWNS),
    ("pid", libc::CLONE_NEWPID),
    ("network", libc::CLONE_NEWNET),
    ("ipc", libc::CLONE_NEWIPC),
    ("uts", libc::CLONE_NEWUTS),
    ("cgroup", libc::CLONE_NEWCGROUP),
];

/// Runs `attempt` in a child process that ends right after it, and returns how it went.
///
/// `attempt` runs between fork and exec: it may make system calls only, and not allocate.
pub(super) fn try_in_child(attempt: impl Fn() -> io::Result<()> + Send + Sync + 'static) -> io::Result<()> {
    /// Says that the attempt succeeded, so that nothing is executed. No attempt of ours fails with it.
    const SUCCEEDED: i32 = libc::ECANCELED;
    let mut command = Command::new("/nonexistent");
    // SAFETY: the closure only makes system calls, as the documentation above asks of `attempt`.
    unsafe { command.pre_exec(move || attempt().and(Err(io::Error::from_raw_os_error(SUCCEEDED)))) };
    match command.spawn() {
        Err(error) if error.raw_os_error() == Some(SUCCEEDED) => Ok(()),
        Err(error) => Err(error),
        // The closure never succeeds, so there never is a program to run.
        Ok(mut child) => child.wait().map(|_| ()),
    }
}

/// Makes the namespaces of `flags` for the calling process.
pub(super) fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: unshare touches no memory; in a process between fork and exec nothing else runs.
    match unsafe { libc::unshare(flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What has to be made along with a namespace so that this user may make it.
pub(super) fn companion() -> i32 {
    if rustix::process::geteuid().is_root() { 0 } else { libc::CLONE_NEWUSER }
}

pub(super) fn check() -> Vec<Check> {
    vec![user(), others()]
}

fn user() -> Check {
    let result = try_in_child(|| unshare(libc::CLONE_NEWUSER));
    let root = rustix::process::geteuid().is_root();
    let level = match (&result, root) {
        (Ok(()), _) => Level::Ok,
        (Err(_), true) => Level::Warning,
        (Err(_), false) => Level::Error,
    };
    let settings: Vec<String> = [
        ("/proc/sys/user/max_user_namespaces", "user.max_user_namespaces"),
        ("/proc/sys/kernel/unprivileged_userns_clone", "kernel.unprivileged_userns_clone"),
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "kernel.apparmor_restrict_unprivileged_userns"),
    ]
    .into_iter()
    .filter_map(|(path, name)| Some(format!("{name}={}", fs::read_to_string(path).ok()?.trim())))
    .collect();
    let found = result.as_ref().map_or_else(|error| format!("cannot be made ({error})"), |()| "can be made".to_owned());
    Check {
        name: "user namespaces",
        level,
        finding: format!(
            "{found}; {}",
            if settings.is_empty() { "no settings".to_owned() } else { settings.join(", ") }
        ),
        meaning: "map the container's root to another user of the host; let users other than root run containers",
        remedy: result.is_err().then(|| {
            "sysctl -w user.max_user_namespaces=15000; where they exist also kernel.unprivileged_userns_clone=1 and \
             kernel.apparmor_restrict_unprivileged_userns=0"
                .to_owned()
        }),
    }
}

fn others() -> Check {
    let companion = companion();
    let refused: Vec<String> = KINDS
        .into_iter()
        .filter_map(|(name, flag)| {
            let error = try_in_child(move || unshare(flag | companion)).err()?;
            Some(format!("{name} ({error})"))
        })
        .collect();
    let all = KINDS.map(|(name, _)| name).join(", ");
    Check {
        name: "namespaces",
        level: if refused.is_empty() { Level::Ok } else { Level::Error },
        finding: if refused.is_empty() {
            format!("{all} can be made")
        } else {
            format!("refused: {}", refused.join(", "))
        },
        meaning: "isolate containers (--isolation container)",
        remedy: (!refused.is_empty()).then(|| {
            "run as root, or allow user namespaces; inside a container its runtime must allow them as well".to_owned()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_report_how_they_went() {
        assert!(try_in_child(|| Ok(())).is_ok());
        let error = try_in_child(|| Err(io::Error::from_raw_os_error(libc::EPERM))).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    }
}
