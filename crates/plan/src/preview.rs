//! What a deploy or a rollback would do, one line each, in the order in which it would happen. Nothing is recorded.

use crate::progress::steps;
use crate::route::replicas;
use kiln_model::{
    Digest, EnvRef, Environment, ImageName, Millis, ReleaseNumber, ReleaseSpec, RolloutKind, RouteRule,
    ServiceName, ServiceSpec, Snapshot, Strategy,
};
use std::collections::BTreeMap;

/// What is asked for.
pub struct Wish<'a> {
    /// Where.
    pub env: &'a EnvRef,
    /// How.
    pub kind: RolloutKind,
    /// The release that it goes to; the number that it would get, for a deploy.
    pub to: ReleaseNumber,
    /// What that release asks for.
    pub spec: &'a ReleaseSpec,
    /// Its images that are baked already.
    pub baked: &'a BTreeMap<ImageName, Digest>,
}

/// The lines.
pub fn preview(snapshot: &Snapshot, wish: &Wish<'_>) -> Vec<String> {
    let current = snapshot.environments.get(wish.env).cloned();
    let environment = current.unwrap_or_else(|| Environment::new(wish.env.clone()).into());
    let serving = environment.serving.and_then(|n| snapshot.release(wish.env, n));
    let mut lines = vec![];
    for rollout in snapshot.active_rollouts(wish.env) {
        let how = if rollout.phase.is_before_switch() { "supersede" } else { "wait for" };
        lines.push(format!(
            "{how} rollout {} to release {}, which is {}",
            rollout.id,
            rollout.to,
            rollout.phase.word()
        ));
    }
    for image in &wish.spec.images {
        lines.push(match wish.baked.get(image) {
            Some(digest) => format!("reuse image {image} ({})", digest.short()),
            None => format!("bake image {image} from commit {}", wish.spec.commit.short()),
        });
    }
    lines.extend(wish.spec.services.values().map(|service| start(snapshot, &environment, wish, service)));
    if let Some(serving) = serving {
        lines.extend(how(wish));
        lines.extend(changes(&serving.spec, wish.spec));
    }
    lines.extend(routes(serving.map(|s| &s.spec), wish.spec));
    if let Some(serving) = serving.filter(|serving| serving.number != wish.to) {
        lines.extend(afterwards(&environment, serving.number, &serving.spec, wish.spec));
    }
    lines
}

/// Instances that are there already need no start.
fn start(snapshot: &Snapshot, environment: &Environment, wish: &Wish<'_>, service: &ServiceSpec) -> String {
    let wanted = replicas(environment, service);
    let ready = snapshot.instances_of(wish.env).filter(|i| {
        i.release == wish.to && i.service == service.name && i.slot < wanted && i.state.is_validated()
    });
    let ready = (ready.count() as u32).min(wanted);
    let name = &service.name;
    match (ready, wanted - ready) {
        (0, new) => format!("launch {new} new instances of {name} and validate them"),
        (ready, 0) => format!("use the {ready} instances of {name} that are kept validated"),
        (ready, new) => {
            format!("launch {new} new instances of {name} beside {ready} that are kept validated")
        }
    }
}

fn how(wish: &Wish<'_>) -> Vec<String> {
    match (wish.spec.strategy(), wish.kind) {
        (Strategy::Canary(_), RolloutKind::Rollback) => {
            vec!["skip the steps of the canary: it is a rollback".into()]
        }
        (strategy, _) => steps(strategy),
    }
}

/// What differs between what serves and what would: programs, configuration, sizes.
fn changes(old: &ReleaseSpec, new: &ReleaseSpec) -> Vec<String> {
    let mut lines = vec![];
    for (name, service) in &new.services {
        let Some(before) = old.services.get(name) else {
            lines.push(format!("service {name} is new"));
            continue;
        };
        let mut differs = vec![];
        let mut note = |what: &str, same: bool| {
            if !same {
                differs.push(what.to_owned());
            }
        };
        note("command", before.command == service.command);
        note("user", before.user == service.user);
        note("port", before.port == service.port);
        note("protocol", before.protocol == service.protocol);
        note("instances", before.instances == service.instances);
        note("resources", before.resources == service.resources);
        note("writable paths", before.writable == service.writable);
        note("confinement", before.confinement == service.confinement);
        note("checks", before.health == service.health && before.validate == service.validate);
        note("rollout", before.rollout == service.rollout);
        note("stop", before.stop == service.stop);
        differs.extend(variables(before, service));
        if !differs.is_empty() {
            lines.push(format!("service {name} changes: {}", differs.join(", ")));
        }
    }
    let gone = old.services.keys().filter(|name| !new.services.contains_key(*name));
    lines.extend(gone.map(|name: &ServiceName| format!("service {name} is not in the new release")));
    lines
}

/// By name only: a value may be what somebody wants to keep to himself.
fn variables(old: &ServiceSpec, new: &ServiceSpec) -> Vec<String> {
    let set = new.env.iter().filter(|(name, value)| old.env.get(*name) != Some(*value));
    let unset = old.env.keys().filter(|name| !new.env.contains_key(*name));
    let set = set.map(|(name, _)| if old.env.contains_key(name) { name.clone() } else { format!("+{name}") });
    let names: Vec<String> = set.chain(unset.map(|name| format!("-{name}"))).collect();
    if names.is_empty() { vec![] } else { vec![format!("env ({})", names.join(" "))] }
}

fn routes(old: Option<&ReleaseSpec>, new: &ReleaseSpec) -> Vec<String> {
    let word = |route: &RouteRule| route.place("any host");
    let before = |route: &RouteRule| {
        let mut all = old.into_iter().flat_map(|old| &old.routes);
        all.find(|other| other.is_same_place(route))
    };
    let mut lines: Vec<String> = new
        .routes
        .iter()
        .map(|route| match before(route) {
            Some(old) if old.service != route.service => {
                format!("switch {} from {} to {}", word(route), old.service, route.service)
            }
            Some(old) if old.https != route.https => {
                format!("switch {} to {}, with another `https_only` or `hsts`", word(route), route.service)
            }
            Some(_) => format!("switch {} to {}", word(route), route.service),
            None => format!("add the route {} to {}", word(route), route.service),
        })
        .collect();
    let gone = old
        .into_iter()
        .flat_map(|old| &old.routes)
        .filter(|old| !new.routes.iter().any(|route| route.is_same_place(old)));
    lines.extend(gone.map(|route| format!("remove the route {}", word(route))));
    lines
}

/// What becomes of the release that serves, and of the one that is kept.
fn afterwards(
    environment: &Environment,
    serving: ReleaseNumber,
    old: &ReleaseSpec,
    new: &ReleaseSpec,
) -> Vec<String> {
    let most = |span: fn(&ServiceSpec) -> Millis, spec: &ReleaseSpec| spec.services.values().map(span).max();
    let keep = most(|s| s.rollout.keep_previous, new).unwrap_or_default();
    let drain = most(|s| s.rollout.drain, old).unwrap_or_default();
    let n: u32 = old.services.values().map(|s| replicas(environment, s)).sum();
    let mut lines = vec![];
    if let Some((kept, _)) = environment.keep.filter(|(kept, _)| *kept != serving) {
        lines.push(format!("destroy the instances of release {kept}, which is kept until then"));
    }
    if keep > Millis(0) && !matches!(new.strategy(), Strategy::Rolling(_)) {
        lines.push(format!(
            "keep the {n} instances of release {serving} validated for {keep}, then destroy them"
        ));
    } else {
        lines.push(format!(
            "drain and remove the instances of release {serving}: {n}, each within {drain} of its last request"
        ));
    }
    lines
}
