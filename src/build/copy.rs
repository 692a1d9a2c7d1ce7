//! `COPY`, `ADD` and `WORKDIR`: what they put where.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;

use super::context::Context;
use super::dockerfile::Copy;
use super::error::StepError;
use super::pattern::Pattern;
use super::plan::{Contents, Node, Path, Plan, Source};
use crate::image::{EntryKind, LayerEntry, read_archive};

/// A `COPY` or `ADD` whose variables have been replaced.
pub(super) struct CopyStep<'a> {
    /// Where sources are looked for.
    pub(super) source: Source<'a>,
    /// Files that are in the Dockerfile: names and contents.
    pub(super) inline: Vec<(String, String)>,
    /// The instruction.
    pub(super) copy: &'a Copy,
    /// The working directory, from which the destination counts.
    pub(super) directory: &'a str,
    /// Who is to own it all.
    pub(super) owner: Option<(u32, u32)>,
    /// The permissions of it all.
    pub(super) mode: Option<u32>,
    /// The time for what has none of its own.
    pub(super) now: i64,
    /// The time for what comes from the context.
    pub(super) fixed_time: Option<i64>,
}

/// A directory that is on the way, owned by `owner`.
pub(super) fn parent_like(owner: Option<(u32, u32)>, now: i64) -> LayerEntry {
    let (uid, gid) = owner.unwrap_or((0, 0));
    LayerEntry { uid, gid, ..LayerEntry::directory(b"", now) }
}

/// The parts of a path, which has no links to be followed. `..` at the top stays there.
pub(super) fn parts(path: &str) -> Path {
    let mut parts = Path::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part.into()),
        }
    }
    parts
}

impl<'a> CopyStep<'a> {
    /// Plans the layer.
    pub(super) fn plan(&self, plan: &mut Plan<'a>) -> Result<(), StepError> {
        let destination = &self.copy.destination;
        let whole = if destination.starts_with('/') {
            destination.clone()
        } else {
            format!("{}/{destination}", self.directory)
        };
        let (target, there) = plan.look(&parts(&whole))?;
        let says_directory = destination.ends_with('/') || matches!(destination.rsplit('/').next(), Some("." | ".."));
        let mut found: Vec<(Vec<u8>, Node)> = Vec::new();
        for source in &self.copy.sources {
            found.extend(self.find(source)?);
        }
        let several = found.len() + self.inline.len() > 1;
        if several && !says_directory && there != Some(true) {
            return Err(StepError::Wrong(format!(
                "{destination} must be a directory, and end with a slash, for more than one source"
            )));
        }
        let into = says_directory || there == Some(true);
        if there == Some(false) && into {
            return Err(StepError::Wrong(format!("{destination} is no directory")));
        }
        let like = parent_like(self.owner, self.now);
        for (name, node) in found {
            if self.source.is_directory(&node) {
                plan.directory(&target, &like)?;
                self.directory(plan, &node, &target)?;
            } else if !(self.copy.add && self.unpack(plan, &node, &target)?) {
                let path = if into { [&target[..], &[name]].concat() } else { target.clone() };
                self.file(plan, &node, path)?;
            }
        }
        for (name, text) in &self.inline {
            let path = if into { [&target[..], &[name.clone().into_bytes()]].concat() } else { target.clone() };
            let mut entry = LayerEntry { mode: 0o644, kind: EntryKind::File(text.len() as u64), ..like.clone() };
            entry.mode = self.mode.unwrap_or(entry.mode);
            plan.put(path, entry, Contents::Bytes(Arc::new(text.clone().into_bytes())), &like)?;
        }
        Ok(())
    }

    /// What a source means: with wildcards, several.
    fn find(&self, source: &str) -> Result<Vec<(Vec<u8>, Node)>, StepError> {
        if self.copy.add && (source.contains("://") || source.starts_with("git@")) {
            return Err(StepError::Wrong(format!(
                "ADD of {source}: amphi fetches nothing while it builds; fetch it before, or with RUN"
            )));
        }
        let parts: Vec<&str> = source.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
        if parts.contains(&"..") {
            return Err(StepError::Wrong(format!("{source} leads out of what can be copied from")));
        }
        let top = match self.source {
            Source::Context(_) => Node::Context(Context::top()),
            Source::Image(view) => match view.top().map_err(StepError::using(source.as_bytes()))? {
                Some(top) => Node::Image(top),
                None => return Err(StepError::Wrong(format!("{source} is not there: the image has no files"))),
            },
        };
        let mut found: Vec<(Vec<Vec<u8>>, Node)> = vec![(Vec::new(), top)];
        let mut plain = true;
        for part in parts {
            let pattern = Pattern::parse(part, false)
                .map_err(|problem| StepError::Wrong(format!("{source} is no pattern: {problem}")))?;
            plain &= pattern.is_plain();
            let mut next = Vec::new();
            for (path, node) in &found {
                let failed = || StepError::using(source.as_bytes());
                let children = match pattern.is_plain() {
                    true => {
                        let name = pattern.plain();
                        self.source
                            .child(node, &name)
                            .map_err(failed())?
                            .map(|child| (name, child))
                            .into_iter()
                            .collect()
                    }
                    false => self.source.children(node).map_err(failed())?,
                };
                for (name, child) in children {
                    if pattern.matches(&name) {
                        let path = [&path[..], &[name]].concat();
                        if let Some(child) = self.follow(&path, child).map_err(failed())? {
                            next.push((path, child));
                        }
                    }
                }
            }
            found = next;
        }
        if found.is_empty() {
            let place = match self.source {
                Source::Context(_) => "the context, or .dockerignore leaves it out",
                Source::Image(_) => "the image that it is to be copied from",
            };
            let what = if plain { "is not in" } else { "fits nothing in" };
            return Err(StepError::Wrong(format!("{source} {what} {place}")));
        }
        Ok(found.into_iter().map(|(mut path, node)| (path.pop().unwrap_or_default(), node)).collect())
    }

