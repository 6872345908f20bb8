//! What the edge reports: counters, latencies, health. Values only; the protocol is in the edge crate.

use crate::digest::Digest;
use crate::fence::Fence;
use crate::ids::{EnvRef, InstanceId, ReleaseNumber, ServiceName};
use crate::route::Generation;
use crate::time::Millis;
use serde::{Deserialize, Serialize};

/// Upper bounds of the latency histogram's buckets in microseconds: powers of two from 128 us to 67 s. A last bucket
/// takes what is slower.
pub const LATENCY_BUCKETS: usize = 21;

/// Counts of requests. Monotone while one edge process lives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Requests whose answer ended, well or not.
    pub requests: u64,
    /// Of these: answered by the edge itself with 502, 503 or 504 because no instance answered.
    pub failed: u64,
    /// Of these: the answer was cut in the middle because the instance went away.
    pub cut: u64,
    /// Of these: the client went away first.
    pub abandoned: u64,
    /// Of these: an instance answered with a status of 500 or above.
    pub errors: u64,
    /// Of these: connections of raw TCP routes, each counted when it ended.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub connections: u64,
    /// Bytes that those carried, both ways together.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub bytes: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Tally {
    /// What came after `earlier`. After a restart of the edge its counts begin anew: then all of it did.
    #[must_use]
    pub fn minus(self, earlier: Tally) -> Tally {
        if self.requests < earlier.requests {
            return self;
        }
        Tally {
            requests: self.requests - earlier.requests,
            failed: self.failed.saturating_sub(earlier.failed),
            cut: self.cut.saturating_sub(earlier.cut),
            abandoned: self.abandoned.saturating_sub(earlier.abandoned),
            errors: self.errors.saturating_sub(earlier.errors),
            connections: self.connections.saturating_sub(earlier.connections),
            bytes: self.bytes.saturating_sub(earlier.bytes),
        }
    }

    /// The sum.
    #[must_use]
    pub fn plus(self, other: Tally) -> Tally {
        Tally {
            requests: self.requests + other.requests,
            failed: self.failed + other.failed,
            cut: self.cut + other.cut,
            abandoned: self.abandoned + other.abandoned,
            errors: self.errors + other.errors,
            connections: self.connections + other.connections,
            bytes: self.bytes + other.bytes,
        }
    }
}

/// Counts at one moment of one edge process. Of another process they began anew.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// See [`EdgeStatus::process`]; empty if nothing was counted yet.
    #[serde(default)]
    pub process: String,
    /// The counts.
    #[serde(flatten)]
    pub tally: Tally,
}

impl Mark {
    /// What was counted since `earlier`, as far as it is known: what a process counted after its last mark died with
    /// it.
    #[must_use]
    pub fn since(&self, earlier: &Mark) -> Tally {
        if earlier.process.is_empty() || earlier.process == self.process {
            return self.tally.minus(earlier.tally);
        }
        self.tally
    }
}

/// What the edge knows right now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeStatus {
    /// Names the process that counting began in; another one means that counts began anew. An edge that took over from
    /// another goes on with its counts.
    pub process: String,
    /// The process; 0 from an older edge.
    #[serde(default)]
    pub pid: u32,
    /// Which build of the program it runs; empty from an older edge.
    #[serde(default)]
    pub program: String,
    /// Processes that it took over from, one after the other, and that still have connections.
    #[serde(default)]
    pub replaced: u64,
    /// The generation that every data-path thread uses.
    pub generation: Generation,
    /// Its digest; none before the first table.
    pub digest: Option<Digest>,
    /// The fence of the table that it keeps; none before the first one, and from an older edge.
    #[serde(default)]
    pub fence: Option<Fence>,
    /// The form of tables that it knows, see [`crate::route::TABLE_FORM`]; 0 from an older edge.
    #[serde(default)]
    pub form: u32,
    /// Addresses that take traffic, `IP:PORT`.
    pub listening: Vec<String>,
    /// The same over TLS; none if it listens for none, as an older edge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsStatus>,
    /// Ports of raw TCP routes that are listened on.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// The range of service addresses that it serves; none if it serves none, as an older edge.
    #[serde(default)]
    pub internal: Option<String>,
    /// How many names its table has.
    #[serde(default)]
    pub names: u64,
    /// Requests that wait for an instance that is not full.
    #[serde(default)]
    pub waiting: u64,
    /// Lines of its logs that could not be written, as when the disk was full.
    #[serde(default)]
    pub log_lines_lost: u64,
    /// Per route and release, those in the table and some that were.
    #[serde(default)]
    pub routes: Vec<RouteStatus>,
    /// Per instance, those in the table and those that still have requests in flight or counts.
    pub targets: Vec<TargetStatus>,
    /// Requests that no pool got (no route matched, the pool was empty), per environment where one is known.
    pub unrouted: Vec<(Option<EnvRef>, Tally)>,
}

