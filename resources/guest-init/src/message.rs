//! The messages on the control port: a 16-bit little-endian length, then a tag and what belongs to it.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;

use crate::wire::{Reader, Writer};

/// The longest message behind its length, in bytes. The receiver gives up on a peer that announces a longer one.
const MAX_MESSAGE: usize = 8 << 10;
/// The longest text in a message, in bytes; a longer one is cut when it is sent, and when it arrives.
const MAX_TEXT: usize = 4 << 10;

/// What the guest tells the host. The host must not trust it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromGuest {
    /// All is set up, and the workload is about to be executed.
    Ready,
    /// The workload has ended and all its output has been handed over to the device, from which the host may still be
    /// taking it. The guest waits to be ended.
    Exited {
        /// As `waitpid` gives it.
        wait_status: i32,
    },
    /// There is no such program. The guest waits to be ended.
    CommandNotFound {
        /// The program as the specification names it.
        command: Vec<u8>,
    },
    /// The program is there, but `execve` refuses it. The guest waits to be ended.
    CommandNotExecutable {
        /// The program as the specification names it.
        command: Vec<u8>,
        /// The error number of `execve`.
        errno: i32,
    },
    /// The workload could not be started for another reason. The guest waits to be ended.
    Failed {
        /// What failed, and why, for the user.
        what: String,
    },
}

/// What the host tells the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToGuest {
    /// Send this signal to the workload.
    Signal(i32),
    /// The terminal has a new size.
    Resize {
        /// Lines.
        rows: u16,
        /// Columns.
        columns: u16,
    },
}

/// Why the bytes on the control port are not messages. What follows them cannot be understood either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageError {
    /// A message announces this length, which is beyond the limit.
    TooLong(usize),
    /// A message of this tag is unknown or has other contents than the tag says.
    Malformed(u8),
    /// A message has no contents, not even a tag.
    Empty,
}

impl fmt::Display for MessageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong(length) => write!(f, "a control message announces {length} bytes, above {MAX_MESSAGE}"),
            Self::Malformed(tag) => write!(f, "malformed control message with tag {tag}"),
            Self::Empty => f.write_str("empty control message"),
        }
    }
}

impl core::error::Error for MessageError {}

mod sealed {
    use alloc::vec::Vec;

    pub trait Body: Sized {
        /// The tag and what belongs to it.
        fn to_bytes(&self) -> Vec<u8>;
        /// The message of this tag with these contents, if they are right.
        fn from_bytes(tag: u8, contents: &[u8]) -> Option<Self>;
    }
}

/// A message that travels over the control port.
pub trait Message: sealed::Body {
    /// The message as the bytes to send.
    #[must_use]
    fn encode(&self) -> Vec<u8> {
        let contents = self.to_bytes();
        // Texts are cut so that a message stays below MAX_MESSAGE, which fits.
        let length = u16::try_from(contents.len()).unwrap_or(u16::MAX);
        let mut out = length.to_le_bytes().to_vec();
        out.extend_from_slice(&contents);
        out
    }
}

impl Message for FromGuest {}
impl Message for ToGuest {}

fn cut(text: &[u8]) -> &[u8] {
    &text[..text.len().min(MAX_TEXT)]
}

/// As [`cut`], between two characters.
fn cut_text(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

impl sealed::Body for FromGuest {
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::default();
        match self {
            Self::Ready => out.u8(0),
            Self::Exited { wait_status } => {
                out.u8(1);
                out.i32(*wait_status);
            }
            Self::CommandNotFound { command } => {
                out.u8(2);
                out.bytes(cut(command));
            }
            Self::CommandNotExecutable { command, errno } => {
                out.u8(3);
                out.i32(*errno);
                out.bytes(cut(command));
            }
            Self::Failed { what } => {
                out.u8(4);
                out.bytes(cut_text(what).as_bytes());
            }
        }
        out.0
    }

    fn from_bytes(tag: u8, contents: &[u8]) -> Option<Self> {
        let mut reader = Reader(contents);
        let message = match tag {
            0 => Self::Ready,
            1 => Self::Exited { wait_status: reader.i32()? },
            // Whoever sends longer texts than `to_bytes` does has them cut here.
            2 => Self::CommandNotFound { command: cut(reader.bytes()?).to_vec() },
            3 => {
                let errno = reader.i32()?;
                Self::CommandNotExecutable { command: cut(reader.bytes()?).to_vec(), errno }
            }
            4 => Self::Failed { what: String::from(cut_text(&String::from_utf8_lossy(reader.bytes()?))) },
            _ => return None,
        };
        reader.0.is_empty().then_some(message)
    }
}

impl sealed::Body for ToGuest {
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::default();
        match *self {
            Self::Signal(number) => {
                out.u8(0);
                out.i32(number);
            }
            Self::Resize { rows, columns } => {
                out.u8(1);
                out.u16(rows);
                out.u16(columns);
            }
        }
        out.0
    }

    fn from_bytes(tag: u8, contents: &[u8]) -> Option<Self> {
        let mut reader = Reader(contents);
        let message = match tag {
            0 => Self::Signal(reader.i32()?),
            1 => Self::Resize { rows: reader.u16()?, columns: reader.u16()? },
            _ => return None,
        };
        reader.0.is_empty().then_some(message)
    }
}

/// Puts messages together from bytes that arrive in pieces of any size.
///
/// Push what has arrived, then take messages until there is none; so it never holds more than one message
/// and one push. After an error it takes in nothing more and yields nothing more.
#[derive(Debug, Clone)]
pub struct Decoder<M> {
    buffer: VecDeque<u8>,
    failed: bool,
    message: PhantomData<fn() -> M>,
}

