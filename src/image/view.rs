//! An image's layers as one tree, read on the host without mounting anything: what overlayfs would show.
//!
//! Paths are resolved in the tree alone. Links lead where they would lead in a run, and never out of it.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use super::belongs_to_images;
use super::erofs::StoredInode;
use super::layer::{EntryKind, LayerEntry, is_opaque};

/// The most symbolic links on a way, as in the kernel.
const MAX_LINKS: usize = 40;
/// The longest target of a link, in bytes.
const PATH_MAX: u64 = 4096;

/// Layers over each other.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// EROFS images that amphi has written, the lowest first.
    layers: Vec<Arc<File>>,
}

/// Something in a view.
#[derive(Debug, Clone)]
pub(crate) struct ViewNode {
    /// Where it is, the highest layer first; only a directory is in several.
    parts: Vec<(usize, StoredInode)>,
}

/// Where a path leads.
#[derive(Debug, Clone)]
pub(crate) struct Resolved {
    /// The same without links, `.` and `..`.
    pub(crate) path: Vec<Vec<u8>>,
    /// What is there.
    pub(crate) node: Option<ViewNode>,
}

impl ViewNode {
    fn inode(&self) -> &StoredInode {
        &self.parts[0].1
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.inode().is_directory()
    }

    fn is_link(&self) -> bool {
        self.inode().mode() & libc::S_IFMT == libc::S_IFLNK
    }

    /// What tells it from others, where it has several names.
    pub(crate) fn identity(&self) -> Option<(u64, u64)> {
        let (layer, inode) = &self.parts[0];
        (!inode.is_directory() && inode.links() > 1).then(|| (*layer as u64, inode.position()))
    }
}

impl View {
    /// A view of layers, the lowest first.
    pub(crate) fn new(layers: Vec<Arc<File>>) -> Self {
        Self { layers }
    }

    /// Puts a layer on top.
    pub(crate) fn push(&mut self, layer: Arc<File>) {
        self.layers.push(layer);
    }

    /// The top of the tree; `None` where there are no layers.
    pub(crate) fn top(&self) -> io::Result<Option<ViewNode>> {
        let mut parts = Vec::new();
        for (index, image) in self.layers.iter().enumerate().rev() {
            parts.push((index, StoredInode::top(image)?));
        }
        Ok((!parts.is_empty()).then_some(ViewNode { parts }))
    }

    /// What a directory has of that name.
    pub(crate) fn child(&self, directory: &ViewNode, name: &[u8]) -> io::Result<Option<ViewNode>> {
        let mut parts: Vec<(usize, StoredInode)> = Vec::new();
        for (index, inode) in &directory.parts {
            let Some(child) = inode.child(&self.layers[*index], name)? else { continue };
            let found = child.found();
            let is_whiteout = found.mode & libc::S_IFMT == libc::S_IFCHR && found.device == 0;
            // A directory hides what is no directory below it, as all else hides everything.
            if is_whiteout || (!parts.is_empty() && !child.is_directory()) {
                break;
            }
            let goes_on = child.is_directory() && !is_opaque(&found);
            parts.push((*index, child));
            if !goes_on {
                break;
            }
        }
        Ok((!parts.is_empty()).then_some(ViewNode { parts }))
    }

    /// What is in a directory, in the order of the names.
    pub(crate) fn children(&self, directory: &ViewNode) -> io::Result<Vec<(Vec<u8>, ViewNode)>> {
        let mut names = BTreeSet::new();
        for (index, inode) in &directory.parts {
            names.extend(inode.names(&self.layers[*index])?);
        }
        let mut children = Vec::new();
        for name in names {
            if let Some(child) = self.child(directory, &name)? {
                children.push((name, child));
            }
        }
        Ok(children)
    }

