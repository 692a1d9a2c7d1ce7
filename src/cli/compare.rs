//! `amphi compare`.

use std::ffi::OsString;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use amphi::IsolationKind;
use amphi::bench::{self, Comparison, Plan, Progress, Row, Step, report};
use amphi::host::kvm;
use amphi::image::Image;
use amphi::spec::MemorySize;
use clap::Args;

use super::{GlobalArgs, output};
use crate::error::CliError;

/// Columns of the progress bar.
const BAR_WIDTH: u32 = 30;

#[derive(Debug, Args)]
#[command(
    override_usage = "amphi compare [OPTIONS] [IMAGE] [-- COMMAND [ARG...]]",
    after_help = "Each run is a fresh `amphi run` process. The table goes to standard output, progress to standard \
                  error. The command should write something and end with status 0."
)]
pub(crate) struct CompareArgs {
    /// Measure one isolation alone
    #[arg(long, value_name = "vm|container")]
    isolation: Option<IsolationKind>,
    /// What to measure, separated by commas: startup, memory
    #[arg(long, value_name = "ROWS", value_delimiter = ',', default_value = "startup,memory")]
    only: Vec<Row>,
    /// Counted runs of each isolation
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    runs: u32,
    /// Runs of each isolation before those
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=1000))]
    warmup: u32,
    /// Memory of each instance
    #[arg(short, long, value_name = "SIZE", default_value = "128M")]
    memory: MemorySize,
    /// CPUs of each instance
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    cpus: u16,
    /// Guest kernel: a file, or the name of an installed one
    #[arg(long, value_name = "FILE|NAME")]
    kernel: Option<PathBuf>,
    /// Add to the guest kernel's command line; may be repeated
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    kernel_arg: Vec<String>,
    /// How many seconds a single run may take
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Write everything, each sample included, as JSON to FILE; - is standard output, instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What to run
    #[arg(default_value = "builtin")]
    image: String,
    /// The command and its arguments, instead of the image's own
    #[arg(last = true)]
    command: Vec<OsString>,
}

/// Measures, and writes the result.
///
/// # Errors
/// An isolation cannot be used on this host, or a run failed.
pub(crate) fn run(args: CompareArgs, global: &GlobalArgs) -> Result<u8, CliError> {
    // Opened before anything is measured, so that a wrong name is said at once.
    let image = Image::open(&args.image)?;
    let isolations = args.isolation.map_or_else(|| IsolationKind::ALL.to_vec(), |kind| vec![kind]);
    for &kind in &isolations {
        check_usable(kind)?;
    }
    let program = std::env::current_exe()
        .map_err(|source| CliError::Process { action: "find the program of this process", source })?;
    let command = match args.command.is_empty() {
        true => image.default_command.iter().map(OsString::from).collect(),
        false => args.command,
    };
    let plan = Plan {
        program,
        global_args: global.to_args(),
        image: args.image,
        command,
        isolations,
        rows: args.only,
        runs: args.runs,
        warmup: args.warmup,
        memory: args.memory,
        cpus: args.cpus,
        kernel: args.kernel,
        kernel_args: args.kernel_arg,
        patience: Duration::from_secs(args.timeout),
    };
    let on_terminal = io::stderr().is_terminal();
    let result = bench::compare(&plan, &mut |progress| show(progress, on_terminal));
    if on_terminal {
        // Wipes the bar, also before an error.
        eprint!("\r\x1b[K");
    }
    write_result(&result?, args.json.as_deref())?;
    Ok(0)
}

fn check_usable(kind: IsolationKind) -> Result<(), CliError> {
    if kind == IsolationKind::Vm {
        let status = kvm::probe();
        if let Some(remedy) = status.remedy() {
            return Err(CliError::NoVm { status: status.to_string(), remedy });
        }
    }
    Ok(amphi::isolation(kind).probe()?)
}

fn write_result(comparison: &Comparison, json: Option<&Path>) -> Result<(), CliError> {
    let Some(path) = json else { return output::print(&report::table(comparison)) };
    let text =
        report::json(comparison).map_err(|error| CliError::Process { action: "write JSON", source: error.into() })?;
    if path == Path::new("-") {
        return output::print(&text);
    }
    output::print(&report::table(comparison))?;
    fs::write(path, text).map_err(|source| CliError::File { action: "write", path: path.to_owned(), source })
}

/// A bar on a terminal, else a line for each step.
fn show(progress: Progress, on_terminal: bool) {
    let Progress { done, total, step } = progress;
    let what = match step {
        Step::WarmUp(kind) => format!("{kind}, warming up"),
        Step::Run(kind) => kind.to_string(),
        Step::Memory(kind) => format!("{kind}, memory"),
        Step::Done => "done".to_owned(),
    };
    let mut stderr = io::stderr().lock();
    // Progress that cannot be shown is no reason to stop measuring.
    let _ = if on_terminal {
        let filled = (BAR_WIDTH * done / total.max(1)) as usize;
        let bar = format!("{:<width$}", "#".repeat(filled), width = BAR_WIDTH as usize);
        write!(stderr, "\r\x1b[K[{bar}] {done}/{total} {what}").and_then(|()| stderr.flush())
    } else {
        writeln!(stderr, "{done}/{total} {what}")
    };
}