impl<M> Default for Decoder<M> {
    fn default() -> Self {
        Self { buffer: VecDeque::new(), failed: false, message: PhantomData }
    }
}

impl<M: Message> Decoder<M> {
    /// A decoder that has seen nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes that arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        if !self.failed {
            self.buffer.extend(bytes);
        }
    }

    fn parse(&mut self) -> Result<Option<M>, MessageError> {
        let (Some(&low), Some(&high)) = (self.buffer.front(), self.buffer.get(1)) else { return Ok(None) };
        let length = usize::from(u16::from_le_bytes([low, high]));
        if length > MAX_MESSAGE {
            return Err(MessageError::TooLong(length));
        }
        if self.buffer.len() < 2 + length {
            return Ok(None);
        }
        let frame: Vec<u8> = self.buffer.drain(..2 + length).skip(2).collect();
        let (&tag, body) = frame.split_first().ok_or(MessageError::Empty)?;
        M::from_bytes(tag, body).map(Some).ok_or(MessageError::Malformed(tag))
    }
}

impl<M: Message> Iterator for Decoder<M> {
    type Item = Result<M, MessageError>;

    /// The next message that has arrived whole; `None` until more bytes are pushed.
    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let parsed = self.parse();
        if parsed.is_err() {
            self.failed = true;
            self.buffer = VecDeque::new();
        }
        parsed.transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_from_guest() -> Vec<FromGuest> {
        vec![
            FromGuest::Ready,
            FromGuest::Exited { wait_status: 0x700 },
            FromGuest::CommandNotFound { command: b"\xffx".to_vec() },
            FromGuest::CommandNotExecutable { command: b"/bin/x".to_vec(), errno: 13 },
            FromGuest::Failed { what: "unknown user x".into() },
        ]
    }

    #[test]
    fn messages_arrive_whole_whatever_the_pieces() {
        let bytes: Vec<u8> = all_from_guest().iter().flat_map(Message::encode).collect();
        for size in 1..bytes.len() {
            let mut decoder = Decoder::<FromGuest>::new();
            let mut got = Vec::new();
            for piece in bytes.chunks(size) {
                decoder.push(piece);
                got.extend(decoder.by_ref().map(Result::unwrap));
            }
            assert_eq!(got, all_from_guest(), "in pieces of {size}");
        }
    }

    #[test]
    fn the_host_is_understood() {
        let sent = [ToGuest::Signal(15), ToGuest::Resize { rows: 50, columns: 200 }];
        let mut decoder = Decoder::<ToGuest>::new();
        sent.iter().for_each(|message| decoder.push(&message.encode()));
        assert_eq!(decoder.map(Result::unwrap).collect::<Vec<_>>(), sent);
    }

    #[test]
    fn an_excessive_length_is_refused_before_its_bytes_arrive() {
        let mut decoder = Decoder::<FromGuest>::new();
        decoder.push(&[0xff, 0xff]);
        assert_eq!(decoder.next(), Some(Err(MessageError::TooLong(0xffff))));
        decoder.push(&FromGuest::Ready.encode());
        assert_eq!(decoder.next(), None, "nothing is believed after an error");
    }

    #[test]
    fn nonsense_is_refused() {
        for (bytes, error) in [
            (&[0, 0][..], MessageError::Empty),
            (&[1, 0, 99][..], MessageError::Malformed(99)),
            (&[2, 0, 0, 0][..], MessageError::Malformed(0)),
            (&[3, 0, 1, 0, 0][..], MessageError::Malformed(1)),
            (&[6, 0, 2, 0xff, 0xff, 0xff, 0xff, 0][..], MessageError::Malformed(2)),
        ] {
            let mut decoder = Decoder::<FromGuest>::new();
            decoder.push(bytes);
            assert_eq!(decoder.next(), Some(Err(error)), "{bytes:?}");
        }
    }

    #[test]
    fn long_texts_are_cut_to_fit() {
        let mut decoder = Decoder::<FromGuest>::new();
        decoder.push(&FromGuest::Failed { what: "é".repeat(40_000) }.encode());
        let Some(Ok(FromGuest::Failed { what })) = decoder.next() else { panic!("no message") };
        assert_eq!(what.len(), MAX_TEXT);
    }

    /// What is no UTF-8 becomes three times as long; what is longer than it is ever sent is cut; and then it is what it encodes to.
    #[test]
    fn texts_that_are_too_long_are_cut_where_they_arrive() {
        let euros = "€".repeat(2000).into_bytes();
        for (tag, text) in [(2, vec![b'x'; 8000]), (4, vec![0xff; 4000]), (4, vec![0xff; 8000]), (4, euros)] {
            let mut contents = Writer::default();
            contents.u8(tag);
            contents.bytes(&text);
            let bytes = [&u16::try_from(contents.0.len()).unwrap().to_le_bytes(), &contents.0[..]].concat();
            let decode = |bytes: &[u8]| {
                let mut decoder = Decoder::<FromGuest>::new();
                decoder.push(bytes);
                decoder.next().unwrap().unwrap()
            };
            let message = decode(&bytes);
            let encoded = message.encode();
            assert!(encoded.len() > MAX_TEXT && encoded.len() <= MAX_TEXT + 7, "{}", encoded.len());
            assert_eq!(decode(&encoded), message);
        }
    }
}