    /// Follows a path from the top, or from there where it begins with a slash as well. What is missing on the way stays as it is
    /// written. A link at the end is followed if `follow` says so.
    pub(crate) fn resolve(&self, path: &[u8], follow: bool) -> io::Result<Resolved> {
        let split = |path: &[u8]| path.split(|&byte| byte == b'/').map(<[u8]>::to_vec).collect::<Vec<_>>();
        let top = self.top()?;
        let mut way: Vec<(Vec<u8>, Option<ViewNode>)> = Vec::new();
        let mut pending: VecDeque<Vec<u8>> = split(path).into();
        let mut links = 0;
        while let Some(name) = pending.pop_front() {
            match &name[..] {
                b"" | b"." => continue,
                b".." => {
                    way.pop();
                    continue;
                }
                _ => {}
            }
            let at = way.last().map_or(&top, |(_, node)| node);
            let node = match at {
                Some(directory) if directory.is_directory() => self.child(directory, &name)?,
                Some(_) => return Err(io::ErrorKind::NotADirectory.into()),
                None => None,
            };
            let is_last = pending.iter().all(|name| matches!(&name[..], b"" | b"."));
            if let Some(link) = node.as_ref().filter(|node| node.is_link() && (follow || !is_last)) {
                links += 1;
                if links > MAX_LINKS {
                    return Err(io::Error::other("there are more than 40 symbolic links on the way"));
                }
                let target = self.target(link)?;
                if target.starts_with(b"/") {
                    way.clear();
                }
                for name in split(&target).into_iter().rev() {
                    pending.push_front(name);
                }
                continue;
            }
            way.push((name, node));
        }
        let node = match way.last() {
            Some((_, node)) => node.clone(),
            None => top,
        };
        Ok(Resolved { path: way.into_iter().map(|(name, _)| name).collect(), node })
    }

    fn target(&self, link: &ViewNode) -> io::Result<Vec<u8>> {
        let mut target = Vec::new();
        self.contents(link).take(PATH_MAX).read_to_end(&mut target)?;
        Ok(target)
    }

    /// What a node is, as an entry of a layer with that path.
    pub(crate) fn entry(&self, node: &ViewNode, path: Vec<u8>) -> io::Result<LayerEntry> {
        let found = node.inode().found();
        // As the kernel's `new_encode_dev` has it.
        let device = (found.device >> 8 & 0xfff, found.device & 0xff | found.device >> 12 & !0xff);
        let kind = match found.mode & libc::S_IFMT {
            libc::S_IFDIR => EntryKind::Directory,
            libc::S_IFLNK => EntryKind::Symlink(self.target(node)?),
            libc::S_IFCHR => EntryKind::Character(device.0, device.1),
            libc::S_IFBLK => EntryKind::Block(device.0, device.1),
            libc::S_IFIFO => EntryKind::Fifo,
            _ => EntryKind::File(node.inode().size()),
        };
        let mut attributes = found.attributes;
        attributes.retain(|(name, _)| belongs_to_images(name));
        let (mode, uid, gid, mtime) = (found.mode & 0o7777, found.uid, found.gid, found.mtime.0);
        Ok(LayerEntry { path, kind, mode, uid, gid, mtime, attributes })
    }

    /// The contents of a file or link.
    pub(crate) fn contents(&self, node: &ViewNode) -> Contents {
        let (layer, inode) = node.parts[0].clone();
        Contents { image: self.layers[layer].clone(), inode, at: 0 }
    }

    /// The beginning of the file at `path`, at most `limit` bytes; nothing where there is no file.
    pub(crate) fn read_file(&self, path: &[u8], limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        if let Some(node) = self.resolve(path, true)?.node
            && node.inode().mode() & libc::S_IFMT == libc::S_IFREG
        {
            self.contents(&node).take(limit).read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    }
}

/// Reads a file of a view.
#[derive(Debug)]
pub(crate) struct Contents {
    image: Arc<File>,
    inode: StoredInode,
    at: u64,
}

impl Read for Contents {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.inode.size() {
            return Ok(0);
        }
        let got = self.inode.read_at(&self.image, buffer, self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::layer::LayerArchive;
    use crate::image::{Draft, Store, StoreError};

    /// Layers of entries: `path`, `path/`, `path->target`, `path=contents`, `-path`, `-path/*`.
    fn view(layers: &[&[&str]]) -> (tempfile::TempDir, View) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let mut draft = Draft::scratch();
        let mut view = View::default();
        for (index, entries) in layers.iter().enumerate() {
            let layer = store.add_layer(|sink| -> Result<(), StoreError> {
                let mut archive = LayerArchive::new(sink);
                for text in *entries {
                    let mut entry = LayerEntry::directory(text.trim_end_matches('/').as_bytes(), 7);
                    let mut contents: &[u8] = b"";
                    if let Some(path) = text.strip_prefix('-') {
                        match path.strip_suffix("/*") {
                            Some(path) => archive.empty(path.as_bytes()).unwrap(),
                            None => archive.remove(path.as_bytes()).unwrap(),
                        }
                        continue;
                    }
                    if let Some((path, target)) = text.split_once("->") {
                        entry.path = path.into();
                        entry.kind = EntryKind::Symlink(target.into());
                    } else if let Some((path, text)) = text.split_once('=') {
                        entry.path = path.into();
                        entry.kind = EntryKind::File(text.len() as u64);
                        contents = text.as_bytes();
                    }
                    archive.append(&entry, contents).unwrap();
                }
                archive.finish().unwrap();
                Ok(())
            });
            draft.add_layer(layer.unwrap(), crate::image::manifest::History::default());
            view.push(store.layer_file(&draft.image(), index).unwrap().file);
        }
        (folder, view)
    }

