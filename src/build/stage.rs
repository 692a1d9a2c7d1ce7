//! Carrying out the steps of the stages.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use amphi_guest_init::user;
use serde_json::Value;

use super::arguments::Arguments;
use super::begin::{TRIGGERS, take_triggers};
use super::context::Context;
use super::copy::{CopyStep, parent_like, parts};
use super::dockerfile::{Copy, Dockerfile, Expander, HereDocument, Instruction, Step};
use super::error::{BuildError, StepError};
use super::plan::{Plan, Source};
use super::settings::{self, SHELL};
use super::{BuildOptions, Event, Progress};
use crate::Isolation;
use crate::image::manifest::{Execution, History};
use crate::image::store::Built;
use crate::image::{Digest, Draft, NewLayer, Store, StoredImage, Timestamp, View};

/// A build under way.
pub(super) struct Build<'a> {
    pub(super) path: &'a Path,
    pub(super) file: &'a Dockerfile,
    pub(super) options: &'a BuildOptions,
    pub(super) progress: &'a dyn Progress,
    pub(super) store: &'a Store,
    pub(super) context: Option<&'a Context>,
    pub(super) isolation: &'a dyn Isolation,
    pub(super) arguments: Arguments,
}

/// What the steps of a stage have come to.
#[derive(Clone)]
pub(super) struct State {
    pub(super) draft: Draft,
    pub(super) view: View,
    /// The arguments that the stage has taken.
    pub(super) arguments: BTreeMap<String, String>,
    pub(super) shell: Vec<String>,
    /// Whether the command is of this stage, and not of the image that it began with.
    pub(super) own_command: bool,
    /// When the last layer was made.
    pub(super) made: Option<Timestamp>,
}

impl State {
    pub(super) fn new(draft: Draft, view: View) -> Self {
        let shell = draft.config().config.as_ref().and_then(|config| config.shell.clone());
        let shell = shell.unwrap_or_else(|| SHELL.map(str::to_owned).to_vec());
        Self { draft, view, arguments: BTreeMap::new(), shell, own_command: false, made: None }
    }

    pub(super) fn execution(&self) -> Execution {
        self.draft.config().config.clone().unwrap_or_default()
    }

    /// What a variable stands for.
    fn variable(&self, name: &str) -> Option<String> {
        let of_image = self.draft.config().config.as_ref().and_then(|config| settings::variable(config, name));
        of_image.or_else(|| self.arguments.get(name).cloned())
    }

    /// The directory that relative paths begin at.
    fn directory(&self) -> String {
        let directory = self.draft.config().config.as_ref().and_then(|config| config.working_dir.clone());
        directory.filter(|path| !path.is_empty()).unwrap_or_else(|| "/".into())
    }

    fn history(&self, text: &str) -> History {
        History {
            created: self.made.map(|time| time.to_string()),
            created_by: Some(text.to_owned()),
            ..History::default()
        }
    }
}

impl<'a> Build<'a> {
    /// Builds the stages with these numbers, and returns what the last of them has come to.
    pub(super) fn stages(&self, needed: &[usize]) -> Result<State, BuildError> {
        let mut done: BTreeMap<usize, State> = BTreeMap::new();
        for (position, &number) in needed.iter().enumerate() {
            let stage = &self.file.stages[number];
            let place = (position + 1, needed.len());
            let count = 1 + stage.steps.len();
            self.progress.event(Event::Step { stage: place, step: (1, count), text: &stage.from.text });
            let mut state = self.begin(number, &done).map_err(|error| self.failed(&stage.from, error))?;
            let triggers = take_triggers(&mut state.draft);
            let triggers = triggers.map_err(|error| self.failed(&stage.from, error))?;
            let count = count + triggers.len();
            for (index, step) in triggers.iter().chain(&stage.steps).enumerate() {
                self.progress.event(Event::Step { stage: place, step: (index + 2, count), text: &step.text });
                self.step(&mut state, step, number, &done).map_err(|error| self.failed(step, error))?;
            }
            done.insert(number, state);
        }
        // There is at least the target.
        Ok(done.pop_last().map_or_else(|| State::new(Draft::scratch(), View::default()), |(_, state)| state))
    }

