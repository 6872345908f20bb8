//! The guest's network: the loopback, and the first other interface with an address that was given or that DHCP gives (RFC 2131,
//! as little as a server needs: discover, request, and the same request again at half of the lease).

use crate::call;
use std::ffi::CString;
use std::io::{Error, Result};
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

const SIOCADDRT: u64 = 0x890b;
const SIOCGIFFLAGS: u64 = 0x8913;
const SIOCSIFFLAGS: u64 = 0x8914;
const SIOCSIFADDR: u64 = 0x8916;
const SIOCSIFNETMASK: u64 = 0x891c;
const IFF_UP: u16 = 1;
/// Bytes of `struct ifreq` and `struct rtentry`, and of a name in the former.
const IFREQ: usize = 40;
const RTENTRY: usize = 120;
const NAME_MAX: usize = 15;
/// Where things lie in `struct rtentry`.
const ROUTE_GATEWAY: usize = 24;
const ROUTE_MASK: usize = 40;
const ROUTE_FLAGS: usize = 56;
const ROUTE_DEVICE: usize = 88;
const RTF_UP_GATEWAY: u16 = 3;
/// DHCP: how often and how long an answer is waited for.
const TRIES: u32 = 6;
const ANSWER_MAX: Duration = Duration::from_secs(2);
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const BROADCAST_FLAG: u16 = 0x8000;
/// Where things lie in a message.
const YOUR_ADDRESS: usize = 16;
const HARDWARE_ADDRESS: usize = 28;
const OPTIONS: usize = 236;
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;

/// What an interface has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    /// Its address.
    pub address: Ipv4Addr,
    /// How many bits of it name the network.
    pub bits: u32,
    /// The way to everywhere else.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers.
    pub resolvers: Vec<Ipv4Addr>,
    /// How long it is ours; none for ever.
    pub lease: Option<Duration>,
}

impl Setup {
    /// Of `ADDRESS/BITS` and a gateway.
    pub fn parse(address: &str, gateway: Option<&str>) -> Option<Self> {
        let (address, bits) = address.split_once('/')?;
        let bits = bits.parse().ok().filter(|bits| *bits <= 32)?;
        let gateway = gateway.map(str::parse).transpose().ok()?;
        Some(Self { address: address.parse().ok()?, bits, gateway, resolvers: vec![], lease: None })
    }
}

/// The first interface that is not the loopback.
pub fn first_interface() -> Option<String> {
    let entries = std::fs::read_dir("/sys/class/net").ok()?.flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name != "lo" && name.len() <= NAME_MAX).min()
}

fn request(name: &str) -> [u8; IFREQ] {
    let mut data = [0; IFREQ];
    data[..name.len()].copy_from_slice(name.as_bytes());
    data
}

/// `struct sockaddr_in`.
fn socket_address(address: Ipv4Addr) -> [u8; 8] {
    let [a, b, c, d] = address.octets();
    [2, 0, 0, 0, a, b, c, d]
}

fn any_socket() -> Result<UdpSocket> {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
}

/// Brings an interface up.
pub fn up(name: &str) -> Result<()> {
    let socket = any_socket()?;
    let mut data = request(name);
    call::control(&socket, SIOCGIFFLAGS, &mut data)?;
    let flags = u16::from_ne_bytes([data[16], data[17]]) | IFF_UP;
    data[16..18].copy_from_slice(&flags.to_ne_bytes());
    call::control(&socket, SIOCSIFFLAGS, &mut data)
}

