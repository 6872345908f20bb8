//! Who asks: the user at the other end of the socket, as the kernel says.

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::net::UnixListener;

/// The user at the other end.
#[derive(Debug, Clone)]
pub struct Actor(pub String);

impl Connected<IncomingStream<'_, UnixListener>> for Actor {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        match stream.io().peer_cred() {
            Ok(credentials) => Actor(name_of(credentials.uid())),
            Err(_) => Actor("unknown".into()),
        }
    }
}

/// The same with what is needed to believe another server.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) actor: Actor,
    uid: Option<u32>,
}

impl Peer {
    /// Whether it runs as the same user as this server, as the other servers do.
    pub(crate) fn is_ours(&self) -> bool {
        self.uid == Some(rustix::process::geteuid().as_raw())
    }
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let uid = stream.io().peer_cred().ok().map(|credentials| credentials.uid());
        Self { actor: Actor::connect_info(stream), uid }
    }
}

/// The user's name, else the number.
fn name_of(uid: u32) -> String {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let row = |line: &str| -> Option<String> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    };
    users.lines().find_map(row).unwrap_or_else(|| format!("uid {uid}"))
}
