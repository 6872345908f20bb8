//! What really happened, whatever anybody believes: the facts that invariants are checked against. No mutant touches them.

use kiln_model::{
    Digest, EnvRef, Epoch, Generation, Incarnation, InstanceId, InstanceSpec, ReleaseNumber, ServiceName,
};
use std::collections::{BTreeMap, BTreeSet};

/// See the module.
#[derive(Default)]
pub(crate) struct Truth {
    /// Instances that ever had a row.
    pub(crate) known: BTreeSet<InstanceId>,
    /// Instances that passed a check.
    pub(crate) passed: BTreeSet<InstanceId>,
    /// Instances whose row ever said that they are validated.
    pub(crate) validated: BTreeSet<InstanceId>,
    /// Instances that a receiver destroyed.
    pub(crate) destroyed: BTreeSet<InstanceId>,
    /// Instances that the world, not kiln, ended: when, and what they were of.
    pub(crate) died: BTreeMap<InstanceId, (u64, EnvRef, ServiceName, ReleaseNumber)>,
    /// Of each receiver, the newest server whose effect reached it.
    pub(crate) servers: BTreeMap<&'static str, (Incarnation, Epoch)>,
    /// The epoch of the newest commit.
    pub(crate) epoch: Epoch,
    /// What each generation is.
    pub(crate) generations: BTreeMap<Generation, Digest>,
    /// How many instances each service was to have when a generation was proposed.
    /// The two releases that shared an environment's traffic when a table was proposed.
    pub(crate) mixes: BTreeMap<Generation, BTreeMap<EnvRef, BTreeSet<ReleaseNumber>>>,
    /// Environments with a canary then.
    pub(crate) canaries: BTreeMap<Generation, BTreeSet<EnvRef>>,
    pub(crate) wanted: BTreeMap<Generation, BTreeMap<(EnvRef, ServiceName), u32>>,
    /// The newest generation that the edge used since it started.
    pub(crate) used: Generation,
    /// When an instance left the edge's table.
    pub(crate) left: BTreeMap<InstanceId, u64>,
    routed: BTreeSet<InstanceId>,
    /// The edge lost its last table, once.
    pub(crate) edge_lost: bool,
    /// Until then requests may fail by what the world did.
    pub(crate) excused_until: u64,
    /// The store is in a recovery hold.
    pub(crate) in_hold: bool,
    /// Commits.
    pub(crate) commits: u64,
}

impl Truth {
    /// The world ended an instance.
    pub(crate) fn death(&mut self, now: u64, spec: &InstanceSpec) {
        let of = (now, spec.env.clone(), spec.service.clone(), spec.release);
        self.died.insert(spec.id.clone(), of);
    }

    /// How many instances of a pool the world ended that were validated, since `since`.
    pub(crate) fn deaths_of(&self, whose: &(EnvRef, ServiceName), of: ReleaseNumber, since: u64) -> u32 {
        let own = |(id, (at, env, service, release)): &(
            &InstanceId,
            &(u64, EnvRef, ServiceName, ReleaseNumber),
        )| {
            let same = (env, service) == (&whose.0, &whose.1) && *release == of;
            same && *at >= since && self.validated.contains(*id)
        };
        self.died.iter().filter(own).count() as u32
    }

    /// The edge uses another table.
    pub(crate) fn switched(&mut self, now: u64, targets: BTreeSet<InstanceId>) {
        for gone in self.routed.difference(&targets) {
            self.left.insert(gone.clone(), now);
        }
        self.routed = targets;
    }

    /// The edge starts: what it used before binds it no more.
    pub(crate) fn edge_restarted(&mut self, now: u64) {
        self.used = Generation(0);
        self.excused_until = self.excused_until.max(now + 1_000);
    }
}
