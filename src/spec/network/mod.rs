//! How a workload reaches other machines, and they it.

mod mac;
mod parse;
mod port;

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

pub use mac::{MacAddress, ParseMacError};
pub use parse::ParseNetworkError;
pub use port::{ParsePortError, PortMapping, Protocol};

use super::Rate;

/// The network that a workload is in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Network {
    /// Nothing but `lo`.
    #[default]
    None,
    /// The host's own connections, made for the workload by a program that needs no privilege (passt).
    User(UserNetwork),
    /// A tap interface of the host. MicroVMs only.
    Tap(TapNetwork),
}

/// What goes for every network interface of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Link {
    /// The interface's address; `None` has one made.
    pub mac: Option<MacAddress>,
    /// Limits on what the workload receives.
    pub receive: LinkLimits,
    /// Limits on what the workload sends.
    pub transmit: LinkLimits,
}

impl Link {
    /// The option of the first limit that there is.
    fn first_limit(&self) -> Option<&'static str> {
        let limits = [
            ("rx-bandwidth", self.receive.bandwidth),
            ("rx-ops", self.receive.operations),
            ("tx-bandwidth", self.transmit.bandwidth),
            ("tx-ops", self.transmit.operations),
        ];
        limits.iter().find(|(_, limit)| limit.is_some()).map(|(option, _)| *option)
    }
}

/// Limits on one direction of an interface. `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LinkLimits {
    /// Bytes a second.
    pub bandwidth: Option<Rate>,
    /// Packets a second, as large as the two sides exchange them: up to 64 KiB.
    pub operations: Option<Rate>,
}

/// The network that passt gives.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UserNetwork {
    /// The interface.
    pub link: Link,
    /// Ports of the host that lead to the workload.
    pub ports: Vec<PortMapping>,
}

/// A tap interface, and how the workload is addressed there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapNetwork {
    /// The tap interface's name. Made if there is none, which takes privilege.
    pub name: String,
    /// The interface in the workload.
    pub link: Link,
    /// The workload's address and the length of its network's prefix. `None` leaves its interface without.
    pub address: Option<(Ipv4Addr, u8)>,
    /// The default route; within the address's network.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers, written to `/etc/resolv.conf`.
    pub dns: Vec<Ipv4Addr>,
    /// Whether the host's kernel moves the packets (vhost-net), and not amphi. Not to be had with limits.
    #[serde(default)]
    pub vhost: bool,
}

impl TapNetwork {
    /// The tap interface `name`, with nothing else said.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), link: Link::default(), address: None, gateway: None, dns: Vec::new(), vhost: false }
    }
}

impl Network {
    /// Whether there is none.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }

    /// The rules that involve more than one setting.
    pub(super) fn check(&self) -> Result<(), ParseNetworkError> {
        let Self::Tap(tap) = self else { return Ok(()) };
        if let Some(limit) = tap.link.first_limit().filter(|_| tap.vhost) {
            return Err(ParseNetworkError::VhostLimit(limit));
        }
        match (tap.address, tap.gateway) {
            (Some((_, prefix)), _) if prefix == 0 || prefix > 32 => {
                Err(ParseNetworkError::Value { key: "ip", value: format!("a prefix of {prefix} bits") })
            }
            (None, Some(gateway)) => Err(ParseNetworkError::Gateway(gateway)),
            (Some((address, prefix)), Some(gateway)) if !same_network(address, gateway, prefix) => {
                Err(ParseNetworkError::Gateway(gateway))
            }
            _ => Ok(()),
        }
    }
}

/// Whether the first `prefix` bits, 1 to 32, are the same.
fn same_network(one: Ipv4Addr, other: Ipv4Addr, prefix: u8) -> bool {
    (one.to_bits() ^ other.to_bits()) >> (32 - u32::from(prefix)) == 0
}
