//! Where the bench runs: here, where KVM runs kernels, else in the lab, with instruction counting.

#![allow(dead_code, reason = "not every bench needs all of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Runs of each subject that count, where the environment does not say.
const RUNS: usize = 5;
/// Set in the lab, so that the program knows that it is there.
const IN_LAB: &str = "AMPHI_BENCH_IN_LAB";
/// How often a subject is tried in a lab of its own, because of what [`STOPS`] says.
const ATTEMPTS: usize = 4;
const STOPS: &str = "Guests in a counted machine stop for good now and then (docs/benchmarks.md); once more";
/// What `lab` says when its time is over.
const TIME_IS_OVER: i32 = 124;

pub(crate) fn in_lab() -> bool {
    std::env::var_os(IN_LAB).is_some()
}

/// The words of the command line: names, or parts of names, of the subjects to measure.
fn words() -> impl Iterator<Item = String> {
    std::env::args().skip(1).filter(|word| !word.starts_with('-'))
}

/// Whether the subject `name` is to be measured: all are where the command line names none.
pub(crate) fn wanted(name: &str) -> bool {
    let mut words = words().peekable();
    words.peek().is_none() || words.any(|word| name.contains(&word))
}

/// What a benchmark's program does: nothing under `cargo test --benches`, which only wants to know that it starts; elsewhere than
/// where kernels run, itself again in the lab; else `measure`, with a folder in memory and the number of runs that count.
pub(crate) fn run(measure: impl FnOnce(&Path, usize) -> Result<(), String>) -> ExitCode {
    if is_test() {
        return ExitCode::SUCCESS;
    }
    if must_move() {
        return run_in_lab(&COUNTED, &[]);
    }
    run_here(measure)
}

/// The same, here in any case.
pub(crate) fn run_here(measure: impl FnOnce(&Path, usize) -> Result<(), String>) -> ExitCode {
    match here(measure) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            progress(&error);
            ExitCode::FAILURE
        }
    }
}

/// The same for what can be measured here in part: `measure` runs here in any case, and where KVM runs no kernels once more in
/// the lab, without counting, with what it returns in the environment as `handed`.
pub(crate) fn run_here_and_in_lab(
    handed: &str,
    measure: impl FnOnce(&Path, usize) -> Result<String, String>,
) -> ExitCode {
    if is_test() {
        return ExitCode::SUCCESS;
    }
    let then = |directory: &Path, runs| {
        let value = measure(directory, runs)?;
        Ok(if must_move() { run_in_lab(&LARGE, &[format!("{handed}={value}")]) } else { ExitCode::SUCCESS })
    };
    here(then).unwrap_or_else(|error: String| {
        progress(&error);
        ExitCode::FAILURE
    })
}

fn here<T>(measure: impl FnOnce(&Path, usize) -> Result<T, String>) -> Result<T, String> {
    let directory = tempfile::Builder::new().prefix("amphi-bench-").tempdir_in("/dev/shm").unwrap();
    let runs = std::env::var("RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(RUNS).max(1);
    measure(directory.path(), runs)
}

/// Whether `cargo test --benches` runs this.
pub(crate) fn is_test() -> bool {
    std::env::args().any(|argument| argument == "--test")
}

/// Whether this is not the place to measure at.
pub(crate) fn must_move() -> bool {
    !in_lab() && !amphi::host::kvm::probe().is_usable()
}

pub(crate) fn progress(message: &str) {
    eprintln!("bench: {message}");
}

/// What a figure is, in words.
pub(crate) fn unit(counted: bool) -> &'static str {
    if counted {
        "million instructions, counted in the lab (1 instruction is 1 ns of its clock)"
    } else {
        "milliseconds"
    }
}

/// The QEMU to compare with: `QEMU=PATH`, else that of PATH.
pub(crate) fn qemu() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("QEMU").filter(|path| !path.is_empty()) {
        return Some(path.into());
    }
    let directories = std::env::var_os("PATH")?;
    std::env::split_paths(&directories).map(|directory| directory.join("qemu-system-x86_64")).find(|path| path.exists())
}

/// Runs this program again in the lab.
fn run_in_lab(lab: &Lab, environment: &[String]) -> ExitCode {
    progress(&format!("KVM runs no kernels here: measuring in the lab, in {}", lab.unit));
    for attempt in 1..=2 {
        match lab.command(environment, words()).and_then(|mut lab| Ok(lab.status()?.code())) {
            Ok(Some(TIME_IS_OVER)) if attempt == 1 => {
                progress(&format!(
                    "the lab did not get through in {} s. Counted machines stop for good now and then; once more",
                    lab.seconds
                ));
            }
            Ok(code) => return ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(125)),
            Err(error) => {
                progress(&format!("the lab does not start: {error}"));
                return ExitCode::from(125);
            }
        }
    }
    ExitCode::from(125)
}

/// What the program says that measures the subject `name` alone, in a lab of its own.
pub(crate) fn said_in_lab(name: &str) -> Result<String, String> {
    for _ in 0..ATTEMPTS {
        let lab = SINGLE.command(&[], std::iter::once(name.to_owned()));
        let output = lab.and_then(|mut lab| lab.stderr(Stdio::inherit()).output());
        let output = output.map_err(|error| format!("the lab does not start: {error}"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        if output.status.code() != Some(TIME_IS_OVER) {
            return Err(format!("{name}: the lab: {}", output.status));
        }
        progress(&format!("{name}: not through in {} s. {STOPS}", SINGLE.seconds));
    }
    Err(format!("{name}: not through in {ATTEMPTS} attempts"))
}

/// A kind of lab.
struct Lab {
    options: &'static [&'static str],
    seconds: &'static str,
    unit: &'static str,
}

/// A counted machine stops for good now and then; then there is one more try.
const COUNTED: Lab = Lab { options: &["--count"], seconds: "420", unit: "counted instructions" };
/// For one run of one subject.
const SINGLE: Lab = Lab { seconds: "300", ..COUNTED };
const LARGE: Lab = Lab { options: &["--memory", "8192"], seconds: "3600", unit: "emulated times" };

impl Lab {
    /// This program in such a lab, with `words`.
    fn command(&self, environment: &[String], words: impl Iterator<Item = String>) -> std::io::Result<Command> {
        let data = amphi::host::data_dir();
        // Root in the lab would look elsewhere for the kernels that another user has installed here.
        let data_home = format!("XDG_DATA_HOME={}", data.parent().unwrap_or(&data).display());
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "TERM", "--"])
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("resources/lab/lab"))
            .args(self.options)
            .args(["--timeout", self.seconds, "--env", &format!("{IN_LAB}=1"), "--env", &data_home])
            .args(["--env", "FIRECRACKER", "--env", "QEMU", "--env", "RUNS"])
            .args(environment.iter().flat_map(|variable| ["--env", variable]))
            .arg("--")
            .arg(std::env::current_exe()?)
            .args(words)
            .stdin(Stdio::null());
        Ok(command)
    }
}
