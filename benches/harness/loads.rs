//! Loads that a guest times itself, on several VMMs: each runs the same guest, which reports on its console.

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use amphi::bench::quantile;

use crate::world::{self, progress};

/// Nanoseconds an operation, by the name of the load.
type Figures = HashMap<String, u64>;

/// One VMM with one way of doing I/O.
pub(crate) struct Subject {
    pub(crate) name: String,
    /// Whether all figures are also given in relation to this one's.
    pub(crate) is_peer: bool,
    pub(crate) command: Vec<String>,
    /// The loads that its guest reports.
    pub(crate) loads: Vec<String>,
}

impl Subject {
    /// Runs the guest, whose lines begin with `mark`, then the load, then the nanoseconds an operation.
    fn measure(&self, mark: &str) -> Result<Figures, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", self.name);
        let output = Command::new(&self.command[0])
            .args(&self.command[1..])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .output()
            .map_err(failed)?;
        let said = String::from_utf8_lossy(&output.stdout);
        let figures = read(&said, mark);
        if self.loads.iter().all(|load| figures.contains_key(load)) {
            return Ok(figures);
        }
        Err(format!("{}: {}: {said}{}", self.name, output.status, String::from_utf8_lossy(&output.stderr)))
    }
}

/// The figures in what was said: lines with `mark`, then the load, then the nanoseconds an operation.
fn read(said: &str, mark: &str) -> Figures {
    let figures = said.lines().filter_map(|line| {
        let mut words = line[line.find(mark)?..].split_ascii_whitespace().skip(1);
        Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
    });
    figures.collect()
}

/// A benchmark of loads.
pub(crate) struct Benchmark {
    /// What it is about.
    pub(crate) what: &'static str,
    /// What the guest's lines begin with.
    pub(crate) mark: &'static str,
    /// The loads, each with a line of the table.
    pub(crate) loads: Vec<String>,
    /// What the subjects need to run, where they are to.
    pub(crate) prepare: fn(&Path) -> Result<(), String>,
    /// All that can be measured, with everything that it needs below a folder.
    pub(crate) subjects: fn(&Path) -> Result<Vec<Subject>, String>,
}

impl Benchmark {
    /// What the benchmark's program does. Where KVM runs no kernels each run of each subject gets a lab of its own: when one stops, the
    /// others' figures are not lost.
    pub(crate) fn run(&self) -> ExitCode {
        if world::is_test() {
            return ExitCode::SUCCESS;
        }
        let apart = world::must_move();
        world::run_here(|directory, runs| {
            if !apart {
                (self.prepare)(directory)?;
            }
            let mut subjects = (self.subjects)(directory)?;
            subjects.retain(|subject| world::wanted(&subject.name));
            if !world::in_lab() {
                return self.compare(&subjects, runs, apart);
            }
            for subject in &subjects {
                for (load, cost) in subject.measure(self.mark)? {
                    println!("{} {load} {cost}", self.mark);
                }
            }
            Ok(())
        })
    }

    /// Runs all of `subjects` in turn, `runs` times, and prints a table of the loads.
    fn compare(&self, subjects: &[Subject], runs: usize, apart: bool) -> Result<(), String> {
        let Self { what, mark, loads, .. } = self;
        let mut measured = vec![Vec::new(); subjects.len()];
        for round in 1..=runs {
            progress(&format!("{what}: round {round} of {runs}"));
            for (subject, measured) in subjects.iter().zip(&mut measured) {
                let begin = std::time::Instant::now();
                measured.push(if apart {
                    read(&world::said_in_lab(&subject.name)?, mark)
                } else {
                    subject.measure(mark)?
                });
                progress(&format!("{}: {:.1} s", subject.name, begin.elapsed().as_secs_f64()));
            }
        }
        println!(
            "\n{what}. {runs} runs of each, interleaved: minimum / median of the runs, and (median : peer's median);\n{}.\n",
            world::unit(apart)
        );
        let peers: Vec<_> = subjects.iter().zip(&measured).filter(|(subject, _)| subject.is_peer).collect();
        print!("{:<16}", "");
        subjects.iter().for_each(|subject| print!("{:>34}", subject.name));
        println!();
        for load in loads {
            print!("{load:<16}");
            for runs in &measured {
                let Some(own) = Cost::of(runs, load) else {
                    print!("{:>34}", "-");
                    continue;
                };
                let peers = peers.iter().filter_map(|(_, runs)| Cost::of(runs, load));
                let ratios: Vec<_> = peers.map(|peer| format!("{:.2}", own.median / peer.median)).collect();
                let text = format!("{:.4} / {:.4} ({})", own.min, own.median, ratios.join(", "));
                print!("{text:>34}");
            }
            println!();
        }
        Ok(())
    }
}

/// What an operation of a load cost, in a million of what the clock counts.
struct Cost {
    min: f64,
    median: f64,
}

impl Cost {
    fn of(runs: &[Figures], load: &str) -> Option<Self> {
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52 nanoseconds")]
        let mut values = runs.iter().map(|run| Some(*run.get(load)? as f64 / 1e6)).collect::<Option<Vec<f64>>>()?;
        values.sort_by(f64::total_cmp);
        Some(Self { min: *values.first()?, median: quantile(&values, 0.5) })
    }
}
