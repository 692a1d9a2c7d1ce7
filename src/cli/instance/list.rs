//! `amphi ps`.

use amphi::instance::{Instance, Instances, State};
use clap::Args;
use serde::Serialize;

use crate::cli::output::{Format, print, printable, size, table, to_json};
use crate::error::CliError;

/// How much of a command is shown.
const COMMAND: usize = 30;

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Those that have ended as well
    #[arg(short, long)]
    all: bool,
    /// Say how much each has written
    #[arg(short, long)]
    size: bool,
    /// Only IDs, one a line
    #[arg(short, long)]
    quiet: bool,
    /// How to write the list
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// An instance as programs read it.
#[derive(Serialize)]
pub(super) struct Row {
    id: String,
    name: String,
    image: String,
    isolation: String,
    command: Vec<String>,
    created: String,
    started: String,
    /// `running` or `exited`.
    state: &'static str,
    /// 137 where nobody knows.
    exit_code: Option<u8>,
    /// `null` where it runs, or where amphi was killed with it.
    finished: Option<String>,
    /// What its writable layer takes, in bytes, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
}

impl Row {
    pub(super) fn new(instance: &Instance, with_size: bool) -> Self {
        let record = &instance.record;
        let (state, exit_code, finished) = match &instance.state {
            State::Running => ("running", None, None),
            State::Exited(exit) => ("exited", Some(exit.code), exit.finished.clone()),
        };
        let command = record.spec.process.argv.iter().map(|argument| argument.to_string_lossy().into_owned());
        Self {
            id: record.id.clone(),
            name: record.name.clone(),
            image: record.image.clone(),
            isolation: record.isolation.to_string(),
            command: command.collect(),
            created: record.created.clone(),
            started: record.started.clone(),
            state,
            exit_code,
            finished,
            size: with_size.then(|| instance.size()),
        }
    }

    fn status(&self) -> String {
        match (self.exit_code, &self.finished) {
            (None, _) => "running".into(),
            (Some(code), Some(_)) => format!("exited ({code})"),
            (Some(code), None) => format!("killed ({code})"),
        }
    }
}

/// Lists instances, the newest first.
pub(crate) fn run(args: &PsArgs) -> Result<(), CliError> {
    let mut all = Instances::open_default().list()?;
    all.retain(|instance| args.all || instance.state == State::Running);
    if args.quiet && args.format == Format::Text {
        return print(&all.iter().map(|instance| format!("{}\n", instance.record.id)).collect::<String>());
    }
    let rows: Vec<_> = all.iter().map(|instance| Row::new(instance, args.size)).collect();
    if args.format == Format::Json {
        return print(&to_json(&rows)?);
    }
    let columns = ["ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "ISOLATION", "NAME"];
    let mut lines = vec![columns.map(str::to_owned).to_vec()];
    lines.extend(rows.iter().map(|row| {
        let command: String = printable(&row.command.join(" ")).chars().take(COMMAND).collect();
        let fields =
            [&row.id, &printable(&row.image), &command, &row.created, &row.status(), &row.isolation, &row.name];
        fields.map(Clone::clone).to_vec()
    }));
    if args.size {
        lines[0].push("SIZE".into());
        for (line, row) in lines[1..].iter_mut().zip(&rows) {
            line.push(size(row.size.unwrap_or_default()));
        }
    }
    print(&table(&lines))
}
