//! Whose the files of a share are.

use rustix::io::Errno;

/// Who a request is from, by the guest's numbers.
#[derive(Debug, Clone, Copy)]
pub(in crate::virtio::fs) struct Caller {
    pub(in crate::virtio::fs) user: u32,
    pub(in crate::virtio::fs) group: u32,
}

/// The user and group that stand for those that the guest has no number for.
const NOBODY: u32 = 65_534;

/// How the users of the guest are users of the host.
///
/// The guest's kernel decides who of its users may do what, by the owners and modes that it is told. The host's kernel decides
/// what the thread may do that carries requests out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// They are the same: what user N of the guest makes belongs to user N of the host.
    ///
    /// The thread that carries requests out is root's, with at least the capabilities `CHOWN`, `DAC_OVERRIDE`, `FOWNER`,
    /// `FSETID`, `SETGID` and `SETUID`, and changes of its users leave them as they are (`SECBIT_NO_SETUID_FIXUP`). Its
    /// umask is 0.
    Same,
    /// All are one user of the host, the one that carries requests out, whom the guest sees as root; everybody else's files
    /// are nobody's. The thread's umask is 0.
    One {
        /// The host's user.
        user: u32,
        /// The host's group.
        group: u32,
    },
}

impl Owners {
    /// The owner and group that the guest sees.
    pub(super) fn seen(self, user: u32, group: u32) -> (u32, u32) {
        let as_root = |number, own| if number == own { 0 } else { NOBODY };
        match self {
            Self::Same => (user, group),
            Self::One { user: own_user, group: own_group } => (as_root(user, own_user), as_root(group, own_group)),
        }
    }

    /// The host's user and group for those of the guest.
    pub(super) fn on_host(self, user: Option<u32>, group: Option<u32>) -> Result<(Option<u32>, Option<u32>), Errno> {
        let from_root = |number, own| match number {
            None => Ok(None),
            Some(0) => Ok(Some(own)),
            Some(_) => Err(Errno::PERM),
        };
        match self {
            // All ones mean "as it is" to the kernel.
            Self::Same if user == Some(u32::MAX) || group == Some(u32::MAX) => Err(Errno::INVAL),
            Self::Same => Ok((user, group)),
            Self::One { user: own_user, group: own_group } => {
                Ok((from_root(user, own_user)?, from_root(group, own_group)?))
            }
        }
    }

    /// Makes files belong to `caller` as long as the value lives.
    pub(super) fn act_as(self, caller: Caller) -> Result<Acting, Errno> {
        if self != Self::Same || (caller.user, caller.group) == (0, 0) {
            return Ok(Acting(false));
        }
        let acting = Acting(true);
        // SAFETY: these calls take numbers, and concern this thread only. They return what was before, and all ones are no
        // number, so that a second call tells what is now.
        let is = unsafe {
            libc::setfsgid(caller.group);
            libc::setfsuid(caller.user);
            (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX))
        };
        if (is.0.cast_unsigned(), is.1.cast_unsigned()) == (caller.user, caller.group) {
            Ok(acting)
        } else {
            // No such number in this user namespace.
            Err(Errno::INVAL)
        }
    }
}

/// While this lives, the thread makes files as somebody else.
pub(super) struct Acting(bool);

impl Drop for Acting {
    fn drop(&mut self) {
        if self.0 {
            // SAFETY: as above. Back to root is always possible: it is the thread's real user.
            unsafe {
                libc::setfsuid(0);
                libc::setfsgid(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_is_root_to_the_guest() {
        let one = Owners::One { user: 1000, group: 1001 };
        assert_eq!(one.seen(1000, 1001), (0, 0));
        assert_eq!(one.seen(0, 1000), (NOBODY, NOBODY));
        assert_eq!(one.on_host(Some(0), None), Ok((Some(1000), None)));
        assert_eq!(one.on_host(None, Some(5)), Err(Errno::PERM));
        assert_eq!(Owners::Same.seen(7, 8), (7, 8));
        assert_eq!(Owners::Same.on_host(Some(7), None), Ok((Some(7), None)));
        assert_eq!(Owners::Same.on_host(None, Some(u32::MAX)), Err(Errno::INVAL));
    }
}
