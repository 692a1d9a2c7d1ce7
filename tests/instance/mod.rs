//! Instances: what a run without `--rm` leaves, and what can be done with it.

mod contents;
mod lifecycle;

use crate::harness::images::OwnRoot;
use crate::harness::{Amphi, Case, Isolation, rootfs};

pub(crate) fn cases() -> Vec<Case> {
    lifecycle::cases().into_iter().chain(contents::cases()).collect()
}

/// `amphi run --isolation ISOLATION --name NAME dir:BUSYBOX -- /bin/sh -c SCRIPT`, of which an instance stays.
fn run(own: &OwnRoot, isolation: Isolation, name: &str, script: &str) -> Amphi {
    let image = format!("dir:{}", rootfs::busybox().display());
    own.amphi(&["run", "--isolation", isolation.name(), "--name", name, &image, "--", "/bin/sh", "-c", script])
}
