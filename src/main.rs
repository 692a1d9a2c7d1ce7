//! The `amphi` command.

mod cli;
mod error;
mod logger;

use std::process::ExitCode;

use amphi::isolation::Instant;

fn main() -> ExitCode {
    let start = Instant::now();
    let status = cli::parse(std::env::args_os()).and_then(|cli| cli::dispatch(cli, start));
    match status {
        Ok(code) => ExitCode::from(code),
        Err(error) => error::report(&error),
    }
}
