//! What this host can do: KVM, cgroups, namespaces, file systems; and where amphi keeps its files.

pub mod cgroup;
pub mod cpu;
mod diagnosis;
mod features;
pub mod kvm;
pub(crate) mod landlock;
mod namespaces;
mod paths;
pub(crate) mod privileges;
pub(crate) mod seccomp;

pub use diagnosis::{Check, Diagnosis, Level, diagnose};
pub use paths::{Dirs, DirsAlreadySet, data_dir, set_dirs, state_dir};
