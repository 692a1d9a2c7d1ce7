//! What a microVM's kept writable layer costs: one run of the built-in image with its layer in memory, or kept in FOLDER, or what
//! is on the layer that is kept there, with the milliseconds that it took.
//!
//! ```text
//! cargo run --example kept_layer -- memory
//! cargo run --example kept_layer -- kept FOLDER
//! cargo run --example kept_layer -- changes FOLDER
//! ```
//!
//! FOLDER is that of an instance, and must be there.

use std::time::Instant;

use amphi::isolation::vm::KeptLayer;
use amphi::isolation::{Sandbox, Stdio};
use amphi::spec::WritableLayer;
use amphi::{Image, IsolationKind, RunSpec, isolation};
use amphi_guest_init::tree::Item;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn run(image: &Image, layer: WritableLayer) -> Result<()> {
    let spec = RunSpec::builder(image).args(["/bin/true"]).memory_mib(128).writable(layer).build()?;
    let sandbox: Box<dyn Sandbox> = isolation(IsolationKind::Vm).create(&spec, Stdio::null()?)?;
    sandbox.start()?;
    sandbox.wait()?;
    Ok(())
}

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let what = arguments.next().ok_or("say what: memory, kept or changes")?;
    let image = Image::open("builtin")?;
    let folder = arguments.next();
    let start = Instant::now();
    match (what.to_str(), folder) {
        (Some("memory"), _) => run(&image, WritableLayer::default())?,
        (Some("kept"), Some(folder)) => run(&image, WritableLayer { folder: Some(folder.into()), limit: None })?,
        (Some("changes"), Some(folder)) => KeptLayer::new(folder).changes(&mut |item| {
            if let Item::Entry(entry) = item {
                println!("{}", String::from_utf8_lossy(entry.path));
            }
            Ok(())
        })?,
        _ => return Err("name the folder".into()),
    }
    println!("{:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    Ok(())
}
