//! Network interfaces by rtnetlink: what `ip link` and `ip address` do, without a program.
//!
//! A [`Netlink`] acts in the network namespace in which it was opened, wherever its thread is later.

use crate::{CallError, Context};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

pub(crate) const HEADER: usize = 16;
const BUFFER_BYTES: usize = 64 * 1024;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

const CREATE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
const UP: u32 = libc::IFF_UP as u32;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The bridge that it is a port of.
    pub master: Option<u32>,
}

/// A route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// To wherever no other route leads, by a neighbour.
    Default(Ipv4Addr),
    /// To one neighbour.
    Direct(Ipv4Addr),
    /// To a whole network that is this host's own: it may be listened on as if each address were given to an interface.
    /// Goes with the interface.
    Own(Ipv4Addr, u8),
}

/// A request in the making: header, then a family's own header, then attributes.
#[derive(Debug)]
pub(crate) struct Message(pub(crate) Vec<u8>);

impl Message {
    pub(crate) fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        Self(bytes)
    }

    /// Gives it its length, its number and more flags: it is complete.
    pub(crate) fn seal(&mut self, sequence: u32, flags: u16) {
        let (length, flags) = (self.0.len() as u32, half(&self.0, 6) | flags);
        self.0[0..4].copy_from_slice(&length.to_ne_bytes());
        self.0[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
    }

    fn link(mut self, index: u32, flags: u32) -> Self {
        self.push_link(index, flags);
        self
    }

    fn push_link(&mut self, index: u32, flags: u32) {
        self.0.extend([0; 4]);
        self.0.extend(index.to_ne_bytes());
        self.0.extend(flags.to_ne_bytes());
        self.0.extend(flags.to_ne_bytes());
    }

    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.0.extend(((4 + value.len()) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.attribute(kind, &[value.as_bytes(), b"\0"].concat())
    }

    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.0.len();
        self.0.extend([0, 0]);
        self.0.extend(kind.to_ne_bytes());
        fill(self);
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }
}

pub(crate) fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

