//! Packet filter tables by netlink: what `nft -f` does, without a program, so that an element can be added to a set in
//! microseconds while an instance starts.
//!
//! A [`Batch`] is one transaction: all of it happens, or nothing. It says what the table is made of in the order in which
//! `nft` would read it; [`Nftables::commit`] hands it to the kernel. An [`Nftables`] acts in the network namespace in which
//! it was opened.
//!
//! Numbers are those of `linux/netfilter/nf_tables.h`; attributes are big-endian there.

mod rule;

pub use rule::{Interface, Protocol, Rule, Side, Verdict};

use crate::netlink::{HEADER, Message, half, records, word};
use crate::{CallError, Context};
use rustix::net::netlink::NETFILTER;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

/// Both IPv4 and IPv6.
const FAMILY_INET: u8 = 1;
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const NEW_SET: u16 = 9;
const NEW_ELEMENT: u16 = 12;
const GET_ELEMENT: u16 = 13;
const DELETE_ELEMENT: u16 = 14;

const CREATE: u16 = libc::NLM_F_CREATE as u16;
const APPEND: u16 = libc::NLM_F_APPEND as u16;
const ACKNOWLEDGE: u16 = libc::NLM_F_ACK as u16;
const DUMP: u16 = libc::NLM_F_DUMP as u16;

/// In nearly all messages: the table, and what of it.
const A_TABLE: u16 = 1;
const A_NAME: u16 = 2;
/// Of an expression, and of a list.
const A_LIST_ELEMENT: u16 = 1;
const A_EXPRESSION_NAME: u16 = 1;
const A_EXPRESSION_DATA: u16 = 2;
const A_VALUE: u16 = 1;

/// The type of an IPv4 address as `nft list` shows it, and how types are joined.
const TYPE_ADDRESS: u32 = 7;
const TYPE_SHIFT: u32 = 6;
const SET_CONSTANT: u32 = 2;
const SET_INTERVAL: u32 = 4;
const ELEMENT_ENDS_INTERVAL: u32 = 1;
/// Elements of one message: a nested attribute has 16 bits of length.
const ELEMENTS_EACH: usize = 1000;

const BUFFER_BYTES: usize = 64 * 1024;

fn number(message: &mut Message, kind: u16, value: u32) {
    message.attribute(kind, &value.to_be_bytes());
}

/// Where a chain sees packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Those for this host, after routing.
    Input,
    /// Those for others.
    Forward,
    /// Those that leave, as the last step: the place of source translation.
    SourceTranslation,
}

/// A transaction in the making, about one table.
#[derive(Debug)]
pub struct Batch {
    table: String,
    messages: Vec<Message>,
}

impl Batch {
    /// An empty one about a table.
    pub fn about(table: &str) -> Self {
        Self { table: table.to_owned(), messages: vec![] }
    }

