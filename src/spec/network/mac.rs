//! Addresses of network interfaces.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The address of one network interface: neither a group's nor zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MacAddress([u8; 6]);

/// Why a text is not a [`MacAddress`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no address for an interface: write six pairs of hexadecimal digits with colons between, the first of which \
     is even, such as 02:00:00:12:34:56"
)]
pub struct ParseMacError(String);

impl MacAddress {
    /// An address of the kind that anybody may use (locally administered), which no other call is likely to return.
    #[must_use]
    pub fn random() -> Self {
        // The standard library seeds its hashes with the operating system's random numbers, and each one differently.
        let [a, b, c, d, e, ..] = RandomState::new().build_hasher().finish().to_be_bytes();
        Self([0x02, a, b, c, d, e])
    }

    /// The bytes as they are sent.
    #[must_use]
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut pairs = text.split(':');
        let mut octet = || {
            let pair = pairs.next().filter(|pair| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit()))?;
            u8::from_str_radix(pair, 16).ok()
        };
        let octets = (|| Some([octet()?, octet()?, octet()?, octet()?, octet()?, octet()?]))();
        octets
            .filter(|octets| pairs.next().is_none() && octets[0] & 1 == 0 && *octets != [0; 6])
            .map(Self)
            .ok_or_else(|| ParseMacError(text.to_owned()))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        let address: MacAddress = "02:aB:00:1:2:3".parse::<MacAddress>().unwrap_or(MacAddress([2; 6]));
        assert_eq!(address.octets(), [2; 6], "single digits are none");
        let address: MacAddress = "52:54:00:aB:cd:0f".parse().unwrap();
        assert_eq!(address.octets(), [0x52, 0x54, 0, 0xab, 0xcd, 0x0f]);
        assert_eq!(address.to_string(), "52:54:00:ab:cd:0f");
        for text in [
            "",
            "x",
            "01:00:00:00:00:00",
            "00:00:00:00:00:00",
            "ff:ff:ff:ff:ff:ff",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "02-00-00-00-00-00",
            "+2:00:00:00:00:00",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn made_addresses_are_valid_and_differ() {
        let (one, other) = (MacAddress::random(), MacAddress::random());
        assert_ne!(one, other);
        assert_eq!(one.to_string().parse(), Ok(one));
    }
}
