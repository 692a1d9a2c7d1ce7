//! Ports of the host that lead to the workload.

use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A protocol that has ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the host that leads to one of the workload's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// The host's address; `None` is all it has.
    pub address: Option<IpAddr>,
    /// The host's port.
    pub host: u16,
    /// The workload's port.
    pub guest: u16,
    /// For which protocol.
    pub protocol: Protocol,
}

/// Why a text is not a [`PortMapping`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no port mapping: write [IP:]HOST:GUEST, each port 1 to 65535, and /udp after it for UDP (such as 127.0.0.1:8080:80)"
)]
pub struct ParsePortError(String);

impl FromStr for PortMapping {
    type Err = ParsePortError;

    /// `[IP:]HOST:GUEST[/tcp|/udp]`, an IPv6 address in brackets.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| ParsePortError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<PortMapping> {
    let (ports, protocol) = match text.rsplit_once('/') {
        None => (text, Protocol::Tcp),
        Some((ports, "tcp")) => (ports, Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some(_) => return None,
    };
    let port = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|&port: &u16| digits && port > 0)
    };
    let (rest, guest) = ports.rsplit_once(':')?;
    let (address, host) = rest.rsplit_once(':').map_or((None, rest), |(address, host)| (Some(address), host));
    let address = match address {
        None => None,
        Some(address) => Some(match address.strip_prefix('[').and_then(|address| address.strip_suffix(']')) {
            Some(address) => IpAddr::V6(address.parse().ok()?),
            None => IpAddr::V4(address.parse().ok()?),
        }),
    };
    Some(PortMapping { address, host: port(host)?, guest: port(guest)?, protocol })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read() {
        let mapping = |address: Option<&str>, host, guest, protocol| PortMapping {
            address: address.map(|address| address.parse().unwrap()),
            host,
            guest,
            protocol,
        };
        for (text, expected) in [
            ("8080:80", mapping(None, 8080, 80, Protocol::Tcp)),
            ("8080:80/tcp", mapping(None, 8080, 80, Protocol::Tcp)),
            ("127.0.0.1:53:5353/udp", mapping(Some("127.0.0.1"), 53, 5353, Protocol::Udp)),
            ("[::1]:65535:1", mapping(Some("::1"), 65535, 1, Protocol::Tcp)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in [
            "",
            "80",
            ":80",
            "80:",
            "0:80",
            "80:0",
            "80:65536",
            "+80:80",
            "a:80:80",
            "::1:80:80",
            "80:80/sctp",
            "1-2:3-4",
        ] {
            assert!(text.parse::<PortMapping>().is_err(), "{text}");
        }
    }
}
