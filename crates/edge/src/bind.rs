//! Listeners of the data path.

use socket2::{Domain, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};

/// A listener that shares its port with those of the other threads.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// Also finds out whether another process has the port: with `SO_REUSEPORT` the kernel would share it silently.
pub(crate) fn bind_first(address: SocketAddr) -> io::Result<TcpListener> {
    if address.port() != 0 {
        probe(address)?;
    }
    bind(address)
}

/// Fails if anybody listens there.
pub(crate) fn probe(address: SocketAddr) -> io::Result<()> {
    let probe = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    probe.set_reuse_address(true)?;
    if address.is_ipv6() {
        probe.set_only_v6(true)?;
    }
    probe.bind(&address.into())
}
