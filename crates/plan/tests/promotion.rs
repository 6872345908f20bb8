//! Secrets, environments and promotion: what commands lead to, without a planner. Rollouts end as the test says.

use kiln_model::*;
use kiln_plan::command::{NotMet, Unmet};
use kiln_plan::{Command, Outcome, Refusal, Request, decide};

fn env(name: &str) -> EnvRef {
    EnvRef { project: ProjectName::new("shop").unwrap(), env: EnvName::new(name).unwrap() }
}

fn image() -> ImageName {
    ImageName::new("app").unwrap()
}

fn key(name: &str) -> SecretName {
    SecretName::new(name).unwrap()
}

fn service(secrets: &[&str]) -> ServiceSpec {
    ServiceSpec {
        proxy_protocol: false,
        autoscale: None,
        name: ServiceName::new("web").unwrap(),
        image: image(),
        command: vec!["/app".into()],
        instances: 1,
        port: None,
        protocol: kiln_model::Protocol::default(),
        user: "65534".into(),
        env: Default::default(),
        secrets: secrets.iter().map(|name| key(name)).collect(),
        writable: vec![],
        resources: Resources::default(),
        confinement: Confinement::default(),
        health: None,
        validate: vec![],
        rollout: RolloutPolicy {
            strategy: Strategy::default(),
            drain: Millis(0),
            keep_previous: Millis(0),
            deadline: Millis(60_000),
        },
        stop: Stop::default(),
    }
}

fn spec(commit: char, secrets: &[&str], requires: Option<(&str, u64)>) -> Box<ReleaseSpec> {
    let service = service(secrets);
    Box::new(ReleaseSpec {
        commit: commit.to_string().repeat(40).parse().unwrap(),
        commit_time: 0,
        subject: String::new(),
        pinned: true,
        services: [(service.name.clone(), service)].into(),
        routes: vec![],
        images: vec![image()],
        secrets: Default::default(),
        requires: requires.map(|(env, ms)| Requirement { env: EnvName::new(env).unwrap(), time: Millis(ms) }),
    })
}

#[derive(Default)]
struct World {
    snapshot: Snapshot,
    now: Boot,
    ledger: Vec<Event>,
}

impl World {
    fn submit(&mut self, command: Command) -> Result<Outcome, Refusal> {
        let request = Request { command, actor: "ann".into(), at: Wall(0), now: self.now };
        let decision = decide(&self.snapshot, &request)?;
        decision.mutations.iter().for_each(|mutation| self.snapshot.apply(mutation));
        self.ledger.extend(decision.events);
        Ok(decision.outcome)
    }

    /// Accepts a deploy and ends its rollout, now, as `phase`.
    fn run(&mut self, command: Command, phase: RolloutPhase) -> ReleaseNumber {
        let Ok(Outcome::Started { rollout, release }) = self.submit(command) else { panic!("not started") };
        let mut row = Rollout::clone(&self.snapshot.rollouts[&rollout]);
        let target = row.env.clone();
        (row.phase, row.since) = (phase, self.now);
        self.snapshot.apply(&Mutation::PutRollout(Box::new(row)));
        let mut sealed = Release::clone(self.snapshot.release(&target, release).unwrap());
        let digest = Digest::of(sealed.spec.commit.to_string().as_bytes());
        sealed.images.get_or_insert([(image(), digest)].into());
        sealed.served |= phase == RolloutPhase::Succeeded;
        self.snapshot.apply(&Mutation::PutRelease(Box::new(sealed)));
        if phase == RolloutPhase::Succeeded {
            let mut environment = Environment::clone(&self.snapshot.environments[&target]);
            environment.serving = Some(release);
            self.snapshot.apply(&Mutation::PutEnvironment(environment));
        }
        release
    }

    fn deploy(&mut self, name: &str, commit: char, phase: RolloutPhase) -> ReleaseNumber {
        self.run(Command::Deploy { env: env(name), spec: spec(commit, &[], None) }, phase)
    }

    fn set(&mut self, name: &str, bytes: u32) -> Outcome {
        let content = SecretContent::Sealed { sealed: "YWdl".into(), key: "age1".into(), bytes };
        self.submit(Command::SetSecret { env: env("production"), name: key(name), content }).unwrap()
    }

    fn release(&self, name: &str, number: u64) -> &Release {
        self.snapshot.release(&env(name), ReleaseNumber(number)).unwrap()
    }
}

fn production(commit: char, requires: Option<(&str, u64)>) -> Command {
    Command::Deploy { env: env("production"), spec: spec(commit, &[], requires) }
}

fn promote(commit: char, requires: Option<(&str, u64)>, release: Option<u64>) -> Command {
    Command::Promote {
        env: env("production"),
        from: EnvName::new("staging").unwrap(),
        release: release.map(ReleaseNumber),
        spec: spec(commit, &[], requires),
    }
}

