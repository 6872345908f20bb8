//! `kiln release diff`: what differs between two releases of an environment. Of secrets it is the versions, never the values.

use kiln_api::release::ReleaseDetail;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Something that differs.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Change {
    /// What: `commit`, `secret API_KEY`, `service web: port`.
    what: String,
    /// What it was; null if it was not there.
    before: Option<String>,
    /// What it is; null if it is gone.
    after: Option<String>,
}

/// Everything that differs, in the order of [`facts`].
pub(super) fn changes(before: &ReleaseDetail, after: &ReleaseDetail) -> Vec<Change> {
    let (before, after) = (facts(before), facts(after));
    let names: BTreeSet<&(u8, String)> = before.keys().chain(after.keys()).collect();
    let change = |name: &(u8, String)| {
        let (before, after) = (before.get(name).cloned(), after.get(name).cloned());
        (before != after).then(|| Change { what: name.1.clone(), before, after })
    };
    names.into_iter().filter_map(change).collect()
}

pub(super) fn text(changes: &[Change]) -> String {
    let word = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".into());
    let line = |c: &Change| format!("{}: {} → {}\n", c.what, word(&c.before), word(&c.after));
    match changes {
        [] => "nothing differs\n".into(),
        changes => changes.iter().map(line).collect(),
    }
}

/// All that a release says, by rank and name.
fn facts(view: &ReleaseDetail) -> BTreeMap<(u8, String), String> {
    let mut facts = BTreeMap::new();
    let mut put = |rank: u8, name: String, value: String| drop(facts.insert((rank, name), value));
    put(0, "commit".into(), format!("{} {}", view.release.commit.short(), view.release.subject));
    for (name, digest) in &view.release.images {
        put(1, format!("image {name}"), digest.to_string());
    }
    for (name, version) in &view.secrets {
        put(2, format!("secret {name}"), format!("version {version}"));
    }
    for rule in &view.routes {
        put(
            3,
            format!("route {}{}", rule.host.as_deref().unwrap_or("*"), rule.path),
            rule.service.to_string(),
        );
    }
    for (name, service) in &view.services {
        let Ok(Value::Object(fields)) = serde_json::to_value(service) else { continue };
        for (key, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
            put(4, format!("service {name}: {key}"), value.to_string());
        }
    }
    if let Some(required) = &view.requires {
        put(5, "requires".into(), format!("{} for {}", required.env, required.time));
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn release(version: u64, port: Option<u16>) -> ReleaseDetail {
        let mut service = json!({
            "name": "web", "image": "web", "command": ["/web"], "instances": 1, "user": "1", "env": {}, "writable": [],
            "resources": { "cpu_milli": 1, "memory_bytes": 1, "pids": 1 }, "validate": [],
            "rollout": { "drain": 0, "keep_previous": 0, "deadline": 1 }, "stop": { "signal": 15, "timeout": 1 },
        });
        service["port"] = json!(port);
        let view = json!({
            "env": "shop/production", "release": version, "commit": "a".repeat(40), "subject": "s", "created": 0,
            "actor": "ann", "pinned": true, "serving": false, "served": true, "rollout": null, "images": {},
            "services": { "web": service }, "routes": [], "reason": null, "secrets": { "API_KEY": version },
        });
        serde_json::from_value(view).unwrap()
    }

    #[test]
    fn what_differs_is_said_and_nothing_else() {
        assert_eq!(text(&changes(&release(1, None), &release(1, None))), "nothing differs\n");
        assert_eq!(
            text(&changes(&release(1, None), &release(2, Some(80)))),
            "secret API_KEY: version 1 → version 2\nservice web: port: none → 80\n"
        );
    }
}
