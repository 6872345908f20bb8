//! Good and bad `kiln.toml` files: what they mean, and the exact words of each error.

use kiln_model::*;
use kiln_spec::{Base, Project};
use proptest::prelude::*;

const SHOP: &str = include_str!("../../../examples/shop/kiln.toml");
const GUESTBOOK: &str = include_str!("../../../examples/guestbook/kiln.toml");

const SMALL: &str = r#"name = "x"
[images.a]
base = "scratch"
[services.a]
image = "a"
command = ["/a"]
port = 80
health = { tcp = true }
"#;

fn errors(text: &str) -> String {
    Project::parse(text, "kiln.toml").expect_err("this file is bad").to_string()
}

#[test]
fn a_playbook_locks_ansible_beside_the_packages_and_images_name_what_they_stand_on() {
    let text = r#"
name = "x"
[images.a]
base = "debian:bookworm"
packages = ["nginx-light"]
provision = { ansible = "ansible/site.yml" }
[images.b]
base = "image:a"
provision = { ansible = "site.yml" }
[images.c]
base = "oci:a.test/b:1"
[services.s]
image = "a"
command = ["/a"]
"#;
    let project = Project::parse(text, "kiln.toml").unwrap();
    let recipes = project.recipes();
    let packages: Vec<(&str, String)> = recipes
        .debian
        .iter()
        .map(|(name, recipe)| (name.as_str(), recipe.packages.iter().cloned().collect::<Vec<_>>().join(" ")))
        .collect();
    assert_eq!(
        packages,
        [("a", "nginx-light".to_owned()), ("a.provision", "ansible-core nginx-light".to_owned())],
        "another base brings Ansible itself"
    );
    assert!("a.provision".parse::<kiln_spec::RecipeName>().is_ok());
    assert!("a.other".parse::<kiln_spec::RecipeName>().is_err());
    let below = |name: &str| {
        let image = project.images.values().find(|image| image.name.as_str() == name).unwrap();
        image.images_below().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!((below("a"), below("b")), (vec![], vec!["a".to_owned()]));
    assert_eq!(recipes.oci.iter().collect::<Vec<_>>(), ["a.test/b:1"]);
}

#[test]
fn the_examples_mean_what_they_say() {
    let shop = Project::parse(SHOP, "kiln.toml").unwrap();
    let web = ServiceName::new("web").unwrap();
    let production = shop.environment(&EnvName::new("production").unwrap());
    let spec = &production.services[&web];
    assert_eq!((spec.instances, spec.port, spec.user.as_str()), (3, Some(8080), "www-data"));
    assert_eq!(spec.resources, Resources { cpu_milli: 1000, memory_bytes: 128 << 20, pids: 64 });
    assert_eq!(spec.rollout.keep_previous, Millis(600_000));
    assert_eq!(production.routes[1].path, "/api");
    let staging = shop.environment(&EnvName::new("staging").unwrap());
    assert_eq!(staging.services[&web].instances, 1);
    assert_eq!(staging.services[&web].user, "www-data", "tables merge");
    assert_eq!(staging.routes.len(), 2, "arrays replace");
    assert_eq!(staging.routes[0].host.as_deref(), Some("staging.shop.test"));
    assert_eq!(shop.images[&ImageName::new("api").unwrap()].base, Base::Scratch);
    Project::parse(GUESTBOOK, "kiln.toml").unwrap();
}

#[test]
fn what_is_not_written_has_the_documented_value() {
    let project =
        Project::parse(&format!("{SMALL}[[routes]]\nhost = \"A.test\"\nservice = \"a\"\n"), "x").unwrap();
    let spec = project.environment(&EnvName::new("elsewhere").unwrap());
    let expected = ServiceSpec {
        proxy_protocol: false,
        autoscale: None,
        name: ServiceName::new("a").unwrap(),
        image: ImageName::new("a").unwrap(),
        command: vec!["/a".into()],
        instances: 1,
        port: Some(80),
        protocol: kiln_model::Protocol::Http1,
        user: "65534".into(),
        env: [].into(),
        secrets: vec![],
        writable: vec![],
        resources: Resources::default(),
        confinement: Confinement::default(),
        health: Some(Health {
            check: Check { kind: CheckKind::Tcp { port: 80 }, timeout: Millis(1000) },
            every: Millis(1000),
            grace: Millis(10_000),
            healthy_after: 1,
            unhealthy_after: 3,
        }),
        validate: vec![],
        rollout: RolloutPolicy {
            drain: Millis(10_000),
            keep_previous: Millis(0),
            deadline: Millis(60_000),
            strategy: kiln_model::Strategy::BlueGreen,
        },
        stop: Stop { signal: 15, timeout: Millis(10_000) },
    };
    assert_eq!(spec.services[&expected.name], expected);
    assert_eq!((spec.routes[0].host.as_deref(), &*spec.routes[0].path), (Some("a.test"), "/"));
}

#[test]
fn errors_name_the_place_and_the_fix() {
    let text = SMALL.replace("port = 80", "port = 80\ninstence = 3");
    assert_eq!(
        errors(&text),
        "unknown key `instence` in `[services.a]`\n \
         --> kiln.toml:8:1\n  |\n8 | instence = 3\n  | ^^^^^^^^\nhint: did you mean `instances`?"
    );
}

#[test]
fn a_route_may_want_https_and_a_service_may_speak_http2() {
    let text = SMALL.replace("port = 80", "port = 80\nprotocol = \"h2c\"");
    let project = |routes: &str| Project::parse(&format!("{text}{routes}"), "kiln.toml");
    let plain = project("[[routes]]\nservice = \"a\"\n").unwrap();
    let production = |p: &Project| p.environment(&EnvName::new("production").unwrap()).clone();
    let service = ServiceName::new("a").unwrap();
    assert_eq!(production(&plain).services[&service].protocol, kiln_model::Protocol::H2c);
    assert!(production(&plain).routes[0].https.is_default());
    let both = project("[[routes]]\nservice = \"a\"\nhttps_only = true\nhsts = \"1d\"\n").unwrap();
    let https = production(&both).routes[0].https;
    assert!(https.only);
    assert_eq!(https.hsts.unwrap().to_string(), "max-age=86400");
    let long = "hsts = { max_age = \"365d\", subdomains = true, preload = true }\n";
    let long = project(&format!("[[routes]]\nservice = \"a\"\n{long}")).unwrap();
    let hsts = production(&long).routes[0].https.hsts.unwrap();
    assert_eq!(hsts.to_string(), "max-age=31536000; includeSubDomains; preload");
    for (wrong, reason) in [
        ("https_only = 1", "true or false"),
        ("hsts = \"1y\"", "a duration such as \"365d\""),
        ("hsts = { subdomains = true }", "max_age"),
        ("hsts = { max_age = \"1d\", subdomains = true, preload = true }", "browsers list a host only"),
        ("hsts = { max_age = \"1d\", subdomain = true }", "did you mean `subdomains`?"),
    ] {
        let error = project(&format!("[[routes]]\nservice = \"a\"\n{wrong}\n")).unwrap_err().to_string();
        assert!(error.contains(reason), "{wrong}: {error}");
    }
    let error = errors(&SMALL.replace("port = 80", "port = 80\nprotocol = \"grpc\""));
    assert!(error.contains("`grpc` is not a protocol of a service") && error.contains("h2c"), "{error}");
    // The streams of many clients share a connection to such a service: a header at its start can name none of them.
    let error = errors(&SMALL.replace("port = 80", "port = 80\nprotocol = \"h2c\"\nproxy_protocol = true"));
    assert!(error.contains("does not go together") && error.contains("x-forwarded-for"), "{error}");
}

#[test]
fn secrets_and_what_an_environment_requires() {
    let text = SMALL.replace("port = 80", "port = 80\nsecrets = [\"DB\", \"API_KEY\"]");
    let text = format!(
        "{text}[environments.production]\nrequires = {{ environment = \"staging\", for = \"1h\" }}\n"
    );
    let project = Project::parse(&text, "kiln.toml").unwrap();
    let [production, staging] = ["production", "staging"].map(|name| EnvName::new(name).unwrap());
    let required = Requirement { env: staging.clone(), time: Millis(3_600_000) };
    assert_eq!(project.environment(&production).requires, Some(required));
    assert_eq!(project.environment(&staging).requires, None);
    assert!(project.names(&production) && !project.names(&staging));
    let names: Vec<_> = project.environment(&staging).services.values().flat_map(|s| &s.secrets).collect();
    assert_eq!(names.iter().map(|name| name.as_str()).collect::<Vec<_>>(), ["API_KEY", "DB"], "sorted");
    let itself = text.replace("\"staging\"", "\"production\"");
    assert!(errors(&itself).contains("cannot require itself"), "{}", errors(&itself));
}

#[test]
fn every_kind_of_mistake_is_found() {
    let mistakes = [
        ("port = 80", "port = \"80\"", "`port` must be a whole number from 1 to 65535"),
        ("port = 80", "port = 80\nsecrets = [\"a-b\"]", "`a-b` is not a legal secret name"),
        ("port = 80", "port = 80\nsecrets = [\"A\", \"A\"]", "`A` is there twice"),
        ("port = 80", "port = 80\nwritable = [\"/run/secrets/x\"]", "cannot be writable"),
        ("port = 80", "port = 80\nautoscale = { requests = 5 }", "has no `max`"),
        ("port = 80", "port = 80\nautoscale = { max = 5 }", "has no `requests`"),
        (
            "port = 80",
            "port = 80\ninstances = 3\nautoscale = { max = 2, requests = 5 }",
            "below its `min` of 3",
        ),
        ("port = 80", "autoscale = { max = 2, requests = 5 }", "needs a service with a port"),
        ("port = 80", "port = 99999", "`port` must be a whole number"),
        ("image = \"a\"", "image = \"b\"", "there is no image `b`"),
        ("image = \"a\"", "", "has no `image`"),
        ("command = [\"/a\"]", "command = [\"a\"]", "`a` is not an absolute path"),
        ("command = [\"/a\"]", "command = \"/a\"", "`command` must be an array of strings"),
        ("command = [\"/a\"]", "", "`[services.a]` has no `command`"),
        ("command = [\"/a\"]", "command = []", "`command` is empty"),
        ("command = [\"/a\"]", "command = [\"/a\", \"b\\u0000\"]", "kiln.toml:6:18"),
        ("command = [\"/a\"]", "comand = [\"/a\"]", "did you mean `command`?"),
        ("health = { tcp = true }", "health = { listening = 80 }", "exactly one thing to check"),
        ("health = { tcp = true }", "health = { tcp = true, contains = \"x\" }", "unknown key `contains`"),
        (
            "health = { tcp = true }",
            "health = { tcp = true, every = \"1ms\" }",
            "`every` must be at least 10 ms",
        ),
        (
            "health = { tcp = true }",
            "health = { tcp = true, timeout = \"0s\" }",
            "`timeout` must be at least",
        ),
        ("health = { tcp = true }", "health = { http = \"/ x\" }", "`http` must be a path"),
        (
            "health = { tcp = true }",
            "health = { http = \"/\", host = \"a\\r\\nX-Evil: 1\" }",
            "`a\\r\\nX-Evil: 1` is not a host name",
        ),
        ("health = { tcp = true }", "health = { htp = \"/\" }", "did you mean `http`?"),
        ("health = { tcp = true }", "validate = []", "has a port but neither `health` nor `validate`"),
        ("port = 80", "port = 80\nresources = { cpu = 0 }", "`cpu` must be a number from 0.01 to 1024"),
        ("port = 80", "", "checks a port, but the service has none"),
        ("port = 80", "port = 80\nrollout = { deadline = \"0s\" }", "`deadline` must be at least"),
        ("port = 80", "port = 80\nrollout = { keep_previous = 5 }", "`keep_previous` must be a duration"),
        ("port = 80", "port = 80\ninstances = 251", "a whole number from 0 to 250"),
        (
            "[services.a]",
            "[[routes]]\nservice = \"a\"\npath = \"/a/../b\"\n[services.a]",
            "is not a path prefix",
        ),
        ("[services.a]", "[[routes]]\nservice = \"a\"\nhost = \"a:80\"\n[services.a]", "not a host name"),
        ("[services.a]", "[environments.s]\nimage = \"b\"\n[services.a]", "unknown key `image`"),
        ("name = \"x\"", "name = \"x", "kiln.toml:1:"),
        ("health = { tcp = true }", "", "has a port but neither `health` nor `validate`"),
        ("health = { tcp = true }", "health = { tcp = true, http = \"/\" }", "exactly one thing to check"),
        ("health = { tcp = true }", "health = { tcp = true, every = \"5\" }", "`every` must be a duration"),
        (
            "base = \"scratch\"",
            "base = \"scratch\"\npackages = [\"nginx\"]",
            "an image on `scratch` has no packages",
        ),
        ("base = \"scratch\"", "base = \"debian:sid\"", "not available yet"),
        ("base = \"scratch\"", "base = \"oci:x\"", "`x` is neither an absolute path nor a reference"),
        ("base = \"scratch\"", "base = \"oci:/a/../b\"", "neither an absolute path nor"),
        ("base = \"scratch\"", "base = \"image:b\"", "stands on `image:b`, which is not there"),
        ("base = \"scratch\"", "base = \"image:a\"", "image `a` stands on itself"),
        ("base = \"scratch\"", "base = \"containerfile:../x\"", "is not a path inside the project"),
        ("base = \"scratch\"", "base = \"oci:a.test/b\"\npackages = [\"nginx\"]", "need a Debian base"),
        (
            "base = \"scratch\"",
            "base = \"scratch\"\nprovision = { ansible = \"site.yml\" }",
            "needs a whole system",
        ),
        (
            "base = \"scratch\"",
            "base = \"scratch\"\nallow = [{ lint = \"setiud\", path = \"/x\" }]",
            "did you mean `setuid`?",
        ),
        (
            "base = \"scratch\"",
            "base = \"scratch\"\nnetwork = [\"crates\"]",
            "`network` in `[images.a]` is not available",
        ),
        ("base = \"scratch\"", "base = \"alpine\"", "unknown base"),
        (
            "base = \"scratch\"",
            "base = \"scratch\"\nbuild = { base = \"debian:bookworm\", run = [] }",
            "needs 1 to 100 commands in `run`",
        ),
        (
            "base = \"scratch\"",
            "base = \"scratch\"\nbuild = { base = \"scratch\", run = [\"x\"] }",
            "nothing can be built on `scratch`",
        ),
        (
            "base = \"scratch\"",
            "base = \"scratch\"\nbuild = { base = \"debian:bookworm\", run = [\"x\"], network = [\"crates\"] }",
            "`network` in `[images.a.build]` is not available yet",
        ),
        ("port = 80", "port = 80\nuses = [\"main\"]", "not available yet"),
        ("port = 80", "port = 80\negress = [\"main\"]", "no place `main`"),
        ("port = 80", "port = 80\nisolation = \"jail\"", "unknown isolation `jail`"),
        ("port = 80", "port = 80\nseccomp = \"off\"", "unknown seccomp `off`"),
        (
            "port = 80",
            "port = 80\ncapabilities = [\"SYS_ADMIN\"]",
            "not a capability that a service can have",
        ),
        ("port = 80", "port = 80\nrollout = { strategy = \"canarry\" }", "unknown strategy `canarry`"),
        ("port = 80", "port = 80\nrollout = { max_surge = 1 }", "belongs to the strategy `rolling`"),
        (
            "port = 80",
            "port = 80\nrollout = { strategy = \"rolling\", steps = [] }",
            "belongs to the strategy `canary`, this one is `rolling`",
        ),
        ("port = 80", "port = 80\nrollout = { strategy = \"rolling\", max_surge = 0 }", "from 1 to"),
        (
            "port = 80",
            "port = 80\nrollout = { strategy = \"rolling\", keep_previous = \"1m\" }",
            "has nothing to keep",
        ),
        (
            "port = 80",
            "port = 80\nrollout = { strategy = \"canary\", steps = [] }",
            "`steps` must be an array of { weight, for }",
        ),
        (
            "port = 80",
            "port = 80\nrollout = { strategy = \"canary\", steps = [{ weight = 5 }] }",
            "has no `for`",
        ),
        (
            "port = 80",
            "port = 80\nrollout = { strategy = \"canary\", steps = [{ weight = 5, for = \"1s\" }, { weight = 5, for = \"1s\" }] }",
            "is not above the one before it",
        ),
        ("port = 80", "port = 80\nwritable = [\"/a/../b\"]", "cannot be writable"),
        ("port = 80", "port = 80\nwritable = [\"/proc/x\"]", "cannot be writable"),
        ("port = 80", "port = 80\nresources = { memory = \"12\" }", "too little"),
        ("port = 80", "port = 80\nenv = { PORT = \"1\" }", "`PORT` is set by kiln"),
        ("port = 80", "port = 80\nstop = { signal = \"TERM\" }", "unknown signal"),
        ("port = 80", "port = 80\nport = 81", "duplicate key"),
        ("name = \"x\"", "name = \"X\"", "not a legal project name"),
        ("name = \"x\"", "name = \"x\"\n[data.main]\nkind = \"postgres\"", "`data` is not available yet"),
        (
            "[services.a]",
            "[[routes]]\nservice = \"a\"\ntcp = 0\n[services.a]",
            "`tcp` must be a whole number from 1 to 65535",
        ),
        (
            "[services.a]",
            "[[routes]]\nservice = \"a\"\ntcp = 5\n[[routes]]\nservice = \"a\"\ntcp = 5\n[services.a]",
            "there are two routes for tcp:5: `a` and `a`",
        ),
        (
            "[services.a]",
            "[[routes]]\nservice = \"a\"\ntcp = 5\nhost = \"x\"\n[services.a]",
            "`host` in `[[routes]]` is of HTTP",
        ),
        (
            "[services.a]",
            "[[routes]]\nservice = \"a\"\ntcp = 5\ntimeouts = { answer = \"1s\" }\n[services.a]",
            "`answer` in `[routes.timeouts]` is of HTTP",
        ),
        ("[services.a]", "[[routes]]\nservice = \"a\"\nin_flight = {}\n[services.a]", "has no `max`"),
        (
            "[services.a]",
            "[[routes]]\nservice = \"a\"\nsticky = 1\n[services.a]",
            "`sticky` must be `true` or",
        ),
        (
            "[services.a]",
            "[[routes]]\nservice = \"a\"\nrate = { requests = 0 }\n[services.a]",
            "`requests` must be a whole number from 1",
        ),
        (
            "[services.a]",
            "[[routes]]\nservice = \"a\"\ntimeouts = { idle = \"0s\" }\n[services.a]",
            "`idle` must be at least",
        ),
        ("[services.a]", "[[routes]]\nservice = \"b\"\n[services.a]", "there is no service `b`"),
        (
            "[services.a]",
            "[[routes]]\nservice = \"a\"\n[[routes]]\nservice = \"a\"\n[services.a]",
            "two routes for",
        ),
        ("[services.a]", "[environments.s]\nimages.a.base = \"scratch\"\n[services.a]", "cannot have images"),
        (
            "[services.a]",
            "[environments.s]\nservices.b.instances = 1\n[services.a]",
            "there is no service `b` to change",
        ),
        ("[services.a]", "[environments.s]\nservices.a.instances = \"1\"\n[services.a]", "kiln.toml:5:24"),
        (
            "base = \"scratch\"",
            "base = \"scratch\"\ncopy = [{ from = \"../x\", to = \"/x\" }]",
            "not a path inside",
        ),
        (
            "base = \"scratch\"",
            "base = \"scratch\"\ncopy = [{ from = \"x\", to = \"x\" }]",
            "not a path in the image",
        ),
        (
            "base = \"scratch\"",
            "base = \"scratch\"\ncopy = [{ from = \"build:/x\", to = \"/x\" }]",
            "copies from a build that it does not have",
        ),
        (
            "base = \"scratch\"",
            "base = \"scratch\"\ncopy = [{ from = \"x\", to = \"/x\", mode = \"4755\" }]",
            "`mode` must be",
        ),
    ];
    Project::parse(SMALL, "kiln.toml").unwrap();
    println!("{} kinds of mistakes", mistakes.len());
    for (from, to, expected) in mistakes {
        assert!(SMALL.contains(from), "{from}");
        let found = errors(&SMALL.replacen(from, to, 1));
        assert!(found.contains(expected), "{to}: expected {expected:?} in\n{found}");
    }
}

#[test]
fn one_mistake_is_one_error() {
    let routed = format!("{SMALL}[[routes]]\nservice = \"a\"\n");
    let mistakes = [
        ("port = 80", "port = 99999", "kiln.toml:7:8: `port` must be a whole number from 1 to 65535"),
        ("[services.a]", "[service.a]", "kiln.toml:4:2: unknown key `service`"),
        ("[images.a]", "[image.a]", "kiln.toml:2:2: unknown key `image`"),
        ("[images.a]\nbase = \"scratch\"\n", "", "kiln.toml:1:1: there are no `images`"),
        ("[images.a]\nbase = \"scratch\"\n", "[images]\n", "kiln.toml:1:1: there are no `images`"),
        ("[services.a]", "[jobs.x]\n[services.a]", "kiln.toml:4:2: `jobs` is not available yet"),
    ];
    for (from, to, expected) in mistakes {
        assert!(routed.contains(from), "{from}");
        let errors = Project::parse(&routed.replacen(from, to, 1), "kiln.toml").unwrap_err();
        assert_eq!((errors.0.len(), errors.message().as_str()), (1, expected), "{to}: {errors}");
        assert!(errors.details().len() == 2, "the line and what is underlined: {:?}", errors.details());
    }
}

#[test]
fn a_message_has_the_place_of_the_first_error_and_its_hint() {
    let errors = Project::parse(&SMALL.replace("port = 80", "prot = 80\nport = 0"), "kiln.toml").unwrap_err();
    assert_eq!(errors.message(), "kiln.toml:7:1: unknown key `prot` in `[services.a]`");
    assert_eq!(
        errors.details(),
        ["7 | prot = 80", "  | ^^^^", "kiln.toml:8:8: `port` must be a whole number from 1 to 65535"]
    );
    assert_eq!(errors.hint().as_deref(), Some("did you mean `port`?"));
}

#[test]
fn several_errors_are_reported_at_once_in_the_order_of_the_file() {
    let found = errors(&SMALL.replace("port = 80", "prot = 80\nport = 81").replace("scratch", "scartch"));
    assert_eq!(
        found,
        "unknown base `scartch`\n --> kiln.toml:3:8\n  |\n3 | base = \"scartch\"\n  |        ^^^^^^^^^\nhint: use `scratch`, \
         `debian:bookworm`, `debian-slim:bookworm`, `oci:PATH-or-REFERENCE`, `image:NAME` or `containerfile:PATH`\n\nerror: unknown key `prot` in `[services.a]`\n --> kiln.toml:7:1\n  |\n7 | prot = 80\n  | ^^^^\n\
         hint: did you mean `port`?"
    );
}

#[test]
fn deep_nesting_and_long_files_are_errors() {
    for text in ["a=".to_owned() + &"[".repeat(100_000), "a.".repeat(100_000) + "b=1", "#".repeat(300_000)] {
        assert!(!errors(&text).is_empty());
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(at in any::<prop::sample::Index>(), insert in "[ -~é\\n]{0,8}", cut in 0usize..12) {
        let at = at.index(SHOP.len());
        let text = format!("{}{insert}{}", &SHOP[..at], &SHOP[(at + cut).min(SHOP.len())..]);
        if let Err(errors) = Project::parse(&text, "kiln.toml") {
            prop_assert!(!errors.0.is_empty() && errors.0.iter().all(|e| e.line >= 1 && e.column >= 1));
        }
    }
}

/// One service declares the strategy, the others follow; two that disagree are one error; an environment may choose another.
#[test]
fn one_strategy_holds_for_all_services() {
    use kiln_model::strategy::{Analysis, Canary, CanaryStep, Rolling, Strategy};
    let text = |a: &str, b: &str, more: &str| {
        format!(
            "name = \"x\"\n[images.i]\nbase = \"scratch\"\n[services.a]\nimage = \"i\"\ncommand = [\"/a\"]\nport = 80\nhealth = {{ tcp = true }}\n{a}\n\
             [services.b]\nimage = \"i\"\ncommand = [\"/b\"]\n{b}\n{more}"
        )
    };
    let strategies = |text: &str, env: &str| -> Vec<Strategy> {
        let project = Project::parse(text, "kiln.toml").unwrap();
        let env = project.environment(&kiln_model::EnvName::new(env).unwrap());
        env.services.values().map(|s| s.rollout.strategy.clone()).collect()
    };
    let alone = text("", "rollout = { strategy = \"canary\" }", "");
    assert_eq!(strategies(&alone, "production"), vec![Strategy::Canary(Canary::default()); 2]);
    let full = "rollout = { strategy = \"canary\", steps = [{ weight = 7, for = \"2s\" }], \
                analysis = { min_requests = 9, errors = 0.5, latency = 3, latency_floor = \"7ms\", hold = \"1m\" } }";
    let canary = Strategy::Canary(Canary {
        steps: vec![CanaryStep { weight: 7, hold: Millis(2000) }],
        analysis: Analysis {
            min_requests: 9,
            errors: 50,
            latency: 300,
            latency_floor: Millis(7),
            hold: Millis(60_000),
        },
    });
    let rolling = "[environments.staging.services.a]\nrollout = { strategy = \"rolling\", max_surge = 2, batch = 2, min_ready = \"5s\" }";
    let both = text(full, "", rolling);
    assert_eq!(strategies(&both, "production"), vec![canary; 2]);
    let mute = text("", "rollout = { strategy = \"canary\" }", "")
        .replace("port = 80\nhealth = { tcp = true }\n", "");
    let errors = Project::parse(&mute, "kiln.toml").unwrap_err().to_string();
    assert!(errors.contains("a canary needs a service with a port"), "{errors}");
    let rolling = Strategy::Rolling(Rolling { max_surge: 2, batch: 2, min_ready: Millis(5000) });
    assert_eq!(strategies(&both, "staging"), vec![rolling; 2]);
    let blue_green = Strategy::BlueGreen;
    assert_eq!(strategies(&text("", "", ""), "production"), vec![blue_green; 2]);
    let differ = text("rollout = { strategy = \"rolling\" }", "rollout = { strategy = \"canary\" }", "");
    let errors = Project::parse(&differ, "kiln.toml").unwrap_err();
    assert_eq!(errors.0.len(), 1, "{errors}");
    assert!(
        errors.to_string().contains("`[services.b]` and `[services.a]` declare different rollouts"),
        "{errors}"
    );
    assert!(errors.to_string().contains("hint: all services of a release take over together"), "{errors}");
}
