//! What only a database that several servers share can show: who wins, what an older one may still do, lost connections, restarts.

use kiln_model::mutant::{Mutant, plant};
use kiln_model::*;
use kiln_store::{MemStore, PostgresStore, SqliteStore, Store, StoreError};
use kiln_tests::postgres::Postgres;
use std::sync::Barrier;

const HOUR: Millis = Millis(3_600_000);

fn open(postgres: &Postgres) -> PostgresStore {
    PostgresStore::open(postgres.address().parse().unwrap()).unwrap()
}

fn event(n: u64) -> Event {
    let (kind, subject) = ("test".to_owned(), format!("thing {n}"));
    Event { at: Wall(n), actor: "test".into(), env: None, kind, subject, detail: String::new() }
}

fn pause(n: u64) -> Mutation {
    let pause = Pause { actor: "a".into(), reason: "b".into(), since: Boot(n), at: Wall(n) };
    Mutation::Pause { env: None, pause: Some(pause) }
}

/// A server that lost the lease writes nothing, whatever it asks for.
fn an_older_epoch_writes_nothing(older: &dyn Store, newer: &dyn Store) {
    let (_, old) = older.take_lease("a").unwrap();
    let base = older.load().unwrap().revision;
    let (_, new) = newer.take_lease("b").unwrap();
    assert!(new > old);
    let refused = older.commit(old, base, &[pause(1)], &[event(1)]);
    assert!(matches!(refused, Err(StoreError::LeaseLost { .. })), "{refused:?}");
    let renewed = older.renew_lease(old, HOUR);
    assert!(matches!(renewed, Err(StoreError::LeaseLost { .. })), "{renewed:?}");
    older.release_lease(old).unwrap();
    assert_eq!(newer.lease().unwrap().epoch, new, "what it gives back is not its own");
    assert!(newer.load().unwrap().paused.is_none());
    newer.commit(new, base, &[pause(2)], &[event(2)]).unwrap();
    assert_eq!(older.load().unwrap().paused, newer.load().unwrap().paused, "the other sees what was written");
    assert_eq!(newer.verify_ledger().unwrap(), Ok(1));
}

#[test]
fn the_epoch_check_is_what_keeps_an_older_server_out() {
    let postgres = Postgres::started(false);
    let check = |fault: &[Mutant]| {
        postgres.clear();
        let folder = tempfile::tempdir().unwrap();
        let sqlite = SqliteStore::open(&folder.path().join("kiln.db")).unwrap();
        let (memory, a, b) = (MemStore::default(), open(&postgres), open(&postgres));
        let pairs: [[&dyn Store; 2]; 3] = [[&memory, &memory], [&sqlite, &sqlite], [&a, &b]];
        plant(fault);
        let passed = pairs.map(|[older, newer]| {
            let run = || an_older_epoch_writes_nothing(older, newer);
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_ok()
        });
        plant(&[]);
        passed
    };
    assert_eq!(check(&[]), [true; 3]);
    assert_eq!(check(&[Mutant::NoStoreFence]), [false; 3], "without the check the suite turns red");
}

#[test]
fn of_those_that_ask_together_one_gets_the_lease() {
    let postgres = Postgres::started(false);
    let stores: Vec<PostgresStore> = (0..4).map(|_| open(&postgres)).collect();
    for round in 1..=20 {
        let together = Barrier::new(stores.len());
        let won: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = stores
                .iter()
                .enumerate()
                .map(|(n, store)| {
                    let together = &together;
                    scope.spawn(move || {
                        together.wait();
                        store.try_lease(&format!("server {n}"), HOUR).unwrap()
                    })
                })
                .collect();
            threads.into_iter().filter_map(|thread| thread.join().unwrap().ok()).collect()
        });
        assert_eq!(won.len(), 1, "round {round}");
        assert_eq!(won[0].1, Epoch(round));
        stores[0].release_lease(won[0].1).unwrap();
    }
}

