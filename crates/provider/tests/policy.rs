//! What instances may reach, tried from inside. Needs root; skips loudly otherwise. This program's network namespace is the
//! host; another one stands for its local network and for the internet. `cargo test --test policy -- NAME` runs one case.

#[path = "policy/far.rs"]
mod far;
#[path = "local/host.rs"]
mod host;
#[macro_use]
#[path = "local/cases.rs"]
mod cases;
#[path = "local/stage.rs"]
mod stage;

use far::{Far, HOST_OUTSIDE, METADATA, NEIGHBOUR, PUBLIC, PUBLIC_OTHER, RESOLVER};
use host::Host;
use kiln_model::frame::Stream;
use kiln_model::*;
use kiln_provider::conformance::{Behaviour, Subject, check, until, until_ready};
use kiln_provider::local::{self, Inventory, LocalProvider, Subnet, inventory};
use kiln_provider::{Provider, ProviderError};
use kiln_sys::nftables::Nftables;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::ExitCode;

/// A service of the host itself, as its API or its SSH server.
const HOST_PORT: u16 = 8081;

fn main() -> ExitCode {
    if let Some(status) = stage::play() {
        return status;
    }
    let Some(wanted) = stage::enter("the tests of what instances may reach") else {
        return ExitCode::SUCCESS;
    };
    far::own_resolver();
    stage::run(all(&wanted))
}

struct Stage {
    host: Host,
    far: Far,
}

async fn all(wanted: &str) {
    let stage = Stage { host: Host::new(), far: Far::new() };
    // Opened once here: the listeners below need the host's own addresses.
    drop(stage.host.provider());
    // The host's own services, and what stands for the edge.
    for there in
        [at(Ipv4Addr::UNSPECIFIED, HOST_PORT), at(service(1), 80), at(service(1), 81), at(service(2), 80)]
    {
        far::listen(there, None);
    }
    cases! { wanted, &stage;
        nothing_but_its_own_services names_and_resolvers the_internet_and_nothing_private
        no_forwarding_no_internet nobody_comes_in a_foreign_source the_next_at_the_address
        what_was_changed_is_repaired
    }
    local::sweep(stage.host.state()).unwrap();
    assert_eq!(inventory(stage.host.state()), Inventory::default());
    // Nothing answers for service addresses any more.
    assert!(TcpListener::bind(at(service(1), 82)).is_err());
}

fn fence() -> Fence {
    Fence { incarnation: Incarnation(1), epoch: Epoch(9), revision: Revision(100), op: OpId(1) }
}

/// The service address of an environment.
fn service(network: u64) -> Ipv4Addr {
    Subnet::default().services().address(NetworkNumber(network)).unwrap()
}

fn gateway() -> Ipv4Addr {
    std::net::Ipv4Addr::new(10, 83, 0, 1)
}

/// An instance of environment 1, which has two services.
fn spec(stage: &Stage, sequence: u64, command: &[&str]) -> InstanceSpec {
    let mut spec = stage.host.spec(sequence, command);
    spec.network = NetworkNumber(1);
    spec.peers = ["api", "web"].map(|name| ServiceName::new(name).unwrap()).to_vec();
    spec
}

fn with_internet(mut spec: InstanceSpec) -> InstanceSpec {
    spec.confinement.egress = [Egress::Internet].into();
    spec
}

/// What the program of an instance printed by its end.
async fn printed(stage: &Stage, provider: &LocalProvider, spec: &InstanceSpec) -> Vec<String> {
    provider.ensure(fence(), spec, &NO_SECRETS).await.unwrap();
    until(provider, &spec.id, |state| matches!(state, SeenState::Exited(_))).await;
    let lines = stage.host.printed(&spec.id, Stream::Out);
    provider.absent(fence(), &spec.id).await.unwrap();
    lines
}

/// Which of the addresses an instance reaches, by the routing table and past it.
async fn reached(
    stage: &Stage,
    provider: &LocalProvider,
    sequence: u64,
    internet: bool,
    addresses: &[SocketAddr],
) -> Vec<SocketAddr> {
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let command: Vec<&str> = ["probe", "reach"].into_iter().chain(texts.iter().map(String::as_str)).collect();
    let mut spec = spec(stage, sequence, &command);
    if internet {
        spec = with_internet(spec);
    }
    let lines = printed(stage, provider, &spec).await;
    assert_eq!(lines.len(), 2 * addresses.len(), "{lines:?}");
    let of = |address: &&SocketAddr| {
        let own = lines.iter().filter(|line| line.starts_with(&format!("{address} bound ")));
        let ways: Vec<bool> = own.map(|line| line.ends_with(": reached")).collect();
        assert!(ways.len() == 2 && ways[0] == ways[1], "{address}: {lines:?}");
        ways[0]
    };
    addresses.iter().filter(of).copied().collect()
}

fn at(address: Ipv4Addr, port: u16) -> SocketAddr {
    (address, port).into()
}

