//! Checks of hostile instances, and specifications that are hostile themselves.

use crate::world::{SECRET, World, fence};
use kiln_model::frame::Stream;
use kiln_model::limits::EVIDENCE_BYTES_MAX;
use kiln_model::*;
use kiln_provider::{Provider, ProviderError};
use std::time::{Duration, Instant};

/// While checks run in it, the program looks at every process that it can see: none of them may ever show a file of the
/// host, be it for the moment between joining the instance and becoming the check's program.
pub async fn checks_are_spied_upon(world: &World) {
    for user in ["web", "0"] {
        let mut spec = world.spec(&["hostile", "spy", "4000"]);
        spec.user = user.into();
        world.start(&spec).await;
        world.printed(&spec.id, "spying").await;
        let end = Instant::now() + Duration::from_millis(3_500);
        let mut count = 0;
        while Instant::now() < end {
            let evidence = world.check(&spec.id, &["hostile", "true"], 10_000).await;
            assert!(evidence.passed, "{evidence:?}");
            let file = CheckKind::File { path: "/bin/hostile".into(), contains: Some("ELF".into()) };
            assert!(world.look(&spec.id, file, 10_000).await.passed);
            count += 1;
        }
        assert_eq!(world.ended(&spec.id).await, ExitReason::Status { code: 0 });
        let lines = world.host.printed(&spec.id, Stream::Out);
        println!("  user {user}: {count} checks: {lines:?}");
        let harmless = ["saw exe /bin/hostile", "saw cwd /", "saw root /"];
        for line in lines.iter().filter(|line| line.starts_with("saw ") || line.starts_with("BROKEN")) {
            let standard = ["0", "1", "2"]
                .iter()
                .any(|n| ["pipe:", "/dev/null"].iter().any(|kind| *line == format!("saw fd {n} {kind}")));
            // The standard library looks at its own stack when it starts.
            let own = line.starts_with("saw fd 3 /proc/") && line.ends_with("/maps");
            assert!(harmless.contains(&line.as_str()) || standard || own, "it {line}");
        }
        let met = lines.iter().find_map(|line| line.strip_prefix("met ")).unwrap();
        assert_ne!(met, "0", "it saw none of {count} checks: this proves nothing");
        world.remove(&spec.id).await;
    }
}

/// The program swaps the files that checks look at for links, all the time.
pub async fn places_are_swapped_under_checks(world: &World) {
    let spec = world.spec(&["hostile", "swap", "4000"]);
    world.start(&spec).await;
    world.printed(&spec.id, "swapping").await;
    let canary = world.canary.display().to_string();
    let (mut seen, mut run) = (0, 0);
    let end = Instant::now() + Duration::from_millis(3_500);
    while Instant::now() < end {
        for place in ["/tmp/x", "/data/x", "/run/x"] {
            for (path, contains) in [
                (format!("{place}{canary}/canary"), Some(SECRET)),
                (format!("{place}{canary}/canary"), None),
                (format!("{place}/etc/passwd"), Some("root:")),
                (format!("{place}/etc/shadow"), None),
            ] {
                let contains = contains.map(str::to_owned);
                let evidence = world.look(&spec.id, CheckKind::File { path, contains }, 5_000).await;
                assert!(!evidence.passed, "{evidence:?}");
            }
            let plain = CheckKind::File { path: place.into(), contains: Some("plain".into()) };
            seen += u64::from(world.look(&spec.id, plain, 5_000).await.passed);
        }
        let evidence = world.check(&spec.id, &["/tmp/x", "steal"], 5_000).await;
        assert!(!evidence.detail.contains("BROKEN"), "{evidence:?}");
        run += 1;
    }
    assert_eq!(world.ended(&spec.id).await, ExitReason::Status { code: 0 });
    println!("  {seen} of {} looks saw the plain file", 3 * run);
    assert!(seen > 0, "the swapping was never caught in between: this proves nothing");
    world.remove(&spec.id).await;
}

