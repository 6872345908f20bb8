//! What instances may reach: a table of the host's packet filter per state folder, default deny.
//!
//! ```text
//! from an instance to this host ── a reply ─────────────────────────▶ pass   (checks, and the edge's own requests)
//!                               ── its own service address, tcp 80 ─▶ pass   (set `services`: instance . address)
//!                               ── else ────────────────────────────▶ refused (all that this host listens on)
//! from an instance to others    ── egress = ["internet"], public ───▶ pass, masqueraded (set `internet`)
//!                               ── the same to a resolver, 53 ──────▶ pass
//!                               ── else ────────────────────────────▶ refused
//! from others to an instance    ── of a connection that it opened ──▶ pass
//!                               ── else ────────────────────────────▶ dropped
//! from others to service addresses ───────────────────────────────── ▶ dropped
//! ```
//! The table is replaced as a whole, in one transaction, when a provider opens; an instance is an element or two of its
//! sets, there before its program starts. A packet that goes the first way of its connection is judged by the sets also when
//! the connection is known: what a dead instance was allowed says nothing about the next one at its address.

use super::etc::Neighbours;
use super::folder::Record;
use super::mark::Mark;
use super::order::Failure;
use super::subnet::Subnet;
use kiln_model::{Egress, network::INTERNAL_PORT};
use kiln_sys::CallError;
use kiln_sys::nftables::{Batch, Hook, Interface, Nftables, Protocol, Rule, Side, Verdict};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

const SERVICES: &str = "services";
const INTERNET: &str = "internet";
const PRIVATE: &str = "private";
const RESOLVERS: &str = "resolvers";

const INPUT: &str = "input";
const FORWARD: &str = "forward";
const TO_HOST: &str = "to_host";
const TO_OTHERS: &str = "to_others";
const LEAVE: &str = "leave";

