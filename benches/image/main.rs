//! What images cost: from a registry to the first start, and each further start, beside the tools that people use to get as far
//! as an unpacked root; and what running instances add to the disk.
//!
//! The image is made of this machine's own programs and libraries, 300 MB in three layers; `IMAGE=LAYOUT:TAG` names another, an
//! OCI layout. The registry is Debian's `docker-registry` on the loopback interface, the peers are `skopeo copy` and
//! `umoci unpack`. Where KVM runs no kernels, containers are measured here, and then this program runs itself again in the lab,
//! where microVMs are (without counting: several of them run at a time). `RUNS=N`: runs of each. Root only.

// What fails here has no other reader than the one who started it.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod disk;
mod made;
mod registry;
mod tools;
#[path = "../harness/world.rs"]
mod world;

use std::path::Path;
use std::process::ExitCode;

use amphi::bench::quantile;
use registry::Registry;
use tools::{Amphi, timed, tool};

/// Set for the lab: the image that has been made.
const IMAGE: &str = "IMAGE";

fn main() -> ExitCode {
    world::run_here_and_in_lab(IMAGE, |directory, runs| {
        let image = match std::env::var(IMAGE) {
            Ok(image) => image,
            Err(_) => made::layout(directory),
        };
        measure(directory, runs, &image);
        Ok(image)
    })
}

fn measure(directory: &Path, runs: usize, image: &str) {
    let isolation = if amphi::host::kvm::probe().is_usable() { "vm" } else { "container" };
    let registry = Registry::start(&directory.join("registry"));
    registry.fill(image);
    let name = registry.name();
    let amphi = Amphi::new(directory, isolation);
    let (mut ours, mut first, mut second, mut peers) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for run in 0..runs {
        world::progress(&format!("run {} of {runs}, as {isolation}", run + 1));
        amphi.forget();
        let pull = timed(|| amphi.command(&["pull", &name]));
        let start = timed(|| amphi.run(&name));
        ours.push(pull + start);
        first.push(start);
        second.push(timed(|| amphi.run(&name)));
        let [layout, bundle] = ["peer-layout", "peer-bundle"].map(|folder| directory.join(folder));
        let copy = format!("oci:{}:x", layout.display());
        peers.push(timed(|| {
            tool("skopeo", &["copy", "-q", "--src-tls-verify=false", &format!("docker://{name}"), &copy]);
            tool("umoci", &["unpack", "--image", &format!("{}:x", layout.display()), bundle.to_str().unwrap()]);
        }));
        for folder in [layout, bundle] {
            std::fs::remove_dir_all(folder).unwrap();
        }
    }
    let median = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        quantile(values, 0.5)
    };
    let (ours, first, second, peers) = (median(&mut ours), median(&mut first), median(&mut second), median(&mut peers));
    let place = if world::in_lab() { ", emulated times" } else { "" };
    println!("\nImages, {isolation}, medians of {runs} runs{place}, seconds");
    println!("{:<54}{ours:>10.3}{:>8.2} x the peers", "amphi pull, with conversion, and the first start", ours / peers);
    println!("{:<54}{first:>10.3}", "  of which the first start");
    println!("{:<54}{second:>10.3}{:>8.4} x the first time", "amphi, the second start", second / ours);
    println!("{:<54}{peers:>10.3}", "skopeo copy and umoci unpack, nothing started");
    disk::report(&amphi, &name);
}
