//! The tree that a layer's entries make, in memory: names and attributes, not contents.
//!
//! Nothing is looked up on the host, so no name can lead out of the tree. What a layer removes from those below
//! (OCI image specification, "Representing Changes") is kept as overlayfs has it: a character device 0:0 for a name, an
//! attribute for all that was in a directory. Several layers can be put into one tree, which then has nothing below it.

use std::collections::BTreeMap;

use super::archive::{Header, Kind};
use super::{LayerError, MAX_ENTRIES, MAX_NAMES};
use crate::image::erofs::{Attributes, Contents, Entry, ErofsError, Found, Listing, encode_attributes};
use crate::image::xattr;

/// What begins the name of an entry that removes another.
const WHITEOUT: &[u8] = b".wh.";
/// The entry that removes all that was in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Names that begin so are a union file system's own notes.
const NOTES: &[u8] = b".wh..wh.";
/// How overlayfs is told that nothing of a directory shows through.
const OPAQUE_ATTRIBUTE: (&[u8], &[u8]) = (b"trusted.overlay.opaque", b"y");
/// The longest name, and the longest path, that Linux takes.
const NAME_MAX: usize = 255;
const PATH_MAX: usize = 4095;
/// How deep directories may lie in each other.
const DEPTH: usize = 1024;

/// A tree under construction.
pub(super) struct Tree {
    nodes: Vec<Node>,
    files: Vec<File>,
    /// How many bytes names, targets and attributes take.
    names: usize,
    /// The layer that is being put in.
    layer: u32,
}

/// A name and what it stands for. Removed ones stay where they are, unreachable.
struct Node {
    /// `None` where only a whiteout is known of it as yet.
    file: Option<usize>,
    children: BTreeMap<Box<[u8]>, usize>,
    /// The layer that touched it or what is in it last.
    layer: u32,
    /// Whether the layers below have something of this name that is hidden.
    hides: bool,
}

/// What is known of a file.
#[derive(Default)]
struct File {
    /// Whether it is a directory that no entry describes.
    implied: bool,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
    device: (u32, u32),
    attributes: xattr::Attributes,
    contents: Contents,
    /// A symbolic link's target.
    target: Vec<u8>,
    /// Where the tail of placed contents is kept.
    tail_at: u64,
}

/// What lies behind an inode, or is to be written as its contents.
pub(super) enum Origin {
    /// A link's target.
    Target(Vec<u8>),
    /// The place of the tail among those that are kept.
    Tail(u64),
}

/// Whether a directory of a file system hides what lies below.
pub(in crate::image) fn is_opaque(found: &Found) -> bool {
    found.attributes.iter().any(|(name, _)| name == OPAQUE_ATTRIBUTE.0)
}

const fn is_directory(mode: u32) -> bool {
    mode & libc::S_IFMT == libc::S_IFDIR
}

impl Tree {
    /// A tree with nothing but its top.
    pub(super) fn new() -> Self {
        let top = Node { file: Some(0), children: BTreeMap::new(), layer: 0, hides: false };
        Self { nodes: vec![top], files: vec![File::directory()], names: 0, layer: 0 }
    }

    /// What comes now is of the next layer, which lies over what is there already.
    pub(super) fn next_layer(&mut self) {
        self.layer += 1;
    }

    /// Takes in an entry; for a regular file, returns where its contents are to be noted with [`Tree::set_contents`].
    pub(super) fn add(&mut self, header: &Header) -> Result<Option<usize>, LayerError> {
        let wrong = |problem| LayerError::entry(&header.path, problem);
        if self.nodes.len() >= MAX_ENTRIES {
            return Err(LayerError::TooLarge("has more than 2,000,000 entries"));
        }
        let size = header.path.len() + header.link.len();
        let attributes: usize = header.attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.names += size + attributes;
        if self.names > MAX_NAMES {
            return Err(LayerError::TooLarge("has more than 512 MiB of names and attributes"));
        }
        let path = components(&header.path).map_err(wrong)?;
        let Some((&name, parents)) = path.split_last() else {
            return self.set_top(header).map_err(wrong).map(|()| None);
        };
        // To overlayfs a device 0:0 is the same as a whiteout.
        let hidden = match name.strip_prefix(WHITEOUT) {
            None if header.kind == Kind::Character && header.device == (0, 0) => Some(name),
            hidden => hidden,
        };
        if let Some(hidden) = hidden {
            self.remove(parents, name, hidden).map_err(wrong)?;
            return Ok(None);
        }
        let file = match header.kind {
            Kind::HardLink => self.link_target(header).map_err(wrong)?,
            _ => {
                self.files.push(File::new(header));
                self.files.len() - 1
            }
        };
        let directory = self.directory(parents).map_err(wrong)?;
        self.put(directory, name, file);
        Ok((header.kind == Kind::File).then_some(file))
    }

