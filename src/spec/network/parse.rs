//! Networks as they are written on the command line.

use std::net::Ipv4Addr;
use std::str::FromStr;

use super::{Link, Network, ParseMacError, TapNetwork, UserNetwork};
use crate::spec::{ParseRateError, Rate};

/// Why a text is not a [`Network`], or a network makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseNetworkError {
    /// Not one of the kinds.
    #[error("{0:?} is no network: use none, user or tap:NAME")]
    Kind(String),
    /// A kind that others have.
    #[error("{0:?} comes later: use none, user or tap:NAME")]
    Later(String),
    /// An option that this kind of network has not.
    #[error("{option:?} is none of its options: {known}")]
    Option {
        /// The option.
        option: String,
        /// Those that it has.
        known: &'static str,
    },
    /// An option's value makes no sense.
    #[error(
        "{key}={value} makes no sense: write an IPv4 address, for ip with the length of its prefix (such as ip=192.0.2.2/24)"
    )]
    Value {
        /// The option.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// The address of the interface makes no sense.
    #[error("mac: {0}")]
    Mac(ParseMacError),
    /// A limit makes no sense.
    #[error("{key}: {problem}")]
    Rate {
        /// The option.
        key: &'static str,
        /// What is wrong.
        problem: ParseRateError,
    },
    /// Nobody would keep this limit.
    #[error(
        "vhost and {0}= exclude each other: amphi sees none of the packets that the host's kernel moves. Leave one of them out"
    )]
    VhostLimit(&'static str),
    /// The gateway cannot be reached.
    #[error("gateway={0} is not in the network that ip=ADDRESS/PREFIX names")]
    Gateway(Ipv4Addr),
}

const USER_OPTIONS: &str = "mac=, rx-bandwidth=, rx-ops=, tx-bandwidth=, tx-ops=";
const TAP_OPTIONS: &str =
    "mac=, ip=ADDRESS/PREFIX, gateway=, dns= (may be repeated), rx-bandwidth=, rx-ops=, tx-bandwidth=, tx-ops=, vhost";

impl FromStr for Network {
    type Err = ParseNetworkError;

    /// `none`, `user[,OPTION]...` or `tap:NAME[,OPTION]...`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(',');
        let kind = parts.next().unwrap_or_default();
        let network = match kind.split_once(':') {
            None if kind == "none" => match parts.next() {
                None => Self::None,
                Some(option) => {
                    return Err(ParseNetworkError::Option { option: option.to_owned(), known: "it has none" });
                }
            },
            None if kind == "user" => {
                let mut link = Link::default();
                for option in parts {
                    if !link.set(option)? {
                        return Err(ParseNetworkError::Option { option: option.to_owned(), known: USER_OPTIONS });
                    }
                }
                Self::User(UserNetwork { link, ports: Vec::new() })
            }
            Some(("tap", name)) if !name.is_empty() => {
                let mut tap = TapNetwork::new(name);
                parts.try_for_each(|option| tap.set(option))?;
                Self::Tap(tap)
            }
            None if matches!(kind, "bridge" | "host") => return Err(ParseNetworkError::Later(kind.to_owned())),
            _ => return Err(ParseNetworkError::Kind(kind.to_owned())),
        };
        network.check()?;
        Ok(network)
    }
}

