//! Times deploys and rollbacks of the real binary: from the moment a deploy is accepted until the edge has acknowledged the
//! switch, and the whole command. Started by `bench/run` in a network namespace of its own.

use kiln_tests::{Kiln, Project, free_address, wait_until};
use std::time::Duration;

const ROUNDS: u64 = 15;

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() {
    let kiln = Kiln::started(&free_address());
    let project = Project::from_example("shop");
    // One service of three instances, as the bar says.
    let text = std::fs::read_to_string(project.path("kiln.toml")).expect("kiln.toml");
    let api = text.find("[images.api]").expect("the api's image");
    let web = text.find("[services.web]").expect("the web service");
    let service = text.find("[services.api]").expect("the api service");
    let head = &text[..api];
    let body = &text[web..service];
    project.write("kiln.toml", &format!("{head}{body}\n[[routes]]\npath = \"/\"\nservice = \"web\"\n"));
    kiln.in_project(&project, &["lock"]).expect(0);
    let mut commits = vec![];
    for n in 1..3 {
        project.release(n);
        commits.push(project.commit(&format!("release {n}")));
        kiln.in_project(&project, &["bake"]).expect(0);
    }
    let (mut to_switch, mut command, mut back, mut back_command) = (vec![], vec![], vec![], vec![]);
    kiln.in_project(&project, &["deploy", "--ref", &commits[0]]).expect(0);
    for _ in 0..ROUNDS {
        let answer = kiln.in_project(&project, &["deploy", "--ref", &commits[1], "--json"]).expect(0);
        to_switch.extend(answer.json()["switched_after_ms"].as_f64());
        command.push(answer.took.as_secs_f64() * 1e3);
        let answer = kiln.in_project(&project, &["rollback", "--to", "1", "--json"]).expect(0);
        back.extend(answer.json()["switched_after_ms"].as_f64());
        back_command.push(answer.took.as_secs_f64() * 1e3);
        // Instances that leave would take their share of the next round.
        wait_until("only what serves and what is kept is left", Duration::from_secs(30), || {
            let status = kiln.in_project(&project, &["status", "--json"]).expect(0).json();
            status["environments"][0]["instances"].as_array().map(Vec::len) == Some(6)
        });
    }
    assert_eq!((to_switch.len(), back.len()), (ROUNDS as usize, ROUNDS as usize), "each one switched");
    println!(
        "deploy of a baked image, nginx, 3 instances: to the switch {:.0} ms, whole command {:.0} ms (medians of {ROUNDS})",
        median(&mut to_switch),
        median(&mut command)
    );
    println!(
        "rollback while the previous release is kept: to the switch {:.0} ms, whole command {:.0} ms (medians of {ROUNDS})",
        median(&mut back),
        median(&mut back_command)
    );
    kiln.down();
}
