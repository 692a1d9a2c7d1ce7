//! The header of a packet (specification section 5.10.6), as bytes and as fields.

/// The length in bytes of a header.
pub(super) const HEADER: usize = 44;
/// The host's context identifier (section 5.10.4).
pub(super) const HOST_CID: u64 = 2;
/// `VIRTIO_VSOCK_TYPE_STREAM`.
pub(super) const STREAM: u16 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE`: whoever says so will not receive any more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_F_SEND`: whoever says so will not send any more.
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// Both.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet is for (`VIRTIO_VSOCK_OP_...`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Op {
    /// Asks for a connection.
    Request = 1,
    /// Agrees to one.
    Response = 2,
    /// Ends one at once, or refuses it.
    Reset = 3,
    /// Ends one or both of its directions.
    Shutdown = 4,
    /// Carries data.
    ReadWrite = 5,
    /// Tells how much the sender can take.
    CreditUpdate = 6,
    /// Asks for that.
    CreditRequest = 7,
}

impl Op {
    fn from_number(number: u16) -> Option<Self> {
        const ALL: [Op; 7] =
            [Op::Request, Op::Response, Op::Reset, Op::Shutdown, Op::ReadWrite, Op::CreditUpdate, Op::CreditRequest];
        ALL.into_iter().find(|&op| op as u16 == number)
    }
}

/// Which connection a packet belongs to: there is one guest and one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) host_port: u32,
    pub(super) guest_port: u32,
}

/// A packet's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    /// How many bytes of data follow the header.
    pub(super) len: u32,
    /// The kind of socket.
    pub(super) kind: u16,
    /// `None` for a number that means nothing.
    pub(super) op: Option<Op>,
    pub(super) flags: u32,
    /// How large the sender's buffer for this connection is.
    pub(super) buf_alloc: u32,
    /// How many bytes have left that buffer since the connection began, modulo 2^32.
    pub(super) fwd_cnt: u32,
}

impl Header {
    pub(super) fn from_bytes(bytes: &[u8; HEADER]) -> Self {
        let number = |at: usize, len: usize| {
            bytes[at..at + len].iter().rev().fold(0_u64, |value, &byte| value << 8 | u64::from(byte))
        };
        let word = |at| u32::try_from(number(at, 4)).unwrap_or(0);
        let half = |at| u16::try_from(number(at, 2)).unwrap_or(0);
        Self {
            src_cid: number(0, 8),
            dst_cid: number(8, 8),
            src_port: word(16),
            dst_port: word(20),
            len: word(24),
            kind: half(28),
            op: Op::from_number(half(30)),
            flags: word(32),
            buf_alloc: word(36),
            fwd_cnt: word(40),
        }
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &self.src_cid.to_le_bytes());
        put(8, &self.dst_cid.to_le_bytes());
        put(16, &self.src_port.to_le_bytes());
        put(20, &self.dst_port.to_le_bytes());
        put(24, &self.len.to_le_bytes());
        put(28, &self.kind.to_le_bytes());
        put(30, &self.op.map_or(0, |op| op as u16).to_le_bytes());
        put(32, &self.flags.to_le_bytes());
        put(36, &self.buf_alloc.to_le_bytes());
        put(40, &self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// A packet for the guest that belongs to connection `key`.
    pub(super) fn to_guest(guest_cid: u64, key: Key, op: Op) -> Self {
        Self {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: key.host_port,
            dst_port: key.guest_port,
            len: 0,
            kind: STREAM,
            op: Some(op),
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }

    /// The packet that tells the sender of this one that there is no such connection, or no longer.
    pub(super) fn refusal(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            len: 0,
            op: Some(Op::Reset),
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
            ..*self
        }
    }

    /// The connection that a packet from the guest belongs to.
    pub(super) fn key(&self) -> Key {
        Key { host_port: self.dst_port, guest_port: self.src_port }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let bytes: [u8; HEADER] = std::array::from_fn(|at| {
            if at == 30 {
                5
            } else if at == 31 {
                0
            } else {
                u8::try_from(at).unwrap()
            }
        });
        let header = Header::from_bytes(&bytes);
        assert_eq!(header.src_cid, 0x0706_0504_0302_0100);
        assert_eq!((header.src_port, header.dst_port, header.len), (0x1312_1110, 0x1716_1514, 0x1b1a_1918));
        assert_eq!((header.kind, header.op, header.flags), (0x1d1c, Some(Op::ReadWrite), 0x2322_2120));
        assert_eq!((header.buf_alloc, header.fwd_cnt), (0x2726_2524, 0x2b2a_2928));
        assert_eq!(header.to_bytes(), bytes);
        for (number, op) in [(0, None), (1, Some(Op::Request)), (7, Some(Op::CreditRequest)), (8, None)] {
            assert_eq!(Op::from_number(number), op);
        }
    }
}
