//! One suite for every store, and what only a durable one can show: reopening, torn logs, tampering.

mod history;

use history::{env, event, gone, history, instance, sealed, secret};
use kiln_model::*;
use kiln_store::{MemStore, SqliteStore, StateLock, Store, StoreError};
/// A release that binds version 2.
fn release_with_secret() -> Mutation {
    let spec = ReleaseSpec {
        commit: "a".repeat(40).parse().unwrap(),
        commit_time: 0,
        subject: String::new(),
        pinned: true,
        services: Default::default(),
        routes: vec![],
        images: vec![],
        secrets: [(SecretName::new("API_KEY").unwrap(), SecretVersion(2))].into(),
        requires: None,
    };
    let (number, actor) = (ReleaseNumber(1), "test".to_owned());
    Mutation::PutRelease(Box::new(Release {
        env: env(),
        number,
        spec,
        images: None,
        created: Wall(1),
        actor,
        served: false,
        promoted_from: None,
        overridden: None,
    }))
}

fn secrets(store: &dyn Store) {
    let (_, epoch) = store.take_lease("a").unwrap();
    let commit = |m: &[Mutation]| store.commit(epoch, store.load().unwrap().revision, m, &[]);
    let refused = |m: Mutation| matches!(commit(&[m]), Err(StoreError::Illegal { .. }));
    assert!(refused(secret(2, sealed())), "versions begin with 1");
    commit(&[secret(1, sealed()), secret(2, sealed()), release_with_secret()]).unwrap();
    assert!(refused(secret(4, sealed())), "versions have no gaps");
    assert!(refused(secret(2, SecretContent::Unset)), "a version is immutable");
    assert!(refused(secret(2, SecretContent::Removed)), "the newest is kept");
    commit(&[secret(3, SecretContent::Unset), secret(1, SecretContent::Removed)]).unwrap();
    assert!(refused(secret(2, SecretContent::Removed)), "a release needs it");
    let loaded = store.load().unwrap();
    let name = SecretName::new("API_KEY").unwrap();
    assert_eq!(loaded.current_secret(&env(), &name), None, "it was taken out");
    let contents: Vec<_> = loaded.secrets_of(&env(), None).map(|s| s.content.clone()).collect();
    assert_eq!(contents, [SecretContent::Removed, sealed(), SecretContent::Unset]);
    commit(&[secret(4, sealed())]).unwrap();
    assert_eq!(store.load().unwrap().current_secret(&env(), &name).unwrap().version, SecretVersion(4));
}

#[test]
fn both_stores_keep_secrets() {
    secrets(&MemStore::default());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kiln.db");
    let store = SqliteStore::open(&path).unwrap();
    secrets(&store);
    let before = store.load().unwrap();
    drop(store);
    assert_eq!(*SqliteStore::open(&path).unwrap().load().unwrap(), *before);
}

#[test]
fn a_store_of_the_first_schema_gets_secrets_and_keeps_a_copy() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kiln.db");
    let before = history(&SqliteStore::open(&path).unwrap(), 3).pop().unwrap();
    let old = "DROP TABLE secret; PRAGMA user_version = 1";
    rusqlite::Connection::open(&path).unwrap().execute_batch(old).unwrap();
    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(*store.load().unwrap(), *before);
    secrets(&store);
    assert!(folder.path().join("kiln.schema-1.db").exists());
}

