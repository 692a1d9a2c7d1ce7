//! A network namespace for one case: nothing that it sends leaves the machine, and nothing of it stays.

use std::process::{Command, Output};

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Runs `body` on a thread in a new network namespace, in which also what it starts runs.
pub(crate) fn run(body: impl FnOnce() + Send) {
    let result = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                // SAFETY: a thread may have a network namespace of its own; descriptors stay shared.
                unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
                ip("link set lo up");
                body();
            })
            .join()
    });
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// Runs ip(8) with those words; the case fails where it does.
pub(crate) fn ip(words: &str) {
    let output = output(Command::new("ip").args(words.split(' ')));
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Whether there is an interface of that name.
pub(crate) fn has_interface(name: &str) -> bool {
    output(Command::new("ip").args(["link", "show", name])).status.success()
}

fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("ip does not start (apt-get install iproute2): {error}"))
}
