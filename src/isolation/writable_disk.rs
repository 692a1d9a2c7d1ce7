//! The disk that keeps what is written to an instance's root: a sparse file with an ext4 file system, made once from a template.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{SeekFrom, ioctl_ficlone, seek};
use rustix::io::Errno;

use crate::image::{self, DiskError};
use crate::spec::{MemorySize, WritableLayer};

/// The size of a disk for which no limit was named.
pub const DEFAULT_SIZE: MemorySize = MemorySize::from_mib(10 << 10);
/// The smallest one: its journal alone takes 4 MiB.
const SMALLEST: MemorySize = MemorySize::from_mib(16);
/// The largest one: 16 TiB, what 32-bit block numbers reach.
const LARGEST: u64 = 16 << 40;
/// A disk of less than this has the small journal.
const SMALL: u64 = 256 << 20;

/// Part of a template's name, so that one made in another way is not taken for one of these.
const LAYOUT: &str = "1";
/// The features of the file system, all of them: those that every kernel has which amphi boots.
const FEATURES: &str = "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super2,large_file,\
    huge_file,dir_nlink,extra_isize,metadata_csum";
const TEMPORARY: &str = ".new-";
const PROGRAM: &str = "mke2fs";
/// Where the program is on hosts that have it in no user's `PATH`.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/usr/local/sbin"];

