//! The host's control groups: which hierarchies there are, which controllers each has, and where this process is in them.
//!
//! Sources: cgroups(7), proc_pid_cgroup(5), proc_pid_mountinfo(5), and "Control Group v2" of the kernel's documentation.

use std::fmt;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Where systemd and everyone else mounts them.
const USUAL_MOUNT: &str = "/sys/fs/cgroup";
/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// How a host has its control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// None are mounted.
    None,
    /// Version 1 only: a hierarchy for each controller, or for several.
    V1,
    /// Controllers in version 1 hierarchies, and the unified hierarchy beside them.
    Hybrid,
    /// The unified hierarchy only.
    V2,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::V1 => "v1",
            Self::Hybrid => "hybrid",
            Self::V2 => "v2",
        })
    }
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where its root is mounted.
    pub mount_point: PathBuf,
    /// This process's group in it, below [`Hierarchy::mount_point`]; empty for the root.
    pub own: PathBuf,
    /// Its controllers, such as `memory`.
    pub controllers: Vec<String>,
    /// Whether this is the unified hierarchy of version 2.
    pub unified: bool,
}

/// The host's control groups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
}

impl Cgroups {
    /// Looks at this host.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn detect() -> io::Result<Self> {
        Self::of("self")
    }

    /// The same, with [`Hierarchy::own`] being where process `pid` is.
    ///
    /// # Errors
    /// `/proc` cannot be read, or there is no such process.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        Self::of(&pid.to_string())
    }

    fn of(process: &str) -> io::Result<Self> {
        let own = std::fs::read_to_string(format!("/proc/{process}/cgroup"))?;
        // The common case needs no mount table, which can be long.
        let usual = rustix::fs::statfs(USUAL_MOUNT);
        let mut cgroups = if usual.is_ok_and(|fs| u64::try_from(fs.f_type).is_ok_and(|magic| magic == CGROUP2_MAGIC)) {
            let own = own_path(&own, "").unwrap_or_default();
            let mount_point = PathBuf::from(USUAL_MOUNT);
            Self { hierarchies: vec![Hierarchy { mount_point, own, controllers: Vec::new(), unified: true }] }
        } else {
            Self::parse(&std::fs::read_to_string("/proc/self/mountinfo")?, &own)
        };
        for hierarchy in cgroups.hierarchies.iter_mut().filter(|h| h.unified) {
            let list = std::fs::read_to_string(hierarchy.mount_point.join("cgroup.controllers")).unwrap_or_default();
            hierarchy.controllers = list.split_ascii_whitespace().map(str::to_owned).collect();
        }
        Ok(cgroups)
    }

    /// From the texts of `/proc/self/mountinfo` and `/proc/self/cgroup`, without the unified hierarchy's controllers.
    fn parse(mountinfo: &str, own: &str) -> Self {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for line in mountinfo.lines() {
            let Some(hierarchy) = parse_mount(line, own) else { continue };
            // The same hierarchy may be mounted twice; the first is the usual place.
            let known = |h: &Hierarchy| h.unified == hierarchy.unified && h.controllers == hierarchy.controllers;
            if !hierarchies.iter().any(known) {
                hierarchies.push(hierarchy);
            }
        }
        Self { hierarchies }
    }

    /// All mounted hierarchies that have controllers, and the unified one.
    #[must_use]
    pub fn hierarchies(&self) -> &[Hierarchy] {
        &self.hierarchies
    }

    /// The unified hierarchy.
    #[must_use]
    pub fn unified(&self) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|h| h.unified)
    }

    /// The hierarchy that has this controller.
    #[must_use]
    pub fn controller(&self, name: &str) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|h| h.controllers.iter().any(|c| c == name))
    }

    /// How this host has its control groups.
    #[must_use]
    pub fn version(&self) -> Version {
        match (self.unified().is_some(), self.hierarchies.iter().any(|h| !h.unified)) {
            (false, false) => Version::None,
            (false, true) => Version::V1,
            (true, true) => Version::Hybrid,
            (true, false) => Version::V2,
        }
    }
}

