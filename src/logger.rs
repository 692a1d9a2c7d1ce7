//! Log records on standard error.

use log::{LevelFilter, Log, Metadata, Record};

struct Stderr;

static LOGGER: Stderr = Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            eprintln!(
                "amphi: {}: {}: {}",
                record.level().as_str().to_ascii_lowercase(),
                record.target(),
                record.args()
            );
        }
    }

    fn flush(&self) {}
}

/// Shows records of the level that `verbosity` (the number of `--verbose`) or else `AMPHI_LOG` asks for;
/// warnings and errors where neither does.
pub(crate) fn install(verbosity: u8) {
    let level = level(verbosity, std::env::var("AMPHI_LOG").ok().as_deref());
    // Fails only where a logger is installed already, which then does the work.
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(level);
    }
}

fn level(verbosity: u8, variable: Option<&str>) -> LevelFilter {
    match verbosity {
        0 => variable.and_then(|text| text.trim().parse().ok()).unwrap_or(LevelFilter::Warn),
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_outranks_the_variable() {
        assert_eq!(level(0, None), LevelFilter::Warn);
        assert_eq!(level(0, Some("debug")), LevelFilter::Debug);
        assert_eq!(level(0, Some("off")), LevelFilter::Off);
        assert_eq!(level(0, Some("loud")), LevelFilter::Warn);
        assert_eq!(level(1, Some("off")), LevelFilter::Info);
        assert_eq!(level(9, None), LevelFilter::Trace);
    }
}
