//! The folder that a build copies from.
//!
//! It may be anybody's: symbolic links in it are followed within it only, in what was read of it once, and files are
//! opened through no link.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::BuildError;
use super::ignore::{Fits, Ignore};
use crate::image::{EntryKind, LayerEntry, Tree, belongs_to_images, read_attributes};

/// The most symbolic links on a way, as in the kernel.
const MAX_LINKS: usize = 40;
/// The longest `.dockerignore`, in bytes.
const IGNORE_LIMIT: u64 = 1 << 20;

/// A folder, without what is to be left out of it.
#[derive(Debug)]
pub(super) struct Context {
    tree: Tree,
    /// For each node what is in it, by name.
    children: Vec<BTreeMap<Vec<u8>, usize>>,
}

impl Context {
    /// Reads the folder's names. What the `.dockerignore` beside the Dockerfile says, or else the one in the folder, is left out.
    pub(super) fn open(folder: &Path, dockerfile: Option<&Path>) -> Result<Self, BuildError> {
        let ignore = ignore(folder, dockerfile)?;
        let tree = Tree::scan(folder)?;
        let mut fits: Vec<Fits> = Vec::new();
        let mut seen = vec![false; tree.nodes.len()];
        for (index, node) in tree.nodes.iter().enumerate() {
            let path = node.path.as_os_str().as_bytes();
            let own = match index {
                0 => ignore.fits(b".", None),
                _ => ignore.fits(path, Some(&fits[node.parent]).filter(|_| node.parent > 0)),
            };
            if index == 0 || !ignore.leaves_out(&own) {
                // The directories on the way come along.
                let mut at = index;
                while !seen[at] {
                    seen[at] = true;
                    at = node_parent(&tree, at);
                }
            }
            fits.push(own);
        }
        let mut children: Vec<BTreeMap<Vec<u8>, usize>> = tree.nodes.iter().map(|_| BTreeMap::new()).collect();
        for (index, node) in tree.nodes.iter().enumerate().skip(1).filter(|(index, _)| seen[*index]) {
            let name = node.path.file_name().unwrap_or_default().as_bytes().to_vec();
            children[node.parent].insert(name, index);
        }
        Ok(Self { tree, children })
    }

    pub(super) const fn top() -> usize {
        0
    }

    pub(super) fn is_directory(&self, node: usize) -> bool {
        self.tree.nodes[node].metadata.is_dir()
    }

    pub(super) fn child(&self, node: usize, name: &[u8]) -> Option<usize> {
        self.children[node].get(name).copied()
    }

    pub(super) fn children(&self, node: usize) -> Vec<(Vec<u8>, usize)> {
        self.children[node].iter().map(|(name, child)| (name.clone(), *child)).collect()
    }

    /// Follows the links that `node` is, or leads through; `None` where they lead nowhere in the folder.
    pub(super) fn follow(&self, node: usize) -> io::Result<Option<usize>> {
        let mut links = 0;
        self.follow_from(node, &mut links)
    }

    fn follow_from(&self, node: usize, links: &mut usize) -> io::Result<Option<usize>> {
        let entry = &self.tree.nodes[node];
        if !entry.metadata.is_symlink() {
            return Ok(Some(node));
        }
        *links += 1;
        if *links > MAX_LINKS {
            return Err(io::Error::other("there are more than 40 symbolic links on the way"));
        }
        let target = self.tree.link_target(entry).map_err(io::Error::other)?.into_vec();
        let mut at = if target.starts_with(b"/") { 0 } else { entry.parent };
        for part in target.split(|&byte| byte == b'/') {
            at = match part {
                b"" | b"." => at,
                b".." => self.tree.nodes[at].parent,
                name => match self.child(at, name) {
                    Some(child) => match self.follow_from(child, links)? {
                        Some(followed) => followed,
                        None => return Ok(None),
                    },
                    None => return Ok(None),
                },
            };
        }
        Ok(Some(at))
    }

