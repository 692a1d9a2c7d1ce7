//! Patterns as `.dockerignore` and `COPY` have them: those of Go's `filepath.Match`, and `**`.

/// A pattern for whole paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern(Vec<Token>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Byte(u8),
    /// `?`: any but a slash.
    One,
    /// `*`: any number of them.
    Star,
    /// `**/`: any number of directories, or none.
    Directories,
    /// `**` at the end: all.
    All,
    /// `[a-z]`, `[^a-z]`.
    Class {
        not: bool,
        ranges: Vec<(u8, u8)>,
    },
}

impl Pattern {
    /// Reads a pattern. With `stars`, `**` has its meaning.
    pub(super) fn parse(text: &str, stars: bool) -> Result<Self, &'static str> {
        let bytes = text.as_bytes();
        let mut tokens = Vec::new();
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            at += 1;
            match byte {
                b'*' if stars && bytes.get(at) == Some(&b'*') => {
                    at += 1;
                    if bytes.get(at) == Some(&b'/') {
                        at += 1;
                    }
                    tokens.push(if at == bytes.len() { Token::All } else { Token::Directories });
                }
                b'*' => tokens.push(Token::Star),
                b'?' => tokens.push(Token::One),
                b'\\' => {
                    tokens.push(Token::Byte(*bytes.get(at).ok_or("it ends with a \\")?));
                    at += 1;
                }
                b'[' => tokens.push(class(bytes, &mut at)?),
                byte => tokens.push(Token::Byte(byte)),
            }
        }
        Ok(Self(tokens))
    }

    /// Whether it has anything but plain characters.
    pub(super) fn is_plain(&self) -> bool {
        self.0.iter().all(|token| matches!(token, Token::Byte(_)))
    }

    /// The text that it means, where it is plain.
    pub(super) fn plain(&self) -> Vec<u8> {
        self.0.iter().filter_map(|token| if let Token::Byte(byte) = token { Some(*byte) } else { None }).collect()
    }

    /// Whether it means all of `path`. Takes at most as many steps as the product of both lengths.
    pub(super) fn matches(&self, path: &[u8]) -> bool {
        // Where in the pattern one may be; the place behind its end is one of them.
        let mut places = vec![false; self.0.len() + 1];
        places[0] = true;
        self.skip(&mut places, true);
        for &byte in path {
            let mut next = vec![false; places.len()];
            for (place, token) in self.0.iter().enumerate().filter(|(place, _)| places[*place]) {
                match token {
                    Token::Byte(expected) => next[place + 1] |= *expected == byte,
                    Token::One => next[place + 1] |= byte != b'/',
                    Token::Star => next[place] |= byte != b'/',
                    Token::Directories | Token::All => next[place] = true,
                    Token::Class { not, ranges } => {
                        let is_in = ranges.iter().any(|(first, last)| (first..=last).contains(&&byte));
                        next[place + 1] |= byte != b'/' && is_in != *not;
                    }
                }
            }
            self.skip(&mut next, byte == b'/');
            places = next;
        }
        places[self.0.len()]
    }

    /// Passes over what may stand for nothing. `begins`: a name begins here.
    fn skip(&self, places: &mut [bool], begins: bool) {
        for place in 0..self.0.len() {
            let passes = match self.0[place] {
                Token::Star | Token::All => true,
                Token::Directories => begins,
                _ => false,
            };
            if places[place] && passes {
                places[place + 1] = true;
            }
        }
    }
}

/// A class, whose bracket has been read.
fn class(bytes: &[u8], at: &mut usize) -> Result<Token, &'static str> {
    const OPEN: &str = "its [ is not closed";
    let mut ranges = Vec::new();
    let not = matches!(bytes.get(*at), Some(b'^' | b'!'));
    *at += usize::from(not);
    let next = |at: &mut usize| -> Result<(u8, bool), &'static str> {
        let byte = *bytes.get(*at).ok_or(OPEN)?;
        *at += 1;
        if byte == b'\\' {
            let escaped = *bytes.get(*at).ok_or(OPEN)?;
            *at += 1;
            return Ok((escaped, true));
        }
        Ok((byte, false))
    };
    loop {
        let (first, escaped) = next(at)?;
        if first == b']' && !escaped {
            return if ranges.is_empty() { Err("its [] is empty") } else { Ok(Token::Class { not, ranges }) };
        }
        let mut last = first;
        if bytes.get(*at) == Some(&b'-') && bytes.get(*at + 1).is_some_and(|&byte| byte != b']') {
            *at += 1;
            last = next(at)?.0;
        }
        ranges.push((first, last));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_do_in_docker() {
        for (pattern, matching, other) in [
            ("a", &["a"][..], &["b", "aa", "a/b", ""][..]),
            ("*", &["a", "", ".x"], &["a/b"]),
            ("a*c", &["ac", "abbc"], &["a/c", "acd"]),
            ("?.go", &["a.go"], &["/.go", "ab.go"]),
            ("**", &["a", "a/b/c"], &[]),
            ("**/x", &["x", "a/x", "a/b/x"], &["ax", "a/bx", "x/y"]),
            ("a/**", &["a/b", "a/b/c", "a/"], &["b/a", "ab"]),
            ("a/**/b", &["a/b", "a/x/b", "a/x/y/b"], &["a/xb", "ab"]),
            ("**/*.go", &["x.go", "a/b.go"], &["x.goo"]),
            ("[a-c]x", &["ax", "cx"], &["dx", "x"]),
            ("[^a-c]x", &["dx", "-x"], &["ax", "/x"]),
            ("[]-]", &[], &[]),
            ("\\*", &["*"], &["a"]),
            ("a\\[b", &["a[b"], &["ab"]),
        ] {
            let Ok(parsed) = Pattern::parse(pattern, true) else {
                assert_eq!(pattern, "[]-]");
                continue;
            };
            assert!(matching.iter().all(|path| parsed.matches(path.as_bytes())), "{pattern}");
            assert!(!other.iter().any(|path| parsed.matches(path.as_bytes())), "{pattern}");
        }
        for pattern in ["[", "[a", "a\\", "[]", "[\\"] {
            assert!(Pattern::parse(pattern, true).is_err(), "{pattern}");
        }
        assert!(
            Pattern::parse("**", false).unwrap().matches(b"a") && !Pattern::parse("**", false).unwrap().matches(b"a/b")
        );
        assert_eq!(Pattern::parse("a\\*b", false).unwrap().plain(), b"a*b");
    }

    #[test]
    fn no_pattern_takes_long() {
        let pattern = Pattern::parse(&"*a".repeat(500), true).unwrap();
        assert!(!pattern.matches(&b"a".repeat(499)));
        assert!(pattern.matches(&b"ba".repeat(500)));
    }
}
