//! What the guest's init is told: `NAME VALUE` records, each with a NUL at its end. An exported machine has them in the file
//! `/kiln/start` of its initrd (`kiln_image::export::boot`), an instance gets them from its host (`kiln_provider::vm`).

use std::path::PathBuf;

/// What to start.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The bytes of the root file system from 1024 on; they have its checksum, so no other one has the same.
    pub root: Vec<u8>,
    /// The name of the service, which becomes the machine's.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Who it runs as.
    pub user: (u32, u32),
    /// Directories that are a tmpfs of the user.
    pub writable: Vec<PathBuf>,
    /// Bytes of each of them.
    pub writable_bytes: u64,
    /// The signal that ends it, and the seconds until it is killed.
    pub stop: (i32, i32),
    /// `ADDRESS/BITS`; none asks DHCP.
    pub address: Option<String>,
    /// The way out.
    pub gateway: Option<String>,
    /// An instance's image has that many disks, each with the serial number `layerN`, the lowest with 0.
    pub layers: usize,
    /// Bytes of memory that an instance's programs share; 0 for no limit of their own.
    pub memory_bytes: u64,
    /// Processes and threads that an instance's programs may have; 0 for no limit of their own.
    pub pids: u32,
    /// Capabilities that an instance's programs keep, as a mask.
    pub capabilities: u64,
    /// The content of /etc/hosts.
    pub hosts: String,
    /// The text of /etc/resolv.conf of an instance.
    pub resolver: String,
    /// The secrets of an instance, which come apart from the records.
    pub secrets: Vec<(String, Vec<u8>)>,
}

impl Config {
    /// Reads it. What stands on the kernel's command line goes before what stands in the file.
    pub fn parse(bytes: &[u8], command_line: &str) -> Option<Self> {
        let mut config = Self { stop: (15, 10), ..Self::default() };
        for record in std::str::from_utf8(bytes).ok()?.split_terminator('\0') {
            let (name, value) = record.split_once(' ')?;
            let pair = || value.split_once(' ');
            match name {
                "root" => config.root = hex(value)?,
                "name" => config.name = value.to_owned(),
                "argument" => config.command.push(value.to_owned()),
                "env" => config.env.push(value.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()))?),
                "user" => config.user = pair().and_then(|(u, g)| Some((u.parse().ok()?, g.parse().ok()?)))?,
                "writable" => config.writable.push(PathBuf::from(value)),
                "writable-bytes" => config.writable_bytes = value.parse().ok()?,
                "stop" => config.stop = pair().and_then(|(s, t)| Some((s.parse().ok()?, t.parse().ok()?)))?,
                "address" => config.address = Some(value.to_owned()),
                "gateway" => config.gateway = Some(value.to_owned()),
                "layers" => config.layers = value.parse().ok()?,
                "memory-bytes" => config.memory_bytes = value.parse().ok()?,
                "pids" => config.pids = value.parse().ok()?,
                "capabilities" => config.capabilities = value.parse().ok()?,
                "hosts" => config.hosts = value.to_owned(),
                "resolver" => config.resolver = value.to_owned(),
                // Of a later kiln.
                _ => {}
            }
        }
        for word in command_line.split_ascii_whitespace() {
            match word.split_once('=') {
                Some(("kiln.address", value)) => config.address = Some(value.to_owned()),
                Some(("kiln.gateway", value)) => config.gateway = Some(value.to_owned()),
                _ => {}
            }
        }
        let has_root = !config.root.is_empty() || config.layers > 0;
        (has_root && !config.command.is_empty()).then_some(config)
    }
}

fn hex(text: &str) -> Option<Vec<u8>> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}
