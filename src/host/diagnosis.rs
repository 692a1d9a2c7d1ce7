//! Everything that amphi depends on, checked by trying wherever that is harmless.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::cgroup::{Cgroups, Version};
use super::kvm::{self, KvmStatus};
use super::{cpu, features, namespaces};

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Something works less well, or an option is missing.
    Warning,
    /// An isolation does not work.
    Error,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// One thing that was checked.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What was checked.
    pub name: &'static str,
    /// How it went.
    pub level: Level,
    /// What was found.
    pub finding: String,
    /// What it is for.
    pub meaning: &'static str,
    /// How to mend it, where it is not as it should be.
    pub remedy: Option<String>,
}

/// What this host can do.
#[derive(Debug, Clone, Serialize)]
pub struct Diagnosis {
    /// Whether microVMs run: `usable`, `emulated` or `no`.
    pub vm: &'static str,
    /// Whether containers run: `usable`, `limited` (without some limits) or `no`.
    pub container: &'static str,
    /// The checks behind it.
    pub checks: Vec<Check>,
}

impl Diagnosis {
    /// Whether at least one isolation runs.
    #[must_use]
    pub fn any_usable(&self) -> bool {
        self.vm == "usable" || self.container != "no"
    }
}

/// Looks at everything. Takes some tens of milliseconds; leaves nothing behind.
#[must_use]
pub fn diagnose() -> Diagnosis {
    let status = kvm::probe();
    let vm = match status {
        KvmStatus::Usable { .. } => "usable",
        KvmStatus::EmulatedRing0 { .. } => "emulated",
        _ => "no",
    };
    let mut checks = vec![processor(), kvm_check(&status)];
    checks.extend(kvm_interface());
    let namespaces = namespaces::check();
    let cgroups = cgroup_check();
    let container = match (namespaces.iter().any(|check| check.level == Level::Error), cgroups.level) {
        (true, _) => "no",
        (false, Level::Ok) => "usable",
        (false, _) => "limited",
    };
    checks.push(cgroups);
    checks.extend(namespaces);
    checks.extend(features::check());
    Diagnosis { vm, container, checks }
}

fn processor() -> Check {
    let cpu = cpu::detect();
    let place = cpu.hypervisor.map_or_else(|| "bare metal".to_owned(), |name| format!("a guest of {name}"));
    let virtualises = if cpu::virtualises() { "with VMX or SVM" } else { "without VMX or SVM" };
    Check {
        name: "processor",
        level: Level::Ok,
        finding: format!("{}, {virtualises}, {place}", cpu.model),
        meaning: "in a guest, KVM depends on what the outer hypervisor passes through",
        remedy: None,
    }
}

fn kvm_check(status: &KvmStatus) -> Check {
    Check {
        name: "KVM",
        level: if status.is_usable() { Level::Ok } else { Level::Error },
        finding: status.to_string(),
        meaning: "runs microVMs (--isolation vm)",
        remedy: status.remedy(),
    }
}

/// The version and capabilities, where the device can be opened at all.
fn kvm_interface() -> Option<Check> {
    let kvm = kvm::check().ok()?;
    let capabilities = kvm::capabilities(&kvm);
    let names = |there: bool| {
        let names = capabilities.iter().filter(|capability| capability.1 == there).map(|capability| capability.0);
        names.collect::<Vec<_>>().join(", ")
    };
    let missing = names(false);
    let level = if missing.is_empty() { Level::Ok } else { Level::Error };
    let missing_text = if missing.is_empty() { String::new() } else { format!("; lacks {missing}") };
    Some(Check {
        name: "KVM interface",
        level,
        finding: format!("API version {}, {}{missing_text}", kvm.get_api_version(), names(true)),
        meaning: "what amphi uses of KVM",
        remedy: (level != Level::Ok).then(|| "use Linux 5.10 or later on the host".to_owned()),
    })
}

fn cgroup_check() -> Check {
    let cgroups = Cgroups::detect().unwrap_or_default();
    let names: Vec<&str> = cgroups.hierarchies().iter().flat_map(|h| &h.controllers).map(String::as_str).collect();
    let mut finding = match cgroups.version() {
        Version::None => "none are mounted".to_owned(),
        Version::Hybrid => "v1, with an empty v2 beside it (hybrid)".to_owned(),
        version => version.to_string(),
    };
    if !names.is_empty() {
        finding += &format!(", controllers: {}", names.join(", "));
    }
    let problem = cgroup_problem(&cgroups);
    let level = if problem.is_some() { Level::Warning } else { Level::Ok };
    let remedy = problem.map(|(what, remedy)| {
        finding += &what;
        remedy.to_owned()
    });
    Check { name: "cgroups", level, finding, meaning: "a container's --memory, --cpus and --pids", remedy }
}

/// What keeps limits from being set, and how to mend it.
fn cgroup_problem(cgroups: &Cgroups) -> Option<(String, &'static str)> {
    const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];
    if cgroups.version() == Version::None {
        return Some((String::new(), "mount them: `mount -t cgroup2 none /sys/fs/cgroup`"));
    }
    let missing: Vec<_> = NEEDED.into_iter().filter(|name| cgroups.controller(name).is_none()).collect();
    if !missing.is_empty() {
        let remedy = "have the controllers delegated, or enable them in the parent's cgroup.subtree_control";
        return Some((format!("; lacks {}", missing.join(", ")), remedy));
    }
    let directories = NEEDED.into_iter().filter_map(|name| cgroups.controller(name));
    let mut own = directories.map(|hierarchy| {
        // Collected, because joining an empty path leaves a slash at the end.
        hierarchy.mount_point.join(&hierarchy.own).components().collect::<PathBuf>()
    });
    let unwritable = own.find(|dir| rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_err())?;
    Some((
        format!("; {} cannot be written to", unwritable.display()),
        "run as root, or in a unit with delegation: `systemd-run --user --scope -p Delegate=yes amphi ...`",
    ))
}
