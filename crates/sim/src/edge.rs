//! The simulated load balancer: one table, kept on its disk, with the rules of the real one about fences and generations;
//! and the clients that send requests through it all the time.

use crate::host::One;
use crate::process::{Fate, Process};
use crate::world::World;
use async_trait::async_trait;
use kiln_edge::client::{Router, RouterError};
use kiln_model::edge::{EdgeStatus, Tally, TargetStatus};
use kiln_model::mutant::{Mutant, planted};
use kiln_model::{
    Digest, EnvRef, Fence, Generation, InstanceId, Millis, ReleaseNumber, RouteTable, ServiceName,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The longest that a request takes.
const REQUEST_MAX: usize = 1_500;

/// A table as the edge keeps it on its disk.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) fence: Fence,
    generation: Generation,
    digest: Digest,
    table: Arc<RouteTable>,
    boot: u64,
}

/// A request under way.
#[derive(Debug, Clone)]
pub(crate) struct Flight {
    pub(crate) instance: InstanceId,
    env: EnvRef,
    end: u64,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Edge {
    pub(crate) kept: Option<Kept>,
    before: Option<Kept>,
    unproved: bool,
    /// What the data path uses.
    pub(crate) used: (Generation, Option<Digest>, Arc<RouteTable>),
    process: u64,
    /// It does not answer its control socket until then.
    pub(crate) hangs_until: u64,
    pub(crate) flights: Vec<Flight>,
    tally: BTreeMap<EnvRef, Tally>,
    /// Whose an instance is that was ever in a table of this process.
    targets: BTreeMap<InstanceId, (EnvRef, ServiceName, ReleaseNumber)>,
    pub(crate) requests: u64,
    pub(crate) failed: u64,
}

impl Edge {
    /// The edge starts anew with what it kept.
    pub(crate) fn restart(world: &mut World, boot: u64) {
        let edge = &mut world.edge;
        edge.process += 1;
        edge.flights.clear();
        edge.tally.clear();
        edge.targets.clear();
        let (generation, digest, table) = match &edge.kept {
            Some(kept) if kept.boot == boot => (kept.generation, Some(kept.digest), kept.table.clone()),
            Some(kept) => {
                let mut table = RouteTable::clone(&kept.table);
                table.pools.iter_mut().for_each(|pool| pool.targets.clear());
                (Generation(0), None, Arc::new(table))
            }
            None => Default::default(),
        };
        edge.unproved = edge.kept.as_ref().is_some_and(|kept| kept.boot != boot);
        edge.put((generation, digest, table));
        world.truth.edge_restarted(world.now);
        world.tell(|| format!("edge starts with generation {generation}"));
        world.dirty = true;
    }

    /// The edge starts anew with the table before, or with none.
    pub(crate) fn lose(world: &mut World) {
        world.edge.kept = world.edge.before.take().filter(|_| world.rng.below(2) == 0);
        world.truth.excused_until = world.now + 30_000;
        world.truth.edge_lost = true;
        // With its table it forgot whom it had heard of.
        world.truth.servers.remove("edge");
        Self::restart(world, world.boots);
    }

    fn put(&mut self, table: (Generation, Option<Digest>, Arc<RouteTable>)) {
        for pool in &table.2.pools {
            for target in &pool.targets {
                let whose = (pool.env.clone(), pool.service.clone(), pool.release);
                self.targets.insert(target.instance.clone(), whose);
            }
        }
        self.used = table;
    }

    fn set(
        world: &mut World,
        fence: Fence,
        generation: Generation,
        table: &RouteTable,
    ) -> Result<(), RouterError> {
        let digest = table.digest();
        let stale = |detail: String| Err(RouterError::Stale { generation, detail });
        if let Some(kept) = world.edge.kept.as_ref().filter(|_| !planted(Mutant::NoGeneration)) {
            if fence.server() < kept.fence.server() {
                return stale(format!("fence {fence} is older than {}", kept.fence));
            }
            if fence.incarnation == kept.fence.incarnation {
                if generation < kept.generation {
                    return stale(format!("generation {} is in use", kept.generation));
                }
                if generation == kept.generation && digest != kept.digest {
                    return stale("it is in use with other content".into());
                }
            }
        }
        if planted(Mutant::EarlyAck) && world.rng.below(2) == 0 {
            let (due, table) = (world.now + 1 + world.rng.below(2_000) as u64, table.clone());
            world
                .delayed
                .push((due, Box::new(move |world| Self::take(world, fence, generation, digest, table))));
            return Ok(());
        }
        Self::take(world, fence, generation, digest, table.clone());
        Ok(())
    }

    fn take(world: &mut World, fence: Fence, generation: Generation, digest: Digest, table: RouteTable) {
        crate::check::applied(world, "edge", fence);
        let boot = world.boots;
        let same = world.edge.used.0 == generation && world.edge.used.1 == Some(digest);
        if !same {
            crate::check::before_switch(world, generation, digest, &table);
            world.tell(|| format!("edge uses generation {generation}, fence {fence}"));
            let targets =
                table.pools.iter().flat_map(|p| p.targets.iter().map(|t| t.instance.clone())).collect();
            world.truth.switched(world.now, targets);
        }
        let table = Arc::new(table);
        if !same {
            world.edge.before = world.edge.kept.take();
        }
        world.edge.kept = Some(Kept { fence, generation, digest, table: table.clone(), boot });
        world.edge.unproved = false;
        world.edge.put((generation, Some(digest), table));
        world.dirty = true;
    }

