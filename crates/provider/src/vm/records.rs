//! What a guest is told to start, in the records that its init reads (`crates/sys/guest/config.rs`).

use crate::local::folder::Record;
use crate::local::rootfs::RESOLVER;
use kiln_model::Egress;
use std::net::Ipv4Addr;

/// The records of an instance. Command and environment hold no NUL: that was looked at before.
pub(super) fn of(record: &Record, user: (u32, u32), prefix: u8, gateway: Ipv4Addr) -> Vec<u8> {
    let spec = &record.spec;
    let capabilities = spec.confinement.capabilities.iter();
    let capabilities: u64 = capabilities.map(|capability| 1 << capability.number()).sum();
    let mut rows = vec![("name", spec.id.to_string())];
    rows.extend(spec.command.iter().map(|argument| ("argument", argument.clone())));
    rows.extend(spec.environment.iter().map(|(name, value)| ("env", format!("{name}={value}"))));
    rows.extend(spec.writable.iter().map(|place| ("writable", place.clone())));
    rows.extend([
        ("user", format!("{} {}", user.0, user.1)),
        ("writable-bytes", spec.resources.memory_bytes.to_string()),
        ("address", format!("{}/{prefix}", record.address)),
        ("layers", spec.manifest.layers.len().to_string()),
        ("memory-bytes", spec.resources.memory_bytes.to_string()),
        ("pids", spec.resources.pids.to_string()),
        ("capabilities", capabilities.to_string()),
        ("resolver", RESOLVER.to_owned()),
    ]);
    // Others have no way out, as in a sandbox.
    if spec.confinement.egress.contains(&Egress::Internet) {
        rows.push(("gateway", gateway.to_string()));
    }
    rows.into_iter().flat_map(|(name, value)| format!("{name} {value}\0").into_bytes()).collect()
}
