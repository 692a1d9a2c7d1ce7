//! The container's namespaces, and which ids of the host its user namespace has.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::error::ContainerError;
use super::syscalls::{Attributes, mount_setattr};

/// All that are made at once with the child. The cgroup namespace follows when the child is in its cgroup.
pub(super) const FLAGS: libc::c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS;

/// The first id of the host that a container of root gets where `/etc/subuid` names none, and how many.
const DEFAULT_RANGE: Range = Range { first: 100_000, count: 65_536 };

/// A run of ids of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    /// The id that is 0 inside.
    pub(super) first: u32,
    /// How many.
    pub(super) count: u32,
}

/// Which ids of the host a container's ids are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum IdMap {
    /// A range of their own, so that root inside is nobody outside. The image's files appear shifted
    /// by an idmapped mount.
    Shifted { users: Range, groups: Range },
    /// The ids that amphi itself has. Root inside is root outside in whatever the namespaces let through.
    Identity,
    /// Only root, which is the caller.
    Single { user: u32, group: u32 },
}

impl IdMap {
    /// The best map that the caller may write.
    pub(super) fn choose() -> Self {
        let user = rustix::process::geteuid();
        if !user.is_root() {
            return Self::Single { user: user.as_raw(), group: rustix::process::getegid().as_raw() };
        }
        let users = sub_range("/etc/subuid").unwrap_or(DEFAULT_RANGE);
        let groups = sub_range("/etc/subgid").unwrap_or(DEFAULT_RANGE);
        // Inside another user namespace there may be no such ids.
        let all = |path, range: Range| {
            own_map(path).is_ok_and(|map| {
                map.iter().any(|&(first, count)| {
                    first <= range.first
                        && u64::from(first) + u64::from(count) >= u64::from(range.first) + u64::from(range.count)
                })
            })
        };
        if all("/proc/self/uid_map", users) && all("/proc/self/gid_map", groups) {
            Self::Shifted { users, groups }
        } else {
            Self::Identity
        }
    }

    /// Whether processes inside may have supplementary groups.
    pub(super) fn sets_groups(&self) -> bool {
        !matches!(self, Self::Single { .. })
    }

    /// The host's user that is `user` inside, where this map says.
    pub(super) fn host_user(&self, user: u32) -> Option<u32> {
        match self {
            Self::Shifted { users, .. } if user < users.count => Some(users.first + user),
            Self::Identity => Some(user),
            Self::Single { user: host, .. } if user == 0 => Some(*host),
            _ => None,
        }
    }

    /// The host's user and group that are root inside, where those are others than outside.
    pub(super) fn host_root(&self) -> Option<(u32, u32)> {
        match self {
            Self::Shifted { users, groups } => Some((users.first, groups.first)),
            Self::Identity | Self::Single { .. } => None,
        }
    }

    /// Checks that a process of `user` and `group` can run inside.
    pub(super) fn check(&self, user: u32, group: u32) -> Result<(), ContainerError> {
        let (fits, reason) = match self {
            Self::Shifted { users, groups } => {
                (user < users.count && group < groups.count, "a container has the ids from 0 to 65535")
            }
            Self::Identity => (true, ""),
            Self::Single { .. } => {
                (user == 0 && group == 0, "without root's privileges a container has only user and group 0")
            }
        };
        if fits { Ok(()) } else { Err(ContainerError::NotMapped { user, group, reason }) }
    }

    /// Writes the maps of the user namespace of the child `pid`.
    pub(super) fn write(&self, pid: i32) -> Result<(), ContainerError> {
        let (users, groups) = match self {
            Self::Shifted { users, groups } => (line(0, *users), line(0, *groups)),
            Self::Identity => (identity("/proc/self/uid_map")?, identity("/proc/self/gid_map")?),
            Self::Single { user, group } => {
                // Without privilege, groups may be mapped only once they cannot be dropped any more.
                write(pid, "setgroups", "deny")?;
                (line(0, Range { first: *user, count: 1 }), line(0, Range { first: *group, count: 1 }))
            }
        };
        write(pid, "gid_map", &groups)?;
        write(pid, "uid_map", &users)
    }
}

