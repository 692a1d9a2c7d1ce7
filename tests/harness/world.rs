//! Where the cases run.
//!
//! - KVM runs kernels here: all of them, here.
//! - Elsewhere: cases without a microVM run here, on this host's cgroups; then labs are started ([`super::labs`]), in which
//!   this very program runs once more with the same filter: the microVMs, and the containers again, on pure cgroup v2.

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::Arguments;

use super::case::{self, Case, Isolation};
use super::labs::{self, Share};
use super::{installed, rootfs};

/// How much longer things take than on a real machine: the lab's guests run on an emulated processor.
pub(crate) fn patience() -> u32 {
    if labs::inside() { 8 } else { 1 }
}

/// `seconds` of a real machine.
pub(crate) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds) * patience()
}

/// Waits until `condition` holds, or fails after `limit`; `what` says for what it waits.
#[track_caller]
pub(crate) fn until(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Runs `cases` where they belong and returns the status for `cargo test`.
pub(crate) fn run(cases: Vec<Case>) -> ExitCode {
    let args = Arguments::from_args();
    if let Some(share) = Share::of_this_lab() {
        return here(&args, share.of(selected(&args, cases)), None);
    }
    if args.list || amphi::host::kvm::probe().is_usable() {
        if !args.list && any(&args, &cases, Isolation::Vm) {
            installed::prepare();
        }
        return here(&args, cases, None);
    }
    let for_labs = cases.iter().filter(|case| case.isolation().is_some() && is_selected(&args, case)).count();
    let missing = labs::missing();
    if for_labs > 0 && missing.is_none() {
        let cases = cases.into_iter().filter(|case| case.isolation() != Some(Isolation::Vm)).collect();
        println!("\nKVM runs no kernels on this machine: without microVMs here first, then all in labs");
        let first = here(&args, cases, None);
        installed::prepare();
        let second = labs::run(for_labs);
        return if first == ExitCode::SUCCESS { second } else { first };
    }
    here(&args, cases, missing)
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

/// Those of `cases` that need an isolation and that the command line leaves in.
fn selected(args: &Arguments, cases: Vec<Case>) -> Vec<Case> {
    cases.into_iter().filter(|case| case.isolation().is_some() && is_selected(args, case)).collect()
}

/// Whether the command line leaves a case of that isolation in.
fn any(args: &Arguments, cases: &[Case], isolation: Isolation) -> bool {
    cases.iter().any(|case| case.isolation() == Some(isolation) && is_selected(args, case))
}

/// Whether the command line leaves that case in.
fn is_selected(args: &Arguments, case: &Case) -> bool {
    let matches = |filter: &String| {
        if args.exact { case.name() == filter } else { case.name().contains(filter.as_str()) }
    };
    let asked_for = if case.is_on_request() { args.ignored || args.include_ignored } else { !args.ignored };
    asked_for && args.filter.as_ref().is_none_or(matches) && !args.skip.iter().any(matches)
}
