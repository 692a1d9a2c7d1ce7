//! Words, quotes and variables, as docker's Dockerfiles have them.

use std::iter::Peekable;
use std::str::Chars;

/// The longest that a text may become by its variables, in bytes. A few lines could double it each.
const LIMIT: usize = 1 << 20;
/// How deep `${a:-${b:-...}}` may be.
const DEPTH: usize = 32;

/// Gives variables their values, and takes quotes and escapes away.
pub(in crate::build) struct Expander<'a> {
    /// The character that escapes others.
    pub(in crate::build) escape: char,
    /// What a variable stands for.
    pub(in crate::build) value: &'a dyn Fn(&str) -> Option<String>,
}

impl Expander<'_> {
    /// `word` with all that replaced.
    pub(in crate::build) fn expand(&self, word: &str) -> Result<String, String> {
        let mut out = String::new();
        self.until(&mut word.chars().peekable(), None, DEPTH, &mut out)?;
        Ok(out)
    }

    /// As [`expand`](Self::expand), but quotes stay: for here-documents.
    pub(in crate::build) fn expand_text(&self, text: &str) -> Result<String, String> {
        let mut out = String::new();
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                c if c == self.escape && chars.peek().is_some_and(|&next| next == '$' || next == self.escape) => {
                    out.extend(chars.next());
                }
                '$' => self.variable(&mut chars, DEPTH, &mut out)?,
                c => out.push(c),
            }
            check(&out)?;
        }
        Ok(out)
    }

    fn until(
        &self,
        chars: &mut Peekable<Chars<'_>>,
        end: Option<char>,
        depth: usize,
        out: &mut String,
    ) -> Result<(), String> {
        if depth == 0 {
            return Err(format!("variables are more than {DEPTH} deep in each other"));
        }
        while let Some(c) = chars.next() {
            match c {
                c if Some(c) == end => return Ok(()),
                '\'' => loop {
                    match chars.next() {
                        Some('\'') => break,
                        Some(c) => out.push(c),
                        None => return Err("a quote ' is not closed".into()),
                    }
                },
                '"' => self.quoted(chars, depth, out)?,
                '$' => self.variable(chars, depth, out)?,
                c if c == self.escape => out.extend(chars.next()),
                c => out.push(c),
            }
            check(out)?;
        }
        match end {
            Some(_) => Err("a variable's name is not closed by }".into()),
            None => Ok(()),
        }
    }

    /// What is between double quotes.
    fn quoted(&self, chars: &mut Peekable<Chars<'_>>, depth: usize, out: &mut String) -> Result<(), String> {
        loop {
            match chars.next() {
                Some('"') => return Ok(()),
                Some('$') => self.variable(chars, depth, out)?,
                Some(c) if c == self.escape => match chars.next() {
                    Some(next) if next == '"' || next == '$' || next == self.escape => out.push(next),
                    Some(next) => out.extend([c, next]),
                    None => {}
                },
                Some(c) => out.push(c),
                None => return Err("a quote \" is not closed".into()),
            }
            check(out)?;
        }
    }

    /// What follows a dollar sign.
    fn variable(&self, chars: &mut Peekable<Chars<'_>>, depth: usize, out: &mut String) -> Result<(), String> {
        if chars.peek() != Some(&'{') {
            let name = name(chars);
            if name.is_empty() {
                out.push('$');
            } else {
                out.push_str(&(self.value)(&name).unwrap_or_default());
            }
            return Ok(());
        }
        chars.next();
        let name = name(chars);
        if name.is_empty() {
            return Err("${ is followed by no variable's name".into());
        }
        let value = (self.value)(&name);
        let mut operator = chars.next();
        if operator == Some('}') {
            out.push_str(&value.unwrap_or_default());
            return Ok(());
        }
        // With a colon, an empty variable counts as one that is not set.
        let colon = operator == Some(':');
        if colon {
            operator = chars.next();
        }
        let is_set = value.as_ref().is_some_and(|value| !colon || !value.is_empty());
        let mut word = String::new();
        match operator {
            Some('-' | '+' | '?') => self.until(chars, Some('}'), depth - 1, &mut word)?,
            _ => {
                return Err(format!(
                    "${{{name}...}} is not of a form that is known: ${{{name}:-word}}, ${{{name}:+word}}"
                ));
            }
        }
        match operator {
            Some('-') if is_set => out.push_str(&value.unwrap_or_default()),
            Some('-') => out.push_str(&word),
            Some('+') if is_set => out.push_str(&word),
            Some('?') if is_set => out.push_str(&value.unwrap_or_default()),
            Some('?') => return Err(format!("the variable {name} is not set: {word}")),
            _ => {}
        }
        Ok(())
    }
}

