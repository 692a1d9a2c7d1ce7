//! The suite in the lab, for machines whose KVM runs no kernels.
//!
//! A lab has one processor (see resources/lab), so several run side by side, each with its share of the cases.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;

use super::case::{Case, Isolation};

/// Set in a lab, so that the program knows that it is there, and to its share: `N/COUNT`, from 0 on.
const SHARE: &str = "AMPHI_TEST_IN_LAB";
/// Memory of a lab's machine: for one guest at a time, the largest of which has 4 GiB and touches little of it.
const MEMORY_MIB: u64 = 5120;
/// For a lab's share of the suite.
const SECONDS: &str = "2400";
/// More would wait for the host's disk and memory rather than for a processor.
const MOST: usize = 4;

/// Which of the cases a lab runs.
pub(super) struct Share {
    number: usize,
    count: usize,
}

impl Share {
    /// The one of this process, if it runs in a lab.
    pub(super) fn of_this_lab() -> Option<Self> {
        let share = std::env::var(SHARE).ok()?;
        let (number, count) = share.split_once('/').unwrap_or(("0", "1"));
        let number = number.parse().expect("the variable was set by this program");
        Some(Self { number, count: count.parse().expect("the variable was set by this program") })
    }

    /// This share of `cases`: neighbours, which are alike, go to different labs.
    pub(super) fn of(&self, cases: Vec<Case>) -> Vec<Case> {
        let (vm, container): (Vec<_>, Vec<_>) =
            cases.into_iter().partition(|case| case.isolation() == Some(Isolation::Vm));
        let both = [vm, container].into_iter();
        both.flat_map(|cases| cases.into_iter().skip(self.number).step_by(self.count)).collect()
    }
}

/// Whether this process runs in a lab.
pub(super) fn inside() -> bool {
    std::env::var_os(SHARE).is_some()
}

/// What keeps labs from starting.
pub(super) fn missing() -> Option<String> {
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

/// Runs this program again in labs, which share its `cases`, and returns whether all went well.
pub(super) fn run(cases: usize) -> ExitCode {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let by_memory = usize::try_from(available_memory_mib() / MEMORY_MIB).unwrap_or(MOST);
    let count = processors.min(by_memory).min(cases).clamp(1, MOST);
    println!("\nin {count} lab{}, {cases} cases:", if count == 1 { "" } else { "s" });
    let failed = thread::scope(|scope| {
        let labs: Vec<_> = (0..count).map(|number| scope.spawn(move || lab(number, count))).collect();
        labs.into_iter()
            .filter_map(|lab| lab.join().unwrap_or_else(|_| Some("its thread panicked".to_owned())))
            .collect::<Vec<_>>()
    });
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    // Once more what went wrong, at the end: the labs' lines are mixed, and of a long log often only the end is kept.
    for failure in &failed {
        println!("\nin the labs: {failure}");
    }
    ExitCode::FAILURE
}

/// Runs one share in a lab of its own, its output line by line behind the lab's number. Returns what went wrong.
fn lab(number: usize, count: usize) -> Option<String> {
    let program = std::env::current_exe().expect("this program has a path");
    // Root in the lab would look elsewhere for the kernels that another user has installed here.
    let data = amphi::host::data_dir();
    let data_home = format!("XDG_DATA_HOME={}", data.parent().unwrap_or(&data).display());
    // Killed in whatever way, this process takes the lab with it.
    let started = Command::new("setpriv")
        .args(["--pdeathsig", "TERM", "--"])
        .arg(script())
        .args(["--cpus", "1", "--memory", &MEMORY_MIB.to_string(), "--timeout", SECONDS])
        .args(["--env", &format!("{SHARE}={number}/{count}")])
        .args(["--env", "CI", "--env", "RUST_BACKTRACE", "--env", &data_home, "--"])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut lab = match started {
        Ok(lab) => lab,
        Err(error) => return Some(format!("{} does not start: {error}", script().display())),
    };
    let said = forward(&mut lab, number);
    match lab.wait() {
        Ok(status) if status.success() => None,
        Ok(status) => Some(format!("lab {number} ended with {status}\n{}", failures(&said))),
        Err(error) => Some(format!("lab {number}: {error}")),
    }
}

/// Prints what a lab says until it closes its streams, and returns it.
fn forward(lab: &mut Child, number: usize) -> String {
    let stdout: Box<dyn Read + Send> = Box::new(lab.stdout.take().expect("it is a pipe"));
    let stderr: Box<dyn Read + Send> = Box::new(lab.stderr.take().expect("it is a pipe"));
    thread::scope(|scope| {
        let streams = [stdout, stderr].map(|stream| {
            scope.spawn(move || {
                let mut said = String::new();
                for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                    let line = String::from_utf8_lossy(&line);
                    println!("{number}| {line}");
                    said.push_str(&line);
                    said.push('\n');
                }
                said
            })
        });
        streams.map(|stream| stream.join().unwrap_or_default()).concat()
    })
}

/// What the test runner reports of cases that failed; where it did not come so far, the last that was said.
fn failures(said: &str) -> &str {
    const LAST: usize = 2000;
    let last = || said.char_indices().rev().nth(LAST - 1).map_or(said, |(start, _)| &said[start..]);
    said.rfind("\nfailures:\n\n----").map_or_else(last, |start| &said[start..])
}

/// What the host could give to labs.
fn available_memory_mib() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).map_or(0, |kib| kib / 1024)
}
