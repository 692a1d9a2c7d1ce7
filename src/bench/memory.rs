//! What an instance costs in memory while its workload sleeps.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use serde::Serialize;

use super::BenchError;
use super::plan::Plan;
use super::runner::Run;
use crate::host::cgroup::Cgroups;
use crate::isolation::IsolationKind;

/// The name that the VM half gives to the mapping that is the guest's RAM.
const GUEST_MEMORY: &str = "amphi-guest-memory";
/// From the workload's first sign of life until its memory is looked at: what is freed late is freed then.
const SETTLE: Duration = Duration::from_millis(200);
/// Writes what it reads, and so says that it is there, and sleeps while there is nothing to read.
const SLEEPER: &str = "/bin/cat";

/// The memory of one instance, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemoryCost {
    /// Which isolation.
    #[serde(serialize_with = "super::report::as_text")]
    pub isolation: IsolationKind,
    /// Guest RAM that has been touched, so that the host had to back it. A container has none.
    pub guest_touched: Option<u64>,
    /// The resident set of amphi's own process beyond that: the VMM, or the container's supervisor.
    pub amphi_rss: u64,
    /// The same, with pages shared with other processes counted in proportion.
    pub amphi_pss: u64,
    /// The workload's processes on the host, as proportional set size. A VM's are inside its guest RAM.
    pub workload_pss: Option<u64>,
    /// What the kernel charges to the container's cgroup, page cache and kernel memory included.
    pub cgroup: Option<u64>,
}

impl MemoryCost {
    /// What the host has to hold for one more instance.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.guest_touched.unwrap_or(0) + self.amphi_pss + self.workload_pss.unwrap_or(0)
    }
}

/// Starts an instance that sleeps, looks at it, and ends it.
pub(super) fn measure(plan: &Plan, isolation: IsolationKind) -> Result<MemoryCost, BenchError> {
    let mut run = Run::spawn(plan, isolation, &["-i".into()], &[SLEEPER.into()], Stdio::piped())?;
    let mut stdin = run.stdin();
    // Where this fails the run has ended, which the next step finds out.
    let _ = stdin.as_mut().map(|pipe| pipe.write_all(b"asleep\n"));
    if run.first_byte(plan.patience)?.is_none() {
        return Err(BenchError::NotAsleep { isolation, message: run.message() });
    }
    sleep(SETTLE);
    let look = || -> Option<MemoryCost> {
        let guest_ram = if isolation == IsolationKind::Vm { plan.memory.bytes() } else { u64::MAX };
        let amphi = Smaps::of(run.pid(), guest_ram)?;
        let children = descendants(run.pid());
        let (workload_pss, cgroup) = match isolation {
            IsolationKind::Vm => (None, None),
            IsolationKind::Container => {
                let sizes: Vec<_> = children.iter().filter_map(|&pid| Smaps::of(pid, u64::MAX)).collect();
                let cgroup = children.first().and_then(|&pid| memory_charged(pid));
                ((!sizes.is_empty()).then(|| sizes.iter().map(|smaps| smaps.other.pss).sum()), cgroup)
            }
        };
        Some(MemoryCost {
            isolation,
            guest_touched: (isolation == IsolationKind::Vm).then_some(amphi.guest.rss),
            amphi_rss: amphi.other.rss,
            amphi_pss: amphi.other.pss,
            workload_pss,
            cgroup,
        })
    };
    let cost = look();
    drop(stdin);
    run.drain(plan.patience)?;
    run.wait(plan.patience)?;
    cost.ok_or_else(|| BenchError::NotAsleep { isolation, message: "its process has ended".to_owned() })
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sizes {
    rss: u64,
    pss: u64,
}

/// A process's mappings, summed up.
#[derive(Debug, Default, PartialEq, Eq)]
struct Smaps {
    guest: Sizes,
    other: Sizes,
}

impl Smaps {
    fn of(pid: u32, guest_ram: u64) -> Option<Self> {
        Some(Self::parse(&fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?, guest_ram))
    }

    /// Reads the format of proc_pid_smaps(5): a line for the mapping, then `Name: N kB` lines.
    ///
    /// Kernels without `CONFIG_ANON_VMA_NAME` show no names of anonymous memory: there guest RAM is the anonymous mapping
    /// that has room for `guest_ram` bytes.
    fn parse(text: &str, guest_ram: u64) -> Self {
        let mut smaps = Self::default();
        let mut in_guest = false;
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            let Some(first) = words.next() else { continue };
            let Some(field) = first.strip_suffix(':') else {
                in_guest = match words.nth(4) {
                    Some(path) => path.contains(GUEST_MEMORY),
                    None => length(first).is_some_and(|length| length >= guest_ram),
                };
                continue;
            };
            let sizes = if in_guest { &mut smaps.guest } else { &mut smaps.other };
            let bytes = words.next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0) * 1024;
            match field {
                "Rss" => sizes.rss += bytes,
                "Pss" => sizes.pss += bytes,
                _ => {}
            }
        }
        smaps
    }
}