    fn failed(&self, step: &Step, source: StepError) -> BuildError {
        // What would move the cursor is the Dockerfile's, and that may be anybody's.
        let text = step.text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect();
        BuildError::Step { path: self.path.to_owned(), line: step.line, step: text, source: Box::new(source) }
    }

    /// Says which arguments nothing has asked for.
    pub(super) fn report_unused(&self) {
        let unused = self.arguments.unused();
        if !unused.is_empty() {
            let text = format!("--build-arg {}: no ARG of the stages that were built asks for it", unused.join(", "));
            self.progress.event(Event::Notice(&text));
        }
    }

    /// Puts the image into the store.
    pub(super) fn save(&self, mut state: State) -> Result<StoredImage, BuildError> {
        if !self.options.labels.is_empty() {
            let labels = state.draft.execution().labels.get_or_insert_default();
            labels.extend(self.options.labels.iter().cloned());
        }
        let created = self.options.source_date.or(state.made).unwrap_or_else(Timestamp::now);
        Ok(state.draft.save(self.store, created, &self.options.names)?)
    }

    fn expand(&self, state: &State, text: &str) -> Result<String, StepError> {
        Expander { escape: self.file.escape, value: &|name| state.variable(name) }
            .expand(text)
            .map_err(StepError::Wrong)
    }

    fn step(
        &self,
        state: &mut State,
        step: &Step,
        number: usize,
        done: &BTreeMap<usize, State>,
    ) -> Result<(), StepError> {
        match &step.instruction {
            Instruction::Copy(copy) => return self.copy(state, step, copy, number, done),
            Instruction::Run { command, here_documents, network } => {
                return self.run(state, step, command, here_documents, network.as_deref());
            }
            Instruction::Workdir(path) => return self.workdir(state, step, path),
            _ => self.setting(state, &step.instruction)?,
        }
        state.draft.add_setting(state.history(&step.text));
        Ok(())
    }

    /// A step that changes the configuration only.
    fn setting(&self, state: &mut State, instruction: &Instruction) -> Result<(), StepError> {
        let expand = |text: &String| self.expand(state, text);
        let pairs = |list: &[(String, String)]| -> Result<Vec<(String, String)>, StepError> {
            list.iter().map(|(name, value)| Ok((expand(name)?, expand(value)?))).collect()
        };
        match instruction {
            Instruction::Arg(list) => return self.take_arguments(state, list),
            Instruction::Env(list) => {
                for (name, value) in pairs(list)? {
                    settings::set_variable(state.draft.execution(), &name, &value);
                }
            }
            Instruction::Label(list) => {
                let list = pairs(list)?;
                state.draft.execution().labels.get_or_insert_default().extend(list);
            }
            Instruction::User(user) => {
                let user = expand(user)?;
                state.draft.execution().user = Some(user);
            }
            Instruction::StopSignal(signal) => {
                let signal = expand(signal)?;
                state.draft.execution().stop_signal = Some(signal);
            }
            Instruction::Expose(ports) => {
                let ports = ports.iter().map(expand).collect::<Result<Vec<_>, _>>()?;
                settings::expose(state.draft.execution(), &ports.join(" "))?;
            }
            Instruction::Volume(paths) => {
                for path in paths.iter().map(expand).collect::<Result<Vec<_>, _>>()? {
                    settings::add_volume(state.draft.execution(), path);
                }
            }
            Instruction::Shell(shell) => {
                state.shell.clone_from(shell);
                state.draft.execution().shell = Some(shell.clone());
            }
            Instruction::Cmd(command) => {
                state.own_command = true;
                let argv = settings::argv(command, &state.shell);
                state.draft.execution().cmd = Some(argv);
            }
            Instruction::Entrypoint(command) => {
                let argv = settings::argv(command, &state.shell);
                let execution = state.draft.execution();
                execution.entrypoint = Some(argv).filter(|argv| !argv.is_empty());
                // The command of the image below was meant for its own entry point.
                if !state.own_command {
                    execution.cmd = None;
                }
            }
            Instruction::Healthcheck { options, command } => {
                let check = settings::healthcheck(options, command.as_ref())?;
                state.draft.execution().other.insert("Healthcheck".into(), check);
            }
            Instruction::Maintainer(name) => state.draft.set_author(name),
            Instruction::OnBuild(text) => {
                let kept = state.draft.execution().other.entry(TRIGGERS).or_insert(Value::Null);
                match kept {
                    Value::Array(all) => all.push(text.as_str().into()),
                    other => *other = Value::Array(vec![text.as_str().into()]),
                }
            }
            Instruction::From { .. } | Instruction::Copy(_) | Instruction::Run { .. } | Instruction::Workdir(_) => {}
        }
        Ok(())
    }