/// Another instance that serves, and its address.
async fn other(stage: &Stage, provider: &LocalProvider, sequence: u64) -> (InstanceSpec, SocketAddr) {
    let spec = Subject::spec(&&stage.host, sequence, Behaviour::Serve);
    let seen = provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
    // The host's checks pass the filter.
    until_ready(provider, &spec.id, &check()).await;
    (spec, SocketAddr::new(seen.address.unwrap(), 8080))
}

async fn nothing_but_its_own_services(stage: &Stage) {
    let provider = stage.host.provider();
    let (neighbour, address) = other(stage, &provider, 1).await;
    let refused = [
        at(gateway(), HOST_PORT),
        at(HOST_OUTSIDE, HOST_PORT),
        at(service(1), 81),
        at(service(1), HOST_PORT),
        at(service(2), 80),
        at(service(2), HOST_PORT),
        at(NEIGHBOUR, 80),
    ];
    for there in refused {
        assert!(far::connects(there), "nothing listens at {there}");
    }
    let elsewhere = [address, at(METADATA, 80), at(PUBLIC, 80), at(PUBLIC_OTHER, 80), at(RESOLVER, 53)];
    let all: Vec<SocketAddr> = [at(service(1), 80)].into_iter().chain(refused).chain(elsewhere).collect();
    assert_eq!(reached(stage, &provider, 2, false, &all).await, [at(service(1), 80)]);
    // One that has no number has no services either.
    let mut nameless = spec(stage, 3, &["probe", "reach", &at(service(1), 80).to_string()]);
    (nameless.network, nameless.peers) = (NetworkNumber::default(), vec![]);
    let lines = printed(stage, &provider, &nameless).await;
    assert!(lines.iter().all(|line| line.ends_with(": not reached")), "{lines:?}");
    provider.absent(fence(), &neighbour.id).await.unwrap();
    assert_eq!(inventory(stage.host.state()).rules, 0);
}

async fn names_and_resolvers(stage: &Stage) {
    let provider = stage.host.provider();
    far::forwarding(true);
    let hosts = printed(stage, &provider, &spec(stage, 10, &["probe", "show", "/etc/hosts"])).await;
    let named: Vec<&String> = hosts.iter().filter(|line| line.contains("internal")).collect();
    assert_eq!(named, [&format!("{} api.internal", service(1)), &format!("{} web.internal", service(1))]);
    let show = ["probe", "show", "/etc/resolv.conf"];
    let closed = printed(stage, &provider, &spec(stage, 11, &show)).await;
    assert!(!closed.iter().any(|line| line.starts_with("nameserver")), "{closed:?}");
    let open = printed(stage, &provider, &with_internet(spec(stage, 12, &show))).await;
    assert_eq!(open, [format!("nameserver {RESOLVER}")]);
    // More environments than the subnet has service addresses.
    let mut crowded = spec(stage, 13, &["probe", "sleep"]);
    crowded.network = NetworkNumber(9000);
    let refused = provider.ensure(fence(), &crowded, &NO_SECRETS).await.unwrap_err();
    assert!(
        matches!(&refused, ProviderError::Permanent { .. }) && refused.to_string().contains("--subnet"),
        "{refused}"
    );
    provider.absent(fence(), &crowded.id).await.unwrap();
}

async fn the_internet_and_nothing_private(stage: &Stage) {
    let provider = stage.host.provider();
    far::forwarding(true);
    let (neighbour, address) = other(stage, &provider, 20).await;
    drop(stage.far.take_peers());
    let allowed = [at(service(1), 80), at(PUBLIC, 80), at(PUBLIC_OTHER, 443), at(RESOLVER, 53)];
    let refused = [
        at(gateway(), HOST_PORT),
        at(HOST_OUTSIDE, HOST_PORT),
        at(service(2), 80),
        address,
        at(METADATA, 80),
        at(NEIGHBOUR, 80),
        // A resolver is for questions only.
        at(RESOLVER, 80),
    ];
    let all: Vec<SocketAddr> = allowed.into_iter().chain(refused).collect();
    assert_eq!(reached(stage, &provider, 21, true, &all).await, allowed);
    // Nobody outside has seen an address of an instance.
    let peers = stage.far.take_peers();
    assert!(!peers.is_empty() && peers.iter().all(|peer| *peer == HOST_OUTSIDE), "{peers:?}");
    // What one may is no other's.
    assert_eq!(reached(stage, &provider, 22, false, &all).await, [at(service(1), 80)]);
    provider.absent(fence(), &neighbour.id).await.unwrap();
    assert_eq!(inventory(stage.host.state()).rules, 0);
}

async fn no_forwarding_no_internet(stage: &Stage) {
    let provider = stage.host.provider();
    far::forwarding(false);
    let asks = with_internet(spec(stage, 30, &["probe", "sleep"]));
    let refused = provider.ensure(fence(), &asks, &NO_SECRETS).await.unwrap_err();
    let text = refused.to_string();
    assert!(
        matches!(refused, ProviderError::Permanent { .. }) && text.contains("net.ipv4.ip_forward=1"),
        "{text}"
    );
    provider.absent(fence(), &asks.id).await.unwrap();
    assert_eq!(inventory(stage.host.state()).rules, 0);
    // Nothing is wrong with the others.
    assert_eq!(printed(stage, &provider, &spec(stage, 31, &["probe", "true"])).await, ["fine"]);
}

