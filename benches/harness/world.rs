//! Where the bench runs: here, where KVM runs kernels, else in the lab, with instruction counting.

#![allow(dead_code, reason = "not every bench needs all of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Runs of each subject that count, where the environment does not say.
const RUNS: usize = 5;
/// Set in the lab, so that the program knows that it is there.
const IN_LAB: &str = "AMPHI_BENCH_IN_LAB";
/// What `lab` says when that time is over.
const TIME_IS_OVER: i32 = 124;

pub(crate) fn in_lab() -> bool {
    std::env::var_os(IN_LAB).is_some()
}

/// What a benchmark's program does: nothing under `cargo test --benches`, which only wants to know that it starts; elsewhere than
/// where kernels run, itself again in the lab; else `measure`, with a folder in memory and the number of runs that count.
pub(crate) fn run(measure: impl FnOnce(&Path, usize) -> Result<(), String>) -> ExitCode {
    if std::env::args().any(|argument| argument == "--test") {
        return ExitCode::SUCCESS;
    }
    if must_move() {
        return run_in_lab(&COUNTED, &[]);
    }
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
    if std::env::args().any(|argument| argument == "--test") {
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

/// Whether this is not the place to measure at.
fn must_move() -> bool {
    !in_lab() && !amphi::host::kvm::probe().is_usable()
}

pub(crate) fn progress(message: &str) {
    eprintln!("bench: {message}");
}

/// What a figure is, in words.
pub(crate) fn unit() -> &'static str {
    if in_lab() {
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
        match lab.start(environment) {
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

/// A kind of lab.
struct Lab {
    options: &'static [&'static str],
    seconds: &'static str,
    unit: &'static str,
}

/// A counted machine stops for good now and then; then there is one more try.
const COUNTED: Lab = Lab { options: &["--count"], seconds: "420", unit: "counted instructions" };
const LARGE: Lab = Lab { options: &["--memory", "8192"], seconds: "3600", unit: "emulated times" };

impl Lab {
    fn start(&self, environment: &[String]) -> std::io::Result<Option<i32>> {
        let data = amphi::host::data_dir();
        // Root in the lab would look elsewhere for the kernels that another user has installed here.
        let data_home = format!("XDG_DATA_HOME={}", data.parent().unwrap_or(&data).display());
        let status = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "--"])
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("resources/lab/lab"))
            .args(self.options)
            .args(["--timeout", self.seconds, "--env", &format!("{IN_LAB}=1"), "--env", &data_home])
            .args(["--env", "FIRECRACKER", "--env", "QEMU", "--env", "RUNS"])
            .args(environment.iter().flat_map(|variable| ["--env", variable]))
            .arg("--")
            .arg(std::env::current_exe()?)
            .stdin(Stdio::null())
            .status()?;
        Ok(status.code())
    }
}
