//! Addresses and id ranges. Both come from one number per instance, so that neither is ever given twice at a time.

use kiln_model::ServiceRange;
use std::net::Ipv4Addr;

/// First of the ids that instances are mapped to; below it are the host's own users.
const IDS_FIRST: u32 = 100_000;
/// Ids per instance.
pub(crate) const IDS_EACH: u32 = 65_536;
/// The user in an instance that is its pid 1 and that no program can be: the last.
pub(crate) const SUPERVISOR: u32 = IDS_EACH - 1;
/// The last number whose id range ends below 2^32.
const NUMBER_MAX: u32 = (u32::MAX - IDS_FIRST) / IDS_EACH - 1;

/// Addresses of one bridge. The kernel's bridges have at most 1,024 ports.
const BLOCK: u32 = 1024;

/// A part of a subnet that one bridge serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block {
    /// Which.
    pub index: u32,
    /// The bridge's own address.
    pub gateway: Ipv4Addr,
    /// Bits of the network part.
    pub prefix: u8,
}

/// The addresses of one state folder's instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    network: u32,
    prefix: u8,
}

/// The text is not a usable subnet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a usable subnet: expected an IPv4 network of 8 to 29 bits, as in `10.83.0.0/16`")]
pub struct SubnetError(String);

impl Default for Subnet {
    fn default() -> Self {
        Self { network: u32::from(Ipv4Addr::new(10, 83, 0, 0)), prefix: 16 }
    }
}

impl std::str::FromStr for Subnet {
    type Err = SubnetError;
    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let parts =
            text.split_once('/').and_then(|(a, p)| Some((a.parse::<Ipv4Addr>().ok()?, p.parse().ok()?)));
        match parts {
            Some((address, prefix)) if (8..=29).contains(&prefix) => {
                let subnet = Self { network: u32::from(address), prefix };
                if subnet.network & !(u32::MAX << (32 - prefix)) == 0 {
                    return Ok(subnet);
                }
                Err(SubnetError(text.to_owned()))
            }
            _ => Err(SubnetError(text.to_owned())),
        }
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.network), self.prefix)
    }
}

impl Subnet {
    /// Bits of the network part.
    pub(crate) fn prefix(self) -> u8 {
        self.prefix
    }

    /// Its first address, which names it.
    pub(crate) fn first(self) -> Ipv4Addr {
        Ipv4Addr::from(self.network)
    }

    /// The top eighth, which no instance gets: there the services of each environment are found. At least two addresses,
    /// of which the last is the subnet's broadcast address and nobody's.
    pub fn services(self) -> ServiceRange {
        let prefix = (self.prefix + 3).min(31);
        let first = self.network + ((1 << (32 - self.prefix)) - (1 << (32 - prefix)));
        // The end of a legal subnet is a legal range.
        ServiceRange::new(Ipv4Addr::from(first), prefix).unwrap_or_else(|| unreachable!("{self}"))
    }

    /// The interface, none of `own`, that has a part of this subnet already, by the text of `/proc/self/net/route`
    /// (columns: interface, destination, gateway, flags, …, mask; addresses as little-endian hexadecimal).
    pub(crate) fn taken(self, routes: &str, own: impl Fn(&str) -> bool) -> Option<String> {
        let address = |hex: &str| u32::from_str_radix(hex, 16).ok().map(u32::swap_bytes);
        routes.lines().skip(1).find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (interface, to) = (fields.first()?, address(fields.get(1)?)?);
            let mask = address(fields.get(7)?)?;
            let both = mask & (u32::MAX << (32 - self.prefix));
            let overlaps = mask != 0 && to & both == self.network & both;
            (overlaps && !own(interface)).then(|| (*interface).to_owned())
        })
    }

    /// The last number that an instance can have; the first is 2.
    fn last(self) -> u32 {
        (u32::from(self.services().first()) - self.network - 1).min(NUMBER_MAX)
    }

    /// The number after `previous` that is not in use. Round-robin, so that an address comes back late.
    pub(crate) fn next(self, previous: u32, in_use: impl Fn(u32) -> bool) -> Option<u32> {
        let count = self.last() - 1;
        let start = previous.clamp(1, self.last()) - 1;
        (0..count).map(|n| 2 + (start + n) % count).find(|n| self.is_for_an_instance(*n) && !in_use(*n))
    }

    /// Every block has a network address, its bridge's and a broadcast address.
    fn is_for_an_instance(self, number: u32) -> bool {
        (2..BLOCK - 1).contains(&(number % BLOCK))
    }

    /// The block of a number.
    pub(crate) fn block(self, number: u32) -> Block {
        let index = number / BLOCK;
        let prefix = self.prefix.max(32 - BLOCK.trailing_zeros() as u8);
        Block { index, gateway: Ipv4Addr::from(self.network + index * BLOCK + 1), prefix }
    }

    /// The address of a number.
    pub(crate) fn address(self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.network + number)
    }
}

