//! What a boot costs, side by side: amphi, other VMMs with the same inputs, containers.
//!
//! Where KVM runs no kernels, this program starts the lab once with instruction counting and runs itself again inside; the
//! figures are instructions then, else times. docs/benchmarks.md says how to read them.
//!
//! `FIRECRACKER=PATH` names a Firecracker to compare with; QEMU, crun and runc are taken from PATH. `RUNS=N`: runs of each.
//! Words on the command line (`cargo bench --bench boot -- container unshare`) name the subjects to measure; else it is all.

// What fails here has no other reader than the one who started it.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod closing;
mod guest;
mod in_memory;
mod memory;
#[path = "../harness/newc.rs"]
mod newc;
mod report;
mod subject;
#[path = "../harness/world.rs"]
mod world;

use std::path::Path;
use std::process::ExitCode;

use report::Table;
use subject::{Measured, Subject};

fn main() -> ExitCode {
    world::run(measure)
}

fn measure(directory: &Path, runs: usize) -> Result<(), String> {
    let mut subjects = subject::all(directory)?;
    subjects.retain(|subject| world::wanted(subject.name));
    let mut measured: Vec<Vec<Measured>> = subjects.iter().map(|_| Vec::new()).collect();
    for round in 0..=runs {
        world::progress(&format!(
            "start-up: round {round} of {runs}{}",
            if round == 0 { " (not counted)" } else { "" }
        ));
        for (subject, measured) in subjects.iter().zip(&mut measured) {
            let run = subject.measure()?;
            if round > 0 {
                measured.push(run);
            }
        }
    }
    let table = Table::new(&subjects, &measured);
    println!(
        "\n{runs} runs of each, interleaved, after one that does not count; whole process, from start to exit.\n\
         All figures but ratios: {}; minimum / median.\n",
        world::unit(world::in_lab())
    );
    print!("{table}");
    world::progress("memory");
    let footprints: Vec<_> = subjects.iter().filter_map(Subject::footprint).collect();
    print!("{}", report::memory(&footprints.into_iter().collect::<Result<Vec<_>, _>>()?));
    Ok(())
}
