//! The store goes back to an older state, while no process runs: a backup is restored as `kiln restore` does it, or somebody
//! put older files back, which says nothing of itself.

use crate::vault::Vault;
use crate::world::World;
use kiln_model::{Epoch, Event, Incarnation, Recovery};
use kiln_store::Restored;

/// See the module.
pub(crate) fn go_back(vault: &Vault, world: &mut World) {
    let backups = vault.backups();
    let index = world.rng.below(backups.len());
    let by_command = world.rng.below(2) == 0;
    let Some(dump) = backups.get(index) else { return };
    let edge = world.edge.kept.as_ref().map(|kept| kept.fence.server());
    let all = [Some((dump.head.incarnation, dump.head.epoch)), vault.newest(), edge];
    let all = all.into_iter().flatten().chain([world.host.newest.server()]);
    let (incarnation, epoch) = all.fold((Incarnation(0), Epoch(0)), |(i, e), (j, f)| (i.max(j), e.max(f)));
    let restored = if by_command {
        let reason = format!("a backup of revision {} was restored", dump.head.revision);
        let event = Event {
            at: world.wall(),
            actor: "root".into(),
            env: None,
            kind: "restore".into(),
            subject: "the whole server".into(),
            detail: reason.clone(),
        };
        let recovery = Recovery { reason, since: world.boot(), at: world.wall() };
        Restored { incarnation: incarnation.next(), epoch, hold: Some((recovery, event)) }
    } else {
        Restored { incarnation: dump.head.incarnation, epoch: dump.head.epoch, hold: None }
    };
    // Nothing is under way of a server that was stopped for this.
    world.delayed.clear();
    // Leases that nobody but the lost store knew of are given again.
    world.truth.epoch = Epoch(0);
    world.truth.in_hold = by_command;
    let revision = dump.head.revision;
    world.tell(|| format!("the store goes back to revision {revision}, by command: {by_command}"));
    if let Err(error) = vault.restore(dump, &restored) {
        world.broken(|| format!("the store cannot go back: {error}"));
    }
}
