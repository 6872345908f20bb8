//! The rule book: which mutation is legal after which snapshot. Both stores ask it before they write anything.

use kiln_model::{
    Environment, Instance, InstanceId, Mutation, Release, Rollout, RolloutPhase, Secret, SecretContent,
    SecretVersion, Snapshot,
};

/// Checks all mutations in order against `snapshot`, and answers the snapshot after them.
pub fn check(
    snapshot: &Snapshot,
    mutations: &[Mutation],
    tombstoned: impl Fn(&InstanceId) -> bool,
) -> Result<Snapshot, String> {
    let mut after = snapshot.clone();
    for mutation in mutations {
        match mutation {
            Mutation::PutInstance(instance) => instance_rule(&after, instance, &tombstoned)?,
            Mutation::PutRelease(release) => release_rule(&after, release)?,
            Mutation::PutSecret(secret) => secret_rule(&after, secret)?,
            Mutation::PutRollout(rollout) => rollout_rule(&after, rollout)?,
            Mutation::PutEnvironment(environment) => environment_rule(&after, environment)?,
            // After a restore the edge is ahead: what follows goes on from its generation.
            Mutation::PutRoute { generation, .. }
                if after.recovery.is_some() && *generation > after.route.0 => {}
            Mutation::PutRoute { generation, .. } if *generation != after.route.0.next() => {
                return Err(format!("generation {generation} does not follow {}", after.route.0));
            }
            Mutation::RouteAcked { generation } if *generation > after.route.0 => {
                return Err(format!("generation {generation} was never proposed"));
            }
            Mutation::Gone { instance } if after.is_routed(instance) => {
                return Err(format!("`{instance}` is in the route table and cannot be gone"));
            }
            _ => {}
        }
        after.apply(mutation);
    }
    for mutation in mutations {
        let Mutation::PutRollout(rollout) = mutation else { continue };
        if after.active_rollouts(&rollout.env).filter(|r| r.phase != RolloutPhase::Planned).nth(1).is_some() {
            return Err(format!("`{}` would have two rollouts under way", rollout.env));
        }
    }
    Ok(after)
}

fn instance_rule(
    after: &Snapshot,
    instance: &Instance,
    tombstoned: &impl Fn(&InstanceId) -> bool,
) -> Result<(), String> {
    let id = &instance.id;
    if tombstoned(id) {
        return Err(format!("`{id}` was destroyed and is never used again"));
    }
    match after.instances.get(id) {
        Some(before) => {
            let same = before.image == instance.image
                && before.release == instance.release
                && before.network == instance.network
                && before.slot == instance.slot;
            if !same || before.env != instance.env || before.service != instance.service {
                return Err(format!("`{id}` is immutable"));
            }
            // A row may be behind an instance that serves.
            let caught_up = after.recovery.is_some() && instance.state.is_validated();
            if before.state != instance.state && !before.state.may_become(instance.state) && !caught_up {
                return Err(format!(
                    "`{id}` cannot go from {} to {}",
                    before.state.word(),
                    instance.state.word()
                ));
            }
        }
        None if id.sequence() < after.next_instance => return Err(format!("`{id}` was used before")),
        // What serves was validated by the history that this one lost.
        None if after.recovery.is_some() && instance.state.is_validated() => {}
        None if instance.state != kiln_model::InstanceState::Intent => {
            return Err(format!("`{id}` must start as an intent"));
        }
        None => {}
    }
    Ok(())
}

fn release_rule(after: &Snapshot, release: &Release) -> Result<(), String> {
    let Some(before) = after.release(&release.env, release.number) else { return Ok(()) };
    let mut allowed = Release::clone(before);
    if allowed.images.is_none() {
        allowed.images.clone_from(&release.images);
    }
    allowed.served |= release.served;
    if allowed == *release {
        return Ok(());
    }
    Err(format!("release {} of `{}` is immutable", release.number, release.env))
}

/// Versions follow each other without gaps, and what one of them is never changes, but that its value is removed.
fn secret_rule(after: &Snapshot, secret: &Secret) -> Result<(), String> {
    let Secret { env, name, version, .. } = secret;
    let newest = after.secrets_of(env, Some(name)).next_back().map(|newest| newest.version);
    // A release that is adopted may have one that was set after the backup was taken: its number is used up.
    if after.recovery.is_some() && secret.content == SecretContent::Removed && Some(*version) > newest {
        return Ok(());
    }
    if *version == newest.unwrap_or(SecretVersion(0)).next() {
        return match secret.content {
            SecretContent::Removed => Err(format!("version {version} of `{name}` of `{env}` has no value")),
            _ => Ok(()),
        };
    }
    let Some(before) = after.secrets.get(&secret.key()) else {
        return Err(format!("version {version} of `{name}` of `{env}` does not follow the newest"));
    };
    let removed = Secret { content: SecretContent::Removed, ..Secret::clone(before) };
    let is_bound = after.releases_of(env).any(|release| release.spec.secrets.get(name) == Some(version));
    if removed == *secret && newest > Some(*version) && !is_bound {
        return Ok(());
    }
    Err(format!("version {version} of `{name}` of `{env}` is immutable"))
}

fn rollout_rule(after: &Snapshot, rollout: &Rollout) -> Result<(), String> {
    let Some(before) = after.rollouts.get(&rollout.id) else { return Ok(()) };
    if before.phase == rollout.phase && !before.phase.is_end() || before.phase.may_become(rollout.phase) {
        return Ok(());
    }
    Err(format!("rollout {} cannot go from {} to {}", rollout.id, before.phase.word(), rollout.phase.word()))
}

fn environment_rule(after: &Snapshot, environment: &Environment) -> Result<(), String> {
    if let Some(mix) = &environment.mix {
        let sealed = after.release(&environment.env, mix.release).is_some_and(|r| r.images.is_some());
        if !sealed || environment.serving.is_none_or(|serving| serving == mix.release) {
            return Err(format!("release {} of `{}` cannot share its traffic", mix.release, environment.env));
        }
    }
    let Some(serving) = environment.serving else { return Ok(()) };
    match after.release(&environment.env, serving) {
        Some(release) if release.images.is_some() => Ok(()),
        _ => Err(format!("release {serving} of `{}` is not sealed and cannot serve", environment.env)),
    }
}
