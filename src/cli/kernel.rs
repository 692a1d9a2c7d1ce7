//! `amphi kernel`: list, install, build and inspect guest kernels.

use std::io::{self, IsTerminal, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};

use amphi::kernel::inspect::{Evidence, Inspection, Need, inspect};
use amphi::kernel::store::{Installed, Store};
use amphi::kernel::{Format, KernelError, Progress, build, config, install};

#[derive(Debug, Args)]
pub(crate) struct KernelArgs {
    #[command(subcommand)]
    command: KernelCommand,
}

#[derive(Debug, Subcommand)]
enum KernelCommand {
    /// List the installed kernels, the default first
    #[command(visible_alias = "ls")]
    List {
        /// How to write the list
        #[arg(long, value_enum, default_value_t)]
        format: OutputFormat,
    },
    /// Take a kernel out of the distribution's package, without installing the package
    Install {
        /// Package name, or the file of a package (FILE.deb); without it, the newest kernel for virtual machines
        #[arg(conflicts_with = "series")]
        package: Option<String>,
        /// Take the newest kernel of this series, such as 6.12
        #[arg(long, value_name = "X.Y")]
        series: Option<String>,
    },
    /// Build amphi's own small kernel from the distribution's kernel source package
    Build {
        /// How many compilers run at a time [default: one a processor]
        #[arg(short, long, value_name = "N")]
        jobs: Option<NonZeroUsize>,
        /// Build this source package (.deb) or archive (.tar.xz) of Linux 6.12 instead of the distribution's
        #[arg(long, value_name = "FILE")]
        source: Option<PathBuf>,
    },
    /// Show what a kernel is, and what it has and lacks for amphi
    Inspect {
        /// A kernel's file, or the name of an installed kernel
        #[arg(value_name = "PATH|NAME")]
        kernel: PathBuf,
        /// How to write the result
        #[arg(long, value_enum, default_value_t)]
        format: OutputFormat,
    },
}

/// How results are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum OutputFormat {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