    fn message(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Message)) {
        let mut message = Message::new(SUBSYSTEM << 8 | kind, flags);
        message.0.extend([FAMILY_INET, 0, 0, 0]);
        message.text(A_TABLE, &self.table);
        fill(&mut message);
        self.messages.push(message);
    }

    /// Makes the table anew, empty, whatever was there.
    pub fn replace_table(&mut self) {
        self.message(NEW_TABLE, CREATE, |_| {});
        self.delete_table();
        self.message(NEW_TABLE, CREATE, |_| {});
    }

    /// Deletes the table and all in it. It must be there.
    pub fn delete_table(&mut self) {
        self.message(DELETE_TABLE, 0, |_| {});
    }

    /// Makes a chain; with a hook it sees packets by itself, and lets through what no rule judges.
    pub fn chain(&mut self, name: &str, hook: Option<Hook>) {
        // Numbers of hooks; filters come before those of the host, translation where it has to be.
        let (number_of, priority, kind) = match hook {
            None => {
                return self.message(NEW_CHAIN, CREATE, |m| {
                    m.text(3, name);
                });
            }
            Some(Hook::Input) => (1, -10i32, "filter"),
            Some(Hook::Forward) => (2, -10, "filter"),
            Some(Hook::SourceTranslation) => (4, 100, "nat"),
        };
        self.message(NEW_CHAIN, CREATE, |m| {
            m.text(3, name).text(7, kind).nest(4, |m| {
                number(m, 1, number_of);
                m.attribute(2, &priority.to_be_bytes());
            });
        });
    }

    /// Adds a rule to the end of a chain.
    pub fn rule(&mut self, chain: &str, rule: Rule, verdict: Verdict<'_>) {
        let Rule(expressions) = rule.judge(verdict);
        self.message(NEW_RULE, CREATE | APPEND, |m| {
            m.text(2, chain).nest(4, |m| m.0.extend(expressions.0));
        });
    }

    fn new_set(&mut self, name: &str, flags: u32, kind: u32, length: u32) {
        // An id is only needed for sets without a name, but must be there, and may not be another's.
        let id = self.messages.len() as u32;
        self.message(NEW_SET, CREATE, |m| {
            m.text(A_NAME, name);
            [(3, flags), (4, kind), (5, length), (10, id)]
                .into_iter()
                .for_each(|(k, value)| number(m, k, value));
        });
    }

    /// Makes a set of addresses.
    pub fn set_of_addresses(&mut self, name: &str) {
        self.new_set(name, 0, TYPE_ADDRESS, 4);
    }

    /// Makes a set of pairs of addresses.
    pub fn set_of_pairs(&mut self, name: &str) {
        self.new_set(name, 0, TYPE_ADDRESS << TYPE_SHIFT | TYPE_ADDRESS, 8);
    }

    /// Makes a set of networks that never changes. They are in ascending order and do not touch each other.
    pub fn set_of_networks(&mut self, name: &str, networks: &[(Ipv4Addr, u8)]) {
        self.new_set(name, SET_CONSTANT | SET_INTERVAL, TYPE_ADDRESS, 4);
        let mut bounds = vec![];
        for (first, prefix) in networks {
            bounds.push((first.octets().to_vec(), 0));
            let size = 1u32.checked_shl(32 - u32::from(*prefix)).unwrap_or(0);
            // One that ends with the last address of all has no end.
            let end = u32::from(*first).checked_add(size);
            bounds.extend(end.map(|end| (end.to_be_bytes().to_vec(), ELEMENT_ENDS_INTERVAL)));
        }
        self.elements_of(NEW_ELEMENT, CREATE, name, &bounds);
    }

    fn elements_of(&mut self, kind: u16, flags: u16, set: &str, elements: &[(Vec<u8>, u32)]) {
        for part in elements.chunks(ELEMENTS_EACH) {
            self.message(kind, flags, |m| {
                m.text(A_NAME, set).nest(3, |m| {
                    for (key, flags) in part {
                        m.nest(A_LIST_ELEMENT, |m| {
                            if *flags != 0 {
                                number(m, 3, *flags);
                            }
                            m.nest(1, |m| {
                                m.attribute(A_VALUE, key);
                            });
                        });
                    }
                });
            });
        }
    }

    /// Adds elements to a set: each is one address, or as many as the set joins. One that is there already is fine.
    pub fn add(&mut self, set: &str, elements: &[&[Ipv4Addr]]) {
        self.elements_of(NEW_ELEMENT, CREATE, set, &keys(elements));
    }

    /// Removes elements of a set. One that is not there makes the whole batch fail with `ENOENT`.
    pub fn remove(&mut self, set: &str, elements: &[&[Ipv4Addr]]) {
        self.elements_of(DELETE_ELEMENT, 0, set, &keys(elements));
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }
}

fn keys(elements: &[&[Ipv4Addr]]) -> Vec<(Vec<u8>, u32)> {
    let key = |element: &&[Ipv4Addr]| element.iter().flat_map(|address| address.octets()).collect();
    elements.iter().map(|element| (key(element), 0)).collect()
}

/// A connection to the packet filter of one network namespace.
#[derive(Debug)]
pub struct Nftables {
    socket: OwnedFd,
    sequence: u32,
}

