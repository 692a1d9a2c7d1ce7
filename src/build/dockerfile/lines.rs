//! The lines of a Dockerfile that are instructions: comments left out, continued lines joined, here-documents gathered.

use super::DockerfileError;

/// An instruction as it stands in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// Where it begins, counted from 1.
    pub(super) number: usize,
    /// What it is, in upper case.
    pub(super) keyword: String,
    /// What follows.
    pub(super) rest: String,
    pub(super) here_documents: Vec<HereDocument>,
}

/// Lines that follow an instruction and belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HereDocument {
    /// What ends it.
    pub name: String,
    /// Whether variables mean something in it.
    pub expand: bool,
    /// Whether tabs in front of its lines are left out.
    pub strip_tabs: bool,
    /// Its lines.
    pub text: String,
}

/// The characters that a Dockerfile may choose to escape others with.
const ESCAPES: [char; 2] = ['\\', '`'];
/// What may have here-documents.
const WITH_DOCUMENTS: [&str; 3] = ["RUN", "COPY", "ADD"];

/// Splits the file into instructions, and finds the character that escapes others.
pub(super) fn split(text: &str) -> Result<(char, Vec<Line>), DockerfileError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let escape = directives(text)?;
    let mut found = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((index, first)) = lines.next() {
        let number = index + 1;
        let first = first.trim_start();
        if first.is_empty() || first.starts_with('#') {
            continue;
        }
        let mut joined = String::new();
        let mut next = Some(first);
        while let Some(part) = next {
            let Some(part) = continued(part, escape) else {
                joined.push_str(part);
                break;
            };
            joined.push_str(part);
            // Comments and empty lines in between count for nothing.
            let is_nothing = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
            next = lines.by_ref().map(|(_, line)| line).find(|line| !is_nothing(line));
        }
        let joined = joined.trim();
        let (keyword, rest) = joined.split_once(char::is_whitespace).unwrap_or((joined, ""));
        let keyword = keyword.to_ascii_uppercase();
        let mut here_documents = Vec::new();
        // An instruction that waits in ONBUILD has its own ones.
        let waiting = rest.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
        let of = if keyword == "ONBUILD" { &waiting } else { &keyword };
        if WITH_DOCUMENTS.contains(&&**of) {
            for (name, expand, strip_tabs) in announced(rest) {
                let mut document = HereDocument { name, expand, strip_tabs, text: String::new() };
                loop {
                    let Some((_, line)) = lines.next() else {
                        let problem = format!("the here-document {:?} does not end", document.name);
                        return Err(DockerfileError { line: number, problem });
                    };
                    let line = if strip_tabs { line.trim_start_matches('\t') } else { line };
                    if line == document.name {
                        break;
                    }
                    document.text.push_str(line);
                    document.text.push('\n');
                }
                here_documents.push(document);
            }
        }
        found.push(Line { number, keyword, rest: rest.trim().to_owned(), here_documents });
    }
    Ok((escape, found))
}

/// The line without what says that it goes on in the next; `None` where it does not.
fn continued(line: &str, escape: char) -> Option<&str> {
    let line = line.trim_end_matches([' ', '\t']).strip_suffix(escape)?;
    // An escaped one says nothing.
    if line.ends_with(escape) { None } else { Some(line) }
}

/// Reads the comments at the beginning that are directives. Only `escape` means something here.
fn directives(text: &str) -> Result<char, DockerfileError> {
    let mut escape = None;
    for (index, line) in text.lines().enumerate() {
        let Some((name, value)) = line.trim_start().strip_prefix('#').and_then(|line| line.split_once('=')) else {
            break;
        };
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric()) {
            break;
        }
        if name == "escape" {
            let chosen = ESCAPES.into_iter().find(|c| value.chars().eq([*c]));
            let problem = match chosen {
                _ if escape.is_some() => "the directive escape comes twice".to_owned(),
                None => format!("the directive escape must be \\ or `, and not {value:?}"),
                Some(chosen) => {
                    escape = Some(chosen);
                    continue;
                }
            };
            return Err(DockerfileError { line: index + 1, problem });
        }
    }
    Ok(escape.unwrap_or(ESCAPES[0]))
}

