//! `environment create`: an environment before its first release.

use super::{Decision, Outcome, Refusal, Request, event, existing};
use kiln_model::{EnvName, EnvRef, Environment, Mutation, Snapshot};

pub(super) fn create(
    snapshot: &Snapshot,
    request: &Request,
    env: &EnvRef,
    like: Option<&EnvName>,
) -> Result<Decision, Refusal> {
    let before = snapshot.environments.get(env);
    if before.is_some_and(|before| !before.destroyed) {
        return Err(Refusal::EnvironmentExists { env: env.clone() });
    }
    let model = like.map(|like| EnvRef { project: env.project.clone(), env: like.clone() });
    let model = model.map(|model| existing(snapshot, &model)).transpose()?;
    // One that was destroyed keeps its history: its numbers go on.
    let mut environment = before.map_or_else(|| Environment::new(env.clone()), |b| Environment::clone(b));
    environment.destroyed = false;
    environment.network = snapshot.network_for(env);
    environment.scale = model.map(|model| model.scale.clone()).unwrap_or_default();
    environment.like = like.filter(|like| **like != env.env).cloned();
    let detail = like.map(|like| format!("like {like}")).unwrap_or_default();
    let events = vec![event(request, env, "environment.created", format!("environment {env}"), detail)];
    let mutations = vec![Mutation::PutEnvironment(environment)];
    Ok(Decision { mutations, events, outcome: Outcome::Created })
}
