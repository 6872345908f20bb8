//! Rules: conditions on a packet that all must hold, then a verdict. Each condition is one or two of the kernel's
//! expressions: one that loads a field into a register, one that judges it. Keys and codes are those of
//! `linux/netfilter/nf_tables.h`.

use super::{A_EXPRESSION_DATA, A_EXPRESSION_NAME, A_LIST_ELEMENT, A_VALUE, number};
use crate::netlink::Message;
use std::net::Ipv4Addr;

/// The first 4-byte register; the next one follows it. 16-byte registers overlap them.
const REGISTER: u32 = 8;

/// An address of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

/// Interfaces, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interface<'a> {
    /// The one of this name.
    Named(&'a str),
    /// All whose names start so.
    Starting(&'a str),
}

impl Interface<'_> {
    /// What a name is compared with: with the zeros behind it, or without.
    fn bytes(self) -> Vec<u8> {
        let (Self::Named(name) | Self::Starting(name)) = self;
        let mut bytes = name.as_bytes().to_vec();
        if let Self::Named(_) = self {
            bytes.resize(libc::IFNAMSIZ, 0);
        }
        bytes
    }
}

/// What a rule decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// It passes this chain's hook.
    Accept,
    /// It vanishes.
    Drop,
    /// It vanishes, and the sender is told that this is forbidden.
    Reject,
    /// The same for TCP, as if nothing listened there: who connects knows it at once.
    Reset,
    /// Another chain decides, for good.
    Goto(&'a str),
    /// Its source becomes an address of the interface that it leaves by.
    Masquerade,
}

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Protocol {
    Tcp = 6,
    Udp = 17,
}

/// A rule in the making: conditions that all must hold, then a verdict.
#[derive(Debug)]
pub struct Rule(pub(super) Message);

impl Default for Rule {
    fn default() -> Self {
        Self(Message(vec![]))
    }
}

impl Rule {
    /// Without a condition.
    pub fn new() -> Self {
        Self::default()
    }

    fn expression(mut self, name: &str, fill: impl FnOnce(&mut Message)) -> Self {
        self.0.nest(A_LIST_ELEMENT, |m| {
            m.text(A_EXPRESSION_NAME, name).nest(A_EXPRESSION_DATA, fill);
        });
        self
    }

    fn load(self, name: &str, key: u32) -> Self {
        self.expression(name, |m| {
            // `meta` and `ct` number them alike: 1 is the register, 2 the key.
            number(m, 1, REGISTER);
            number(m, 2, key);
        })
    }

    fn compare(self, equal: bool, value: &[u8]) -> Self {
        self.expression("cmp", |m| {
            number(m, 1, REGISTER);
            number(m, 2, u32::from(!equal));
            m.nest(3, |m| {
                m.attribute(A_VALUE, value);
            });
        })
    }

    fn payload(self, base: u32, offset: u32, length: u32, register: u32) -> Self {
        self.expression("payload", |m| {
            [register, base, offset, length]
                .into_iter()
                .zip(1..)
                .for_each(|(value, kind)| number(m, kind, value));
        })
    }

    fn mask(self, mask: &[u8]) -> Self {
        self.expression("bitwise", |m| {
            [REGISTER, REGISTER, mask.len() as u32]
                .into_iter()
                .zip(1..)
                .for_each(|(v, kind)| number(m, kind, v));
            for (kind, value) in [(4, mask), (5, &vec![0; mask.len()][..])] {
                m.nest(kind, |m| {
                    m.attribute(A_VALUE, value);
                });
            }
        })
    }

    fn lookup(self, set: &str, found: bool) -> Self {
        self.expression("lookup", |m| {
            m.text(1, set);
            number(m, 2, REGISTER);
            number(m, 5, u32::from(!found));
        })
    }