impl Nftables {
    /// For the calling thread's current network namespace.
    pub fn open() -> Result<Self, CallError> {
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, Some(NETFILTER));
        Ok(Self { socket: socket.context("socket", "netfilter")?, sequence: 0 })
    }

    /// Carries out a transaction: all of it or, with an error, nothing.
    pub fn commit(&mut self, batch: Batch) -> Result<(), CallError> {
        if batch.is_empty() {
            return Ok(());
        }
        let Batch { table, messages } = batch;
        let mark = |kind| {
            let mut message = Message::new(kind, 0);
            message.0.extend([&[0, 0][..], &SUBSYSTEM.to_be_bytes()].concat());
            message
        };
        let (first, count) = (self.sequence.wrapping_add(1), messages.len() as u32);
        self.sequence = first.wrapping_add(count + 1);
        let all = [mark(BATCH_BEGIN)].into_iter().chain(messages).chain([mark(BATCH_END)]);
        let mut bytes = vec![];
        for (n, mut message) in (0u32..).zip(all) {
            // The answer to the last one is that of the transaction; errors are told of any.
            message.seal(first.wrapping_add(n), if n == count { ACKNOWLEDGE } else { 0 });
            bytes.extend(message.0);
        }
        let sent = rustix::net::send(&self.socket, &bytes, SendFlags::empty());
        let answered =
            sent.map_err(io::Error::from).and_then(|_| self.answer(first, first.wrapping_add(count), None));
        answered.map(|_| ()).context("change packet filter", table)
    }

    /// Reads answers until `last` is acknowledged, or to the end of a dump. Those to an earlier transaction that failed
    /// half-read are passed over.
    fn answer(&self, first: u32, last: u32, dump: Option<&mut Vec<Vec<u8>>>) -> io::Result<()> {
        let mut kept = dump;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let (n, _) = rustix::io::retry_on_intr(|| {
                rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty())
            })?;
            for record in records(&buffer[..n], HEADER, |b| word(b, 0) as usize) {
                let sequence = word(record, 8);
                if sequence.wrapping_sub(first) > last.wrapping_sub(first) {
                    continue;
                }
                match (i32::from(half(record, 4)), &mut kept) {
                    (libc::NLMSG_ERROR, _) => match word(record, HEADER) as i32 {
                        0 if sequence == last => return Ok(()),
                        0 => {}
                        errno => return Err(io::Error::from_raw_os_error(-errno)),
                    },
                    (libc::NLMSG_DONE, _) => return Ok(()),
                    (_, Some(kept)) => kept.push(record[HEADER..].to_vec()),
                    (_, None) => {}
                }
            }
        }
    }

    fn ask(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Message)) -> io::Result<Vec<Vec<u8>>> {
        let mut message = Message::new(SUBSYSTEM << 8 | kind, flags);
        message.0.extend([FAMILY_INET, 0, 0, 0]);
        fill(&mut message);
        self.sequence = self.sequence.wrapping_add(1);
        message.seal(self.sequence, 0);
        rustix::net::send(&self.socket, &message.0, SendFlags::empty())?;
        let mut kept = vec![];
        self.answer(self.sequence, self.sequence, Some(&mut kept))?;
        Ok(kept)
    }

    /// Whether there is a table of this name.
    pub fn has_table(&mut self, table: &str) -> Result<bool, CallError> {
        match self.ask(GET_TABLE, ACKNOWLEDGE, |m| {
            m.text(A_TABLE, table);
        }) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            found => found.map(|_| true).context("find packet filter", table),
        }
    }

    /// How many elements a set has. A network counts as two. A set that is not there has none.
    pub fn count(&mut self, table: &str, set: &str) -> Result<usize, CallError> {
        let answers = self.ask(GET_ELEMENT, DUMP, |m| {
            m.text(A_TABLE, table).text(A_NAME, set);
        });
        let answers = match answers {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(0),
            answers => answers.context("list packet filter", table)?,
        };
        let attributes = |bytes| records(bytes, 4, |b| usize::from(half(b, 0)));
        let lists = answers.iter().flat_map(|a| attributes(a.get(4..).unwrap_or_default()));
        let lists = lists.filter(|attribute| half(attribute, 2) & 0x3fff == 3);
        Ok(lists.map(|list| attributes(&list[4..]).len()).sum())
    }

    /// Deletes a table and all in it. One that is not there is fine.
    pub fn delete_table(&mut self, table: &str) -> Result<(), CallError> {
        let mut batch = Batch::about(table);
        batch.delete_table();
        match self.commit(batch) {
            Err(error) if error.errno() != libc::ENOENT => Err(error),
            _ => Ok(()),
        }
    }
}