    fn read(view: &View, path: &str) -> String {
        String::from_utf8(view.read_file(path.as_bytes(), 1 << 20).unwrap()).unwrap()
    }

    fn list(view: &View, path: &str) -> Vec<String> {
        let node = view.resolve(path.as_bytes(), true).unwrap().node.unwrap();
        let names = view.children(&node).unwrap().into_iter().map(|(name, _)| name);
        names.map(|name| String::from_utf8(name).unwrap()).collect()
    }

    #[test]
    fn layers_hide_each_other() {
        let (_folder, view) = view(&[
            &["a/", "a/1=one", "a/2=two", "b/", "b/x=x", "c=file", "d/", "d/y=y"],
            &["a/", "-a/1", "a/3=three", "b/", "-b/*", "b/z=z", "c/", "c/n=n", "-d"],
            &["a/", "a/2=zwei", "d/", "d/w=w"],
        ]);
        assert_eq!(list(&view, "/"), ["a", "b", "c", "d"]);
        assert_eq!(list(&view, "a"), ["2", "3"]);
        assert_eq!(list(&view, "b"), ["z"]);
        assert_eq!(list(&view, "c"), ["n"]);
        assert_eq!(list(&view, "d"), ["w"]);
        assert_eq!(
            (read(&view, "a/2"), read(&view, "a/3"), read(&view, "a/1")),
            ("zwei".into(), "three".into(), String::new())
        );
        assert!(View::default().top().unwrap().is_none());
    }

    #[test]
    fn contents_are_read_whatever_their_length() {
        for length in [0, 1, 4095, 4096, 4097, 6000, 8192, 100_001] {
            let text: String = (0..length).map(|n| char::from(b'a' + u8::try_from(n % 23).unwrap())).collect();
            let (_folder, view) = view(&[&[&format!("f={text}")]]);
            assert!(read(&view, "f") == text, "{length}");
        }
        let names: Vec<String> = (0..2000).map(|n| format!("d/name-{n:05}=")).collect();
        let mut entries = vec!["d/"];
        entries.extend(names.iter().map(String::as_str));
        let (_folder, view) = view(&[&entries]);
        assert_eq!(list(&view, "d").len(), 2000);
    }

    #[test]
    fn links_stay_in_the_tree() {
        let (_folder, view) = view(&[&[
            "usr/",
            "usr/lib/",
            "usr/lib/f=f",
            "lib->usr/lib",
            "abs->/usr",
            "out->../../../etc",
            "etc/",
            "etc/passwd=p",
            "loop->loop",
        ]]);
        let path = |path: &str, follow| {
            let found = view.resolve(path.as_bytes(), follow).unwrap();
            let names: Vec<_> = found.path.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
            (names.join("/"), found.node.is_some())
        };
        assert_eq!(path("/lib/f", false), ("usr/lib/f".into(), true));
        assert_eq!(path("lib", false), ("lib".into(), true));
        assert_eq!(path("lib/", true), ("usr/lib".into(), true));
        assert_eq!(path("abs/lib/new/deep", true), ("usr/lib/new/deep".into(), false));
        assert_eq!(path("new/../etc/./passwd", true), ("etc/passwd".into(), true));
        assert_eq!(path("../../..", true), (String::new(), true));
        assert_eq!(read(&view, "out/passwd"), "p");
        assert!(view.resolve(b"loop", true).is_err());
        assert!(view.resolve(b"etc/passwd/x", true).is_err());
    }
}
