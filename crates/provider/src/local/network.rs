//! Network namespaces of instances: made before they are needed, never used twice. Each has one interface that is a port
//! of a bridge on the host, belongs to the host's user namespace, so that no process of an instance can ever change it,
//! and is gone with its last descriptor and its last process.

use super::mark::{Mark, Tag};
use super::order::Failure;
use super::subnet::Subnet;
use kiln_sys::netlink::{Netlink, Route};
use kiln_sys::process::Namespaces;
use kiln_sys::{CallError, Context, namespace};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};

/// The name of an instance's interface inside.
const INTERFACE: &str = "eth0";

/// One that is ready.
#[derive(Debug)]
pub(super) struct Network {
    pub number: u32,
    /// What its host end is named by.
    pub tag: Tag,
    pub namespace: OwnedFd,
}

impl Network {
    /// Makes one, in a thread of its own: a thread that could not come back from another namespace must not go on.
    pub(super) fn make(mark: &Mark, subnet: Subnet, number: u32, tag: Tag) -> Result<Self, Failure> {
        let link = mark.link(&tag);
        let made = std::thread::scope(|scope| {
            scope.spawn(|| make(mark, subnet, number, &link)).join().unwrap_or_else(|_| {
                Err(std::io::Error::from_raw_os_error(libc::EAGAIN)).context("make a network for", &link)
            })
        });
        Ok(Self { number, tag, namespace: made? })
    }
}

/// Makes the bridge of a block of addresses, or finds it.
pub(super) fn bridge(host: &Netlink, mark: &Mark, subnet: Subnet, number: u32) -> Result<u32, CallError> {
    let block = subnet.block(number);
    let bridge = host.bridge(&mark.bridge(block.index), mark.hardware(block.index))?;
    host.address(bridge, block.gateway, block.prefix)?;
    host.up(bridge)?;
    // An interface of ours may forward; whether the one to the internet does is for the host's owner to say.
    sysctl(&format!("net/ipv4/conf/{}/forwarding", mark.bridge(block.index)), "1")?;
    Ok(bridge)
}

fn make(mark: &Mark, subnet: Subnet, number: u32, link: &str) -> Result<OwnedFd, CallError> {
    let host = Netlink::open()?;
    let block = subnet.block(number);
    let bridge = match host.index(&mark.bridge(block.index)) {
        Err(error) if error.errno() == libc::ENODEV => bridge(&host, mark, subnet, number)?,
        found => found?,
    };
    namespace::unshare(Namespaces::NET)?;
    let address = subnet.address(number);
    let own = namespace::current_net()?;
    let port = host.veth(link, bridge, INTERFACE, hardware_of(address), own.as_fd())?;
    host.isolate(port)?;
    host.up(port)?;
    let inside = Netlink::open()?;
    inside.up(inside.index("lo")?)?;
    let interface = inside.index(INTERFACE)?;
    // Every user may listen on every port, as there is no privileged user in there.
    sysctl("net/ipv4/ip_unprivileged_port_start", "0")?;
    // A host without IPv6 has no such file.
    let _ = sysctl(&format!("net/ipv6/conf/{INTERFACE}/disable_ipv6"), "1");
    // Alone in its network: it speaks to nobody but the bridge, whatever the addresses of others are.
    inside.address(interface, address, 32)?;
    inside.up(interface)?;
    inside.route(Route::Direct(block.gateway), interface)?;
    inside.route(Route::Default(block.gateway), interface)?;
    Ok(own)
}

/// The hardware address that goes with an address, locally administered. It is the same whenever the address comes back:
/// whoever spoke to its last owner remembers it for up to a minute and would speak to nobody.
pub(crate) fn hardware_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x69, a, b, c, d]
}

fn sysctl(name: &str, value: &str) -> Result<(), CallError> {
    let path = format!("/proc/sys/{name}");
    std::fs::write(&path, value).context("write", path)
}