/// The here-documents that an instruction announces: `<<NAME`, `<<-NAME`, with the name in quotes maybe.
fn announced(rest: &str) -> Vec<(String, bool, bool)> {
    let mut found = Vec::new();
    for word in outside_quotes(rest) {
        let word = word.trim_start_matches(|c: char| c.is_ascii_digit());
        let Some(word) = word.strip_prefix("<<") else { continue };
        let (word, strip_tabs) = word.strip_prefix('-').map_or((word, false), |word| (word, true));
        let name: String = word.chars().filter(|c| !matches!(c, '"' | '\'')).collect();
        let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
        if !name.is_empty() && name.chars().all(is_name) {
            found.push((name.clone(), name.len() == word.len(), strip_tabs));
        }
    }
    found
}

/// The words that begin outside of quotes.
fn outside_quotes(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let (mut start, mut quote, mut escaped) = (None, None, false);
    for (at, c) in text.char_indices() {
        match quote {
            _ if escaped => escaped = false,
            _ if c == '\\' && quote != Some('\'') => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if matches!(c, '"' | '\'') => quote = Some(c),
            None if c.is_whitespace() => {
                words.extend(start.take().map(|start| &text[start..at]));
                continue;
            }
            None => {}
        }
        start.get_or_insert(at);
    }
    words.extend(start.map(|start| &text[start..]));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rests(text: &str) -> Vec<(usize, String, String)> {
        let lines = split(text).unwrap().1;
        lines.into_iter().map(|line| (line.number, line.keyword, line.rest)).collect()
    }

    fn line(number: usize, keyword: &str, rest: &str) -> (usize, String, String) {
        (number, keyword.into(), rest.into())
    }

    #[test]
    fn continued_lines_are_one_and_comments_none() {
        let text = "\u{feff}# a comment\n\nfrom a\n  run b \\\n  # not c\n\n   c\\\nd\\\\\nenv x\\  \n";
        let expected = [line(3, "FROM", "a"), line(4, "RUN", "b    cd\\\\"), line(9, "ENV", "x")];
        assert_eq!(rests(text), expected);
    }

    #[test]
    fn the_escape_character_is_chosen_at_the_beginning() {
        let lines = rests("# syntax=x\n# Escape = `\nFROM a\nCOPY b` \n c:\\\n");
        assert_eq!(lines, [line(3, "FROM", "a"), line(4, "COPY", "b c:\\")]);
        // Later it is a comment.
        assert_eq!(split("FROM a\n# escape=`\n").unwrap().0, '\\');
        assert_eq!(split("\n# escape=`\n").unwrap().0, '\\');
        for (text, number) in [("#escape=x\n", 1), ("#escape=`\n#escape=`\n", 2)] {
            assert_eq!(split(text).unwrap_err().line, number);
        }
    }

    #[test]
    fn here_documents_belong_to_their_instruction() {
        let text = "RUN <<EOF cat 5<<-\"x\" '<<no' a<<b\n1 \\\n# 2\nEOF\n\t3\n\tx\nRUN next <<<no\nENV a <<b\n";
        let lines = split(text).unwrap().1;
        let documents = &lines[0].here_documents;
        assert_eq!(documents.len(), 2);
        assert_eq!((&*documents[0].text, documents[0].expand), ("1 \\\n# 2\n", true));
        assert_eq!((&*documents[1].text, documents[1].expand), ("3\n", false));
        assert_eq!((lines[1].number, lines[1].keyword.as_str()), (7, "RUN"));
        assert!(lines[1..].iter().all(|line| line.here_documents.is_empty()));
        assert_eq!(split("FROM a\nCOPY <<x /b\nc\n").unwrap_err().line, 2);
    }
}
