//! Passes the signals that reach amphi on to the workload.
//!
//! The signals are blocked in all threads and taken by one thread that waits for them, so that no code of ours ever
//! runs in a signal handler.

use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use std::{io, ptr, thread};

use amphi::isolation::vm::Stopper;
use amphi::isolation::{Sandbox, Signal};
use amphi::{ExitStatus, IsolationKind, Timeline};

use super::{confinement, footprint, terminal};
use crate::error::CliError;

/// Passed on to the workload.
const FORWARDED: [i32; 7] =
    [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2, libc::SIGALRM];
/// Concern the terminal.
const TERMINAL: [i32; 2] = [libc::SIGWINCH, libc::SIGCONT];
/// What ends sooner is spared what makes long runs small. Less than a second.
const SHORT_RUN: Duration = Duration::from_millis(100);
/// So many SIGTERMs kill a workload that does not heed them.
const TERMS_THAT_KILL: u32 = 3;

/// Takes signals from its start until the end of the process.
pub(super) struct Forwarder(Arc<Mutex<State>>);

struct State {
    stage: Stage,
    terms: u32,
    /// The signal that ended the run before there was a workload to pass it on to.
    interrupted_by: Option<Signal>,
    /// Whether what amphi needs for a start only can be let go.
    started: bool,
}

enum Stage {
    /// There is no sandbox yet: a signal does what it does to any program.
    Preparing,
    Running(Weak<dyn Sandbox>),
    /// A machine without a workload that signals could be for: each ends it.
    Machine(Stopper),
    /// The workload has ended, and the little that remains must not be interrupted.
    Ending,
}

impl Forwarder {
    /// Blocks the signals for this thread and all that it starts from now on, and starts to take them. The thread that takes
    /// them has nothing else to do, so that for a microVM it is confined from its start.
    pub(super) fn start(kind: IsolationKind) -> Result<Self, CliError> {
        let failed = |source| CliError::Process { action: "take over signals", source };
        let set = block().map_err(failed)?;
        let state =
            Arc::new(Mutex::new(State { stage: Stage::Preparing, terms: 0, interrupted_by: None, started: false }));
        let shared = Arc::clone(&state);
        let run = move || {
            if kind == IsolationKind::Vm
                && let Err(source) = confinement::confine()
            {
                let _ = crate::error::report(&CliError::Process { action: "confine the thread for signals", source });
                std::process::exit(125);
            }
            let lock = || shared.lock().unwrap_or_else(PoisonError::into_inner);
            let mut shed = false;
            loop {
                match wait(&set, (!shed).then_some(SHORT_RUN)) {
                    Some(number) => take(&mut lock(), number),
                    None if !shed && lock().started => {
                        footprint::shed();
                        shed = true;
                    }
                    None => {}
                }
            }
        };
        thread::Builder::new().name("signals".to_owned()).spawn(run).map_err(failed)?;
        Ok(Self(state))
    }

    /// From now on signals go to the workload in `sandbox`.
    pub(super) fn attach(&self, sandbox: &Arc<dyn Sandbox>) {
        self.lock().stage = Stage::Running(Arc::downgrade(sandbox));
    }

    /// All is started: if it goes on for a while, memory that only the start needed is let go.
    pub(super) fn started(&self) {
        self.lock().started = true;
    }

    /// From now on a signal ends the machine, and then this process.
    pub(super) fn attach_machine(&self, machine: Stopper) {
        self.lock().stage = Stage::Machine(machine);
    }

    /// Ends this process by the signal that has ended the machine, if one has.
    pub(super) fn die_if_interrupted(&self) {
        let by = self.lock().interrupted_by;
        if let Some(signal) = by {
            die_of(signal.number());
        }
    }

    /// From now on signals have no effect. After this nobody but the caller holds the sandbox.
    pub(super) fn detach(&self) {
        self.lock().stage = Stage::Ending;
    }

    /// The signal that ended the run before its workload began.
    pub(super) fn interrupted_by(&self) -> Option<ExitStatus> {
        self.lock().interrupted_by.map(ExitStatus::Signal)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn take(state: &mut State, number: i32) {
    let sandbox = match &state.stage {
        Stage::Preparing if FORWARDED.contains(&number) => die_of(number),
        Stage::Machine(machine) if FORWARDED.contains(&number) => {
            machine.stop();
            state.interrupted_by = state.interrupted_by.or(Signal::from_number(number));
            return;
        }
        Stage::Preparing | Stage::Machine(_) | Stage::Ending => return,
        Stage::Running(sandbox) => sandbox.upgrade(),
    };
    let (Some(sandbox), Some(signal)) = (sandbox, Signal::from_number(number)) else { return };
    let result = match number {
        libc::SIGCONT => {
            terminal::reenter();
            sandbox.resize(terminal::size())
        }
        libc::SIGWINCH => sandbox.resize(terminal::size()),
        libc::SIGUSR1 | libc::SIGUSR2 | libc::SIGALRM => sandbox.kill(signal),
        // Before init is through there is no workload: nobody would heed the signal, and the user wants an end.
        _ if !has_begun(sandbox.timeline()) => {
            state.interrupted_by = Some(signal);
            sandbox.kill(Signal::KILL)
        }
        libc::SIGTERM => {
            state.terms += 1;
            sandbox.kill(if state.terms >= TERMS_THAT_KILL { Signal::KILL } else { signal })
        }
        _ => sandbox.kill(signal),
    };
    if let Err(error) = result {
        log::warn!("cannot pass signal {number} on: {error}");
    }
}

/// Whether there is a workload. Its first byte may be here before the news that its init was ready.
fn has_begun(timeline: Timeline) -> bool {
    timeline.init_ready.or(timeline.first_byte).is_some()
}

/// Ends this process by that signal, as if it had never been blocked.
fn die_of(number: i32) -> ! {
    terminal::restore();
    // SAFETY: the set is initialised by sigemptyset before it is used; none of the calls touches other memory.
    unsafe {
        let mut set = MaybeUninit::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), number);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), ptr::null_mut());
        libc::raise(number);
    }
    // Not reached unless the signal is ignored, and those are not taken.
    std::process::exit(128 + number)
}

