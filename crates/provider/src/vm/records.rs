//! What a guest is told to start, in the records that its init reads (`crates/sys/guest/config.rs`).

use super::launch::MachineOrder;
use crate::local::folder::Record;

/// The records of an instance. Command and environment hold no NUL: that was looked at before.
pub(super) fn of(record: &Record, user: (u32, u32), order: &MachineOrder) -> Vec<u8> {
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
        ("address", format!("{}/{}", record.address, order.prefix)),
        ("layers", spec.manifest.layers.len().to_string()),
        ("memory-bytes", spec.resources.memory_bytes.to_string()),
        ("pids", spec.resources.pids.to_string()),
        ("capabilities", capabilities.to_string()),
        ("hosts", order.hosts.clone()),
        ("resolver", order.resolver.clone()),
        // What it may reach that way is for the packet filter to say.
        ("gateway", order.gateway.to_string()),
    ]);
    rows.into_iter().flat_map(|(name, value)| format!("{name} {value}\0").into_bytes()).collect()
}