fn unmet(result: Result<Outcome, Refusal>) -> Unmet {
    match result {
        Err(Refusal::RequirementNotMet(not_met)) => {
            let NotMet { unmet, .. } = *not_met;
            unmet
        }
        other => panic!("{other:?}"),
    }
}

use RolloutPhase::{Succeeded, TakenBack};

#[test]
fn a_release_binds_the_versions_of_its_secrets() {
    let mut world = World::default();
    let deploy = || Command::Deploy { env: env("production"), spec: spec('a', &["API_KEY"], None) };
    let refused = world.submit(deploy()).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "service `web` needs the secret `API_KEY`, which is not set in `shop/production`"
    );
    assert!(refused.hint().unwrap().starts_with("`kiln secret set API_KEY --env production`"));
    world.set("API_KEY", 3);
    assert_eq!(world.run(deploy(), Succeeded), ReleaseNumber(1));
    assert!(matches!(world.submit(deploy()), Ok(Outcome::Already { .. })));
    assert_eq!(world.set("API_KEY", 3), Outcome::Secret { version: SecretVersion(2) });
    assert_eq!(world.run(deploy(), Succeeded), ReleaseNumber(2), "the same commit with a newer secret");
    let versions = |world: &World, n| world.release("production", n).spec.secrets[&key("API_KEY")];
    assert_eq!([versions(&world, 1), versions(&world, 2)], [SecretVersion(1), SecretVersion(2)]);
    let to = Some(ReleaseNumber(1));
    assert!(world.submit(Command::Rollback { env: env("production"), to }).is_ok());
    // Nobody needs 3 and 4 when 5 comes; 1 and 2 are of releases.
    for _ in 0..3 {
        world.set("API_KEY", 3);
    }
    world.submit(Command::UnsetSecret { env: env("production"), name: key("API_KEY") }).unwrap();
    let all = world.snapshot.secrets_of(&env("production"), None);
    let kept: Vec<u64> = all.filter(|secret| secret.bytes().is_some()).map(|s| s.version.0).collect();
    assert_eq!(kept, [1, 2]);
    assert!(matches!(world.submit(deploy()), Err(Refusal::SecretNotSet { .. })), "it was taken out");
    let again = Command::UnsetSecret { env: env("production"), name: key("API_KEY") };
    assert!(matches!(world.submit(again), Err(Refusal::NoSecret { .. })));
    assert!(world.ledger.iter().any(|e| e.kind == "secret.set" && e.detail == "version 2"));
}

