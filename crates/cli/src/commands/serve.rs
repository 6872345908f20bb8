//! `kiln serve`: its options. The binary carries it out.

use crate::{Context, Failure};
use clap::Args;
use kiln_api::{Address, address};
use kiln_model::Cidr;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Where all that a server keeps is, unless it is told otherwise.
pub(crate) const STATE_DEFAULT: &str = "/var/lib/kiln";

/// Options of `kiln serve`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Needs root. When it ends, instances and load balancer go on; the next one takes them over. `kiln down` ends all.

Examples:
  sudo kiln serve --edge 0.0.0.0:80
  sudo kiln serve --edge 0.0.0.0:80 --edge-tls 0.0.0.0:443 --certificates /etc/kiln/certificates
  sudo kiln serve --state /tmp/kiln --listen unix:/tmp/kiln.sock --edge 127.0.0.1:8080
  sudo kiln serve --store file:/etc/kiln/database --listen unix:/run/kiln/b.sock --edge 0.0.0.0:80"
)]
pub struct ServeArgs {
    /// The folder that holds all state
    #[arg(long, value_name = "DIR", default_value = STATE_DEFAULT)]
    pub state: PathBuf,
    /// The socket that the command line talks to
    #[arg(long, value_name = "ADDR", env = "KILN_ADDR", default_value = address::DEFAULT, hide_env_values = true)]
    pub listen: Address,
    /// A PostgreSQL database that several servers share, instead of a file in the state folder: `postgres://USER@HOST/DATABASE`, or `file:PATH` of a file that holds that, with a password if need be
    #[arg(long, value_name = "STORE", env = "KILN_STORE", hide_env_values = true)]
    pub store: Option<String>,
    /// An address that takes traffic; may be given several times. Without it a load balancer must run already
    #[arg(long, value_name = "ADDR", value_parser = traffic_address)]
    pub edge: Vec<SocketAddr>,
    /// An address that takes traffic over TLS; may be given several times
    #[arg(long, value_name = "ADDR", value_parser = traffic_address)]
    pub edge_tls: Vec<SocketAddr>,
    /// The load balancer's folder of certificates, pairs of `NAME.crt` and `NAME.key` in PEM [default: `edge/certificates` in the state folder]
    #[arg(long, value_name = "DIR")]
    pub certificates: Option<PathBuf>,
    /// A proxy in front of the load balancer, or a block of them, whose PROXY protocol headers (version 2) it believes; from there every connection has to begin with one. May be given several times; a running load balancer keeps what it has
    #[arg(long, value_name = "CIDR")]
    pub edge_proxy_protocol: Vec<Cidr>,
    /// The network that instances get their addresses from
    #[arg(long, value_name = "CIDR", default_value = "10.83.0.0/16")]
    pub subnet: String,
    /// Where Debian packages come from: `http://HOST/debian` or `file:DIR` [default: the apt sources of this host]
    #[arg(long, value_name = "URL")]
    pub mirror: Option<String>,
    /// Credentials of registries for `oci:` bases: a `config.json` as `docker login` writes it
    #[arg(long, value_name = "FILE")]
    pub registry_auth: Option<PathBuf>,
    /// The public keys that may sign its package lists, instead of Debian's; as `gpg --export` writes them
    #[arg(long, value_name = "FILE")]
    pub keyring: Option<PathBuf>,
    /// The private key that signs images, ed25519 in PKCS#8 PEM [default: one of its own in the state folder]
    #[arg(long, value_name = "FILE")]
    pub signing_key: Option<PathBuf>,
    /// The public keys whose images may run, one `ed25519:BASE64` a line [default: the server's own]
    #[arg(long, value_name = "FILE")]
    pub trust: Option<PathBuf>,
}

/// The address of a load balancer. Names are not looked up: what a name means may change.
pub(crate) fn traffic_address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "expected ADDRESS:PORT, as in `0.0.0.0:80`, `127.0.0.1:8080` or `[::]:80`".into())
}

pub(crate) fn run(context: &Context<'_>, arguments: ServeArgs) -> Result<(), Failure> {
    context.roles().serve(&arguments)
}
