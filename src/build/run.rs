//! `RUN`: the command in an isolation, and the layer of what it has written.

use std::collections::HashMap;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::dockerfile::{Command, HereDocument, Step};
use super::error::StepError;
use super::settings;
use super::stage::{Build, State};
use crate::image::{
    EntryKind, Image, LayerArchive, LayerEntry, NewLayer, Rootfs, Tree, belongs_to_images, read_attributes,
};
use crate::isolation::Stdio;
use crate::spec::{Network, RunSpec, WritableLayer};

/// By which attributes overlayfs says that nothing of a directory shows through.
const OPAQUE: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];

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
        let sandbox = self.isolation.create(&spec.build()?, stdio)?;
        sandbox.start()?;
        let status = sandbox.wait()?;
        drop(sandbox);
        if !status.success() {
            return Err(StepError::Command(status));
        }
        let latest = self.options.source_date.map_or(i64::MAX, crate::image::Timestamp::seconds);
        let mut entries = 0;
        let layer = self.store.add_layer(|sink| -> Result<(), StepError> {
            let mut archive = LayerArchive::new(sink);
            entries = write_changes(&folder.path().join("upper"), latest, &mut archive)?;
            archive.finish()?;
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

/// Writes what overlayfs has in its upper directory as entries of a layer, with no time later than `latest`, and returns how many.
/// The top is not among them.
fn write_changes(upper: &Path, latest: i64, archive: &mut LayerArchive<impl io::Write>) -> Result<usize, StepError> {
    let tree = Tree::scan(upper).map_err(io::Error::other)?;
    let mut linked: HashMap<u64, Vec<u8>> = HashMap::new();
    for node in &tree.nodes[1..] {
        let metadata = &node.metadata;
        let path = node.path.as_os_str().as_bytes().to_vec();
        let failed = || StepError::using(node.path.as_os_str().as_bytes());
        let (major, minor) = node.device_numbers();
        let kind = match metadata.mode() & libc::S_IFMT {
            libc::S_IFREG => EntryKind::File(metadata.size()),
            libc::S_IFDIR => EntryKind::Directory,
            libc::S_IFLNK => EntryKind::Symlink(tree.link_target(node).map_err(io::Error::other)?.into_vec()),
            libc::S_IFCHR if (major, minor) == (0, 0) => {
                archive.remove(&path)?;
                continue;
            }
            libc::S_IFCHR => EntryKind::Character(major, minor),
            libc::S_IFBLK => EntryKind::Block(major, minor),
            libc::S_IFIFO => EntryKind::Fifo,
            _ => continue,
        };
        let place = tree.path(node);
        let mut attributes = read_attributes(&place).map_err(failed())?;
        attributes.retain(|(name, _)| belongs_to_images(name));
        let (mode, uid, gid) = (metadata.mode() & 0o7777, metadata.uid(), metadata.gid());
        let mtime = metadata.mtime().min(latest);
        let mut entry = LayerEntry { path, kind, mode, uid, gid, mtime, attributes };
        if metadata.nlink() > 1 && entry.kind != EntryKind::Directory {
            match linked.get(&metadata.ino()) {
                Some(first) => entry.kind = EntryKind::HardLink(first.clone()),
                None => drop(linked.insert(metadata.ino(), entry.path.clone())),
            }
        }
        if let EntryKind::File(_) = entry.kind {
            let file = tree.open(node).map_err(io::Error::other)?;
            archive.append(&entry, file).map_err(failed())?;
        } else {
            archive.append(&entry, io::empty()).map_err(failed())?;
        }
        let mut value = [0; 8];
        let is_opaque =
            |name: &&str| rustix::fs::lgetxattr(&place, *name, &mut value[..]).is_ok_and(|length| length > 0);
        if entry.kind == EntryKind::Directory && OPAQUE.iter().any(is_opaque) {
            archive.empty(&entry.path)?;
        }
    }
    Ok(tree.nodes.len() - 1)
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

    #[test]
    fn what_was_written_becomes_entries() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("d")).unwrap();
        std::fs::write(folder.path().join("d/a"), b"text").unwrap();
        std::fs::hard_link(folder.path().join("d/a"), folder.path().join("d/b")).unwrap();
        let write = |latest| {
            let mut archive = LayerArchive::new(Vec::new());
            assert_eq!(write_changes(folder.path(), latest, &mut archive).unwrap(), 3);
            archive.finish().unwrap()
        };
        let bytes = write(5);
        assert_eq!(bytes, write(5));
        // `d/`, `d/a` with a block of contents, `d/b`, the end.
        assert_eq!(bytes.len(), 4 * 512 + 1024);
        assert_eq!((&bytes[512..515], bytes[3 * 512 + 156]), (&b"d/a"[..], b'1'));
        assert_eq!(&bytes[136..147], b"00000000005");
    }
}