/// The hierarchy of a line of mountinfo: `ID PARENT DEV ROOT POINT OPTIONS [FIELD...] - TYPE SOURCE SUPEROPTIONS`.
fn parse_mount(line: &str, own: &str) -> Option<Hierarchy> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(3);
    let (root, point) = (mount.next()?, mount.next()?);
    let mut filesystem = filesystem.split(' ');
    let unified = match filesystem.next()? {
        "cgroup2" => true,
        "cgroup" => false,
        _ => return None,
    };
    let options: Vec<&str> = filesystem.nth(1)?.split(',').collect();
    // Named hierarchies (systemd's) have no controllers and are of no use to us.
    if !unified && options.iter().any(|option| option.starts_with("name=")) {
        return None;
    }
    let is_controller = |o: &&str| {
        !matches!(*o, "rw" | "ro" | "xattr" | "noprefix" | "clone_children" | "favordynmods") && !o.contains('=')
    };
    let controllers: Vec<String> =
        if unified { Vec::new() } else { options.into_iter().filter(is_controller).map(str::to_owned).collect() };
    let key = if unified { "" } else { controllers.first()?.as_str() };
    let path = own_path(own, key)?;
    // A mount that shows only a part of the hierarchy, as in a container without a cgroup namespace.
    let own = match path.strip_prefix(unescape(root).strip_prefix("/").unwrap_or(Path::new(""))) {
        Ok(rest) => rest.to_owned(),
        Err(_) => PathBuf::new(),
    };
    Some(Hierarchy { mount_point: unescape(point), own, controllers, unified })
}

/// The path, without its leading slash, on the line `ID:CONTROLLERS:PATH` that lists `controller`; empty is the unified one.
fn own_path(text: &str, controller: &str) -> Option<PathBuf> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let listed = fields.next()?.split(',').any(|c| c == controller);
        let path = fields.next()?;
        // Outside the cgroup namespace's root; nothing can be made there.
        let path = if path.starts_with("/..") { "" } else { path.trim_start_matches('/') };
        listed.then(|| PathBuf::from(path))
    })
}

/// Undoes the octal escapes for space, tab, newline and backslash.
fn unescape(field: &str) -> PathBuf {
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let octal = bytes.get(at + 1..at + 4).filter(|_| byte == b'\\');
        match octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()) {
            Some(escaped) => {
                out.push(escaped);
                at += 4;
            }
            None => {
                out.push(byte);
                at += 1;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID_MOUNTS: &str = "\
30 1 0:20 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu\\040x rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
34 30 0:30 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
35 30 0:28 / /mnt/memory rw,relatime - cgroup cgroup rw,memory
";
    const HYBRID_OWN: &str = "9:name=systemd:/s\n4:memory:/a/b:c\n2:cpu,cpuacct:/\n0::/u\n";

    #[test]
    fn a_hybrid_host_is_taken_apart() {
        let cgroups = Cgroups::parse(HYBRID_MOUNTS, HYBRID_OWN);
        assert_eq!(cgroups.version(), Version::Hybrid);
        assert_eq!(cgroups.hierarchies().len(), 3);
        let memory = cgroups.controller("memory").unwrap();
        assert_eq!(
            (memory.mount_point.as_path(), memory.own.as_path()),
            (Path::new("/sys/fs/cgroup/memory"), Path::new("a/b:c"))
        );
        let cpu = cgroups.controller("cpuacct").unwrap();
        assert_eq!(cpu.mount_point, Path::new("/sys/fs/cgroup/cpu x"));
        assert_eq!(cpu.controllers, ["cpu", "cpuacct"]);
        assert_eq!(cgroups.unified().unwrap().own, Path::new("u"));
        assert_eq!(cgroups.controller("systemd"), None);
    }

    #[test]
    fn versions_are_told_apart() {
        let v2 = "30 1 0:20 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(Cgroups::parse(v2, "0::/\n").version(), Version::V2);
        let v1 = "30 1 0:20 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        assert_eq!(Cgroups::parse(v1, "1:pids:/\n").version(), Version::V1);
        assert_eq!(Cgroups::parse("", "").version(), Version::None);
    }

    #[test]
    fn a_mount_of_a_part_counts_from_that_part() {
        let mounts = "30 1 0:20 /docker/x /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        let cgroups = Cgroups::parse(mounts, "1:pids:/docker/x/y\n");
        assert_eq!(cgroups.controller("pids").unwrap().own, Path::new("y"));
    }

    #[test]
    fn lines_of_another_form_are_passed_over() {
        assert_eq!(Cgroups::parse("\n- \nx - cgroup\n1 2 3 4 - cgroup2 a b\n", "::\n:\n").version(), Version::None);
    }
}
