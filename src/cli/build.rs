//! `amphi build`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use amphi::build::{BuildOptions, Event, Progress, build};
use amphi::image::{ImageName, Timestamp, registry};
use amphi::spec::{CpuLimit, MemorySize, Network};
use amphi::{IsolationKind, build::BuildError};
use clap::Args;

use super::image::ProgressBar;
use super::output::print;
use crate::error::CliError;

#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// The folder that COPY and ADD copy from
    #[arg(value_name = "CONTEXT")]
    context: PathBuf,
    /// The Dockerfile, if not the one in the context
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Call the image NAME; may be repeated
    #[arg(short, long, value_name = "NAME")]
    tag: Vec<ImageName>,
    /// Set an ARG of the Dockerfile; without a value it is the environment's; may be repeated
    #[arg(long, value_name = "NAME[=VALUE]")]
    build_arg: Vec<String>,
    /// Build this stage, by name or number, and what it needs
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Do every step again, whatever earlier builds have made
    #[arg(long)]
    no_cache: bool,
    /// What RUN runs its commands in
    #[arg(long, value_name = "vm|container", default_value_t = IsolationKind::Vm)]
    isolation: IsolationKind,
    /// The network of RUN
    #[arg(long, value_name = "none|user|tap:NAME", default_value = "none")]
    network: Network,
    /// The memory of RUN: a microVM's, or a container's limit
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<MemorySize>,
    /// The processors of RUN: a microVM's, or a container's limit
    #[arg(long, value_name = "N")]
    cpus: Option<CpuLimit>,
    /// Add a remark to the image; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Trust the certificates in this file as well, for registries; may be repeated
    #[arg(long, value_name = "FILE")]
    tls_ca: Vec<PathBuf>,
}

/// Builds, and prints the digest of the image's manifest.
pub(crate) fn run(args: BuildArgs) -> Result<(), CliError> {
    let label = |text: &String| {
        let problem = || CliError::Option { option: "--label", problem: format!("{text:?} is not KEY=VALUE") };
        text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())).ok_or_else(problem)
    };
    let labels = args.label.iter().map(label).collect::<Result<_, _>>()?;
    let unnamed = args.tag.is_empty();
    let options = BuildOptions {
        dockerfile: args.file,
        context: args.context,
        names: args.tag,
        arguments: arguments(&args.build_arg),
        target: args.target,
        cache: !args.no_cache,
        labels,
        isolation: args.isolation,
        network: args.network,
        memory: args.memory,
        cpus: args.cpus,
        registry: registry::Options { tls_ca: args.tls_ca, ..registry::Options::default() },
        source_date: Timestamp::of_source().map_err(BuildError::from)?,
    };
    let image = build(&options, &Report { bar: ProgressBar::new("pull") })?;
    if unnamed {
        eprintln!("amphi: notice: the image has no name, so `amphi prune` takes it: name it with --tag");
    }
    print(&format!("{}\n", image.descriptor.digest))
}

/// Values of arguments; one without is what the environment has, if anything.
fn arguments(list: &[String]) -> BTreeMap<String, String> {
    let one = |text: &String| match text.split_once('=') {
        Some((name, value)) => Some((name.to_owned(), value.to_owned())),
        None => Some((text.clone(), std::env::var(text).ok()?)),
    };
    list.iter().filter_map(one).collect()
}

/// Says on standard error how far the build is.
struct Report {
    bar: ProgressBar,
}

impl registry::Progress for Report {
    fn report(&self, event: registry::Event) {
        self.bar.report(event);
    }
}

impl Progress for Report {
    fn event(&self, event: Event<'_>) {
        let text = match event {
            Event::Step { stage: (stage, stages), step: (step, steps), text } => {
                let place = if stages > 1 { format!("[{stage}/{stages}] ") } else { String::new() };
                // What would move the cursor is the Dockerfile's, and that may be anybody's.
                let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
                format!("{place}STEP {step}/{steps}: {text}\n")
            }
            Event::Cached => "--> Using cache\n".to_owned(),
            Event::Notice(text) => format!("amphi: notice: {text}\n"),
        };
        // Who does not want to see it gets the image anyway.
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }

    fn output(&self) -> io::Result<OwnedFd> {
        io::stderr().as_fd().try_clone_to_owned()
    }
}
