//! The library, called from this very process: several sandboxes live in it side by side.

use std::io::Read;
use std::os::fd::OwnedFd;

use amphi::isolation::Stdio;
use amphi::{ExitStatus, Image, IsolationKind, RunSpec, Sandbox, isolation};

use crate::harness::{Case, Isolation, both, rootfs};

pub(crate) fn cases() -> Vec<Case> {
    both("several_in_one_process", several_in_one_process)
}

/// A sandbox that runs `script`, and the end of its standard output that the host reads.
fn sandbox(kind: IsolationKind, script: &str) -> (Box<dyn Sandbox>, std::io::PipeReader) {
    let image = Image::open(&format!("dir:{}", rootfs::busybox().display())).unwrap();
    let spec = RunSpec::builder(&image).args(["/bin/sh", "-c", script]).memory_mib(128).build().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let null = Stdio::null().unwrap();
    let stdio = Stdio { stdout: OwnedFd::from(writer), ..null };
    (isolation(kind).create(&spec, stdio).unwrap(), reader)
}

fn several_in_one_process(isolation: Isolation) {
    let kind = match isolation {
        Isolation::Vm => IsolationKind::Vm,
        Isolation::Container => IsolationKind::Container,
    };
    let running: Vec<_> = (1..=3_u8)
        .map(|number| {
            let (sandbox, output) = sandbox(kind, &format!("echo {number}; exit {number}"));
            sandbox.start().unwrap();
            (number, sandbox, output)
        })
        .collect();
    for (number, sandbox, mut output) in running {
        assert_eq!(sandbox.wait().unwrap(), ExitStatus::Code(number));
        assert_eq!(sandbox.wait().unwrap(), ExitStatus::Code(number), "asked again");
        let timeline = sandbox.timeline();
        assert!(timeline.created < timeline.exited && timeline.exited <= timeline.cleaned, "{timeline:?}");
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        assert_eq!(text, format!("{number}\n"));
    }
}
