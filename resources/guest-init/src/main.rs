//! PID 1 of an amphi microVM, and the programs of the built-in image.
//!
//! Which of them it is, the name it is called by decides. What goes into guests is built with
//! `--cfg amphi_guest`: without std or a C library, a tenth of the size, and started by [`freestanding`]. Any other
//! build is an ordinary program that does the same, so that ordinary tools can check and test it.

#![cfg_attr(amphi_guest, no_std, no_main)]

extern crate alloc;

mod applet;
#[cfg(amphi_guest)]
mod freestanding;
mod init;
mod syscall;

use alloc::vec::Vec;

/// The whole program; returns its exit status.
fn program(arguments: &[Vec<u8>], environment: &[Vec<u8>]) -> u8 {
    let name = arguments.first().map(Vec::as_slice).unwrap_or_default();
    let name = name.rsplit(|&b| b == b'/').next().unwrap_or_default();
    if name == b"init" && rustix::process::getpid() == rustix::process::Pid::INIT {
        init::run();
    }
    applet::run(name, arguments.get(1..).unwrap_or_default(), environment)
}

#[cfg(not(amphi_guest))]
fn main() -> std::process::ExitCode {
    use std::os::unix::ffi::OsStringExt;
    let arguments: Vec<Vec<u8>> = std::env::args_os().map(OsStringExt::into_vec).collect();
    let environment: Vec<Vec<u8>> =
        std::env::vars_os().map(|(key, value)| [key.into_vec(), value.into_vec()].join(&b'=')).collect();
    program(&arguments, &environment).into()
}
