//! What a raw disk image holds.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Why a disk cannot be a root file system.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskFormatError {
    /// The disk is divided.
    #[error(
        "it has a partition table; give a disk that holds a file system from its first byte, such as one partition's image"
    )]
    Partitioned,
    /// No known file system begins the disk.
    #[error("it holds no file system known here (ext2, ext3, ext4, xfs, btrfs, erofs, squashfs)")]
    Unknown,
}

/// File systems by a magic number: position, bytes, and the type to mount it as. The ext4 driver serves its elders.
const FILE_SYSTEMS: [(u64, &[u8], &str); 5] = [
    (1024 + 56, b"\x53\xef", "ext4"),
    (0, b"XFSB", "xfs"),
    (0x10040, b"_BHRfS_M", "btrfs"),
    (1024, b"\xe2\xe1\xf5\xe0", "erofs"),
    (0, b"hsqs", "squashfs"),
];

/// The type of the file system that `disk` holds from its first byte.
///
/// # Errors
/// The outer error is that of reading; the inner one says what the disk holds instead.
pub(super) fn file_system(disk: &File) -> io::Result<Result<&'static str, DiskFormatError>> {
    for (at, magic, fstype) in FILE_SYSTEMS {
        if starts_with(disk, at, magic)? {
            return Ok(Ok(fstype));
        }
    }
    // A disk's first sector ends so where it has a table, and may where it has a boot loader.
    let partitioned = starts_with(disk, 510, b"\x55\xaa")? || starts_with(disk, 512, b"EFI PART")?;
    Ok(Err(if partitioned { DiskFormatError::Partitioned } else { DiskFormatError::Unknown }))
}

fn starts_with(disk: &File, at: u64, magic: &[u8]) -> io::Result<bool> {
    let mut bytes = [0; 8];
    let bytes = &mut bytes[..magic.len()];
    match disk.read_exact_at(bytes, at) {
        Ok(()) => Ok(bytes == magic),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(parts: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        for (at, bytes) in parts {
            file.write_all_at(bytes, *at).unwrap();
        }
        file
    }

    #[test]
    fn file_systems_are_recognised() {
        for (at, magic, fstype) in FILE_SYSTEMS {
            // A boot loader in front does not matter.
            let disk = disk(&[(510, b"\x55\xaa"), (at, magic)]);
            assert_eq!(file_system(&disk).unwrap(), Ok(fstype));
        }
    }

    #[test]
    fn anything_else_is_told_apart() {
        assert_eq!(file_system(&disk(&[(510, b"\x55\xaa")])).unwrap(), Err(DiskFormatError::Partitioned));
        assert_eq!(file_system(&disk(&[(512, b"EFI PART")])).unwrap(), Err(DiskFormatError::Partitioned));
        assert_eq!(file_system(&disk(&[])).unwrap(), Err(DiskFormatError::Unknown));
        assert_eq!(file_system(&tempfile::tempfile().unwrap()).unwrap(), Err(DiskFormatError::Unknown));
    }
}
