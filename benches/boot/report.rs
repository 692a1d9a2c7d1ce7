//! The tables.

use std::fmt;

use amphi::bench::quantile;

use crate::memory::Footprint;
use crate::subject::{Measured, Subject};

/// Minimum and median of a stage, in nanoseconds.
#[derive(Clone, Copy)]
struct Stage {
    min: f64,
    median: f64,
}

impl Stage {
    fn of(runs: &[Measured], stage: impl Fn(&Measured) -> Option<u64>) -> Option<Self> {
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52 nanoseconds")]
        let mut values: Vec<f64> = runs.iter().filter_map(stage).map(|value| value as f64).collect();
        values.sort_by(f64::total_cmp);
        Some(Self { min: *values.first()?, median: quantile(&values, 0.5) })
    }
}

struct Row {
    name: &'static str,
    stages: [Option<Stage>; 4],
    ratio: Option<f64>,
}

/// A line for each subject: minimum and median to each stage, and the relation of the medians.
pub(crate) struct Table {
    rows: Vec<Row>,
    has_peer: bool,
}

impl Table {
    pub(crate) fn new(subjects: &[Subject], measured: &[Vec<Measured>]) -> Self {
        let exit = |runs: &[Measured]| Stage::of(runs, |run| Some(run.exit));
        let peer = subjects.iter().zip(measured).find(|(subject, _)| subject.is_peer).and_then(|(_, runs)| exit(runs));
        let rows = subjects.iter().zip(measured).map(|(subject, runs)| {
            let stages = [
                Stage::of(runs, |run| run.first_instruction),
                Stage::of(runs, |run| run.init),
                exit(runs),
                Stage::of(runs, |run| Some(run.gone)),
            ];
            let ratio = stages[2].zip(peer).map(|(own, peer)| own.median / peer.median);
            Row { name: subject.name, stages, ratio }
        });
        Self { rows: rows.collect(), has_peer: peer.is_some() }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ratio = if self.has_peer { "x Firecracker" } else { "" };
        writeln!(f, "{:<42}{:>18}{:>18}{:>18}{:>18}{ratio:>15}", "", "1st instruction", "PID 1", "exit", "VM gone")?;
        for Row { name, stages, ratio } in &self.rows {
            write!(f, "{name:<42}")?;
            for stage in stages {
                let text = stage.map_or("-".to_owned(), |s| format!("{:.1} / {:.1}", s.min / 1e6, s.median / 1e6));
                write!(f, "{text:>18}")?;
            }
            writeln!(f, "{:>15}", ratio.map_or(String::new(), |ratio| format!("{ratio:.2}")))?;
        }
        Ok(())
    }
}

/// What a VMM holds beside the guest's RAM.
pub(crate) fn memory(footprints: &[(&'static str, Footprint)]) -> String {
    let mut text =
        format!("\n{:<42}{:>18}{:>18}\n", "memory, 1 vCPU, 128 MiB, asleep (MiB)", "VMM", "guest RAM touched");
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52 KiB")]
    for (name, footprint) in footprints {
        let (vmm, guest) = (footprint.vmm as f64 / 1024.0, footprint.guest as f64 / 1024.0);
        text += &format!("{name:<42}{vmm:>18.2}{guest:>18.1}\n");
    }
    text
}
