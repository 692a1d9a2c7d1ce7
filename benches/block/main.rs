//! What a disk's requests cost: 4 KiB at random places, one and 32 at a time, from a guest's direct I/O to a file in memory.
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

/// Runs of each subject that count, where the environment does not say.
const RUNS: usize = 3;

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
    let unit = world::unit();
    println!("\n{runs} runs of each, interleaved. A request of {} bytes, median of the runs: {unit}.\n", guest::BLOCK);
    print!("{:<24}", "");
    guest::LOADS.iter().for_each(|load| print!("{:>18}", load.to_string()));
    println!();
    let median = |runs: &Vec<std::collections::HashMap<String, u64>>, load: guest::Load| {
        let mut values: Vec<u64> = runs.iter().map(|run| run[&load.to_string()]).collect();
        values.sort_unstable();
        values[values.len() / 2]
    };
    let peer = subjects.iter().zip(&measured).find(|(subject, _)| subject.is_peer).map(|(_, runs)| runs);
    for (subject, runs) in subjects.iter().zip(&measured) {
        print!("{:<24}", subject.name);
        for load in guest::LOADS {
            #[allow(clippy::cast_precision_loss, reason = "far below 2^52 nanoseconds")]
            let millions = |nanoseconds: u64| nanoseconds as f64 / 1e6;
            let own = millions(median(runs, load));
            let ratio = peer.map_or(String::new(), |peer| format!(" ({:.2})", own / millions(median(peer, load))));
            print!("{:>18}", format!("{own:.4}{ratio}"));
        }
        println!();
    }
    Ok(())
}
