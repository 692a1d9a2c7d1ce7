//! Layers into a folder: each entry of the tree that they make together, directories before what is in them.
//!
//! The tree is made in memory first, so that every path is of directories that this code has made itself, in an empty folder:
//! no link is ever on the way.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::convert::{Layer, gather};
use super::tree::Origin;
use super::{Conversion, LayerError};
use crate::image::erofs::{Attributes, BLOCK, Contents, Listing, decode_attributes};

/// Unpacks `layers`, the lowest first, into `folder`, which is empty.
///
/// Root gives each entry its owner. Other users own everything themselves, get no device nodes, and no attributes that
/// only root may set.
///
/// # Errors
/// A layer is malformed or too large, or the folder cannot be written.
pub(in crate::image) fn unpack(layers: Vec<Layer>, folder: &Path) -> Result<(), LayerError> {
    let contents = tempfile::tempfile_in(folder).map_err(LayerError::Write)?;
    let gathered = gather(layers, Conversion::Flattened, &contents)?;
    let work = Work {
        listing: &gathered.listing,
        origins: &gathered.origins,
        contents: &contents,
        tails: &gathered.tails,
        privileged: rustix::process::geteuid().is_root(),
    };
    work.run(folder).map_err(LayerError::Write)
}

struct Work<'a> {
    listing: &'a Listing,
    origins: &'a [Origin],
    contents: &'a File,
    tails: &'a File,
    privileged: bool,
}

impl Work<'_> {
    fn run(&self, folder: &Path) -> io::Result<()> {
        let mut paths: Vec<PathBuf> = Vec::new();
        let mut first: Vec<Option<usize>> = self.listing.inodes.iter().map(|_| None).collect();
        for (index, entry) in self.listing.entries.iter().enumerate() {
            let path = match index {
                0 => folder.to_owned(),
                _ => paths[entry.parent].join(OsStr::from_bytes(&entry.name)),
            };
            match first[entry.inode] {
                Some(other) if paths[other].symlink_metadata().is_ok() => fs::hard_link(&paths[other], &path)?,
                _ => self.make(entry.inode, &path, index == 0)?,
            }
            first[entry.inode].get_or_insert(index);
            paths.push(path);
        }
        // What is in a directory changes its time, and may need its permission: so these come last, the deepest first.
        for (index, entry) in self.listing.entries.iter().enumerate().rev() {
            let attributes = &self.listing.inodes[entry.inode];
            if attributes.mode & libc::S_IFMT == libc::S_IFDIR {
                self.dress(attributes, &paths[index])?;
            }
        }
        Ok(())
    }

    fn make(&self, inode: usize, path: &Path, is_top: bool) -> io::Result<()> {
        let attributes = &self.listing.inodes[inode];
        match attributes.mode & libc::S_IFMT {
            libc::S_IFDIR if is_top => return Ok(()),
            libc::S_IFDIR => return fs::create_dir(path),
            libc::S_IFREG => self.file(inode, path)?,
            libc::S_IFLNK => {
                if let Origin::Target(target) = &self.origins[inode] {
                    std::os::unix::fs::symlink(OsStr::from_bytes(target), path)?;
                }
            }
            kind => {
                let (major, minor) = attributes.device;
                let device = rustix::fs::makedev(major, minor);
                match rustix::fs::mknodat(CWD, path, FileType::from_raw_mode(kind), Mode::RUSR, device) {
                    Err(Errno::PERM) if !self.privileged => return Ok(()),
                    other => other?,
                }
            }
        }
        self.dress(attributes, path)
    }

    fn file(&self, inode: usize, path: &Path) -> io::Result<()> {
        let file = File::options().write(true).create_new(true).open(path)?;
        let (Contents::Placed { size, block, tail }, Origin::Tail(tail_at)) =
            (self.listing.inodes[inode].contents, &self.origins[inode])
        else {
            return Ok(());
        };
        file.set_len(size)?;
        let whole = size - tail as u64;
        let mut buffer = vec![0; usize::try_from(whole).unwrap_or(usize::MAX).min(256 << 10)];
        let mut at = 0;
        while at < whole {
            let length = usize::try_from(whole - at).unwrap_or(usize::MAX).min(buffer.len());
            self.contents.read_exact_at(&mut buffer[..length], u64::from(block) * BLOCK + at)?;
            if buffer[..length].iter().any(|&byte| byte != 0) {
                file.write_all_at(&buffer[..length], at)?;
            }
            at += length as u64;
        }
        let mut end = vec![0; tail];
        self.tails.read_exact_at(&mut end, *tail_at)?;
        file.write_all_at(&end, whole)
    }

    /// Gives what was made its owner, attributes, permissions and time, in this order: each may undo the one after it.
    fn dress(&self, attributes: &Attributes, path: &Path) -> io::Result<()> {
        let is_link = attributes.mode & libc::S_IFMT == libc::S_IFLNK;
        if self.privileged {
            std::os::unix::fs::lchown(path, Some(attributes.uid), Some(attributes.gid))?;
        }
        for (name, value) in decode_attributes(&attributes.attributes) {
            match rustix::fs::lsetxattr(path, &name[..], &value, XattrFlags::empty()) {
                Err(Errno::PERM | Errno::NOTSUP) if !self.privileged => {}
                other => other?,
            }
        }
        if !is_link {
            fs::set_permissions(path, Permissions::from_mode(attributes.mode & 0o7777))?;
        }
        let time = Timespec { tv_sec: attributes.mtime.0, tv_nsec: i64::from(attributes.mtime.1) };
        let times = Timestamps { last_access: time, last_modification: time };
        Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }
}