fn suite(store: &dyn Store) {
    let (_, epoch) = store.take_lease("a").unwrap();
    let commit = |base, m: &[Mutation]| store.commit(epoch, base, m, &[event(1)]);
    let first = commit(Revision(0), &[Mutation::PutEnvironment(Environment::new(env()))]).unwrap();
    assert!(matches!(commit(Revision(0), &[]), Err(StoreError::Conflict { .. })), "a stale base is refused");
    let second = commit(first, &[instance(1, InstanceState::Intent)]).unwrap();
    let skipped = commit(second, &[instance(1, InstanceState::Serving)]);
    assert!(matches!(skipped, Err(StoreError::Illegal { .. })), "intent does not become serving");
    assert_eq!(store.load().unwrap().revision, second, "a refusal writes nothing");
    let third = commit(second, &[gone(1)]).unwrap();
    let again = commit(third, &[instance(1, InstanceState::Intent)]);
    assert!(matches!(again, Err(StoreError::Illegal { .. })), "an id is never used twice");
    assert!(store.is_tombstoned(&InstanceId::new(&ServiceName::new("web").unwrap(), 1)).unwrap());
    assert_eq!(store.departed(10).unwrap().len(), 1);
    let mut third = commit(third, &[gone(3)]).unwrap();
    for _ in 0..2 {
        let next = store.load().unwrap().next_instance;
        third = commit(third, &[instance(next, InstanceState::Intent)])
            .expect("a leftover of a newer history was removed: its number is not given again");
    }
    let jump = Mutation::PutRoute { generation: Generation(2), table: Box::default() };
    assert!(matches!(commit(third, &[jump]), Err(StoreError::Illegal { .. })), "generations have no gaps");
    let ahead = Mutation::RouteAcked { generation: Generation(1) };
    assert!(matches!(commit(third, &[ahead]), Err(StoreError::Illegal { .. })));
    let (_, newer) = store.take_lease("b").unwrap();
    assert!(newer > epoch);
    assert!(matches!(commit(third, &[]), Err(StoreError::LeaseLost { .. })), "an older server cannot write");
    assert_eq!(store.verify_ledger().unwrap(), Ok(6));
    assert_eq!(store.ledger(2, 1).unwrap()[0].sequence, 2);
}

#[test]
fn both_stores_keep_the_rules() {
    suite(&MemStore::default());
    let folder = tempfile::tempdir().unwrap();
    suite(&SqliteStore::open(&folder.path().join("kiln.db")).unwrap());
}

#[test]
fn what_is_reopened_is_what_was_applied() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kiln.db");
    let last = history(&SqliteStore::open(&path).unwrap(), 12).pop().unwrap();
    let reopened = SqliteStore::open(&path).unwrap();
    assert_eq!(*reopened.load().unwrap(), *last);
    let twin = MemStore::default();
    assert_eq!(*history(&twin, 12).pop().unwrap(), *last, "both stores give mutations the same meaning");
}

#[test]
fn a_torn_log_opens_at_some_earlier_commit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kiln.db");
    let store = SqliteStore::open(&path).unwrap();
    let states = history(&store, 8);
    let (db, wal) =
        (std::fs::read(&path).unwrap(), std::fs::read(folder.path().join("kiln.db-wal")).unwrap());
    let mut seen = std::collections::BTreeSet::new();
    for cut in (0..=wal.len()).step_by(wal.len() / 40) {
        let torn = tempfile::tempdir().unwrap();
        let path = torn.path().join("kiln.db");
        std::fs::write(&path, &db).unwrap();
        std::fs::write(torn.path().join("kiln.db-wal"), &wal[..cut]).unwrap();
        let store = SqliteStore::open(&path).unwrap();
        let loaded = store.load().unwrap();
        assert!(
            states.iter().any(|s| **s == *loaded),
            "revision {} is a state that never was",
            loaded.revision
        );
        assert!(store.verify_ledger().unwrap().is_ok());
        seen.insert(loaded.revision);
    }
    assert!(seen.len() > 3, "the cuts hit several commits: {seen:?}");
}

#[test]
fn rows_that_cannot_be_read_are_told_apart_and_everything_else_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kiln.db");
    let whole = history(&SqliteStore::open(&path).unwrap(), 4).pop().unwrap();
    let change = |sql: &str| rusqlite::Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    let (id, _) = whole.instances.get_max().unwrap();
    change(&format!("UPDATE instance SET body = substr(body, 1, 9) WHERE id = '{id}'"));
    change("UPDATE op SET body = 'x'");
    change("UPDATE route SET body = ''");
    let store = SqliteStore::open(&path).unwrap();
    let read = store.load().unwrap();
    let damaged: Vec<_> = read.damaged.iter().map(|row| (row.what.clone(), row.env.clone())).collect();
    assert_eq!(damaged, [(format!("instance {id}"), Some(env())), ("the route table".to_owned(), None)]);
    assert_eq!(read.damaged[0].instance.as_ref(), Some(id));
    assert_eq!(read.instances.len(), whole.instances.len() - 1);
    assert_eq!((&read.environments, read.route.0), (&whole.environments, whole.route.0));
    assert!(read.ops.is_empty(), "an intent that cannot be read was not written");
    assert_eq!(read.next_instance, whole.next_instance, "no number is given twice");
    let (_, epoch) = store.take_lease("b").unwrap();
    store.commit(epoch, read.revision, &[Mutation::PutEnvironment(Environment::new(env()))], &[]).unwrap();
    assert_eq!(store.load().unwrap().damaged, read.damaged, "a commit does not mend them");
    drop(store);
    change("UPDATE meta SET value = 'x' WHERE key = 'epoch'");
    let store = SqliteStore::open(&path).unwrap();
    assert!(store.take_lease("c").is_err(), "a number that cannot be read is not zero");
}

