//! Images, made by tools that are not amphi, and a place for amphi's own.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::{Amphi, Isolation, rootfs};

/// Runs a tool, which must succeed, and returns what it says.
#[track_caller]
pub(crate) fn tool(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error} (install it, or: make setup)"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// An OCI layout that umoci makes, in a folder of its own. Its image is called `made`.
pub(crate) struct Made {
    folder: PathBuf,
    /// Removes the folder, if nobody wants it any more.
    _temporary: Option<TempDir>,
}

impl Made {
    /// An image of the busybox root alone.
    pub(crate) fn new() -> Self {
        Self::empty().layer(|root| {
            let copied =
                Command::new("cp").arg("-a").arg(format!("{}/.", rootfs::busybox().display())).arg(root).status();
            assert!(copied.unwrap().success());
        })
    }

    /// An image without layers.
    pub(crate) fn empty() -> Self {
        let folder = tempfile::Builder::new().prefix("amphi-test-image").tempdir().unwrap();
        let made = Self { folder: folder.path().to_owned(), _temporary: Some(folder) };
        tool("umoci", &["init", "--layout", made.text(&made.layout())]);
        tool("umoci", &["new", "--image", &made.reference()]);
        made
    }

    /// What `make` makes, for this case and for the same one in the lab, where the tools that make images take long.
    pub(crate) fn kept(name: &str, make: impl FnOnce() -> Self) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("images").join(name);
        if !(in_lab() && folder.join("unpacked").exists()) {
            let made = make();
            made.unpack();
            fs::create_dir_all(folder.parent().unwrap()).unwrap();
            // Another case may read what is there.
            let new = folder.with_extension(std::process::id().to_string());
            tool("cp", &["-a", made.text(&made.folder), new.to_str().unwrap()]);
            let old = folder.with_extension("old");
            let _ = fs::remove_dir_all(&old);
            let _ = fs::rename(&folder, &old);
            if fs::rename(&new, &folder).is_err() {
                return made;
            }
        }
        Self { folder, _temporary: None }
    }

    /// The same with a layer more, in which is what `change` does to the root.
    pub(crate) fn layer(self, change: impl FnOnce(&Path)) -> Self {
        let bundle = self.folder.join("bundle");
        let bundle_text = bundle.to_str().unwrap();
        tool("umoci", &["unpack", "--image", &self.reference(), bundle_text]);
        change(&bundle.join("rootfs"));
        tool("umoci", &["repack", "--image", &self.reference(), bundle_text]);
        fs::remove_dir_all(bundle).unwrap();
        self
    }

    /// The same with settings of its configuration, such as `--config.user`.
    pub(crate) fn config(self, settings: &[&str]) -> Self {
        let reference = self.reference();
        tool("umoci", &[&["config", "--image", &reference], settings].concat());
        self
    }

    fn unpack(&self) {
        tool("umoci", &["unpack", "--image", &self.reference(), self.text(&self.folder.join("unpacked"))]);
    }

    /// The whole as umoci unpacks it, for an image that is kept.
    pub(crate) fn unpacked(&self) -> PathBuf {
        self.folder.join("unpacked/rootfs")
    }

    /// The layout's folder.
    pub(crate) fn layout(&self) -> PathBuf {
        self.folder.join("layout")
    }

    fn reference(&self) -> String {
        format!("{}:made", self.layout().display())
    }

    fn text<'a>(&self, path: &'a Path) -> &'a str {
        path.to_str().unwrap()
    }
}

/// amphi with a data directory of its own, which has the kernels of the usual one.
pub(crate) struct OwnRoot {
    folder: TempDir,
}

impl OwnRoot {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("amphi-test-data").tempdir().unwrap();
        symlink(amphi::host::data_dir().join("kernels"), folder.path().join("kernels")).unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// `amphi --root FOLDER ARGS...`
    pub(crate) fn amphi(&self, args: &[&str]) -> Amphi {
        Amphi::new(["--root", self.folder.path().to_str().unwrap()].iter().chain(args))
            // Nobody's credentials but those that a case makes.
            .env("HOME", self.folder.path())
            .env("XDG_CONFIG_HOME", self.folder.path().join("config"))
            .env("XDG_RUNTIME_DIR", self.folder.path().join("runtime"))
    }

    /// `amphi --root FOLDER run --rm --isolation ISOLATION ARGS...`
    pub(crate) fn run(&self, isolation: Isolation, args: &[&str]) -> Amphi {
        self.amphi(&[&["run", "--rm", "--isolation", isolation.name()], args].concat())
    }

    /// The files of the image store, but for its locks.
    pub(crate) fn store_files(&self) -> Vec<String> {
        let mut found = Vec::new();
        let images = self.folder.path().join("images");
        let mut pending = vec![images.clone()];
        while let Some(folder) = pending.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    pending.push(entry.path());
                } else if !entry.file_name().to_string_lossy().ends_with("lock") {
                    found.push(entry.path().strip_prefix(&images).unwrap().display().to_string());
                }
            }
        }
        found.sort();
        found
    }
}

/// Whether this is the lab, which says so to whatever runs in it.
fn in_lab() -> bool {
    std::env::var_os("AMPHI_LAB").is_some()
}