impl Link {
    /// Takes over an option that all kinds have; whether it is one.
    fn set(&mut self, option: &str) -> Result<bool, ParseNetworkError> {
        let Some((key, value)) = option.split_once('=') else { return Ok(false) };
        let rate = |key| match value.parse::<Rate>() {
            Ok(rate) => Ok(Some(rate)),
            Err(problem) => Err(ParseNetworkError::Rate { key, problem }),
        };
        match key {
            "mac" => self.mac = Some(value.parse().map_err(ParseNetworkError::Mac)?),
            "rx-bandwidth" => self.receive.bandwidth = rate("rx-bandwidth")?,
            "rx-ops" => self.receive.operations = rate("rx-ops")?,
            "tx-bandwidth" => self.transmit.bandwidth = rate("tx-bandwidth")?,
            "tx-ops" => self.transmit.operations = rate("tx-ops")?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

impl TapNetwork {
    fn set(&mut self, option: &str) -> Result<(), ParseNetworkError> {
        if self.link.set(option)? {
            return Ok(());
        }
        if option == "vhost" {
            self.vhost = true;
            return Ok(());
        }
        match option.split_once('=') {
            Some(("ip", value)) => {
                let network = value.split_once('/').and_then(|(address, prefix)| {
                    prefix.parse().ok().filter(|prefix| (1..=32).contains(prefix)).zip(address.parse().ok())
                });
                let wrong = || ParseNetworkError::Value { key: "ip", value: value.to_owned() };
                let (prefix, address) = network.ok_or_else(wrong)?;
                self.address = Some((address, prefix));
            }
            Some(("gateway", value)) => self.gateway = Some(address("gateway", value)?),
            Some(("dns", value)) => self.dns.push(address("dns", value)?),
            _ => return Err(ParseNetworkError::Option { option: option.to_owned(), known: TAP_OPTIONS }),
        }
        Ok(())
    }
}

fn address(key: &'static str, value: &str) -> Result<Ipv4Addr, ParseNetworkError> {
    value.parse().map_err(|_| ParseNetworkError::Value { key, value: value.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Network, ParseNetworkError> {
        text.parse()
    }

    #[test]
    fn each_kind_is_read_with_its_options() {
        assert_eq!(parse("none"), Ok(Network::None));
        assert_eq!(parse("user"), Ok(Network::User(UserNetwork::default())));
        let link = Link { mac: Some("02:00:00:00:00:01".parse().unwrap()), ..Link::default() };
        let user = UserNetwork { link, ports: Vec::new() };
        assert_eq!(parse("user,mac=02:00:00:00:00:01"), Ok(Network::User(user)));
        assert_eq!(parse("tap:tap0"), Ok(Network::Tap(TapNetwork::new("tap0"))));
        let full =
            parse("tap:t,ip=192.0.2.2/24,gateway=192.0.2.1,dns=192.0.2.3,dns=1.1.1.1,rx-bandwidth=1M/s,tx-ops=9");
        let Ok(Network::Tap(tap)) = full else { panic!("{full:?}") };
        assert_eq!(tap.address, Some(([192, 0, 2, 2].into(), 24)));
        assert_eq!(tap.gateway, Some([192, 0, 2, 1].into()));
        assert_eq!(tap.dns.len(), 2);
        assert_eq!(tap.link.receive.bandwidth, "1M/s".parse().ok());
        assert_eq!(tap.link.transmit.operations, "9".parse().ok());
        assert!(!tap.vhost);
        assert!(matches!(parse("tap:t,vhost,mac=02:00:00:00:00:01"), Ok(Network::Tap(tap)) if tap.vhost));
    }

    #[test]
    fn a_network_that_the_kernel_moves_has_no_limits() {
        for limit in ["rx-bandwidth", "rx-ops", "tx-bandwidth", "tx-ops"] {
            for text in [format!("tap:t,vhost,{limit}=1/s"), format!("tap:t,{limit}=1/s,vhost")] {
                assert_eq!(parse(&text), Err(ParseNetworkError::VhostLimit(limit)), "{text}");
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [
            "",
            "None",
            "bridge",
            "host",
            "web",
            "tap",
            "tap:",
            "none,mac=02:00:00:00:00:01",
            "user,",
            "user,mac",
            "user,mac=1",
            "user,ip=192.0.2.2/24",
            "user,rx-ops=0",
            "tap:t,ip=192.0.2.2",
            "tap:t,ip=192.0.2.2/0",
            "tap:t,ip=192.0.2.2/33",
            "tap:t,ip=::1/64",
            "tap:t,dns=x",
            "tap:t,gateway=192.0.2.1",
            "tap:t,ip=192.0.2.2/24,gateway=192.0.3.1",
            "tap:t,speed=1",
            "tap:t,vhost=maybe",
            "user,vhost",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("bridge").unwrap_err().to_string().contains("comes later"));
    }
}
