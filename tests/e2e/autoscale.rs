//! A service that scales by its requests: more of them when they come, without a failed one.

use crate::tiny::{self, environment, instances};
use kiln_tests::{Kiln, free_address, wait_until};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

pub fn run() {
    let kiln = Kiln::started(&free_address());
    let project = tiny::project();
    let rule = "autoscale = { min = 2, max = 4, requests = 20 }\nport ";
    project.write("kiln.toml", &tiny::TOML.replacen("port ", rule, 1));
    project.commit("it scales");
    kiln.in_project(&project, &["deploy", "--json"]).expect(0);
    let load = tiny::load(&kiln, 150);
    wait_until("four serve", LIMIT, || instances(&environment(&kiln), &["serving"]).len() == 4);
    let requests = tiny::all_answered(&load.stop());
    let service = environment(&kiln)["services"][0].clone();
    assert_eq!((&service["wanted"], &service["autoscale"]["max"]), (&4.into(), &4.into()), "{service}");
    let audit = kiln.in_project(&project, &["audit"]).expect(0).stdout;
    assert!(audit.contains("autoscale"), "{audit}");
    println!("2 to 4 instances under {requests} requests, 0 failed");
    kiln.down();
}