    /// It came in by such an interface, or did not.
    pub fn came_by(self, interface: Interface<'_>, so: bool) -> Self {
        const META_INPUT_NAME: u32 = 6;
        self.load("meta", META_INPUT_NAME).compare(so, &interface.bytes())
    }

    /// It leaves by such an interface.
    pub fn leaves_by(self, interface: Interface<'_>) -> Self {
        const META_OUTPUT_NAME: u32 = 7;
        self.load("meta", META_OUTPUT_NAME).compare(true, &interface.bytes())
    }

    /// It belongs to a connection that exists, or is about one.
    pub fn of_connection(self) -> Self {
        const CT_STATE: u32 = 0;
        const ESTABLISHED_OR_RELATED: u32 = 2 | 4;
        self.load("ct", CT_STATE).mask(&ESTABLISHED_OR_RELATED.to_ne_bytes()).compare(false, &[0; 4])
    }

    /// It goes the other way than the first one of its connection.
    pub fn is_reply(self) -> Self {
        const CT_DIRECTION: u32 = 1;
        self.load("ct", CT_DIRECTION).compare(true, &[1])
    }

    fn ipv4(self) -> Self {
        const META_FAMILY: u32 = 15;
        self.load("meta", META_FAMILY).compare(true, &[libc::NFPROTO_IPV4 as u8])
    }

    fn address(self, side: Side, register: u32) -> Self {
        const NETWORK_HEADER: u32 = 1;
        let offset = if side == Side::Source { 12 } else { 16 };
        self.payload(NETWORK_HEADER, offset, 4, register)
    }

    /// One of its addresses is in a set of addresses, or is not.
    pub fn address_in(self, side: Side, set: &str, so: bool) -> Self {
        self.ipv4().address(side, REGISTER).lookup(set, so)
    }

    /// Both of its addresses together are in a set of pairs.
    pub fn pair_in(self, set: &str) -> Self {
        self.ipv4().address(Side::Source, REGISTER).address(Side::Destination, REGISTER + 1).lookup(set, true)
    }

    /// One of its addresses is in a network, or is not.
    pub fn address_of(self, side: Side, first: Ipv4Addr, prefix: u8, so: bool) -> Self {
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0).to_be_bytes();
        self.ipv4().address(side, REGISTER).mask(&mask).compare(so, &first.octets())
    }

    /// It is of a protocol.
    pub fn of_protocol(self, protocol: Protocol) -> Self {
        const META_PROTOCOL: u32 = 16;
        self.load("meta", META_PROTOCOL).compare(true, &[protocol as u8])
    }

    /// It goes to a port.
    pub fn to_port(self, protocol: Protocol, port: u16) -> Self {
        const TRANSPORT_HEADER: u32 = 2;
        self.of_protocol(protocol)
            .payload(TRANSPORT_HEADER, 2, 2, REGISTER)
            .compare(true, &port.to_be_bytes())
    }

    fn verdict(self, code: i32, chain: Option<&str>) -> Self {
        self.expression("immediate", |m| {
            // Register 0 is the verdict.
            number(m, 1, 0);
            m.nest(2, |m| {
                m.nest(2, |m| {
                    m.attribute(1, &code.to_be_bytes());
                    if let Some(chain) = chain {
                        m.text(2, chain);
                    }
                });
            });
        })
    }

    pub(super) fn judge(self, verdict: Verdict<'_>) -> Self {
        const GOTO: i32 = -4;
        match verdict {
            Verdict::Accept => self.verdict(1, None),
            Verdict::Drop => self.verdict(0, None),
            Verdict::Goto(chain) => self.verdict(GOTO, Some(chain)),
            Verdict::Masquerade => self.expression("masq", |_| {}),
            // Of both families: "administratively prohibited".
            Verdict::Reset => self.expression("reject", |m| number(m, 1, 1)),
            Verdict::Reject => self.expression("reject", |m| {
                number(m, 1, 2);
                m.attribute(2, &[3]);
            }),
        }
    }
}