/// Why `amphi kernel` failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelCommandError {
    /// The kernel, or the work on it.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The result could not be written to standard output.
    #[error("cannot write to standard output")]
    Output(#[from] io::Error),
    /// The result could not be made into JSON.
    #[error("cannot write the result as JSON")]
    Json(#[from] serde_json::Error),
}

/// Runs `amphi kernel`.
///
/// # Errors
/// What the subcommand was to do could not be done.
pub(crate) fn run(args: KernelArgs) -> Result<(), KernelCommandError> {
    let store = Store::open();
    match args.command {
        KernelCommand::List { format } => list(&store.list()?, format),
        KernelCommand::Install { package, series } => {
            let source = match (package, series) {
                (Some(name), _) if name.contains('/') || name.ends_with(".deb") => install::Source::File(name.into()),
                (Some(name), _) => install::Source::Package(name),
                (None, Some(series)) => install::Source::Series(series),
                (None, None) => install::Source::Newest,
            };
            let installed = install::install(&store, &source, &mut Reporter::new().report())?;
            print(&format!("{}\n", installed.name))
        }
        KernelCommand::Build { jobs, source } => {
            let source = source.map_or(build::Source::Package, build::Source::File);
            let installed = build::build(&store, &source, jobs, &mut Reporter::new().report())?;
            print(&format!("{}\n", installed.name))
        }
        KernelCommand::Inspect { kernel, format } => show(&inspect(&store, Path::new(&kernel))?, format),
    }
}

fn print(text: &str) -> Result<(), KernelCommandError> {
    let mut out = io::stdout().lock();
    Ok(out.write_all(text.as_bytes()).and_then(|()| out.flush())?)
}

/// Writes progress to standard error: a line for each step, and in between one that is renewed on a terminal and
/// written anew elsewhere.
struct Reporter {
    terminal: bool,
    transient: bool,
    last: std::time::Instant,
}

impl Reporter {
    /// Seconds between lines that would replace each other on a terminal.
    const QUIET: std::time::Duration = std::time::Duration::from_secs(5);

    fn new() -> Self {
        Self { terminal: io::stderr().is_terminal(), transient: false, last: std::time::Instant::now() }
    }

    fn report(mut self) -> impl FnMut(Progress) {
        move |event| self.event(&event)
    }

    fn event(&mut self, event: &Progress) {
        let transient = event.is_transient();
        let mut text = String::new();
        if self.transient && self.terminal {
            text.push_str("\r\x1b[K");
        }
        if transient && !self.terminal && self.last.elapsed() < Self::QUIET {
            return;
        }
        text.push_str(&format!("amphi: {event}"));
        if !(transient && self.terminal) {
            text.push('\n');
        }
        self.transient = transient;
        self.last = std::time::Instant::now();
        // Progress that nobody can read is no reason to stop.
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }
}

fn list(kernels: &[Installed], format: OutputFormat) -> Result<(), KernelCommandError> {
    if format == OutputFormat::Json {
        let rows: Vec<_> = kernels
            .iter()
            .enumerate()
            .map(|(index, kernel)| {
                serde_json::json!({
                    "name": kernel.name,
                    "default": index == 0,
                    "release": kernel.record.release,
                    "origin": kernel.record.origin,
                    "format": "elf",
                    "packaged_compression": kernel.record.compression,
                    "size": kernel.record.size,
                    "sha256": kernel.record.sha256,
                    "own": kernel.record.own,
                    "modules": kernel.record.modules,
                    "path": kernel.kernel().image,
                })
            })
            .collect();
        return print(&format!("{}\n", serde_json::to_string_pretty(&rows)?));
    }
    let mut rows = vec![["", "NAME", "ORIGIN", "FORMAT", "SIZE", "SHA256"].map(str::to_owned)];
    for (index, kernel) in kernels.iter().enumerate() {
        let record = &kernel.record;
        let mark = if index == 0 { "*" } else { "" };
        let format = if record.modules { "ELF + modules" } else { "ELF" };
        rows.push([
            mark.to_owned(),
            kernel.name.clone(),
            record.origin.clone(),
            format.to_owned(),
            format!("{:.1} MB", mega(record.size)),
            record.sha256.chars().take(12).collect(),
        ]);
    }
    print(&table(&rows))
}

#[expect(clippy::cast_precision_loss, reason = "a size shown with one digit after the point")]
fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Columns as wide as their widest cell.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] = std::array::from_fn(|column| {
        rows.iter().filter_map(|row| Some(row.get(column)?.chars().count())).max().unwrap_or(0)
    });
    let line = |row: &[String; N]| {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn show(kernel: &Inspection, format: OutputFormat) -> Result<(), KernelCommandError> {
    if format == OutputFormat::Json {
        return print(&format!("{}\n", serde_json::to_string_pretty(kernel)?));
    }
    let mut rows = vec![
        row("file", &kernel.path.display().to_string()),
        row("release", kernel.release.as_deref().unwrap_or("unknown")),
    ];
    rows.extend(format_rows(&kernel.format));
    rows.extend(kernel.payload.iter().flat_map(format_rows).map(|[name, value]| [format!("payload {name}"), value]));
    if let Some(compressions) = &kernel.initrd_compressions {
        rows.push(row("initramfs", &format!("uncompressed {}", compressions.join(" "))));
    }
    let evidence = match kernel.evidence {
        Evidence::Image => "from the configuration inside the kernel",
        Evidence::Package => "from the configuration file of its package",
        Evidence::Guess => "a guess from texts in the image: what is off may be a module",
    };
    rows.push(row("features", evidence));
    for feature in &kernel.features {
        let value = match (feature.setting, feature.need) {
            (config::Setting::BuiltIn, _) => "built in",
            (config::Setting::Module, _) => "module",
            (config::Setting::Off, _) if kernel.evidence == Evidence::Guess => "not seen",
            (config::Setting::Off, Need::Required) => "MISSING (required)",
            (config::Setting::Off, Need::Useful) => "missing",
        };
        rows.push(row(&format!("  {}", feature.name), value));
    }
    print(&table(&rows))
}

fn row(name: &str, value: &str) -> [String; 2] {
    [name.to_owned(), value.to_owned()]
}

fn format_rows(format: &Format) -> Vec<[String; 2]> {
    match format {
        Format::Elf(elf) => vec![
            row("format", "ELF64 x86-64"),
            row("64-bit entry", &format!("{:#x}", elf.entry)),
            row("PVH entry", &elf.pvh_entry.map_or_else(|| "none".to_owned(), |at| format!("{at:#x}"))),
        ],
        Format::BzImage(image) => vec![
            row("format", &format!("bzImage, boot protocol {}.{:02}", image.protocol >> 8, image.protocol & 0xff)),
            row("compression", image.compression.name()),
            row("64-bit entry", if image.entry_64 { "yes" } else { "no" }),
        ],
    }
}
