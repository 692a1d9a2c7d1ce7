//! Reads of a configuration space.

/// Fills `data` from `space` at `offset`; what lies outside of it stays as it is.
pub(super) fn read_config_space(space: &[u8], offset: u64, data: &mut [u8]) {
    let from = usize::try_from(offset).ok().and_then(|offset| space.get(offset..)).unwrap_or_default();
    for (to, from) in data.iter_mut().zip(from) {
        *to = *from;
    }
}