    /// Takes in an entry that removes what the layers below have of the name `hidden`, or all in its directory.
    fn remove(&mut self, parents: &[&[u8]], name: &[u8], hidden: &[u8]) -> Result<(), &'static str> {
        if name.starts_with(NOTES) && name != OPAQUE {
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err("removes nothing");
        }
        // In a directory that this layer has replaced by a file, nothing is left to be removed. umoci writes such entries.
        let Ok(directory) = self.directory(parents) else { return Ok(()) };
        if name == OPAQUE {
            self.hide_below(directory);
        } else {
            self.hide(directory, hidden);
        }
        Ok(())
    }

    /// Where the contents of a file have been put.
    pub(super) fn set_contents(&mut self, file: usize, contents: Contents, tail_at: u64) {
        self.files[file].contents = contents;
        self.files[file].tail_at = tail_at;
    }

    fn set_top(&mut self, header: &Header) -> Result<(), &'static str> {
        if header.kind != Kind::Directory {
            return Err("is the top of the tree, but no directory");
        }
        self.files.push(File::new(header));
        self.nodes[0].file = Some(self.files.len() - 1);
        Ok(())
    }

    /// The node of a directory; what is missing on the way is made.
    fn directory(&mut self, path: &[&[u8]]) -> Result<usize, &'static str> {
        let mut at = 0;
        self.nodes[at].layer = self.layer;
        for &name in path {
            let child = self.nodes[at].children.get(name).copied();
            at = match child {
                Some(child) if self.is_directory(child) => child,
                Some(child) if self.nodes[child].file.is_some() && self.nodes[child].layer == self.layer => {
                    return Err("lies below something that is no directory");
                }
                _ => {
                    self.files.push(File::directory());
                    self.put(at, name, self.files.len() - 1)
                }
            };
            self.nodes[at].layer = self.layer;
        }
        Ok(at)
    }

    fn is_directory(&self, node: usize) -> bool {
        self.nodes[node].file.is_some_and(|file| is_directory(self.files[file].mode))
    }

    /// Gives the file a name in a directory, in the place of what has that name; a directory keeps what is in it.
    fn put(&mut self, directory: usize, name: &[u8], file: usize) -> usize {
        let layer = self.layer;
        if let Some(&node) = self.nodes[directory].children.get(name) {
            let stays = self.is_directory(node) && is_directory(self.files[file].mode);
            if !stays {
                self.nodes[node].children.clear();
            }
            self.nodes[node].file = Some(file);
            self.nodes[node].layer = layer;
            return node;
        }
        let node = self.nodes.len();
        self.nodes.push(Node { file: Some(file), children: BTreeMap::new(), layer, hides: false });
        self.nodes[directory].children.insert(name.into(), node);
        node
    }

    /// Hides what the layers below have of that name.
    fn hide(&mut self, directory: usize, name: &[u8]) {
        match self.nodes[directory].children.get(name).copied() {
            Some(node) => {
                self.nodes[node].hides = true;
                if self.nodes[node].layer != self.layer {
                    self.nodes[directory].children.remove(name);
                } else if self.is_directory(node) {
                    self.remove_older(node);
                }
            }
            None if self.layer == 0 => {
                let node = Node { file: None, children: BTreeMap::new(), layer: 0, hides: true };
                self.nodes.push(node);
                let node = self.nodes.len() - 1;
                self.nodes[directory].children.insert(name.into(), node);
            }
            // There is nothing of that name below.
            None => {}
        }
    }

    /// Hides all that the layers below have in a directory.
    fn hide_below(&mut self, directory: usize) {
        self.nodes[directory].hides = true;
        self.remove_older(directory);
    }

    /// Removes what is of earlier layers below a directory.
    fn remove_older(&mut self, directory: usize) {
        let mut pending = vec![directory];
        while let Some(node) = pending.pop() {
            let mut children = std::mem::take(&mut self.nodes[node].children);
            children.retain(|_, child| self.nodes[*child].layer == self.layer);
            pending.extend(children.values().copied());
            self.nodes[node].children = children;
        }
    }

    /// The file that a hard link is another name of.
    fn link_target(&self, header: &Header) -> Result<usize, &'static str> {
        let mut at = 0;
        for name in components(&header.link).map_err(|_| "is a hard link that leads out of the layer")? {
            at =
                *self.nodes[at].children.get(name).ok_or("is a hard link to something that the layer does not hold")?;
        }
        let file = self.nodes[at].file.ok_or("is a hard link to something that the layer does not hold")?;
        if is_directory(self.files[file].mode) { Err("is a hard link to a directory") } else { Ok(file) }
    }

    /// The directories, but for the top, that no entry describes: they are like those of the layers below. With each,
    /// what to hand to [`Tree::describe`], and its path.
    pub(super) fn implied(&self) -> Vec<(usize, Vec<Box<[u8]>>)> {
        let mut found = Vec::new();
        let mut pending: Vec<(usize, Vec<Box<[u8]>>)> = vec![(0, Vec::new())];
        while let Some((node, path)) = pending.pop() {
            for (name, &child) in &self.nodes[node].children {
                if self.is_directory(child) {
                    let path = [&path[..], std::slice::from_ref(name)].concat();
                    if let Some(file) = self.nodes[child].file.filter(|&file| self.files[file].implied) {
                        found.push((file, path.clone()));
                    }
                    pending.push((child, path));
                }
            }
        }
        found
    }

    /// Gives a directory that no entry describes what the layers below say of it.
    pub(super) fn describe(&mut self, file: usize, found: Found) {
        let mut attributes = found.attributes;
        attributes.retain(|(name, _)| xattr::belongs_to_images(name));
        let File { mode, uid, gid, mtime, attributes: own, .. } = &mut self.files[file];
        (*mode, *uid, *gid, *mtime, *own) = (found.mode, found.uid, found.gid, found.mtime, attributes);
    }

    /// What the tree holds, in the order that an image needs, with what is to be done for each inode's contents.
    /// With `over_others`, what the tree hides of others below it is in the listing.
    pub(super) fn list(mut self, over_others: bool) -> Result<(Listing, Vec<Origin>), LayerError> {
        let mut listing = Listing::default();
        let mut origins = Vec::new();
        // For each file its inode, and for each that is still to be visited its parent's entry and its name.
        let mut inodes: Vec<Option<usize>> = self.files.iter().map(|_| None).collect();
        let mut pending: Vec<(usize, usize, Box<[u8]>)> = vec![(0, 0, Box::default())];
        while let Some((node, parent, name)) = pending.pop() {
            let Node { file, children, hides, .. } = &mut self.nodes[node];
            if file.is_none() && !over_others {
                continue;
            }
            let file = *file.get_or_insert_with(|| {
                self.files.push(File::whiteout());
                inodes.push(None);
                self.files.len() - 1
            });
            let entry = listing.entries.len();
            let children = std::mem::take(children);
            pending.extend(children.into_iter().rev().map(|(name, child)| (child, entry, name)));
            if let Some(inode) = inodes[file] {
                listing.entries.push(Entry { name: name.into(), parent, inode });
                continue;
            }
            let inode = listing.inodes.len();
            inodes[file] = Some(inode);
            listing.entries.push(Entry { name: name.into(), parent, inode });
            let hides = *hides && over_others;
            let file = &mut self.files[file];
            let attributes = file.encoded(hides).ok_or_else(|| too_many_attributes(&listing, entry))?;
            origins.push(match file.contents {
                Contents::Placed { .. } => Origin::Tail(file.tail_at),
                Contents::Later(_) => Origin::Target(std::mem::take(&mut file.target)),
            });
            listing.inodes.push(Attributes {
                entry,
                mode: file.mode,
                uid: file.uid,
                gid: file.gid,
                mtime: file.mtime,
                device: file.device,
                attributes,
                contents: file.contents,
            });
        }
        Ok((listing, origins))
    }

    /// How many bytes the attributes of a file take in an image.
    pub(super) fn attributes_len(&self, file: usize) -> usize {
        encode_attributes(&self.files[file].attributes).map_or(0, |bytes| bytes.len())
    }
}

