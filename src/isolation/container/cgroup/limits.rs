//! The workload's limits as the files of the controllers.

use std::io;

use super::super::error::ContainerError;
use crate::spec::Resources;

/// The period over which CPU time is rationed, in microseconds: the kernel's default.
const PERIOD: u64 = 100_000;
/// The smallest ration that the kernel takes, in microseconds.
const LEAST_QUOTA: u64 = 1_000;

/// One limit, and how each version of cgroups is told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Limit {
    /// The command line's name for it.
    pub(super) flag: &'static str,
    /// The controller it needs.
    pub(super) controller: &'static str,
    /// Files and values of version 1, in the order to write them.
    pub(super) v1: Vec<Setting>,
    /// Files and values of version 2.
    pub(super) v2: Vec<Setting>,
}

/// A file of a cgroup and what to write to it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// The file's name.
    pub(super) file: &'static str,
    /// The text.
    pub(super) value: String,
    /// Whether the limit holds without it, so that a kernel that has no such file is good enough.
    pub(super) optional: bool,
}

impl Limit {
    /// The error that this limit cannot be set.
    pub(super) fn refused(&self, problem: String, source: Option<io::Error>) -> ContainerError {
        ContainerError::Limit { flag: self.flag, problem, source }
    }
}

fn needed(file: &'static str, value: impl ToString) -> Setting {
    Setting { file, value: value.to_string(), optional: false }
}

fn optional(file: &'static str, value: impl ToString) -> Setting {
    Setting { file, value: value.to_string(), optional: true }
}

/// The limits that `resources` asks for.
pub(super) fn of(resources: &Resources) -> Vec<Limit> {
    let mut limits = Vec::new();
    if let Some(memory) = resources.memory {
        let bytes = memory.bytes();
        limits.push(Limit {
            flag: "--memory",
            controller: "memory",
            // Memory and swap together: as in a microVM, there is no swap beyond the limit.
            v1: vec![needed("memory.limit_in_bytes", bytes), optional("memory.memsw.limit_in_bytes", bytes)],
            v2: vec![needed("memory.max", bytes), optional("memory.swap.max", 0)],
        });
    }
    if let Some(cpus) = resources.cpus {
        let quota = (u64::from(cpus.millis()) * PERIOD / 1000).max(LEAST_QUOTA);
        limits.push(Limit {
            flag: "--cpus",
            controller: "cpu",
            v1: vec![needed("cpu.cfs_period_us", PERIOD), needed("cpu.cfs_quota_us", quota)],
            v2: vec![needed("cpu.max", format!("{quota} {PERIOD}"))],
        });
    }
    if let Some(pids) = resources.pids {
        // PID 1 is ours.
        let pids = u64::from(pids) + 1;
        limits.push(Limit {
            flag: "--pids",
            controller: "pids",
            v1: vec![needed("pids.max", pids)],
            v2: vec![needed("pids.max", pids)],
        });
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_become_what_the_kernel_reads() {
        let resources =
            Resources { cpus: Some("0.5".parse().unwrap()), memory: Some("128M".parse().unwrap()), pids: Some(10) };
        let limits = of(&resources);
        assert_eq!(limits.iter().map(|l| l.flag).collect::<Vec<_>>(), ["--memory", "--cpus", "--pids"]);
        assert_eq!(limits[0].v2[0], needed("memory.max", 134_217_728));
        assert_eq!(limits[1].v2, [needed("cpu.max", "50000 100000")]);
        assert_eq!(limits[2].v1, [needed("pids.max", 11)]);
        assert!(of(&Resources::default()).is_empty());
    }

    #[test]
    fn a_thousandth_of_a_cpu_is_rounded_up_to_what_the_kernel_takes() {
        let resources = Resources { cpus: Some("0.001".parse().unwrap()), ..Resources::default() };
        assert_eq!(of(&resources)[0].v2[0].value, "1000 100000");
    }
}
