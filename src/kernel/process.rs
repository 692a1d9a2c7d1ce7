//! Running the programs that packages and compilers are.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use rustix::process::{Signal, set_parent_process_death_signal};

use super::KernelError;

/// How many of the last lines of a failed program's output an error shows.
const LINES_SHOWN: usize = 12;
/// Longest output line that is kept, in bytes.
const LINE_MAX: u64 = 4096;
/// How often the caller may report progress.
const TICK: Duration = Duration::from_millis(500);

/// The first directory of `PATH` that has the program.
pub(super) fn find_program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|directory| directory.join(name)).find(|path| path.is_file())
}

/// A command that speaks English, hears nothing, ends with amphi, and does not see the settings of a `make` that
/// amphi may have been started by.
pub(super) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("LC_ALL", "C").stdin(Stdio::null());
    for variable in
        ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "ARCH", "CROSS_COMPILE", "KCONFIG_CONFIG", "O"]
    {
        command.env_remove(variable);
    }
    // SAFETY: between fork and exec only one system call is made, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::TERM))?));
    }
    command
}

/// Runs `command` to its end and returns its standard output. `attempt` names it in errors.
pub(super) fn output(mut command: Command, attempt: &str) -> Result<String, KernelError> {
    let output = command.output().map_err(|e| KernelError::tool(attempt, e.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let lines: VecDeque<_> = String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned).collect();
    Err(failed(attempt, output.status, &lines))
}

/// Runs `command` to its end. `line` is called with each line that it writes, and `tick` about twice a second.
pub(super) fn watched(
    mut command: Command,
    attempt: &str,
    mut line: impl FnMut(&str),
    mut tick: impl FnMut(),
) -> Result<(), KernelError> {
    let spawned = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = Reaped(spawned.map_err(|e| KernelError::tool(attempt, e.to_string()))?);
    let (sender, lines) = mpsc::channel();
    let outputs: [Option<Box<dyn Read + Send>>; 2] = [
        child.0.stdout.take().map(|stream| Box::new(stream) as _),
        child.0.stderr.take().map(|stream| Box::new(stream) as _),
    ];
    for output in outputs.into_iter().flatten() {
        let sender = sender.clone();
        std::thread::spawn(move || send_lines(output, &sender));
    }
    drop(sender);
    let mut last = VecDeque::new();
    loop {
        match lines.recv_timeout(TICK) {
            Ok(text) => {
                line(&text);
                if last.len() == LINES_SHOWN {
                    last.pop_front();
                }
                last.push_back(text);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        tick();
    }
    let status = child.0.wait().map_err(|e| KernelError::tool(attempt, e.to_string()))?;
    if status.success() { Ok(()) } else { Err(failed(attempt, status, &last)) }
}

/// A child that does not outlive its owner, whatever happens in between.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn send_lines(output: impl Read, sender: &mpsc::Sender<String>) {
    let mut reader = BufReader::new(output);
    let mut bytes = Vec::new();
    while (&mut reader).take(LINE_MAX).read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
        let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        if sender.send(text).is_err() {
            return;
        }
        bytes.clear();
    }
}

fn failed(attempt: &str, status: ExitStatus, lines: &VecDeque<String>) -> KernelError {
    let skip = lines.len().saturating_sub(LINES_SHOWN);
    let shown: Vec<_> = lines.iter().skip(skip).map(String::as_str).collect();
    KernelError::tool(attempt, format!("{status}\n{}", shown.join("\n")))
}
