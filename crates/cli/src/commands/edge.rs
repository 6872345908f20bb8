//! `kiln edge`: its options. The binary carries it out.

use super::serve::traffic_address;
use crate::{Context, Failure};
use clap::Args;
use kiln_model::{Cidr, ServiceRange};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Options of `kiln edge`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "`kiln serve` starts one by itself if none answers in its state folder; this is for a service manager.

Examples:
  kiln edge --dir /var/lib/kiln/edge --listen 0.0.0.0:80 --internal 10.83.224.0/19
  kiln edge --dir /var/lib/kiln/edge --listen 0.0.0.0:80 --listen-tls 0.0.0.0:443 --certificates /etc/kiln/certificates
  kiln edge --dir /var/lib/kiln/edge --upgrade"
)]
pub struct EdgeArgs {
    /// The folder of its socket, its table and its log: `edge` in the state folder of the server
    // An id of its own: `dir` is that of the global `-C`, which this would replace.
    #[arg(id = "edge_dir", long = "dir", value_name = "DIR")]
    pub dir: PathBuf,
    /// An address that takes traffic; may be given several times
    #[arg(long, value_name = "ADDR", required_unless_present_any = ["listen_tls", "upgrade"], value_parser = traffic_address)]
    pub listen: Vec<SocketAddr>,
    /// An address that takes traffic over TLS; may be given several times
    #[arg(long, value_name = "ADDR", value_parser = traffic_address)]
    pub listen_tls: Vec<SocketAddr>,
    /// The folder of certificates, pairs of `NAME.crt` and `NAME.key` in PEM [default: `certificates` in its own folder]
    #[arg(long, value_name = "DIR")]
    pub certificates: Option<PathBuf>,
    /// The service addresses of environments, where instances find each other by name: the top eighth of the server's
    /// `--subnet`, as in `10.83.224.0/19`; without it there are no names inside
    #[arg(long, value_name = "CIDR")]
    pub internal: Option<ServiceRange>,
    /// A proxy in front of this one, or a block of them, whose PROXY protocol headers (version 2) are believed; from there every
    /// connection has to begin with one. May be given several times
    #[arg(long, value_name = "CIDR")]
    pub proxy_protocol: Vec<Cidr>,
    /// Log every request
    #[arg(long)]
    pub access_log: bool,
    /// Have the edge that runs in this folder replaced by this program, and wait until that serves. No connection is lost; if
    /// the new one cannot serve, the old one goes on. Addresses that are given replace those that it has
    #[arg(long, conflicts_with = "take_over")]
    pub upgrade: bool,
    /// Start in the place of the edge that runs in this folder, with all its sockets; as usual if none does
    #[arg(long)]
    pub take_over: bool,
}

pub(crate) fn run(context: &Context<'_>, arguments: EdgeArgs) -> Result<(), Failure> {
    context.roles().edge(&arguments)
}
