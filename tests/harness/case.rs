//! A case and the isolation it is about.

use std::cell::RefCell;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{PoisonError, RwLock};

use libtest_mimic::{Completion, Failed, Trial};

/// One of the two isolations, as the command line names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isolation {
    Vm,
    Container,
}

impl Isolation {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Vm => "vm",
            Self::Container => "container",
        }
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A named case.
pub(crate) struct Case {
    name: String,
    isolation: Option<Isolation>,
    exclusive: bool,
    on_request: bool,
    body: Box<dyn FnOnce() + Send>,
}

/// Held for reading by every case, for writing by those that look at the whole machine.
static MACHINE: RwLock<()> = RwLock::new(());

impl Case {
    fn new(name: String, isolation: Option<Isolation>, body: impl FnOnce() + Send + 'static) -> Self {
        Self { name, isolation, exclusive: false, on_request: false, body: Box::new(body) }
    }

    /// No other case runs beside this one.
    pub(crate) fn alone(mut self) -> Self {
        self.exclusive = true;
        self
    }

    /// Runs only with `--ignored`: it takes too long for every day.
    pub(crate) fn on_request(mut self) -> Self {
        self.on_request = true;
        self
    }

    /// The name by which it is chosen.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The isolation that the case needs; `None` where it runs no workload.
    pub(crate) fn isolation(&self) -> Option<Isolation> {
        self.isolation
    }

    /// Whether it runs only with `--ignored`.
    pub(crate) fn is_on_request(&self) -> bool {
        self.on_request
    }

    /// The case as the test runner takes it; with `missing`, what it needs and this machine lacks.
    pub(crate) fn into_trial(self, missing: Option<String>) -> Trial {
        Trial::ignorable_test(self.name, move || match missing {
            Some(missing) if std::env::var_os("CI").is_some() => Err(Failed::from(format!("CI is set, and {missing}"))),
            Some(missing) => Ok(Completion::ignored_with(missing)),
            None if self.exclusive => {
                let _alone = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
                outcome(self.body)
            }
            None => {
                let _shared = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
                outcome(self.body)
            }
        })
        .with_ignored_flag(self.on_request)
    }
}

thread_local! {
    /// Where this thread panicked last.
    static PANICKED_AT: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps where a case fails for its report, instead of printing each failure twice.
pub(crate) fn report_panics_once() {
    panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        PANICKED_AT.set(place);
    }));
}

/// Runs a case; a panic is its failure.
fn outcome(body: Box<dyn FnOnce() + Send>) -> Result<Completion, Failed> {
    let Err(payload) = panic::catch_unwind(AssertUnwindSafe(body)) else { return Ok(Completion::Completed) };
    let message = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
    let message = format!("{}: {}", PANICKED_AT.take(), message.unwrap_or("a panic without a message"));
    Err(Failed::from(message))
}

/// A case for each isolation.
pub(crate) fn both(name: &str, body: fn(Isolation)) -> Vec<Case> {
    [Isolation::Vm, Isolation::Container]
        .map(|isolation| Case::new(format!("{isolation}::{name}"), Some(isolation), move || body(isolation)))
        .into()
}

/// A case about microVMs only.
pub(crate) fn vm(name: &str, body: impl FnOnce() + Send + 'static) -> Case {
    Case::new(format!("vm::{name}"), Some(Isolation::Vm), body)
}

/// A case about containers only.
pub(crate) fn container(name: &str, body: impl FnOnce() + Send + 'static) -> Case {
    Case::new(format!("container::{name}"), Some(Isolation::Container), body)
}

/// A case that runs no workload.
pub(crate) fn host(name: &str, body: impl FnOnce() + Send + 'static) -> Case {
    Case::new(format!("cli::{name}"), None, body)
}
