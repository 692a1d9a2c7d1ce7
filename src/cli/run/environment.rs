//! Environment variables from `--env` and `--env-file`, with docker's rules.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::error::CliError;

/// All variables: the files' first, then the options', so that a later one outranks an earlier one.
pub(super) fn collect(files: &[PathBuf], options: &[OsString]) -> Result<Vec<(OsString, OsString)>, CliError> {
    let mut variables = Vec::new();
    for path in files {
        let text = fs::read(path).map_err(|source| CliError::File { action: "read", path: path.clone(), source })?;
        for (number, line) in text.split(|&b| b == b'\n').enumerate() {
            variables.extend(file_line(path, number + 1, line)?);
        }
    }
    for option in options {
        let problem =
            || CliError::Option { option: "--env", problem: format!("{option:?} has no name before its value") };
        variables.extend(pair(option.as_bytes()).ok_or_else(problem)?.resolve());
    }
    Ok(variables)
}

/// `NAME=VALUE`, or `NAME` alone.
struct Pair {
    name: OsString,
    value: Option<OsString>,
}

impl Pair {
    /// The variable; a name alone takes the host's value, and is nothing where the host has none.
    fn resolve(self) -> Option<(OsString, OsString)> {
        let value = self.value.or_else(|| std::env::var_os(&self.name))?;
        Some((self.name, value))
    }
}

fn pair(text: &[u8]) -> Option<Pair> {
    let equals = text.iter().position(|&b| b == b'=');
    let (name, value) = match equals {
        Some(at) => (&text[..at], Some(OsString::from_vec(text[at + 1..].to_vec()))),
        None => (text, None),
    };
    (!name.is_empty()).then(|| Pair { name: OsStr::from_bytes(name).to_owned(), value })
}

fn file_line(path: &Path, number: usize, line: &[u8]) -> Result<Option<(OsString, OsString)>, CliError> {
    let line = line.strip_suffix(b"\r").unwrap_or(line).trim_ascii_start();
    if line.is_empty() || line.starts_with(b"#") {
        return Ok(None);
    }
    let problem = || CliError::Option {
        option: "--env-file",
        problem: format!("{}, line {number}: a line is NAME=VALUE or NAME, without blanks in the name", path.display()),
    };
    let pair = pair(line).ok_or_else(problem)?;
    if pair.name.as_bytes().iter().any(u8::is_ascii_whitespace) {
        return Err(problem());
    }
    Ok(pair.resolve())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_file(text: &str) -> Result<Vec<(OsString, OsString)>, CliError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        collect(&[file.path().to_owned()], &[])
    }

    #[test]
    fn files_hold_a_variable_a_line() {
        let found = from_file("# note\n\nA=1\r\n  B=two words # kept\nC==\nSURELY_NOT_SET_HERE\n").unwrap();
        let expected = [("A", "1"), ("B", "two words # kept"), ("C", "=")].map(|(n, v)| (n.into(), v.into()));
        assert_eq!(found, expected);
    }

    #[test]
    fn bad_lines_are_named() {
        for text in ["A=1\n=x\n", "A=1\nB C=1\n"] {
            let error = from_file(text).unwrap_err().to_string();
            assert!(error.contains("line 2"), "{error}");
        }
    }

    #[test]
    fn options_copy_the_hosts_value() {
        let path = std::env::var_os("PATH").unwrap();
        let found = collect(&[], &["PATH".into(), "SURELY_NOT_SET_HERE".into(), "A=".into()]).unwrap();
        assert_eq!(found, [("PATH".into(), path), ("A".into(), "".into())]);
        assert!(collect(&[], &["=x".into()]).is_err());
        assert!(collect(&[], &["".into()]).is_err());
    }
}
