//! What is outside of the host: a network namespace that stands for its local network and for the internet, connected by
//! one cable, and listeners on both sides.

use kiln_sys::namespace::{self, current_net};
use kiln_sys::netlink::{Netlink, Route};
use kiln_sys::process::Namespaces;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The host's own address out there.
pub const HOST_OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
/// A machine of the local network, and the host's way to everything.
pub const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 2);
/// Where clouds tell machines their secrets.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Somebody on the internet.
pub const PUBLIC: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);
pub const PUBLIC_OTHER: Ipv4Addr = Ipv4Addr::new(203, 1, 2, 3);
/// The host's name server, in a private network.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 53);
/// Answers datagrams.
pub const ECHO_PORT: u16 = 5353;

/// How long a connect that is dropped is waited for.
const SILENCE: Duration = Duration::from_millis(700);

type Peers = Arc<Mutex<Vec<IpAddr>>>;
type Job = Box<dyn FnOnce() + Send>;

/// The namespace; a thread lives in it and does there what it is told.
pub struct Far {
    jobs: std::sync::mpsc::Sender<Job>,
    peers: Peers,
}

impl Far {
    pub fn new() -> Self {
        let (jobs, next) = std::sync::mpsc::channel::<Job>();
        let (say, told) = std::sync::mpsc::channel::<OwnedFd>();
        std::thread::spawn(move || {
            namespace::enter_private_net().unwrap();
            say.send(current_net().unwrap()).unwrap();
            next.into_iter().for_each(|job| job());
        });
        let net = Netlink::open().unwrap();
        let outside = net.bridge("uplink", [2, 0, 0, 0, 1, 0]).unwrap();
        let port = net.veth("cable", outside, "eth0", [2, 0, 0, 0, 1, 2], told.recv().unwrap()).unwrap();
        net.address(outside, HOST_OUTSIDE, 24).unwrap();
        net.up(port).unwrap();
        net.up(outside).unwrap();
        net.route(Route::Default(NEIGHBOUR), outside).unwrap();
        let far = Self { jobs, peers: Peers::default() };
        let peers = far.peers.clone();
        far.run(move || {
            let net = Netlink::open().unwrap();
            let link = net.index("eth0").unwrap();
            net.address(link, NEIGHBOUR, 24).unwrap();
            for address in [METADATA, PUBLIC, PUBLIC_OTHER, RESOLVER] {
                net.address(link, address, 32).unwrap();
            }
            net.up(link).unwrap();
            // Also to the addresses of instances and services: it knows where they are.
            net.route(Route::Default(HOST_OUTSIDE), link).unwrap();
            for port in [53, 80, 443] {
                listen((Ipv4Addr::UNSPECIFIED, port).into(), Some(peers.clone()));
            }
            echo();
        });
        far
    }

    /// Does something out there and waits for it.
    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (say, told) = std::sync::mpsc::channel();
        self.jobs.send(Box::new(move || say.send(job()).unwrap())).unwrap();
        told.recv().unwrap()
    }

    /// Whether a connection from out there is answered.
    pub fn reaches(&self, address: SocketAddr) -> bool {
        self.run(move || connects(address))
    }

    /// Who has connected out there, and forgets them.
    pub fn take_peers(&self) -> Vec<IpAddr> {
        std::mem::take(&mut *self.peers.lock().unwrap())
    }
}

pub fn connects(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, SILENCE).is_ok()
}

/// Accepts for ever on a thread, in the network namespace of the caller.
pub fn listen(address: SocketAddr, peers: Option<Peers>) {
    let listener = TcpListener::bind(address).unwrap_or_else(|error| panic!("{address}: {error}"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if let (Some(peers), Ok(peer)) = (&peers, stream.peer_addr()) {
                peers.lock().unwrap().push(peer.ip());
            }
        }
    });
}

fn echo() {
    let socket = UdpSocket::bind((PUBLIC, ECHO_PORT)).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((n, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..n], peer);
        }
    });
}

/// Whether this namespace forwards packets.
pub fn forwarding(on: bool) {
    let mut file = std::fs::File::create("/proc/sys/net/ipv4/ip_forward").unwrap();
    file.write_all(if on { b"1" } else { b"0" }).unwrap();
}

/// Gives this process an `/etc/resolv.conf` of its own, in a mount namespace of its own.
pub fn own_resolver() {
    use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
    namespace::unshare(Namespaces::MOUNT).unwrap();
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("resolv.conf");
    std::fs::write(&file, format!("nameserver 127.0.0.53\nnameserver {RESOLVER}\n")).unwrap();
    mount_bind(&file, "/etc/resolv.conf").unwrap();
    // The mount keeps the file.
}
