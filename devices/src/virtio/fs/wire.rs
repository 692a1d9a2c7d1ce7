//! The wire format of FUSE requests and replies: the structures of Linux's `include/uapi/linux/fuse.h`, of version 7.38, in
//! little-endian order. Nothing here knows what they mean.

use rustix::fs::{Statx, StatxTimestamp};
use rustix::io::Errno;

/// The size of `fuse_in_header`.
pub(super) const HEADER_IN: usize = 40;
/// The size of `fuse_out_header`.
pub(super) const HEADER_OUT: usize = 16;
/// The size of `fuse_write_in`; the data follow.
pub(super) const WRITE_IN: usize = 40;
/// The size of `fuse_entry_out`, and of an entry of a directory before its name.
pub(super) const ENTRY_OUT: usize = 128;
pub(super) const DIRENT: usize = 24;

/// The version of the protocol.
pub(super) const MAJOR: u32 = 7;
pub(super) const MINOR: u32 = 38;

/// The node that every session begins with.
pub(super) const ROOT: u64 = 1;

macro_rules! opcodes {
    ($($name:ident = $number:literal,)*) => {
        /// What a request is for.
        pub(super) mod opcode {
            $(pub(in crate::virtio::fs) const $name: u32 = $number;)*
        }
    };
}

opcodes! {
    LOOKUP = 1, FORGET = 2, GETATTR = 3, SETATTR = 4, READLINK = 5, SYMLINK = 6, MKNOD = 8, MKDIR = 9, UNLINK = 10,
    RMDIR = 11, RENAME = 12, LINK = 13, OPEN = 14, READ = 15, WRITE = 16, STATFS = 17, RELEASE = 18, FSYNC = 20,
    SETXATTR = 21, GETXATTR = 22, LISTXATTR = 23, REMOVEXATTR = 24, INIT = 26, OPENDIR = 27, READDIR = 28,
    RELEASEDIR = 29, FSYNCDIR = 30, CREATE = 35, INTERRUPT = 36, DESTROY = 38, BATCH_FORGET = 42, FALLOCATE = 43,
    READDIRPLUS = 44, RENAME2 = 45, LSEEK = 46, COPY_FILE_RANGE = 47, SYNCFS = 50, TMPFILE = 51,
}

/// The features of a session (`FUSE_INIT` flags).
pub(super) mod feature {
    pub(in crate::virtio::fs) const ASYNC_READ: u32 = 1;
    pub(in crate::virtio::fs) const ATOMIC_O_TRUNC: u32 = 1 << 3;
    pub(in crate::virtio::fs) const BIG_WRITES: u32 = 1 << 5;
    pub(in crate::virtio::fs) const AUTO_INVAL_DATA: u32 = 1 << 12;
    pub(in crate::virtio::fs) const DO_READDIRPLUS: u32 = 1 << 13;
    pub(in crate::virtio::fs) const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub(in crate::virtio::fs) const ASYNC_DIO: u32 = 1 << 15;
    pub(in crate::virtio::fs) const PARALLEL_DIROPS: u32 = 1 << 18;
    pub(in crate::virtio::fs) const MAX_PAGES: u32 = 1 << 22;
    pub(in crate::virtio::fs) const SUBMOUNTS: u32 = 1 << 27;
    pub(in crate::virtio::fs) const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
}

/// What every request begins with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    /// The length of the whole request.
    pub(super) len: u32,
    pub(super) opcode: u32,
    /// What the reply repeats.
    pub(super) unique: u64,
    pub(super) node: u64,
    /// Who asks.
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Header {
    pub(super) fn read(bytes: &[u8; HEADER_IN]) -> Self {
        let mut fields = Fields(bytes);
        let mut word = || fields.u32().unwrap_or(0);
        let (len, opcode) = (word(), word());
        let mut long = || u64::from(word()) | u64::from(word()) << 32;
        let (unique, node) = (long(), long());
        Self { len, opcode, unique, node, uid: word(), gid: word() }
    }
}

