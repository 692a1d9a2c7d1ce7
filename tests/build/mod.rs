//! Building images from Dockerfiles.

mod files;
mod steps;

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::harness::images::{Made, OwnRoot};
use crate::harness::{Amphi, Case};

pub(crate) fn cases() -> Vec<Case> {
    [files::cases(), steps::cases()].into_iter().flatten().collect()
}

/// One image for all cases, so that what is built on it is the same.
static MADE: OnceLock<Made> = OnceLock::new();

/// A context, and a store that has the busybox image by the name `made`.
struct Setting {
    own: OwnRoot,
    context: TempDir,
}

impl Setting {
    fn new() -> Self {
        let own = OwnRoot::new();
        let made = MADE.get_or_init(|| Made::kept("build", Made::new));
        own.amphi(&["load", &format!("oci:{}:made", made.layout().display())]).finish().expect(0);
        Self { own, context: tempfile::Builder::new().prefix("amphi-test-context").tempdir().unwrap() }
    }

    fn path(&self) -> &Path {
        self.context.path()
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// `amphi build OPTIONS... CONTEXT` with this Dockerfile.
    fn build(&self, options: &[&str], dockerfile: &str) -> Amphi {
        self.write("Dockerfile", dockerfile);
        self.own.amphi(&[&["build"], options, &[self.path().to_str().unwrap()]].concat())
    }

    /// What the image's configuration has at a place such as `/config/Cmd`.
    fn config(&self, name: &str, place: &str) -> String {
        let text = self.own.amphi(&["inspect", name]).finish().expect(0).text();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value.pointer(&format!("/config{place}")).map(ToString::to_string).unwrap_or_default()
    }
}
