//! Where the bench runs: here, where KVM runs kernels, else in the lab, with instruction counting.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Runs of each subject that count, where the environment does not say.
const RUNS: usize = 5;
/// Set in the lab, so that the program knows that it is there.
const IN_LAB: &str = "AMPHI_BENCH_IN_LAB";
/// For everything in the lab. A counted machine stops for good now and then; then there is one more try.
const LAB_SECONDS: &str = "420";
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
        return run_in_lab();
    }
    let directory = tempfile::Builder::new().prefix("amphi-bench-").tempdir_in("/dev/shm").unwrap();
    let runs = std::env::var("RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(RUNS).max(1);
    match measure(directory.path(), runs) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            progress(&error);
            ExitCode::FAILURE
        }
    }
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
#[allow(dead_code, reason = "not every bench compares with it")]
pub(crate) fn qemu() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("QEMU").filter(|path| !path.is_empty()) {
        return Some(path.into());
    }
    let directories = std::env::var_os("PATH")?;
    std::env::split_paths(&directories).map(|directory| directory.join("qemu-system-x86_64")).find(|path| path.exists())
}

/// Runs this program again in the lab.
fn run_in_lab() -> ExitCode {
    progress("KVM runs no kernels here: measuring in the lab, in counted instructions");
    for attempt in 1..=2 {
        match lab() {
            Ok(Some(TIME_IS_OVER)) if attempt == 1 => {
                progress(&format!(
                    "the lab did not get through in {LAB_SECONDS} s. Counted machines stop for good now and then; once more"
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

fn lab() -> std::io::Result<Option<i32>> {
    let data = amphi::host::data_dir();
    // Root in the lab would look elsewhere for the kernels that another user has installed here.
    let data_home = format!("XDG_DATA_HOME={}", data.parent().unwrap_or(&data).display());
    let status = Command::new("setpriv")
        .args(["--pdeathsig", "TERM", "--"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("resources/lab/lab"))
        .args(["--count", "--timeout", LAB_SECONDS, "--env", &format!("{IN_LAB}=1"), "--env", &data_home])
        .args(["--env", "FIRECRACKER", "--env", "QEMU", "--env", "RUNS", "--"])
        .arg(std::env::current_exe()?)
        .stdin(Stdio::null())
        .status()?;
    Ok(status.code())
}