/// The host's neighbours know a way to the addresses of instances and services. It leads nowhere.
async fn nobody_comes_in(stage: &Stage) {
    let provider = stage.host.provider();
    far::forwarding(true);
    let (neighbour, address) = other(stage, &provider, 40).await;
    for there in [address, at(service(1), 80)] {
        assert!(far::connects(there), "{there}");
        assert!(!stage.far.reaches(there), "{there} is reached from outside");
    }
    assert!(stage.far.reaches(at(HOST_OUTSIDE, HOST_PORT)), "the host's own services are its own affair");
    provider.absent(fence(), &neighbour.id).await.unwrap();
}

/// Nobody can send from an address that is not its own, whosever that is.
async fn a_foreign_source(stage: &Stage) {
    let provider = stage.host.provider();
    let (neighbour, address) = other(stage, &provider, 50).await;
    let target = at(service(1), 80).to_string();
    let sources = [address, at(PUBLIC, 5000), at(gateway(), 5000), at(service(1), 5000)];
    for (sequence, source) in (51..).zip(sources) {
        let source = source.to_string();
        let lines =
            printed(stage, &provider, &spec(stage, sequence, &["probe", "forge", &source, &target])).await;
        assert!(
            lines.len() == 6 && lines.iter().all(|line| line.ends_with(": refused")),
            "{source}: {lines:?}"
        );
    }
    // The same ways work with an address that is its own, so that it was the address that was refused.
    let own = spec(stage, 59, &["probe", "forge", "0.0.0.0:0", &target]);
    let lines = printed(stage, &provider, &own).await;
    assert_eq!(lines[..1], ["stream freebind: sent"], "{lines:?}");
    provider.absent(fence(), &neighbour.id).await.unwrap();
}

/// The host still knows the connections of an instance that is gone. They are of no use to the next one at its address.
async fn the_next_at_the_address(_: &Stage) {
    far::forwarding(true);
    let host = Host::new();
    let mut config = local::LocalConfig::new(host.state());
    config.program = std::env::current_exe().unwrap();
    config.subnet = "10.99.0.0/29".parse().unwrap();
    let provider = LocalProvider::open(config).unwrap();
    let target = at(PUBLIC, far::ECHO_PORT).to_string();
    let mut first = None;
    for sequence in 60.. {
        let asks = host.spec(sequence, &["probe", "datagram", "40000", &target]);
        let allowed = sequence == 60;
        let asks = if allowed { with_internet(asks) } else { asks };
        let address = provider.ensure(fence(), &asks, &NO_SECRETS).await.unwrap().address;
        until(&provider, &asks.id, |state| matches!(state, SeenState::Exited(_))).await;
        let answer = host.printed(&asks.id, Stream::Out);
        provider.absent(fence(), &asks.id).await.unwrap();
        assert_eq!(answer, [if allowed { "answered" } else { "silent" }], "{address:?}");
        if !allowed && first == Some(address) {
            break;
        }
        first = first.or(Some(address));
    }
    drop(provider);
    local::sweep(host.state()).unwrap();
    assert_eq!(inventory(host.state()), Inventory::default());
}

/// Somebody may empty the host's packet filter, as `nft flush ruleset` does. That it matters shows that all of this is the
/// table's doing.
async fn what_was_changed_is_repaired(stage: &Stage) {
    let provider = stage.host.provider();
    let (neighbour, address) = other(stage, &provider, 70).await;
    let targets = [at(gateway(), HOST_PORT), at(service(2), 80)];
    assert_eq!(reached(stage, &provider, 71, false, &targets).await, []);
    far::forwarding(true);
    let empty = || Nftables::open().unwrap().delete_table(&table(stage)).unwrap();
    // By the next look at the instances.
    empty();
    assert!(stage.far.reaches(address), "without the table anybody comes in");
    provider.list().await.unwrap();
    assert!(!stage.far.reaches(address));
    // By the next start.
    empty();
    assert_eq!(reached(stage, &provider, 72, false, &targets).await, []);
    assert!(!stage.far.reaches(address));
    // By the next server.
    empty();
    drop(provider);
    let provider = stage.host.provider();
    assert!(!stage.far.reaches(address));
    // Also one that has no element in it.
    empty();
    let texts = targets.map(|target| target.to_string());
    let open = stage.host.spec(73, &["probe", "reach", &texts[0], &texts[1]]);
    provider.ensure(fence(), &open, &NO_SECRETS).await.unwrap();
    until(&provider, &open.id, |state| matches!(state, SeenState::Exited(_))).await;
    let lines = stage.host.printed(&open.id, Stream::Out);
    assert!(lines.len() == 4 && lines.iter().all(|line| line.ends_with(": not reached")), "{lines:?}");
    provider.absent(fence(), &open.id).await.unwrap();
    provider.absent(fence(), &neighbour.id).await.unwrap();
}

/// The table of the state folder: it is named as its groups are.
fn table(stage: &Stage) -> String {
    let hash = Digest::of(stage.host.state().canonicalize().unwrap().to_str().unwrap().as_bytes()).hex();
    format!("kiln-{}", &hash[..8])
}
