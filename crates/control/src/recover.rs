//! How a server begins to lead: above every server that the receivers heard of, and in a hold if the state is older than the
//! world. Asked before anybody can give a command; what only a silent edge knows is found by the first pass that hears it.

use crate::clock::{Clock, within};
use kiln_edge::client::Router;
use kiln_model::{Epoch, Event, Fence, Incarnation, Millis, Mutation, Recovery};
use kiln_plan::recovery::{Lead, World, evidence};
use kiln_provider::Provider;
use kiln_store::{Store, StoreError};
use std::sync::Arc;

/// How long the edge may take to answer.
const EDGE_MAX: Millis = Millis(1000);
/// Tries to hear what the provider remembers, and the time between them.
const TRIES: u32 = 40;
const AGAIN: Millis = Millis(250);

/// Takes the lease, and puts the state on hold if it is older than the world. A new history begins with the hold, so that
/// whatever is on its way from the lost one is refused. Of several servers one has `held` the lease before: it keeps that, or
/// raises it and is told that it lost it.
pub async fn lead(
    store: &dyn Store,
    provider: &impl Provider,
    router: &impl Router,
    clock: &dyn Clock,
    holder: &str,
    held: Option<(Incarnation, Epoch)>,
) -> Result<(Incarnation, Epoch), StoreError> {
    // The world first: what it heard of is in the store that is loaded afterwards.
    let world = look(provider, router, clock).await;
    let snapshot = store.load()?;
    let given = match held {
        Some((_, epoch)) => Epoch(epoch.0.saturating_sub(1)),
        None => store.epoch()?,
    };
    let own = (snapshot.incarnation, given);
    let fences: Vec<Fence> = fences(&world).collect();
    let heard = fences.iter().map(Fence::server).max().unwrap_or_default();
    let next = Lead { base: snapshot.revision, server: (own.0, own.1.next()) };
    let newer = || {
        let (incarnation, epoch) = heard;
        (heard > own).then(|| format!("the world heard of a newer server ({incarnation}.{epoch})"))
    };
    let reason = evidence(&snapshot, next, &world).or_else(|| newer().filter(|_| !world_is_ignored()));
    let floor = match &reason {
        Some(_) => (heard.0.max(own.0).next(), heard.1.max(own.1)),
        None => heard,
    };
    let server = match held {
        Some(server) => server,
        None => {
            if floor > own {
                store.raise(floor)?;
            }
            store.take_lease(holder)?
        }
    };
    let was_held = snapshot.recovery.is_some();
    if let (Some(reason), None) = (reason, &snapshot.recovery) {
        let (at, since) = (clock.wall(), clock.boot());
        let event = Event {
            at,
            actor: "kiln".into(),
            env: None,
            kind: "recovery.hold".into(),
            subject: "the whole server".into(),
            detail: reason.clone(),
        };
        let hold = Mutation::Hold { recovery: Recovery { reason, since, at } };
        store.commit(server.1, snapshot.revision, &[hold], &[event])?;
    }
    // The hold is durable: whoever leads next finds it, above all that the world heard of.
    let is_behind = if was_held { heard >= server } else { floor >= server };
    if held.is_some() && is_behind {
        store.raise(floor)?;
        return Err(StoreError::LeaseLost { mine: server.1, holder: floor.1 });
    }
    Ok(server)
}

/// Whether the fault is planted that this is about.
fn world_is_ignored() -> bool {
    kiln_model::mutant::planted(kiln_model::mutant::Mutant::NoRecoveryHold)
}

/// Everybody's newest fence.
pub(crate) fn fences(world: &World) -> impl Iterator<Item = Fence> {
    let provider = world.memory.as_ref().map(|memory| memory.newest);
    provider.into_iter().chain(world.edge.as_ref().and_then(|edge| edge.fence))
}

async fn look(provider: &impl Provider, router: &impl Router, clock: &dyn Clock) -> World {
    let edge = within(clock, EDGE_MAX, router.status()).await.and_then(Result::ok);
    for _ in 0..TRIES {
        if let Ok(memory) = provider.memory().await {
            return World { memory: Some(Arc::new(memory)), seen: None, edge };
        }
        clock.sleep(AGAIN).await;
    }
    World { memory: None, seen: None, edge }
}
