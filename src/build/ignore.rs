//! `.dockerignore`: what of the context a build does not see.

use super::pattern::Pattern;

/// The rules of a `.dockerignore`, the last that fits counts.
#[derive(Debug, Clone, Default)]
pub(super) struct Ignore(Vec<Rule>);

#[derive(Debug, Clone)]
struct Rule {
    pattern: Pattern,
    /// Whether what fits is seen after all.
    includes: bool,
}

/// Which rules fit a directory, and so all that is in it.
pub(super) type Fits = Vec<bool>;

impl Ignore {
    /// Reads the rules. The error comes with the number of its line.
    pub(super) fn parse(text: &str) -> Result<Self, (usize, String)> {
        let mut rules = Vec::new();
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        for (index, line) in text.lines().enumerate() {
            if line.starts_with('#') || line.trim().is_empty() {
                continue;
            }
            let line = line.trim();
            let (includes, pattern) = line.strip_prefix('!').map_or((false, line), |rest| (true, rest.trim()));
            let pattern = clean(pattern);
            let wrong = |problem: &str| (index + 1, format!("{line:?} is no pattern: {problem}"));
            if pattern.is_empty() {
                if includes && line == "!" {
                    return Err(wrong("nothing follows the !"));
                }
                continue;
            }
            rules.push(Rule { pattern: Pattern::parse(&pattern, true).map_err(wrong)?, includes });
        }
        Ok(Self(rules))
    }

    /// Which rules fit `path`, where `parent` are those that fit the directory that it is in.
    pub(super) fn fits(&self, path: &[u8], parent: Option<&Fits>) -> Fits {
        let inherited = |index| parent.is_some_and(|parent: &Fits| parent[index]);
        self.0.iter().enumerate().map(|(index, rule)| inherited(index) || rule.pattern.matches(path)).collect()
    }

    /// Whether what these rules fit is left out.
    pub(super) fn leaves_out(&self, fits: &Fits) -> bool {
        let last = self.0.iter().zip(fits).rev().find(|(_, fits)| **fits);
        last.is_some_and(|(rule, _)| !rule.includes)
    }
}

/// The path without what does not matter: a slash in front, `.`, and `..` with what it takes back.
pub(super) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(rules: &str, paths: &[&str]) -> Vec<bool> {
        let ignore = Ignore::parse(rules).unwrap();
        let one = |path: &&str| {
            let mut fits: Option<Fits> = None;
            for (at, _) in path.match_indices('/').chain([(path.len(), "")]) {
                fits = Some(ignore.fits(&path.as_bytes()[..at], fits.as_ref()));
            }
            !ignore.leaves_out(&fits.unwrap())
        };
        paths.iter().map(one).collect()
    }

    #[test]
    fn the_last_rule_that_fits_counts() {
        assert_eq!(seen("*.md\n!README.md\n", &["a.md", "README.md", "d/x.md"]), [false, true, true]);
        assert_eq!(seen("!README.md\n*.md\n", &["README.md"]), [false]);
        assert_eq!(seen("**/*.md\n", &["a.md", "d/x.md"]), [false, false]);
        assert_eq!(seen("d\n!d/keep\n", &["d/a", "d/keep", "d/keep/x"]), [false, true, true]);
        assert_eq!(seen("*\n!src\n", &["Cargo", "src/a/b"]), [false, true]);
        assert_eq!(seen("# c\n\n /a/ \n./b\n", &["a/x", "b", "c"]), [false, false, true]);
        assert_eq!(seen("d/**/t\n", &["d/t", "d/x/y/t", "t"]), [false, false, true]);
        assert_eq!(seen("", &["a"]), [true]);
    }

    #[test]
    fn what_is_no_pattern_has_its_line() {
        assert_eq!(Ignore::parse("a\n[\n").unwrap_err().0, 2);
        assert_eq!(Ignore::parse("!\n").unwrap_err().0, 1);
    }
}