/// Why there is no disk for writes.
#[derive(Debug, thiserror::Error)]
pub enum WritableDiskError {
    /// The limit is one that no disk has.
    #[error("--storage-opt size={0}: a kept writable layer has 16 MiB to 16 TiB")]
    Size(MemorySize),
    /// The program that makes file systems is missing.
    #[error("cannot make the writable layer: there is no program mke2fs; install e2fsprogs, or use --rm")]
    NoProgram,
    /// The program that makes file systems has failed.
    #[error("cannot make the file system {path}: mke2fs: {reason}", path = path.display())]
    Program {
        /// The file.
        path: PathBuf,
        /// What it said.
        reason: String,
    },
    /// A run of the instance, or something that reads its layer, has it.
    #[error("the writable layer {path} is in use: the instance is running, or its files are being read", path = .0.display())]
    InUse(PathBuf),
    /// It cannot be opened.
    #[error("cannot open the writable layer")]
    Open(#[source] DiskError),
    /// A file cannot be used.
    #[error("cannot make the writable layer {path}", path = path.display())]
    Use {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
}

/// The disk in `folder`, which must be there: the one that it has, whatever `limit` is now, or else a new one of that size, by default of
/// [`DEFAULT_SIZE`]. It takes up only what is written to it. Returns its path.
///
/// A new disk is a sparse copy of a template, an empty file system of the same size that is made once by `mke2fs` and kept in
/// amphi's cache. The file appears when it is complete. Nothing is synced: an instance whose disk is lost with the
/// host's power has not run yet.
///
/// # Errors
/// The size is none, or the disk cannot be made.
pub fn ensure(folder: &Path, limit: Option<MemorySize>) -> Result<PathBuf, WritableDiskError> {
    let path = folder.join(WritableLayer::FILE);
    if path.exists() {
        return Ok(path);
    }
    let cache = crate::host::data_dir().join("cache").join("disks");
    make(&path, &cache, limit.unwrap_or(DEFAULT_SIZE))?;
    Ok(path)
}

/// Opens the disk in `folder` for reading and writing, and locks it for as long as it is open. It is made where it is missing, as
/// [`ensure`] does.
///
/// # Errors
/// It cannot be made or opened, or is locked already.
pub fn open(folder: &Path, limit: Option<MemorySize>) -> Result<File, WritableDiskError> {
    let path = ensure(folder, limit)?;
    image::open_disk(&path, false).map_err(|error| match error {
        DiskError::InUse { path } => WritableDiskError::InUse(path),
        error => WritableDiskError::Open(error),
    })
}

fn make(path: &Path, cache: &Path, size: MemorySize) -> Result<(), WritableDiskError> {
    if size < SMALLEST || size.bytes() > LARGEST {
        return Err(WritableDiskError::Size(size));
    }
    let template = template(cache, size)?;
    let failed = |source| WritableDiskError::Use { path: path.to_owned(), source };
    let folder = path.parent().unwrap_or(Path::new("."));
    let new = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(folder).map_err(failed)?;
    if has_holes(&template) {
        copy_sparsely(&template, new.as_file()).map_err(failed)?;
    } else {
        // On a file system that tells of no holes a copy would be as large as the disk: another one is sooner made.
        let bytes = template.metadata().map_err(failed)?.size();
        new.as_file().set_len(bytes).map_err(failed)?;
        make_file_system(new.path(), bytes)?;
    }
    new.persist(path).map_err(|error| failed(error.error)).map(drop)
}

/// An empty file system of that size, open for reading.
fn template(cache: &Path, size: MemorySize) -> Result<File, WritableDiskError> {
    // Whole blocks; the size that is asked for is the file's.
    let bytes = size.bytes() & !0xfff;
    let path = cache.join(format!("ext4-{LAYOUT}-{bytes}"));
    let failed = |source| WritableDiskError::Use { path: path.clone(), source };
    match File::open(&path) {
        Ok(file) => return Ok(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    fs::create_dir_all(cache).map_err(failed)?;
    let new = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(cache).map_err(failed)?;
    new.as_file().set_len(bytes).map_err(failed)?;
    make_file_system(new.path(), bytes)?;
    new.as_file().sync_all().map_err(failed)?;
    // Who makes the same one at the same time makes one that is as good.
    new.persist(&path).map_err(|error| failed(error.error))?;
    File::open(&path).map_err(failed)
}

/// Makes an ext4 file system in the file `path`, all of it a hole, of so many bytes.
///
/// All metadata is at the disk's begin, without copies, so that mounting reads and an empty one takes up little; inode tables and
/// journal are zeroes already, so that neither the program nor the guest's kernel writes them. Nothing is reserved for root, and
/// the journal, through which all of the disk's metadata goes, is kept small, because what has passed through it stays on the host.
fn make_file_system(path: &Path, bytes: u64) -> Result<(), WritableDiskError> {
    let journal = if bytes < SMALL { "size=4" } else { "size=16" };
    let mut arguments = vec!["-q", "-F", "-m", "0", "-b", "4096", "-I", "256", "-i", "16384", "-J", journal];
    arguments.extend(["-O", FEATURES, "-E", "lazy_journal_init=1,num_backup_sb=0,packed_meta_blocks=1"]);
    let named = DIRECTORIES.iter().map(|directory| Path::new(directory).join(PROGRAM));
    for program in std::iter::once(PathBuf::from(PROGRAM)).chain(named) {
        let mut command = Command::new(program);
        // The host's own settings shall make no difference.
        command.args(&arguments).arg(path).env("MKE2FS_CONFIG", "/dev/null").env("LC_ALL", "C").stdin(Stdio::null());
        let output = match command.output() {
            Ok(output) => output,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(WritableDiskError::Use { path: path.to_owned(), source }),
        };
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let reason = said.trim().lines().next_back().unwrap_or_default();
        let reason = if reason.is_empty() { output.status.to_string() } else { reason.to_owned() };
        return Err(WritableDiskError::Program { path: path.to_owned(), reason });
    }
    Err(WritableDiskError::NoProgram)
}

/// Whether the file is known to have a hole: each template has.
fn has_holes(file: &File) -> bool {
    let length = file.metadata().map(|metadata| metadata.size());
    matches!((seek(file, SeekFrom::Hole(0)), length), (Ok(hole), Ok(length)) if hole < length)
}

/// Makes `to`, which is empty, the same as `from`, with holes where that has holes. Where the file system can, they share their blocks.
fn copy_sparsely(from: &File, to: &File) -> io::Result<()> {
    if ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let length = from.metadata()?.size();
    to.set_len(length)?;
    let mut buffer = vec![0; 64 << 10];
    let mut at = 0;
    while at < length {
        let start = match seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let end = seek(from, SeekFrom::Hole(start))?;
        at = start;
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
            from.read_exact_at(&mut buffer[..most], at)?;
            to.write_all_at(&buffer[..most], at)?;
            at += most as u64;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_made_once_and_takes_up_little() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, path) = (dir.path().join("not/there"), dir.path().join("disk"));
        match make(&path, &cache, DEFAULT_SIZE) {
            Err(WritableDiskError::NoProgram) => return eprintln!("SKIPPED: there is no mke2fs"),
            made => made.unwrap(),
        }
        let metadata = path.metadata().unwrap();
        assert_eq!(metadata.len(), 10 << 30);
        assert!(metadata.blocks() * 512 < 1 << 20, "{} KiB", metadata.blocks() / 2);
        let template = fs::read_dir(&cache).unwrap().next().unwrap().unwrap().path();
        let mut magic = [0; 2];
        File::open(&path).unwrap().read_exact_at(&mut magic, 1080).unwrap();
        assert_eq!(magic, *b"\x53\xef");
        // The next one comes from the template, whatever that may be by now.
        File::options().write(true).open(&template).unwrap().write_all_at(b"xx", 1080).unwrap();
        make(&dir.path().join("next"), &cache, DEFAULT_SIZE).unwrap();
        File::open(dir.path().join("next")).unwrap().read_exact_at(&mut magic, 1080).unwrap();
        assert_eq!(magic, *b"xx");
        make(&dir.path().join("small"), &cache, SMALLEST).unwrap();
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 2);
        // As on a file system that tells of no holes.
        fs::write(cache.join("ext4-1-16777216"), vec![0xff; 16 << 20]).unwrap();
        make(&dir.path().join("another"), &cache, SMALLEST).unwrap();
        File::open(dir.path().join("another")).unwrap().read_exact_at(&mut magic, 1080).unwrap();
        assert_eq!(magic, *b"\x53\xef");
    }

    #[test]
    fn sizes_have_bounds() {
        let dir = tempfile::tempdir().unwrap();
        for size in [MemorySize::from_mib(15), MemorySize::from_mib(1 << 25)] {
            let made = make(&dir.path().join("disk"), dir.path(), size);
            assert!(matches!(made, Err(WritableDiskError::Size(wrong)) if wrong == size));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