/// Whatever a check's program prints, the evidence is short, is text, and cannot move anybody's cursor.
pub async fn checks_make_noise(world: &World) {
    let spec = world.spec(&["probe", "sleep"]);
    world.start(&spec).await;
    for kind in ["escapes", "binary", "split", "one-line", "endless", "closed", "stopped"] {
        let begun = Instant::now();
        let evidence = world.check(&spec.id, &["hostile", "noise", kind], 1_500).await;
        println!("  {kind}: {} ms, {} bytes", begun.elapsed().as_millis(), evidence.detail.len());
        assert!(begun.elapsed() < Duration::from_secs(10), "{kind} took {:?}", begun.elapsed());
        assert!(evidence.detail.len() <= EVIDENCE_BYTES_MAX, "{kind}: {} bytes", evidence.detail.len());
        let control = evidence.detail.chars().find(|c| c.is_control() && *c != '\n' && *c != '\t');
        assert_eq!(control, None, "{kind}: {:?}", evidence.detail);
        // Nor turn the direction of what follows around.
        assert!(
            !evidence.detail.contains(|c| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')),
            "{kind}"
        );
        assert_eq!(
            evidence.passed,
            !["endless", "closed", "stopped"].contains(&kind),
            "{kind}: {evidence:?}"
        );
    }
    world.remove(&spec.id).await;
}

/// Servers that never finish their answers.
pub async fn servers_waste_time(world: &World) {
    for kind in ["silent", "drip", "head", "body", "garbage"] {
        let spec = world.spec(&["hostile", "serve", kind]);
        world.start(&spec).await;
        world.printed(&spec.id, "listening").await;
        let begun = Instant::now();
        let http = |contains: Option<&str>| CheckKind::Http {
            port: 8080,
            path: "/".into(),
            status: None,
            contains: contains.map(str::to_owned),
            host: None,
        };
        for contains in [None, Some("absent")] {
            let evidence = world.look(&spec.id, http(contains), 700).await;
            assert!(!evidence.passed || (kind == "body" && contains.is_none()), "{kind}: {evidence:?}");
            assert!(!evidence.detail.contains(|c: char| c.is_control()), "{kind}: {evidence:?}");
        }
        assert!(begun.elapsed() < Duration::from_secs(6), "{kind} took {:?}", begun.elapsed());
        world.remove(&spec.id).await;
    }
}

/// Commands and environments without end, with bytes that end texts, and with names that mean something to loaders.
pub async fn arguments_are_huge(world: &World) {
    let long = "x".repeat(100_000);
    let many: Vec<&str> =
        std::iter::once("hostile").chain(std::iter::repeat_n("arguments", 20_000)).collect();
    let commands: [Vec<&str>; 9] = [
        vec!["hostile", "arguments", &long],
        many,
        [vec!["hostile", "arguments"], vec![long.as_str(); 40]].concat(),
        vec!["hostile\0", "true"],
        vec!["hostile", "true\0--steal"],
        vec![""],
        vec![&long],
        vec!["/proc/self/exe", "steal"],
        vec!["../../../../../../bin/true"],
    ];
    for command in &commands {
        let spec = world.spec(command);
        outcome(world, &spec).await;
        let sleeping = world.spec(&["probe", "sleep"]);
        world.start(&sleeping).await;
        let evidence = world.check(&sleeping.id, command, 10_000).await;
        assert!(
            evidence.detail.len() <= EVIDENCE_BYTES_MAX && !evidence.detail.contains("BROKEN"),
            "{evidence:?}"
        );
        world.remove(&sleeping.id).await;
    }
    let environments: [(&str, &str); 7] = [
        ("LD_PRELOAD", "/tmp/x.so"),
        ("A=B", "c"),
        ("", "empty"),
        ("A\0B", "c"),
        ("A", "b\0c"),
        ("LONG", &long),
        ("PATH", "/proc/self/fd:/proc/1/root/bin:../../bin"),
    ];
    for (name, value) in environments {
        let mut spec = world.spec(&["/bin/hostile", "true"]);
        spec.environment.insert(name.into(), value.into());
        outcome(world, &spec).await;
    }
    for place in ["relative", "/tmp/../../../x", "/proc/self/fd/3", "/run/../etc", "", "/", "/tmp/\0x", &long]
    {
        let mut spec = world.spec(&["/bin/hostile", "true"]);
        spec.writable = vec![place.into()];
        outcome(world, &spec).await;
    }
    for user in ["-1", "4294967295", "65535", "65536", "root\n", "0x0", " 0", ""] {
        let mut spec = world.spec(&["/bin/hostile", "true"]);
        spec.user = user.into();
        assert!(!outcome(world, &spec).await, "user `{user}` was accepted");
    }
}

/// It is accepted, or refused for ever with a reason; and it can be removed.
async fn outcome(world: &World, spec: &InstanceSpec) -> bool {
    let limit = Duration::from_secs(30);
    let outcome = tokio::time::timeout(limit, world.provider.ensure(fence(), spec, &NO_SECRETS))
        .await
        .expect("ensure ends");
    match &outcome {
        Ok(_) => drop(world.ended(&spec.id).await),
        Err(ProviderError::Permanent { .. }) => {}
        Err(other) => panic!("{other}"),
    }
    world.remove(&spec.id).await;
    outcome.is_ok()
}
