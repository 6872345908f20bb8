//! The projects that are deployed: everything about what a release looks like and how its commit behaves is drawn here.

use kiln_model::strategy::{Analysis, Canary, CanaryStep, Rolling};
use kiln_model::*;
use std::collections::BTreeMap;

/// How instances of a commit behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// As they should.
    Good,
    /// They end at once.
    Crashes,
    /// They are ready and fail `validate`.
    FailsValidate,
    /// They are never ready.
    NeverReady,
    /// They cannot be started.
    Broken,
    /// Every try to start them fails, and the next might work.
    Stuck,
    /// Its images cannot be made.
    Unbakeable,
}

/// How commit `n` behaves.
pub fn behaviour(n: u64) -> Behaviour {
    match n % 16 {
        3 => Behaviour::Crashes,
        5 => Behaviour::FailsValidate,
        6 => Behaviour::NeverReady,
        11 => Behaviour::Broken,
        12 => Behaviour::Stuck,
        13 => Behaviour::Unbakeable,
        _ => Behaviour::Good,
    }
}

/// How a commit behaves.
pub fn behaviour_of(commit: &CommitId) -> Behaviour {
    behaviour(u64::from_str_radix(commit.as_str(), 16).unwrap_or(0))
}

/// The commit of number `n`.
pub fn commit_id(n: u64) -> CommitId {
    format!("{n:040x}").parse().unwrap_or_else(|_| unreachable!("forty hexadecimal digits"))
}

/// A legal name.
pub fn service_name(name: &str) -> ServiceName {
    ServiceName::new(name).unwrap_or_else(|_| unreachable!("a legal name"))
}

/// Environment number `n`.
pub fn env(n: usize) -> EnvRef {
    let project = if n == 0 { "shop" } else { "blog" };
    EnvRef::try_from(format!("{project}/production")).unwrap_or_else(|_| unreachable!("a legal name"))
}

/// How a commit takes over; the last one of a run at once.
fn strategy(commit: u64) -> Strategy {
    let step = |weight| CanaryStep { weight, hold: Millis(400) };
    match commit {
        1..100 if commit % 5 == 2 => Strategy::Rolling(Rolling::default()),
        1..100 if commit % 5 == 4 => Strategy::Canary(Canary {
            steps: vec![step(20), step(50)],
            analysis: Analysis { min_requests: 2, hold: Millis(2_000), ..Analysis::default() },
        }),
        _ => Strategy::BlueGreen,
    }
}

fn service(name: &str, instances: u32, keep: u64, drain: u64, strategy: &Strategy) -> ServiceSpec {
    let check = |path: &str| Check {
        kind: CheckKind::Http { port: 80, path: path.into(), status: None, contains: None, host: None },
        timeout: Millis(100),
    };
    ServiceSpec {
        proxy_protocol: false,
        autoscale: None,
        secrets: vec![],
        name: service_name(name),
        image: ImageName::new(name).unwrap_or_else(|_| unreachable!("a legal name")),
        command: vec!["/app".into()],
        instances,
        port: Some(80),
        protocol: kiln_model::Protocol::default(),
        user: "65534".into(),
        env: BTreeMap::new(),
        writable: vec![],
        resources: Resources::default(),
        confinement: Confinement::default(),
        health: Some(Health {
            check: check("/healthz"),
            every: Millis(100),
            grace: Millis(1_500),
            healthy_after: 1,
            unhealthy_after: 3,
        }),
        validate: vec![check("/")],
        rollout: RolloutPolicy {
            strategy: strategy.clone(),
            drain: Millis(drain),
            keep_previous: Millis(keep),
            deadline: Millis(8_000),
        },
        stop: Stop { signal: 15, timeout: Millis(500) },
    }
}

/// A release of environment `n`, of a commit, that keeps the one before for `keep` milliseconds.
pub fn release(n: usize, commit: u64, keep: u64) -> ReleaseSpec {
    let host = format!("{}.test", env(n).project);
    let strategy = strategy(commit);
    let services = match n {
        0 => vec![service("api", 1, keep, 600, &strategy), service("web", 2, keep, 600, &strategy)],
        _ => vec![service("blog", 2, keep, 400, &strategy)],
    };
    let last = services.len() - 1;
    let rule = |(index, service): (usize, &ServiceSpec)| RouteRule {
        tcp: None,
        policy: Default::default(),
        host: Some(host.clone()),
        path: if index == last { "/".into() } else { format!("/{}", service.name) },
        service: service.name.clone(),
        https: kiln_model::Https::default(),
    };
    ReleaseSpec {
        secrets: BTreeMap::new(),
        requires: None,
        commit: commit_id(commit),
        commit_time: 0,
        subject: String::new(),
        pinned: true,
        images: services.iter().map(|s| s.image.clone()).collect(),
        routes: services.iter().enumerate().map(rule).collect(),
        services: services.into_iter().map(|s| (s.name.clone(), s)).collect(),
    }
}
