//! `amphi login` and `amphi logout`.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;

use amphi::image::registry::{Client, Credentials, Options, logout, store_credentials};
use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::ImageCommandError;
use crate::cli::output::print;
use crate::error::CliError;

const DEFAULT_REGISTRY: &str = "docker.io";

#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// The registry's host, with its port
    #[arg(default_value = DEFAULT_REGISTRY)]
    registry: String,
    /// The user
    #[arg(short, long)]
    username: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
    /// Trust the certificates in this file as well; may be repeated
    #[arg(long, value_name = "FILE")]
    tls_ca: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct LogoutArgs {
    /// The registry's host, with its port
    #[arg(default_value = DEFAULT_REGISTRY)]
    registry: String,
}

/// Tries the credentials, and keeps them if the registry takes them.
pub(crate) fn login(args: &LoginArgs) -> Result<(), ImageCommandError> {
    let user = match &args.username {
        Some(user) => user.clone(),
        None if args.password_stdin || !io::stdin().is_terminal() => {
            let problem = "needed where standard input is not a terminal".to_owned();
            return Err(CliError::Option { option: "--username", problem }.into());
        }
        None => ask("User: ")?,
    };
    let password = match args.password_stdin {
        true => read_line()?,
        false if io::stdin().is_terminal() => ask_hidden("Password: ")?,
        false => {
            let problem = "needed where standard input is not a terminal".to_owned();
            return Err(CliError::Option { option: "--password-stdin", problem }.into());
        }
    };
    let credentials = Credentials { user, password };
    let tls_ca = args.tls_ca.clone();
    let options = Options { tls_ca, credentials: Some(credentials.clone()), ..Options::default() };
    Client::check_login(&args.registry, &options)?;
    let path = store_credentials(&args.registry, &credentials)?;
    Ok(print(&format!("logged in at {}; kept in {}, which is not encrypted\n", args.registry, path.display()))?)
}

/// Forgets the credentials.
pub(crate) fn forget(args: &LogoutArgs) -> Result<(), ImageCommandError> {
    let text = match logout(&args.registry)? {
        true => format!("logged out of {}\n", args.registry),
        false => format!("amphi keeps no credentials for {}\n", args.registry),
    };
    Ok(print(&text)?)
}

fn failed(source: io::Error) -> CliError {
    CliError::Process { action: "read from standard input", source }
}

fn ask(question: &str) -> Result<String, CliError> {
    eprint!("{question}");
    io::stderr().flush().map_err(failed)?;
    read_line()
}

fn read_line() -> Result<String, CliError> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).map_err(failed)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Asks without showing what is typed.
fn ask_hidden(question: &str) -> Result<String, CliError> {
    let stdin = io::stdin();
    let before = tcgetattr(&stdin).map_err(|errno| failed(errno.into()))?;
    let mut hidden = before.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Flush, &hidden).map_err(|errno| failed(errno.into()))?;
    let line = ask(question);
    let restored = tcsetattr(&stdin, OptionalActions::Flush, &before).map_err(|errno| failed(errno.into()));
    eprintln!();
    restored.and(line)
}