/// What is not the internet: "this network", private and shared use, loopback, link-local (metadata services), protocol
/// assignments, documentation, benchmarks, multicast, reserved (RFC 6890). In ascending order.
const NOT_PUBLIC: [(Ipv4Addr, u8); 14] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    // Multicast, reserved, broadcast.
    (Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// The policy of one state folder, in force.
#[derive(Debug)]
pub(crate) struct Policy {
    mark: Mark,
    table: String,
    subnet: Subnet,
    filter: Mutex<Nftables>,
}

/// The table of a state folder.
fn table(mark: &Mark) -> String {
    mark.cgroup()
}

/// What an instance is in the sets: set and key.
type Element = (&'static str, Vec<Ipv4Addr>);

impl Policy {
    /// Puts it in force, for the instances that there are already as well. Whatever was changed in the table is undone.
    pub(crate) fn open<'a>(
        mark: &Mark,
        subnet: Subnet,
        live: impl Iterator<Item = &'a Record>,
    ) -> Result<Self, CallError> {
        let filter = Mutex::new(Nftables::open()?);
        let policy = Self { mark: mark.clone(), table: table(mark), subnet, filter };
        policy.enforce(live)?;
        Ok(policy)
    }

    /// Makes the table anew, with the elements of these instances.
    pub(crate) fn enforce<'a>(&self, live: impl Iterator<Item = &'a Record>) -> Result<(), CallError> {
        let mut batch = rules(&self.mark, self.subnet);
        let elements: Vec<Element> = live.flat_map(|record| elements(self.subnet, record)).collect();
        for set in [SERVICES, INTERNET] {
            let own = elements.iter().filter(|(of, _)| *of == set);
            batch.add(set, &own.map(|(_, key)| &key[..]).collect::<Vec<_>>());
        }
        batch.add(RESOLVERS, &resolvers().iter().map(std::slice::from_ref).collect::<Vec<_>>());
        self.commit(batch)
    }

    /// Whether the table is there. Who empties the host's packet filter (`nft flush ruleset`) takes it along.
    pub(crate) fn is_enforced(&self) -> Result<bool, CallError> {
        self.filter.lock().unwrap_or_else(PoisonError::into_inner).has_table(&self.table)
    }

    /// Lets an instance reach what it may. To be called before its program starts; any number of times.
    pub(crate) fn allow(&self, record: &Record) -> Result<(), Failure> {
        if !record.spec.peers.is_empty() && self.service_address(record).is_none() {
            let capacity = self.subnet.services().capacity();
            let detail = format!(
                "`{}` has room for the names of {capacity} environments, and this is number {}; hint: give a larger `--subnet`",
                self.subnet, record.spec.network
            );
            return Err(Failure::permanent("give the environment a service address", detail));
        }
        let mut batch = Batch::about(&self.table);
        for (set, key) in elements(self.subnet, record) {
            batch.add(set, &[&key]);
        }
        if wants_internet(record) {
            may_forward()?;
            batch.add(RESOLVERS, &resolvers().iter().map(std::slice::from_ref).collect::<Vec<_>>());
        }
        match self.commit(batch) {
            // Somebody removed the table since it was looked for; it is made anew.
            Err(error) if error.errno() == libc::ENOENT => {
                Err(Failure::retry(error.to_string(), error.source.to_string()))
            }
            done => Ok(done?),
        }
    }

    /// Takes it back, once nothing of the instance runs. Fine if it was never allowed.
    pub(crate) fn forget(&self, record: &Record) -> Result<(), Failure> {
        for (set, key) in elements(self.subnet, record) {
            // One by one: an element that is missing makes its transaction fail.
            let mut batch = Batch::about(&self.table);
            batch.remove(set, &[&key]);
            match self.commit(batch) {
                Err(error) if error.errno() != libc::ENOENT => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// What the instance is told of it.
    pub(crate) fn neighbours(&self, record: &Record) -> Neighbours {
        Neighbours {
            services: self.service_address(record),
            resolvers: wants_internet(record).then(resolvers),
        }
    }

    /// The address at which an instance finds the services of its environment.
    fn service_address(&self, record: &Record) -> Option<Ipv4Addr> {
        self.subnet.services().address(record.spec.network)
    }

    fn commit(&self, batch: Batch) -> Result<(), CallError> {
        self.filter.lock().unwrap_or_else(PoisonError::into_inner).commit(batch)
    }
}

/// Removes it: nothing is judged any more. Fine if there is none.
pub(crate) fn remove(mark: &Mark) -> Result<(), CallError> {
    Nftables::open()?.delete_table(&table(mark))
}

/// Whether there is a table, and how many instances' elements are in it.
pub(crate) fn count(mark: &Mark) -> Result<(usize, usize), CallError> {
    let (mut filter, table) = (Nftables::open()?, table(mark));
    let elements = filter.count(&table, SERVICES)? + filter.count(&table, INTERNET)?;
    Ok((usize::from(filter.has_table(&table)?), elements))
}

fn wants_internet(record: &Record) -> bool {
    record.spec.confinement.egress.contains(&Egress::Internet)
}

fn elements(subnet: Subnet, record: &Record) -> Vec<Element> {
    let service = subnet.services().address(record.spec.network);
    let named = service.map(|service| (SERVICES, vec![record.address, service]));
    let internet = wants_internet(record).then(|| (INTERNET, vec![record.address]));
    named.into_iter().chain(internet).collect()
}

fn rules(mark: &Mark, subnet: Subnet) -> Batch {
    // The bridges of this state folder, all of them.
    let bridge = mark.bridge(0);
    let ours = Interface::Starting(&bridge);
    let services = subnet.services();
    let mut batch = Batch::about(&table(mark));
    batch.replace_table();
    batch.set_of_pairs(SERVICES);
    batch.set_of_addresses(INTERNET);
    batch.set_of_addresses(RESOLVERS);
    batch.set_of_networks(PRIVATE, &NOT_PUBLIC);
    for (chain, hook) in [
        (TO_HOST, None),
        (TO_OTHERS, None),
        (INPUT, Some(Hook::Input)),
        (FORWARD, Some(Hook::Forward)),
        (LEAVE, Some(Hook::SourceTranslation)),
    ] {
        batch.chain(chain, hook);
    }

    batch.rule(TO_HOST, Rule::new().is_reply().of_connection(), Verdict::Accept);
    let named = Rule::new().pair_in(SERVICES).to_port(Protocol::Tcp, INTERNAL_PORT);
    batch.rule(TO_HOST, named, Verdict::Accept);
    for chain in [TO_HOST, TO_OTHERS] {
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            let asks = Rule::new().address_in(Side::Source, INTERNET, true);
            let asks = asks.address_in(Side::Destination, RESOLVERS, true).to_port(protocol, 53);
            batch.rule(chain, asks, Verdict::Accept);
        }
    }

    let public = Rule::new().address_in(Side::Source, INTERNET, true);
    batch.rule(TO_OTHERS, public.address_in(Side::Destination, PRIVATE, false), Verdict::Accept);
    for chain in [TO_HOST, TO_OTHERS] {
        batch.rule(chain, Rule::new().of_protocol(Protocol::Tcp), Verdict::Reset);
        batch.rule(chain, Rule::new(), Verdict::Reject);
    }

    batch.rule(INPUT, Rule::new().came_by(ours, true), Verdict::Goto(TO_HOST));
    // The host answers for all service addresses, on all of its interfaces; the names are for instances only.
    let strangers = Rule::new().came_by(Interface::Named("lo"), false);
    let range = (services.first(), services.prefix());
    batch.rule(INPUT, strangers.address_of(Side::Destination, range.0, range.1, true), Verdict::Drop);
    batch.rule(FORWARD, Rule::new().came_by(ours, true), Verdict::Goto(TO_OTHERS));
    batch.rule(FORWARD, Rule::new().leaves_by(ours).is_reply().of_connection(), Verdict::Accept);
    batch.rule(FORWARD, Rule::new().leaves_by(ours), Verdict::Drop);

    let outward = Rule::new().address_in(Side::Source, INTERNET, true);
    let outward = outward.address_of(Side::Destination, subnet.first(), subnet.prefix(), false);
    batch.rule(LEAVE, outward, Verdict::Masquerade);
    batch
}

/// Whether answers from the internet can come back: the interface of the default route has to forward, and that setting
/// is the host's.
fn may_forward() -> Result<(), Failure> {
    let on = |name: &str| {
        let path = format!("/proc/sys/net/ipv4/{name}");
        std::fs::read_to_string(path).is_ok_and(|value| value.trim() == "1")
    };
    // Columns: interface, destination, gateway, flags, …, mask.
    let routes = std::fs::read_to_string("/proc/self/net/route").unwrap_or_default();
    let default = routes.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.get(1) == Some(&"00000000") && fields.get(7) == Some(&"00000000")).then(|| fields[0])
    });
    if on("ip_forward") || default.is_some_and(|name| on(&format!("conf/{name}/forwarding"))) {
        return Ok(());
    }
    let detail = "this host forwards no packets; hint: `sysctl -w net.ipv4.ip_forward=1`, and the same line in \
                  `/etc/sysctl.d/` to keep it";
    Err(Failure::permanent("let it reach the internet", detail))
}

