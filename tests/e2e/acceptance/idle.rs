//! An idle server writes nothing, starts nothing and grows by nothing, and so does its restart.

use super::{deployed, serving, times};
use crate::tiny::{self, environment};
use kiln_tests::{Kiln, wait_until};
use std::time::{Duration, Instant};

/// What an idle server has: revision, ledger entries, instances.
fn world(kiln: &Kiln) -> (u64, usize, String) {
    let status = tiny::status(kiln);
    let audit = kiln.cli(std::path::Path::new("/"), &["audit", "--json"]).expect(0).json();
    let mut instances = environment(kiln)["instances"].clone();
    for instance in instances.as_array_mut().expect("instances") {
        for moving in ["state_ms", "traffic"] {
            instance[moving].take();
        }
    }
    let entries = audit["entries"].as_array().map_or(0, Vec::len);
    (status["server"]["revision"].as_u64().expect("revision"), entries, instances.to_string())
}

/// Open descriptors and pages of memory of a process.
fn size(pid: u64) -> (usize, u64) {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives").count();
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).expect("it lives");
    (descriptors, statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("pages"))
}

/// Bytes of the write-ahead log: no commit comes without more of them, or with a shorter file.
fn log_bytes(kiln: &Kiln) -> u64 {
    std::fs::metadata(kiln.state.path().join("kiln.db-wal")).map_or(0, |meta| meta.len())
}

fn log_written(kiln: &Kiln) -> std::time::SystemTime {
    let log = std::fs::metadata(kiln.state.path().join("kiln.db-wal")).and_then(|meta| meta.modified());
    log.expect("a write-ahead log")
}

pub fn run() {
    let (mut kiln, project) = deployed();
    tiny::deploy(&kiln, &project, 2).expect(0);
    serving(&kiln, 2);
    let mut before = world(&kiln);
    wait_until("nothing moves", Duration::from_secs(30), || {
        std::thread::sleep(Duration::from_millis(1000));
        let now = world(&kiln);
        let still = now == before;
        before = now;
        still
    });
    let pid = tiny::status(&kiln)["server"]["pid"].as_u64().expect("pid");
    let (descriptors, pages) = size(pid);
    let written = log_written(&kiln);
    // After ten minutes the release before is let go, as it should be.
    let seconds = times(2, 540);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(seconds) {
        std::thread::sleep(Duration::from_millis(500));
        let (now, grown) = size(pid);
        assert!(now <= descriptors + 4, "{descriptors} descriptors before, {now} now");
        assert!(grown <= pages + 2048, "{pages} pages before, {grown} now");
    }
    assert_eq!(log_written(&kiln), written, "an idle server writes nothing");
    assert_eq!(world(&kiln), before);

    for stop in [Kiln::kill as fn(&mut Kiln), Kiln::terminate] {
        stop(&mut kiln);
        let bytes = log_bytes(&kiln);
        kiln.start(&[]);
        wait_until("it has looked at everything", Duration::from_secs(30), || {
            tiny::status(&kiln)["edge"].is_object()
        });
        std::thread::sleep(Duration::from_millis(1500));
        assert_eq!(world(&kiln), before, "a restart has no effects and writes nothing but its lease");
        // The lease is one commit of at most a handful of pages, whatever became of the log that was there.
        let grown = log_bytes(&kiln).saturating_sub(bytes);
        assert!(grown <= 16 * 4200, "{grown} bytes of log for one lease");
    }
    println!("idle for {seconds} s and restarted twice: 0 writes, 0 effects, {descriptors} descriptors");
    kiln.down();
}
