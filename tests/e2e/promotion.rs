//! Environments like others, and promotion: production takes only what staging ran, the very digests, and says where they came
//! from.

use crate::tiny;
use kiln_tests::{Kiln, free_address, wait_until};
use serde_json::Value;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);
const ENVIRONMENTS: &str = r#"
[environments.staging]
services.api.instances = 1
routes = [{ host = "staging.shop.test", service = "api" }]

[environments.live]
services.api.instances = 1
routes = [{ host = "live.shop.test", service = "api" }]
requires = { environment = "staging", for = "300ms" }

[environments.production]
services.api.instances = 1
requires = { environment = "staging", for = "1h" }
"#;

pub fn run() {
    let kiln = Kiln::started(&free_address());
    let project = tiny::project();
    project.write("kiln.toml", &format!("{}{ENVIRONMENTS}", tiny::TOML));
    project.commit("environments");
    let ask = |arguments: &[&str], code| kiln.in_project(&project, arguments).expect(code);
    let error = |arguments: &[&str]| ask(arguments, 1).stderr;
    let release =
        |env: &str, number: &str| ask(&["release", "show", number, "--env", env, "--json"], 0).json();

    ask(&["environment", "create", "production"], 0);
    let made = ask(&["environment", "create", "staging", "--like", "production", "--json"], 0).json();
    assert_eq!((&made["like"], &made["serving"]), (&"production".into(), &Value::Null));
    assert!(
        error(&["environment", "create", "staging"])
            .contains("there is an environment `shop/staging` already")
    );
    assert!(
        error(&["promote", "--from", "staging", "--to", "production"])
            .contains("no release of `shop/staging` serves")
    );
    let never = error(&["deploy"]);
    assert!(
        never.contains("takes only images that `staging` served for 60 min: it never served these"),
        "{never}"
    );
    assert!(never.contains("`kiln deploy --env staging --ref"), "{never}");

    ask(&["deploy", "--env", "staging"], 0);
    let promote = ["promote", "--from", "staging", "--to", "production"];
    let short = error(&promote);
    assert!(short.contains("are missing") && short.contains("ask again in"), "{short}");
    let over = [&promote[..], &["--override", "an outage"]].concat();
    let plan = ask(&[&over[..], &["--plan"]].concat(), 0).stdout;
    assert!(plan.contains("take the images of release 1 of staging; nothing is baked"), "{plan}");
    assert!(!plan.contains("bake image"), "{plan}");
    ask(&over, 0);
    let (source, target) = (release("staging", "1"), release("production", "1"));
    assert_eq!(source["images"], target["images"]);
    assert_eq!(target["promoted_from"], serde_json::json!({ "env": "staging", "release": 1 }));
    assert!(target["overridden"].as_str().is_some_and(|text| text.ends_with("; an outage")), "{target}");
    let audit = ask(&["audit"], 0).stdout;
    assert!(audit.contains("requirement.overridden") && audit.contains("an outage"), "{audit}");
    assert_eq!(ask(&["environment", "show", "production", "--json"], 0).json()["serving"], 1);

    // No commit lifts for itself what serves requires.
    project.edit("kiln.toml", "for = \"1h\"", "for = \"0s\"");
    project.release(2);
    project.commit("requires nothing any more");
    ask(&["deploy", "--env", "staging"], 0);
    assert!(error(&["deploy"]).contains("served for 60 min"));
    // Where the time has come the same command goes through, and takes what was tried.
    let live = || kiln.in_project(&project, &["deploy", "--env", "live"]);
    wait_until("staging has served it long enough", PATIENCE, || live().code == 0);
    assert_eq!(release("live", "1")["images"], release("staging", "2")["images"]);
    assert_eq!(release("live", "1")["promoted_from"]["release"], 2);
    kiln.down();
}
