//! The PROXY protocol, version 2 (haproxy, doc/proxy-protocol.txt): who a connection really is from, told by a proxy in front
//! of the edge, and to an instance behind it.
//!
//! A header is believed from addresses that the operator named, and there it has to come: to guess whether one is there would
//! let a client write its own.

use crate::limits::{PROXY_HEADER_BYTES_MAX, PROXY_HEADER_TIMEOUT};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes before the addresses.
const PREFIX: usize = 16;
/// Version 2 with the command LOCAL: the proxy's own connection, as for a health check.
const LOCAL: u8 = 0x20;
/// Version 2 with the command PROXY.
const PROXY: u8 = 0x21;
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;

/// Between whom a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ends {
    /// The client.
    pub(crate) peer: SocketAddr,
    /// What it connected to.
    pub(crate) local: SocketAddr,
}

/// Why a header was not accepted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("it does not begin with a PROXY protocol header of version 2")]
    Missing,
    #[error("its PROXY protocol header is wrong: {0}")]
    Wrong(&'static str),
    #[error("its PROXY protocol header did not come in time")]
    Late,
    #[error("it ended before its PROXY protocol header")]
    Ended(#[source] io::Error),
}

/// Reads a header and not a byte more. None if it is the proxy's own connection.
pub(crate) async fn read(stream: &mut TcpStream) -> Result<Option<Ends>, HeaderError> {
    let header = async {
        let mut prefix = [0; PREFIX];
        // Byte for byte at first: who sends something shorter and waits for an answer is told so at once.
        let mut n = 0;
        while n < PREFIX {
            match stream.read(&mut prefix[n..]).await.map_err(HeaderError::Ended)? {
                0 => return Err(HeaderError::Ended(io::ErrorKind::UnexpectedEof.into())),
                more => n += more,
            }
            let known = n.min(SIGNATURE.len());
            if prefix[..known] != SIGNATURE[..known] {
                return Err(HeaderError::Missing);
            }
        }
        let length = usize::from(u16::from_be_bytes([prefix[14], prefix[15]]));
        if length > PROXY_HEADER_BYTES_MAX {
            return Err(HeaderError::Wrong("it is too long"));
        }
        let mut rest = vec![0; length];
        stream.read_exact(&mut rest).await.map_err(HeaderError::Ended)?;
        parse(prefix[12], prefix[13], &rest)
    };
    tokio::time::timeout(PROXY_HEADER_TIMEOUT, header).await.unwrap_or(Err(HeaderError::Late))
}

/// What follows the signature: version and command, family and transport, and the part with the addresses.
fn parse(command: u8, family: u8, rest: &[u8]) -> Result<Option<Ends>, HeaderError> {
    let short = HeaderError::Wrong("it is too short for its addresses");
    match (command, family) {
        // Whatever it says, it is about the proxy itself.
        (LOCAL, _) => Ok(None),
        (PROXY, TCP4) => {
            let bytes: &[u8; 12] = rest.first_chunk().ok_or(short)?;
            let ip = |at: usize| IpAddr::from([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
            let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            let (peer, local) = ((ip(0), port(8)).into(), (ip(4), port(10)).into());
            Ok(Some(Ends { peer, local }))
        }
        (PROXY, TCP6) => {
            let bytes: &[u8; 36] = rest.first_chunk().ok_or(short)?;
            let ip = |at: usize| {
                let octets: [u8; 16] = std::array::from_fn(|n| bytes[at + n]);
                IpAddr::from(octets)
            };
            let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            let (peer, local) = ((ip(0), port(32)).into(), (ip(16), port(34)).into());
            Ok(Some(Ends { peer, local }))
        }
        // The specification: who proxies what it cannot describe says so, and the connection's own addresses hold.
        (PROXY, 0) => Ok(None),
        (PROXY, _) => Err(HeaderError::Wrong("it is not of a TCP connection")),
        _ => Err(HeaderError::Wrong("its version or command is not known")),
    }
}

/// The header of a client's connection.
pub(crate) fn header(ends: Ends) -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    bytes.push(PROXY);
    let (peer, local) = (ends.peer.ip().to_canonical(), ends.local.ip().to_canonical());
    match (peer, local) {
        (IpAddr::V4(peer), IpAddr::V4(local)) => {
            bytes.extend([TCP4, 0, 12]);
            bytes.extend(peer.octets());
            bytes.extend(local.octets());
        }
        _ => {
            bytes.extend([TCP6, 0, 36]);
            bytes.extend(wide(peer).octets());
            bytes.extend(wide(local).octets());
        }
    }
    bytes.extend(ends.peer.port().to_be_bytes());
    bytes.extend(ends.local.port().to_be_bytes());
    bytes
}

/// The header of a check: it is from nobody but the edge.
pub(crate) fn own_header() -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    bytes.extend([LOCAL, 0, 0, 0]);
    bytes
}

fn wide(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_back(bytes: &[u8]) -> Option<Ends> {
        assert_eq!(&bytes[..12], SIGNATURE);
        let length = usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
        assert_eq!(bytes.len(), PREFIX + length);
        parse(bytes[12], bytes[13], &bytes[PREFIX..]).unwrap()
    }

    #[test]
    fn what_is_written_is_read_back() {
        for (peer, local) in
            [("192.0.2.1:40000", "198.51.100.2:443"), ("[2001:db8::1]:1", "[2001:db8::2]:65535")]
        {
            let ends = Ends { peer: peer.parse().unwrap(), local: local.parse().unwrap() };
            assert_eq!(read_back(&header(ends)), Some(ends));
        }
        // One that came as IPv6 is written as what it is; two families are written as one.
        let mapped =
            Ends { peer: "[::ffff:192.0.2.1]:5".parse().unwrap(), local: "192.0.2.2:6".parse().unwrap() };
        assert_eq!(read_back(&header(mapped)).unwrap().peer, "192.0.2.1:5".parse().unwrap());
        let mixed = Ends { peer: "192.0.2.1:5".parse().unwrap(), local: "[2001:db8::2]:6".parse().unwrap() };
        assert_eq!(read_back(&header(mixed)).unwrap().peer, "[::ffff:192.0.2.1]:5".parse().unwrap());
        assert_eq!(read_back(&own_header()), None);
    }

    #[test]
    fn headers_of_other_kinds_are_refused_or_say_nothing() {
        assert!(parse(PROXY, TCP4, &[0; 11]).is_err() && parse(PROXY, TCP6, &[0; 35]).is_err());
        assert!(parse(PROXY, 0x12, &[0; 12]).is_err(), "a datagram");
        assert!(parse(0x11, TCP4, &[0; 12]).is_err(), "version 1");
        assert!(parse(0x22, TCP4, &[0; 12]).is_err(), "no command");
        assert_eq!(parse(PROXY, 0, &[1, 2, 3]).unwrap(), None);
        // Further values behind the addresses mean nothing to the edge.
        assert!(parse(PROXY, TCP4, &[7; 200]).unwrap().is_some());
    }

    proptest! {
        #[test]
        fn no_header_panics(command: u8, family: u8, rest in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(command, family, &rest);
        }
    }
}
