//! `RUN`: the command in an isolation, and the layer of what it has written.

use super::dockerfile::{Command, HereDocument, Step};
use super::error::StepError;
use super::settings;
use super::stage::{Build, State};
use crate::image::{Image, NewLayer, Rootfs};
use crate::instance::write_layer;
use crate::isolation::Stdio;
use crate::spec::{Network, RunSpec, WritableLayer};

impl Build<'_> {
    pub(super) fn run(
        &self,
        state: &mut State,
        step: &Step,
        command: &Command,
        here_documents: &[HereDocument],
        network: Option<&str>,
    ) -> Result<(), StepError> {
        let argv = settings::argv(&with_documents(command, here_documents)?, &state.shell);
        let network = match network {
            None | Some("default") => self.options.network.clone(),
            Some("none") => Network::None,
            Some(other) => return Err(StepError::Wrong(format!("--network={other}: use none or default"))),
        };
        let execution = state.execution();
        let of_image = execution.env.iter().flatten().filter_map(|text| text.split_once('='));
        let of_image: Vec<(String, String)> = of_image.map(|(a, b)| (a.to_owned(), b.to_owned())).collect();
        let is_free = |name: &String| !of_image.iter().any(|(other, _)| other == name);
        let arguments = state.arguments.iter().filter(|(name, _)| is_free(name));
        let mut env: Vec<_> =
            arguments.map(|(name, value)| (name.clone(), value.clone())).chain(of_image.clone()).collect();
        let (user, directory) = (execution.user.clone(), execution.working_dir.clone());
        // What a proxy is called changes nothing of what is made.
        let key = self.key(state, "run", &[serde_json::json!([&argv, &env, &user, &directory]).to_string()]);
        env.extend(self.arguments.proxies().map(|(name, value)| (name.clone(), value.clone())));
        self.layer(state, step, key, |state| {
            let image = state.draft.image();
            if image.manifest.layers.is_empty() {
                return Err(StepError::Wrong("the image has no files as yet, so that there is nothing to run".into()));
            }
            let image = Image {
                rootfs: Rootfs::Layers(self.store.layers(&image)?),
                entrypoint: Vec::new(),
                default_command: argv,
                env,
                working_dir: directory.filter(|path| !path.is_empty()),
                user: user.filter(|user| !user.is_empty()),
            };
            self.execute(&image, network)
        })
    }

    /// Runs the command, and makes a layer of what it has written; `None` where that is nothing.
    fn execute(&self, image: &Image, network: Network) -> Result<Option<NewLayer>, StepError> {
        let folder = self.store.working_folder()?;
        let writable = WritableLayer { folder: Some(folder.path().to_owned()), limit: None };
        let mut spec = RunSpec::builder(image).writable(writable).network(network).hostname("build");
        if let Some(memory) = self.options.memory {
            spec = spec.memory(memory);
        }
        if let Some(cpus) = self.options.cpus {
            spec = spec.cpus(cpus);
        }
        let output = self.progress.output()?;
        let stdio = Stdio { stdin: Stdio::null()?.stdin, stdout: output.try_clone()?, stderr: output };
        let spec = spec.build()?;
        let sandbox = self.isolation.create(&spec, stdio)?;
        sandbox.start()?;
        let status = sandbox.wait()?;
        drop(sandbox);
        if !status.success() {
            return Err(StepError::Command(status));
        }
        let latest = self.options.source_date.map_or(i64::MAX, crate::image::Timestamp::seconds);
        let mut entries = 0;
        let layer = self.store.add_layer(|sink| -> Result<(), StepError> {
            entries = write_layer(self.options.isolation, &spec, latest, sink)?;
            Ok(())
        })?;
        Ok((entries > 0).then_some(layer))
    }
}

/// The command with the here-documents that follow it. One alone is the whole command.
fn with_documents(command: &Command, here_documents: &[HereDocument]) -> Result<Command, StepError> {
    let (Command::Shell(text), false) = (command, here_documents.is_empty()) else { return Ok(command.clone()) };
    if let [document] = here_documents
        && text.starts_with("<<")
        && !text.contains(char::is_whitespace)
    {
        if document.text.starts_with("#!") {
            return Err(StepError::Wrong(
                "a here-document is for the shell of SHELL: leave out its line with #!".into(),
            ));
        }
        return Ok(Command::Shell(document.text.clone()));
    }
    let mut whole = text.clone();
    for document in here_documents {
        whole.push_str(&format!("\n{}{}", document.text, document.name));
    }
    whole.push('\n');
    Ok(Command::Shell(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(name: &str, text: &str) -> HereDocument {
        HereDocument { name: name.into(), expand: true, strip_tabs: false, text: text.into() }
    }

    #[test]
    fn here_documents_are_the_command_or_follow_it() {
        let shell = |text: &str| Command::Shell(text.into());
        let one = [document("EOF", "a\nb\n")];
        assert_eq!(with_documents(&shell("<<EOF"), &one).unwrap(), shell("a\nb\n"));
        assert_eq!(with_documents(&shell("cat <<EOF"), &one).unwrap(), shell("cat <<EOF\na\nb\nEOF\n"));
        assert_eq!(with_documents(&shell("x"), &[]).unwrap(), shell("x"));
        assert!(with_documents(&shell("<<EOF"), &[document("EOF", "#!/bin/x\n")]).is_err());
    }
}
