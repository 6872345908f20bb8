//! What an instance reads in /etc about itself and its neighbours. Pure text; who mounts it is another matter.

use super::folder::Record;
use kiln_model::network::internal_host;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// What the server knows of the network that an instance is told. It travels with the order: where the files are made, the
/// host's own may be out of sight.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Neighbours {
    /// What the names of its environment's services mean.
    pub services: Option<Ipv4Addr>,
    /// The name servers that it may ask; none if it may ask none.
    pub resolvers: Option<Vec<Ipv4Addr>>,
}

/// The content of /etc/hosts and of /etc/resolv.conf.
pub(crate) fn files(record: &Record, neighbours: &Neighbours) -> [String; 2] {
    let id = &record.spec.id;
    let mut hosts = format!("127.0.0.1 localhost\n::1 localhost\n{} {id}\n", record.address);
    for peer in &record.spec.peers {
        if let Some(address) = neighbours.services {
            hosts.push_str(&format!("{address} {}\n", internal_host(peer)));
        }
    }
    [hosts, resolver(neighbours)]
}

fn resolver(neighbours: &Neighbours) -> String {
    match neighbours.resolvers.as_deref() {
        // It can reach none: do not let libraries wait for one.
        None => "# names of services are in /etc/hosts; `egress = [\"internet\"]` gives more\noptions timeout:1 attempts:1\n"
            .to_owned(),
        Some([]) => {
            "# the host has no name server that instances could reach\noptions timeout:1 attempts:1\n".to_owned()
        }
        Some(servers) => servers.iter().map(|server| format!("nameserver {server}\n")).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_model::{Fence, NetworkNumber, ServiceName};

    fn record(peers: &[&str]) -> Record {
        let mut spec = crate::conformance::spec(7);
        spec.network = NetworkNumber(1);
        spec.peers = peers.iter().map(|peer| ServiceName::new(*peer).unwrap()).collect();
        Record { spec, address: Ipv4Addr::new(10, 83, 0, 2), number: 2, fence: Fence::default(), tag: None }
    }

    #[test]
    fn hosts_names_the_instance_and_the_services_of_its_environment() {
        let services = Some(Ipv4Addr::new(10, 83, 255, 254));
        let neighbours = Neighbours { services, ..Neighbours::default() };
        let [hosts, resolver] = files(&record(&["api", "web"]), &neighbours);
        assert_eq!(
            hosts,
            "127.0.0.1 localhost\n::1 localhost\n10.83.0.2 web-7\n10.83.255.254 api.internal\n10.83.255.254 web.internal\n"
        );
        assert!(!resolver.contains("nameserver"), "{resolver}");
        let [hosts, _] = files(&record(&["api"]), &Neighbours::default());
        assert!(!hosts.contains("internal"), "{hosts}");
    }

    #[test]
    fn name_servers_are_for_those_who_may_ask_them() {
        let with = |resolvers| Neighbours { resolvers: Some(resolvers), ..Neighbours::default() };
        let [_, some] =
            files(&record(&[]), &with(vec![Ipv4Addr::new(1, 1, 1, 1), Ipv4Addr::new(10, 0, 0, 2)]));
        assert_eq!(some, "nameserver 1.1.1.1\nnameserver 10.0.0.2\n");
        let [_, none] = files(&record(&[]), &with(vec![]));
        assert!(none.starts_with("# the host has no name server"), "{none}");
    }
}
