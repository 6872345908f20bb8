//! The contract of [`Provider`] as a suite that every provider passes, the one in memory as well as real ones. It
//! panics at the first broken promise and prints a line for each kept one.

use crate::{Provider, ProviderError};
use kiln_model::{
    Check, CheckKind, Confinement, Digest, EnvName, EnvRef, Epoch, ExitReason, Fence, ImageConfig,
    ImageManifest, Incarnation, InstanceId, InstanceSpec, Millis, NO_SECRETS, NetworkNumber, OpId,
    ProjectName, ReleaseNumber, Resources, Revision, SecretName, SecretValue, SecretVersion, Seen, SeenState,
    ServiceName, Stop,
};
use std::time::{Duration, Instant};

/// What the program of a test instance does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// Serves on port 8080 until it is asked to end.
    Serve,
    /// As `Serve`, and ignores being asked.
    Stubborn,
    /// Ends with this status.
    Exit(i32),
    /// Ends by signal 6.
    Abort,
    /// Is not in the image.
    Missing,
    /// Cannot be started for another reason, for ever.
    Broken,
}

/// A provider under test.
pub trait Subject {
    /// Its type.
    type Provider: Provider;
    /// Opens it, each time on the same host. The one before is dropped by then.
    fn open(&mut self) -> Self::Provider;
    /// The specification of an instance. Ids may be anything, but each sequence number has its own.
    fn spec(&self, sequence: u64, behaviour: Behaviour) -> InstanceSpec;
    /// Kills what looks after an instance, without a warning.
    fn kill_supervisor(&mut self, id: &InstanceId);
    /// How long a condition may take to come true. Never waited for when all is well.
    fn patience(&self) -> Duration {
        PATIENCE
    }
}

/// The patience with most subjects.
const PATIENCE: Duration = Duration::from_secs(30);

/// A specification without an image, to be changed as a subject needs.
pub fn spec(sequence: u64) -> InstanceSpec {
    let service = ServiceName::new("web").expect("a legal name");
    let manifest = ImageManifest {
        format: 1,
        architecture: "amd64".into(),
        layers: vec![],
        config: ImageConfig::default(),
    };
    InstanceSpec {
        proxy_protocol: false,
        id: InstanceId::new(&service, sequence),
        env: EnvRef {
            project: ProjectName::new("project").expect("a legal name"),
            env: EnvName::new("production").expect("a legal name"),
        },
        release: ReleaseNumber(1),
        service,
        commit: "0123456789012345678901234567890123456789".parse().expect("a legal name"),
        image: Digest::of(&manifest.canonical()),
        manifest,
        command: vec!["serve".into()],
        user: "65534".into(),
        environment: [].into(),
        secrets: [].into(),
        writable: vec![],
        resources: Resources { cpu_milli: 1000, memory_bytes: 64 << 20, pids: 64 },
        network: NetworkNumber::default(),
        peers: vec![],
        confinement: Confinement::default(),
        port: Some(8080),
        stop: Stop { signal: 15, timeout: Millis(300) },
        origin: None,
    }
}

/// A check that a serving instance passes.
pub fn check() -> Check {
    Check { kind: CheckKind::Tcp { port: 8080 }, timeout: Millis(2000) }
}

fn fence(epoch: u64, revision: u64) -> Fence {
    Fence {
        incarnation: Incarnation(1),
        epoch: Epoch(epoch),
        revision: Revision(revision),
        op: OpId(revision),
    }
}

async fn seen(provider: &impl Provider, id: &InstanceId) -> Option<Seen> {
    provider.list().await.expect("list").into_iter().find(|seen| seen.id == *id)
}

/// Waits until an instance is in a state that `wanted` accepts.
pub async fn until(
    provider: &impl Provider,
    id: &InstanceId,
    wanted: impl Fn(&SeenState) -> bool,
) -> SeenState {
    until_within(PATIENCE, provider, id, wanted).await
}

async fn until_within(
    patience: Duration,
    provider: &impl Provider,
    id: &InstanceId,
    wanted: impl Fn(&SeenState) -> bool,
) -> SeenState {
    let end = Instant::now() + patience;
    loop {
        let state = seen(provider, id).await.map(|seen| seen.state);
        if let Some(state) = state.filter(|state| wanted(state)) {
            return state;
        }
        assert!(Instant::now() < end, "`{id}` did not come to the wanted state");
        // `changed` is a hint; the look above decides.
        let _ = tokio::time::timeout(Duration::from_millis(20), provider.changed()).await;
    }
}

