//! A file tree that a guest sends, or that one receives.
#![no_main]

use amphi_guest_init::tree::{Decoder, Encoder, Item, TreeError};
use libfuzzer_sys::fuzz_target;

/// Reads a stream that arrives in these pieces; writes what it says once more.
fn decode(pieces: &[&[u8]]) -> (Vec<u8>, Result<(), TreeError>) {
    let mut decoder = Decoder::new();
    let mut again = Encoder::new(Vec::new()).unwrap_or_else(|never| match never {});
    // Where nothing more may come, and what has come.
    let mut length = 0;
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next_item() {
                Ok(None) => break,
                Ok(Some(Item::Entry(entry))) => {
                    assert!(!entry.path.starts_with(b"/") && !entry.path.split(|&b| b == b'/').any(|name| name == b".."));
                    assert!(entry.attributes.into_iter().all(|(name, _)| !name.is_empty()));
                    length = if let amphi_guest_init::tree::Kind::File(length) = entry.kind { length } else { 0 };
                    again.entry(&entry).unwrap_or_else(|never| match never {});
                }
                Ok(Some(Item::Data { offset, bytes })) => {
                    assert!(!bytes.is_empty() && offset + bytes.len() as u64 <= length);
                    again.data(offset, bytes).unwrap_or_else(|never| match never {});
                }
                Ok(Some(Item::End)) => {
                    let ended = decoder.finish();
                    return (again.end().unwrap_or_else(|never| match never {}), ended);
                }
                Err(error) => return (Vec::new(), Err(error)),
            }
        }
    }
    (Vec::new(), decoder.finish())
}

fuzz_target!(|bytes: &[u8]| {
    let (written, ended) = decode(&[bytes]);
    let (head, rest) = bytes.split_at(bytes.first().map_or(0, |_| bytes.len() / 3));
    let (written_by_pieces, _) = decode(&[head, rest]);
    if ended.is_ok() {
        assert_eq!(written, bytes, "read and written");
        assert_eq!(written_by_pieces, bytes, "the pieces in which bytes arrive make no difference");
    }
});
