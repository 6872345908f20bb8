//! A block of addresses, `10.0.0.0/8` or `2001:db8::/32`; an address alone is a block of one.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    /// Bits that all addresses of the block have in common.
    prefix: u8,
}

/// The text is no block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a block of addresses such as `10.0.0.0/8` or `2001:db8::/32`, or has bits set behind its prefix"
)]
pub struct CidrError(String);

/// The address as a number, and how many bits it has.
fn bits(address: IpAddr) -> (u128, u8) {
    match address.to_canonical() {
        IpAddr::V4(v4) => (u32::from(v4).into(), 32),
        IpAddr::V6(v6) => (v6.into(), 128),
    }
}

/// The first `prefix` of `width` bits.
fn head(number: u128, width: u8, prefix: u8) -> u128 {
    number.checked_shr(u32::from(width - prefix)).unwrap_or(0)
}

impl Cidr {
    /// Whether the address is in the block. An IPv4 address that came as IPv6 is one of IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let ((own, own_width), (other, width)) = (bits(self.address), bits(address));
        own_width == width && head(own, width, self.prefix) == head(other, width, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || CidrError(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let address = address.to_canonical();
        let (number, width) = bits(address);
        let prefix = prefix.map_or(Ok(width), |p| p.parse::<u8>().map_err(|_| wrong()))?;
        let behind = number.checked_shl(128 - u32::from(width) + u32::from(prefix)).unwrap_or(0);
        if prefix > width || behind != 0 {
            return Err(wrong());
        }
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_the_addresses_that_share_its_prefix() {
        for (block, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("10.0.0.0/8", "::ffff:10.1.2.3", "::10.1.2.3"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("::/0", "::1", "127.0.0.1"),
        ] {
            let block: Cidr = block.parse().unwrap();
            assert!(block.contains(inside.parse().unwrap()), "{block} {inside}");
            assert!(!block.contains(outside.parse().unwrap()), "{block} {outside}");
            assert_eq!(block.to_string().parse::<Cidr>(), Ok(block));
        }
        for wrong in
            ["", "10.0.0.0/33", "10.0.0.1/8", "10.0.0.0/x", "host/8", "::/129", "2001:db8::1/32", "10/8"]
        {
            assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
        }
    }
}
