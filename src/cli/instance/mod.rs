//! The commands about instances.

mod commit;
mod copy;
mod diff;
mod inspect;
mod list;
mod remove;
mod start;

pub(crate) use commit::{CommitArgs, run as commit};
pub(crate) use copy::{CpArgs, run as copy};
pub(crate) use diff::{DiffArgs, run as diff};
pub(crate) use inspect::run as inspect;
pub(crate) use list::{PsArgs, run as list};
pub(crate) use remove::{RmArgs, run as remove};
pub(crate) use start::{StartArgs, run as start};
