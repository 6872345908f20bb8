//! `secret set` and `unset`, and which versions a release gets. No value comes here but sealed.

use super::{Decision, Outcome, Refusal, Request, event};
use kiln_model::{
    EnvRef, Mutation, ReleaseSpec, Secret, SecretContent, SecretName, SecretVersion, Snapshot, limits,
};

pub(super) fn set(
    snapshot: &Snapshot,
    request: &Request,
    env: &EnvRef,
    name: &SecretName,
    content: &SecretContent,
) -> Result<Decision, Refusal> {
    let is_new = snapshot.current_secret(env, name).is_none();
    if is_new && names(snapshot, env) >= limits::SECRETS_MAX {
        return Err(Refusal::TooManySecrets { env: env.clone() });
    }
    Ok(next(snapshot, request, env, name, content.clone()))
}

pub(super) fn unset(
    snapshot: &Snapshot,
    request: &Request,
    env: &EnvRef,
    name: &SecretName,
) -> Result<Decision, Refusal> {
    if snapshot.current_secret(env, name).is_none() {
        return Err(Refusal::NoSecret { env: env.clone(), secret: name.clone() });
    }
    Ok(next(snapshot, request, env, name, SecretContent::Unset))
}

/// Secrets that are set.
fn names(snapshot: &Snapshot, env: &EnvRef) -> usize {
    let all: std::collections::BTreeSet<_> = snapshot.secrets_of(env, None).map(|s| &s.name).collect();
    all.into_iter().filter(|name| snapshot.current_secret(env, name).is_some()).count()
}

/// Writes the next version, and removes the values that nobody can need any more: a release that has one keeps it.
fn next(
    snapshot: &Snapshot,
    request: &Request,
    env: &EnvRef,
    name: &SecretName,
    content: SecretContent,
) -> Decision {
    let newest = snapshot.secrets_of(env, Some(name)).next_back();
    let version = newest.map_or(SecretVersion(0), |newest| newest.version).next();
    let kind = if content == SecretContent::Unset { "secret.unset" } else { "secret.set" };
    let row = Secret {
        env: env.clone(),
        name: name.clone(),
        version,
        created: request.at,
        actor: request.actor.clone(),
        content,
    };
    let mut mutations = vec![Mutation::PutSecret(Box::new(row))];
    let is_bound = |version| snapshot.releases_of(env).any(|r| r.spec.secrets.get(name) == Some(&version));
    let unneeded = snapshot
        .secrets_of(env, Some(name))
        .filter(|old| matches!(old.content, SecretContent::Sealed { .. }) && !is_bound(old.version));
    mutations.extend(unneeded.map(|old| {
        Mutation::PutSecret(Box::new(Secret { content: SecretContent::Removed, ..Secret::clone(old) }))
    }));
    let events = vec![event(request, env, kind, format!("secret {name}"), format!("version {version}"))];
    Decision { mutations, events, outcome: Outcome::Secret { version } }
}

/// The release with the versions that its secrets have now.
pub(super) fn bind(snapshot: &Snapshot, env: &EnvRef, spec: &ReleaseSpec) -> Result<ReleaseSpec, Refusal> {
    let mut bound = spec.clone();
    bound.secrets.clear();
    for service in spec.services.values() {
        let mut bytes = 0;
        for name in &service.secrets {
            let Some(secret) = snapshot.current_secret(env, name) else {
                let (service, secret) = (service.name.clone(), name.clone());
                return Err(Refusal::SecretNotSet { env: env.clone(), service, secret });
            };
            bytes += secret.bytes().unwrap_or(0) as usize;
            bound.secrets.insert(name.clone(), secret.version);
        }
        if bytes > limits::SECRETS_PER_SERVICE_BYTES_MAX {
            return Err(Refusal::SecretsTooLarge { env: env.clone(), service: service.name.clone(), bytes });
        }
    }
    Ok(bound)
}
