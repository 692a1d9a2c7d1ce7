//! Writing the archive, as often as it is wanted.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use super::{Body, Entry, HEADER, Initramfs, InitramfsError, Source, TRAILER, padding};
use crate::image::tree::{Node, Tree, TreeError};

/// How many files stay open once they have been read. More are opened once more where they are wanted again.
const MOST_KEPT: usize = 64;

impl Initramfs {
    /// Writes the archive: exactly [`len`](Self::len) bytes unless `out` fails, and a well-formed archive even where
    /// a file has changed meanwhile. It may be written again: that opens nothing, unless there are very many files.
    ///
    /// # Errors
    /// `out` failed, or a file could not be read or has changed, so that what was written must not be used.
    pub fn write_to(&self, out: &mut dyn Write) -> Result<(), InitramfsError> {
        let mut first_error = None;
        for entry in &self.entries {
            write_header(entry, out).map_err(InitramfsError::Write)?;
            if let Err(error) = self.write_body(entry, out) {
                if matches!(error, InitramfsError::Write(_)) {
                    return Err(error);
                }
                first_error.get_or_insert(error);
            }
            pad(out, u64::from(entry.size)).map_err(InitramfsError::Write)?;
        }
        let trailer = Entry::plain(TRAILER.to_vec(), 0, 0, Body::Static(b""));
        write_header(&trailer, out).map_err(InitramfsError::Write)?;
        first_error.map_or(Ok(()), Err)
    }

    fn write_body(&self, entry: &Entry, out: &mut dyn Write) -> Result<(), InitramfsError> {
        match &entry.body {
            Body::Static(bytes) => out.write_all(bytes).map_err(InitramfsError::Write),
            Body::Bytes(bytes) => out.write_all(bytes).map_err(InitramfsError::Write),
            Body::Module(path) => {
                let module = |source| InitramfsError::Module { path: path.clone(), source };
                self.with_file(
                    entry,
                    || File::open(path).map_err(module),
                    |file| copy_exactly(Ok(FromStart::of(file)), entry.size, out)?.map_err(module),
                )
                .unwrap_or_else(|error| fill(entry.size, out).and(Err(error)))
            }
            Body::Node(index) => {
                let Some(tree) = self.tree.as_ref().filter(|_| entry.size > 0) else { return Ok(()) };
                let node = &tree.nodes[*index];
                if node.metadata.is_symlink() {
                    return write_target(entry, tree, node, out);
                }
                self.with_file(
                    entry,
                    || tree.open(node).map_err(Into::into),
                    |file| {
                        copy_exactly(Ok(FromStart::of(file)), entry.size, out)?
                            .map_err(|source| read_error(tree, node, source))?;
                        tree.check(node, file).map_err(Into::into)
                    },
                )
                .unwrap_or_else(|error| fill(entry.size, out).and(Err(error)))
            }
        }
    }

    /// Calls `read` with the entry's file, which `open` opens the first time. The outer error is that of `open`.
    fn with_file<T>(
        &self,
        entry: &Entry,
        open: impl FnOnce() -> Result<File, InitramfsError>,
        read: impl FnOnce(&File) -> T,
    ) -> Result<T, InitramfsError> {
        if let Some(Source::File(file)) = entry.source.get() {
            return Ok(read(file));
        }
        let file = open()?;
        let result = read(&file);
        if self.kept.fetch_add(1, Ordering::Relaxed) < MOST_KEPT {
            let _ = entry.source.set(Source::File(file));
        }
        Ok(result)
    }
}

/// Writes where the symbolic link `node` points.
fn write_target(entry: &Entry, tree: &Tree, node: &Node, out: &mut dyn Write) -> Result<(), InitramfsError> {
    if entry.source.get().is_none() {
        match tree.link_target(node) {
            Ok(target) => _ = entry.source.set(Source::Target(target)),
            Err(error) => return fill(entry.size, out).and(Err(error.into())),
        }
    }
    let Some(Source::Target(target)) = entry.source.get() else { return fill(entry.size, out) };
    copy_exactly(Ok(target.as_bytes()), entry.size, out)?.map_err(|source| read_error(tree, node, source))
}

/// Writes zeros in the place of contents that cannot be had.
fn fill(size: u32, out: &mut dyn Write) -> Result<(), InitramfsError> {
    io::copy(&mut io::repeat(0).take(size.into()), out).map(drop).map_err(InitramfsError::Write)
}

/// Reads a file from its start, whatever others have read of it.
struct FromStart<'a>(&'a File, u64);

impl<'a> FromStart<'a> {
    fn of(file: &'a File) -> Self {
        Self(file, 0)
    }
}

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read_at(buffer, self.1)?;
        self.1 += count as u64;
        Ok(count)
    }
}

fn read_error(tree: &Tree, node: &Node, source: io::Error) -> InitramfsError {
    TreeError::Read { path: tree.path(node), source }.into()
}

fn pad(out: &mut dyn Write, length: u64) -> io::Result<()> {
    io::copy(&mut io::repeat(0).take(padding(length)), out).map(drop)
}

fn write_header(entry: &Entry, out: &mut dyn Write) -> io::Result<()> {
    let name_size = entry.name.len() + 1;
    let (major, minor) = entry.device;
    let Entry { inode, mode, uid, gid, links, mtime, size, .. } = entry;
    write!(
        out,
        "070701{inode:08x}{mode:08x}{uid:08x}{gid:08x}{links:08x}{mtime:08x}{size:08x}{:08x}{:08x}{major:08x}{minor:08x}{name_size:08x}{:08x}",
        0, 0, 0
    )?;
    out.write_all(&entry.name)?;
    out.write_all(&[0])?;
    pad(out, HEADER + name_size as u64)
}

/// Copies `size` bytes; where there are fewer, writes zeros for the rest. The outer error is that of `out`; the inner
/// one says that the source failed or has another size.
fn copy_exactly(
    source: io::Result<impl Read>,
    size: u32,
    out: &mut dyn Write,
) -> Result<io::Result<()>, InitramfsError> {
    let size = u64::from(size);
    let mut buffer = vec![0; 128 << 10];
    let mut copied = 0;
    let mut outcome = Ok(());
    match source {
        Err(error) => outcome = Err(error),
        Ok(mut source) => loop {
            match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => {
                    let wanted = usize::try_from(size - copied).unwrap_or(length).min(length);
                    out.write_all(&buffer[..wanted]).map_err(InitramfsError::Write)?;
                    copied += wanted as u64;
                    if wanted < length {
                        outcome = Err(io::Error::other("the file has grown"));
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        },
    }
    if copied < size {
        io::copy(&mut io::repeat(0).take(size - copied), out).map_err(InitramfsError::Write)?;
        outcome = outcome.and_then(|()| Err(io::Error::other("the file has shrunk")));
    }
    Ok(outcome)
}
