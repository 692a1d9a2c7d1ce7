//! Runs one command in both isolations and says how each ended and how long it took.
//!
//! `cargo run --example both -- dir:PATH /bin/uname -r`

use std::error::Error;

use amphi::isolation::Stdio;
use amphi::{Image, IsolationKind, RunSpec, isolation};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let image = Image::open(&args.next().unwrap_or_else(|| "builtin".to_owned()))?;
    let mut builder = RunSpec::builder(&image).vcpus(1).memory_mib(128);
    let command: Vec<String> = args.collect();
    if !command.is_empty() {
        builder = builder.args(command);
    }
    let spec = builder.build()?;

    for kind in IsolationKind::ALL {
        // What one isolation lacks on this host does not keep the other from running.
        match run(kind, &spec) {
            Ok(report) => println!("{kind}: {report}"),
            Err(error) => println!("{kind}: not run: {error}"),
        }
    }
    Ok(())
}

fn run(kind: IsolationKind, spec: &RunSpec) -> Result<String, Box<dyn Error>> {
    let isolation = isolation(kind);
    isolation.probe()?;
    let sandbox = isolation.create(spec, Stdio::inherit()?)?;
    sandbox.start()?;
    let status = sandbox.wait()?;
    let timeline = sandbox.timeline();
    let took = timeline.created.zip(timeline.exited).map(|(created, exited)| exited.0.saturating_sub(created.0));
    Ok(match took {
        Some(nanoseconds) => format!("{status}, after {} ms", nanoseconds / 1_000_000),
        None => status.to_string(),
    })
}
