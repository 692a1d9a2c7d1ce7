//! The commands about instances.

mod inspect;
mod list;
mod remove;
mod start;

pub(crate) use inspect::run as inspect;
pub(crate) use list::{PsArgs, run as list};
pub(crate) use remove::{RmArgs, run as remove};
pub(crate) use start::{StartArgs, run as start};
