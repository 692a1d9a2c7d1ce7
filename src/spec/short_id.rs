//! Short random ids, as docker shows them.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Twelve hexadecimal digits that no other call, here or in another process, is likely to return. They are no secret.
pub(crate) fn short_id() -> String {
    // The standard library seeds its hashes with the operating system's random numbers, and each one differently.
    let random = RandomState::new().build_hasher().finish();
    format!("{:012x}", random >> 16)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_are_short_and_different() {
        let ids: HashSet<_> = (0..1000).map(|_| short_id()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| id.len() == 12 && id.bytes().all(|b| b.is_ascii_hexdigit())));
    }
}
