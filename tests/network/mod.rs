//! Networks of microVMs, each in a network namespace of its case's.

mod errors;
mod iperf;
mod tap;
mod user;
mod vhost;

use crate::harness::Case;

pub(crate) use user::{HOST, make_host};

pub(crate) fn cases() -> Vec<Case> {
    [tap::cases(), vhost::cases(), user::cases(), iperf::cases(), errors::cases()].into_iter().flatten().collect()
}
