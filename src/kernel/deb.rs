//! Reading Debian packages: an `ar` archive whose member `data.tar.*` holds the files (deb(5)).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use super::KernelError;
use super::payload::{Compression, copy_bounded, decoder};

const AR_MAGIC: &[u8; 8] = b"!<arch>\n";
const AR_HEADER_LEN: usize = 60;
/// More than any archive has after its last file, in bytes.
const PADDING_MAX: u64 = 1 << 20;
/// More members than any package has.
const MEMBERS_MAX: usize = 64;

/// Calls `each` for every regular file in the package, with its path (relative, without `..`), its length in bytes
/// and its contents. Links, devices and directories are passed over; nothing is written.
///
/// # Errors
/// The file is not a package or is damaged, or `each` failed.
pub(super) fn walk(
    package: &Path,
    mut each: impl FnMut(&Path, u64, &mut dyn Read) -> Result<(), KernelError>,
) -> Result<(), KernelError> {
    let damaged = |e: io::Error| KernelError::package(package, format!("the package is damaged or cut short ({e})"));
    let mut archive = tar::Archive::new(data_member(package)?);
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        if entry.header().entry_type() != tar::EntryType::Regular {
            continue;
        }
        let (path, len) = (plain_path(&entry.path().map_err(damaged)?), entry.size());
        if let Some(path) = path {
            each(&path, len, &mut entry)?;
        }
    }
    // The archive ends before the compressed stream does, and the stream's checksum is at its very end.
    copy_bounded(archive.into_inner(), &mut io::sink(), PADDING_MAX).map_err(damaged)?;
    Ok(())
}

/// The uncompressed contents of `data.tar.*`.
fn data_member(package: &Path) -> Result<Box<dyn Read>, KernelError> {
    let mut file = File::open(package).map_err(KernelError::read(package))?;
    let not_deb = || KernelError::package(package, "it is not a Debian package");
    let mut magic = [0; AR_MAGIC.len()];
    file.read_exact(&mut magic).map_err(|_| not_deb())?;
    if magic != *AR_MAGIC {
        return Err(not_deb());
    }
    for _ in 0..MEMBERS_MAX {
        let mut header = [0; AR_HEADER_LEN];
        file.read_exact(&mut header).map_err(|_| not_deb())?;
        let (name, len) = member(&header).ok_or_else(not_deb)?;
        if let Some(extension) = name.strip_prefix("data.tar") {
            let compression = match extension {
                "" => Compression::None,
                ".gz" => Compression::Gzip,
                ".xz" => Compression::Xz,
                ".zst" => Compression::Zstd,
                ".bz2" => Compression::Bzip2,
                ".lzma" => Compression::Lzma,
                _ => return Err(KernelError::package(package, format!("{name} is compressed in an unknown way"))),
            };
            return decoder(compression, file.take(len))
                .map_err(|e| KernelError::package(package, format!("{name} cannot be read ({e})")));
        }
        // Members start at even offsets.
        let skip = i64::try_from(len + len % 2).map_err(|_| not_deb())?;
        file.seek(SeekFrom::Current(skip)).map_err(KernelError::read(package))?;
    }
    Err(not_deb())
}

/// Name and length of the member with that header.
fn member(header: &[u8; AR_HEADER_LEN]) -> Option<(&str, u64)> {
    if header.get(58..60) != Some(b"`\n") {
        return None;
    }
    let name = std::str::from_utf8(header.get(..16)?).ok()?.trim_end().trim_end_matches('/');
    let len = std::str::from_utf8(header.get(48..58)?).ok()?.trim_end().parse().ok()?;
    Some((name, len))
}

/// The path without a leading `/` or `./`; none where it leaves the package's root.
fn plain_path(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(plain)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A package with these files, its data member xz-compressed.
    pub(in crate::kernel) fn package(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, contents) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(contents.len() as u64);
            header.set_mode(0o644);
            let name = header.as_gnu_mut().unwrap();
            name.name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            tar.append(&header, *contents).unwrap();
        }
        let tar = tar.into_inner().unwrap();
        let mut data = Vec::new();
        liblzma::read::XzEncoder::new(tar.as_slice(), 1).read_to_end(&mut data).unwrap();
        let mut deb = AR_MAGIC.to_vec();
        for (name, contents) in [("debian-binary", b"2.0".as_slice()), ("data.tar.xz", &data)] {
            deb.extend(format!("{name:<16}{:<32}{:<10}`\n", "0", contents.len()).bytes());
            deb.extend(contents);
            deb.resize(deb.len().next_multiple_of(2), b'\n');
        }
        deb
    }

    fn walk_bytes(bytes: &[u8]) -> Result<Vec<(PathBuf, Vec<u8>)>, KernelError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.deb");
        std::fs::write(&path, bytes).unwrap();
        let mut seen = Vec::new();
        walk(&path, |name, _, contents| {
            let mut bytes = Vec::new();
            contents.read_to_end(&mut bytes).unwrap();
            seen.push((name.to_owned(), bytes));
            Ok(())
        })?;
        Ok(seen)
    }

    #[test]
    fn walks_files_in_order() {
        let seen = walk_bytes(&package(&[("./boot/a", b"1"), ("b/c", b"22")])).unwrap();
        assert_eq!(seen, [(PathBuf::from("boot/a"), b"1".to_vec()), (PathBuf::from("b/c"), b"22".to_vec())]);
    }

    #[test]
    fn leaves_out_paths_that_leave_the_root() {
        assert_eq!(walk_bytes(&package(&[("../evil", b"1"), ("a/../../evil", b"1")])).unwrap(), []);
    }

    #[test]
    fn refuses_what_is_no_package_or_is_cut_short() {
        let whole = package(&[("boot/a", &[7; 5000])]);
        for len in [0, 5, 8, 40, 68, 100, whole.len() / 2, whole.len() - 30] {
            assert!(walk_bytes(&whole[..len]).is_err(), "{len}");
        }
        let mut wrong = whole;
        wrong[8 + 58] = b'x';
        assert!(walk_bytes(&wrong).is_err());
    }
}