    fn status(world: &World) -> EdgeStatus {
        let edge = &world.edge;
        let table = &edge.used.2;
        let in_table =
            |id: &InstanceId| table.pools.iter().any(|p| p.targets.iter().any(|t| &t.instance == id));
        let flying = |id: &InstanceId| edge.flights.iter().filter(|f| &f.instance == id).count() as u64;
        let target = |(id, (env, service, release)): (&InstanceId, &(EnvRef, ServiceName, ReleaseNumber))| {
            let (in_table, in_flight) = (in_table(id), flying(id));
            let hung = world.host.instances.get(id).and_then(|one| one.hung);
            (in_table || in_flight > 0).then(|| TargetStatus {
                instance: id.clone(),
                env: env.clone(),
                service: service.clone(),
                release: *release,
                in_table,
                in_flight,
                ejected: hung.is_some(),
                ejected_for: Millis(hung.map_or(0, |since| world.now - since)),
                ejections: 0,
                reason: hung.map(|_| "no answer".to_owned()),
                tally: Tally::default(),
                latency: vec![],
            })
        };
        EdgeStatus {
            tls: None,
            process: edge.process.to_string(),
            generation: edge.used.0,
            digest: edge.used.1,
            fence: edge.kept.as_ref().map(|kept| kept.fence),
            internal: Some("10.83.224.0/19".into()),
            form: kiln_model::route::TABLE_FORM,
            names: table.internal.len() as u64,
            targets: edge.targets.iter().filter_map(target).collect(),
            unrouted: edge.tally.iter().map(|(env, tally)| (Some(env.clone()), *tally)).collect(),
            ..EdgeStatus::default()
        }
    }

    /// Requests end, and others begin.
    pub(crate) fn traffic(world: &mut World) {
        let now = world.now;
        let flights = std::mem::take(&mut world.edge.flights);
        for flight in flights {
            let alive = world.host.instances.get(&flight.instance).is_some_and(|one| one.exited.is_none());
            if alive && now < flight.end {
                world.edge.flights.push(flight);
                continue;
            }
            let tally = world.edge.tally.entry(flight.env.clone()).or_default();
            tally.requests += 1;
            tally.cut += u64::from(!alive);
        }
        if world.rng.below(8) == 0 {
            Self::request(world);
        }
    }

    /// A client asks for a path of an environment that serves.
    fn request(world: &mut World) {
        let table = world.edge.used.2.clone();
        let index = world.rng.below(table.routes.len());
        let Some(route) = table.routes.get(index) else {
            return;
        };
        world.edge.requests += 1;
        let shares: Vec<_> = route.pools.iter().filter(|share| share.weight > 0).collect();
        let pools = shares.get(world.rng.below(shares.len())).map(|share| share.pool);
        let Some(pool) = pools.and_then(|pool| table.pools.get(pool)) else {
            return;
        };
        // It sends a request to another target if one cannot be reached.
        let start = world.rng.below(pool.targets.len());
        let turn = pool.targets.iter().cycle().skip(start).take(pool.targets.len());
        let at = |address| world.host.instances.values().find(|one: &&One| one.address == address);
        let answered = turn.filter_map(|t| Some((t, at(t.address).filter(|one| one.answers())?))).next();
        match answered.map(|(target, one)| (target.instance.clone(), one.spec.clone())) {
            Some((instance, spec)) => {
                crate::check::answered(world, &instance, &spec, pool);
                let end = now_plus(world);
                world.edge.flights.push(Flight { instance, env: pool.env.clone(), end });
            }
            None => {
                world.edge.failed += 1;
                crate::check::failed(world, pool);
            }
        }
    }
}

fn now_plus(world: &mut World) -> u64 {
    world.now + world.rng.below(REQUEST_MAX) as u64
}

/// The edge that a process sees.
pub(crate) struct SimRouter(pub(crate) Process);

impl SimRouter {
    /// While the edge hangs, nothing is answered.
    async fn reach(&self) {
        loop {
            let until = self.0.act(|world| world.edge.hangs_until.saturating_sub(world.now));
            if until == 0 {
                return;
            }
            self.0.wait(until).await;
        }
    }
}

#[async_trait]
impl Router for SimRouter {
    async fn status(&self) -> Result<EdgeStatus, RouterError> {
        self.0.stand("edge.status.asked").await;
        self.reach().await;
        let lost = matches!(self.0.fate(), Fate::Fails);
        let status = self.0.act(|world| Edge::status(world));
        self.0.stand("edge.status.answered").await;
        if lost { Err(unreachable()) } else { Ok(status) }
    }

    async fn set(&self, fence: Fence, generation: Generation, table: &RouteTable) -> Result<(), RouterError> {
        self.reach().await;
        let table = table.clone();
        let effect = move |world: &mut World| Edge::set(world, fence, generation, &table);
        let answer = self.0.call(["edge.set.sent", "edge.set.answered"], effect).await;
        answer.unwrap_or_else(|| Err(unreachable()))
    }
}

fn unreachable() -> RouterError {
    RouterError::Unreachable { detail: "no answer came".into() }
}
