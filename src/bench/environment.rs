//! Where a comparison was measured: without it the figures mean nothing.

use std::fs;
use std::path::Path;

use serde::Serialize;

use super::plan::Plan;
use crate::host::cgroup::Cgroups;
use crate::host::cpu;
use crate::isolation::IsolationKind;
use crate::kernel::Kernel;

/// The host and what else the times depend on.
#[derive(Debug, Clone, Serialize)]
pub struct Environment {
    /// The processor's own name.
    pub cpu: String,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// The hypervisor that the host itself is a guest of, if it is one.
    pub hypervisor: Option<String>,
    /// What runs the guests: the kernel's KVM modules.
    pub accelerator: String,
    /// Whether an emulator instead of a processor runs the host, so that the times say nothing about real ones.
    pub emulated: bool,
    /// The host's kernel.
    pub host_kernel: String,
    /// The guest's kernel, where VMs are measured.
    pub guest_kernel: Option<String>,
    /// How cgroups are mounted.
    pub cgroup: String,
    /// The load averages of 1, 5 and 15 minutes at the beginning.
    pub load_average: String,
    /// Whether what the runs read was in memory already.
    pub cache: &'static str,
    /// The version of amphi.
    pub amphi: &'static str,
}

impl Environment {
    /// The present one, for runs of `plan`.
    pub(super) fn detect(plan: &Plan) -> Self {
        let cpu = cpu::detect();
        let in_lab = std::env::var_os("AMPHI_LAB").is_some_and(|value| !value.is_empty() && value != "0");
        let emulated = in_lab || cpu.hypervisor.as_deref() == Some("QEMU TCG");
        let uname = rustix::system::uname();
        let with_vm = plan.isolations.contains(&IsolationKind::Vm);
        Self {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            accelerator: accelerator(Path::new("/sys/module"), cpu.hypervisor.as_deref()),
            cpu: cpu.model,
            hypervisor: cpu.hypervisor,
            emulated,
            host_kernel: uname.release().to_string_lossy().into_owned(),
            guest_kernel: with_vm.then(|| guest_kernel(plan)),
            cgroup: format!("cgroup {}", Cgroups::detect().unwrap_or_default().version()),
            load_average: first_words("/proc/loadavg", 3),
            cache: if plan.warmup > 0 { "warm" } else { "as it was found (no warm-up)" },
            amphi: env!("CARGO_PKG_VERSION"),
        }
    }
}

/// The KVM modules under `modules`, and on what they work.
fn accelerator(modules: &Path, hypervisor: Option<&str>) -> String {
    let found = ["kvm_amd", "kvm_intel", "kvm_pvm"].into_iter().filter(|name| modules.join(name).is_dir());
    let names = found.collect::<Vec<_>>().join(", ");
    match (names.as_str(), hypervisor) {
        ("", _) => "none (no KVM module is loaded)".to_owned(),
        (names, None) => names.to_owned(),
        (names, Some(below)) => format!("{names}, nested in {below}"),
    }
}

fn guest_kernel(plan: &Plan) -> String {
    match Kernel::resolve(plan.kernel.as_deref()) {
        Ok(Kernel { release: Some(release), .. }) => release,
        Ok(kernel) => kernel.image.display().to_string(),
        Err(error) => format!("none: {error}"),
    }
}

fn first_words(path: &str, count: usize) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_ascii_whitespace().take(count).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accelerators_are_named_with_what_they_are_nested_in() {
        let modules = tempfile::tempdir().unwrap();
        assert!(accelerator(modules.path(), None).starts_with("none"));
        fs::create_dir(modules.path().join("kvm_amd")).unwrap();
        assert_eq!(accelerator(modules.path(), None), "kvm_amd");
        assert_eq!(accelerator(modules.path(), Some("QEMU TCG")), "kvm_amd, nested in QEMU TCG");
    }
}
