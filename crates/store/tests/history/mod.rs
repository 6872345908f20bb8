//! Rows and commits that tests of stores share.

use kiln_model::*;
use kiln_store::Store;
use std::sync::Arc;

pub fn env() -> EnvRef {
    EnvRef { project: ProjectName::new("shop").unwrap(), env: EnvName::new("production").unwrap() }
}

pub fn instance(sequence: u64, state: InstanceState) -> Mutation {
    let service = ServiceName::new("web").unwrap();
    Mutation::PutInstance(Box::new(Instance {
        id: InstanceId::new(&service, sequence),
        env: env(),
        release: ReleaseNumber(1),
        service,
        slot: 0,
        image: Digest::of(b"image"),
        network: NetworkNumber(1),
        state,
        since: Boot(1),
        created: Wall(1),
        address: None,
        evidence: vec![],
        reason: None,
    }))
}

pub fn gone(sequence: u64) -> Mutation {
    Mutation::Gone { instance: InstanceId::new(&ServiceName::new("web").unwrap(), sequence) }
}

pub fn event(n: u64) -> Event {
    let (kind, subject) = ("test".to_owned(), format!("thing {n}"));
    Event { at: Wall(n), actor: "test".into(), env: Some(env()), kind, subject, detail: String::new() }
}

pub fn secret(version: u64, content: SecretContent) -> Mutation {
    let name = SecretName::new("API_KEY").unwrap();
    let (version, actor) = (SecretVersion(version), "test".to_owned());
    Mutation::PutSecret(Box::new(Secret {
        env: env(),
        name,
        version,
        created: Wall(version.0),
        actor,
        content,
    }))
}

pub fn sealed() -> SecretContent {
    SecretContent::Sealed { sealed: "YWdl".into(), key: "age1".into(), bytes: 3 }
}

/// Legal commits, enough to exercise every table.
pub fn history(store: &dyn Store, n: u64) -> Vec<Arc<Snapshot>> {
    let (_, epoch) = store.take_lease("a").unwrap();
    let mut states = vec![store.load().unwrap()];
    for k in 0..n {
        let base = store.load().unwrap();
        let mut mutations = vec![instance(k + 1, InstanceState::Intent)];
        let mut environment = Environment::new(env());
        environment.next_release = ReleaseNumber(k);
        mutations.push(Mutation::PutEnvironment(environment));
        let key = OpKey::Ensure { instance: InstanceId::new(&ServiceName::new("web").unwrap(), k + 1) };
        let op = Op {
            id: OpId(k + 1),
            key,
            revision: base.revision,
            attempts: 1,
            not_before: Boot(k),
            last_error: None,
        };
        mutations.push(Mutation::PutOp(op.clone()));
        mutations.push(Mutation::PutRoute { generation: base.route.0.next(), table: Box::default() });
        if k % 3 == 1 {
            let pause = Pause { actor: "a".into(), reason: "b".into(), since: Boot(k), at: Wall(k) };
            let (own, of) = (Some(env()).filter(|_| k > 2), (k < 6).then_some(pause));
            mutations.push(Mutation::Pause { env: own, pause: of });
            let answer = Answered {
                key: format!("key-{k}"),
                request: Digest::of(b"request"),
                outcome: "{}".into(),
                revision: base.revision.next(),
            };
            mutations.push(Mutation::Answer(answer));
        }
        if k % 2 == 1 {
            mutations.extend([gone(k), Mutation::DropOp { key: op.key, id: op.id }]);
            mutations.push(Mutation::RouteAcked { generation: base.route.0 });
        }
        if k == 3 {
            mutations.push(Mutation::Rebase { boot_id: "second".into(), now: Boot(5) });
        }
        store.commit(epoch, base.revision, &mutations, &[event(k)]).unwrap();
        states.push(store.load().unwrap());
    }
    states
}
