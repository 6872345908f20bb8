//! Addresses and id ranges. Both come from one number per instance, so that neither is ever given twice at a time.

use std::net::Ipv4Addr;

/// First of the ids that instances are mapped to; below it are the host's own users.
const IDS_FIRST: u32 = 100_000;
/// Ids per instance.
pub(crate) const IDS_EACH: u32 = 65_536;
/// The user in an instance that is its pid 1 and that no program can be: the last.
pub(crate) const SUPERVISOR: u32 = IDS_EACH - 1;
/// The last number whose id range ends below 2^32.
const NUMBER_MAX: u32 = (u32::MAX - IDS_FIRST) / IDS_EACH - 1;

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
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The bridge's own address, the first.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(self.network + 1)
    }

    /// The interface other than `own` that has a part of this subnet already, by the text of `/proc/self/net/route`
    /// (columns: interface, destination, gateway, flags, …, mask; addresses as little-endian hexadecimal).
    pub(crate) fn taken(self, routes: &str, own: &str) -> Option<String> {
        let address = |hex: &str| u32::from_str_radix(hex, 16).ok().map(u32::swap_bytes);
        routes.lines().skip(1).find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (interface, to) = (fields.first()?, address(fields.get(1)?)?);
            let mask = address(fields.get(7)?)?;
            let both = mask & (u32::MAX << (32 - self.prefix));
            let overlaps = mask != 0 && to & both == self.network & both;
            (overlaps && *interface != own).then(|| (*interface).to_owned())
        })
    }

    /// The last number that an instance can have; the first is 2.
    fn last(self) -> u32 {
        ((1u32 << (32 - self.prefix)) - 2).min(NUMBER_MAX)
    }

    /// The number after `previous` that is not in use. Round-robin, so that an address comes back late.
    pub(crate) fn next(self, previous: u32, in_use: impl Fn(u32) -> bool) -> Option<u32> {
        let count = self.last() - 1;
        let start = previous.clamp(1, self.last()) - 1;
        (0..count).map(|n| 2 + (start + n) % count).find(|n| !in_use(*n))
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
        assert_eq!((subnet.gateway().to_string(), subnet.last()), ("10.9.8.1".into(), 6));
        let mut got = vec![];
        let mut previous = 0;
        for _ in 0..7 {
            previous = subnet.next(previous, |n| n == 4).unwrap();
            got.push(previous);
        }
        assert_eq!(got, [2, 3, 5, 6, 2, 3, 5]);
        assert_eq!(subnet.next(0, |_| true), None);
        for bad in ["10.0.0.1/16", "10.0.0.0", "10.0.0.0/30", "x/16"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
        assert!(ids_of(u32::MAX).checked_add(IDS_EACH - 1).is_some());
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
        assert_eq!(subnet.taken(&routes, "kb2"), Some("kb1".into()));
        assert_eq!(subnet.taken(&routes, "kb1"), None);
        assert_eq!("10.84.0.0/16".parse::<Subnet>().unwrap().taken(&routes, "kb2"), None);
        assert_eq!("10.0.0.0/8".parse::<Subnet>().unwrap().taken(&routes, "kb2"), Some("kb1".into()));
        assert_eq!("10.83.7.0/24".parse::<Subnet>().unwrap().taken(&routes, "kb2"), Some("kb1".into()));
    }
}
