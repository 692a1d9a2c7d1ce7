//! From stamps to durations.

use serde::Serialize;

use super::runner::Stamps;
use super::statistics::{Ratio, Summary, ratio_of_medians};
use crate::isolation::{Instant, IsolationKind};

/// A stretch between two instants of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// From right before the process is made until its `main` begins.
    Exec,
    /// Until the VM, or the container's child process, exists.
    Create,
    /// Until the guest's, or the child's, first instruction.
    FirstInstruction,
    /// Until PID 1 is ready to execute the workload.
    Init,
    /// Until the workload's first byte reaches whoever reads amphi's output.
    FirstByte,
    /// Until amphi knows the workload's exit status.
    Exit,
    /// Until amphi's process is gone, and all that it made with it.
    CleanUp,
    /// All of them.
    Total,
}

impl Phase {
    /// All phases in order, the total last.
    pub const ALL: [Self; 8] = [
        Self::Exec,
        Self::Create,
        Self::FirstInstruction,
        Self::Init,
        Self::FirstByte,
        Self::Exit,
        Self::CleanUp,
        Self::Total,
    ];

    /// The phase for people: what its end is.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Exec => "process start -> main",
            Self::Create => "-> VM | child process made",
            Self::FirstInstruction => "-> first instruction",
            Self::Init => "-> init ready",
            Self::FirstByte => "-> workload's first byte",
            Self::Exit => "-> exit known",
            Self::CleanUp => "-> all cleaned up",
            Self::Total => "total",
        }
    }

    /// The phase's duration in nanoseconds; `None` where the run did not reach one of its ends.
    ///
    /// Stamps of different threads may arrive out of order by microseconds: an instant earlier than the one before
    /// counts as equal to it, so that the phases add up to the total.
    fn of(self, stamps: &Stamps) -> Option<f64> {
        let instants = [
            Some(stamps.spawned),
            Some(stamps.report.process_start),
            stamps.report.timeline.created,
            stamps.report.timeline.first_instruction,
            stamps.report.timeline.init_ready,
            stamps.first_byte,
            stamps.report.timeline.exited,
            Some(stamps.gone),
        ];
        let latest_until = |index: usize| instants[..=index].iter().flatten().max().copied();
        let end = match self {
            Self::Total => return Some(nanoseconds(stamps.spawned, stamps.gone)),
            phase => phase as usize + 1,
        };
        instants[end]?;
        instants[end - 1]?;
        Some(nanoseconds(latest_until(end - 1)?, latest_until(end)?))
    }
}

#[expect(clippy::cast_precision_loss, reason = "a duration below 2^53 ns, which are 104 days")]
fn nanoseconds(from: Instant, to: Instant) -> f64 {
    to.0.saturating_sub(from.0) as f64
}

/// Start-up times of the measured isolations.
#[derive(Debug, Clone, Serialize)]
pub struct Startup {
    /// One row a phase, in order.
    pub rows: Vec<StartupRow>,
}

/// One phase in all isolations, in nanoseconds.
#[derive(Debug, Clone, Serialize)]
pub struct StartupRow {
    /// Which phase.
    pub phase: Phase,
    /// In microVMs, where these were measured and reached it.
    pub vm: Option<Summary>,
    /// In containers, where these were measured and reached it.
    pub container: Option<Summary>,
    /// The microVMs' median over the containers'.
    pub ratio: Option<Ratio>,
    /// Every measured value of microVMs, in the order of the runs.
    pub vm_samples: Vec<f64>,
    /// Every measured value of containers, in the order of the runs.
    pub container_samples: Vec<f64>,
}

impl Startup {
    pub(super) fn from_samples(samples: &[(IsolationKind, Stamps)]) -> Self {
        let values = |wanted: IsolationKind, phase: Phase| -> Vec<f64> {
            let of_kind = samples.iter().filter(|(kind, _)| *kind == wanted);
            of_kind.filter_map(|(_, stamps)| phase.of(stamps)).collect()
        };
        let row = |phase| {
            let (vm, container) = (values(IsolationKind::Vm, phase), values(IsolationKind::Container, phase));
            StartupRow {
                phase,
                vm: Summary::of(&vm),
                container: Summary::of(&container),
                ratio: ratio_of_medians(&vm, &container),
                vm_samples: vm,
                container_samples: container,
            }
        };
        Self { rows: Phase::ALL.map(row).to_vec() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::RunReport;
    use super::*;
    use crate::isolation::Timeline;

    fn stamps(first_byte: Option<u64>) -> Stamps {
        let timeline = Timeline {
            created: Some(Instant(130)),
            first_instruction: Some(Instant(140)),
            init_ready: Some(Instant(160)),
            first_byte: None,
            exited: Some(Instant(200)),
            cleaned: Some(Instant(230)),
        };
        Stamps {
            spawned: Instant(100),
            first_byte: first_byte.map(Instant),
            gone: Instant(250),
            report: RunReport { process_start: Instant(110), timeline },
        }
    }

    #[test]
    fn phases_lie_between_neighbouring_stamps() {
        let durations = Phase::ALL.map(|phase| phase.of(&stamps(Some(170))));
        assert_eq!(durations, [10.0, 20.0, 10.0, 20.0, 10.0, 30.0, 50.0, 150.0].map(Some));
    }

    #[test]
    fn stamps_out_of_order_keep_the_sum() {
        // The byte is seen after the exit is known.
        let durations = Phase::ALL.map(|phase| phase.of(&stamps(Some(210))));
        assert_eq!(durations, [10.0, 20.0, 10.0, 20.0, 50.0, 0.0, 40.0, 150.0].map(Some));
    }

    #[test]
    fn a_silent_workload_has_no_first_byte() {
        let durations = Phase::ALL.map(|phase| phase.of(&stamps(None)));
        assert_eq!(durations[4..], [None, None, Some(50.0), Some(150.0)]);
    }
}