/// The first id of a number's range.
pub(crate) fn ids_of(number: u32) -> u32 {
    IDS_FIRST + IDS_EACH * number.min(NUMBER_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_round_and_skip_those_in_use() {
        let subnet: Subnet = "10.9.8.0/29".parse().unwrap();
        assert_eq!((subnet.block(2).gateway.to_string(), subnet.last()), ("10.9.8.1".into(), 5));
        let mut got = vec![];
        let mut previous = 0;
        for _ in 0..7 {
            previous = subnet.next(previous, |n| n == 4).unwrap();
            got.push(previous);
        }
        assert_eq!(got, [2, 3, 5, 2, 3, 5, 2]);
        assert_eq!(subnet.next(0, |_| true), None);
        for bad in ["10.0.0.1/16", "10.0.0.0", "10.0.0.0/30", "x/16"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
        assert!(ids_of(u32::MAX).checked_add(IDS_EACH - 1).is_some());
    }

    #[test]
    fn a_bridge_has_no_more_ports_than_the_kernel_gives_it() {
        let subnet = Subnet::default();
        let (mut previous, mut ports) = (0, std::collections::BTreeMap::<u32, u32>::new());
        for _ in 0..3000 {
            previous = subnet.next(previous, |_| false).unwrap();
            let block = subnet.block(previous);
            let (address, gateway) = (u32::from(subnet.address(previous)), u32::from(block.gateway));
            assert_eq!((address ^ gateway) >> (32 - block.prefix), 0, "{previous}");
            assert!(address != gateway && !address.is_multiple_of(1024) && address % 1024 != 1023);
            *ports.entry(block.index).or_default() += 1;
        }
        assert_eq!(ports.values().max(), Some(&1021));
        assert_eq!(subnet.block(1024 * 63 + 5).gateway, Ipv4Addr::new(10, 83, 252, 1));
        assert_eq!(subnet.block(5).prefix, 22);
    }

    #[test]
    fn service_addresses_are_the_top_eighth_and_no_instance_gets_one() {
        for (subnet, services, capacity) in [
            ("10.83.0.0/16", "10.83.224.0/19", 8191),
            ("10.9.8.0/24", "10.9.8.224/27", 31),
            ("10.9.8.0/29", "10.9.8.6/31", 1),
            ("10.9.8.0/28", "10.9.8.14/31", 1),
            ("10.0.0.0/8", "10.224.0.0/11", (1 << 21) - 1),
        ] {
            let subnet: Subnet = subnet.parse().unwrap();
            assert_eq!(
                (subnet.services().to_string().as_str(), subnet.services().capacity()),
                (services, capacity)
            );
            assert!(!subnet.services().contains(subnet.address(subnet.last())), "{subnet}");
            assert!(subnet.last() >= 5, "{subnet}");
        }
    }

    #[test]
    fn another_interface_with_the_same_addresses_is_seen() {
        let head = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n";
        let route = |interface: &str, to: &str, mask: &str| {
            format!("{interface} {to} 00000000 0001 0 0 0 {mask} 0 0 0\n")
        };
        let routes = format!(
            "{head}{}{}",
            route("eth0", "00000000", "00000000"),
            route("kb1", "0000530A", "0000FFFF")
        );
        let subnet: Subnet = "10.83.0.0/16".parse().unwrap();
        assert_eq!(subnet.taken(&routes, |name| name == "kb2"), Some("kb1".into()));
        assert_eq!(subnet.taken(&routes, |name| name == "kb1"), None);
        assert_eq!("10.84.0.0/16".parse::<Subnet>().unwrap().taken(&routes, |name| name == "kb2"), None);
        assert_eq!(
            "10.0.0.0/8".parse::<Subnet>().unwrap().taken(&routes, |name| name == "kb2"),
            Some("kb1".into())
        );
        assert_eq!(
            "10.83.7.0/24".parse::<Subnet>().unwrap().taken(&routes, |name| name == "kb2"),
            Some("kb1".into())
        );
    }
}