/// What the edge knows of TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsStatus {
    /// Addresses that take traffic over TLS, `IP:PORT`.
    pub listening: Vec<String>,
    /// Pairs of certificate and key in use.
    pub certificates: u64,
    /// What is wrong with the folder of certificates; empty if all of it is in use.
    pub problems: Vec<String>,
    /// Handshakes that failed.
    pub refused: u64,
}

/// What the edge knows of one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetStatus {
    /// Which.
    pub instance: InstanceId,
    /// Whose.
    pub env: EnvRef,
    /// Which service.
    pub service: ServiceName,
    /// Of which release.
    pub release: ReleaseNumber,
    /// Whether it is in the table in use.
    pub in_table: bool,
    /// Requests in flight, upgraded connections included.
    pub in_flight: u64,
    /// Whether the edge sends it nothing because it failed.
    pub ejected: bool,
    /// For how long it has been ejected.
    pub ejected_for: Millis,
    /// How often it was ejected.
    #[serde(default)]
    pub ejections: u64,
    /// Why, in one line.
    pub reason: Option<String>,
    /// Counts.
    pub tally: Tally,
    /// Requests per latency bucket, see [`LATENCY_BUCKETS`].
    pub latency: Vec<u64>,
}

/// What was counted of one route and release. Monotone while one edge process lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteStatus {
    /// Host and path with `*` for any host, `tcp:PORT`, or the name inside.
    pub route: String,
    /// Whose.
    pub env: EnvRef,
    /// Which service.
    pub service: ServiceName,
    /// Of which release.
    pub release: ReleaseNumber,
    /// Whether it is in the table in use.
    pub in_table: bool,
    /// Requests by the first digit of the status, from 0 to 5; 0 has no status: raw connections, and clients that went away
    /// before.
    pub statuses: Vec<u64>,
    /// Of these: see [`Tally::failed`].
    pub failed: u64,
    /// Of these: see [`Tally::cut`].
    pub cut: u64,
    /// Of these: see [`Tally::abandoned`].
    pub abandoned: u64,
    /// Bytes of the bodies of requests, or from clients of raw connections.
    pub bytes_in: u64,
    /// Bytes of the bodies of answers, or to clients.
    pub bytes_out: u64,
    /// Attempts beyond the first ones.
    pub retries: u64,
    /// Of the failed: sent away because every instance was full.
    pub shed: u64,
    /// Refused with 429 because a client asked too often.
    pub limited: u64,
    /// Microseconds that all of them took together.
    pub micros: u64,
    /// Requests per latency bucket, see [`LATENCY_BUCKETS`].
    pub latency: Vec<u64>,
}

impl TargetStatus {
    fn absorb(&mut self, earlier: &TargetStatus) {
        self.in_flight += earlier.in_flight;
        self.ejections += earlier.ejections;
        self.tally = self.tally.plus(earlier.tally);
        add(&mut self.latency, &earlier.latency);
    }
}

impl RouteStatus {
    fn is_same(&self, other: &RouteStatus) -> bool {
        (&self.route, &self.env, &self.service, self.release)
            == (&other.route, &other.env, &other.service, other.release)
    }

    fn absorb(&mut self, earlier: &RouteStatus) {
        let sums = [
            (&mut self.failed, earlier.failed),
            (&mut self.cut, earlier.cut),
            (&mut self.abandoned, earlier.abandoned),
            (&mut self.bytes_in, earlier.bytes_in),
            (&mut self.bytes_out, earlier.bytes_out),
            (&mut self.retries, earlier.retries),
            (&mut self.shed, earlier.shed),
            (&mut self.limited, earlier.limited),
            (&mut self.micros, earlier.micros),
        ];
        sums.into_iter().for_each(|(sum, more)| *sum += more);
        add(&mut self.statuses, &earlier.statuses);
        add(&mut self.latency, &earlier.latency);
    }
}

/// Adds counts one by one.
fn add(sums: &mut Vec<u64>, more: &[u64]) {
    sums.resize(sums.len().max(more.len()), 0);
    sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
}