fn too_many_attributes(listing: &Listing, entry: usize) -> LayerError {
    ErofsError::TooLarge { path: listing.path(entry), what: "its extended attributes" }.into()
}

impl File {
    fn new(header: &Header) -> Self {
        let kind = match header.kind {
            Kind::File | Kind::HardLink => libc::S_IFREG,
            Kind::Symlink => libc::S_IFLNK,
            Kind::Character => libc::S_IFCHR,
            Kind::Block => libc::S_IFBLK,
            Kind::Directory => libc::S_IFDIR,
            Kind::Fifo => libc::S_IFIFO,
        };
        let is_link = header.kind == Kind::Symlink;
        let target = if is_link { header.link.clone() } else { Vec::new() };
        Self {
            implied: false,
            mode: kind | if is_link { 0o777 } else { header.mode },
            uid: header.uid,
            gid: header.gid,
            mtime: header.mtime,
            device: header.device,
            attributes: header.attributes.clone(),
            contents: Contents::Later(target.len() as u64),
            target,
            tail_at: 0,
        }
    }

    /// A directory that no entry describes.
    fn directory() -> Self {
        Self { implied: true, mode: libc::S_IFDIR | 0o755, ..Self::default() }
    }

    fn whiteout() -> Self {
        Self { mode: libc::S_IFCHR, ..Self::default() }
    }

    /// The extended attributes as an image has them.
    fn encoded(&self, hides: bool) -> Option<Vec<u8>> {
        if hides && is_directory(self.mode) {
            let (name, value) = OPAQUE_ATTRIBUTE;
            let mut attributes = self.attributes.clone();
            attributes.push((name.to_vec(), value.to_vec()));
            return encode_attributes(&attributes);
        }
        encode_attributes(&self.attributes)
    }
}

/// The parts of a path below the top of the tree. A slash in front stands for the top.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, &'static str> {
    if path.len() > PATH_MAX {
        return Err("has a path of more than 4095 bytes");
    }
    let parts: Vec<_> = path.split(|&byte| byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.contains(&&b".."[..]) {
        return Err("has a path with .. in it, which could lead out of the image");
    }
    if parts.iter().any(|part| part.len() > NAME_MAX) {
        return Err("has a name of more than 255 bytes");
    }
    if parts.len() > DEPTH {
        return Err("lies more than 1024 directories deep");
    }
    Ok(parts)
}
