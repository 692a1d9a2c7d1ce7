//! Instances: what a run without `--rm` leaves, and what can be done with it.

mod lifecycle;

use crate::harness::Case;

pub(crate) fn cases() -> Vec<Case> {
    lifecycle::cases()
}
