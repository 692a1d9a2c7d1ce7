//! The command line: one module a subcommand.

mod build;
mod compare;
mod completions;
mod doctor;
mod image;
mod instance;
mod kernel;
mod output;
mod run;

pub(crate) use image::ImageCommandError;
pub(crate) use kernel::KernelCommandError;

use std::ffi::OsString;
use std::path::PathBuf;

use amphi::host::{Dirs, set_dirs};
use amphi::isolation::Instant;
use clap::{Args, Parser, Subcommand};

use crate::error::CliError;

/// Run one image as a microVM on KVM or as a Linux container, and measure both side by side.
#[derive(Debug, Parser)]
#[command(name = "amphi", version, max_term_width = 100, arg_required_else_help = true, subcommand_required = true)]
// An option that can be given once counts as it is given last, so that one can be added behind an alias.
#[command(args_override_self = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

/// Options before the command.
#[derive(Debug, Args)]
pub(crate) struct GlobalArgs {
    /// Keep kernels, images and what is made from them in DIR
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Keep what lives only as long as an instance in DIR
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Say more on standard error; twice for debugging, three times for everything
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

// `defer`: only the arguments of the command that is named are made. Comments on the structures of arguments would take the place of these
// here, so there are none.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Command {
    /// Run a command in an image
    Run(Box<run::RunArgs>),
    /// List instances
    Ps(instance::PsArgs),
    /// Run a stopped instance once more
    Start(instance::StartArgs),
    /// Copy files between the host and a stopped instance
    Cp(instance::CpArgs),
    /// Show what an instance has changed of its image
    Diff(instance::DiffArgs),
    /// Make an image of what an instance has written
    Commit(instance::CommitArgs),
    /// Remove instances
    Rm(instance::RmArgs),
    /// Build an image from a Dockerfile
    Build(Box<build::BuildArgs>),
    /// Fetch an image from its registry
    Pull(image::PullArgs),
    /// Send an image to a registry
    Push(image::PushArgs),
    /// Take images from a file or an OCI layout into the store
    Load(image::LoadArgs),
    /// Write images to a file or an OCI layout
    Save(image::SaveArgs),
    /// List the images in the store
    Images(image::ImagesArgs),
    /// Give an image a further name
    Tag(image::TagArgs),
    /// Remove images
    Rmi(image::RmiArgs),
    /// Show the steps that made an image
    History(image::HistoryArgs),
    /// Show all about an instance or an image, as JSON
    Inspect(image::InspectArgs),
    /// Remove what neither an image nor an instance needs
    Prune(image::PruneArgs),
    /// Log in at a registry
    Login(image::LoginArgs),
    /// Forget a login
    Logout(image::LogoutArgs),
    /// Measure both isolations side by side
    Compare(Box<compare::CompareArgs>),
    /// List, install, build and inspect guest kernels
    Kernel(kernel::KernelArgs),
    /// Say what this host can do, and how to mend what it cannot
    Doctor(doctor::DoctorArgs),
    /// Print what lets a shell complete this command line
    Completions(completions::CompletionsArgs),
}

/// Reads the command line; has no effects.
///
/// # Errors
/// It is malformed, or asks for help or the version.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, CliError> {
    Ok(Cli::try_parse_from(args)?)
}

/// Carries out the command and returns the exit status.
///
/// # Errors
/// The command failed.
pub(crate) fn dispatch(cli: Cli, start: Instant) -> Result<u8, CliError> {
    crate::logger::install(cli.global.verbose);
    // The only call in this process, so nothing is chosen yet.
    let _ = set_dirs(Dirs { data: cli.global.root.clone(), state: cli.global.state.clone() });
    match cli.command {
        Command::Run(args) => run::run(*args, start),
        Command::Ps(args) => instance::list(&args).map(|()| 0),
        Command::Start(args) => instance::start(&args, start),
        Command::Cp(args) => instance::copy(&args).map(|()| 0),
        Command::Diff(args) => instance::diff(&args).map(|()| 0),
        Command::Commit(args) => instance::commit(&args).map(|()| 0),
        Command::Rm(args) => instance::remove(&args).map(|()| 0),
        Command::Build(args) => build::run(*args).map(|()| 0),
        Command::Pull(args) => done(image::pull(&args)),
        Command::Push(args) => done(image::push(&args)),
        Command::Load(args) => done(image::load(&args)),
        Command::Save(args) => done(image::save(&args)),
        Command::Images(args) => done(image::list(&args)),
        Command::Tag(args) => done(image::tag(&args)),
        Command::Rmi(args) => done(image::remove(&args)),
        Command::History(args) => done(image::history(&args)),
        Command::Inspect(args) => done(image::inspect(&args)),
        Command::Prune(args) => done(image::prune(&args)),
        Command::Login(args) => done(image::login(&args)),
        Command::Logout(args) => done(image::logout(&args)),
        Command::Compare(args) => compare::run(*args, &cli.global),
        Command::Kernel(args) => Ok(kernel::run(args).map(|()| 0)?),
        Command::Doctor(args) => doctor::run(&args),
        Command::Completions(args) => completions::run(&args).map(|()| 0),
    }
}

fn done(result: Result<(), ImageCommandError>) -> Result<u8, CliError> {
    Ok(result.map(|()| 0)?)
}

impl GlobalArgs {
    /// The same options for a child process.
    fn to_args(&self) -> Vec<OsString> {
        let mut args = Vec::new();
        for (option, path) in [("--root", &self.root), ("--state", &self.state)] {
            if let Some(path) = path {
                args.extend([option.into(), path.clone().into_os_string()]);
            }
        }
        args
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn commands_say_the_same_of_themselves_as_in_the_list() {
        let listed = Cli::command();
        let mut built = Cli::command();
        built.build();
        for command in listed.get_subcommands() {
            let alone = built.find_subcommand(command.get_name()).unwrap();
            assert_eq!(alone.get_about().map(ToString::to_string), command.get_about().map(ToString::to_string));
        }
    }

    #[test]
    fn global_options_reach_children() {
        let cli = parse(["amphi", "--root", "/r", "-vv", "doctor"].map(OsString::from)).unwrap();
        assert_eq!(cli.global.to_args(), ["--root", "/r"]);
        assert_eq!(cli.global.verbose, 2);
    }

    #[test]
    fn malformed_lines_and_help_are_told_apart() {
        for (line, on_stderr) in
            [(vec!["amphi", "run", "--bogus"], true), (vec!["amphi", "run", "--help"], false), (vec!["amphi"], true)]
        {
            match parse(line.iter().map(OsString::from)) {
                Err(CliError::Usage(error)) => assert_eq!(error.use_stderr(), on_stderr, "{line:?}"),
                other => panic!("{line:?} gave {other:?}"),
            }
        }
    }
}