fn check(text: &str) -> Result<(), String> {
    if text.len() > LIMIT { Err("its variables make more than 1 MiB of it".into()) } else { Ok(()) }
}

/// A variable's name: letters, digits and underscores, or one digit.
fn name(chars: &mut Peekable<Chars<'_>>) -> String {
    let mut name = String::new();
    while let Some(&c) = chars.peek() {
        if !(c == '_' || c.is_ascii_alphanumeric()) || name.starts_with(|first: char| first.is_ascii_digit()) {
            break;
        }
        name.push(c);
        chars.next();
    }
    name
}

/// Splits where there is space outside of quotes; quotes and escapes stay.
pub(super) fn split(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match quote {
            None if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            None if matches!(c, '"' | '\'') => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ => {}
        }
        word.push(c);
        if c == escape && quote != Some('\'') {
            word.extend(chars.next());
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(word: &str) -> Result<String, String> {
        let value = |name: &str| match name {
            "a" => Some("A b".to_owned()),
            "empty" => Some(String::new()),
            _ => None,
        };
        Expander { escape: '\\', value: &value }.expand(word)
    }

    #[test]
    fn variables_are_replaced() {
        for (word, expected) in [
            ("$a", "A b"),
            ("${a}c", "A bc"),
            ("$ac$", "$"),
            ("x$empty-$none.", "x-."),
            ("${none:-d}${empty:-e}${empty-f}${none-g}", "deg"),
            ("${a:+x}${empty:+y}${empty+z}${none:+n}", "xz"),
            ("${none:-${empty:-$a}}", "A b"),
            ("${none:-'}'}", "}"),
            ("${a:?not}", "A b"),
            ("$1$a", "A b"),
        ] {
            assert_eq!(expand(word).as_deref(), Ok(expected), "{word}");
        }
    }

    #[test]
    fn quotes_and_escapes_go() {
        for (word, expected) in
            [(r#""$a"'$a'\$a"#, "A b$a$a"), (r#""\"\$\x\\""#, "\"$\\x\\"), (r"a\ b\\", r"a b\"), ("\\", ""), ("", "")]
        {
            assert_eq!(expand(word).as_deref(), Ok(expected), "{word}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_an_error() {
        let deep = "${x:-".repeat(40);
        for word in ["'", "\"", "${", "${}", "${a", "${a#b}", "${none:?must}", "${none:-", "\"\\", &deep] {
            assert!(expand(word).is_err(), "{word}");
        }
        let long = "x".repeat(1 << 19);
        let value = |_: &str| Some(long.clone());
        assert!(Expander { escape: '\\', value: &value }.expand("$a$a$a").is_err());
    }

    #[test]
    fn a_text_keeps_its_quotes() {
        let value = |_: &str| Some("v".to_owned());
        let expander = Expander { escape: '\\', value: &value };
        assert_eq!(expander.expand_text("\"$a\" '${a}' \\$a \\n").as_deref(), Ok("\"v\" 'v' $a \\n"));
    }

    #[test]
    fn words_are_split_outside_of_quotes() {
        assert_eq!(split(r#"  a="b c" 'd  e'f g\ h  "#, '\\'), ["a=\"b c\"", "'d  e'f", "g\\ h"]);
        assert_eq!(split("", '\\'), [""; 0]);
    }
}