#[test]
fn secrets_are_limited() {
    let mut world = World::default();
    let names: Vec<String> = (0..4).map(|n| format!("S{n}")).collect();
    for name in &names {
        world.set(name, limits::SECRET_BYTES_MAX as u32);
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let deploy = |n| Command::Deploy { env: env("production"), spec: spec('a', &names[..n], None) };
    assert!(matches!(world.submit(deploy(4)), Err(Refusal::SecretsTooLarge { .. })));
    assert!(world.submit(deploy(3)).is_ok());
    for n in 0..limits::SECRETS_MAX - 4 {
        world.set(&format!("N{n}"), 1);
    }
    let content = SecretContent::Sealed { sealed: "YWdl".into(), key: "age1".into(), bytes: 1 };
    let one_more = Command::SetSecret { env: env("production"), name: key("MORE"), content };
    assert!(matches!(world.submit(one_more), Err(Refusal::TooManySecrets { .. })));
}

#[test]
fn an_environment_is_made_like_another() {
    let mut world = World::default();
    let like = Some(EnvName::new("production").unwrap());
    let create = |like| Command::CreateEnvironment { env: env("staging"), like };
    assert!(matches!(world.submit(create(like.clone())), Err(Refusal::NoEnvironment { .. })));
    world.deploy("production", 'a', Succeeded);
    let instances = [(ServiceName::new("web").unwrap(), Some(4))].into();
    world.submit(Command::Scale { env: env("production"), instances }).unwrap();
    assert_eq!(world.submit(create(like.clone())), Ok(Outcome::Created));
    let staging = &world.snapshot.environments[&env("staging")];
    assert_eq!((staging.scale.values().collect::<Vec<_>>(), &staging.like), (vec![&4], &like));
    assert_eq!(staging.serving, None);
    assert!(matches!(world.submit(create(like)), Err(Refusal::EnvironmentExists { .. })));
    world.submit(Command::Destroy { env: env("staging") }).unwrap();
    assert_eq!(world.submit(create(None)), Ok(Outcome::Created));
}

#[test]
fn a_promotion_takes_the_images_and_says_where_they_came_from() {
    let mut world = World::default();
    assert!(matches!(world.submit(promote('a', None, None)), Err(Refusal::NoEnvironment { .. })));
    world.deploy("staging", 'a', TakenBack);
    assert!(matches!(world.submit(promote('a', None, None)), Err(Refusal::NothingServes { .. })));
    assert!(matches!(world.submit(promote('a', None, Some(1))), Err(Refusal::NeverServed { .. })));
    assert!(matches!(world.submit(promote('a', None, Some(9))), Err(Refusal::NoRelease { .. })));
    world.deploy("staging", 'b', Succeeded);
    let number = world.run(promote('b', None, None), Succeeded);
    let promoted = world.release("production", number.0);
    assert_eq!(promoted.images, world.release("staging", 2).images);
    let origin = Promotion { env: EnvName::new("staging").unwrap(), release: ReleaseNumber(2) };
    assert_eq!(promoted.promoted_from, Some(origin));
    assert!(matches!(world.submit(promote('b', None, None)), Ok(Outcome::Already { .. })));
    assert!(world.ledger.iter().any(|e| e.kind == "promote" && e.detail == "images of release 2 of staging"));
}

#[test]
fn a_requirement_waits_for_time_and_success_and_is_lifted_by_nobody() {
    const HOUR: u64 = 3_600_000;
    let required = Some(("staging", HOUR));
    let mut world = World::default();
    assert_eq!(unmet(world.submit(production('a', required))), Unmet::Never);
    world.deploy("staging", 'a', Succeeded);
    world.now = Boot(HOUR - 1);
    let (served, missing) = (Millis(HOUR - 1), Millis(1));
    let short = Unmet::TooShort { served, missing, runs: true };
    assert_eq!(unmet(world.submit(promote('a', required, None))), short);
    assert_eq!(unmet(world.submit(production('a', required))), short);
    world.now = Boot(HOUR);
    let number = world.run(production('a', required), Succeeded);
    assert!(world.release("production", number.0).promoted_from.is_some(), "the images that were tried");
    // The next commit does not require it any more: what serves still does.
    assert_eq!(unmet(world.submit(production('b', None))), Unmet::Never);
    assert_eq!(unmet(world.submit(production('b', Some(("staging", 1))))), Unmet::Never);
    world.deploy("staging", 'b', Succeeded);
    world.deploy("staging", 'c', Succeeded);
    let (served, missing) = (Millis(0), Millis(HOUR));
    assert_eq!(
        unmet(world.submit(production('b', None))),
        Unmet::TooShort { served, missing, runs: false },
        "another one serves there by now"
    );
    // An override is recorded, and only where it was needed.
    let over =
        |command, reason: &str| Command::Override { command: Box::new(command), reason: reason.into() };
    assert_eq!(world.submit(over(production('b', None), " ")), Err(Refusal::NoReason));
    let number = world.run(over(production('b', None), "an outage"), Succeeded);
    let overridden = world.release("production", number.0).overridden.clone().unwrap();
    assert!(overridden.ends_with("; an outage"), "{overridden}");
    assert!(world.ledger.iter().any(|e| e.kind == "requirement.overridden" && e.detail == overridden));
    // The release that serves requires nothing: it was let in by an override, which is what lifted it.
    assert!(world.submit(production('d', None)).is_ok());
}

#[test]
fn images_that_were_taken_back_start_anew() {
    const HOUR: u64 = 3_600_000;
    let required = Some(("staging", HOUR));
    let mut world = World::default();
    world.deploy("staging", 'a', Succeeded);
    world.now = Boot(HOUR);
    world.deploy("staging", 'b', Succeeded);
    world.now = Boot(3 * HOUR);
    assert!(decide_only(&world, production('a', required)).is_ok(), "it served for an hour, before");
    assert!(decide_only(&world, production('b', required)).is_ok());
    let back = Command::Rollback { env: env("staging"), to: Some(ReleaseNumber(1)) };
    world.run(back, Succeeded);
    assert_eq!(unmet(decide_only(&world, production('b', required))), Unmet::TakenBack);
    assert!(decide_only(&world, production('a', required)).is_ok());
    world.now = Boot(4 * HOUR);
    let mut other = spec('a', &[], None);
    other.pinned = false;
    world.run(Command::Deploy { env: env("staging"), spec: other }, TakenBack);
    assert_eq!(unmet(decide_only(&world, production('a', required))), Unmet::TakenBack);
    // After a reboot of the host the time before does not count.
    world.snapshot.apply(&Mutation::Rebase { boot_id: "second".into(), now: Boot(5) });
    world.now = Boot(6);
    assert_eq!(unmet(decide_only(&world, production('b', required))), Unmet::TakenBack);
}

fn decide_only(world: &World, command: Command) -> Result<Outcome, Refusal> {
    let request = Request { command, actor: "ann".into(), at: Wall(0), now: world.now };
    decide(&world.snapshot, &request).map(|decision| decision.outcome)
}
