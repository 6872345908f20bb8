//! The wall clock jumps by a day, forward in the middle of one rollout and back in the middle of the next: no deadline fires
//! and nothing is lost. The clock is the server's own (`KILN_CLOCK_JUMP`, in debug builds); that of the host is never set.

use super::{in_phase, serving};
use crate::tiny::{self, all_answered, environment};
use kiln_tests::{Kiln, free_address};

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

pub fn run() {
    let mut kiln = Kiln::new(&free_address());
    let file = kiln.state.path().join("jump");
    std::fs::write(&file, "0").expect("jump");
    let path = file.display().to_string();
    kiln.start(&[("KILN_CLOCK_JUMP", &path)]);
    let project = tiny::project();
    project.edit("kiln.toml", "grace = \"3s\"", "grace = \"30s\", healthy_after = 6");
    project.commit("slow to be ready");
    kiln.in_project(&project, &["deploy"]).expect(0);
    let load = tiny::load(&kiln, 200);
    for (n, jump) in [(2, DAY_MS), (3, -DAY_MS), (4, 0)] {
        project.release(n);
        project.commit(&format!("release {n}"));
        let mut client = kiln.command(project.dir.path(), &["deploy"]).spawn().expect("kiln deploy starts");
        in_phase(&kiln, "validating");
        std::fs::write(&file, jump.to_string()).expect("jump");
        assert!(client.wait().expect("it ends").success(), "a jump of {jump} ms");
        let now = environment(&kiln);
        assert_eq!(now["serving"]["subject"], format!("release {n}"));
        assert!(now["rollout"]["switched_after_ms"].as_u64() < Some(60_000), "{}", now["rollout"]);
        serving(&kiln, 2);
    }
    // Restarted with another clock, the lease is still the newest.
    kiln.kill();
    std::fs::write(&file, (-DAY_MS).to_string()).expect("jump");
    kiln.start(&[("KILN_CLOCK_JUMP", &path)]);
    tiny::deploy(&kiln, &project, 5).expect(0);
    let verified = kiln.in_project(&project, &["audit", "verify", "--json"]).expect(0).json();
    println!(
        "the wall clock jumped four times by a day: {} requests, 0 failed, {} ledger entries verified",
        all_answered(&load.stop()),
        verified["verified"]
    );
    kiln.down();
}
