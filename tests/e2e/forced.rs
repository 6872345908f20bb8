//! The whole program on the ways that other hosts make it go: `KILN_FORCE`.

use crate::tiny;
use kiln_tests::{Kiln, free_address, run as run_program, wait_until};
use std::path::{Path, PathBuf};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

pub fn run() {
    let mut kiln = Kiln::new(&free_address());
    let refused = run_program(kiln.serve_command().env("KILN_FORCE", "lop")).expect(64);
    assert!(
        refused.stderr.contains("`lop`") && refused.stderr.contains("hint: give words of"),
        "{refused:?}"
    );
    let has_v1 = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo").contains(" - cgroup ");
    let words = if has_v1 { "remount,cgroup-v1" } else { "remount,cgroup-v2" };
    println!("KILN_FORCE={words}");
    kiln.start(&[("KILN_FORCE", words)]);
    let project = tiny::project();
    kiln.in_project(&project, &["deploy"]).expect(0);
    assert!(!loop_devices(kiln.state.path()).is_empty(), "nothing was forced");
    for device in loop_devices(kiln.state.path()) {
        let dio = std::fs::read_to_string(device.join("loop/dio")).expect("dio");
        assert_eq!(dio.trim(), "1", "{} caches every page twice", device.display());
    }
    let load = tiny::load(&kiln, 100);
    tiny::deploy(&kiln, &project, 2).expect(0);
    kiln.in_project(&project, &["rollback"]).expect(0);
    // A server that does not take the same way takes over what another one made.
    kiln.terminate();
    kiln.start(&[]);
    tiny::deploy(&kiln, &project, 3).expect(0);
    let requests = tiny::all_answered(&load.stop());
    println!("deploy, rollback, a server without it: {requests} requests, 0 failed");
    let state = kiln.state.path().to_owned();
    kiln.down();
    wait_until("the loop devices are gone", LIMIT, || loop_devices(&state).is_empty());
}

/// The loop devices that have a file of this state folder.
fn loop_devices(state: &Path) -> Vec<PathBuf> {
    let devices = std::fs::read_dir("/sys/block").into_iter().flatten().flatten().map(|entry| entry.path());
    let has_layer = |device: &PathBuf| {
        let file = std::fs::read_to_string(device.join("loop/backing_file")).unwrap_or_default();
        Path::new(file.trim_end()).starts_with(state)
    };
    devices.filter(has_layer).collect()
}