/// The host's name servers that an instance can be sent to: IPv4, and not on the host's loopback. A stub of
/// systemd-resolved there knows the real ones.
pub(crate) fn resolvers() -> Vec<Ipv4Addr> {
    let read = |path: &str| servers(&std::fs::read_to_string(Path::new(path)).unwrap_or_default());
    let found = read("/etc/resolv.conf");
    if found.is_empty() { read("/run/systemd/resolve/resolv.conf") } else { found }
}

fn servers(text: &str) -> Vec<Ipv4Addr> {
    // As many as the C library reads.
    const SERVERS_MAX: usize = 3;
    let server = |line: &str| line.trim().strip_prefix("nameserver")?.trim().parse::<Ipv4Addr>().ok();
    let usable = |server: &Ipv4Addr| !server.is_loopback() && !server.is_unspecified();
    text.lines().filter_map(server).filter(usable).take(SERVERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_of_the_hosts_loopback_are_none_for_instances() {
        let text = "# x\nnameserver 127.0.0.53\nnameserver ::1\n nameserver\t10.0.0.2\nnameserver 1.1.1.1 \nsearch x\n";
        assert_eq!(servers(text), [Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(1, 1, 1, 1)]);
        assert_eq!(
            servers("nameserver 127.0.0.1\noptions edns0\nnameservers 1.1.1.1\n"),
            [Ipv4Addr::UNSPECIFIED; 0]
        );
    }

    #[test]
    fn what_is_not_public_is_in_order_and_does_not_overlap() {
        let mut end = 0u64;
        for (first, prefix) in NOT_PUBLIC {
            let begin = u64::from(u32::from(first));
            assert!(begin >= end && begin.is_multiple_of(1 << (32 - prefix)), "{first}/{prefix}");
            end = begin + (1 << (32 - prefix));
            // Two that touch would be one in the kernel's eyes.
            assert!(
                !NOT_PUBLIC.iter().any(|(next, _)| u64::from(u32::from(*next)) == end),
                "{first}/{prefix}"
            );
        }
        assert_eq!(end, 1 << 32);
    }
}