#[test]
fn a_lease_ends_by_the_database_s_clock() {
    let postgres = Postgres::started(false);
    let (a, b) = (open(&postgres), open(&postgres));
    let (_, first) = a.try_lease("a", HOUR).unwrap().unwrap();
    assert_eq!(b.try_lease("b", HOUR).unwrap().unwrap_err().holder, "a");
    a.renew_lease(first, Millis(1)).unwrap();
    kiln_tests::wait_until("it has ended", std::time::Duration::from_secs(60), || {
        b.lease().unwrap().is_free()
    });
    let (_, second) = b.try_lease("b", HOUR).unwrap().unwrap();
    assert!(second > first && matches!(a.renew_lease(first, HOUR), Err(StoreError::LeaseLost { .. })));
    let (_, third) = b.try_lease("b", HOUR).unwrap().unwrap();
    assert!(third > second, "the same holder anew");
}

#[test]
fn commits_of_two_threads_follow_each_other() {
    let postgres = Postgres::started(false);
    let (a, b) = (open(&postgres), open(&postgres));
    let (_, epoch) = a.take_lease("a").unwrap();
    let write = |store: &PostgresStore| {
        let mut n = 0;
        while n < 25 {
            let base = store.load().unwrap().revision;
            match store.commit(epoch, base, &[pause(base.0)], &[event(base.0)]) {
                Ok(revision) => {
                    assert_eq!(revision, base.next());
                    n += 1;
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| write(&a));
        scope.spawn(|| write(&b));
    });
    assert_eq!(a.load().unwrap().revision, Revision(50));
    assert_eq!((a.verify_ledger().unwrap(), a.load().unwrap()), (Ok(50), b.load().unwrap()));
}

#[test]
fn connections_and_the_server_may_be_lost() {
    let mut postgres = Postgres::started(true);
    let store = open(&postgres);
    let (_, epoch) = store.take_lease("a").unwrap();
    let mut base = store.commit(epoch, Revision(0), &[pause(0)], &[event(0)]).unwrap();
    for n in 1..4 {
        if n == 2 {
            postgres.kill();
            assert!(
                store.load().is_err_and(|error| error.is_unreachable()),
                "nothing is answered from memory"
            );
            postgres.start();
        } else {
            postgres.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'kiln'",
            );
        }
        assert_eq!(store.load().unwrap().revision, base, "a question that only reads is asked again");
        base = store.commit(epoch, base, &[pause(n)], &[event(n)]).unwrap();
    }
    assert_eq!(store.verify_ledger().unwrap(), Ok(4));
}

#[test]
fn a_writer_that_stops_half_way_does_not_keep_the_lease() {
    let postgres = Postgres::started(false);
    let store = open(&postgres);
    store.try_lease("a", Millis(1)).unwrap().unwrap();
    // A server that was stopped in the middle of a commit, with the limit that commits set themselves.
    let script =
        "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '2s'; UPDATE lease SET revision = revision;";
    let mut stopped = postgres.session(script);
    let locked = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'";
    let limit = std::time::Duration::from_secs(60);
    kiln_tests::wait_until("it holds the row", limit, || postgres.query(locked) == "1");
    kiln_tests::wait_until("another has the lease", limit, || {
        store.try_lease("b", HOUR).is_ok_and(|taken| taken.is_ok())
    });
    stopped.kill().unwrap();
    stopped.wait().unwrap();
}

#[test]
fn servers_that_start_together_make_the_tables_once_and_newer_ones_are_refused() {
    let postgres = Postgres::started(false);
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(|| open(&postgres)))));
    assert_eq!(open(&postgres).claim("a").unwrap(), "a");
    assert_eq!(open(&postgres).claim("b").unwrap(), "a", "it has a folder already");
    postgres.query("UPDATE meta SET value = '99' WHERE key = 'schema'");
    let refused = PostgresStore::open(postgres.address().parse().unwrap());
    assert!(matches!(refused, Err(StoreError::NewerSchema { found: 99, .. })));
}

#[test]
fn rows_that_cannot_be_read_are_told_apart() {
    let postgres = Postgres::started(false);
    let store = open(&postgres);
    let (_, epoch) = store.take_lease("a").unwrap();
    let env = EnvRef { project: ProjectName::new("shop").unwrap(), env: EnvName::new("production").unwrap() };
    let base =
        store.commit(epoch, Revision(0), &[Mutation::PutEnvironment(Environment::new(env.clone()))], &[]);
    postgres.query("UPDATE environment SET body = 'x'");
    let again = open(&postgres).load().unwrap();
    assert_eq!((again.revision, again.environments.len()), (base.unwrap(), 0));
    assert_eq!(again.damaged[0].env, Some(env));
}
