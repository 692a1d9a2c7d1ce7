//! What the cases are made of: where they run, the binary under test, and what they feed it.

pub(crate) mod case;
pub(crate) mod cgroup;
pub(crate) mod command;
pub(crate) mod images;
pub(crate) mod initramfs;
pub(crate) mod installed;
mod labs;
pub(crate) mod leftovers;
pub(crate) mod netns;
pub(crate) mod registry;
pub(crate) mod rootfs;
pub(crate) mod tiny_elf;
pub(crate) mod world;

pub(crate) use case::{Case, Isolation, both, container, host, vm};
pub(crate) use command::{Amphi, Finished};
