//! Finding the program and the environment of a workload.

use alloc::vec;
use alloc::vec::Vec;

use rustix::io::Errno;

/// `PATH` where the user sets none.
pub const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why no candidate for a command could be executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecFailure {
    /// There is none: exit status 127.
    NotFound,
    /// There is one, but `execve` failed with this error number: exit status 126.
    NotExecutable(i32),
}

/// The paths to try, in order, for a command: itself where it contains a slash, else one for each directory of
/// `path`, which falls back on [`DEFAULT_PATH`]. An empty directory is the working directory, as POSIX has it.
/// No path is absolute that was not before: they are to be used inside the workload's root.
#[must_use]
pub fn candidates(command: &[u8], path: Option<&[u8]>) -> Vec<Vec<u8>> {
    if command.is_empty() {
        return Vec::new();
    }
    if command.contains(&b'/') {
        return vec![command.to_vec()];
    }
    path.unwrap_or(DEFAULT_PATH)
        .split(|&b| b == b':')
        .map(|directory| if directory.is_empty() { &b"."[..] } else { directory })
        .map(|directory| [directory, b"/", command].concat())
        .collect()
}

/// Calls `execute` on each candidate until one is executed, so that it does not return, or until one is there
/// but cannot be. `execute` returns the error number of `execve`. Neither allocates nor panics itself, so that it
/// may run between `fork` and `execve`.
pub fn search<T>(candidates: impl IntoIterator<Item = T>, mut execute: impl FnMut(T) -> i32) -> ExecFailure {
    let mut failure = ExecFailure::NotFound;
    for candidate in candidates {
        match classify(execute(candidate)) {
            ExecFailure::NotFound => {}
            // A later directory may hold one that is permitted, as execvp(3) has it.
            refused @ ExecFailure::NotExecutable(errno) if errno == Errno::ACCESS.raw_os_error() => failure = refused,
            refused @ ExecFailure::NotExecutable(_) => return refused,
        }
    }
    failure
}

/// What an error number of `execve` says about the command: that it is not there, or that it cannot be executed.
#[must_use]
pub fn classify(errno: i32) -> ExecFailure {
    match Errno::from_raw_os_error(errno) {
        Errno::NOENT | Errno::NOTDIR => ExecFailure::NotFound,
        _ => ExecFailure::NotExecutable(errno),
    }
}

/// The value of `key` in `environment`, a list of `KEY=VALUE`.
#[must_use]
pub fn variable<'a>(environment: &'a [Vec<u8>], key: &[u8]) -> Option<&'a [u8]> {
    environment.iter().find_map(|entry| entry.strip_prefix(key)?.strip_prefix(b"="))
}

/// The workload's whole environment: `PATH`, `HOSTNAME`, `HOME`, with a terminal `TERM=xterm`, and over them
/// `user`, a list of `KEY=VALUE` of which the last with a key counts.
#[must_use]
pub fn environment(user: &[Vec<u8>], home: &[u8], hostname: &[u8], terminal: bool) -> Vec<Vec<u8>> {
    let mut all = vec![[b"PATH=", DEFAULT_PATH].concat(), [b"HOSTNAME=", hostname].concat()];
    if terminal {
        all.push(b"TERM=xterm".to_vec());
    }
    all.push([b"HOME=", home].concat());
    for entry in user {
        let key = key(entry);
        match all.iter_mut().find(|other| self::key(other) == key) {
            Some(other) => other.clone_from(entry),
            None => all.push(entry.clone()),
        }
    }
    all
}

fn key(entry: &[u8]) -> &[u8] {
    entry.split(|&b| b == b'=').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[Vec<u8>]) -> Vec<&str> {
        list.iter().map(|s| std::str::from_utf8(s).unwrap()).collect()
    }

    #[test]
    fn a_slash_ends_the_search_before_it_begins() {
        assert_eq!(strings(&candidates(b"./x", Some(b"/bin"))), ["./x"]);
        assert_eq!(strings(&candidates(b"x", Some(b"/a::b"))), ["/a/x", "./x", "b/x"]);
        assert_eq!(candidates(b"x", None).len(), 6);
        assert!(candidates(b"", None).is_empty());
    }

    #[test]
    fn the_search_ends_as_execvp_ends_it() {
        let [enoent, enotdir, eacces, enoexec] =
            [Errno::NOENT, Errno::NOTDIR, Errno::ACCESS, Errno::NOEXEC].map(Errno::raw_os_error);
        let run = |errors: &[i32]| {
            let mut tried = 0;
            let failure = search(errors, |&errno| {
                tried += 1;
                errno
            });
            (failure, tried)
        };
        use ExecFailure::{NotExecutable, NotFound};
        assert_eq!(run(&[]), (NotFound, 0));
        assert_eq!(run(&[enoent, enotdir]), (NotFound, 2));
        assert_eq!(run(&[eacces, enoent]), (NotExecutable(eacces), 2));
        assert_eq!(run(&[enoexec, enoent]), (NotExecutable(enoexec), 1));
    }

    #[test]
    fn the_user_overrides_the_default_environment() {
        let user = [&b"HOME=/h"[..], b"A=1", b"A=2=3", b"PATHS=x"].map(<[u8]>::to_vec);
        let all = environment(&user, b"/root", b"box", true);
        let path = format!("PATH={}", std::str::from_utf8(DEFAULT_PATH).unwrap());
        assert_eq!(strings(&all), [path.as_str(), "HOSTNAME=box", "TERM=xterm", "HOME=/h", "A=2=3", "PATHS=x"]);
        assert_eq!(variable(&all, b"A"), Some(&b"2=3"[..]));
        assert_eq!(variable(&all, b"HOM"), None);
        assert!(variable(&environment(&[], b"/", b"box", false), b"TERM").is_none());
    }
}
