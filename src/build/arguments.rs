//! Build arguments: what `ARG` takes from the command line.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use super::dockerfile::{Dockerfile, DockerfileError, Expander, Instruction, Step};

/// Arguments that every Dockerfile may use, and every `RUN` gets, without `ARG`. They count as no part of a step.
pub(super) const PROXIES: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];
/// What `ARG` knows of the machine. Only one kind is built for.
const PLATFORM: [(&str, &str); 6] = [
    ("TARGETPLATFORM", "linux/amd64"),
    ("TARGETOS", "linux"),
    ("TARGETARCH", "amd64"),
    ("BUILDPLATFORM", "linux/amd64"),
    ("BUILDOS", "linux"),
    ("BUILDARCH", "amd64"),
];

/// The arguments of a build.
pub(super) struct Arguments {
    given: BTreeMap<String, String>,
    /// Those before the first stage.
    global: BTreeMap<String, String>,
    used: RefCell<BTreeSet<String>>,
}

impl Arguments {
    /// The arguments `given` on the command line, with those before the first stage.
    pub(super) fn new(file: &Dockerfile, given: &BTreeMap<String, String>) -> Result<Self, DockerfileError> {
        let global = PLATFORM.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let mut arguments = Self { given: given.clone(), global, used: RefCell::default() };
        for step in &file.global {
            let Instruction::Arg(list) = &step.instruction else { continue };
            for (name, default) in list {
                let wrong = |problem| DockerfileError { line: step.line, problem };
                let default = default.as_ref().map(|default| arguments.expand(file.escape, default)).transpose();
                let default = default.map_err(wrong)?;
                if let Some(value) = arguments.given(name).or(default) {
                    arguments.global.insert(name.clone(), value);
                }
            }
        }
        Ok(arguments)
    }

    /// What the command line says.
    pub(super) fn given(&self, name: &str) -> Option<String> {
        let value = self.given.get(name)?;
        self.used.borrow_mut().insert(name.to_owned());
        Some(value.clone())
    }

    /// What an argument without a default is, in a stage.
    pub(super) fn inherited(&self, name: &str) -> Option<String> {
        self.given(name).or_else(|| self.global.get(name).cloned())
    }

    /// Replaces variables by the arguments before the first stage.
    pub(super) fn expand(&self, escape: char, text: &str) -> Result<String, String> {
        Expander { escape, value: &|name| self.global.get(name).cloned() }.expand(text)
    }

    /// What the command line says that nothing has asked for.
    pub(super) fn unused(&self) -> Vec<String> {
        let used = self.used.borrow();
        self.given.keys().filter(|name| !used.contains(*name) && !PROXIES.contains(&&***name)).cloned().collect()
    }

    /// The proxies of the command line.
    pub(super) fn proxies(&self) -> impl Iterator<Item = (&String, &String)> {
        self.given.iter().filter(|(name, _)| PROXIES.contains(&&***name))
    }

    /// The stages that one needs, itself included, in their order.
    pub(super) fn needed(&self, file: &Dockerfile, target: usize) -> Vec<usize> {
        let mut needed = BTreeSet::new();
        let mut pending = vec![target];
        while let Some(stage) = pending.pop() {
            if !needed.insert(stage) {
                continue;
            }
            let image = self.expand(file.escape, &file.stages[stage].image).unwrap_or_default();
            let others = file.stages[stage].steps.iter().filter_map(Step::copies_from);
            // Only stages before can be meant.
            let others = others.chain([&*image]).filter_map(|name| file.stage_before(name, stage));
            pending.extend(others);
        }
        needed.into_iter().collect()
    }
}

impl Dockerfile {
    /// The stage with that name or number.
    #[must_use]
    pub fn stage(&self, name: &str) -> Option<usize> {
        let lower = name.to_ascii_lowercase();
        let named = self.stages.iter().position(|stage| stage.name.as_ref() == Some(&lower));
        named.or_else(|| name.parse().ok().filter(|&number| number < self.stages.len()))
    }

    /// The stage with that name before another.
    pub(super) fn stage_before(&self, name: &str, other: usize) -> Option<usize> {
        self.stage(name).filter(|&stage| stage < other)
    }
}

impl Step {
    /// Whether it copies from the context.
    pub(super) fn copies_from_context(&self) -> bool {
        match &self.instruction {
            Instruction::Copy(copy) => copy.from.is_none() && !copy.sources.is_empty(),
            // What an image brings along may do so.
            _ => false,
        }
    }

    /// The stage or image that it copies from.
    pub(super) fn copies_from(&self) -> Option<&str> {
        match &self.instruction {
            Instruction::Copy(copy) => copy.from.as_deref(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_stages_that_are_needed_are_built() {
        let text = "ARG base=one\nFROM a AS one\nFROM b AS two\nFROM $base AS three\nCOPY --from=0 x y\nFROM c\nCOPY --from=two x y\n";
        let file = Dockerfile::parse(text).unwrap();
        let arguments = Arguments::new(&file, &BTreeMap::new()).unwrap();
        assert_eq!(arguments.needed(&file, 2), [0, 2]);
        assert_eq!(arguments.needed(&file, 3), [1, 3]);
        assert_eq!(arguments.needed(&file, 1), [1]);
        assert_eq!((file.stage("Two"), file.stage("3"), file.stage("4")), (Some(1), Some(3), None));
    }

    #[test]
    fn the_command_line_counts_before_defaults() {
        let file = Dockerfile::parse("ARG a=1 b=$a-$TARGETARCH\nARG c\nFROM x\n").unwrap();
        let given = [("a", "2"), ("other", "3"), ("NO_PROXY", "4")].map(|(a, b)| (a.to_owned(), b.to_owned())).into();
        let arguments = Arguments::new(&file, &given).unwrap();
        assert_eq!(arguments.inherited("b").as_deref(), Some("2-amd64"));
        assert_eq!(arguments.inherited("c"), None);
        assert_eq!(arguments.unused(), ["other"]);
    }
}
