//! The `amphi` binary as a command that always ends.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::case::Isolation;
use super::rootfs;
use super::world;

/// The binary under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_amphi");
/// What any one command may take on a real machine.
const LIMIT_SECONDS: u64 = 30;
/// The size of the terminal that a case gets.
pub(crate) const TERMINAL_ROWS: u16 = 33;
pub(crate) const TERMINAL_COLUMNS: u16 = 77;

/// A call of `amphi`, not yet made.
#[derive(Debug, Clone)]
pub(crate) struct Amphi {
    args: Vec<OsString>,
    operands: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    input: Vec<u8>,
    input_stays_open: bool,
}

impl Amphi {
    /// `amphi ARGS...`
    pub(crate) fn new<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Self {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        Self { args, operands: Vec::new(), env: Vec::new(), input: Vec::new(), input_stays_open: false }
    }

    /// `amphi run --rm --isolation ISOLATION dir:BUSYBOX -- COMMAND...`
    pub(crate) fn run<S: AsRef<OsStr>>(isolation: Isolation, command: impl IntoIterator<Item = S>) -> Self {
        let mut image = OsString::from("dir:");
        image.push(rootfs::busybox());
        Self::run_image(isolation, &image, command)
    }

    /// `amphi run --rm --isolation ISOLATION IMAGE -- COMMAND...`
    pub(crate) fn run_image<S: AsRef<OsStr>>(
        isolation: Isolation,
        image: &OsStr,
        command: impl IntoIterator<Item = S>,
    ) -> Self {
        let mut amphi = Self::new(["run", "--rm", "--isolation", isolation.name()]);
        amphi.operands = vec![image.to_owned(), "--".into()];
        amphi.operands.extend(command.into_iter().map(|arg| arg.as_ref().to_owned()));
        amphi
    }

    /// `/bin/sh -c SCRIPT` in the busybox image.
    pub(crate) fn sh(isolation: Isolation, script: &str) -> Self {
        Self::run(isolation, ["/bin/sh", "-c", script])
    }

    /// Options before the image.
    pub(crate) fn with<S: AsRef<OsStr>>(mut self, options: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(options.into_iter().map(|option| option.as_ref().to_owned()));
        self
    }

    /// A variable in the environment of `amphi` itself.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Bytes for standard input, which ends after them.
    pub(crate) fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    /// Standard input does not end before the call does.
    pub(crate) fn open_input(mut self) -> Self {
        self.input_stays_open = true;
        self
    }

    /// The words of the call, for a shell or a message.
    pub(crate) fn line(&self) -> String {
        let words = [BINARY.into()].into_iter().chain(self.args.iter().cloned()).chain(self.operands.iter().cloned());
        words.map(|word| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''"))).collect::<Vec<_>>().join(" ")
    }

    /// Runs it to its end.
    pub(crate) fn finish(self) -> Finished {
        self.start().finish()
    }

    /// Starts it.
    pub(crate) fn start(self) -> Started {
        let mut command = Command::new(BINARY);
        command.args(&self.args).args(&self.operands).envs(self.env.iter().cloned());
        start(command, self.line(), self.input, self.input_stays_open)
    }

    /// Runs it with its standard output going to a shell's `filter`, whose output and status are what is seen.
    pub(crate) fn finish_through(self, filter: &str) -> Finished {
        let line = format!("{} | {filter}", self.line());
        let mut command = Command::new("sh");
        command.args(["-c", &line]);
        start(command, line, self.input, self.input_stays_open).finish()
    }

    /// Runs it as the last arguments of `wrapper`.
    pub(crate) fn finish_under(self, wrapper: &[&str]) -> Finished {
        let line = format!("{} {}", wrapper.join(" "), self.line());
        let mut command = Command::new(wrapper[0]);
        command.args(&wrapper[1..]).arg(BINARY).args(&self.args).args(&self.operands).envs(self.env.iter().cloned());
        start(command, line, self.input, self.input_stays_open).finish()
    }

    /// Runs it on a terminal of its own, through script(1), with `input` typed into it. The two output streams are one there.
    pub(crate) fn finish_on_terminal(self) -> Finished {
        let line = self.line();
        let mut command = Command::new("script");
        let sized = format!("stty rows {TERMINAL_ROWS} columns {TERMINAL_COLUMNS}; exec {line}");
        command.args(["-q", "-e", "-c", &sized, "/dev/null"]);
        start(command, line, self.input, true).finish()
    }
}

fn start(mut command: Command, line: String, input: Vec<u8>, stays_open: bool) -> Started {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{line}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let feeder = std::thread::spawn(move || {
        // The reader may end without reading all.
        let _ = stdin.write_all(&input);
        stays_open.then_some(stdin)
    });
    let stdout = Collector::new(child.stdout.take().unwrap());
    let stderr = Collector::new(child.stderr.take().unwrap());
    Started { line, child, stdout, stderr, _feeder: feeder, deadline: Instant::now() + world::seconds(LIMIT_SECONDS) }
}

/// A call that is running. Killed when dropped.
pub(crate) struct Started {
    line: String,
    child: Child,
    stdout: Collector,
    stderr: Collector,
    _feeder: JoinHandle<Option<ChildStdin>>,
    deadline: Instant,
}

impl Started {
    /// Gives it that much time from now on, instead of what every call has.
    pub(crate) fn within(mut self, time: Duration) -> Self {
        self.deadline = Instant::now() + time;
        self
    }

