//! Finding the user that a workload runs as, in the root file system's own databases.
//!
//! The rules are those people know from docker: a name or a number, each for user and group; a number needs no
//! entry; supplementary groups come from `/etc/group` only where no group is asked for.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// The most bytes of `/etc/passwd` and `/etc/group` worth reading; whoever reads them out of an image must stop there.
pub const DATABASE_LIMIT: u64 = 16 << 20;

/// The largest user or group number. The kernel keeps numbers above it for "none".
const MAX_ID: u32 = i32::MAX as u32;

/// Whom a workload runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
    /// Supplementary group numbers.
    pub groups: Vec<u32>,
    /// Home directory; never empty.
    pub home: Vec<u8>,
}

/// Why there are no such credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserError {
    /// No entry has this name.
    UnknownUser(String),
    /// No entry has this name.
    UnknownGroup(String),
    /// The number is not one a user or group can have.
    OutOfRange(String),
}

impl fmt::Display for UserError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownUser(name) => write!(f, "no user {name:?} in the image's /etc/passwd"),
            Self::UnknownGroup(name) => write!(f, "no group {name:?} in the image's /etc/group"),
            Self::OutOfRange(number) => write!(f, "{number} is not a user or group number: they end at {MAX_ID}"),
        }
    }
}

impl core::error::Error for UserError {}

/// The credentials that `spec` (`NAME|UID[:GROUP|GID]`; empty is root) means where `passwd` and `group` are the
/// contents of `/etc/passwd` and `/etc/group`, empty where there are none. Malformed lines count as absent.
///
/// # Errors
/// A name has no entry, or a number is out of range.
pub fn resolve(passwd: &[u8], group: &[u8], spec: &[u8]) -> Result<Credentials, UserError> {
    let (user, group_spec) = match spec.iter().position(|&b| b == b':') {
        Some(colon) => (&spec[..colon], &spec[colon + 1..]),
        None => (spec, &[][..]),
    };
    let user = if user.is_empty() { &b"0"[..] } else { user };
    let uid = number(user);
    let (name, mut credentials) = match passwd_entry(passwd, user, uid) {
        Some((name, credentials)) => (Some(name), credentials),
        None => {
            let uid = uid.ok_or_else(|| UserError::UnknownUser(text(user)))?;
            (None, Credentials { uid: in_range(uid, user)?, gid: 0, groups: Vec::new(), home: b"/".to_vec() })
        }
    };
    if !group_spec.is_empty() {
        credentials.gid = group_number(group, group_spec)?;
    } else if let Some(name) = name {
        credentials.groups = group_entries(group)
            .filter(|(_, _, members)| members.split(|&b| b == b',').any(|member| member == name))
            .map(|(_, gid, _)| gid)
            .collect();
    }
    Ok(credentials)
}