pub(crate) fn half(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

/// Splits a buffer into records of (length, payload) with 4-byte alignment; `header` bytes belong to the record.
pub(crate) fn records(mut bytes: &[u8], header: usize, length: fn(&[u8]) -> usize) -> Vec<&[u8]> {
    let mut out = vec![];
    while bytes.len() >= header {
        let n = length(bytes);
        if n < header || n > bytes.len() {
            break;
        }
        out.push(&bytes[..n]);
        bytes = &bytes[n.next_multiple_of(4).min(bytes.len())..];
    }
    out
}

/// A connection to the kernel's routing tables of one namespace.
#[derive(Debug)]
pub struct Netlink(OwnedFd);

impl Netlink {
    /// For the calling thread's current network namespace.
    pub fn open() -> Result<Self, CallError> {
        let family = AddressFamily::NETLINK;
        // Protocol 0 of this family is NETLINK_ROUTE.
        rustix::net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, None)
            .map(Self)
            .context("socket", "netlink")
    }

    /// Sends one request and returns the payloads of all answers up to the acknowledgement.
    fn request(&self, mut message: Message, flags: u16) -> io::Result<Vec<Vec<u8>>> {
        message.seal(0, flags);
        rustix::net::send(&self.0, &message.0, SendFlags::empty())?;
        let mut answers = vec![];
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let n = match rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::empty()) {
                Ok((read, _)) => read,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for record in records(&buffer[..n], HEADER, |b| word(b, 0) as usize) {
                match i32::from(half(record, 4)) {
                    libc::NLMSG_ERROR => {
                        return match word(record, HEADER) as i32 {
                            0 => Ok(answers),
                            errno => Err(io::Error::from_raw_os_error(-errno)),
                        };
                    }
                    libc::NLMSG_DONE => return Ok(answers),
                    _ => answers.push(record[HEADER..].to_vec()),
                }
            }
        }
    }

    fn change(&self, message: Message, call: &'static str, object: &str) -> Result<(), CallError> {
        self.request(message, libc::NLM_F_ACK as u16).map(|_| ()).context(call, object)
    }

    /// All interfaces of the namespace.
    pub fn links(&self) -> Result<Vec<Link>, CallError> {
        let message = Message::new(libc::RTM_GETLINK, libc::NLM_F_DUMP as u16).link(0, 0);
        let answers = self.request(message, 0).context("list", "interfaces")?;
        Ok(answers.iter().filter_map(|a| parse_link(a)).collect())
    }

    /// The number of an interface.
    pub fn index(&self, name: &str) -> Result<u32, CallError> {
        self.find(name).map(|link| link.index)
    }

    /// An interface.
    pub fn find(&self, name: &str) -> Result<Link, CallError> {
        let mut message = Message::new(libc::RTM_GETLINK, 0).link(0, 0);
        message.text(IFLA_IFNAME, name);
        let answers = self.request(message, libc::NLM_F_ACK as u16).context("find interface", name)?;
        answers
            .iter()
            .find_map(|a| parse_link(a))
            .ok_or(io::Error::from_raw_os_error(libc::ENODEV))
            .context("find interface", name)
    }

    /// The name of an interface.
    pub fn name(&self, index: u32) -> Result<String, CallError> {
        let message = Message::new(libc::RTM_GETLINK, 0).link(index, 0);
        let answers = self.request(message, libc::NLM_F_ACK as u16).context("find interface", index)?;
        let found = answers.iter().find_map(|a| parse_link(a)).map(|link| link.name);
        found.ok_or(io::Error::from_raw_os_error(libc::ENODEV)).context("find interface", index)
    }

    /// Makes a bridge with a fixed hardware address, or finds the one of that name. Without a fixed address a bridge
    /// changes its own whenever a port comes or goes, and its neighbours lose it for a while.
    pub fn bridge(&self, name: &str, hardware: [u8; 6]) -> Result<u32, CallError> {
        let mut message = Message::new(libc::RTM_NEWLINK, CREATE).link(0, 0);
        message.text(IFLA_IFNAME, name).attribute(IFLA_ADDRESS, &hardware).nest(IFLA_LINKINFO, |m| {
            m.text(IFLA_INFO_KIND, "bridge");
        });
        match self.change(message, "create bridge", name) {
            Err(error) if error.errno() != libc::EEXIST => Err(error),
            _ => self.index(name),
        }
    }

    /// Makes a pair of connected interfaces: `name` here, as a port of `bridge`, and `peer` in the namespace
    /// `peer_net` with the hardware address `hardware`. The peer is made there: moving it afterwards takes fifty times as
    /// long.
    pub fn veth(
        &self,
        name: &str,
        bridge: u32,
        peer: &str,
        hardware: [u8; 6],
        peer_net: impl AsFd,
    ) -> Result<u32, CallError> {
        let namespace = peer_net.as_fd().as_raw_fd();
        // The kernel's default is a queue for each processor, which only XDP makes use of: 35 kB of memory for two.
        let one = 1u32.to_ne_bytes();
        let mut message = Message::new(libc::RTM_NEWLINK, CREATE).link(0, 0);
        message
            .text(IFLA_IFNAME, name)
            .attribute(IFLA_MASTER, &bridge.to_ne_bytes())
            .attribute(IFLA_NUM_TX_QUEUES, &one)
            .attribute(IFLA_NUM_RX_QUEUES, &one)
            .nest(IFLA_LINKINFO, |m| {
                m.text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |m| {
                    m.nest(VETH_INFO_PEER, |m| {
                        m.push_link(0, 0);
                        m.text(IFLA_IFNAME, peer)
                            .attribute(IFLA_ADDRESS, &hardware)
                            .attribute(IFLA_NUM_TX_QUEUES, &one)
                            .attribute(IFLA_NUM_RX_QUEUES, &one)
                            .attribute(IFLA_NET_NS_FD, &namespace.to_ne_bytes());
                    });
                });
            });
        self.change(message, "create veth", name)?;
        self.index(name)
    }

    /// Makes an interface a port of a bridge.
    pub fn enslave(&self, link: u32, bridge: u32) -> Result<(), CallError> {
        let mut message = Message::new(libc::RTM_NEWLINK, 0).link(link, 0);
        message.attribute(IFLA_MASTER, &bridge.to_ne_bytes());
        self.change(message, "add bridge port", &link.to_string())
    }

    /// A port of a bridge that exchanges nothing with other isolated ports of it, only with the bridge itself.
    pub fn isolate(&self, port: u32) -> Result<(), CallError> {
        let mut message = Message::new(libc::RTM_NEWLINK, 0).link(port, 0);
        message.nest(IFLA_LINKINFO, |m| {
            m.text(IFLA_INFO_SLAVE_KIND, "bridge").nest(IFLA_INFO_SLAVE_DATA, |m| {
                m.attribute(IFLA_BRPORT_ISOLATED, &[1]);
            });
        });
        self.change(message, "isolate bridge port", &port.to_string())
    }

    /// Gives an interface an address, if it has not got it.
    pub fn address(&self, link: u32, address: Ipv4Addr, prefix: u8) -> Result<(), CallError> {
        let mut message = Message::new(libc::RTM_NEWADDR, CREATE);
        message.0.extend([libc::AF_INET as u8, prefix, 0, 0]);
        message.0.extend(link.to_ne_bytes());
        message.attribute(IFA_LOCAL, &address.octets()).attribute(IFA_ADDRESS, &address.octets());
        match self.change(message, "add address", &address.to_string()) {
            Err(error) if error.errno() != libc::EEXIST => Err(error),
            _ => Ok(()),
        }
    }

    /// Adds a route, or replaces the one to the same place. `link` is the interface.
    pub fn route(&self, route: Route, link: u32) -> Result<(), CallError> {
        const TABLE_LOCAL: u8 = 255;
        const TABLE_MAIN: u8 = 254;
        const SCOPE_HOST: u8 = 254;
        const SCOPE_LINK: u8 = 253;
        // To, bits of it, by which gateway, in which table, of which scope, local or not.
        let (to, prefix, via, table, scope, kind) = match route {
            Route::Default(via) => (Ipv4Addr::UNSPECIFIED, 0, Some(via), TABLE_MAIN, 0, libc::RTN_UNICAST),
            Route::Direct(to) => (to, 32, None, TABLE_MAIN, SCOPE_LINK, libc::RTN_UNICAST),
            Route::Own(to, prefix) => (to, prefix, None, TABLE_LOCAL, SCOPE_HOST, libc::RTN_LOCAL),
        };
        let mut message = Message::new(libc::RTM_NEWROUTE, (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16);
        message.0.extend([libc::AF_INET as u8, prefix, 0, 0, table, libc::RTPROT_STATIC, scope, kind]);
        message.0.extend([0; 4]);
        message.attribute(libc::RTA_OIF, &link.to_ne_bytes());
        if prefix > 0 {
            message.attribute(libc::RTA_DST, &to.octets());
        }
        if let Some(via) = via {
            message.attribute(libc::RTA_GATEWAY, &via.octets());
        }
        self.change(message, "add route", &format!("{route:?}"))
    }

    /// Switches an interface on.
    pub fn up(&self, link: u32) -> Result<(), CallError> {
        let message = Message::new(libc::RTM_NEWLINK, 0).link(link, UP);
        self.change(message, "switch on interface", &link.to_string())
    }

    /// Removes an interface and its peer. One that is not there is fine.
    pub fn delete(&self, link: u32) -> Result<(), CallError> {
        let message = Message::new(libc::RTM_DELLINK, 0).link(link, 0);
        match self.change(message, "delete interface", &link.to_string()) {
            Err(error) if error.errno() != libc::ENODEV => Err(error),
            _ => Ok(()),
        }
    }
}

fn parse_link(payload: &[u8]) -> Option<Link> {
    let mut link = Link { index: word(payload, 4), name: String::new(), master: None };
    for attribute in records(payload.get(16..)?, 4, |b| usize::from(half(b, 0))) {
        let value = &attribute[4..];
        match half(attribute, 2) & 0x3fff {
            IFLA_IFNAME => {
                link.name = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
            }
            IFLA_MASTER => link.master = Some(word(value, 0)),
            _ => {}
        }
    }
    Some(link)
}
