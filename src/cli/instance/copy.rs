//! `amphi cp`.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use amphi::instance::{CopySource, Instance, Instances, Target};
use clap::Args;
use rustix::fs::{Mode, OFlags};

use crate::error::CliError;

#[derive(Debug, Args)]
#[command(
    override_usage = "amphi cp [OPTIONS] PATH|- INSTANCE:PATH\n       amphi cp [OPTIONS] INSTANCE:PATH PATH|-",
    after_help = "A directory is copied with all that is in it, into DESTINATION where that is a directory, else as DESTINATION. With `/.` behind it, \
                  what is in it is copied. `-` is a tar archive on standard input or output. What is copied belongs to root of the \
                  instance, or to you."
)]
pub(crate) struct CpArgs {
    /// Keep owners and extended attributes; out of an instance that takes root
    #[arg(short, long)]
    archive: bool,
    /// What to copy
    #[arg(value_name = "SOURCE")]
    source: OsString,
    /// Where to
    #[arg(value_name = "DESTINATION")]
    destination: OsString,
}

/// One side of a copy.
enum Place {
    /// A tar archive on a standard stream.
    Stream,
    /// A path of the host.
    Host(PathBuf),
    /// A path of an instance.
    Instance(String, PathBuf),
}

impl Place {
    /// `INSTANCE:PATH`, unless it is plainly a path of the host.
    fn parse(text: &OsStr) -> Self {
        let bytes = text.as_bytes();
        if bytes == b"-" {
            return Self::Stream;
        }
        match bytes.iter().position(|&byte| byte == b':') {
            Some(colon) if !matches!(bytes[0], b'/' | b'.') && colon > 0 => {
                let path = OsStr::from_bytes(&bytes[colon + 1..]);
                let instance = String::from_utf8_lossy(&bytes[..colon]).into_owned();
                Self::Instance(instance, if path.is_empty() { "/".into() } else { path.into() })
            }
            _ => Self::Host(text.into()),
        }
    }
}

/// Copies files between the host and a stopped instance.
pub(crate) fn run(args: &CpArgs) -> Result<(), CliError> {
    let instances = Instances::open_default();
    match (Place::parse(&args.source), Place::parse(&args.destination)) {
        (Place::Instance(name, source), Place::Stream) => {
            let instance = instances.find(&name)?;
            let name = last_name(&source).unwrap_or(b".");
            Ok(instance.copy_to_tar(&source, name, io::BufWriter::new(io::stdout().lock()))?)
        }
        (Place::Instance(name, source), Place::Host(destination)) => {
            out(&instances.find(&name)?, &source, &destination, args.archive)
        }
        (Place::Stream, Place::Instance(name, destination)) => {
            let instance = instances.find(&name)?;
            // A directory or nothing: a name for the top of an archive there is none.
            let below = [destination.as_os_str().as_bytes(), b"/."].concat();
            if instance.look(Path::new(OsStr::from_bytes(&below)))? != Target::Directory {
                return wrong(format!("{} is no directory of the instance", destination.display()));
            }
            Ok(instance.copy_in(CopySource::Tar(standard_input()?), &destination, b"")?)
        }
        (Place::Host(source), Place::Instance(name, destination)) => {
            into(&instances.find(&name)?, &source, &destination, args.archive)
        }
        _ => wrong("one of the two is a path of an instance, written INSTANCE:PATH".to_owned()),
    }
}

fn wrong<T>(problem: String) -> Result<T, CliError> {
    Err(CliError::Option { option: "cp", problem })
}

/// The last part of a path; `None` where it stands for what is in a directory.
fn last_name(path: &Path) -> Option<&[u8]> {
    let bytes = path.as_os_str().as_bytes();
    let trimmed = &bytes[..bytes.iter().rposition(|&byte| byte != b'/').map_or(0, |last| last + 1)];
    let name = trimmed.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    (!matches!(name, b"" | b"." | b"..")).then_some(name)
}

