//! Names inside: where the services of an environment find each other.
//!
//! Every environment has a small [`NetworkNumber`], and with it one *service address* in a range that no instance ever
//! gets. `SERVICE.internal` means that address; the edge listens there and sends the request on, so that traffic inside
//! switches in the same generation as traffic from outside. The arithmetic is here, once, because the provider (which
//! writes the names), the edge (which listens) and the packet filter must agree on it.

use crate::ids::{ServiceName, number};
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

number!(
    /// The number of an environment within its state folder, from 1; 0 for one that an older kiln made. It is kept as long
    /// as the environment has anything that runs.
    NetworkNumber
);

impl NetworkNumber {
    /// Whether it is one: rows of older kilns have none.
    pub fn is_given(self) -> bool {
        self.0 != 0
    }
}

/// The port of every service at its name, whatever port its instances listen on.
pub const INTERNAL_PORT: u16 = 80;

/// The name of a service inside its environment.
pub fn internal_host(service: &ServiceName) -> String {
    format!("{service}.internal")
}

/// The addresses of all environments' services: a block of IPv4 addresses, counted from its end. Its last address is
/// that of no environment, because it is the broadcast address of the network that the block ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceRange {
    first: u32,
    prefix: u8,
}

/// The text is no range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a range of service addresses: expected an IPv4 network of 8 to 31 bits, as in `10.83.224.0/19`"
)]
pub struct ServiceRangeError(String);

impl ServiceRange {
    /// The block that begins at `first`; none if its prefix is not one of 8 to 31 bits or `first` is not its first address.
    pub fn new(first: Ipv4Addr, prefix: u8) -> Option<Self> {
        let range = Self { first: first.into(), prefix };
        ((8..=31).contains(&prefix) && range.first & (range.size() - 1) == 0).then_some(range)
    }

    fn size(self) -> u32 {
        1 << (32 - self.prefix)
    }

    /// Its first address.
    pub fn first(self) -> Ipv4Addr {
        self.first.into()
    }

    /// Bits of the network part.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// How many environments can have an address.
    pub fn capacity(self) -> u32 {
        self.size() - 1
    }

    /// The service address of an environment; none without a number, or if the block is too small for it.
    pub fn address(self, network: NetworkNumber) -> Option<Ipv4Addr> {
        let number = u32::try_from(network.0).ok()?;
        (1..=self.capacity())
            .contains(&number)
            .then(|| Ipv4Addr::from(self.first + (self.size() - 1 - number)))
    }

    /// Whose service address this is; none if it is outside, or the broadcast address.
    pub fn network(self, address: Ipv4Addr) -> Option<NetworkNumber> {
        let offset = u32::from(address).checked_sub(self.first).filter(|offset| *offset < self.size())?;
        let number = self.size() - 1 - offset;
        (number > 0).then_some(NetworkNumber(number.into()))
    }

    /// Whether the address is in the block.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & !(self.size() - 1) == self.first
    }
}

impl std::fmt::Display for ServiceRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.first(), self.prefix)
    }
}

impl std::str::FromStr for ServiceRange {
    type Err = ServiceRangeError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split_once('/').and_then(|(a, p)| Some((a.parse().ok()?, p.parse().ok()?)));
        let range = parts.and_then(|(first, prefix)| Self::new(first, prefix));
        range.ok_or_else(|| ServiceRangeError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_addresses_are_two_sides_of_one_thing() {
        let range: ServiceRange = "10.83.224.0/19".parse().unwrap();
        assert_eq!((range.to_string().as_str(), range.capacity()), ("10.83.224.0/19", 8191));
        let address = |n| range.address(NetworkNumber(n)).map(|a| a.to_string());
        assert_eq!(address(0), None);
        assert_eq!(address(1).as_deref(), Some("10.83.255.254"));
        assert_eq!(address(8191).as_deref(), Some("10.83.224.0"));
        assert_eq!(address(8192), None);
        assert_eq!(address(u64::MAX), None);
        for n in [1, 2, 300, 8191] {
            let address = range.address(NetworkNumber(n)).unwrap();
            assert!(range.contains(address));
            assert_eq!(range.network(address), Some(NetworkNumber(n)));
        }
        for outside in ["10.83.223.255", "10.84.0.0", "10.83.255.255", "0.0.0.0", "255.255.255.255"] {
            assert_eq!(range.network(outside.parse().unwrap()), None, "{outside}");
        }
        assert!(range.contains("10.83.255.255".parse().unwrap()));
        assert!(!range.contains("10.83.223.255".parse().unwrap()));
    }

    #[test]
    fn only_whole_blocks_are_ranges() {
        for bad in ["", "10.83.224.0", "10.83.224.1/19", "10.83.0.0/7", "10.83.0.0/32", "x/19", "::1/19"] {
            assert!(bad.parse::<ServiceRange>().is_err(), "{bad}");
        }
        let least: ServiceRange = "10.9.8.6/31".parse().unwrap();
        assert_eq!(least.address(NetworkNumber(1)).unwrap().to_string(), "10.9.8.6");
        assert_eq!(least.address(NetworkNumber(2)), None);
    }
}
