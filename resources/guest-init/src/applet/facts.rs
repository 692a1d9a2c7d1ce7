//! `hello`, `id`, `pwd` and `uname`.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use rustix::io::Errno;
use rustix::process::{getegid, geteuid, getgroups, getpid};
use rustix::system::{sysinfo, uname as system_names};

use super::output::{Output, stdout, write_all};

/// Greets, and says where the program finds itself; the same lines in both isolations.
pub(super) fn hello() -> Result<u8, Errno> {
    let names = system_names();
    let info = sysinfo();
    let memory = info.totalram.saturating_mul(info.mem_unit.into()) >> 20;
    let cpus = rustix::thread::sched_getaffinity(None)?.count();
    let pid = getpid().as_raw_nonzero();
    Output::print(format_args!(
        "Hello from amphi.\nkernel {}, host name {}, process {pid}, {cpus} CPU{}, {memory} MiB of memory\n",
        names.release().to_string_lossy(),
        names.nodename().to_string_lossy(),
        if cpus == 1 { "" } else { "s" },
    ))
}

/// `id`: numbers only.
pub(super) fn id() -> Result<u8, Errno> {
    let groups: Vec<String> = getgroups()?.iter().map(|group| format!("{}", group.as_raw())).collect();
    let groups = if groups.is_empty() { String::new() } else { format!(" groups={}", groups.join(",")) };
    Output::print(format_args!("uid={} gid={}{groups}\n", geteuid().as_raw(), getegid().as_raw()))
}

/// `pwd`.
pub(super) fn pwd() -> Result<u8, Errno> {
    let mut path = rustix::process::getcwd(Vec::new())?.into_bytes();
    path.push(b'\n');
    write_all(stdout(), &path).map(|()| 0)
}

/// `uname [-a] [-s] [-n] [-r] [-v] [-m]`.
pub(super) fn uname(arguments: &[Vec<u8>]) -> Result<u8, Errno> {
    let mut letters: Vec<u8> = Vec::new();
    for argument in arguments {
        match argument.split_first() {
            Some((b'-', rest)) if rest.iter().all(|letter| b"asnrvm".contains(letter)) => letters.extend(rest),
            _ => {
                Output::error(format_args!("usage: uname [-asnrvm]"));
                return Ok(2);
            }
        }
    }
    if letters.is_empty() {
        letters.push(b's');
    }
    let names = system_names();
    let all = [
        (b's', names.sysname()),
        (b'n', names.nodename()),
        (b'r', names.release()),
        (b'v', names.version()),
        (b'm', names.machine()),
    ];
    let chosen: Vec<_> = all
        .iter()
        .filter(|(letter, _)| letters.contains(letter) || letters.contains(&b'a'))
        .map(|(_, name)| name.to_string_lossy())
        .collect();
    Output::print(format_args!("{}\n", chosen.join(" ")))
}
