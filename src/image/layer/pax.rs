//! Extended headers (POSIX.1-2017 `pax`, "pax Extended Header"), with the records that GNU tar and star add.

use super::LayerError;
use crate::image::xattr::{self, Attributes};

/// Where extended attributes are, by the convention that all makers of images follow.
const ATTRIBUTE: &[u8] = b"SCHILY.xattr.";

/// What an extended header says.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) attributes: Attributes,
    pub(super) sparse: Option<Sparse>,
}

/// A sparse file in one of the three pax formats.
#[derive(Debug, Default)]
pub(super) struct Sparse {
    pub(super) path: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    /// Whether the map begins the data (1.0).
    pub(super) in_data: bool,
    /// The map where it is in the header (0.0, 0.1).
    pub(super) stretches: Vec<(u64, u64)>,
}

impl Records {
    /// Takes in the records of a header.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<(), LayerError> {
        let wrong = || LayerError::Malformed("an extended header is malformed");
        while !bytes.is_empty() {
            let blank = bytes.iter().position(|&byte| byte == b' ').ok_or_else(wrong)?;
            let length: usize = decimal(&bytes[..blank]).and_then(|n| usize::try_from(n).ok()).ok_or_else(wrong)?;
            if length <= blank + 1 || length > bytes.len() || bytes[length - 1] != b'\n' {
                return Err(wrong());
            }
            let record = &bytes[blank + 1..length - 1];
            let equals = record.iter().position(|&byte| byte == b'=').ok_or_else(wrong)?;
            self.record(&record[..equals], &record[equals + 1..]).ok_or_else(wrong)?;
            bytes = &bytes[length..];
        }
        self.attributes.sort_unstable();
        self.attributes.dedup_by(|a, b| a.0 == b.0);
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        if let Some(name) = key.strip_prefix(ATTRIBUTE) {
            if xattr::belongs_to_images(name) {
                self.attributes.push((name.to_vec(), value.to_vec()));
            }
            return Some(());
        }
        match key {
            b"path" => self.path = Some(no_nul(value)?),
            b"linkpath" => self.link = Some(no_nul(value)?),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(decimal(value)?.try_into().ok()?),
            b"gid" => self.gid = Some(decimal(value)?.try_into().ok()?),
            b"mtime" => self.mtime = Some(time(value)?),
            _ => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    return self.sparse.get_or_insert_default().record(key, value);
                }
            }
        }
        Some(())
    }
}

impl Sparse {
    fn record(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"name" => self.path = Some(no_nul(value)?),
            b"size" | b"realsize" => self.size = Some(decimal(value)?),
            b"major" => self.in_data = value == b"1",
            b"offset" => self.stretches.push((decimal(value)?, 0)),
            b"numbytes" => self.stretches.last_mut()?.1 = decimal(value)?,
            b"map" => {
                let numbers: Vec<u64> = value.split(|&byte| byte == b',').map(decimal).collect::<Option<_>>()?;
                self.stretches = numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
            }
            _ => {}
        }
        Some(())
    }
}

fn no_nul(value: &[u8]) -> Option<Vec<u8>> {
    (!value.contains(&0)).then(|| value.to_vec())
}

fn decimal(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Seconds, with a fraction maybe, before or after 1970.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    if text.starts_with('-') && nanoseconds > 0 {
        // Half a second before -1 is half a second after -2.
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((seconds, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(records: &[(&str, &str)]) -> Result<Records, LayerError> {
        let mut bytes = Vec::new();
        for (key, value) in records {
            let rest = format!(" {key}={value}\n");
            let mut length = rest.len() + 1;
            while length.to_string().len() + rest.len() != length {
                length += 1;
            }
            bytes.extend_from_slice(format!("{length}{rest}").as_bytes());
        }
        let mut found = Records::default();
        found.read(&bytes).map(|()| found)
    }

    #[test]
    fn records_are_taken_in() {
        let found = read(&[
            ("path", "a=b"),
            ("mtime", "-1.5"),
            ("uid", "70000"),
            ("SCHILY.xattr.user.b", "1"),
            ("SCHILY.xattr.user.a", "2"),
            ("SCHILY.xattr.trusted.overlay.redirect", "/"),
            ("comment", "x"),
        ])
        .unwrap();
        assert_eq!(found.path.unwrap(), b"a=b");
        assert_eq!((found.mtime, found.uid), (Some((-2, 500_000_000)), Some(70_000)));
        assert_eq!(found.attributes, [(b"user.a".to_vec(), b"2".to_vec()), (b"user.b".to_vec(), b"1".to_vec())]);
        let sparse = read(&[("GNU.sparse.map", "0,1,5,2"), ("GNU.sparse.size", "9")]).unwrap().sparse.unwrap();
        assert_eq!((sparse.size, sparse.stretches), (Some(9), vec![(0, 1), (5, 2)]));
    }

    #[test]
    fn times_are_before_and_after_1970() {
        for (text, expected) in
            [("1", (1, 0)), ("1.25", (1, 250_000_000)), ("-1", (-1, 0)), ("-0.25", (-1, 750_000_000))]
        {
            assert_eq!(time(text.as_bytes()), Some(expected), "{text}");
        }
        assert_eq!(time(b"1.x"), None);
    }

    #[test]
    fn malformed_headers_are_refused() {
        for bytes in [&b"x"[..], b"5 a=b", b"999999 a=b\n", b"3 \n", b"0 a=b\n", b"6 a=b\n9 ", b"8 uid=x\n"] {
            assert!(Records::default().read(bytes).is_err(), "{bytes:?}");
        }
    }
}
