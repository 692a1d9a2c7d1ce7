//! `amphi doctor`.

use std::fmt::Write;

use amphi::host::{Diagnosis, Level, diagnose};
use clap::Args;

use super::output::{self, Format};
use crate::error::CliError;

#[derive(Debug, Args)]
#[command(after_help = "The exit status is 0 where at least one isolation is usable, else 1.")]
pub(crate) struct DoctorArgs {
    /// How to write the findings
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

/// Looks at the host and says what it found.
///
/// # Errors
/// The findings could not be written.
pub(crate) fn run(args: &DoctorArgs) -> Result<u8, CliError> {
    let diagnosis = diagnose();
    output::print(&match args.format {
        Format::Text => text(&diagnosis),
        Format::Json => output::to_json(&diagnosis)?,
    })?;
    Ok(u8::from(!diagnosis.any_usable()))
}

fn text(diagnosis: &Diagnosis) -> String {
    let mut text = String::new();
    for check in &diagnosis.checks {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(text, "{:<8} {}: {}", check.level, check.name, check.finding);
        if check.level != Level::Ok {
            let _ = writeln!(text, "         needed for: {}", check.meaning);
        }
        if let Some(remedy) = &check.remedy {
            let _ = writeln!(text, "         to mend it: {remedy}");
        }
    }
    let _ = writeln!(text, "\nvm: {}; container: {}", diagnosis.vm, diagnosis.container);
    if diagnosis.vm != "usable" {
        let _ = writeln!(text, "`make demo` and `make test` run VMs in the lab, an emulated machine");
    }
    text
}

#[cfg(test)]
mod tests {
    use amphi::host::Check;

    use super::*;

    #[test]
    fn what_is_wrong_comes_with_its_meaning_and_remedy() {
        let check = |level, remedy: Option<&str>| Check {
            name: "KVM",
            level,
            finding: "found".into(),
            meaning: "runs microVMs",
            remedy: remedy.map(str::to_owned),
        };
        let checks = vec![check(Level::Ok, None), check(Level::Error, Some("load it"))];
        let text = text(&Diagnosis { vm: "no", container: "usable", checks });
        assert_eq!(
            text,
            "ok       KVM: found\nerror    KVM: found\n         needed for: runs microVMs\n         to mend it: load \
             it\n\nvm: no; container: usable\n`make demo` and `make test` run VMs in the lab, an emulated machine\n"
        );
    }
}