fn has_slash(path: &Path) -> bool {
    path.as_os_str().as_bytes().ends_with(b"/")
}

fn without_slash(path: &Path) -> PathBuf {
    let mut bytes = path.as_os_str().as_bytes().to_vec();
    while bytes.len() > 1 && bytes.ends_with(b"/") {
        bytes.pop();
    }
    OsString::from_vec(bytes).into()
}

fn directory(path: &Path) -> Result<OwnedFd, CliError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| CliError::File {
        action: "open",
        path: path.to_owned(),
        source: errno.into(),
    })
}

fn out(instance: &Instance, source: &Path, destination: &Path, archive: bool) -> Result<(), CliError> {
    let name = last_name(source);
    if destination.is_dir() {
        return Ok(instance.copy_out(source, directory(destination)?, name.unwrap_or(b"."), archive)?);
    }
    let from_directory = instance.look(source)? == Target::Directory;
    if from_directory && destination.exists() {
        return wrong(format!("{} is no directory, so that none can be copied to it", destination.display()));
    }
    if !from_directory && has_slash(destination) {
        return wrong(format!("there is no directory {}", destination.display()));
    }
    let destination = without_slash(destination);
    let Some(own) = last_name(&destination) else {
        return wrong(format!("{} is no name for a copy", destination.display()));
    };
    Ok(instance.copy_out(source, directory(destination.parent().unwrap_or(Path::new("/")))?, own, archive)?)
}

fn into(instance: &Instance, source: &Path, destination: &Path, archive: bool) -> Result<(), CliError> {
    let failed = |error| CliError::File { action: "read", path: source.to_owned(), source: error };
    let metadata = fs::symlink_metadata(source).map_err(failed)?;
    let is_directory = metadata.is_dir() || has_slash(source) || last_name(source).is_none();
    let destination = if is_directory { without_slash(destination) } else { destination.to_owned() };
    let (parent, name) = match last_name(source) {
        Some(name) if !has_slash(source) => (directory(source.parent().unwrap_or(Path::new("/")))?, name),
        Some(_) | None => (directory(source)?, &b"."[..]),
    };
    let copied_as = last_name(source).unwrap_or_default();
    let source = CopySource::Host { directory: &parent, name, archive };
    Ok(instance.copy_in(source, &destination, copied_as)?)
}

/// Standard input in a file, which can be read more than once.
fn standard_input() -> Result<File, CliError> {
    let failed = |source| CliError::Process { action: "take over standard input", source };
    let mut file = tempfile::tempfile().map_err(failed)?;
    io::copy(&mut io::stdin().lock(), &mut file).map_err(failed)?;
    io::Seek::rewind(&mut file).map_err(failed)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        let instance = |text: &str| match Place::parse(text.as_ref()) {
            Place::Instance(name, path) => Some((name, path.to_string_lossy().into_owned())),
            _ => None,
        };
        assert_eq!(instance("web:/etc/x:y"), Some(("web".into(), "/etc/x:y".into())));
        assert_eq!(instance("web:"), Some(("web".into(), "/".into())));
        for host in ["/a:b", "./a:b", "a", ":a"] {
            assert!(matches!(Place::parse(host.as_ref()), Place::Host(_)), "{host}");
        }
        assert!(matches!(Place::parse("-".as_ref()), Place::Stream));
    }

    #[test]
    fn the_last_part_of_a_path_is_its_name() {
        for (path, name) in
            [("/a/b", Some("b")), ("a/", Some("a")), ("a//b//", Some("b")), ("a/.", None), ("/", None), ("..", None)]
        {
            assert_eq!(last_name(Path::new(path)), name.map(str::as_bytes), "{path}");
        }
        assert_eq!(without_slash(Path::new("/a//")), Path::new("/a"));
        assert_eq!(without_slash(Path::new("/")), Path::new("/"));
    }
}
