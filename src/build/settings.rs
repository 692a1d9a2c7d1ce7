//! Steps that change the configuration only.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::dockerfile::Command;
use super::error::StepError;
use crate::image::manifest::Execution;

/// The shell of commands in shell form.
pub(super) const SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// A command as program and arguments.
pub(super) fn argv(command: &Command, shell: &[String]) -> Vec<String> {
    match command {
        Command::Exec(words) => words.clone(),
        Command::Shell(text) => shell.iter().cloned().chain([text.clone()]).collect(),
    }
}

/// Sets a variable, in the place that it has.
pub(super) fn set_variable(execution: &mut Execution, name: &str, value: &str) {
    let variables = execution.env.get_or_insert_default();
    let prefix = format!("{name}=");
    let text = format!("{prefix}{value}");
    match variables.iter_mut().find(|variable| variable.starts_with(&prefix)) {
        Some(variable) => *variable = text,
        None => variables.push(text),
    }
}

/// The variables of a configuration.
pub(super) fn variable(execution: &Execution, name: &str) -> Option<String> {
    let pairs = execution.env.iter().flatten().filter_map(|variable| variable.split_once('='));
    pairs.filter(|(other, _)| *other == name).map(|(_, value)| value.to_owned()).next_back()
}

/// `PORT[-PORT][/PROTOCOL]`, each a port of its own.
pub(super) fn expose(execution: &mut Execution, text: &str) -> Result<(), StepError> {
    for word in text.split_whitespace() {
        let (ports, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let range = first.parse::<u16>().ok().zip(last.parse::<u16>().ok()).filter(|(first, last)| first <= last);
        let protocol = protocol.to_ascii_lowercase();
        let (Some((first, last)), true) = (range, matches!(&*protocol, "tcp" | "udp" | "sctp")) else {
            return Err(StepError::Wrong(format!("{word:?} is no port: write PORT, PORT-PORT or PORT/udp")));
        };
        let exposed = execution.exposed_ports.get_or_insert_default();
        exposed.extend((first..=last).map(|port| (format!("{port}/{protocol}"), json!({}))));
    }
    Ok(())
}

/// Adds a directory for data.
pub(super) fn add_volume(execution: &mut Execution, path: String) {
    let volumes: &mut BTreeMap<String, Value> = execution.volumes.get_or_insert_default();
    volumes.insert(path, json!({}));
}

/// How docker keeps a health check; amphi does not carry it out.
pub(super) fn healthcheck(options: &[(String, String)], command: Option<&Command>) -> Result<Value, StepError> {
    let mut check = serde_json::Map::new();
    check.insert(
        "Test".into(),
        match command {
            None => json!(["NONE"]),
            Some(Command::Shell(text)) => json!(["CMD-SHELL", text]),
            Some(Command::Exec(words)) => {
                Value::from_iter(std::iter::once("CMD").chain(words.iter().map(String::as_str)))
            }
        },
    );
    for (name, text) in options {
        let wrong =
            || StepError::Wrong(format!("--{name}={text}: write a time such as 30s or 1m30s, or a number of retries"));
        let value = match &**name {
            "retries" => Value::from(text.parse::<u32>().map_err(|_| wrong())?),
            _ => Value::from(u64::try_from(duration(text).ok_or_else(wrong)?.as_nanos()).map_err(|_| wrong())?),
        };
        let key = match &**name {
            "interval" => "Interval",
            "timeout" => "Timeout",
            "start-period" => "StartPeriod",
            "start-interval" => "StartInterval",
            _ => "Retries",
        };
        check.insert(key.into(), value);
    }
    Ok(Value::Object(check))
}

/// A time as Go writes it, such as `1m30s`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut all = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit = rest[digits..]
            .find(|c: char| c.is_ascii_digit())
            .map_or(&rest[digits..], |end| &rest[digits..digits + end]);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        all = all.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = &rest[digits + unit.len()..];
    }
    (!text.is_empty()).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_keep_their_places() {
        let mut execution = Execution::default();
        for (name, value) in [("A", "1"), ("B", "2"), ("A", "x=y")] {
            set_variable(&mut execution, name, value);
        }
        assert_eq!(execution.env.as_deref(), Some(&["A=x=y".to_owned(), "B=2".to_owned()][..]));
        assert_eq!((variable(&execution, "A").as_deref(), variable(&execution, "C")), (Some("x=y"), None));
    }

    #[test]
    fn ports_have_protocols() {
        let mut execution = Execution::default();
        expose(&mut execution, "80 53/UDP 8000-8001/tcp").unwrap();
        let ports: Vec<_> = execution.exposed_ports.unwrap().into_keys().collect();
        assert_eq!(ports, ["53/udp", "80/tcp", "8000/tcp", "8001/tcp"]);
        for text in ["x", "70000", "2-1", "1/x"] {
            assert!(expose(&mut Execution::default(), text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_gos() {
        for (text, milliseconds) in [("30s", 30_000), ("1m30s", 90_000), ("1.5h", 5_400_000), ("250ms", 250)] {
            assert_eq!(duration(text), Some(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "5", "s", "1x", "1s2", "1..2s", "-1s"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