/// Blocks all signals that this module takes and returns them. What the caller of amphi ignores stays ignored
/// (`nohup`, background jobs).
fn block() -> io::Result<libc::sigset_t> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set, and the other calls only read and change sets and actions of this frame.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for number in FORWARDED.into_iter().chain(TERMINAL) {
            let mut action = MaybeUninit::<libc::sigaction>::uninit();
            if libc::sigaction(number, ptr::null(), action.as_mut_ptr()) == -1 {
                return Err(io::Error::last_os_error());
            }
            if action.assume_init().sa_sigaction != libc::SIG_IGN {
                libc::sigaddset(set.as_mut_ptr(), number);
            }
        }
        let set = set.assume_init();
        match libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) {
            0 => Ok(set),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// Waits for one of the signals of `set`, at most that long where there is a limit.
fn wait(set: &libc::sigset_t, limit: Option<Duration>) -> Option<i32> {
    let limit = limit.map(|limit| libc::timespec { tv_sec: 0, tv_nsec: limit.subsec_nanos().into() });
    let limit = limit.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: both point to live values of the right types, or to nothing, and what is nowhere is not written.
    let number = unsafe { libc::sigtimedwait(set, ptr::null_mut(), limit) };
    (number > 0).then_some(number)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use amphi::isolation::{Instant, IsolationError};
    use amphi::spec::WindowSize;

    use super::*;

    #[derive(Default)]
    struct Recorder {
        ready: AtomicBool,
        killed: Mutex<Vec<i32>>,
    }

    impl Sandbox for Recorder {
        fn start(&self) -> Result<(), IsolationError> {
            Ok(())
        }
        fn wait(&self) -> Result<ExitStatus, IsolationError> {
            Ok(ExitStatus::Code(0))
        }
        fn kill(&self, signal: Signal) -> Result<(), IsolationError> {
            self.killed.lock().unwrap().push(signal.number());
            Ok(())
        }
        fn resize(&self, _size: WindowSize) -> Result<(), IsolationError> {
            Ok(())
        }
        fn timeline(&self) -> Timeline {
            let init_ready = self.ready.load(Ordering::Relaxed).then(Instant::now);
            Timeline { init_ready, ..Timeline::default() }
        }
    }

    fn running(ready: bool) -> (Arc<Recorder>, Arc<dyn Sandbox>, State) {
        let recorder = Arc::new(Recorder { ready: ready.into(), ..Recorder::default() });
        let sandbox: Arc<dyn Sandbox> = Arc::<Recorder>::clone(&recorder);
        let stage = Stage::Running(Arc::downgrade(&sandbox));
        (recorder, sandbox, State { stage, terms: 0, interrupted_by: None, started: false })
    }

    #[test]
    fn signals_are_passed_on_and_the_third_term_kills() {
        let (recorder, _sandbox, mut state) = running(true);
        for number in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGTERM, libc::SIGINT, libc::SIGTERM] {
            take(&mut state, number);
        }
        assert_eq!(*recorder.killed.lock().unwrap(), [2, 15, 1, 15, 2, 9]);
        assert_eq!(state.interrupted_by, None);
    }

    #[test]
    fn a_first_byte_tells_that_there_is_a_workload() {
        let at = Some(Instant(1));
        assert!(!has_begun(Timeline { created: at, first_instruction: at, ..Timeline::default() }));
        assert!(has_begun(Timeline { init_ready: at, ..Timeline::default() }));
        assert!(has_begun(Timeline { first_byte: at, ..Timeline::default() }));
    }

    #[test]
    fn before_there_is_a_workload_the_sandbox_ends() {
        let (recorder, _sandbox, mut state) = running(false);
        take(&mut state, libc::SIGUSR1);
        take(&mut state, libc::SIGINT);
        assert_eq!(*recorder.killed.lock().unwrap(), [libc::SIGUSR1, libc::SIGKILL]);
        assert_eq!(state.interrupted_by.map(Signal::number), Some(libc::SIGINT));
    }

    #[test]
    fn nothing_is_passed_on_after_the_end() {
        let (recorder, _sandbox, mut state) = running(true);
        state.stage = Stage::Ending;
        take(&mut state, libc::SIGTERM);
        assert!(recorder.killed.lock().unwrap().is_empty());
    }
}
