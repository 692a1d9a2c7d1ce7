//! A FUSE session: requests in, replies out. It decodes, and has the [`Share`] do the work.

use rustix::io::Errno;

use super::share::{Caller, Share};
use super::wire::{Fields, HEADER_IN, HEADER_OUT, Header, MAJOR, MINOR, Reply, WRITE_IN, feature, opcode};
use crate::virtio::chain::{Buffers, Chain, QueueError};

/// The most bytes of one read or write: 256 pages.
pub(super) const MAX_DATA: u32 = 1 << 20;
const MAX_PAGES: u16 = 256;
/// The longest request beside its header and the data of a write: an extended attribute of 64 KiB with its name.
const MAX_BODY: usize = 80 << 10;
/// What a session may have of what the driver offers. Locks stay in the guest, and so does the umask.
const FEATURES: u32 = feature::ASYNC_READ
    | feature::ATOMIC_O_TRUNC
    | feature::BIG_WRITES
    | feature::AUTO_INVAL_DATA
    | feature::DO_READDIRPLUS
    | feature::READDIRPLUS_AUTO
    | feature::ASYNC_DIO
    | feature::PARALLEL_DIROPS
    | feature::MAX_PAGES
    | feature::SUBMOUNTS
    | feature::HANDLE_KILLPRIV_V2;
/// The most requests that the driver has under way of its own accord, such as reading ahead; and from when on it holds back.
const MAX_BACKGROUND: u16 = 64;
const CONGESTED: u16 = 48;

/// A session with one driver, and what it shares.
pub(super) struct Session {
    share: Share,
    /// The request at hand, and its reply; kept for their allocations.
    body: Vec<u8>,
    reply: Reply,
}

impl Session {
    pub(super) fn new(share: Share) -> Self {
        Self { share, body: Vec::new(), reply: Reply::default() }
    }

    /// Lets go of all that the driver has made known and opened.
    pub(super) fn end(&mut self) {
        self.share.forget_all();
    }

    /// Carries out the request in `chain`, writes the reply to it, and returns how many bytes that has.
    ///
    /// # Errors
    /// There is no room for what every request and reply has. What is wrong inside of a request is an error for whoever
    /// has made it.
    pub(super) fn serve(&mut self, chain: &mut Chain<'_>) -> Result<u32, QueueError> {
        let head = chain.head;
        let mut header = [0; HEADER_IN];
        chain.readable.read(&mut header).ok_or(QueueError::TooShort { head, part: "FUSE request" })?;
        let header = Header::read(&header);
        // These have no reply.
        if matches!(header.opcode, opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT) {
            if self.take_body(&header, chain, MAX_BODY).is_ok() {
                let _ = self.forget(&header);
            }
            return Ok(0);
        }
        if chain.writable.len() < HEADER_OUT {
            return Err(QueueError::TooShort { head, part: "FUSE reply" });
        }
        let mut front = Buffers::default();
        chain.writable.split_front(HEADER_OUT, &mut front);
        self.reply.0.clear();
        let outcome = self.answer(&header, chain).and_then(|read| {
            let fits = chain.writable.write(&self.reply.0) == self.reply.0.len();
            if fits { Ok(read + self.reply.0.len()) } else { Err(Errno::IO) }
        });
        let (error, len) = match outcome {
            Ok(len) => (0, len),
            Err(errno) => (-errno.raw_os_error(), 0),
        };
        let len = u32::try_from(HEADER_OUT + len).unwrap_or(u32::MAX);
        self.reply.0.clear();
        self.reply.u32(len);
        self.reply.u32(error.cast_unsigned());
        self.reply.u64(header.unique);
        front.write(&self.reply.0);
        Ok(len)
    }

    /// Reads what follows the header, or the first `most` bytes of it.
    fn take_body(&mut self, header: &Header, chain: &mut Chain<'_>, most: usize) -> Result<(), Errno> {
        let len = chain.readable.len();
        if len + HEADER_IN != header.len as usize {
            return Err(Errno::INVAL);
        }
        self.body.resize(len.min(most), 0);
        chain.readable.read(&mut self.body).ok_or(Errno::INVAL)
    }

