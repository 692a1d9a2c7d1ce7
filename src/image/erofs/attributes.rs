//! Extended attributes, which lie between an inode and its contents' tail.

use super::super::xattr::Attributes;

/// The size of what comes before the first attribute (`struct erofs_xattr_ibody_header`, none shared), in bytes.
pub(in crate::image) const HEADER: usize = 12;

/// The longest area that an inode can name the length of.
const LIMIT: usize = HEADER + 4 * (u16::MAX as usize - 1);

/// Prefixes of names, each with the number that stands for it.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// The attributes as they lie in an image; nothing if there are none, `None` if they are too long.
pub(in crate::image) fn encode(attributes: &Attributes) -> Option<Vec<u8>> {
    if attributes.is_empty() {
        return Some(Vec::new());
    }
    let mut out = vec![0; HEADER];
    for (name, value) in attributes {
        let (prefix, number) = PREFIXES.iter().find(|(prefix, _)| name.starts_with(prefix))?;
        let rest = &name[prefix.len()..];
        out.extend_from_slice(&[u8::try_from(rest.len()).ok()?, *number]);
        out.extend_from_slice(&u16::try_from(value.len()).ok()?.to_le_bytes());
        out.extend_from_slice(rest);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    (out.len() <= LIMIT).then_some(out)
}

/// The attributes that [`encode`] made these bytes of.
pub(in crate::image) fn decode(encoded: &[u8]) -> Attributes {
    let mut attributes = Vec::new();
    let mut rest = encoded.get(HEADER..).unwrap_or_default();
    while let [name_length, number, low, high, contents @ ..] = rest {
        let (name, value) = (usize::from(*name_length), usize::from(u16::from_le_bytes([*low, *high])));
        let Some((prefix, _)) = PREFIXES.iter().find(|(_, known)| known == number) else { break };
        let Some((both, _)) = contents.split_at_checked(name + value) else { break };
        attributes.push(([prefix, &both[..name]].concat(), both[name..].to_vec()));
        rest = rest.get((4 + name + value).next_multiple_of(4)..).unwrap_or_default();
    }
    attributes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_aligned_and_bounded() {
        assert_eq!(encode(&Vec::new()), Some(Vec::new()));
        let one = |name: &[u8], value: &[u8]| encode(&vec![(name.to_vec(), value.to_vec())]);
        let mut expected = vec![0; HEADER];
        expected.extend_from_slice(b"\x01\x01\x02\0avw\0");
        assert_eq!(one(b"user.a", b"vw"), Some(expected));
        assert_eq!(one(b"system.posix_acl_access", b"v").unwrap()[HEADER..], *b"\0\x02\x01\0v\0\0\0");
        assert_eq!(one(b"strange", b"v"), None);
        let pairs = vec![(b"user.a".to_vec(), b"vwx".to_vec()), (b"security.capability".to_vec(), vec![0; 20])];
        assert_eq!(decode(&encode(&pairs).unwrap()), pairs);
        assert_eq!(decode(&[]), []);
        let value = vec![0; 60_000];
        let many = (0..5).map(|n| (format!("user.{n}").into_bytes(), value.clone())).collect();
        assert_eq!(encode(&many), None);
    }
}
