//! The contents of directories.
//!
//! A directory is a sequence of blocks, each with entries (`struct erofs_dirent`) and then their names. Names ascend
//! by their bytes through all blocks, so that the kernel finds one by bisection.

use super::format::BLOCK;
use super::listing::Listing;
use super::plan::Plan;

/// The size of an entry in bytes.
const ENTRY: usize = 12;

/// Sums up the size of blocks as entries come, in order.
#[derive(Default)]
struct Packer {
    full_blocks: u64,
    used: usize,
}

impl Packer {
    /// Adds an entry; returns whether it begins a new block.
    fn add(&mut self, name: usize) -> bool {
        let length = ENTRY + name;
        let begins = (self.used + length) as u64 > BLOCK;
        if begins {
            self.full_blocks += 1;
            self.used = 0;
        }
        self.used += length;
        begins
    }
}

/// The length of a directory with names of these lengths, which ascend in their bytes, as [`encode`] makes it.
///
/// Where `.` and `..` come among the names does matter for how entries fall into blocks.
pub(super) fn size<'a>(names: impl Iterator<Item = &'a [u8]>) -> u64 {
    let mut packer = Packer::default();
    for name in with_dots(names) {
        packer.add(name.len());
    }
    packer.full_blocks * BLOCK + packer.used as u64
}

/// The names with `.` and `..` where they belong.
fn with_dots<'a>(names: impl Iterator<Item = &'a [u8]>) -> impl Iterator<Item = &'a [u8]> {
    let mut names = names.peekable();
    let mut dots = [&b"."[..], b".."].into_iter().peekable();
    std::iter::from_fn(move || match (names.peek(), dots.peek()) {
        (Some(name), Some(dot)) if name > dot => dots.next(),
        (None, _) => dots.next(),
        _ => names.next(),
    })
}

/// The contents of the directory `entry`.
pub(super) fn encode(listing: &Listing, plan: &Plan, entry: usize) -> Vec<u8> {
    let mut children = plan.children[entry].iter();
    let names = plan.children[entry].iter().map(|&child| &*listing.entries[child].name);
    let size = plan.inodes[listing.entries[entry].inode].size;
    let mut out = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    let mut packer = Packer::default();
    let mut block: Vec<(&[u8], usize)> = Vec::new();
    for name in with_dots(names) {
        let index = match name {
            b"." => entry,
            b".." => listing.entries[entry].parent,
            _ => children.next().copied().unwrap_or_default(),
        };
        if packer.add(name.len()) {
            write_block(listing, plan, &block, &mut out);
            out.resize(out.len().next_multiple_of(4096), 0);
            block.clear();
        }
        block.push((name, index));
    }
    write_block(listing, plan, &block, &mut out);
    out
}

fn write_block(listing: &Listing, plan: &Plan, entries: &[(&[u8], usize)], out: &mut Vec<u8>) {
    let mut name_position = entries.len() * ENTRY;
    for &(name, index) in entries {
        out.extend_from_slice(&plan.inodes[listing.entries[index].inode].number.to_le_bytes());
        // Within a block.
        out.extend_from_slice(&u16::try_from(name_position).unwrap_or_default().to_le_bytes());
        out.extend_from_slice(&[file_type(listing.inode(index).kind()), 0]);
        name_position += name.len();
    }
    for (name, _) in entries {
        out.extend_from_slice(name);
    }
}

const fn file_type(kind: u32) -> u8 {
    match kind {
        libc::S_IFREG => 1,
        libc::S_IFDIR => 2,
        libc::S_IFCHR => 3,
        libc::S_IFBLK => 4,
        libc::S_IFIFO => 5,
        libc::S_IFSOCK => 6,
        libc::S_IFLNK => 7,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_come_where_their_bytes_put_them() {
        let names = [&b"+x"[..], b"..a", b"a"];
        let all: Vec<_> = with_dots(names.into_iter()).collect();
        assert_eq!(all, [&b"+x"[..], b".", b"..", b"..a", b"a"]);
        assert_eq!(with_dots(std::iter::empty()).count(), 2);
    }

    #[test]
    fn entries_do_not_cross_blocks() {
        assert_eq!(size(std::iter::empty()), 2 * 12 + 3);
        let name = [b'n'; 255];
        // 15 of 267 bytes and the two dots make 4032; the 16th begins a block.
        assert_eq!(size(std::iter::repeat_n(&name[..], 15)), 15 * 267 + 27);
        assert_eq!(size(std::iter::repeat_n(&name[..], 16)), 4096 + 267);
    }
}
