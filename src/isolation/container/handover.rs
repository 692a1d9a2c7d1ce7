//! Descriptors and words between amphi and a container's PID 1, over the control socket. Allocates nothing.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

/// Sends a word, and a descriptor with it where there is one.
pub(super) fn send(control: BorrowedFd<'_>, descriptor: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.as_slice();
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::NOBUFS);
    }
    sendmsg(control, &[IoSlice::new(b".")], &mut ancillary, SendFlags::NOSIGNAL).map(drop)
}

/// What [`receive`] finds.
pub(super) enum Received {
    /// The other side has closed the socket, by will or by death.
    End,
    /// A word without a descriptor.
    Word,
    /// A word with one.
    Descriptor(OwnedFd),
}

/// Waits for a word.
pub(super) fn receive(control: BorrowedFd<'_>) -> Result<Received, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut word = [0u8; 1];
    let message = loop {
        match recvmsg(control, &mut [IoSliceMut::new(&mut word)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    if message.bytes == 0 {
        return Ok(Received::End);
    }
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(descriptor.map_or(Received::Word, Received::Descriptor))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    #[test]
    fn words_descriptors_and_the_end_are_told_apart() {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        send(a.as_fd(), None).unwrap();
        send(a.as_fd(), Some(a.as_fd())).unwrap();
        assert!(matches!(receive(b.as_fd()), Ok(Received::Word)));
        let Ok(Received::Descriptor(copy)) = receive(b.as_fd()) else { panic!("no descriptor") };
        drop((a, copy));
        assert!(matches!(receive(b.as_fd()), Ok(Received::End)));
    }
}
