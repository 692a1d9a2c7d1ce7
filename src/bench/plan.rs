//! What to measure, and in which order.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::Step;
use crate::isolation::IsolationKind;
use crate::spec::MemorySize;

/// One subject of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Row {
    /// Times from process start to the end of everything.
    Startup,
    /// Memory of an instance whose workload sleeps.
    Memory,
}

/// The text names no row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a row: use startup or memory")]
pub struct ParseRowError(String);

impl FromStr for Row {
    type Err = ParseRowError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "startup" => Ok(Self::Startup),
            "memory" => Ok(Self::Memory),
            _ => Err(ParseRowError(text.to_owned())),
        }
    }
}

/// What to measure.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The `amphi` program to measure.
    pub program: PathBuf,
    /// Options of `amphi` itself, before the command.
    #[serde(serialize_with = "lossy")]
    pub global_args: Vec<OsString>,
    /// The image to run.
    pub image: String,
    /// The command to time; empty takes the image's own.
    #[serde(serialize_with = "lossy")]
    pub command: Vec<OsString>,
    /// Which isolations to measure, in this order within each round.
    #[serde(serialize_with = "kinds")]
    pub isolations: Vec<IsolationKind>,
    /// What to measure.
    pub rows: Vec<Row>,
    /// Counted runs of each isolation.
    pub runs: u32,
    /// Runs of each isolation before those.
    pub warmup: u32,
    /// Guest RAM, and the container's limit.
    #[serde(serialize_with = "bytes")]
    pub memory: MemorySize,
    /// vCPUs, and the container's limit.
    pub cpus: u16,
    /// The guest's kernel; `None` takes the best one installed.
    pub kernel: Option<PathBuf>,
    /// Added to the guest kernel's command line.
    pub kernel_args: Vec<String>,
    /// How long a single run may take.
    #[serde(skip)]
    pub patience: Duration,
}

impl Plan {
    /// All steps in order: rounds of one run of each isolation, so that neither has the quieter half of the time.
    #[must_use]
    pub(super) fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let each = |step: fn(IsolationKind) -> Step| self.isolations.iter().copied().map(step);
        if self.rows.contains(&Row::Startup) {
            for _ in 0..self.warmup {
                steps.extend(each(Step::WarmUp));
            }
            for _ in 0..self.runs {
                steps.extend(each(Step::Run));
            }
        }
        if self.rows.contains(&Row::Memory) {
            steps.extend(each(Step::Memory));
        }
        steps
    }

    /// The arguments of the `amphi run` that is measured: the plan's, and `options`.
    pub(super) fn run_args(&self, kind: IsolationKind, options: &[OsString], command: &[OsString]) -> Vec<OsString> {
        let mut args = self.global_args.clone();
        args.extend(["run", "--rm", "--isolation"].map(OsString::from));
        args.push(kind.to_string().into());
        let memory = format!("{}b", self.memory.bytes());
        args.extend(["--cpus".into(), self.cpus.to_string().into(), "--memory".into(), memory.into()]);
        args.extend(options.iter().cloned());
        if kind == IsolationKind::Vm {
            if let Some(kernel) = &self.kernel {
                args.extend(["--kernel".into(), kernel.clone().into_os_string()]);
            }
            for argument in &self.kernel_args {
                args.extend(["--kernel-arg".into(), argument.into()]);
            }
        }
        args.extend([OsString::from(&self.image), "--".into()]);
        args.extend(command.iter().cloned());
        args
    }
}

fn lossy<S: Serializer>(texts: &[OsString], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(texts.iter().map(|text| text.to_string_lossy()))
}

fn kinds<S: Serializer>(kinds: &[IsolationKind], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(kinds.iter().map(ToString::to_string))
}

fn bytes<S: Serializer>(size: &MemorySize, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(size.bytes())
}

/// A plan for tests of this crate.
#[cfg(test)]
pub(super) fn example() -> Plan {
    Plan {
        program: "/amphi".into(),
        global_args: vec!["--root".into(), "/r".into()],
        image: "builtin".into(),
        command: vec!["/bin/true".into(), "-x".into()],
        isolations: IsolationKind::ALL.to_vec(),
        rows: vec![Row::Startup, Row::Memory],
        runs: 2,
        warmup: 1,
        memory: MemorySize::from_mib(128),
        cpus: 1,
        kernel: Some("/k".into()),
        kernel_args: Vec::new(),
        patience: Duration::from_secs(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use IsolationKind::{Container, Vm};

    #[test]
    fn isolations_alternate_after_the_warm_up() {
        let steps = [
            Step::WarmUp(Vm),
            Step::WarmUp(Container),
            Step::Run(Vm),
            Step::Run(Container),
            Step::Run(Vm),
            Step::Run(Container),
            Step::Memory(Vm),
            Step::Memory(Container),
        ];
        assert_eq!(example().steps(), steps);
    }

    #[test]
    fn only_the_rows_asked_for_are_measured() {
        let plan = Plan { rows: vec![Row::Memory], isolations: vec![Container], ..example() };
        assert_eq!(plan.steps(), [Step::Memory(Container)]);
    }

    #[test]
    fn only_vms_are_given_a_kernel() {
        let plan = example();
        let line = |kind| plan.run_args(kind, &["-i".into()], &plan.command).join(" ".as_ref());
        assert_eq!(
            line(Vm),
            "--root /r run --rm --isolation vm --cpus 1 --memory 134217728b -i --kernel /k builtin -- \
             /bin/true -x"
        );
        assert!(!line(Container).to_string_lossy().contains("--kernel"));
    }
}
