//! The programs that are measured.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// Runs a tool, which must succeed.
pub(crate) fn tool(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).stdout(Stdio::null()).status();
    let status = status.unwrap_or_else(|error| panic!("{program}: {error} (install it, or: make setup)"));
    assert!(status.success(), "{program} {args:?} ended with {status}");
}

/// The seconds that `work` takes.
pub(crate) fn timed(work: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    work();
    begin.elapsed().as_secs_f64()
}

/// amphi with a data directory of its own, which has the kernels of the usual one.
pub(crate) struct Amphi {
    pub(crate) root: PathBuf,
    isolation: &'static str,
}

impl Amphi {
    pub(crate) fn new(directory: &Path, isolation: &'static str) -> Self {
        let amphi = Self { root: directory.join("amphi"), isolation };
        amphi.forget();
        amphi
    }

    /// Removes all images.
    pub(crate) fn forget(&self) {
        let _ = std::fs::remove_dir_all(&self.root);
        std::fs::create_dir_all(&self.root).unwrap();
        std::os::unix::fs::symlink(amphi::host::data_dir().join("kernels"), self.root.join("kernels")).unwrap();
    }

    fn arguments(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_amphi"));
        command.arg("--root").arg(&self.root).args(args).stdout(Stdio::null());
        command
    }

    /// `amphi ARGS...`, which must succeed.
    pub(crate) fn command(&self, args: &[&str]) {
        let status = self.arguments(args).stdin(Stdio::null()).status().unwrap();
        assert!(status.success(), "amphi {args:?} ended with {status}");
    }

    /// Starts the image once, and waits for its end.
    pub(crate) fn run(&self, image: &str) {
        self.command(&["run", "--rm", "--isolation", self.isolation, image, "/bin/true"]);
    }

    /// An instance that says that it is there, and ends when its standard input does.
    pub(crate) fn instance(&self, options: &[&str], image: &str, script: &str) -> Child {
        let mut args = vec!["run", "-i", "--isolation", self.isolation];
        args.extend(options);
        args.extend([image, "/bin/sh", "-c", script]);
        self.arguments(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    }
}
