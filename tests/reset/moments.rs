//! When a reset comes, and from whom: to guests that hang, have just begun, are paused or end.

use std::fs;
use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use amphi::isolation::Signal;
use amphi::isolation::vm::confine_caller;
use amphi::{ExitStatus, Sandbox};

use super::guest::{COUNT, Guest, line, with_disk};
use crate::harness::installed;

/// Guests that do nothing sensible any more: one with both processors busy, and one whose kernel has panicked and turns round for ever
/// with interrupts off. (It says so by a device, which would end it: the driver goes first.)
pub(super) fn a_guest_that_hangs_is_reset() {
    let hangs = [
        (installed::own(), "(while :; do :; done) & echo busy; while :; do :; done"),
        (
            installed::stock("6.12."),
            "rmmod pvpanic_mmio; echo 0 >/proc/sys/kernel/panic; echo busy; echo c >/proc/sysrq-trigger",
        ),
    ];
    for (kernel, hang) in hangs {
        let folder = tempfile::tempdir().unwrap();
        let guest = Guest { devices: with_disk(&folder), ..Guest::new(kernel) };
        let (sandbox, mut output) = guest.start(&format!("{COUNT} [ $n = 3 ] && exit 9; {hang}"));
        for n in 1..=2 {
            assert_eq!(line(&mut output), format!("guest {n}"));
            assert_eq!(line(&mut output), "busy");
            thread::sleep(Duration::from_millis(500));
            sandbox.reset().unwrap();
        }
        assert_eq!(line(&mut output), "guest 3");
        assert_eq!(sandbox.wait().unwrap(), ExitStatus::Code(9));
    }
}

/// From the first instruction on: no processor is up yet, one is, drivers have just begun.
pub(super) fn resets_at_any_time() {
    let folder = tempfile::tempdir().unwrap();
    let script = format!("{COUNT} echo started; read line; exit 3");
    let (reader, mut input) = std::io::pipe().unwrap();
    let guest =
        Guest { devices: with_disk(&folder), input: Some(reader.into()), ..Guest::new(installed::stock("6.12.")) };
    let (sandbox, mut output) = guest.start(&script);
    for step in 0..24 {
        thread::sleep(Duration::from_millis(step * 40));
        sandbox.reset().unwrap();
    }
    input.write_all(b"go\n").unwrap();
    assert_eq!(sandbox.wait().unwrap(), ExitStatus::Code(3));
    drop(sandbox);
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert!(text.ends_with("started\n"), "{text}");
}

pub(super) fn a_paused_guest_is_reset() {
    let folder = tempfile::tempdir().unwrap();
    let guest = Guest { devices: with_disk(&folder), ..Guest::new(installed::own()) };
    let (sandbox, mut output) = guest.start(&format!("{COUNT} [ $n = 2 ] && exit 6; sleep 1000"));
    assert_eq!(line(&mut output), "guest 1");
    sandbox.pause().unwrap();
    sandbox.kill(Signal::TERM).unwrap();
    for _ in 0..3 {
        sandbox.reset().unwrap();
    }
    thread::sleep(Duration::from_millis(500));
    let mut number = [0; 9];
    fs::File::open(folder.path().join("disk")).unwrap().read_exact(&mut number).unwrap();
    assert_eq!(&number, b"1        ", "no guest has begun");
    sandbox.resume().unwrap();
    assert_eq!(line(&mut output), "guest 2");
    assert_eq!(sandbox.wait().unwrap(), ExitStatus::Code(6), "the signal was for the old one");
}

/// With all that the filter of whoever follows a guest leaves.
pub(super) fn a_reset_by_a_confined_thread() {
    for kernel in [installed::own(), installed::stock("6.12.")] {
        let folder = tempfile::tempdir().unwrap();
        let guest = Guest { devices: with_disk(&folder), ..Guest::new(kernel) };
        let (sandbox, mut output) = guest.start(&format!("{COUNT} [ $n = 3 ] && exit 4; sleep 1000"));
        let confined = thread::spawn(move || {
            confine_caller().unwrap();
            for n in 1..=2 {
                assert_eq!(line(&mut output), format!("guest {n}"));
                sandbox.reset().unwrap();
            }
            sandbox.wait().unwrap()
        });
        assert_eq!(confined.join().unwrap(), ExitStatus::Code(4));
    }
}

/// Several who reset it, a workload that ends when it has been begun often enough, and in the end somebody who kills it.
pub(super) fn resets_and_the_end() {
    for round in 0..4 {
        let folder = tempfile::tempdir().unwrap();
        let guest = Guest { devices: with_disk(&folder), ..Guest::new(installed::own()) };
        let (sandbox, mut output) = guest.start(&format!("{COUNT} [ $n -gt 2 ] && exit 11; sleep 1000"));
        assert_eq!(line(&mut output), "guest 1");
        let done = thread::scope(|scope| {
            let sandbox = &sandbox;
            let reset = move |pause| {
                let done = sandbox.reset().is_ok();
                thread::sleep(Duration::from_millis(pause));
                done
            };
            let resets = [100, 300, 500].map(|pause| scope.spawn(move || (0..3).filter(|_| reset(pause)).count()));
            if round % 2 == 1 {
                thread::sleep(Duration::from_millis(500));
                sandbox.kill(Signal::KILL).unwrap();
            }
            resets.into_iter().map(|resets| resets.join().unwrap()).sum::<usize>()
        });
        assert!(done > 0);
        sandbox.kill(Signal::KILL).unwrap();
        let status = sandbox.wait().unwrap();
        assert!([ExitStatus::Code(11), ExitStatus::Signal(Signal::KILL)].contains(&status), "{status:?}");
        assert!(sandbox.reset().is_err());
    }
}
