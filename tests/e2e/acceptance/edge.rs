//! The edge refuses, delays, hangs and dies: the old release keeps all traffic and all instances until a switch is
//! acknowledged, a table is old or new and never empty, and a hung edge is replaced.

use super::{LIMIT, Random, deployed, edge_pid, in_phase, serving, signal, times};
use crate::tiny::{self, all_answered, environment, instances};
use kiln_tests::{Kiln, wait_until};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// What the edge answers: status and body; none if nothing listens or the connection broke.
fn get(kiln: &Kiln) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(&kiln.edge).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
    stream.write_all(b"GET /api/version HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.trim().to_owned()))
}

fn begin(kiln: &Kiln, project: &kiln_tests::Project, n: u64) -> std::process::Child {
    project.release(n);
    project.commit(&format!("release {n}"));
    let mut command = kiln.command(project.dir.path(), &["deploy"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("kiln deploy starts")
}

/// A folder in the place of the file that the edge writes first: it cannot make a table durable, as on a full disk.
struct InTheWay(PathBuf);

impl InTheWay {
    fn of(kiln: &Kiln) -> Self {
        let path = kiln.state.path().join("edge/table.new");
        std::fs::create_dir(&path).expect("in the way");
        Self(path)
    }
}

impl Drop for InTheWay {
    fn drop(&mut self) {
        std::fs::remove_dir(&self.0).expect("out of the way");
    }
}

/// The edge does not take the table of a switch for a while.
pub fn delayed() {
    let (kiln, project) = deployed();
    let load = tiny::load(&kiln, 200);
    let old = instances(&environment(&kiln), &["serving"]);
    let in_the_way = InTheWay::of(&kiln);
    let mut client = begin(&kiln, &project, 2);
    in_phase(&kiln, "switching");
    wait_until("why names it", LIMIT, || {
        let why = kiln.in_project(&project, &["why"]).expect(0).stdout;
        why.contains("is switching")
            && why.contains("within ")
            && why.contains("giving the edge table 2 failed")
    });
    let now = environment(&kiln);
    assert_eq!(instances(&now, &["serving"]), old, "all that served is there and counts as serving");
    assert_eq!(now["rollout"]["phase"], "switching", "nothing is done before it is acknowledged");
    assert_eq!(get(&kiln), Some((200, "release-1".into())), "and all traffic goes to it");
    drop(in_the_way);
    assert!(client.wait().expect("the client ends").success());
    assert_eq!(get(&kiln), Some((200, "release-2".into())), "done means that traffic has moved");
    println!("a delayed switch: {} requests, 0 failed", all_answered(&load.stop()));
    if times(0, 1) == 1 {
        hung(&kiln, &project);
    }
    kiln.down();
}

/// It does not come back: its keeper ends it, and the next one takes the table from disk and then the switch.
fn hung(kiln: &Kiln, project: &kiln_tests::Project) {
    let edge = edge_pid(kiln);
    signal(&edge, "-STOP");
    let stopped = Instant::now();
    let mut client = begin(kiln, project, 3);
    assert!(client.wait().expect("the client ends").success());
    assert_ne!(edge_pid(kiln), edge);
    wait_until("the new release answers", LIMIT, || get(kiln) == Some((200, "release-3".into())));
    println!("a hung edge was replaced, and the switch done, after {:.1} s", stopped.elapsed().as_secs_f64());
}

/// Server and edge are killed in turn while the table changes: what an edge serves is the old or the new one.
pub fn loses_no_routes() {
    let (mut kiln, project) = deployed();
    let rounds = times(2, 200);
    let mut random = Random(times(3, 17));
    for round in 0..rounds {
        let wanted = 1 + round % 3;
        kiln.in_project(&project, &["scale", &format!("api={wanted}")]).expect(0);
        std::thread::sleep(Duration::from_millis(random.below(150)));
        if round % 2 == 0 {
            kiln.kill();
        }
        signal(&edge_pid(&kiln), "-KILL");
        if round % 2 == 0 {
            kiln.start(&[]);
        }
        wait_until("an edge answers", LIMIT, || {
            let Some((status, body)) = get(&kiln) else { return false };
            // No instance may be left of the saved table, but never is there no route.
            assert!([200, 502, 503].contains(&status), "round {round}: {status} {body}");
            status == 200
        });
        serving(&kiln, wanted as usize);
    }
    full(&mut kiln, &project);
    println!("{rounds} kills of the edge while the table changed: never without routes");
    kiln.down();
}

/// A table that cannot be made durable is not used: the edge stays with the one that it has, over a restart as well.
fn full(kiln: &mut Kiln, project: &kiln_tests::Project) {
    kiln.in_project(project, &["scale", "api=2"]).expect(0);
    serving(kiln, 2);
    let in_the_way = InTheWay::of(kiln);
    kiln.in_project(project, &["scale", "api=3"]).expect(0);
    wait_until("why names it", LIMIT, || {
        kiln.in_project(project, &["why"]).expect(0).stdout.contains("giving the edge table")
    });
    assert_eq!(
        instances(&environment(kiln), &["serving"]).len(),
        2,
        "nothing counts before it is acknowledged"
    );
    signal(&edge_pid(kiln), "-KILL");
    wait_until("another edge serves the table from disk", LIMIT, || {
        get(kiln).is_some_and(|got| got.0 == 200)
    });
    drop(in_the_way);
    serving(kiln, 3);
}
