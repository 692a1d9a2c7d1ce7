//! What follows an instruction's name.

use super::lines::{HereDocument, Line};
use super::{Command, Copy, Dockerfile, Instruction, Stage, Step, words};

type Parsed<T> = Result<T, String>;

pub(super) fn stage(line: &Line, escape: char) -> Parsed<Stage> {
    let (flags, rest) = flags(&line.rest, escape);
    let platform = flags_of("FROM", flags, &["platform"])?.pop().map(|(_, value)| value);
    let words: Vec<&str> = rest.split_whitespace().collect();
    let (image, name) = match words[..] {
        [image] => (image, None),
        [image, word, name] if word.eq_ignore_ascii_case("as") => (image, Some(name.to_ascii_lowercase())),
        _ => return Err("FROM takes an image, and a name for the stage after AS".into()),
    };
    let is_name = |name: &String| {
        name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    if let Some(name) = name.as_ref().filter(|name| !is_name(name) || *name == "scratch") {
        return Err(format!(
            "{name:?} is no name for a stage: it begins with a letter and has letters, digits, -, _ and ."
        ));
    }
    let text = text(line);
    let from = Step { line: line.number, text, instruction: Instruction::From { platform } };
    Ok(Stage { from, image: image.to_owned(), name, steps: Vec::new() })
}

fn text(line: &Line) -> String {
    format!("{} {}", line.keyword, line.rest)
}

pub(super) fn step(line: Line, escape: char) -> Parsed<Step> {
    let shown = text(&line);
    let number = line.number;
    Ok(Step { line: number, text: shown, instruction: instruction(line, escape)? })
}

fn instruction(line: Line, escape: char) -> Parsed<Instruction> {
    let Line { keyword, rest, here_documents, .. } = line;
    let keyword = &*keyword;
    if rest.is_empty() {
        return Err(match KNOWN.contains(&keyword) {
            true => format!("{keyword} needs an argument"),
            false => unknown(keyword),
        });
    }
    let one = || rest.clone();
    Ok(match keyword {
        "ARG" => Instruction::Arg(arguments(&rest, escape)?),
        "ENV" => Instruction::Env(pairs(keyword, &rest, escape)?),
        "LABEL" => Instruction::Label(pairs(keyword, &rest, escape)?),
        "WORKDIR" => Instruction::Workdir(one()),
        "USER" => Instruction::User(one()),
        "STOPSIGNAL" => Instruction::StopSignal(one()),
        "MAINTAINER" => Instruction::Maintainer(one()),
        "COPY" | "ADD" => Instruction::Copy(copy(keyword, &rest, here_documents, escape)?),
        "RUN" => {
            let (flags, rest) = flags(&rest, escape);
            let network = flags_of(keyword, flags, &["network"])?.pop().map(|(_, value)| value);
            Instruction::Run { command: command(rest), here_documents, network }
        }
        "CMD" => Instruction::Cmd(command(&rest)),
        "ENTRYPOINT" => Instruction::Entrypoint(command(&rest)),
        "SHELL" => match command(&rest) {
            Command::Exec(words) if !words.is_empty() => Instruction::Shell(words),
            _ => return Err("SHELL takes a JSON array, such as [\"/bin/bash\", \"-c\"]".into()),
        },
        "EXPOSE" => Instruction::Expose(words::split(&rest, escape)),
        "VOLUME" => Instruction::Volume(match command(&rest) {
            Command::Exec(paths) => paths,
            Command::Shell(_) => words::split(&rest, escape),
        }),
        "HEALTHCHECK" => healthcheck(&rest, escape)?,
        "ONBUILD" => {
            let mut kept = rest.clone();
            for document in &here_documents {
                kept.push_str(&format!("\n{}{}\n", document.text, document.name));
            }
            Dockerfile::parse_trigger(&kept).map_err(|error| error.problem)?;
            Instruction::OnBuild(kept)
        }
        _ => return Err(unknown(keyword)),
    })
}

const KNOWN: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

fn unknown(keyword: &str) -> String {
    let keyword: String = keyword.chars().take(40).collect();
    format!("{keyword:?} is no instruction: there are {}", KNOWN.join(", "))
}

/// The options in front of an instruction's arguments, and those.
fn flags(rest: &str, escape: char) -> (Vec<String>, &str) {
    let mut flags = Vec::new();
    let mut rest = rest.trim_start();
    while rest.starts_with("--") {
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let word = &rest[..end];
        // A value in quotes may have spaces.
        let whole = words::split(rest, escape).into_iter().next().filter(|whole| rest.starts_with(&**whole));
        let length = whole.as_ref().map_or(word.len(), String::len);
        flags.push(rest[..length].to_owned());
        rest = rest[length..].trim_start();
        if word == "--" {
            break;
        }
    }
    (flags, rest)
}

/// The options that are known, with their values; each at most once. `--link` changes nothing that can be seen.
fn flags_of(keyword: &str, flags: Vec<String>, known: &[&str]) -> Parsed<Vec<(String, String)>> {
    let mut found: Vec<(String, String)> = Vec::new();
    for flag in flags {
        let text = flag.trim_start_matches("--");
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        if text.is_empty() || (matches!(keyword, "COPY" | "ADD") && name == "link") {
            continue;
        }
        if !known.contains(&name) {
            let known = known.iter().map(|name| format!("--{name}")).collect::<Vec<_>>().join(", ");
            return Err(format!("{keyword} has no option --{name} in amphi, only {known}"));
        }
        if value.is_empty() {
            return Err(format!("{keyword} --{name} needs a value: --{name}=VALUE"));
        }
        if found.iter().any(|(other, _)| other == name) {
            return Err(format!("{keyword} has --{name} twice"));
        }
        found.push((name.to_owned(), value.to_owned()));
    }
    Ok(found)
}

/// A command: a JSON array of strings, or else a text for a shell.
fn command(rest: &str) -> Command {
    match rest.starts_with('[').then(|| serde_json::from_str(rest)) {
        Some(Ok(words)) => Command::Exec(words),
        _ => Command::Shell(rest.to_owned()),
    }
}

/// `NAME[=VALUE]...`
fn arguments(rest: &str, escape: char) -> Parsed<Vec<(String, Option<String>)>> {
    let words = words::split(rest, escape);
    let arguments = words.iter().map(|word| {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (&**word, None),
        };
        if is_variable(name) {
            Ok((name.to_owned(), value))
        } else {
            Err(format!("{name:?} is no name for a variable"))
        }
    });
    arguments.collect()
}

