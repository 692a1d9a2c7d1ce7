//! The names of images: where they come from, and which one is meant.

use std::fmt;
use std::str::FromStr;

use super::Digest;

/// The registry of names that name none.
const DEFAULT_REGISTRY: &str = "docker.io";
/// The folder of that registry for names without one.
const DEFAULT_FOLDER: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// The longest repository name with its registry that registries take, and the longest tag.
const NAME_MAX: usize = 255;
const TAG_MAX: usize = 128;

/// The whole name of an image: `REGISTRY/REPOSITORY:TAG` or `REGISTRY/REPOSITORY@DIGEST`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not the name of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not an image's name: {problem}; a name is [REGISTRY/]NAME[:TAG|@DIGEST], or builtin, dir:PATH, disk:FILE, \
     oci:PATH[:TAG] or docker-archive:FILE"
)]
pub struct ParseNameError {
    text: String,
    problem: &'static str,
}

impl ImageName {
    /// The registry's host, with its port where it has one.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository in the registry.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `None` where a digest alone says which image is meant.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest that the image must have.
    #[must_use]
    pub const fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// What a registry finds the manifest by: the digest, else the tag.
    #[must_use]
    pub fn reference(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }

    /// The name without what is usual: registry, folder and tag.
    #[must_use]
    pub fn familiar(&self) -> String {
        let mut name = self.to_string();
        if let Some(rest) = name.strip_prefix(&format!("{DEFAULT_REGISTRY}/")) {
            name = rest.strip_prefix(DEFAULT_FOLDER).unwrap_or(rest).to_owned();
        }
        name
    }

    /// The same without a tag, where it has a digest to say which image is meant.
    #[must_use]
    pub fn without_tag(&self) -> Self {
        Self { tag: None, ..self.clone() }
    }

    /// The registry and the repository, as people write them.
    #[must_use]
    pub fn familiar_repository(&self) -> String {
        Self { tag: None, digest: None, ..self.clone() }.familiar()
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for ImageName {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |problem| ParseNameError { text: text.chars().take(300).collect(), problem };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(|_| wrong("what follows @ is not a digest"))?)),
            None => (text, None),
        };
        // A colon behind the last slash begins a tag, one before it a port.
        let last = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (path, tag) = match rest[last..].find(':') {
            Some(colon) => (&rest[..last + colon], Some(&rest[last + colon + 1..])),
            None => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(wrong(
                "what follows : is not a tag of at most 128 letters, digits, dots, hyphens and underscores",
            ));
        }
        let is_registry = |first: &str| first.contains(['.', ':']) || first == "localhost";
        let (registry, repository) = match path.split_once('/') {
            Some((first, repository)) if is_registry(first) => (first, repository),
            _ => (DEFAULT_REGISTRY, path),
        };
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
        if !is_host(registry) {
            return Err(wrong("what comes before the first slash is not a host"));
        }
        let repository = match registry == DEFAULT_REGISTRY && !repository.contains('/') && !repository.is_empty() {
            true => format!("{DEFAULT_FOLDER}{repository}"),
            false => repository.to_owned(),
        };
        if repository.is_empty() || !repository.split('/').all(is_component) {
            return Err(wrong(
                "it is made of lower-case letters and digits, with single dots, hyphens and underscores between",
            ));
        }
        if registry.len() + repository.len() + 1 > NAME_MAX {
            return Err(wrong("it is longer than 255 characters"));
        }
        let tag = tag.map(str::to_owned).or_else(|| digest.is_none().then(|| DEFAULT_TAG.to_owned()));
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

fn is_tag(tag: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    tag.len() <= TAG_MAX
        && tag.chars().next().is_some_and(word)
        && tag.chars().all(|c| word(c) || matches!(c, '.' | '-'))
}

/// Letters and digits, with `.`, `_`, `__` or hyphens between them.
fn is_component(component: &str) -> bool {
    let plain = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let mut separator = String::new();
    for c in component.chars() {
        if plain(&c) {
            if !(matches!(&*separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')) {
                return false;
            }
            separator.clear();
        } else if matches!(c, '.' | '_' | '-') {
            separator.push(c);
        } else {
            return false;
        }
    }
    separator.is_empty() && component.chars().next().as_ref().is_some_and(plain)
}

/// A host name or an address, with a port maybe.
fn is_host(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    };
    let is_name = name.split('.').all(|label| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    });
    let is_address =
        name.starts_with('[') && name.ends_with(']') && name[1..name.len() - 1].parse::<std::net::Ipv6Addr>().is_ok();
    (is_name || is_address) && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(text: &str) -> String {
        text.parse::<ImageName>().unwrap().to_string()
    }

    #[test]
    fn names_are_completed_as_docker_does() {
        let digest = Digest::of(b"");
        for (text, expected) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3.20", "docker.io/library/alpine:3.20"),
            ("user/app", "docker.io/user/app:latest"),
            ("docker.io/alpine", "docker.io/library/alpine:latest"),
            ("index.docker.io/library/alpine", "docker.io/library/alpine:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/a/b:x", "localhost:5000/a/b:x"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("registry.example/a__b/c-d.e", "registry.example/a__b/c-d.e:latest"),
        ] {
            assert_eq!(full(text), expected);
            assert_eq!(full(expected), expected);
        }
        assert_eq!(full(&format!("a@{digest}")), format!("docker.io/library/a@{digest}"));
        assert_eq!(full(&format!("a:1@{digest}")), format!("docker.io/library/a:1@{digest}"));
    }

    #[test]
    fn familiar_names_are_short() {
        for name in ["alpine:latest", "user/app:1", "localhost:5000/a:latest"] {
            assert_eq!(name.parse::<ImageName>().unwrap().familiar(), name);
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "",
            ":",
            "a:",
            "A",
            "a b",
            "a//b",
            "/a",
            "a/",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a:b:c",
            "a:.x",
            "a@sha256:1",
            "a@",
            "../x",
            "host:99999/a",
            "host.-x/a",
            "a.b/",
            "[::x]:1/a",
        ] {
            assert!(text.parse::<ImageName>().is_err(), "{text}");
        }
        assert!("a".repeat(256).parse::<ImageName>().is_err());
    }
}
