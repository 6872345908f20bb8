//! State that is older than the world: a backup that was restored, or a database that lost its end. What runs is newer than
//! what is desired, and carrying out what is desired would destroy it.
//!
//! ```text
//! evidence ─▶ hold ─▶ `kiln recover`, or both are seen to agree ─▶ ordinary passes
//! ```
//! In a hold nothing begins and nothing is concluded; the edge serves its table. [`survey`] says what the world has that the
//! state does not: what serves is adopted, by what lies with each instance, and everything else is left to the ordinary
//! mechanism, which keeps what is wanted and removes what nobody owns. What is adopted is in `recovery/adopt.rs`.

mod adopt;
mod command;

pub use adopt::{Adopted, Lost, Survey, survey};
pub use command::recover;

use crate::command::{Command, Request};
use crate::observed::Observed;
use crate::plan::Plan;
use kiln_model::edge::EdgeStatus;
use kiln_model::mutant::{Mutant, planted};
use kiln_model::{
    Epoch, Event, Fence, Incarnation, InstanceId, Memory, Mutation, Recovery, Revision, Seen, Snapshot,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Who leads, and where the state ended when it began to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lead {
    /// The newest revision then.
    pub base: Revision,
    /// The lease.
    pub server: (Incarnation, Epoch),
}

/// The world as a recovery sees it. What could not be asked is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct World {
    /// What the provider remembers.
    pub memory: Option<Arc<Memory>>,
    /// What it sees.
    pub seen: Option<BTreeMap<InstanceId, Seen>>,
    /// What the edge reports.
    pub edge: Option<EdgeStatus>,
}

impl World {
    /// That of an observation.
    pub fn of(observed: &Observed) -> Self {
        let Observed { memory, seen, edge, .. } = observed;
        Self { memory: memory.clone(), seen: seen.clone(), edge: edge.clone() }
    }
}

/// What shows that the state is older than the world, in one line. Rows are durable before their effects: nobody can have
/// heard of a revision, a generation or a server that the state does not have.
pub fn evidence(snapshot: &Snapshot, lead: Lead, world: &World) -> Option<String> {
    if planted(Mutant::NoRecoveryHold) {
        return None;
    }
    let newer = |who: &str, fence: Fence| {
        if fence.server() > lead.server {
            let (incarnation, epoch) = fence.server();
            return Some(format!("{who} heard of a newer server ({incarnation}.{epoch})"));
        }
        let own = fence.server() == lead.server;
        let ahead = !own && fence.incarnation == lead.server.0 && fence.revision > lead.base;
        let (revision, base) = (fence.revision, lead.base);
        ahead.then(|| format!("{who} carried out revision {revision}, and the state ends at {base}"))
    };
    let provider = world.memory.as_ref().and_then(|memory| newer("the provider", memory.newest));
    let edge = world.edge.as_ref().and_then(|edge| {
        let fence = edge.fence.unwrap_or_default();
        let same = fence.incarnation == lead.server.0;
        let (at_edge, own) = (edge.generation, snapshot.route.0);
        let ahead = || format!("the edge uses table {at_edge}, and the state knows up to {own}");
        newer("the edge", fence).or_else(|| (same && at_edge > own).then(ahead))
    });
    provider.or(edge)
}

/// The plan of a pass in which nothing may begin: the hold that is put on, goes on, or ends by itself because state and world
/// agree. None is an ordinary pass.
pub(crate) fn hold(snapshot: &Snapshot, observed: &Observed) -> Option<Plan> {
    let world = World::of(observed);
    if snapshot.recovery.is_some() && !planted(Mutant::NoRecoveryHold) {
        return Some(agreed(snapshot, observed, world).unwrap_or_default());
    }
    let lead = observed.lead?;
    if let Some(reason) = evidence(snapshot, lead, &world) {
        let event = event(observed, "recovery.hold", reason.clone());
        let recovery = Recovery { reason, since: observed.now, at: observed.wall };
        let mutations = vec![Mutation::Hold { recovery }];
        return Some(Plan { mutations, events: vec![event], ..Plan::default() });
    }
    // Before the provider said what it remembers nobody knows how old the state is.
    world.memory.is_none().then(Plan::default)
}

/// The end of a hold that protects nothing.
fn agreed(snapshot: &Snapshot, observed: &Observed, world: World) -> Option<Plan> {
    if !survey(snapshot, &world)?.agrees() {
        return None;
    }
    let command = Command::Recover { world: Box::new(world.clone()) };
    let actor = crate::draft::ACTOR.to_owned();
    let request = Request { command, actor, at: observed.wall, now: observed.now };
    let decision = recover(snapshot, &request, &world).ok()?;
    Some(Plan { mutations: decision.mutations, events: decision.events, ..Plan::default() })
}

fn event(observed: &Observed, kind: &str, detail: String) -> Event {
    Event {
        at: observed.wall,
        actor: crate::draft::ACTOR.into(),
        env: None,
        kind: kind.into(),
        subject: "the whole server".into(),
        detail,
    }
}
