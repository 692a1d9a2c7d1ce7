//! Dockerfiles: the instructions that they are made of (docker's "Dockerfile reference").
//!
//! Variables are not replaced here: what they stand for is known only when the instructions before have been carried out.

mod instructions;
mod lines;
mod words;

pub use lines::HereDocument;
pub(super) use words::Expander;

use instructions::{stage, step};

/// The longest Dockerfile that is read, in bytes.
pub const DOCKERFILE_LIMIT: u64 = 1 << 20;

/// A Dockerfile that has been understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dockerfile {
    /// The character that escapes others.
    pub escape: char,
    /// The instructions before the first stage, all of them `ARG`.
    pub global: Vec<Step>,
    /// The stages, at least one.
    pub stages: Vec<Stage>,
}

/// The instructions that make one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// Where the stage begins.
    pub from: Step,
    /// The image to begin with, with its variables.
    pub image: String,
    /// What other stages call it, in lower case.
    pub name: Option<String>,
    /// What to do.
    pub steps: Vec<Step>,
}

/// An instruction and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The line where it begins, counted from 1; 0 in what another image brings along.
    pub line: usize,
    /// The instruction as people read it, in one line.
    pub text: String,
    /// What is to be done.
    pub instruction: Instruction,
}

/// What is to be done. Texts have their variables, quotes and escapes still.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instruction {
    /// Begin a stage.
    From {
        /// `--platform`.
        platform: Option<String>,
    },
    /// Take variables from the command line, with what they are otherwise.
    Arg(Vec<(String, Option<String>)>),
    /// Set variables.
    Env(Vec<(String, String)>),
    /// Add remarks.
    Label(Vec<(String, String)>),
    /// Change the directory.
    Workdir(String),
    /// Change the user.
    User(String),
    /// Copy files.
    Copy(Copy),
    /// Run a command.
    Run {
        /// The command.
        command: Command,
        /// What follows it.
        here_documents: Vec<HereDocument>,
        /// `--network`.
        network: Option<String>,
    },
    /// Change what runs commands in shell form.
    Shell(Vec<String>),
    /// Set the command.
    Cmd(Command),
    /// Set the entry point.
    Entrypoint(Command),
    /// Name ports.
    Expose(Vec<String>),
    /// Name directories for data.
    Volume(Vec<String>),
    /// Set the signal that ends the program.
    StopSignal(String),
    /// Set how to see whether the program is well; `None` not at all.
    Healthcheck {
        /// `--interval` and the like.
        options: Vec<(String, String)>,
        /// What to run.
        command: Option<Command>,
    },
    /// Name the author.
    Maintainer(String),
    /// Keep an instruction for images that begin with this one.
    OnBuild(String),
}

/// A command in one of its two forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// For a shell.
    Shell(String),
    /// Program and arguments.
    Exec(Vec<String>),
}

/// `COPY` or `ADD`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copy {
    /// Whether it is `ADD`, which unpacks archives.
    pub add: bool,
    /// What to copy.
    pub sources: Vec<String>,
    /// Files that are in the Dockerfile itself.
    pub here_documents: Vec<HereDocument>,
    /// Where to.
    pub destination: String,
    /// `--from`: a stage or an image.
    pub from: Option<String>,
    /// `--chown`.
    pub chown: Option<String>,
    /// `--chmod`.
    pub chmod: Option<String>,
}

/// Why a Dockerfile cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct DockerfileError {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong.
    pub problem: String,
}

impl Dockerfile {
    /// Reads a Dockerfile.
    ///
    /// # Errors
    /// An instruction is unknown or malformed, or there is no stage.
    pub fn parse(text: &str) -> Result<Self, DockerfileError> {
        let (escape, lines) = lines::split(text)?;
        let mut file = Self { escape, global: Vec::new(), stages: Vec::new() };
        let end = lines.last().map_or(1, |line| line.number);
        for line in lines {
            let number = line.number;
            let wrong = |problem: String| DockerfileError { line: number, problem };
            if line.keyword == "FROM" {
                let stage = stage(&line, escape).map_err(wrong)?;
                if stage.name.is_some() && file.stages.iter().any(|other| other.name == stage.name) {
                    return Err(wrong(format!("two stages are called {}", stage.name.unwrap_or_default())));
                }
                file.stages.push(stage);
                continue;
            }
            let step = step(line, escape).map_err(wrong)?;
            match file.stages.last_mut() {
                Some(stage) => stage.steps.push(step),
                None if matches!(step.instruction, Instruction::Arg(_)) => file.global.push(step),
                None => return Err(wrong("the first instruction must be FROM, or ARG before it".into())),
            }
        }
        if file.stages.is_empty() {
            return Err(DockerfileError { line: end, problem: "there is no FROM".into() });
        }
        Ok(file)
    }

    /// Reads one instruction that an image has kept for those that begin with it.
    ///
    /// # Errors
    /// It is none that may be kept so.
    pub fn parse_trigger(text: &str) -> Result<Step, DockerfileError> {
        let (escape, lines) = lines::split(text)?;
        let wrong = |problem: String| DockerfileError { line: 0, problem: format!("ONBUILD {text}: {problem}") };
        let mut lines = lines.into_iter();
        match (lines.next(), lines.next()) {
            (Some(line), None) if !matches!(&*line.keyword, "FROM" | "ONBUILD" | "MAINTAINER") => {
                let mut step = step(line, escape).map_err(wrong)?;
                step.line = 0;
                Ok(step)
            }
            _ => Err(wrong("is no instruction that an image may keep for others".into())),
        }
    }
}

#[cfg(test)]
mod tests;
