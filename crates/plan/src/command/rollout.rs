//! How every rollout begins, and how a command ends one.

use super::{Decision, Outcome, Refusal, Request, event, newest_active};
use kiln_model::mutant::{Mutant, planted};
use kiln_model::{
    EnvRef, Environment, Mutation, ReleaseNumber, ReleaseSpec, Rollout, RolloutId, RolloutKind, RolloutPhase,
    Snapshot, rollout::Receipt,
};
use std::sync::Arc;

/// The same (host, path) or port twice on one edge is an error, found before anything is baked.
pub(crate) fn free_routes(snapshot: &Snapshot, env: &EnvRef, spec: &ReleaseSpec) -> Result<(), Refusal> {
    for other in snapshot.environments.values().filter(|e| &e.env != env && !e.destroyed) {
        let target = newest_active(snapshot, &other.env).map(|r| r.to);
        for number in [other.serving, target].into_iter().flatten() {
            let Some(release) = snapshot.release(&other.env, number) else { continue };
            let taken =
                spec.routes.iter().find(|mine| release.spec.routes.iter().any(|t| t.is_same_place(mine)));
            if let Some(rule) = taken {
                return Err(Refusal::RouteTaken { route: rule.place("*"), other: other.env.clone() });
            }
        }
    }
    Ok(())
}

/// Supersedes what has not switched yet and records the new rollout, in one commit.
pub(super) fn start(
    snapshot: &Snapshot,
    request: &Request,
    environment: &Environment,
    kind: RolloutKind,
    to: ReleaseNumber,
) -> Decision {
    let env = &environment.env;
    let id = snapshot.next_rollout.max(RolloutId(1));
    let mut mutations = vec![Mutation::PutEnvironment(environment.clone())];
    let mut events = vec![];
    let supersedes = |r: &&Arc<Rollout>| r.phase.is_before_switch() && !planted(Mutant::NoSupersede);
    for older in snapshot.active_rollouts(env).filter(supersedes) {
        let mut older = Rollout::clone(older);
        older.phase = RolloutPhase::Superseded;
        older.since = request.now;
        older.ended = Some(request.at);
        older.reason = Some(format!("rollout {id} to release {to} came"));
        events.push(event(
            request,
            env,
            "rollout.superseded",
            format!("rollout {}", older.id),
            format!("by {id}"),
        ));
        mutations.push(Mutation::PutRollout(Box::new(older)));
    }
    let verb = match kind {
        RolloutKind::Deploy => "deploy",
        RolloutKind::Rollback => "rollback",
    };
    events.push(event(request, env, verb, format!("release {to}"), format!("rollout {id}")));
    mutations.push(Mutation::PutRollout(Box::new(Rollout {
        id,
        env: env.clone(),
        kind,
        to,
        from: environment.serving,
        actor: request.actor.clone(),
        phase: RolloutPhase::Planned,
        since: request.now,
        begun: request.now,
        deadline: None,
        created: request.at,
        ended: None,
        step: None,
        switch: None,
        switched_after: None,
        failures: 0,
        reason: None,
        evidence: vec![],
        receipt: Receipt { opened: environment.receipt_end.clone(), ..Receipt::default() },
    })));
    Decision { mutations, events, outcome: Outcome::Started { rollout: id, release: to } }
}

pub(super) fn ended(rollout: &Rollout, phase: RolloutPhase, request: &Request, reason: String) -> Rollout {
    Rollout { phase, since: request.now, ended: Some(request.at), reason: Some(reason), ..rollout.clone() }
}
