//! `scale`: how many instances services have, apart from what their release asks for.

use super::{Decision, Outcome, Refusal, Request, event, existing, newest_active};
use kiln_model::{EnvRef, Mutation, ServiceName, Snapshot, limits};
use std::collections::BTreeMap;

pub(super) fn scale(
    snapshot: &Snapshot,
    request: &Request,
    env: &EnvRef,
    instances: &BTreeMap<ServiceName, Option<u32>>,
) -> Result<Decision, Refusal> {
    let mut environment = existing(snapshot, env)?.clone();
    let number = environment.serving.or(newest_active(snapshot, env).map(|r| r.to));
    let release = number.and_then(|n| snapshot.release(env, n));
    let release = release.ok_or_else(|| Refusal::NoEnvironment { env: env.clone() })?;
    let mut events = vec![];
    for (service, count) in instances {
        if !release.spec.services.contains_key(service) {
            let (env, release, service) = (env.clone(), release.number, service.clone());
            return Err(Refusal::NoService { env, release, service });
        }
        if let Some(count) = count.filter(|c| *c > limits::INSTANCES_PER_SERVICE_MAX) {
            return Err(Refusal::TooMany { service: service.clone(), instances: count });
        }
        let detail = count.map_or("default".to_owned(), |c| c.to_string());
        events.push(event(request, env, "scale", format!("service {service}"), detail));
        match count {
            Some(count) => environment.scale.insert(service.clone(), *count),
            None => environment.scale.remove(service),
        };
    }
    Ok(Decision { mutations: vec![Mutation::PutEnvironment(environment)], events, outcome: Outcome::Scaled })
}
