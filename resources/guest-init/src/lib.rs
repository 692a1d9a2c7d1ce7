//! What amphi tells the guest's PID 1, and what that tells amphi: one wire format, used by both sides.
//!
//! The specification ([`InitSpec`]) travels as the file [`SPEC_PATH`] of the initramfs. Everything later travels
//! over four virtio-console ports, by their numbers: [`CONTROL_PORT`] carries messages both ways
//! ([`FromGuest`], [`ToGuest`]); [`STDIN_PORT`], [`STDOUT_PORT`] and [`STDERR_PORT`] carry bytes, unframed.
//!
//! Besides, the crate holds what a microVM and a container must do alike to start a workload: find its user
//! ([`user`]), its program and its environment ([`path`]).

#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod message;
pub mod path;
mod spec;
pub mod tree;
pub mod user;
mod wire;

pub use message::{Decoder, FromGuest, Message, MessageError, ToGuest};
pub use spec::{InitSpec, Interface, Root, Service, SpecError, Volume};

/// Where the initramfs holds the encoded [`InitSpec`].
pub const SPEC_PATH: &str = "/amphi/spec";
/// Where the initramfs holds an inline root file system.
pub const INLINE_ROOT: &str = "/amphi/root";
/// Where the initramfs holds kernel modules.
pub const MODULES_DIR: &str = "/amphi/modules";
/// The virtio-console port of the control messages.
pub const CONTROL_PORT: u32 = 1;
/// The virtio-console port that carries the workload's standard input to the guest.
pub const STDIN_PORT: u32 = 2;
/// The virtio-console port that carries the workload's standard output to the host.
pub const STDOUT_PORT: u32 = 3;
/// The virtio-console port that carries the workload's standard error to the host.
pub const STDERR_PORT: u32 = 4;
/// Where the guest mounts what holds the writable layer.
pub const OVER_DIR: &str = "/amphi/over";
/// What the places are called, before the number, where the guest mounts the layers of a [`Root::Layered`].
pub const LAYER_DIR: &str = "/amphi/layer";
/// The directories that the initramfs holds.
pub const DIRECTORIES: [&str; 5] = ["/dev", "/amphi", MODULES_DIR, INLINE_ROOT, OVER_DIR];
