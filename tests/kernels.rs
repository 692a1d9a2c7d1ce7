//! Kernels as their makers ship them, with one and two processors.

use crate::harness::installed::{self, Kernel};
use crate::harness::{Amphi, Case, Isolation, vm};

/// Finds an installed kernel.
type Find = fn() -> Kernel;

pub(crate) fn cases() -> Vec<Case> {
    let kernels: [(&str, Find); 3] = [
        ("stock_6_1", || installed::stock("6.1.")),
        ("stock_6_12", || installed::stock("6.12.")),
        ("own", installed::own),
    ];
    let mut cases = Vec::new();
    for (name, kernel) in kernels {
        for cpus in [1, 2] {
            cases.push(vm(&format!("kernel_{name}_with_{cpus}_cpus"), move || boots(&kernel(), cpus)));
        }
        cases.push(vm(&format!("kernel_{name}_inspected"), move || inspected(&kernel())));
    }
    cases.push(vm("kernel_unknown", kernel_unknown));
    cases.push(vm("kernel_none", kernel_none));
    cases
}

fn boots(kernel: &Kernel, cpus: u32) {
    let options = ["--kernel", &kernel.name, "--cpus", &cpus.to_string()];
    let script = "uname -r; nproc; echo written >/tmp/file && cat /tmp/file";
    Amphi::sh(Isolation::Vm, script)
        .with(options)
        .finish()
        .expect_text(&format!("{}\n{cpus}\nwritten", kernel.release));
}

fn inspected(kernel: &Kernel) {
    let finished = Amphi::new(["kernel", "inspect", &kernel.name]).finish().expect(0);
    assert!(finished.text().contains(&kernel.release), "it names the release {} {finished}", kernel.release);
}

fn kernel_unknown() {
    let amphi = Amphi::run(Isolation::Vm, ["true"]).with(["--kernel", "no-such-kernel"]);
    amphi.finish().expect_error(125, &["no-such-kernel"]);
}

/// What `amphi build` says too, which has no option for a kernel.
fn kernel_none() {
    let root = tempfile::tempdir().unwrap();
    let amphi = Amphi::new(["--root", root.path().to_str().unwrap(), "run", "--rm", "builtin", "true"]);
    amphi.finish().expect_error(125, &["amphi kernel install", "amphi run --kernel", "--isolation container"]);
}