fn is_running(state: &SeenState) -> bool {
    *state == SeenState::Running
}

fn has_ended(state: &SeenState) -> bool {
    matches!(state, SeenState::Exited(_))
}

/// Waits until a check passes.
pub async fn until_ready(provider: &impl Provider, id: &InstanceId, check: &Check) {
    ready_within(PATIENCE, provider, id, check).await;
}

async fn ready_within(patience: Duration, provider: &impl Provider, id: &InstanceId, check: &Check) {
    let end = Instant::now() + patience;
    loop {
        let evidence = provider.check(id, check).await;
        if evidence.passed {
            return;
        }
        assert!(Instant::now() < end, "{evidence:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Runs everything. Uses the sequence numbers 1 to 99 and leaves no instance behind.
pub async fn suite(subject: &mut impl Subject) {
    let provider = subject.open();
    ensure_is_idempotent(&provider, subject).await;
    stale_is_refused(&provider, subject).await;
    destroyed_stays_destroyed(&provider, subject).await;
    exit_reasons(&provider, subject).await;
    the_stubborn_go_too(&provider, subject).await;
    at_the_same_time(&provider, subject).await;
    drop(provider);
    reopened(subject).await;
    supervisor_killed(subject).await;
    secrets_come_beside(&subject.open(), subject).await;
}

/// An instance that has secrets is not started without their values.
async fn secrets_come_beside(provider: &impl Provider, subject: &impl Subject) {
    let mut spec = subject.spec(90, Behaviour::Serve);
    let name = SecretName::new("API_KEY").expect("a legal name");
    spec.secrets = [(name.clone(), SecretVersion(1))].into();
    let without = provider.ensure(fence(3, 17), &spec, &NO_SECRETS).await;
    assert!(matches!(without, Err(ProviderError::Retry { .. })), "{without:?}");
    let values = [(name, SecretValue::new(b"value".to_vec()))].into();
    provider.ensure(fence(3, 17), &spec, &values).await.expect("ensure");
    until_within(subject.patience(), provider, &spec.id, is_running).await;
    let again = provider.ensure(fence(3, 17), &spec, &NO_SECRETS).await.expect("it runs");
    assert_eq!(again.state, SeenState::Running);
    provider.absent(fence(3, 17), &spec.id).await.expect("absent");
    kept("secrets come beside the specification, and only when they are needed");
}

fn kept(promise: &str) {
    println!("kept: {promise}");
}

async fn ensure_is_idempotent(provider: &impl Provider, subject: &impl Subject) {
    let spec = subject.spec(1, Behaviour::Serve);
    let first = provider.ensure(fence(1, 1), &spec, &NO_SECRETS).await.expect("ensure");
    assert!(first.address.is_some());
    until_within(subject.patience(), provider, &spec.id, is_running).await;
    ready_within(subject.patience(), provider, &spec.id, &check()).await;
    let again = provider.ensure(fence(1, 2), &spec, &NO_SECRETS).await.expect("ensure again");
    assert_eq!((again.address, again.state), (first.address, SeenState::Running));
    assert_eq!(provider.list().await.expect("list").len(), 1);
    kept("the same ensure again answers what is there");

    let other = subject.spec(2, Behaviour::Serve);
    let second = provider.ensure(fence(1, 2), &other, &NO_SECRETS).await.expect("ensure");
    assert_ne!(second.address, first.address);
    for id in [&spec.id, &other.id] {
        provider.absent(fence(1, 3), id).await.expect("absent");
        provider.absent(fence(1, 3), id).await.expect("absent again");
        assert_eq!(seen(provider, id).await, None);
        assert!(!provider.check(id, &check()).await.passed);
    }
    let third = subject.spec(3, Behaviour::Serve);
    let third_seen = provider.ensure(fence(1, 3), &third, &NO_SECRETS).await.expect("ensure");
    let memory = provider.memory().await.expect("memory");
    assert_eq!(memory.newest.order(), fence(1, 3).order(), "the newest of whom it heard");
    assert!(memory.last_instance >= third.id.sequence(), "also of those that are gone");
    assert_eq!(memory.specs.get(&third.id), Some(&third), "what it was started with lies with it");
    assert!(!memory.specs.contains_key(&spec.id), "it is gone");
    assert!(third_seen.address != first.address && third_seen.address != second.address);
    provider.absent(fence(1, 3), &third.id).await.expect("absent");
    kept("addresses are not shared, and come back late");
}

async fn stale_is_refused(provider: &impl Provider, subject: &impl Subject) {
    let spec = subject.spec(10, Behaviour::Serve);
    provider.ensure(fence(2, 5), &spec, &NO_SECRETS).await.expect("ensure");
    let mut other = spec.clone();
    other.environment.insert("OTHER".into(), "content".into());
    let stale = |result: Result<(), ProviderError>| {
        assert!(matches!(result, Err(ProviderError::Stale { .. })), "{result:?}");
    };
    stale(provider.ensure(fence(2, 6), &other, &NO_SECRETS).await.map(|_| ()));
    kept("the same id with other content is refused");
    stale(provider.ensure(fence(2, 4), &spec, &NO_SECRETS).await.map(|_| ()));
    stale(provider.absent(fence(2, 4), &spec.id).await);
    kept("an older plan is refused");
    stale(provider.ensure(fence(1, 9), &subject.spec(11, Behaviour::Serve), &NO_SECRETS).await.map(|_| ()));
    stale(provider.absent(fence(1, 9), &spec.id).await);
    kept("an older server is refused, for ids it never saw as well");
    assert!(seen(provider, &spec.id).await.is_some());
    provider.absent(fence(2, 7), &spec.id).await.expect("absent");
}

async fn destroyed_stays_destroyed(provider: &impl Provider, subject: &impl Subject) {
    let spec = subject.spec(20, Behaviour::Serve);
    provider.absent(fence(2, 8), &spec.id).await.expect("absent of an unknown id");
    for revision in [7, 8, 9] {
        let result = provider.ensure(fence(2, revision), &spec, &NO_SECRETS).await;
        assert!(matches!(result, Err(ProviderError::Tombstoned { .. })), "{result:?}");
    }
    assert_eq!(seen(provider, &spec.id).await, None);
    kept("a late create after the destroy is refused, for an id never seen as well");
}

/// Whether a program ended as it should.
type IsExpected = fn(&ExitReason) -> bool;

async fn exit_reasons(provider: &impl Provider, subject: &impl Subject) {
    let cases: [(Behaviour, IsExpected); 4] = [
        (Behaviour::Exit(0), |r| *r == ExitReason::Status { code: 0 }),
        (Behaviour::Exit(7), |r| *r == ExitReason::Status { code: 7 }),
        (Behaviour::Abort, |r| *r == ExitReason::Signal { signal: 6 }),
        (Behaviour::Missing, |r| matches!(r, ExitReason::NotStarted { error } if error.contains("missing"))),
    ];
    for (n, (behaviour, expected)) in cases.into_iter().enumerate() {
        let spec = subject.spec(30 + n as u64, behaviour);
        provider.ensure(fence(2, 10), &spec, &NO_SECRETS).await.expect("ensure");
        let state = until_within(subject.patience(), provider, &spec.id, has_ended).await;
        assert!(matches!(&state, SeenState::Exited(reason) if expected(reason)), "{behaviour:?}: {state:?}");
        let again = provider.ensure(fence(2, 10), &spec, &NO_SECRETS).await.expect("ensure again");
        assert_eq!(again.state, state);
        assert!(!provider.check(&spec.id, &check()).await.passed);
        provider.absent(fence(2, 10), &spec.id).await.expect("absent");
        kept(&format!("{behaviour:?} is seen, and it is not started again"));
    }
    let spec = subject.spec(35, Behaviour::Broken);
    let result = provider.ensure(fence(2, 10), &spec, &NO_SECRETS).await;
    assert!(matches!(result, Err(ProviderError::Permanent { .. })), "{result:?}");
    provider.absent(fence(2, 10), &spec.id).await.expect("absent of what never ran");
    assert_eq!(seen(provider, &spec.id).await, None);
    kept("what can never start is permanent, and can be destroyed");
}

async fn the_stubborn_go_too(provider: &impl Provider, subject: &impl Subject) {
    let spec = subject.spec(40, Behaviour::Stubborn);
    provider.ensure(fence(2, 11), &spec, &NO_SECRETS).await.expect("ensure");
    until_within(subject.patience(), provider, &spec.id, is_running).await;
    provider.absent(fence(2, 11), &spec.id).await.expect("absent");
    assert_eq!(seen(provider, &spec.id).await, None);
    kept("a program that ignores its signal is killed");
}

async fn at_the_same_time(provider: &impl Provider, subject: &impl Subject) {
    let spec = subject.spec(50, Behaviour::Serve);
    let ensure = || provider.ensure(fence(2, 12), &spec, &NO_SECRETS);
    let (a, b, c) = tokio::join!(ensure(), ensure(), ensure());
    let addresses: Vec<_> = [a, b, c].map(|r| r.expect("ensure").address).into();
    assert!(addresses.iter().all(|a| *a == addresses[0]));
    assert_eq!(provider.list().await.expect("list").len(), 1);
    let (a, b, c) = tokio::join!(
        provider.absent(fence(2, 12), &spec.id),
        ensure(),
        provider.absent(fence(2, 12), &spec.id)
    );
    assert!(a.is_ok() && c.is_ok(), "{a:?} {c:?}");
    assert!(matches!(b, Ok(_) | Err(ProviderError::Tombstoned { .. })), "{b:?}");
    assert_eq!(seen(provider, &spec.id).await, None);
    kept("calls at the same time end as if they came one by one");
}

async fn reopened(subject: &mut impl Subject) {
    let (running, ended, gone) = (
        subject.spec(60, Behaviour::Serve),
        subject.spec(61, Behaviour::Exit(7)),
        subject.spec(62, Behaviour::Serve),
    );
    let provider = subject.open();
    let before = provider.ensure(fence(3, 13), &running, &NO_SECRETS).await.expect("ensure");
    provider.ensure(fence(3, 13), &ended, &NO_SECRETS).await.expect("ensure");
    provider.ensure(fence(3, 13), &gone, &NO_SECRETS).await.expect("ensure");
    provider.absent(fence(3, 13), &gone.id).await.expect("absent");
    until_within(subject.patience(), &provider, &running.id, is_running).await;
    drop(provider);

    let provider = subject.open();
    let state = until_within(subject.patience(), &provider, &ended.id, has_ended).await;
    assert_eq!(state, SeenState::Exited(ExitReason::Status { code: 7 }));
    let after = seen(&provider, &running.id).await.expect("the running one is adopted");
    assert_eq!((after.address, after.state), (before.address, SeenState::Running));
    ready_within(subject.patience(), &provider, &running.id, &check()).await;
    let again = provider.ensure(fence(3, 14), &running, &NO_SECRETS).await.expect("ensure");
    assert_eq!((again.address, again.state), (before.address, SeenState::Running));
    kept("a provider that is opened again adopts what lives, and knows how the others ended");
    let late = provider.ensure(fence(3, 14), &gone, &NO_SECRETS).await;
    assert!(matches!(late, Err(ProviderError::Tombstoned { .. })), "{late:?}");
    let stale = provider.ensure(fence(2, 99), &subject.spec(63, Behaviour::Serve), &NO_SECRETS).await;
    assert!(matches!(stale, Err(ProviderError::Stale { .. })), "{stale:?}");
    let stale = provider.absent(fence(3, 1), &running.id).await;
    assert!(matches!(stale, Err(ProviderError::Stale { .. })), "{stale:?}");
    kept("it remembers tombstones and fences");
    let next = subject.spec(64, Behaviour::Serve);
    let next_seen = provider.ensure(fence(3, 14), &next, &NO_SECRETS).await.expect("ensure");
    assert_ne!(next_seen.address, before.address);
    for spec in [&running, &ended, &next] {
        provider.absent(fence(3, 15), &spec.id).await.expect("absent");
    }
    assert_eq!(provider.list().await.expect("list"), []);
    kept("it destroys what it adopted");
}

async fn supervisor_killed(subject: &mut impl Subject) {
    let provider = subject.open();
    let spec = subject.spec(70, Behaviour::Serve);
    provider.ensure(fence(3, 16), &spec, &NO_SECRETS).await.expect("ensure");
    until_within(subject.patience(), &provider, &spec.id, is_running).await;
    subject.kill_supervisor(&spec.id);
    let state = until_within(subject.patience(), &provider, &spec.id, has_ended).await;
    assert_eq!(state, SeenState::Exited(ExitReason::Unknown));
    provider.absent(fence(3, 16), &spec.id).await.expect("absent");
    assert_eq!(provider.list().await.expect("list"), []);
    kept("a killed supervisor is seen");
}
