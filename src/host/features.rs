//! File systems and network facilities of the host's kernel.

use std::fs::{self, File};
use std::io;
use std::ptr;

use super::diagnosis::{Check, Level};
use super::namespaces::{companion, try_in_child, unshare};

pub(super) fn check() -> Vec<Check> {
    vec![overlay(), erofs(), tun(), nftables()]
}

fn optional(name: &'static str, result: Result<String, String>, meaning: &'static str, remedy: &str) -> Check {
    let level = if result.is_ok() { Level::Ok } else { Level::Warning };
    let remedy = result.is_err().then(|| remedy.to_owned());
    Check { name, level, finding: result.unwrap_or_else(|problem| problem), meaning, remedy }
}

/// Mounts an overlay of two directories that every host has, in a mount namespace that ends with its process.
fn overlay() -> Check {
    let flags = libc::CLONE_NEWNS | companion();
    let mounted = try_in_child(move || {
        unshare(flags)?;
        mount(c"none", c"/", c"", libc::MS_REC | libc::MS_PRIVATE, c"")?;
        mount(c"overlay", c"/tmp", c"overlay", 0, c"lowerdir=/dev:/etc")
            .or_else(|_| mount(c"overlay", c"/tmp", c"overlay", 0, c"lowerdir=/etc:/usr"))
    });
    let found = mounted.map(|()| "can be mounted".to_owned()).map_err(|error| format!("cannot be mounted ({error})"));
    let remedy = "`modprobe overlay`; users other than root need Linux 5.11 or later";
    optional("overlayfs", found, "gives each container a writable layer over a shared image", remedy)
}

fn mount(
    source: &'static std::ffi::CStr,
    target: &'static std::ffi::CStr,
    kind: &'static std::ffi::CStr,
    flags: libc::c_ulong,
    data: &'static std::ffi::CStr,
) -> io::Result<()> {
    // SAFETY: all pointers are to constant strings, or null where the kernel takes null.
    let result = unsafe {
        let data = if data.is_empty() { ptr::null() } else { data.as_ptr().cast() };
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn erofs() -> Check {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let found = if known.lines().any(|line| line.split_ascii_whitespace().last() == Some("erofs")) {
        Ok("the kernel has it".to_owned())
    } else if has_module("erofs") {
        Ok("the kernel has it as a module that is not loaded".to_owned())
    } else {
        Err("the kernel has none".to_owned())
    };
    let meaning = "lets containers mount the very image that microVMs boot from; VMs have it in their own kernel";
    optional("EROFS", found, meaning, "use a kernel with CONFIG_EROFS_FS; containers take directories until then")
}

/// Whether the running kernel's package has module `name`, in any compression.
fn has_module(name: &str) -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let index = fs::read_to_string(format!("/lib/modules/{release}/modules.dep")).unwrap_or_default();
    index.lines().any(|line| {
        let file = line.split(':').next().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
        file.split('.').next() == Some(name)
    })
}

fn tun() -> Check {
    let opened = File::options().read(true).write(true).open("/dev/net/tun");
    let found = opened.map(|_| "/dev/net/tun can be opened".to_owned());
    let found = found.map_err(|error| format!("/dev/net/tun cannot be opened ({error})"));
    let remedy = "`modprobe tun`, and leave to use the device; in a container pass it in (--device /dev/net/tun)";
    optional("tun", found, "tap interfaces of microVMs (--network tap:NAME)", remedy)
}

fn nftables() -> Check {
    let found = match nftables_generation() {
        Ok(()) => Ok("the kernel answers".to_owned()),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            Ok("the kernel has netfilter; asking for more takes CAP_NET_ADMIN".to_owned())
        }
        Err(error) => Err(format!("the kernel does not answer ({error})")),
    };
    optional("nftables", found, "bridges, which come later", "`modprobe nf_tables`")
}

/// Asks nf_tables for the generation of its rules (NFT_MSG_GETGEN of linux/netfilter/nf_tables.h).
fn nftables_generation() -> io::Result<()> {
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};
    const NFNL_SUBSYS_NFTABLES: u16 = 10;
    const NFT_MSG_GETGEN: u16 = 16;
    const NLM_F_REQUEST: u16 = 1;
    const LENGTH: u32 = 20;

    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::NETFILTER))?;
    let mut request = Vec::with_capacity(20);
    request.extend(LENGTH.to_ne_bytes());
    request.extend((NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN).to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    request.extend([0; 12]); // sequence, port, and struct nfgenmsg: AF_UNSPEC, NFNETLINK_V0, resource 0
    send(&socket, &request, SendFlags::empty())?;
    let mut reply = [0; 256];
    // The kernel answers within the call to send, so that waiting would mean that it does not answer at all.
    let (length, _) = recv(&socket, reply.as_mut_slice(), RecvFlags::DONTWAIT)?;
    netlink_error(&reply[..length]).map_or(Ok(()), Err)
}

/// The error in a netlink message, where it is an error message that holds one.
fn netlink_error(message: &[u8]) -> Option<io::Error> {
    const NLMSG_ERROR: u16 = 2;
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    let code = i32::from_ne_bytes(message.get(16..20)?.try_into().ok()?);
    (kind == NLMSG_ERROR && code != 0).then(|| io::Error::from_raw_os_error(-code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netlink_errors_are_read() {
        let mut message = [0u8; 20];
        message[4..6].copy_from_slice(&2u16.to_ne_bytes());
        message[16..20].copy_from_slice(&(-libc::EPERM).to_ne_bytes());
        assert_eq!(netlink_error(&message).unwrap().raw_os_error(), Some(libc::EPERM));
        message[16..20].fill(0);
        assert!(netlink_error(&message).is_none());
        assert!(netlink_error(&message[..7]).is_none());
    }
}