    /// What a node is, for a layer. It is root's, whoever's it is here.
    pub(super) fn entry(&self, node: usize) -> io::Result<LayerEntry> {
        let node = &self.tree.nodes[node];
        let metadata = &node.metadata;
        let (major, minor) = node.device_numbers();
        let kind = match metadata.mode() & libc::S_IFMT {
            libc::S_IFREG => EntryKind::File(metadata.size()),
            libc::S_IFDIR => EntryKind::Directory,
            libc::S_IFLNK => EntryKind::Symlink(self.tree.link_target(node).map_err(io::Error::other)?.into_vec()),
            libc::S_IFCHR => EntryKind::Character(major, minor),
            libc::S_IFBLK => EntryKind::Block(major, minor),
            libc::S_IFIFO => EntryKind::Fifo,
            _ => return Err(io::Error::other("it is a socket, which an image cannot hold: name it in .dockerignore")),
        };
        let mut attributes = read_attributes(&self.tree.path(node))?;
        attributes.retain(|(name, _)| belongs_to_images(name));
        let (mode, mtime) = (metadata.mode() & 0o7777, metadata.mtime());
        Ok(LayerEntry { path: Vec::new(), kind, mode, uid: 0, gid: 0, mtime, attributes })
    }

    /// What tells a file from others, where it has several names.
    pub(super) fn identity(&self, node: usize) -> Option<(u64, u64)> {
        let metadata = &self.tree.nodes[node].metadata;
        (metadata.nlink() > 1 && !metadata.is_dir()).then(|| (metadata.dev(), metadata.ino()))
    }

    /// The contents of a file, if it still is what it was.
    pub(super) fn open_file(&self, node: usize) -> io::Result<fs::File> {
        self.tree.open(&self.tree.nodes[node]).map_err(io::Error::other)
    }

    /// Where a node is, for messages.
    pub(super) fn path(&self, node: usize) -> PathBuf {
        self.tree.nodes[node].path.clone()
    }
}

fn node_parent(tree: &Tree, index: usize) -> usize {
    tree.nodes[index].parent
}

fn ignore(folder: &Path, dockerfile: Option<&Path>) -> Result<Ignore, BuildError> {
    let beside = dockerfile.map(|path| {
        let mut name = path.as_os_str().to_owned();
        name.push(".dockerignore");
        PathBuf::from(name)
    });
    for path in beside.into_iter().chain([folder.join(".dockerignore")]) {
        // A link could lead out of the context.
        let is_file = path.symlink_metadata().is_ok_and(|metadata| metadata.is_file());
        if !is_file {
            continue;
        }
        let text = read_text(&path, IGNORE_LIMIT)?;
        return Ignore::parse(&text).map_err(|(line, problem)| BuildError::Ignore { path, line, problem });
    }
    Ok(Ignore::default())
}

/// Reads a small text.
pub(super) fn read_text(path: &Path, limit: u64) -> Result<String, BuildError> {
    let failed = |source| BuildError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    fs::File::open(path).map_err(failed)?.take(limit + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > limit {
        return Err(failed(io::Error::other("it is longer than 1 MiB")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_left_out_is_not_there_and_links_do_not_lead_out() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        for path in ["a/keep", "a/drop", "b"] {
            fs::create_dir_all(at(path).parent().unwrap()).unwrap();
            fs::write(at(path), path).unwrap();
        }
        fs::write(at(".dockerignore"), "a\n!a/keep\n").unwrap();
        symlink("/etc/passwd", at("out")).unwrap();
        symlink("../../../../etc", at("up")).unwrap();
        symlink("/a/keep", at("in")).unwrap();
        symlink("loop", at("loop")).unwrap();
        let context = Context::open(folder.path(), None).unwrap();
        let child = |name: &str| context.child(0, name.as_bytes()).unwrap();
        let names = |node| context.children(node).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(child("a")), [b"keep"]);
        assert!(context.follow(child("out")).unwrap().is_none());
        assert!(context.follow(child("up")).unwrap().is_none());
        assert!(context.follow(child("loop")).is_err());
        let inside = context.follow(child("in")).unwrap().unwrap();
        assert_eq!(context.path(inside), Path::new("a/keep"));
        let entry = context.entry(inside).unwrap();
        assert_eq!((entry.uid, entry.kind), (0, EntryKind::File(6)));
    }

    #[test]
    fn the_ignore_file_beside_the_dockerfile_counts_first() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("x", ""), ("y", ""), (".dockerignore", "x"), ("my.dockerignore", "y")] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let context = Context::open(folder.path(), Some(&folder.path().join("my"))).unwrap();
        assert!(context.child(0, b"x").is_some() && context.child(0, b"y").is_none());
    }
}