#[test]
fn no_more_answers_are_remembered_than_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kiln.db");
    let store = SqliteStore::open(&path).unwrap();
    let (_, epoch) = store.take_lease("a").unwrap();
    for batch in 0..3 {
        let base = store.load().unwrap().revision;
        let answers = (0..limits::ANSWERS_MAX as u64 / 2).map(|n| {
            Mutation::Answer(Answered {
                key: format!("key-{batch}-{n}"),
                request: Digest::of(b"request"),
                outcome: "{}".into(),
                revision: base.next(),
            })
        });
        store.commit(epoch, base, &answers.collect::<Vec<_>>(), &[]).unwrap();
    }
    let kept = store.load().unwrap();
    assert_eq!(kept.answers.len(), limits::ANSWERS_MAX);
    assert!(!kept.answers.contains_key("key-0-1") && kept.answers.contains_key("key-2-1"));
    assert_eq!(SqliteStore::open(&path).unwrap().load().unwrap().answers, kept.answers);
}

#[test]
fn an_edited_ledger_names_its_first_bad_entry() {
    for (change, bad) in [
        ("UPDATE ledger SET body = replace(body, 'thing', 'nothing') WHERE sequence = 3", 3),
        ("DELETE FROM ledger WHERE sequence = 4", 4),
        ("UPDATE ledger SET hash = previous WHERE sequence = 2", 2),
        ("DELETE FROM ledger WHERE sequence >= 5", 5),
        ("DELETE FROM ledger", 1),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kiln.db");
        history(&SqliteStore::open(&path).unwrap(), 6);
        rusqlite::Connection::open(&path).unwrap().execute_batch(change).unwrap();
        let store = SqliteStore::open(&path).unwrap();
        assert_eq!(store.verify_ledger().unwrap().unwrap_err().0, bad, "{change}");
    }
}

#[test]
fn a_ledger_whose_end_was_not_recorded_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kiln.db");
    history(&SqliteStore::open(&path).unwrap(), 6);
    let forget = "DELETE FROM meta WHERE key LIKE 'ledger%'";
    rusqlite::Connection::open(&path).unwrap().execute_batch(forget).unwrap();
    let store = SqliteStore::open(&path).unwrap();
    let (_, epoch) = store.take_lease("b").unwrap();
    store.commit(epoch, store.load().unwrap().revision, &[], &[event(7)]).unwrap();
    assert_eq!(store.verify_ledger().unwrap(), Ok(7));
}

#[test]
fn a_newer_schema_is_refused_and_a_second_server_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kiln.db");
    drop(SqliteStore::open(&path).unwrap());
    rusqlite::Connection::open(&path).unwrap().execute_batch("PRAGMA user_version = 99").unwrap();
    assert!(matches!(SqliteStore::open(&path), Err(StoreError::NewerSchema { found: 99, .. })));
    let _held = StateLock::take(folder.path()).unwrap();
    let error = StateLock::take(folder.path()).unwrap_err().to_string();
    assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
}

#[test]
fn the_lock_of_a_dead_server_is_waited_for_while_a_child_of_it_has_not_begun() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = std::process::Command::new("true").spawn().unwrap();
    server.wait().unwrap();
    std::fs::write(folder.path().join("lock"), server.id().to_string()).unwrap();
    let file = std::fs::File::open(folder.path().join("lock")).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut child = std::process::Command::new("sleep").arg("0.3").stdin(file).spawn().unwrap();
    let _held = StateLock::take(folder.path()).unwrap();
    // It is over: only then the lock was free.
    assert!(child.wait().unwrap().success());
}
