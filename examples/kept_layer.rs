//! What a microVM's kept writable layer costs: runs of the built-in image without and with one, taking turns, and the reading of it.
//!
//! ```text
//! cargo run --example kept_layer -- FOLDER [RUNS]
//! ```
//!
//! FOLDER is that of a new instance, and must be there. Prints milliseconds from the plan to the end of each run.

use std::time::Instant;

use amphi::isolation::vm::KeptLayer;
use amphi::isolation::{Sandbox, Stdio};
use amphi::spec::WritableLayer;
use amphi::{Image, IsolationKind, RunSpec, isolation};

/// What the kernel still does for the machine before shall not count.
fn settle() {
    std::thread::sleep(std::time::Duration::from_millis(300));
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn run(image: &Image, layer: WritableLayer) -> Result<f64> {
    settle();
    let start = Instant::now();
    let spec = RunSpec::builder(image).args(["/bin/true"]).memory_mib(128).writable(layer).build()?;
    let sandbox: Box<dyn Sandbox> = isolation(IsolationKind::Vm).create(&spec, Stdio::null()?)?;
    sandbox.start()?;
    sandbox.wait()?;
    drop(sandbox);
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let folder = arguments.next().ok_or("name a folder")?;
    let runs = arguments.next().map_or(Ok(5), |text| text.to_string_lossy().parse())?;
    let image = Image::open("builtin")?;
    let kept = || WritableLayer { folder: Some(folder.clone().into()), limit: None };
    run(&image, WritableLayer::default())?;
    println!("new disk: {:.1}", run(&image, kept())?);
    for _ in 0..runs {
        let without = run(&image, WritableLayer::default())?;
        let with = run(&image, kept())?;
        settle();
        let start = Instant::now();
        let mut entries = 0;
        KeptLayer::new(&folder).changes(&mut |_| {
            entries += 1;
            Ok(())
        })?;
        let read = start.elapsed().as_secs_f64() * 1e3;
        println!("in memory: {without:.1}; kept: {with:.1}; changes read: {read:.1} ({entries} items)");
    }
    Ok(())
}
