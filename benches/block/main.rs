//! What a disk's requests cost: 4 KiB at random places, one and 32 at a time, and 1 MiB one after the other, from a guest's
//! direct I/O to a file in memory.
//!
//! Where KVM runs no kernels, this program starts a lab with instruction counting for each run, and runs itself again inside; the
//! figures are instructions then, else times. `FIRECRACKER=PATH` names a Firecracker to compare with, and `QEMU=PATH` a QEMU other
//! than that of PATH. `RUNS=N`: runs of each.

// What fails here has no other reader than the one who started it.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod guest;
#[path = "../harness/loads.rs"]
mod loads;
#[path = "../harness/newc.rs"]
mod newc;
mod subject;
#[path = "../harness/vmms.rs"]
mod vmms;
#[path = "../harness/world.rs"]
mod world;

use std::process::ExitCode;

use loads::Benchmark;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        guest::run();
    }
    let benchmark = Benchmark {
        what: "Requests to a disk",
        mark: guest::MARK,
        loads: guest::names(),
        prepare: |_| Ok(()),
        subjects: subject::all,
    };
    benchmark.run()
}
