//! A comparison for people.

use std::fmt::{self, Write};

use crate::bench::{Comparison, MemoryCost, Ratio, Startup, Summary};
use crate::isolation::IsolationKind;

const NANOSECONDS_PER_MILLISECOND: f64 = 1e6;
const LABEL_WIDTH: usize = 28;

/// The comparison as aligned text of at most 100 columns, but for long names.
#[must_use]
pub fn table(comparison: &Comparison) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_all(&mut text, comparison);
    text
}

fn write_all(out: &mut String, comparison: &Comparison) -> fmt::Result {
    write_environment(out, comparison)?;
    if let Some(startup) = &comparison.startup {
        write_startup(out, comparison, startup)?;
    }
    if !comparison.memory.is_empty() {
        write_memory(out, comparison)?;
    }
    Ok(())
}

fn write_environment(out: &mut String, comparison: &Comparison) -> fmt::Result {
    let (environment, plan) = (&comparison.environment, &comparison.plan);
    let command = plan.command.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let cpus = if environment.cpus == 1 { "CPU" } else { "CPUs" };
    writeln!(out, "image        {} {command}", plan.image)?;
    writeln!(out, "instance     {} vCPU | CPU limit, {} RAM | memory limit", plan.cpus, plan.memory)?;
    writeln!(out, "host         {}, {} {cpus}, Linux {}", environment.cpu, environment.cpus, environment.host_kernel)?;
    writeln!(out, "accelerator  {}", environment.accelerator)?;
    if let Some(kernel) = &environment.guest_kernel {
        writeln!(out, "guest        Linux {kernel}")?;
    }
    writeln!(
        out,
        "conditions   cache {}, {}, load average {}",
        environment.cache, environment.cgroup, environment.load_average
    )?;
    if environment.emulated {
        writeln!(
            out,
            "\nEMULATED: this host is the lab, a processor emulated in software. Times are the emulator's: they compare\n\
             with each other, roughly, and say nothing about times on real hardware."
        )?;
    }
    for kind in IsolationKind::ALL.into_iter().filter(|kind| !plan.isolations.contains(kind)) {
        writeln!(out, "\n{kind}: not measured, as --isolation asks")?;
    }
    Ok(())
}

fn write_startup(out: &mut String, comparison: &Comparison, startup: &Startup) -> fmt::Result {
    let emulated = if comparison.environment.emulated { "emulated " } else { "" };
    let plan = &comparison.plan;
    writeln!(
        out,
        "\nStart-up in {emulated}milliseconds; runs of each isolation: {}, after {} to warm up",
        plan.runs, plan.warmup
    )?;
    let groups = ["vm", "container"].map(|name| format!("{name:^26}"));
    writeln!(out, "{:LABEL_WIDTH$} {} {} {:>8}  95 %", "", groups[0], groups[1], "vm /")?;
    let columns = format!("{:>8} {:>8} {:>8}", "median", "p95", "min");
    writeln!(out, "{:LABEL_WIDTH$} {columns} {columns} {:>8}  interval", "phase", "container")?;
    for row in &startup.rows {
        let cells = [&row.vm, &row.container].map(|summary| summary_cells(summary.as_ref()));
        let ratio = ratio_cells(row.ratio);
        writeln!(out, "{:LABEL_WIDTH$} {} {} {ratio}", row.phase.label(), cells[0], cells[1])?;
    }
    Ok(())
}

fn summary_cells(summary: Option<&Summary>) -> String {
    match summary {
        None => format!("{:>8} {:>8} {:>8}", "-", "-", "-"),
        Some(Summary { median, p95, min, .. }) => {
            let [median, p95, min] = [median, p95, min].map(|value| value / NANOSECONDS_PER_MILLISECOND);
            format!("{median:>8.2} {p95:>8.2} {min:>8.2}")
        }
    }
}

fn ratio_cells(ratio: Option<Ratio>) -> String {
    match ratio {
        None => format!("{:>9}", "-"),
        Some(Ratio { value, interval }) => format!("{value:>9.2}  {:.2}..{:.2}", interval.low, interval.high),
    }
}

