//! The programs of the built-in image.

mod facts;
mod output;
mod streams;

use alloc::vec::Vec;

use output::Output;

/// Runs the program called `name`; returns its exit status.
pub(crate) fn run(name: &[u8], arguments: &[Vec<u8>], environment: &[Vec<u8>]) -> u8 {
    let result = match name {
        b"hello" => facts::hello(),
        b"true" => return 0,
        b"false" => return 1,
        b"echo" => streams::echo(arguments),
        b"cat" => streams::cat(arguments),
        b"env" => streams::lines(environment),
        b"id" => facts::id(),
        b"pwd" => facts::pwd(),
        b"uname" => facts::uname(arguments),
        b"sleep" => return streams::sleep(arguments),
        _ => {
            Output::error(format_args!(
                "amphi-guest-init is run under the name of one of the built-in image's programs"
            ));
            return 127;
        }
    };
    match result {
        Ok(status) => status,
        Err(errno) => {
            let name = core::str::from_utf8(name).unwrap_or_default();
            Output::error(format_args!("{name}: error {}", errno.raw_os_error()));
            1
        }
    }
}
