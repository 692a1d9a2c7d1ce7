//! The user's terminal: its size, and raw mode that is undone on every way out.

use std::io;
use std::sync::Mutex;

use amphi::spec::WindowSize;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

use crate::error::CliError;

/// The settings to return to; `None` while the terminal is not in raw mode.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// The size of the terminal behind the first standard stream that is one; 24 by 80 where none is.
pub(crate) fn size() -> WindowSize {
    let sizes = [tcgetwinsize(io::stdin()), tcgetwinsize(io::stdout()), tcgetwinsize(io::stderr())];
    let size = sizes.into_iter().flatten().find(|size| size.ws_row > 0 && size.ws_col > 0);
    size.map_or(WindowSize { rows: 24, columns: 80 }, |size| WindowSize { rows: size.ws_row, columns: size.ws_col })
}

/// Raw mode of standard input, until dropped.
pub(super) struct RawMode(());

impl RawMode {
    /// Puts standard input into raw mode; `None` where it is no terminal.
    pub(super) fn enter() -> Result<Option<Self>, CliError> {
        if !isatty(io::stdin()) {
            return Ok(None);
        }
        let failed = |error: rustix::io::Errno| CliError::Process {
            action: "put the terminal into raw mode",
            source: error.into(),
        };
        let settings = tcgetattr(io::stdin()).map_err(failed)?;
        if let Ok(mut saved) = SAVED.lock() {
            *saved = Some(settings.clone());
        }
        // A panic aborts the process in release builds, so that nothing is dropped.
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            previous(info);
        }));
        apply_raw(settings).map_err(failed)?;
        Ok(Some(Self(())))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn apply_raw(mut settings: Termios) -> rustix::io::Result<()> {
    settings.make_raw();
    tcsetattr(io::stdin(), OptionalActions::Drain, &settings)
}

/// Leaves raw mode, if this process is in it.
pub(super) fn restore() {
    // A lock that cannot be had without waiting is held by whoever is restoring already.
    if let Ok(mut saved) = SAVED.try_lock()
        && let Some(settings) = saved.take()
    {
        // There is nothing left to be done about a terminal that has gone away.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &settings);
    }
}

/// Enters raw mode anew after a stop: the shell has set the terminal as it likes it in the meantime.
pub(super) fn reenter() {
    if let Ok(saved) = SAVED.lock()
        && let Some(settings) = &*saved
    {
        // As in restore: the terminal may have gone away.
        let _ = apply_raw(settings.clone());
    }
}