fn write_memory(out: &mut String, comparison: &Comparison) -> fmt::Result {
    writeln!(out, "\nMemory in MiB while the workload sleeps")?;
    write!(out, "{:LABEL_WIDTH$}", "")?;
    for cost in &comparison.memory {
        write!(out, " {:>10}", cost.isolation.to_string())?;
    }
    type Figure = fn(&MemoryCost) -> Option<u64>;
    let rows: [(&str, Figure); 6] = [
        ("guest RAM touched", |cost| cost.guest_touched),
        ("VMM | supervisor, RSS", |cost| Some(cost.amphi_rss)),
        ("VMM | supervisor, PSS", |cost| Some(cost.amphi_pss)),
        ("workload's processes, PSS", |cost| cost.workload_pss),
        ("charged to the cgroup", |cost| cost.cgroup),
        ("total (guest RAM and PSS)", |cost| Some(cost.total())),
    ];
    for (label, figure) in rows {
        write!(out, "\n{label:LABEL_WIDTH$}")?;
        for cost in &comparison.memory {
            match figure(cost) {
                Some(bytes) => write!(out, " {:>10.2}", mebibytes(bytes))?,
                None => write!(out, " {:>10}", "-")?,
            }
        }
    }
    writeln!(out)
}

#[expect(clippy::cast_precision_loss, reason = "an amount of memory below 2^53 bytes, which are 8 PiB")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::plan::example;
    use crate::bench::{Environment, Interval, Phase, StartupRow};

    fn comparison() -> Comparison {
        let environment = Environment {
            cpu: "Some CPU".into(),
            cpus: 2,
            hypervisor: None,
            accelerator: "kvm_amd".into(),
            emulated: false,
            host_kernel: "6.1.0".into(),
            guest_kernel: Some("6.12.1".into()),
            cgroup: "cgroup v2".into(),
            load_average: "0.1 0.2 0.3".into(),
            cache: "warm",
            amphi: "0",
        };
        let row = StartupRow {
            phase: Phase::Total,
            vm: Some(Summary { count: 2, min: 40e6, median: 50e6, p95: 60e6 }),
            container: None,
            ratio: Some(Ratio { value: 12.5, interval: Interval { low: 10.0, high: 15.0 } }),
            vm_samples: vec![40e6, 60e6],
            container_samples: vec![],
        };
        let memory = MemoryCost {
            isolation: IsolationKind::Vm,
            guest_touched: Some(32 << 20),
            amphi_rss: 2 << 20,
            amphi_pss: 1 << 20,
            workload_pss: None,
            cgroup: None,
        };
        let startup = Some(Startup { rows: vec![row] });
        Comparison { schema: 1, environment, plan: example(), startup, memory: vec![memory] }
    }

    #[test]
    fn the_table_holds_the_figures_in_their_units() {
        let text = table(&comparison());
        let total = text.lines().find(|line| line.starts_with("total ")).unwrap();
        let cells: Vec<_> = total.split_ascii_whitespace().collect();
        assert_eq!(cells, ["total", "50.00", "60.00", "40.00", "-", "-", "-", "12.50", "10.00..15.00"]);
        assert!(text.lines().any(|line| line.starts_with("guest RAM touched") && line.ends_with("32.00")));
        assert!(text.lines().last().unwrap().ends_with("33.00"));
        assert!(!text.contains("EMULATED"));
    }

    #[test]
    fn emulated_times_are_labelled() {
        let mut comparison = comparison();
        comparison.environment.emulated = true;
        let text = table(&comparison);
        assert!(text.contains("EMULATED") && text.contains("emulated milliseconds"));
    }

    #[test]
    fn what_was_left_out_is_said() {
        let mut comparison = comparison();
        comparison.plan.isolations = vec![IsolationKind::Container];
        assert!(table(&comparison).contains("vm: not measured"));
    }

    #[test]
    fn json_names_units_nowhere_else_than_in_the_documentation() {
        let value: serde_json::Value = serde_json::from_str(&super::super::json(&comparison()).unwrap()).unwrap();
        assert_eq!(value["schema"], 1);
        assert_eq!(value["startup"]["rows"][0]["vm"]["median"], 50e6);
        assert_eq!(value["startup"]["rows"][0]["phase"], "total");
        assert_eq!(value["memory"][0]["isolation"], "vm");
        assert_eq!(value["plan"]["memory"], 134_217_728);
    }
}
