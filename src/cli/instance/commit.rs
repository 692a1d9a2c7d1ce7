//! `amphi commit`.

use amphi::build::change;
use amphi::image::ImageName;
use amphi::instance::{CommitOptions, Instances};
use clap::Args;

use crate::cli::output::print;
use crate::error::CliError;

#[derive(Debug, Args)]
pub(crate) struct CommitArgs {
    /// Who makes the image
    #[arg(short, long, value_name = "NAME")]
    author: Option<String>,
    /// A remark for the image's history
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Change how the image is run by an instruction of a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, USER, VOLUME or WORKDIR; may be
    /// repeated
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// The instance, by its name or the beginning of its ID
    #[arg(value_name = "INSTANCE")]
    instance: String,
    /// What the image is to be called
    #[arg(value_name = "NAME[:TAG]")]
    name: ImageName,
}

/// Makes an image of an instance's image and of what it has written, and prints the image's ID.
pub(crate) fn run(args: &CommitArgs) -> Result<(), CliError> {
    let instance = Instances::open_default().find(&args.instance)?;
    let mut execution = instance.execution()?;
    for text in &args.change {
        change(&mut execution, text)
            .map_err(|error| CliError::Option { option: "--change", problem: format!("{text:?}: {error}") })?;
    }
    let (author, message) = (args.author.clone(), args.message.clone());
    let options = CommitOptions { author, message, execution: Some(execution) };
    let image = instance.commit(&args.name, &options)?;
    print(&format!("{}\n", image.manifest.config.digest))
}
