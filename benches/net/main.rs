//! What traffic costs: round trips of one byte and streams, over a tap interface by TCP and over vsock, between a guest and a
//! program of the host. A stream's operation is a MiB. All of it is counted: guest, VMM, host's kernel and the program.
//!
//! Where KVM runs no kernels, this program starts the lab once with instruction counting and runs itself again inside; the
//! figures are instructions then, else times. `FIRECRACKER=PATH` names a Firecracker to compare with, and `QEMU=PATH` a QEMU other
//! than that of PATH (over TCP only: its vsock needs a module of the host's kernel). `RUNS=N`: runs of each. Root only.

// What fails here has no other reader than the one who started it.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod guest;
#[path = "../harness/loads.rs"]
mod loads;
#[path = "../harness/newc.rs"]
mod newc;
mod peer;
mod subject;
#[path = "../harness/vmms.rs"]
mod vmms;
#[path = "../harness/world.rs"]
mod world;

use std::path::Path;
use std::process::ExitCode;

use loads::Benchmark;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        guest::run();
    }
    let benchmark = Benchmark {
        what: "Traffic with the host",
        mark: guest::MARK,
        loads: guest::TCP.into_iter().chain(guest::VSOCK).map(ToOwned::to_owned).collect(),
        prepare,
        subjects: subject::all,
    };
    benchmark.run()
}

fn prepare(directory: &Path) -> Result<(), String> {
    peer::enter_namespace()?;
    let sockets = [subject::socket(directory, "amphi"), subject::socket(directory, "firecracker")];
    peer::serve(&sockets.each_ref().map(|path| path.as_path())).map_err(|error| format!("the guests' peer: {error}"))
}
