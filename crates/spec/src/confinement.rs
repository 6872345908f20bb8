//! How instances of a service are kept apart: `isolation`, `egress`, `capabilities` and `seccomp` of `[services.NAME]`.

use crate::error::did_you_mean;
use crate::reader::{Shared, Table};
use kiln_model::{Capability, Confinement, Egress, Isolation, Seccomp};

/// Reads the four keys.
pub(crate) fn read(table: &mut Table<'_>, sink: Shared<'_, '_>) -> Confinement {
    let isolation = word(table, "isolation", &[("sandbox", Isolation::Sandbox), ("vm", Isolation::Vm)], sink);
    let seccomp = word(table, "seccomp", &[("enforce", Seccomp::Enforce), ("log", Seccomp::Log)], sink);
    let mut confinement = Confinement { isolation, seccomp, ..Confinement::default() };
    for (name, span) in table.strings("egress", sink).unwrap_or_default() {
        if name == "internet" {
            confinement.egress.insert(Egress::Internet);
        } else {
            let hint = "\"internet\" is the only place so far; services of the project are always in reach";
            sink.borrow_mut().push(span, format!("there is no place `{name}` to reach"), Some(hint.into()));
        }
    }
    for (name, span) in table.strings("capabilities", sink).unwrap_or_default() {
        match Capability::parse(&name) {
            Some(capability) => drop(confinement.capabilities.insert(capability)),
            None => {
                let known = Capability::ALL.map(Capability::name);
                let hint =
                    did_you_mean(&name, &known).unwrap_or_else(|| format!("one of {}", known.join(", ")));
                let message = format!("`{name}` is not a capability that a service can have");
                sink.borrow_mut().push(span, message, Some(hint));
            }
        }
    }
    confinement
}

/// One of a few words; the first stands for a key that is not there.
fn word<T: Copy + Default>(
    table: &mut Table<'_>,
    key: &'static str,
    words: &[(&str, T)],
    sink: Shared<'_, '_>,
) -> T {
    let Some((text, span)) = table.string(key, sink) else { return T::default() };
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
        return *value;
    }
    let known: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
    let hint = format!("one of {}", known.join(", "));
    sink.borrow_mut().push(span, format!("unknown {key} `{text}`"), Some(hint));
    T::default()
}
