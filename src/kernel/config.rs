//! A kernel's build configuration: finding it in an image, and reading it.

use std::collections::HashMap;
use std::io::Read;

/// What stands before and after the configuration in a kernel built with `CONFIG_IKCONFIG` (kernel/configs.c).
const START: &[u8] = b"IKCFG_ST";
const END: &[u8] = b"IKCFG_ED";
/// Larger than any configuration, in bytes; distributions' have about 300 KiB.
const CONFIG_MAX: u64 = 4 << 20;

/// The value of a build option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Setting {
    /// Built in.
    BuiltIn,
    /// Built as a module.
    Module,
    /// Not built.
    Off,
}

/// A kernel's build configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    values: HashMap<String, String>,
}

impl Config {
    /// Reads lines such as `CONFIG_SMP=y`; others are passed over.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let pairs = text.lines().filter_map(|line| line.strip_prefix("CONFIG_")?.split_once('='));
        Self { values: pairs.map(|(key, value)| (key.to_owned(), value.trim_matches('"').to_owned())).collect() }
    }

    /// The configuration inside an uncompressed kernel built with `CONFIG_IKCONFIG`.
    #[must_use]
    pub fn in_image(image: &[u8]) -> Option<Self> {
        let start = find(image, START)? + START.len();
        let rest = image.get(start..)?;
        let packed = rest.get(..find(rest, END)?)?;
        let mut text = String::new();
        flate2::read::GzDecoder::new(packed).take(CONFIG_MAX).read_to_string(&mut text).ok()?;
        Some(Self::parse(&text))
    }

    /// How `option` (without `CONFIG_`) is built.
    #[must_use]
    pub fn setting(&self, option: &str) -> Setting {
        match self.values.get(option).map(String::as_str) {
            Some("y") => Setting::BuiltIn,
            Some("m") => Setting::Module,
            _ => Setting::Off,
        }
    }

    /// The options set in `self` that have another value, or none, in `other`.
    #[must_use]
    pub(super) fn not_honoured_by(&self, other: &Self) -> Vec<String> {
        let value = |config: &Self, key: &str| config.values.get(key).cloned().unwrap_or_else(|| "n".to_owned());
        let differs = |key: &&String| value(self, key) != value(other, key);
        let mut names: Vec<_> = self.values.keys().filter(differs).cloned().collect();
        names.sort();
        names
    }
}

/// Where `needle` first is in `haystack`.
pub(super) fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    loop {
        let at = from + haystack.get(from..)?.iter().position(|b| *b == first)?;
        if haystack.get(at..)?.starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn image_with(config: &[u8]) -> Vec<u8> {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(config).unwrap();
        [b"IKC IKCFG_S ".as_slice(), START, &packed.finish().unwrap(), END, b"rest"].concat()
    }

    #[test]
    fn finds_the_configuration_in_an_image() {
        let config = Config::in_image(&image_with(b"# CONFIG_A is not set\nCONFIG_B=y\nCONFIG_C=m\n")).unwrap();
        assert_eq!(config.setting("A"), Setting::Off);
        assert_eq!(config.setting("B"), Setting::BuiltIn);
        assert_eq!(config.setting("C"), Setting::Module);
    }

    #[test]
    fn survives_damaged_images() {
        let whole = image_with(b"CONFIG_B=y\n");
        for len in 0..whole.len() - 12 {
            assert_eq!(Config::in_image(&whole[..len]), None, "{len}");
        }
    }

    #[test]
    fn names_options_that_were_not_honoured() {
        let wanted = Config::parse("CONFIG_A=y\nCONFIG_B=n\nCONFIG_C=64\n");
        let got = Config::parse("CONFIG_A=y\nCONFIG_C=8\n");
        assert_eq!(wanted.not_honoured_by(&got), ["C"]);
    }
}
