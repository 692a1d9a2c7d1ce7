//! Images: from registries into the store, and from the store into both isolations.

mod debian;
mod kill;
mod registry;
mod run;
mod transfer;

use crate::harness::Case;

pub(crate) fn cases() -> Vec<Case> {
    [run::cases(), transfer::cases(), registry::cases(), kill::cases(), debian::cases()].into_iter().flatten().collect()
}