impl EdgeStatus {
    /// Adds what an edge that this one took over from has counted, and what it still serves. What this one knows itself (the
    /// table, addresses, health) stays.
    pub fn absorb(&mut self, earlier: &EdgeStatus) {
        self.replaced += earlier.replaced;
        self.waiting += earlier.waiting;
        self.log_lines_lost += earlier.log_lines_lost;
        for one in &earlier.targets {
            match self.targets.iter_mut().find(|own| own.instance == one.instance) {
                Some(own) => own.absorb(one),
                None => self.targets.push(TargetStatus { in_table: false, ..one.clone() }),
            }
        }
        for one in &earlier.routes {
            match self.routes.iter_mut().find(|own| own.is_same(one)) {
                Some(own) => own.absorb(one),
                None => self.routes.push(RouteStatus { in_table: false, ..one.clone() }),
            }
        }
        for (env, tally) in &earlier.unrouted {
            match self.unrouted.iter_mut().find(|(own, _)| own == env) {
                Some((_, own)) => *own = own.plus(*tally),
                None => self.unrouted.push((env.clone(), *tally)),
            }
        }
        if let (Some(own), Some(earlier)) = (&mut self.tls, &earlier.tls) {
            own.refused += earlier.refused;
        }
    }

    /// The sum of the counts of one environment.
    pub fn tally_of(&self, env: &EnvRef) -> Tally {
        let targets = self.targets.iter().filter(|t| &t.env == env).map(|t| t.tally);
        let unrouted = self.unrouted.iter().filter(|(e, _)| e.as_ref() == Some(env)).map(|(_, t)| *t);
        targets.chain(unrouted).fold(Tally::default(), Tally::plus)
    }

    /// The counts of one release of an environment, as far as its instances are known.
    pub fn mark_of_release(&self, env: &EnvRef, release: ReleaseNumber) -> Mark {
        let own = self.targets.iter().filter(|t| &t.env == env && t.release == release).map(|t| t.tally);
        Mark { process: self.process.clone(), tally: own.fold(Tally::default(), Tally::plus) }
    }

    /// The counts of one environment, to be compared with later ones.
    pub fn mark_of(&self, env: &EnvRef) -> Mark {
        Mark { process: self.process.clone(), tally: self.tally_of(env) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_goes_on_with_the_counts_of_the_one_before() {
        let target = |instance: &str, in_flight, requests| TargetStatus {
            instance: instance.parse().unwrap(),
            env: EnvRef::try_from("shop/production".to_owned()).unwrap(),
            service: ServiceName::new("web").unwrap(),
            release: ReleaseNumber(1),
            in_table: true,
            in_flight,
            ejected: in_flight > 1,
            ejected_for: Millis(0),
            ejections: 1,
            reason: None,
            tally: Tally { requests, ..Tally::default() },
            latency: vec![requests],
        };
        let tls = |refused| Some(TlsStatus { refused, ..TlsStatus::default() });
        let mut now =
            EdgeStatus { targets: vec![target("web-1", 1, 2)], tls: tls(1), ..EdgeStatus::default() };
        let lost = Tally { requests: 4, ..Tally::default() };
        let before = EdgeStatus {
            targets: vec![target("web-1", 2, 5), target("web-0", 3, 7)],
            unrouted: vec![(None, lost)],
            tls: tls(2),
            replaced: 1,
            ..EdgeStatus::default()
        };
        now.absorb(&before);
        let seen =
            |t: &TargetStatus| (t.in_table, t.ejected, t.in_flight, t.tally.requests, t.latency.clone());
        let seen: Vec<_> = now.targets.iter().map(seen).collect();
        assert_eq!(seen, [(true, false, 3, 7, vec![7]), (false, true, 3, 7, vec![7])]);
        assert_eq!((now.unrouted[0].1.requests, now.tls.unwrap().refused, now.replaced), (4, 3, 1));
    }

    #[test]
    fn counts_of_another_edge_process_began_anew() {
        let mark = |process: &str, requests| Mark {
            process: process.into(),
            tally: Tally { requests, ..Tally::default() },
        };
        assert_eq!(mark("a", 7).since(&mark("a", 5)).requests, 2);
        assert_eq!(mark("b", 7).since(&mark("a", 5)).requests, 7);
        assert_eq!(mark("b", 3).since(&mark("a", 5)).requests, 3);
        assert_eq!(mark("a", 7).since(&Mark::default()).requests, 7);
        let before_marks: Mark =
            serde_json::from_str(r#"{"requests":5,"failed":0,"cut":0,"abandoned":0,"errors":0}"#).unwrap();
        assert_eq!(mark("a", 7).since(&before_marks).requests, 2);
    }
}
