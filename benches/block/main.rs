//! What a disk's requests cost: 4 KiB at random places, one and 32 at a time, and 1 MiB one after the other, from a guest's
//! direct I/O to a file in memory.
//!
//! Where KVM runs no kernels, this program starts the lab once with instruction counting and runs itself again inside; the
//! figures are instructions then, else times. `FIRECRACKER=PATH` names a Firecracker to compare with. `RUNS=N`: runs of each.

// What fails here has no other reader than the one who started it.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod guest;
#[path = "../harness/newc.rs"]
mod newc;
mod subject;
#[path = "../harness/world.rs"]
mod world;

use std::path::Path;
use std::process::ExitCode;

use amphi::bench::quantile;

use subject::Figures;

/// Runs of each subject that count, where the environment does not say.
const RUNS: usize = 5;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        guest::run();
    }
    // `cargo test --benches` only wants to know that it starts.
    if std::env::args().any(|argument| argument == "--test") {
        return ExitCode::SUCCESS;
    }
    if world::must_move() {
        return world::run_in_lab();
    }
    let directory = tempfile::Builder::new().prefix("amphi-bench-").tempdir_in("/dev/shm").unwrap();
    let runs = std::env::var("RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(RUNS).max(1);
    match measure(directory.path(), runs) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(directory: &Path, runs: usize) -> Result<(), String> {
    let subjects = subject::all(directory)?;
    let mut measured = vec![Vec::new(); subjects.len()];
    for round in 1..=runs {
        world::progress(&format!("requests to a disk: round {round} of {runs}"));
        for (subject, measured) in subjects.iter().zip(&mut measured) {
            measured.push(subject.measure()?);
        }
    }
    println!(
        "\n{runs} runs of each, interleaved. A request: minimum / median of the runs, and (median : peer's median);\n{}.\n",
        world::unit()
    );
    let peers: Vec<_> = subjects.iter().zip(&measured).filter(|(subject, _)| subject.is_peer).collect();
    print!("{:<14}", "");
    subjects.iter().for_each(|subject| print!("{:>34}", subject.name));
    println!();
    for load in guest::LOADS {
        print!("{:<14}", load.to_string());
        for runs in &measured {
            let own = Cost::of(runs, load);
            let ratios: Vec<_> =
                peers.iter().map(|(_, runs)| format!("{:.2}", own.median / Cost::of(runs, load).median)).collect();
            let text = format!("{:.4} / {:.4} ({})", own.min, own.median, ratios.join(", "));
            print!("{text:>34}");
        }
        println!();
    }
    Ok(())
}

/// What a request of a load cost, in a million of what the clock counts.
struct Cost {
    min: f64,
    median: f64,
}

impl Cost {
    fn of(runs: &[Figures], load: guest::Load) -> Self {
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52 nanoseconds")]
        let mut values: Vec<f64> = runs.iter().map(|run| run[&load.to_string()] as f64 / 1e6).collect();
        values.sort_by(f64::total_cmp);
        Self { min: values[0], median: quantile(&values, 0.5) }
    }
}