/// The length of an address range such as `7f0000000000-7f0008000000`.
fn length(range: &str) -> Option<u64> {
    let (start, end) = range.split_once('-')?;
    u64::from_str_radix(end, 16).ok()?.checked_sub(u64::from_str_radix(start, 16).ok()?)
}

/// The bytes charged to the memory cgroup of process `pid`.
fn memory_charged(pid: u32) -> Option<u64> {
    let cgroups = Cgroups::of_process(pid).ok()?;
    let hierarchy = cgroups.controller("memory")?;
    let file = if hierarchy.unified { "memory.current" } else { "memory.usage_in_bytes" };
    fs::read_to_string(hierarchy.mount_point.join(&hierarchy.own).join(file)).ok()?.trim().parse().ok()
}

/// The processes below `pid`, parents before children.
fn descendants(pid: u32) -> Vec<u32> {
    let mut found = children(pid);
    let mut next = 0;
    while let Some(&pid) = found.get(next) {
        found.extend(children(pid));
        next += 1;
    }
    found
}

/// The children of all threads of `pid`.
fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task")) else { return Vec::new() };
    let lists = threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
00400000-00452000 r-xp 00000000 08:02 173521      /usr/bin/amphi
Size:                328 kB
Rss:                 100 kB
Pss:                  50 kB
Pss_Dirty:             7 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0008000000 rw-s 00000000 00:01 5   /memfd:amphi-guest-memory (deleted)
Rss:                4096 kB
Pss:                4096 kB
7ffc0000-7ffc1000 rw-p 00000000 00:00 0
Rss:                   4 kB
Pss:                   4 kB
";

    #[test]
    fn guest_ram_is_told_from_the_rest() {
        let expected =
            Smaps { guest: Sizes { rss: 4096 << 10, pss: 4096 << 10 }, other: Sizes { rss: 104 << 10, pss: 54 << 10 } };
        assert_eq!(Smaps::parse(TEXT, 128 << 20), expected);
        let unnamed =
            TEXT.replace("rw-s 00000000 00:01 5   /memfd:amphi-guest-memory (deleted)", "rw-p 00000000 00:00 0");
        assert_eq!(Smaps::parse(&unnamed, 128 << 20), expected);
        assert_eq!(Smaps::parse(&unnamed, 129 << 20).guest, Sizes::default());
    }

    #[test]
    fn this_process_has_memory_and_no_guest() {
        let smaps = Smaps::of(std::process::id(), u64::MAX).unwrap();
        assert!(smaps.other.rss > 0 && smaps.guest == Sizes::default());
    }

    #[test]
    fn children_are_found() {
        let mut child = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let found = descendants(std::process::id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.contains(&child.id()), "{found:?}");
    }
}