    fn take_arguments(&self, state: &mut State, list: &[(String, Option<String>)]) -> Result<(), StepError> {
        for (name, default) in list {
            let default = default.as_ref().map(|text| self.expand(state, text)).transpose()?;
            let value = match default {
                Some(default) => Some(self.arguments.given(name).unwrap_or(default)),
                None => self.arguments.inherited(name),
            };
            if let Some(value) = value {
                state.arguments.insert(name.clone(), value);
            }
        }
        Ok(())
    }

    /// `WORKDIR`: makes a layer where the directory is missing.
    fn workdir(&self, state: &mut State, step: &Step, path: &str) -> Result<(), StepError> {
        let path = self.expand(state, path)?;
        let whole = if path.starts_with('/') { path } else { format!("{}/{path}", state.directory()) };
        let parts = parts(&whole);
        let directory =
            format!("/{}", parts.iter().map(|part| String::from_utf8_lossy(part)).collect::<Vec<_>>().join("/"));
        let view = state.view.clone();
        let mut plan = Plan::new(&view);
        let (target, there) = plan.look(&parts)?;
        match there {
            Some(false) => return Err(StepError::Wrong(format!("{directory} is no directory"))),
            None => {
                let user = state.execution().user.unwrap_or_default();
                let owner = self.owner(&view, &user)?;
                plan.directory(&target, &parent_like(Some(owner), self.now().seconds()))?;
            }
            Some(true) => {}
        }
        state.draft.execution().working_dir = Some(directory);
        self.planned(state, step, "workdir", plan)
    }

    /// `COPY` and `ADD`.
    fn copy(
        &self,
        state: &mut State,
        step: &Step,
        copy: &Copy,
        number: usize,
        done: &BTreeMap<usize, State>,
    ) -> Result<(), StepError> {
        let sources = copy.sources.iter().map(|source| self.expand(state, source)).collect::<Result<Vec<_>, _>>()?;
        let expanded = Copy { sources, destination: self.expand(state, &copy.destination)?, ..copy.clone() };
        if expanded.destination.is_empty() || expanded.sources.iter().any(String::is_empty) {
            return Err(StepError::Wrong("a source or the destination comes to nothing".into()));
        }
        let inline = |document: &HereDocument| -> Result<(String, String), StepError> {
            let value = |name: &str| state.variable(name);
            let expander = Expander { escape: self.file.escape, value: &value };
            let text = match document.expand {
                true => expander.expand_text(&document.text).map_err(StepError::Wrong)?,
                false => document.text.clone(),
            };
            Ok((document.name.clone(), text))
        };
        let inline = copy.here_documents.iter().map(inline).collect::<Result<Vec<_>, _>>()?;
        let other;
        let nothing;
        let source = match &copy.from {
            Some(name) => {
                other = match self.file.stage_before(name, number).and_then(|stage| done.get(&stage)) {
                    Some(state) => state.view.clone(),
                    None if self.file.stage(name).is_some() => {
                        return Err(StepError::Wrong(format!("--from={name} is this stage, or one that comes later")));
                    }
                    None => self.view(&self.image(name)?)?,
                };
                Source::Image(&other)
            }
            None => match self.context {
                Some(context) => Source::Context(context),
                None if copy.sources.is_empty() => {
                    nothing = View::default();
                    Source::Image(&nothing)
                }
                None => {
                    return Err(StepError::Wrong(
                        "an image's trigger copies from a context, and no step of this Dockerfile does".into(),
                    ));
                }
            },
        };
        let view = state.view.clone();
        let owner = copy.chown.as_ref().map(|user| self.owner(&view, &self.expand(state, user)?)).transpose()?;
        let mode = copy.chmod.as_ref().map(|mode| self.mode(&self.expand(state, mode)?)).transpose()?;
        let directory = state.directory();
        let (now, fixed_time) = (self.now().seconds(), self.options.source_date.map(Timestamp::seconds));
        let work = CopyStep { source, inline, copy: &expanded, directory: &directory, owner, mode, now, fixed_time };
        let mut plan = Plan::new(&view);
        work.plan(&mut plan)?;
        self.planned(state, step, "copy", plan)
    }

