//! What a microVM's network device is connected to, and what the guest is told of it.

use std::net::Ipv4Addr;
use std::thread::{self, JoinHandle};

use amphi_devices::rate_limiter::RateLimits;
use amphi_devices::virtio::net::{Backend, FrameSocket, Net, Settings, Tap, TapError, VhostError, VhostNet};
use amphi_guest_init::Interface;

use super::error::VmError;
use super::passt::{Passt, PasstError};
use super::signals;
use crate::spec::{Link, LinkLimits, MacAddress, Network};

/// The guest's module for its network device.
pub(super) const MODULE: &str = "virtio_net";

/// The addresses of a `user` network, those that users of other VMMs know.
pub(super) const USER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
pub(super) const USER_PREFIX: u8 = 24;
pub(super) const USER_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub(super) const USER_DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// The largest IP packet there. Nothing is offloaded to passt, so large packets are what makes it fast; this is the
/// largest multiple of 16 whose frame passt takes.
pub(super) const USER_MTU: u16 = 65_520;

/// Why there is no network for a microVM.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The tap interface cannot be had.
    #[error("--network tap:{name} cannot be had{hint}")]
    Tap {
        /// The interface.
        name: String,
        /// What to do; empty, or in parentheses.
        hint: String,
        /// Why.
        source: TapError,
    },
    /// The host's kernel cannot move the packets.
    #[error("--network tap:{name},vhost cannot be had{hint}")]
    Vhost {
        /// The interface.
        name: String,
        /// What to do, in parentheses.
        hint: &'static str,
        /// Why.
        source: VhostError,
    },
    /// There is no passt, or it cannot do its work.
    #[error(transparent)]
    Passt(#[from] PasstError),
}

/// A microVM's network device.
#[allow(clippy::large_enum_variant, reason = "a machine has one at most, and moves it once")]
pub(super) enum NetworkDevice {
    /// amphi moves its frames.
    Own(Net),
    /// The host's kernel does.
    Vhost(PendingVhost),
}

/// A device that is being made, of which most is waiting for the host's kernel.
pub(super) struct PendingVhost {
    /// The tap interface.
    name: String,
    thread: JoinHandle<Result<VhostNet, VhostError>>,
}

impl PendingVhost {
    fn start(tap: Tap, name: &str, settings: Settings) -> Result<Self, VmError> {
        let body = move || VhostNet::new(tap, settings);
        let thread = signals::blocked(|| thread::Builder::new().name("vhost".to_owned()).spawn(body));
        Ok(Self { name: name.to_owned(), thread: thread.map_err(VmError::host("start a thread"))? })
    }

    /// The device, when it is made.
    pub(super) fn finish(self) -> Result<VhostNet, VmError> {
        let device = self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok(device.map_err(|source| vhost_error(&self.name, source))?)
    }
}

/// What is on the other end of a machine's network device, if that is a process. The machine's end ends it.
pub(super) struct Connection(Option<Passt>);

impl Connection {
    /// Waits until the other end is ready for a guest.
    pub(super) fn wait_ready(&mut self) -> Result<(), VmError> {
        self.0.as_mut().map(Passt::wait_ready).transpose().map_err(NetworkError::from)?;
        Ok(())
    }
}

/// Connects a device to `network`. A process on the other end gets ready meanwhile.
pub(super) fn connect(network: &Network) -> Result<(Option<NetworkDevice>, Connection), VmError> {
    let (device, passt) = match network {
        Network::None => return Ok((None, Connection(None))),
        Network::User(user) => {
            let (passt, socket) = Passt::start(&user.ports).map_err(NetworkError::from)?;
            let device = device(Box::new(FrameSocket::new(socket)), &user.link, USER_MTU)?;
            (device, Some(passt))
        }
        Network::Tap(tap) => {
            let backend = Tap::open(&tap.name).map_err(|source| tap_error(&tap.name, source))?;
            let mtu = backend.mtu();
            if tap.vhost {
                let device = PendingVhost::start(backend, &tap.name, settings(&tap.link, mtu))?;
                return Ok((Some(NetworkDevice::Vhost(device)), Connection(None)));
            }
            (device(Box::new(backend), &tap.link, mtu)?, None)
        }
    };
    Ok((Some(NetworkDevice::Own(device)), Connection(passt)))
}

fn device(backend: Box<dyn Backend>, link: &Link, mtu: u16) -> Result<Net, VmError> {
    Net::new(backend, settings(link, mtu)).map_err(VmError::host("make the network device"))
}

fn settings(link: &Link, mtu: u16) -> Settings {
    Settings {
        mac: link.mac.unwrap_or_else(MacAddress::random).octets(),
        mtu: Some(mtu),
        receive: limits(link.receive),
        transmit: limits(link.transmit),
    }
}

fn limits(limits: LinkLimits) -> RateLimits {
    RateLimits { bandwidth: limits.bandwidth.map(Into::into), operations: limits.operations.map(Into::into) }
}

fn tap_error(name: &str, source: TapError) -> NetworkError {
    let hint = match &source {
        TapError::Permission { .. } => {
            format!(" (as root, this makes one that you may use: ip tuntap add {name} mode tap user YOU)")
        }
        TapError::Busy { .. } => " (end the program that uses it, or name another one)".to_owned(),
        TapError::Kind { .. } => " (name a tap interface, or one that does not exist, to have it made)".to_owned(),
        TapError::Control(_) => " (it takes the kernel module tun, and permission for /dev/net/tun)".to_owned(),
        TapError::Name(_) | TapError::SetUp { .. } => String::new(),
    };
    NetworkError::Tap { name: name.to_owned(), hint, source }
}

fn vhost_error(name: &str, source: VhostError) -> NetworkError {
    let hint = match &source {
        VhostError::Open(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            " (it takes permission to read and write /dev/vhost-net; or leave vhost out)"
        }
        VhostError::Open(_) => {
            " (the host's kernel needs the module vhost_net: modprobe vhost_net; or leave vhost out)"
        }
        VhostError::SetUp { .. } | VhostError::Limits => " (leave vhost out)",
    };
    NetworkError::Vhost { name: name.to_owned(), hint, source }
}

/// What the guest does with its network interface; `None` where it has none.
pub(super) fn interface(network: &Network) -> Option<Interface> {
    let octets = |address: Ipv4Addr| address.octets();
    match network {
        Network::None => None,
        Network::User(_) => Some(Interface {
            address: Some((USER_ADDRESS.octets(), USER_PREFIX)),
            gateway: Some(USER_GATEWAY.octets()),
            dns: vec![USER_DNS.octets()],
        }),
        Network::Tap(tap) => Some(Interface {
            address: tap.address.map(|(address, prefix)| (address.octets(), prefix)),
            gateway: tap.gateway.map(octets),
            dns: tap.dns.iter().copied().map(octets).collect(),
        }),
    }
}