fn is_variable(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// `NAME=VALUE...`, or in the old form `NAME VALUE`, where the value is the rest of the line.
fn pairs(keyword: &str, rest: &str, escape: char) -> Parsed<Vec<(String, String)>> {
    let words = words::split(rest, escape);
    if !words[0].contains('=') {
        let (name, value) = rest.split_once(char::is_whitespace).ok_or(format!("{keyword} takes NAME=VALUE"))?;
        return Ok(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    let pair = |word: &String| match word.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{keyword}: {word:?} is not NAME=VALUE; a value with spaces needs quotes")),
    };
    words.iter().map(pair).collect()
}

fn copy(keyword: &str, rest: &str, here_documents: Vec<HereDocument>, escape: char) -> Parsed<Copy> {
    let (flags, rest) = flags(rest, escape);
    let known: &[&str] = if keyword == "COPY" { &["from", "chown", "chmod"] } else { &["chown", "chmod"] };
    let mut found = flags_of(keyword, flags, known)?;
    let mut flag = |name: &str| {
        let at = found.iter().position(|(other, _)| other == name)?;
        Some(found.swap_remove(at).1)
    };
    let (from, chown, chmod) = (flag("from"), flag("chown"), flag("chmod"));
    let mut words = match command(rest) {
        Command::Exec(words) => words,
        Command::Shell(rest) => rest.split_whitespace().map(str::to_owned).collect(),
    };
    let destination = words.pop().unwrap_or_default();
    let is_announced = |word: &String| {
        word.strip_prefix("<<").is_some_and(|word| {
            let name = word.trim_start_matches('-').replace(['"', '\''], "");
            here_documents.iter().any(|document| document.name == name)
        })
    };
    let sources: Vec<String> = words.into_iter().filter(|word| !is_announced(word)).collect();
    if sources.is_empty() && here_documents.is_empty() || destination.is_empty() {
        return Err(format!("{keyword} takes at least one source and a destination"));
    }
    if from.is_some() && !here_documents.is_empty() {
        return Err(format!("{keyword} --from cannot copy here-documents"));
    }
    Ok(Copy { add: keyword == "ADD", sources, here_documents, destination, from, chown, chmod })
}

fn healthcheck(rest: &str, escape: char) -> Parsed<Instruction> {
    let known = ["interval", "timeout", "start-period", "start-interval", "retries"];
    let (flags, rest) = flags(rest, escape);
    let options = flags_of("HEALTHCHECK", flags, &known)?;
    let (word, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let command = match word.to_ascii_uppercase().as_str() {
        "NONE" if rest.trim().is_empty() && options.is_empty() => None,
        "CMD" if !rest.trim().is_empty() => Some(command(rest.trim())),
        _ => return Err("HEALTHCHECK takes NONE, or CMD and a command".into()),
    };
    Ok(Instruction::Healthcheck { options, command })
}
