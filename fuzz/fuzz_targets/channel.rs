//! What host and guest init say to each other, and the specification that a guest is started with.
#![no_main]

use amphi_guest_init::{Decoder, FromGuest, InitSpec, Message, ToGuest, user};
use libfuzzer_sys::fuzz_target;

/// Decodes the stream, in two pieces as well as whole.
fn decode<M: Message + PartialEq + std::fmt::Debug>(bytes: &[u8], encode: impl Fn(&M) -> Vec<u8>) {
    let messages = |pieces: &[&[u8]]| {
        let mut decoder = Decoder::<M>::new();
        let mut messages = Vec::new();
        for piece in pieces {
            decoder.push(piece);
            messages.extend(decoder.by_ref().map_while(Result::ok));
        }
        messages
    };
    let whole = messages(&[bytes]);
    let (head, rest) = bytes.split_at(bytes.first().map_or(0, |&first| usize::from(first).min(bytes.len())));
    assert_eq!(messages(&[head, rest]), whole, "the pieces in which bytes arrive make no difference");
    for message in &whole {
        assert_eq!(messages(&[&encode(message)]).as_slice(), std::slice::from_ref(message), "encoded and decoded");
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&selector, bytes)) = bytes.split_first() else { return };
    match selector % 4 {
        0 => decode::<FromGuest>(bytes, FromGuest::encode),
        1 => decode::<ToGuest>(bytes, ToGuest::encode),
        2 => {
            if let Ok(spec) = InitSpec::decode(bytes) {
                assert_eq!(InitSpec::decode(&spec.encode()).as_ref(), Ok(&spec), "encoded and decoded");
            }
        }
        // The image's files, and what the user asked for.
        _ => {
            let mut parts = bytes.splitn(3, |&byte| byte == 0);
            let mut part = || parts.next().unwrap_or_default();
            let (passwd, group, spec) = (part(), part(), part());
            let _ = user::resolve(passwd, group, spec);
        }
    }
});
