//! A host that was started anew: every instance of the saved table is dead, and its address may be somebody else's.

use crate::Case;
use crate::backend::Backend;
use crate::client::get;
use crate::faults::again_with;
use crate::stage::{Edge, fence, pool, table};
use kiln_edge::client::RouterError;
use kiln_model::{Check, CheckKind, Generation, Health, Millis, RouteTable};
use std::io::ErrorKind;
use std::net::TcpListener;

pub(crate) const CASES: &[Case] =
    &[("a_table_of_another_boot_leads_nowhere_until_control_vouches_for_it", another_boot)];

/// One pool whose health is asked all the time.
fn watched(release: u64, backend: &Backend) -> RouteTable {
    let mut pool = pool(release, &[(release, backend)]);
    let check = Check { kind: CheckKind::Tcp { port: backend.address.port() }, timeout: Millis(1000) };
    let (every, grace, healthy_after, unhealthy_after) = (Millis(10), Millis(0), 1, 1);
    pool.health = Some(Health { check, every, grace, healthy_after, unhealthy_after });
    table(vec![(pool, 1)])
}

#[track_caller]
fn unavailable(edge: &Edge) {
    for _ in 0..20 {
        let got = get(edge.address, "/").unwrap();
        assert_eq!((got.status, got.header("retry-after")), (503, Some("1")), "{got:?}");
        assert!(got.text().contains("no instance is ready"), "{got:?}");
    }
    let status = edge.status();
    assert_eq!((status.generation, status.digest), (Generation(0), None), "no table is in use: {status:?}");
    assert!(status.targets.iter().all(|target| !target.in_table), "{status:?}");
}

fn another_boot() {
    let (a, b) = (Backend::new("a"), Backend::new("b"));
    let mut edge = Edge::new();
    edge.set(1, &watched(1, &a)).unwrap();
    assert_eq!(get(edge.address, "/").unwrap().release(), 1);
    edge.kill();
    a.kill();
    // Another program has the address now, and must never hear from the edge.
    let foreign = loop {
        // The backend's thread lets go of it in a moment.
        match TcpListener::bind(a.address) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => std::thread::yield_now(),
            bound => break bound.unwrap(),
        }
    };
    foreign.set_nonblocking(true).unwrap();
    again_with(&mut edge, "TEST_BOOT_ID", "second");
    unavailable(&edge);
    assert_eq!(foreign.accept().map(drop).map_err(|e| e.kind()), Err(ErrorKind::WouldBlock));
    // What it refused before it refuses still.
    let older = edge.set_fenced(fence(0), 2, &watched(2, &b));
    assert!(matches!(older, Err(RouterError::Stale { .. })), "{older:?}");
    unavailable(&edge);

    edge.set(2, &watched(2, &b)).unwrap();
    assert_eq!(get(edge.address, "/").unwrap().release(), 2);
    // An edge that starts again in the same boot goes on.
    again_with(&mut edge, "TEST_BOOT_ID", "second");
    assert_eq!(get(edge.address, "/").unwrap().release(), 2);
    assert_eq!(edge.status().generation, Generation(2));
    // The same table again is a word for its instances, by somebody who saw them in this boot.
    again_with(&mut edge, "TEST_BOOT_ID", "third");
    unavailable(&edge);
    edge.set(2, &watched(2, &b)).unwrap();
    assert_eq!(get(edge.address, "/").unwrap().release(), 2);
    assert_eq!(edge.status().generation, Generation(2));
    assert_eq!(foreign.accept().map(drop).map_err(|e| e.kind()), Err(ErrorKind::WouldBlock));
    let log = std::fs::read_to_string(edge.dir.path().join("edge.log")).unwrap();
    assert!(log.contains("table of another boot"), "{log}");
}