    /// Blocks until standard output contains `text`.
    pub(crate) fn wait_for_output(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.stdout.data).contains(text) {
            if !self.stdout.collect_until(self.deadline) {
                self.give_up(&format!("{text:?} did not come out"));
            }
        }
    }

    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to `amphi`.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Blocks until it has ended and all of its output has come.
    pub(crate) fn finish(mut self) -> Finished {
        while self.stdout.collect_until(self.deadline) {}
        while self.stderr.collect_until(self.deadline) {}
        let status = self.wait_until_gone();
        Finished {
            line: std::mem::take(&mut self.line),
            status,
            stdout: std::mem::take(&mut self.stdout.data),
            stderr: std::mem::take(&mut self.stderr.data),
        }
    }

    /// Blocks until `amphi` itself has ended; what it had started may still run, and its output come.
    pub(crate) fn wait_until_gone(&mut self) -> ExitStatus {
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > self.deadline {
                self.give_up("it did not end in time");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn give_up(&mut self, what: &str) -> ! {
        let _ = self.child.kill();
        self.stderr.collect_until(Instant::now() + Duration::from_millis(200));
        panic!("{}: {what}\n{}", self.line, report(&self.stdout.data, &self.stderr.data));
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads a stream to its end, beside the others.
struct Collector {
    chunks: mpsc::Receiver<Vec<u8>>,
    data: Vec<u8>,
}

impl Collector {
    fn new(mut stream: impl Read + Send + 'static) -> Self {
        let (sender, chunks) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { chunks, data: Vec::new() }
    }

    /// Waits for more; `false` at the end of the stream or at the deadline.
    fn collect_until(&mut self, deadline: Instant) -> bool {
        match self.chunks.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(chunk) => {
                self.data.extend(chunk);
                true
            }
            Err(_) => false,
        }
    }
}

/// A call that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    line: String,
    status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Finished {
    /// Standard output as text, without the last line end.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end_matches(['\r', '\n']).to_owned()
    }

    /// Standard error as text.
    pub(crate) fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// The exit status; `None` where a signal ended amphi itself.
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Fails unless the exit status is `code`.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "the exit status ({}) {self}", self.status);
        self
    }

    /// Fails unless `signal` ended it, or it says that the signal ended its workload.
    #[track_caller]
    pub(crate) fn expect_signal(self, signal: Signal) -> Self {
        let number = signal.as_raw();
        let ended = self.status.signal() == Some(number) || self.status.code() == Some(128 + number);
        assert!(ended, "the exit status ({}) {self}", self.status);
        self
    }

    /// Fails unless it ended with `code`, nothing on standard output, and an error that has all of `words`.
    #[track_caller]
    pub(crate) fn expect_error(self, code: i32, words: &[&str]) {
        let finished = self.expect(code);
        assert!(finished.stdout.is_empty(), "an error belongs on standard error {finished}");
        let errors = finished.errors();
        for word in words {
            assert!(
                errors.to_lowercase().contains(&word.to_lowercase()),
                "the error does not name {word:?} {finished}"
            );
        }
        assert!(!errors.contains("panicked"), "it panicked {finished}");
    }

    /// Fails unless standard output is `text` and a line end, and the status 0.
    #[track_caller]
    pub(crate) fn expect_text(self, text: &str) {
        let finished = self.expect(0);
        assert_eq!(finished.text(), text, "standard output {finished}");
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "of {}\n{}", self.line, report(&self.stdout, &self.stderr))
    }
}

fn report(stdout: &[u8], stderr: &[u8]) -> String {
    const SHOWN: usize = 4000;
    let end = |bytes: &[u8]| String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(SHOWN)..]).into_owned();
    format!(
        "--- stdout, {} bytes\n{}\n--- stderr, {} bytes\n{}\n---",
        stdout.len(),
        end(stdout),
        stderr.len(),
        end(stderr)
    )
}