/// Gives an interface its address, and the machine its way out.
pub fn set(name: &str, setup: &Setup) -> Result<()> {
    let socket = any_socket()?;
    let mask = Ipv4Addr::from(u32::MAX.checked_shl(32 - setup.bits).unwrap_or(0));
    for (code, address) in [(SIOCSIFADDR, setup.address), (SIOCSIFNETMASK, mask)] {
        let mut data = request(name);
        data[16..24].copy_from_slice(&socket_address(address));
        call::control(&socket, code, &mut data)?;
    }
    let Some(gateway) = setup.gateway else { return Ok(()) };
    let mut route = [0; RTENTRY];
    // Destination and mask stay 0.0.0.0: everywhere.
    route[8..10].copy_from_slice(&2_u16.to_ne_bytes());
    route[ROUTE_GATEWAY..ROUTE_GATEWAY + 8].copy_from_slice(&socket_address(gateway));
    route[ROUTE_MASK..ROUTE_MASK + 2].copy_from_slice(&2_u16.to_ne_bytes());
    route[ROUTE_FLAGS..ROUTE_FLAGS + 2].copy_from_slice(&RTF_UP_GATEWAY.to_ne_bytes());
    let device = CString::new(name).map_err(|_| Error::other("a NUL byte in a name"))?;
    match call::control_named(&socket, SIOCADDRT, &mut route, ROUTE_DEVICE, &device) {
        // It is there from the last lease.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// Asks for an address.
pub fn lease(name: &str) -> Result<Setup> {
    let text = std::fs::read_to_string(format!("/sys/class/net/{name}/address"))?;
    let mut hardware = [0; 6];
    for (byte, part) in hardware.iter_mut().zip(text.trim().split(':')) {
        *byte = u8::from_str_radix(part, 16).map_err(Error::other)?;
    }
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 68))?;
    socket.set_broadcast(true)?;
    call::bind_to_device(&socket, name)?;
    // The hardware address is what makes exchanges on one wire differ.
    let exchange = [hardware[2], hardware[3], hardware[4], hardware[5]];
    let offer = ask(&socket, exchange, hardware, DISCOVER, OFFER, &[])?;
    let mut wanted = vec![50, 4];
    wanted.extend_from_slice(&offer[YOUR_ADDRESS..YOUR_ADDRESS + 4]);
    if let Some(server) = option(&offer, 54) {
        wanted.extend_from_slice(&[54, 4]);
        wanted.extend_from_slice(server);
    }
    let answer = ask(&socket, exchange, hardware, REQUEST, ACK, &wanted)?;
    setup(&answer).ok_or_else(|| Error::other("the DHCP server gave no address"))
}

fn ask(
    socket: &UdpSocket,
    exchange: [u8; 4],
    hardware: [u8; 6],
    kind: u8,
    expected: u8,
    options: &[u8],
) -> Result<Vec<u8>> {
    let mut message = vec![0; OPTIONS];
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[4..8].copy_from_slice(&exchange);
    message[10..12].copy_from_slice(&BROADCAST_FLAG.to_be_bytes());
    message[HARDWARE_ADDRESS..HARDWARE_ADDRESS + 6].copy_from_slice(&hardware);
    message.extend_from_slice(&COOKIE);
    message.extend_from_slice(&[53, 1, kind]);
    message.extend_from_slice(options);
    // Mask, router, name servers, lease.
    message.extend_from_slice(&[55, 4, 1, 3, 6, 51, 255]);
    message.resize(300, 0);
    let mut answer = vec![0; 1500];
    for _ in 0..TRIES {
        socket.send_to(&message, (Ipv4Addr::BROADCAST, 67))?;
        let until = Instant::now() + ANSWER_MAX;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            socket.set_read_timeout(Some(left))?;
            let Ok(size) = socket.recv(&mut answer) else { break };
            let ours =
                size > OPTIONS + 4 && answer[4..8] == exchange && answer[OPTIONS..OPTIONS + 4] == COOKIE;
            if ours && option(&answer[..size], 53) == Some(&[expected]) {
                answer.truncate(size);
                return Ok(answer);
            }
        }
    }
    Err(Error::other("no DHCP server answers"))
}

/// The value of an option.
fn option(message: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut rest = message.get(OPTIONS + 4..)?;
    loop {
        match *rest.first()? {
            255 => return None,
            0 => rest = &rest[1..],
            code => {
                let size = usize::from(*rest.get(1)?);
                let value = rest.get(2..2 + size)?;
                if code == wanted {
                    return Some(value);
                }
                rest = &rest[2 + size..];
            }
        }
    }
}

fn setup(message: &[u8]) -> Option<Setup> {
    let address = |bytes: &[u8]| Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(..4)?).ok()?));
    let number = |bytes: &[u8]| Some(u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?));
    Some(Setup {
        address: address(message.get(YOUR_ADDRESS..)?)?,
        bits: option(message, 1).and_then(number).map_or(24, u32::leading_ones),
        gateway: option(message, 3).and_then(address),
        resolvers: option(message, 6).map(|v| v.chunks(4).filter_map(address).collect()).unwrap_or_default(),
        lease: option(message, 51).and_then(number).map(|seconds| Duration::from_secs(seconds.into())),
    })
}