    /// Where a link leads, within what is copied from.
    fn follow(&self, path: &[Vec<u8>], node: Node) -> std::io::Result<Option<Node>> {
        match (self.source, node) {
            (Source::Context(context), Node::Context(node)) => Ok(context.follow(node)?.map(Node::Context)),
            (Source::Image(view), Node::Image(_)) => {
                Ok(view.resolve(&super::plan::joined(path), true)?.node.map(Node::Image))
            }
            _ => Ok(None),
        }
    }

    /// The entry of a node, with what the step says about all.
    fn dressed(&self, node: &Node) -> Result<LayerEntry, StepError> {
        let mut entry = self.source.entry(node).map_err(|error| match (self.source, node) {
            (Source::Context(context), Node::Context(node)) => {
                StepError::Use { name: context.path(*node).display().to_string(), source: error }
            }
            _ => StepError::Layer(error),
        })?;
        if let (Source::Context(_), Some(time)) = (self.source, self.fixed_time) {
            entry.mtime = time;
        }
        self.dress(&mut entry);
        Ok(entry)
    }

    fn dress(&self, entry: &mut LayerEntry) {
        if let Some((uid, gid)) = self.owner {
            (entry.uid, entry.gid) = (uid, gid);
        }
        if let (Some(mode), false) = (self.mode, matches!(entry.kind, EntryKind::Symlink(_))) {
            entry.mode = mode;
        }
    }

    fn file(&self, plan: &mut Plan<'a>, node: &Node, path: Path) -> Result<(), StepError> {
        let entry = self.dressed(node)?;
        let contents = match entry.kind {
            EntryKind::File(_) => Contents::Of(self.source, node.clone()),
            _ => Contents::None,
        };
        plan.put(path, entry, contents, &parent_like(self.owner, self.now))
    }

    /// Copies what is in a directory into the one at `target`. Where a link of the image is in a directory's place, it is followed.
    fn directory(&self, plan: &mut Plan<'a>, directory: &Node, target: &[Vec<u8>]) -> Result<(), StepError> {
        let mut pending = vec![(directory.clone(), target.to_vec())];
        while let Some((directory, target)) = pending.pop() {
            for (name, node) in self.source.children(&directory)? {
                let path = [&target[..], &[name]].concat();
                if !self.source.is_directory(&node) {
                    self.file(plan, &node, path)?;
                    continue;
                }
                let (path, there) = plan.look(&path)?;
                if there == Some(false) {
                    let place = String::from_utf8_lossy(&super::plan::joined(&path)).into_owned();
                    return Err(StepError::Wrong(format!(
                        "/{place} is a file, which a directory cannot take the place of"
                    )));
                }
                let entry = self.dressed(&node)?;
                plan.put(path.clone(), entry, Contents::None, &parent_like(self.owner, self.now))?;
                pending.push((node, path));
            }
        }
        Ok(())
    }

    /// Unpacks a file that is an archive into the directory `target`; `false` where it is none.
    fn unpack(&self, plan: &mut Plan<'a>, node: &Node, target: &[Vec<u8>]) -> Result<bool, StepError> {
        let (Source::Context(context), Node::Context(node)) = (self.source, node) else { return Ok(false) };
        let EntryKind::File(size) = context.entry(*node)?.kind else { return Ok(false) };
        let file: File = context.open_file(*node)?;
        let Some(unpacked) = read_archive(file, size)? else { return Ok(false) };
        let like = parent_like(self.owner, self.now);
        plan.directory(target, &like)?;
        let kept = Arc::new(unpacked.contents);
        let mut files: HashMap<Vec<u8>, (LayerEntry, u64, usize)> = HashMap::new();
        for (number, (mut entry, mut at)) in unpacked.entries.into_iter().enumerate() {
            let mut file = number;
            match &entry.kind {
                EntryKind::File(_) => drop(files.insert(entry.path.clone(), (entry.clone(), at, number))),
                EntryKind::HardLink(other) => {
                    let Some((first, its, of)) = files.get(other).cloned() else {
                        let problem = "is a hard link to no file of the archive";
                        return Err(StepError::Wrong(format!("{} {problem}", String::from_utf8_lossy(&entry.path))));
                    };
                    (entry, at, file) = (LayerEntry { path: entry.path, ..first }, its, of);
                    files.insert(entry.path.clone(), (entry.clone(), at, file));
                }
                _ => {}
            }
            let own: Path =
                entry.path.split(|&byte| byte == b'/').filter(|part| !part.is_empty()).map(<[u8]>::to_vec).collect();
            let Some((name, parents)) = own.split_last() else { continue };
            let (parents, _) = plan.look(&[target, parents].concat())?;
            let mut path = [&parents[..], std::slice::from_ref(name)].concat();
            if entry.kind == EntryKind::Directory {
                path = plan.look(&path)?.0;
            }
            if let Some((uid, gid)) = self.owner {
                (entry.uid, entry.gid) = (uid, gid);
            }
            let contents = match entry.kind {
                EntryKind::File(_) => Contents::Kept(kept.clone(), at, file),
                _ => Contents::None,
            };
            plan.put(path, entry, contents, &like)?;
        }
        Ok(true)
    }
}
