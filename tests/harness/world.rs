//! Where the cases run.
//!
//! - KVM runs kernels here: all of them, here.
//! - Elsewhere: cases without a microVM run here, on this host's cgroups; then one lab is started, in which this very
//!   program runs once more with the same filter: the microVMs, and the containers again, on the lab's pure cgroup v2.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use libtest_mimic::Arguments;

use super::case::{self, Case, Isolation};
use super::{emulator, installed, rootfs};

/// Set in the lab, so that the program knows that it is there.
const IN_LAB: &str = "AMPHI_TEST_IN_LAB";
/// Memory of the lab's machine: two guests at a time, the largest of 4 GiB of which it touches little.
const LAB_MEMORY_MIB: &str = "6144";
/// For the whole suite in the lab.
const LAB_SECONDS: &str = "1800";

/// How much longer things take than on a real machine: the lab's guests run on an emulated processor.
pub(crate) fn patience() -> u32 {
    if in_lab() { 4 } else { 1 }
}

/// `seconds` of a real machine.
pub(crate) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds) * patience()
}

fn in_lab() -> bool {
    std::env::var_os(IN_LAB).is_some()
}

/// Runs `cases` where they belong and returns the status for `cargo test`.
pub(crate) fn run(cases: Vec<Case>) -> ExitCode {
    let args = Arguments::from_args();
    if args.list || in_lab() || amphi::host::kvm::probe().is_usable() {
        if !args.list && !in_lab() && selected(&args, &cases, Isolation::Vm) {
            installed::prepare();
        }
        let cases = cases.into_iter().filter(|case| !in_lab() || case.isolation().is_some());
        return here(&args, cases.collect(), None);
    }
    let in_lab_too = selected(&args, &cases, Isolation::Vm) || selected(&args, &cases, Isolation::Container);
    let lab_lacks = lab_lacks();
    if in_lab_too && lab_lacks.is_none() {
        let cases = cases.into_iter().filter(|case| case.isolation() != Some(Isolation::Vm)).collect();
        println!("\nKVM runs no kernels on this machine: without microVMs here first, then all in the lab");
        let first = here(&args, cases, None);
        installed::prepare();
        let second = lab();
        return if first == ExitCode::SUCCESS { second } else { first };
    }
    here(&args, cases, lab_lacks)
}

/// Runs `cases` in this process, those about microVMs only where nothing is `missing` for them.
fn here(args: &Arguments, cases: Vec<Case>, missing: Option<String>) -> ExitCode {
    let privileged = rustix::process::geteuid().is_root();
    let trials = cases.into_iter().map(|case| {
        let missing = match case.isolation() {
            Some(Isolation::Vm) => missing.clone(),
            Some(Isolation::Container) if !privileged => Some("it takes root".to_owned()),
            _ => None,
        };
        case.into_trial(missing)
    });
    case::report_panics_once();
    let conclusion = libtest_mimic::run(args, trials.collect());
    rootfs::remove();
    conclusion.exit_code()
}

/// Whether the command line leaves a case of that isolation in.
fn selected(args: &Arguments, cases: &[Case], isolation: Isolation) -> bool {
    let matches =
        |filter: &String, name: &str| if args.exact { name == filter } else { name.contains(filter.as_str()) };
    cases.iter().filter(|case| case.isolation() == Some(isolation)).any(|case| {
        args.filter.as_ref().is_none_or(|filter| matches(filter, case.name()))
            && !args.skip.iter().any(|skip| matches(skip, case.name()))
    })
}

/// What keeps the lab from starting.
fn lab_lacks() -> Option<String> {
    let prepared = Command::new(script()).arg("--prepare").stdin(Stdio::null()).stdout(Stdio::null()).output();
    match prepared {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "KVM runs no kernels here, and there is no lab: {}",
            String::from_utf8_lossy(&output.stderr).trim_end()
        )),
        Err(error) => Some(format!("KVM runs no kernels here, and {} does not start: {error}", script().display())),
    }
}

fn script() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/resources/lab/lab"))
}

/// Runs this program again in the lab and returns its status. Failures that may be the emulator's are tried again.
fn lab() -> ExitCode {
    println!("\nin the lab:");
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let folder = match tempfile::tempdir() {
        Ok(folder) => folder,
        Err(error) => {
            eprintln!("error: a temporary folder: {error}");
            return ExitCode::FAILURE;
        }
    };
    let first = lab_with(&arguments, folder.path());
    let repeated = emulator::to_repeat(&folder.path().join("failures"));
    if first == ExitCode::SUCCESS || repeated.is_empty() {
        return first;
    }
    for name in &repeated {
        println!(
            "\nREPEATED: {name} failed as it does when the emulator loses a guest's state; once more in a fresh lab:"
        );
        let again = lab_with(&["--exact".into(), name.into(), "--include-ignored".into()], folder.path());
        if again != ExitCode::SUCCESS {
            return again;
        }
    }
    println!("\nREPEATED, and passed the second time: {}", repeated.join(", "));
    ExitCode::SUCCESS
}

/// Runs this program in a lab, with `arguments`; it notes failures in `folder`.
fn lab_with(arguments: &[OsString], folder: &Path) -> ExitCode {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => {
            eprintln!("error: this program's own path: {error}");
            return ExitCode::FAILURE;
        }
    };
    // Root in the lab would look elsewhere for the kernels that another user has installed here.
    let data = amphi::host::data_dir();
    let data_home = format!("XDG_DATA_HOME={}", data.parent().unwrap_or(&data).display());
    // Killed in whatever way, this process takes the lab with it.
    let status = Command::new("setpriv")
        .args(["--pdeathsig", "TERM", "--"])
        .arg(script())
        .args(["--memory", LAB_MEMORY_MIB, "--timeout", LAB_SECONDS, "--env", &format!("{IN_LAB}=1")])
        .args(["--env", "CI", "--env", "RUST_BACKTRACE", "--env", &data_home])
        .args(["--env", &format!("{}={}", emulator::NOTES, folder.join("failures").display())])
        .arg("--writable")
        .args([folder.as_os_str(), "--".as_ref()])
        .arg(program)
        .args(arguments)
        .stdin(Stdio::null())
        .status();
    match status {
        Ok(status) => ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(125)),
        Err(error) => {
            eprintln!("error: {} does not start: {error}", script().display());
            ExitCode::FAILURE
        }
    }
}
