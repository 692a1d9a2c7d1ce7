//! Extended attributes: those of users. Others mean something to the host's kernel, and are not the guest's to set or to see.

use std::os::fd::AsFd;

use rustix::fs::{XattrFlags, getxattr, listxattr, removexattr, setxattr};
use rustix::io::Errno;

use super::{Share, name_of};
use crate::virtio::fs::wire::{Fields, Reply};

/// What the kernel has at most of an attribute's value, and of a list of names.
const MAX: usize = 64 << 10;
const PREFIX: &[u8] = b"user.";

fn is_of_users(name: &[u8]) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|rest| !rest.is_empty())
}

impl Share {
    /// A path to the node, for system calls that take only paths.
    fn path(&self, node: u64) -> Result<String, Errno> {
        Ok(format!("/proc/self/fd/{}", name_of(self.node(node)?.as_fd())))
    }

    /// `SETXATTR`.
    pub(in crate::virtio::fs) fn set_xattr(&mut self, node: u64, fields: &mut Fields<'_>) -> Result<(), Errno> {
        let (size, flags) = (fields.u32()? as usize, fields.u32()?);
        let (name, value) = (fields.text()?, fields.0);
        self.for_change()?;
        if !is_of_users(name) {
            return Err(Errno::OPNOTSUPP);
        }
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        let value = value.get(..size).filter(|_| value.len() == size).ok_or(Errno::INVAL)?;
        setxattr(self.path(node)?, name, value, flags)
    }

    /// `GETXATTR`.
    pub(in crate::virtio::fs) fn get_xattr(
        &mut self,
        node: u64,
        fields: &mut Fields<'_>,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let size = fields.u32()? as usize;
        fields.skip(4)?;
        let name = fields.text()?;
        if !is_of_users(name) {
            return Err(Errno::NODATA);
        }
        let mut value = Vec::with_capacity(MAX);
        getxattr(self.path(node)?, name, rustix::buffer::spare_capacity(&mut value))?;
        reply_sized(&value, size, reply)
    }

    /// `LISTXATTR`.
    pub(in crate::virtio::fs) fn list_xattrs(
        &mut self,
        node: u64,
        fields: &mut Fields<'_>,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let size = fields.u32()? as usize;
        let mut all = Vec::with_capacity(MAX);
        listxattr(self.path(node)?, rustix::buffer::spare_capacity(&mut all))?;
        let of_users: Vec<u8> =
            all.split_inclusive(|&byte| byte == 0).filter(|name| is_of_users(name)).flatten().copied().collect();
        reply_sized(&of_users, size, reply)
    }

    /// `REMOVEXATTR`.
    pub(in crate::virtio::fs) fn remove_xattr(&mut self, node: u64, fields: &mut Fields<'_>) -> Result<(), Errno> {
        let name = fields.text()?;
        self.for_change()?;
        if !is_of_users(name) {
            return Err(Errno::OPNOTSUPP);
        }
        removexattr(self.path(node)?, name)
    }
}

/// The bytes, or how many they are where the guest has asked for that, with a size of 0.
fn reply_sized(bytes: &[u8], size: usize, reply: &mut Reply) -> Result<(), Errno> {
    match size {
        0 => {
            reply.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
            reply.u32(0);
        }
        _ if bytes.len() > size => return Err(Errno::RANGE),
        _ => reply.0.extend_from_slice(bytes),
    }
    Ok(())
}
