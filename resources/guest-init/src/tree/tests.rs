use super::*;

fn top() -> Entry<'static> {
    Entry {
        path: b"",
        kind: Kind::Directory,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        attributes: Attributes::default(),
    }
}

fn named<'a>(path: &'a [u8], kind: Kind<'a>) -> Entry<'a> {
    Entry { path, kind, ..top() }
}

/// What a stream is made of, and is read as.
type Items<'a> = &'a [Item<'a>];

fn encode(items: Items<'_>) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new()).unwrap();
    for item in items {
        match item {
            Item::Entry(entry) => encoder.entry(entry).unwrap(),
            Item::Data { offset, bytes } => encoder.data(*offset, bytes).unwrap(),
            Item::End => return encoder.end().unwrap(),
        }
    }
    encoder.sink()
}

/// Reads a stream that arrives in pieces of `size`; `check` is told each item.
fn decode(stream: &[u8], size: usize, mut check: impl FnMut(Item<'_>)) -> Result<(), TreeError> {
    let mut decoder = Decoder::new();
    for piece in stream.chunks(size) {
        decoder.push(piece);
        while let Some(item) = decoder.next_item()? {
            check(item);
        }
    }
    decoder.finish()
}

fn decode_items(items: Items<'_>) -> Result<(), TreeError> {
    decode(&encode(items), usize::MAX, |_| {})
}

#[test]
fn a_tree_survives_the_journey_whatever_the_pieces() {
    let mut attributes = AttributesBuffer::new();
    assert!(attributes.push(b"user.a", b"") && attributes.push(b"trusted.overlay.opaque", b"y"));
    let directory =
        Entry { attributes: attributes.get(), mode: 0o7777, mtime: (-1, 999_999_999), ..named(b"d", Kind::Directory) };
    assert!(directory.is_opaque() && !directory.is_whiteout());
    let items = [
        Item::Entry(Entry { uid: u32::MAX, gid: 7, ..top() }),
        Item::Entry(directory),
        Item::Entry(named(b"d/\xff", Kind::File(i64::MAX.cast_unsigned()))),
        Item::Data { offset: 5, bytes: b"abc" },
        Item::Data { offset: 8, bytes: b"d" },
        Item::Data { offset: i64::MAX.cast_unsigned() - 1, bytes: b"z" },
        Item::Entry(named(b"d/e", Kind::Directory)),
        Item::Entry(named(b"d/e/link", Kind::Symlink(b"/../x"))),
        Item::Entry(named(b"d/f", Kind::HardLink(b"d/\xff"))),
        Item::Entry(named(b"gone", Kind::CharacterDevice(0, 0))),
        Item::Entry(named(b"disk", Kind::BlockDevice(8, 1 << 20))),
        Item::Entry(named(b"pipe", Kind::Fifo)),
        Item::End,
    ];
    let stream = encode(&items);
    for size in 1..=stream.len() {
        let mut expected = items.iter();
        decode(&stream, size, |item| assert_eq!(Some(&item), expected.next())).unwrap();
        assert_eq!(expected.next(), None);
    }
    for end in 0..stream.len() {
        assert_eq!(decode(&stream[..end], 64, |_| {}), Err(TreeError::Truncated), "{end} bytes");
    }
}

#[test]
fn entries_are_in_directories_that_came_right_before() {
    let directory = |path| Item::Entry(named(path, Kind::Directory));
    let file = |path| Item::Entry(named(path, Kind::File(0)));
    let top = Item::Entry(top());
    for items in [
        &[
            top,
            directory(b"a"),
            directory(b"a/b"),
            file(b"a/b/c"),
            file(b"a/d"),
            directory(b"e"),
            file(b"f"),
            Item::End,
        ][..],
        &[file(b""), Item::End],
        &[top, Item::End],
    ] {
        assert_eq!(decode_items(items), Ok(()));
    }
    for (items, path) in [
        (&[file(b"a")][..], &b"a"[..]),
        (&[top, top], b""),
        (&[Item::Entry(named(b"", Kind::HardLink(b"a")))], b""),
        (&[file(b""), file(b"a")], b"a"),
        (&[file(b""), file(b"a/b")], b"a/b"),
        (&[top, file(b"a"), file(b"a/b")], b"a/b"),
        (&[top, directory(b"a"), file(b"ab/c")], b"ab/c"),
        (&[top, directory(b"a"), directory(b"b"), file(b"a/c")], b"a/c"),
        (&[top, Item::Entry(named(b"a", Kind::Symlink(b"/"))), file(b"a/c")], b"a/c"),
    ] {
        assert_eq!(decode_items(items), Err(TreeError::Order(path.to_vec())), "{items:?}");
    }
}

#[test]
fn contents_are_within_their_file() {
    let top = Item::Entry(top());
    let file = Item::Entry(named(b"f", Kind::File(10)));
    let data = |offset, bytes| Item::Data { offset, bytes };
    assert_eq!(decode_items(&[top, file, data(0, b"01234"), data(9, b"9"), Item::End]), Ok(()));
    for items in [
        &[top, data(0, b"x")][..],
        &[top, file, data(8, b"890")],
        &[top, file, data(5, b"5"), data(5, b"5")],
        &[top, file, data(u64::MAX, b"5")],
        &[top, file, Item::Entry(named(b"d", Kind::Directory)), data(0, b"x")],
    ] {
        assert_eq!(decode_items(items), Err(TreeError::Data), "{items:?}");
    }
}

/// The stream up to its first entry's frame, and that frame with `contents`.
fn with_frame(tag: u8, contents: &[u8]) -> Vec<u8> {
    let mut stream = encode(&[Item::Entry(top())]);
    stream.push(tag);
    stream.extend_from_slice(&u32::try_from(contents.len()).unwrap().to_le_bytes());
    stream.extend_from_slice(contents);
    stream
}

#[test]
fn nonsense_is_refused() {
    assert_eq!(decode(&[9], 1, |_| {}), Err(TreeError::Version(9)));
    assert_eq!(decode(&[], 1, |_| {}), Err(TreeError::Truncated));
    assert_eq!(decode(&encode(&[Item::End]), 1, |_| {}), Err(TreeError::Malformed(TAG_END)), "a top must be there");
    for (tag, contents) in [(TAG_END, &[0][..]), (TAG_ENTRY, &[]), (4, &[]), (0xff, b"x")] {
        assert_eq!(decode(&with_frame(tag, contents), 1, |_| {}), Err(TreeError::Malformed(tag)));
    }
    assert_eq!(decode(&with_frame(TAG_DATA, &[0; 7]), 1, |_| {}), Err(TreeError::Data));
    let after = [encode(&[Item::Entry(top()), Item::End]), vec![0]].concat();
    for size in [1, 1000] {
        assert_eq!(decode(&after, size, |_| {}), Err(TreeError::AfterEnd));
    }
    let huge = [&[VERSION, TAG_ENTRY][..], &[0xff; 4]].concat();
    assert_eq!(decode(&huge, 100, |_| {}), Err(TreeError::Malformed(TAG_ENTRY)), "before its bytes arrive");
}

#[test]
fn malformed_entries_are_refused() {
    let refused = |entry: Entry<'_>| {
        let items = [Item::Entry(top()), Item::Entry(entry)];
        assert_eq!(decode_items(&items), Err(TreeError::Malformed(TAG_ENTRY)), "{entry:?}");
    };
    for path in [&b"/etc"[..], b"..", b"a/../b", b"a\0", b"a//b", b"."] {
        refused(named(path, Kind::Fifo));
        refused(named(b"link", Kind::HardLink(path)));
    }
    for kind in [Kind::HardLink(b""), Kind::Symlink(b""), Kind::Symlink(b"a\0"), Kind::Symlink(&[b'x'; 4096])] {
        refused(named(b"a", kind));
    }
    refused(named(b"a", Kind::File(1 << 63)));
    refused(Entry { mode: 0o10_000, ..named(b"a", Kind::Fifo) });
    refused(Entry { mtime: (0, 1_000_000_000), ..named(b"a", Kind::Fifo) });
    let mut attributes = AttributesBuffer::new();
    assert!(!attributes.push(b"", b"") && !attributes.push(b"a\0", b"") && !attributes.push(&[b'x'; 256], b""));
    assert!(!attributes.push(b"user.a", &[0; (64 << 10) + 1]));
    assert!(attributes.push(b"user.a", &[0; 64 << 10]));
    let whole = encode(&[Item::Entry(Entry { attributes: attributes.get(), ..top() })]);
    for wrong in [&[0, 0, 0, 0, 0, 0, 0, 0][..], &[1, 0, 0, 0, b'a'], &[0xff]] {
        let mut frame = whole[1 + HEADER..].to_vec();
        frame.extend_from_slice(wrong);
        assert_eq!(decode(&with_frame(TAG_ENTRY, &frame), 4096, |_| {}), Err(TreeError::Malformed(TAG_ENTRY)));
    }
}

#[test]
fn a_failure_is_told_and_stays() {
    let mut encoder = Encoder::new(Vec::new()).unwrap();
    encoder.entry(&top()).unwrap();
    let stream = encoder.fail("cannot read d/\u{fffd}").unwrap();
    let failed = Err(TreeError::Failed("cannot read d/\u{fffd}".into()));
    assert_eq!(decode(&stream, 3, |_| {}), failed);
    let mut decoder = Decoder::new();
    decoder.push(&stream);
    while decoder.next_item().is_ok() {}
    decoder.push(&stream);
    assert_eq!(decoder.next_item().map(drop), failed, "again");
    assert_eq!(decoder.finish(), failed);
    let long = Encoder::new(Vec::new()).unwrap().fail(&"é".repeat(MAX_FRAME)).unwrap();
    let Err(TreeError::Failed(text)) = decode(&long, usize::MAX, |_| {}) else { panic!("no failure") };
    assert_eq!(text.chars().count(), 4096);
}
