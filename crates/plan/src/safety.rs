//! Whether a rollback would work, what it would take, and what it would not bring back. Told with every finished rollout,
//! because the moment to know it is before it is needed.

use crate::command::rollback_target;
use crate::observed::Observed;
use crate::route::replicas;
use kiln_model::{Digest, EnvRef, Environment, ImageName, Millis, Release, ReleaseNumber, Snapshot};
use std::collections::BTreeSet;

/// Whether `kiln rollback` would work now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Safety {
    /// Where it would go.
    pub to: Option<ReleaseNumber>,
    /// Whether everything that it needs is there.
    pub safe: bool,
    /// For how long it needs no start of an instance: all of that release are kept, validated.
    pub warm_for: Option<Millis>,
    /// Why it is not safe, or what to know of it.
    pub notes: Vec<String>,
}

/// Looks at what `kiln rollback` of an environment would need. `is_stored` tells whether an image is here, whole.
pub fn safety(
    snapshot: &Snapshot,
    observed: &Observed,
    env: &EnvRef,
    is_stored: &dyn Fn(Digest) -> bool,
) -> Safety {
    let mut safety = Safety { to: None, safe: false, warm_for: None, notes: vec![] };
    let Some(environment) = snapshot.environments.get(env) else { return safety };
    let Some(release) = rollback_target(snapshot, environment).and_then(|n| snapshot.release(env, n)) else {
        safety.notes.push("no earlier release served".into());
        return safety;
    };
    safety.to = Some(release.number);
    safety.notes.extend(missing_images(release, is_stored));
    safety.notes.extend(taken_routes(snapshot, env, release));
    safety.safe = safety.notes.is_empty();
    if !safety.safe {
        return safety;
    }
    safety.warm_for = warm_for(snapshot, observed, environment, release);
    if safety.warm_for.is_none() {
        safety.notes.push("its instances are started and validated first".into());
    }
    let now: BTreeSet<&str> =
        variables(environment.serving.and_then(|n| snapshot.release(env, n)).map(AsRef::as_ref));
    let then = variables(Some(release));
    let lost: Vec<&str> = now.difference(&then).copied().collect();
    if !lost.is_empty() {
        safety.notes.push(format!("it does not know the variables {}", lost.join(", ")));
    }
    safety.notes.push("data that releases wrote elsewhere stays as it is".into());
    safety
}

fn missing_images(release: &Release, is_stored: &dyn Fn(Digest) -> bool) -> Vec<String> {
    let Some(images) = &release.images else {
        return vec![format!("release {} was never baked", release.number)];
    };
    let used: BTreeSet<&ImageName> = release.spec.services.values().map(|s| &s.image).collect();
    let missing = images.iter().filter(|(name, image)| used.contains(name) && !is_stored(**image));
    missing.map(|(name, image)| format!("image {name} ({}) is not stored any more", image.short())).collect()
}

fn taken_routes(snapshot: &Snapshot, env: &EnvRef, release: &Release) -> Option<String> {
    crate::command::free_routes(snapshot, env, &release.spec).err().map(|refusal| refusal.to_string())
}

fn warm_for(
    snapshot: &Snapshot,
    observed: &Observed,
    environment: &Environment,
    release: &Release,
) -> Option<Millis> {
    let (kept, until) = environment.keep?;
    let whole = release.spec.services.values().all(|service| {
        let ready = snapshot
            .instances_of(&environment.env)
            .filter(|i| i.release == release.number && i.service == service.name && i.state.is_validated());
        ready.count() as u32 >= replicas(environment, service)
    });
    (kept == release.number && whole).then(|| until.since(observed.now))
}

fn variables(release: Option<&Release>) -> BTreeSet<&str> {
    let services = release.into_iter().flat_map(|r| r.spec.services.values());
    services.flat_map(|s| s.env.keys().map(String::as_str)).collect()
}
