//! The integration suite: the `amphi` binary against its command-line contract.
//!
//! What both isolations promise is written once and run as `vm::NAME` and `container::NAME`. Where KVM runs no kernels,
//! the suite starts labs and runs itself again inside; see [`harness::world`].

// In a test a failed unwrap is the failure's message; clippy sees no test here because the runner is our own.
#![allow(clippy::unwrap_used)]

mod balloon;
mod block;
mod build;
mod cli;
mod confinement;
mod container;
mod direct_boot;
mod disks;
mod entropy;
mod harness;
mod image;
mod instance;
mod kept_layer;
mod kernels;
mod library;
mod lifecycle;
mod limits;
mod network;
mod parity;
mod pause;
mod pmem;
mod posix;
mod process;
mod reset;
mod streams;
mod stress;
mod volumes;
mod vsock;
mod watchdog;

use std::process::ExitCode;

fn main() -> ExitCode {
    // Whoever starts the suite in the background has these ignored, and amphi leaves ignored what it finds so.
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: the default action needs no handler, and no thread has been started yet.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let cases = [
        cli::cases(),
        block::cases(),
        build::cases(),
        streams::cases(),
        pmem::cases(),
        posix::cases(),
        process::cases(),
        limits::cases(),
        lifecycle::cases(),
        container::cases(),
        confinement::cases(),
        direct_boot::cases(),
        kept_layer::cases(),
        kernels::cases(),
        disks::cases(),
        entropy::cases(),
        image::cases(),
        instance::cases(),
        library::cases(),
        network::cases(),
        parity::cases(),
        pause::cases(),
        reset::cases(),
        volumes::cases(),
        vsock::cases(),
        watchdog::cases(),
        balloon::cases(),
        stress::cases(),
    ];
    harness::world::run(cases.into_iter().flatten().collect())
}