    fn mode(&self, text: &str) -> Result<u32, StepError> {
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
        mode.ok_or_else(|| StepError::Wrong(format!("--chmod={text}: write an octal number, such as 0644")))
    }

    /// The numbers of `USER[:GROUP]`, by the image's own databases. A number without a group is the group's as well.
    fn owner(&self, view: &View, text: &str) -> Result<(u32, u32), StepError> {
        let database = |path: &str| {
            view.read_file(path.as_bytes(), user::DATABASE_LIMIT).map_err(StepError::using(path.as_bytes()))
        };
        let found = user::resolve(&database("etc/passwd")?, &database("etc/group")?, text.as_bytes());
        let found = found.map_err(|error| StepError::Wrong(error.to_string()))?;
        match text.parse::<u32>() {
            Ok(number) => Ok((found.uid, number)),
            Err(_) => Ok((found.uid, found.gid)),
        }
    }

    /// The time that is written down.
    pub(super) fn now(&self) -> Timestamp {
        self.options.source_date.unwrap_or_else(Timestamp::now)
    }

    /// Puts what is planned on top, from an earlier build where it is known.
    fn planned(&self, state: &mut State, step: &Step, kind: &str, mut plan: Plan<'_>) -> Result<(), StepError> {
        if plan.is_empty() {
            state.draft.add_setting(state.history(&step.text));
            return Ok(());
        }
        if let Some(time) = self.options.source_date {
            plan.limit_times(time.seconds());
        }
        let plan = plan.read()?;
        let key = self.key(state, kind, &[plan.digest().to_string()]);
        self.layer(state, step, key, |_| {
            let layer = self.store.add_layer(|sink| plan.write(sink))?;
            Ok(Some(layer))
        })
    }

    /// The key of a step: the layers below, and what else has an influence.
    pub(super) fn key(&self, state: &State, kind: &str, parts: &[String]) -> Digest {
        let diff_ids = &state.draft.config().rootfs.diff_ids;
        let time = self.options.source_date.map(Timestamp::seconds);
        let all = serde_json::json!({ "kind": kind, "below": diff_ids, "parts": parts, "time": time });
        Digest::of(all.to_string().as_bytes())
    }

    /// Puts the layer of the step with that key on top, which `make` makes unless it is known already.
    pub(super) fn layer(
        &self,
        state: &mut State,
        step: &Step,
        key: Digest,
        make: impl FnOnce(&State) -> Result<Option<NewLayer>, StepError>,
    ) -> Result<(), StepError> {
        let known = if self.options.cache { self.store.built(key) } else { None };
        let built = match known {
            Some(built) => {
                self.progress.event(Event::Cached);
                built
            }
            None => {
                let built = Built { layer: make(state)?, created: self.now() };
                self.store.set_built(key, &built, &state.draft.config().rootfs.diff_ids)?;
                built
            }
        };
        state.made = state.made.max(Some(built.created));
        let Some(layer) = built.layer else {
            state.draft.add_setting(state.history(&step.text));
            return Ok(());
        };
        let history = state.history(&step.text);
        state.draft.add_layer(layer, history);
        let top = state.draft.config().rootfs.diff_ids.len() - 1;
        let file = self.store.layer_file(&state.draft.image(), top)?;
        state.view.push(Arc::clone(&file.file));
        Ok(())
    }
}