fn write(pid: i32, file: &'static str, text: &str) -> Result<(), ContainerError> {
    fs::write(format!("/proc/{pid}/{file}"), text).map_err(|source| ContainerError::Kernel {
        action: "map user and group ids into the container",
        hint: None,
        source,
    })
}

fn line(inside: u32, range: Range) -> String {
    format!("{inside} {} {}\n", range.first, range.count)
}

/// The runs of ids that exist in this user namespace.
fn own_map(path: &str) -> io::Result<Vec<(u32, u32)>> {
    Ok(parse_map(&fs::read_to_string(path)?))
}

fn parse_map(text: &str) -> Vec<(u32, u32)> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace().map(str::parse::<u32>);
            match (fields.next(), fields.next(), fields.next()) {
                (Some(Ok(inside)), Some(Ok(_)), Some(Ok(count))) => Some((inside, count)),
                _ => None,
            }
        })
        .collect()
}

fn identity(path: &str) -> Result<String, ContainerError> {
    let map = own_map(path).map_err(|source| ContainerError::Kernel {
        action: "read this process's own id maps",
        hint: None,
        source,
    })?;
    Ok(map.into_iter().map(|(first, count)| line(first, Range { first, count })).collect())
}

/// Root's first range of at least 65536 ids in `/etc/subuid` or `/etc/subgid`.
fn sub_range(path: &str) -> Option<Range> {
    parse_sub_ranges(&fs::read_to_string(path).ok()?)
}

fn parse_sub_ranges(text: &str) -> Option<Range> {
    text.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let first: u32 = fields.next()?.parse().ok()?;
        let count: u32 = fields.next()?.parse().ok()?;
        let fits = count >= DEFAULT_RANGE.count && first.checked_add(DEFAULT_RANGE.count).is_some() && first > 0;
        (matches!(owner, "root" | "0") && fits).then_some(Range { first, count: DEFAULT_RANGE.count })
    })
}

/// Shifts the owners that the detached mount `tree`, or all that is mounted in it as well, shows by the maps of the child's
/// user namespace.
pub(super) fn shift(tree: BorrowedFd<'_>, pid: i32, recursive: bool) -> Result<(), Errno> {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    let userns = rustix::fs::open(format!("/proc/{pid}/ns/user"), flags, rustix::fs::Mode::empty())?;
    let userns = Some(std::os::fd::AsFd::as_fd(&userns));
    mount_setattr(tree, &Attributes { set: libc::MOUNT_ATTR_IDMAP, recursive, userns, ..Attributes::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_range_is_found_among_others() {
        let text = "# no\nalice:200000:65536\nroot:300000:100\nroot:400000:65536\nroot:500000:65536\n";
        assert_eq!(parse_sub_ranges(text), Some(Range { first: 400_000, count: 65_536 }));
        for text in ["", "root", "root:x:65536", "root:0:65536", "root:4294967295:65536", "root:1:4294967296"] {
            assert_eq!(parse_sub_ranges(text), None, "{text}");
        }
    }

    #[test]
    fn maps_are_read_as_the_kernel_pads_them() {
        assert_eq!(parse_map("         0          0 4294967295\n"), [(0, u32::MAX)]);
        assert_eq!(parse_map("0 1000 1\n1 100000 65536\n"), [(0, 1), (1, 65_536)]);
        assert_eq!(parse_map("x\n\n"), []);
    }

    #[test]
    fn ids_that_are_not_there_are_refused() {
        let single = IdMap::Single { user: 1000, group: 1000 };
        assert!(single.check(0, 0).is_ok());
        assert!(matches!(single.check(1000, 0), Err(ContainerError::NotMapped { user: 1000, .. })));
        let shifted = IdMap::Shifted { users: DEFAULT_RANGE, groups: DEFAULT_RANGE };
        assert!(shifted.check(65_535, 65_535).is_ok());
        assert!(shifted.check(0, 65_536).is_err());
    }

    #[test]
    fn host_users_follow_the_map() {
        let range = Range { first: 100_000, count: 65_536 };
        let shifted = IdMap::Shifted { users: range, groups: range };
        assert_eq!(shifted.host_user(7), Some(100_007));
        assert_eq!(shifted.host_user(65_536), None);
        assert_eq!(IdMap::Single { user: 1000, group: 1000 }.host_user(1), None);
    }
}