    /// Carries out a request. The reply is in `self.reply`; where the file's contents were read straight into guest
    /// memory, the result tells how many bytes.
    fn answer(&mut self, header: &Header, chain: &mut Chain<'_>) -> Result<usize, Errno> {
        let node = header.node;
        let is_write = header.opcode == opcode::WRITE;
        self.take_body(header, chain, if is_write { WRITE_IN } else { MAX_BODY })?;
        if !is_write && chain.readable.len() > 0 {
            return Err(Errno::INVAL);
        }
        let fields = &mut Fields(&self.body);
        let (share, reply) = (&mut self.share, &mut self.reply);
        let caller = Caller { user: header.uid, group: header.gid };
        match header.opcode {
            opcode::READ => return share.read(fields, &mut chain.writable),
            opcode::WRITE => share.write(fields, &mut chain.readable, reply),
            opcode::LOOKUP => share.lookup(node, fields, reply),
            opcode::GETATTR => share.get_attributes(node, fields, reply),
            opcode::SETATTR => share.set_attributes(node, fields, reply),
            opcode::READLINK => share.read_link(node, reply),
            opcode::SYMLINK => share.symlink(node, fields, caller, reply),
            opcode::MKNOD => share.make_node(node, fields, caller, reply),
            opcode::MKDIR => share.make_directory(node, fields, caller, reply),
            opcode::UNLINK => share.unlink(node, fields, false),
            opcode::RMDIR => share.unlink(node, fields, true),
            opcode::RENAME => share.rename(node, fields, false),
            opcode::RENAME2 => share.rename(node, fields, true),
            opcode::LINK => share.link(node, fields, reply),
            opcode::OPEN => share.open(node, fields, reply),
            opcode::CREATE => share.create(node, fields, caller, reply),
            opcode::TMPFILE => share.make_unnamed(node, fields, caller, reply),
            opcode::STATFS => share.statfs(node, reply),
            opcode::RELEASE | opcode::RELEASEDIR => share.release(fields),
            opcode::FSYNC | opcode::FSYNCDIR => share.sync_file(fields),
            opcode::SETXATTR => share.set_xattr(node, fields),
            opcode::GETXATTR => share.get_xattr(node, fields, reply),
            opcode::LISTXATTR => share.list_xattrs(node, fields, reply),
            opcode::REMOVEXATTR => share.remove_xattr(node, fields),
            opcode::OPENDIR => share.open_directory(node, reply),
            opcode::READDIR => share.read_directory(node, fields, false, reply),
            opcode::READDIRPLUS => share.read_directory(node, fields, true, reply),
            opcode::FALLOCATE => share.allocate(fields),
            opcode::LSEEK => share.seek(fields, reply),
            opcode::COPY_FILE_RANGE => share.copy_range(fields, reply),
            opcode::SYNCFS => share.sync_all(),
            opcode::INIT => self.init(),
            opcode::DESTROY => {
                share.forget_all();
                Ok(())
            }
            // The driver remembers that there is no such thing, and does without.
            _ => Err(Errno::NOSYS),
        }
        .map(|()| 0)
    }

    /// The beginning of a session. Whatever an earlier one has left is forgotten.
    fn init(&mut self) -> Result<(), Errno> {
        let fields = &mut Fields(&self.body);
        let (major, _minor) = (fields.u32()?, fields.u32()?);
        let (read_ahead, offered) = (fields.u32()?, fields.u32()?);
        if major < MAJOR {
            return Err(Errno::PROTO);
        }
        self.share.forget_all();
        let reply = &mut self.reply;
        reply.u32(MAJOR);
        reply.u32(MINOR);
        // A driver of a later major version asks again, with this one.
        if major == MAJOR {
            reply.u32(read_ahead);
            reply.u32(offered & FEATURES);
            reply.u16(MAX_BACKGROUND);
            reply.u16(CONGESTED);
            reply.u32(MAX_DATA);
            // Times are in nanoseconds.
            reply.u32(1);
            reply.u16(MAX_PAGES);
        }
        // The rest of `fuse_init_out`.
        reply.zeroes(64 - reply.0.len());
        Ok(())
    }

    fn forget(&mut self, header: &Header) -> Result<(), Errno> {
        let fields = &mut Fields(&self.body);
        match header.opcode {
            opcode::FORGET => self.share.forget(header.node, fields.u64()?),
            opcode::BATCH_FORGET => {
                let count = fields.u32()?;
                fields.skip(4)?;
                for _ in 0..count {
                    let (node, lookups) = (fields.u64()?, fields.u64()?);
                    self.share.forget(node, lookups);
                }
            }
            _ => {}
        }
        Ok(())
    }
}
