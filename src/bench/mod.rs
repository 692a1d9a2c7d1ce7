//! Measuring both isolations side by side.
//!
//! Every measured run is a fresh `amphi run` process, so that the figures hold what a user waits for. Runs of both
//! isolations alternate, so that whatever changes on the host meanwhile meets both alike.

mod environment;
mod memory;
mod phases;
mod plan;
pub mod report;
mod runner;
mod statistics;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use environment::Environment;
pub use memory::MemoryCost;
pub use phases::{Phase, Startup, StartupRow};
pub use plan::{ParseRowError, Plan, Row};
pub use statistics::{Interval, Ratio, Summary, quantile, ratio_of_medians};

use crate::isolation::{Instant, IsolationKind, Timeline};

/// What `amphi run --timeline-fd` writes when it is through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunReport {
    /// The first instant in `main`.
    pub process_start: Instant,
    /// What the isolation recorded.
    #[serde(flatten)]
    pub timeline: Timeline,
}

/// Everything that was measured, and where.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// The version of this structure: changes when a field changes its meaning or goes away.
    pub schema: u32,
    /// Where it was measured.
    pub environment: Environment,
    /// What was measured.
    pub plan: Plan,
    /// Times from process start to the end of everything.
    pub startup: Option<Startup>,
    /// What an instance costs while its workload sleeps.
    pub memory: Vec<MemoryCost>,
}

/// How far a comparison is; for progress messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Steps taken.
    pub done: u32,
    /// Steps in all.
    pub total: u32,
    /// The step that begins now.
    pub step: Step,
}

/// One step of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A run whose times are thrown away.
    WarmUp(IsolationKind),
    /// A run whose times count.
    Run(IsolationKind),
    /// A run whose memory is measured.
    Memory(IsolationKind),
    /// All steps are taken.
    Done,
}

/// Why a comparison could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The measured process could not be started.
    #[error("cannot start {program}", program = program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// Watching a measured process failed.
    #[error("cannot {action} of a {isolation} run")]
    Watch {
        /// What was attempted.
        action: &'static str,
        /// Which isolation was running.
        isolation: IsolationKind,
        /// What the operating system says.
        source: io::Error,
    },
    /// A measured run failed, so that its times mean nothing.
    #[error("a {isolation} run ended with {status}{}{message}", if message.is_empty() { "" } else { ": " })]
    RunFailed {
        /// Which isolation was running.
        isolation: IsolationKind,
        /// How the process ended.
        status: String,
        /// What it said on standard error.
        message: String,
    },
    /// A measured run took too long and was ended.
    #[error("a {isolation} run did not end within {seconds} seconds")]
    TimedOut {
        /// Which isolation was running.
        isolation: IsolationKind,
        /// How long it was given.
        seconds: u64,
    },
    /// A measured run did not report its times.
    #[error("a {isolation} run gave no usable timeline")]
    NoTimeline {
        /// Which isolation was running.
        isolation: IsolationKind,
        /// What is wrong with what it wrote.
        source: serde_json::Error,
    },
    /// The workload of the memory measurement wrote nothing or ended, so that there was no sleeping process to look at.
    #[error("the workload of the {isolation} memory measurement was not there to be measured: {message}")]
    NotAsleep {
        /// Which isolation was running.
        isolation: IsolationKind,
        /// What it said on standard error, or what went wrong.
        message: String,
    },
}

/// Carries out `plan`, reporting each step to `progress` as it begins.
///
/// # Errors
/// A run failed; what was measured until then is dropped.
pub fn compare(plan: &Plan, progress: &mut dyn FnMut(Progress)) -> Result<Comparison, BenchError> {
    let environment = Environment::detect(plan);
    let steps = plan.steps();
    let total = u32::try_from(steps.len()).unwrap_or(u32::MAX);
    let mut samples = Vec::new();
    let mut memory = Vec::new();
    for (done, &step) in (0..).zip(&steps) {
        progress(Progress { done, total, step });
        match step {
            Step::WarmUp(kind) => {
                runner::run(plan, kind)?;
            }
            Step::Run(kind) => samples.push((kind, runner::run(plan, kind)?)),
            Step::Memory(kind) => memory.push(memory::measure(plan, kind)?),
            Step::Done => {}
        }
    }
    progress(Progress { done: total, total, step: Step::Done });
    let startup = (!samples.is_empty()).then(|| Startup::from_samples(&samples));
    Ok(Comparison { schema: 1, environment, plan: plan.clone(), startup, memory })
}