/// The first entry with this name or number, and the entry's name.
fn passwd_entry<'a>(passwd: &'a [u8], wanted: &[u8], wanted_uid: Option<u64>) -> Option<(&'a [u8], Credentials)> {
    passwd.split(|&b| b == b'\n').find_map(|line| {
        let mut fields = line.split(|&b| b == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let _password = fields.next()?;
        let uid = id(fields.next()?)?;
        let gid = id(fields.next()?)?;
        let _comment = fields.next()?;
        let home = fields.next().filter(|home| !home.is_empty()).unwrap_or(b"/");
        (name == wanted || wanted_uid == Some(u64::from(uid)))
            .then(|| (name, Credentials { uid, gid, groups: Vec::new(), home: home.to_vec() }))
    })
}

/// Name, number and members of each group.
fn group_entries(group: &[u8]) -> impl Iterator<Item = (&[u8], u32, &[u8])> {
    group.split(|&b| b == b'\n').filter_map(|line| {
        let mut fields = line.split(|&b| b == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let _password = fields.next()?;
        let gid = id(fields.next()?)?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

fn group_number(group: &[u8], wanted: &[u8]) -> Result<u32, UserError> {
    let wanted_gid = number(wanted);
    let found = group_entries(group).find(|&(name, gid, _)| name == wanted || wanted_gid == Some(u64::from(gid)));
    match (found, wanted_gid) {
        (Some((_, gid, _)), _) => Ok(gid),
        (None, Some(gid)) => in_range(gid, wanted),
        (None, None) => Err(UserError::UnknownGroup(text(wanted))),
    }
}

/// The value of a text that is all digits; beyond 64 bits, the largest.
fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(text.iter().fold(0_u64, |sum, digit| sum.saturating_mul(10).saturating_add(u64::from(digit - b'0'))))
}

fn id(text: &[u8]) -> Option<u32> {
    number(text).and_then(|n| u32::try_from(n).ok()).filter(|&n| n <= MAX_ID)
}

fn in_range(number: u64, given: &[u8]) -> Result<u32, UserError> {
    u32::try_from(number).ok().filter(|&n| n <= MAX_ID).ok_or_else(|| UserError::OutOfRange(text(given)))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\nbroken\n:x:5:5::/:\nhuge:x:99999999999:1::/:\n\
        web:x:33:34:w:/srv:\n1000:x:77:78:named like a number:/n:\nplain:x:44:45::\n";
    const GROUP: &[u8] = b"root:x:0:\nadm:x:4:web,root\n\nwww:x:34:\nlog:x:90:plain,web\nbad:x:x:web\n";

    fn credentials(uid: u32, gid: u32, groups: &[u32], home: &str) -> Result<Credentials, UserError> {
        Ok(Credentials { uid, gid, groups: groups.to_vec(), home: home.into() })
    }

    #[test]
    fn names_and_numbers_find_their_entries() {
        for (spec, expected) in [
            ("", credentials(0, 0, &[4], "/root")),
            ("root", credentials(0, 0, &[4], "/root")),
            ("web", credentials(33, 34, &[4, 90], "/srv")),
            ("33", credentials(33, 34, &[4, 90], "/srv")),
            ("web:", credentials(33, 34, &[4, 90], "/srv")),
            ("1000", credentials(77, 78, &[], "/n")),
            ("plain", credentials(44, 45, &[90], "/")),
        ] {
            assert_eq!(resolve(PASSWD, GROUP, spec.as_bytes()), expected, "{spec}");
        }
    }

    #[test]
    fn a_given_group_replaces_all_others() {
        assert_eq!(resolve(PASSWD, GROUP, b"web:log"), credentials(33, 90, &[], "/srv"));
        assert_eq!(resolve(PASSWD, GROUP, b"web:1234"), credentials(33, 1234, &[], "/srv"));
        assert_eq!(resolve(PASSWD, GROUP, b":www"), credentials(0, 34, &[], "/root"));
    }

    #[test]
    fn numbers_need_no_entry() {
        assert_eq!(resolve(b"", b"", b""), credentials(0, 0, &[], "/"));
        assert_eq!(resolve(b"", b"", b"12:34"), credentials(12, 34, &[], "/"));
        assert_eq!(resolve(PASSWD, GROUP, b"12"), credentials(12, 0, &[], "/"));
    }

    #[test]
    fn what_does_not_exist_is_named() {
        assert_eq!(resolve(PASSWD, GROUP, b"nobody"), Err(UserError::UnknownUser("nobody".into())));
        assert_eq!(resolve(PASSWD, GROUP, b"huge"), Err(UserError::UnknownUser("huge".into())));
        assert_eq!(resolve(PASSWD, GROUP, b"-1"), Err(UserError::UnknownUser("-1".into())));
        assert_eq!(resolve(PASSWD, GROUP, b"0:nope"), Err(UserError::UnknownGroup("nope".into())));
        for spec in ["2147483648", "0:4294967296", "99999999999999999999999999"] {
            assert!(matches!(resolve(PASSWD, GROUP, spec.as_bytes()), Err(UserError::OutOfRange(_))), "{spec}");
        }
    }
}