/// The fields of a request, taken one by one. What is missing is `EINVAL`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        let (first, rest) = self.0.split_first_chunk().ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(*first)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Errno> {
        self.take().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Errno> {
        self.take().map(u64::from_le_bytes)
    }

    /// A 64-bit number that the kernel has as a signed one, such as an offset.
    pub(super) fn i64(&mut self) -> Result<i64, Errno> {
        self.u64().map(u64::cast_signed)
    }

    /// An offset or length of a file: never negative.
    pub(super) fn offset(&mut self) -> Result<u64, Errno> {
        self.u64().and_then(|offset| if offset > i64::MAX.cast_unsigned() { Err(Errno::INVAL) } else { Ok(offset) })
    }

    pub(super) fn skip(&mut self, bytes: usize) -> Result<(), Errno> {
        self.0 = self.0.get(bytes..).ok_or(Errno::INVAL)?;
        Ok(())
    }

    /// A text that ends with a zero.
    pub(super) fn text(&mut self) -> Result<&'a [u8], Errno> {
        let end = self.0.iter().position(|&byte| byte == 0).ok_or(Errno::INVAL)?;
        let (text, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        Ok(text)
    }

    /// The name of an entry of a directory, which leads nowhere else: it is neither empty, nor `.` or `..`, nor a path.
    pub(super) fn name(&mut self) -> Result<&'a [u8], Errno> {
        match self.text()? {
            b"" | b"." | b".." => Err(Errno::INVAL),
            name if name.contains(&b'/') => Err(Errno::INVAL),
            name => Ok(name),
        }
    }
}

/// The fields of a reply.
#[derive(Debug, Default)]
pub(super) struct Reply(pub(super) Vec<u8>);

impl Reply {
    pub(super) fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn zeroes(&mut self, count: usize) {
        self.0.resize(self.0.len() + count, 0);
    }

    /// `fuse_attr`.
    pub(super) fn attributes(&mut self, attributes: &Attributes) {
        let Attributes { stat, user, group, submount } = attributes;
        let seconds = |time: &StatxTimestamp| time.tv_sec.cast_unsigned();
        for value in [stat.stx_ino, stat.stx_size, stat.stx_blocks] {
            self.u64(value);
        }
        for time in [&stat.stx_atime, &stat.stx_mtime, &stat.stx_ctime] {
            self.u64(seconds(time));
        }
        for time in [&stat.stx_atime, &stat.stx_mtime, &stat.stx_ctime] {
            self.u32(time.tv_nsec);
        }
        self.u32(stat.stx_mode.into());
        self.u32(stat.stx_nlink);
        self.u32(*user);
        self.u32(*group);
        // A device's number as the kernel encodes it in 32 bits.
        let (major, minor) = (stat.stx_rdev_major, stat.stx_rdev_minor);
        self.u32(minor & 0xff | major << 8 | (minor & !0xff) << 12);
        self.u32(stat.stx_blksize);
        self.u32((*submount).into());
    }
}

/// What `fuse_attr` tells of a file.
#[derive(Debug)]
pub(super) struct Attributes {
    pub(super) stat: Statx,
    /// Its owner and group, as the guest sees them.
    pub(super) user: u32,
    pub(super) group: u32,
    /// Whether it is the root of another file system (`FUSE_ATTR_SUBMOUNT`).
    pub(super) submount: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere_else() {
        for name in [b"\0".as_slice(), b".\0", b"..\0", b"a/b\0", b"/\0", b"unended", b""] {
            assert_eq!(Fields(name).name(), Err(Errno::INVAL), "{name:?}");
        }
        let mut fields = Fields(b"...\0\xff\n\0rest");
        assert_eq!((fields.name(), fields.name()), (Ok(&b"..."[..]), Ok(&b"\xff\n"[..])));
        assert_eq!(fields.0, b"rest");
    }

    #[test]
    fn numbers_are_whole_and_offsets_not_negative() {
        let mut fields = Fields(&[1, 0, 0, 0, 2, 0]);
        assert_eq!((fields.u32(), fields.u32()), (Ok(1), Err(Errno::INVAL)));
        assert_eq!(Fields(&[0xff; 8]).offset(), Err(Errno::INVAL));
        assert_eq!(Fields(&[0xff; 8]).i64(), Ok(-1));
        assert_eq!(Fields(&i64::MAX.to_le_bytes()).offset(), Ok(i64::MAX.cast_unsigned()));
        assert_eq!(Fields(&[0; 4]).skip(5), Err(Errno::INVAL));
    }

    #[test]
    fn a_header_has_its_fields_where_linux_has_them() {
        let mut bytes = [0; HEADER_IN];
        bytes[0] = 40;
        bytes[4] = 26;
        bytes[8..16].copy_from_slice(&0x0102_0304_0506_0708_u64.to_le_bytes());
        bytes[16] = 1;
        bytes[24..28].copy_from_slice(&1000_u32.to_le_bytes());
        bytes[28..32].copy_from_slice(&1001_u32.to_le_bytes());
        let Header { len, opcode, unique, node, uid, gid } = Header::read(&bytes);
        assert_eq!((len, opcode, unique, node, uid, gid), (40, 26, 0x0102_0304_0506_0708, 1, 1000, 1001));
    }
}
