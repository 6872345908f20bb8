//! What to run: the `[services.NAME]` tables, with every default filled in.

use crate::reader::{Shared, Table, Value};
use crate::recipe::is_absolute;
use kiln_model::{
    Check, CheckKind, Health, ImageName, Millis, Resources, RolloutPolicy, ServiceName, ServiceSpec, Stop,
    limits,
};
use std::collections::BTreeMap;

const HEALTH_TIMEOUT: Millis = Millis(1000);
const VALIDATE_TIMEOUT: Millis = Millis(5000);
const MEMORY_MIN: u64 = 4 << 20;

/// Reads one `[services.NAME]`. `images` are the names that exist.
pub(crate) fn read(
    name: ServiceName,
    mut table: Table<'_>,
    images: &[ImageName],
    sink: Shared<'_, '_>,
) -> ServiceSpec {
    let image = image(&name, &mut table, images, sink);
    let command: Vec<String> =
        table.strings("command", sink).unwrap_or_default().into_iter().map(|c| c.0).collect();
    if !command.first().is_some_and(|c| is_absolute(c)) {
        let hint =
            "write an array whose first word is an absolute path: there is no shell and no search path"
                .to_owned();
        sink.borrow_mut().push(
            table.span.clone(),
            format!("`{}` has no usable `command`", table.name),
            Some(hint),
        );
    }
    let max = u64::from(limits::INSTANCES_PER_SERVICE_MAX);
    let instances = table.integer("instances", 0..=max, sink).unwrap_or(1) as u32;
    let port = table.integer("port", 1..=65535, sink).map(|p| p as u16);
    let health = table.table("health", sink).and_then(|t| health(t, port, sink));
    let validate = validate(&mut table, port, sink);
    if port.is_some() && health.is_none() && validate.is_empty() && sink.borrow().errors.is_empty() {
        let hint = "add `health = { http = \"/\" }` or `health = { tcp = true }`".to_owned();
        let message = format!("`{}` has a port but neither `health` nor `validate`", table.name);
        sink.borrow_mut().push(table.span.clone(), message, Some(hint));
    }
    let spec = ServiceSpec {
        image,
        command,
        instances,
        port,
        user: user(&mut table, sink),
        env: env(&mut table, sink),
        writable: writable(&mut table, sink),
        resources: table.table("resources", sink).map_or_else(Resources::default, |t| resources(t, sink)),
        health,
        validate,
        rollout: rollout(table.table("rollout", sink), sink),
        stop: table.table("stop", sink).map_or_else(Stop::default, |t| stop(t, sink)),
        name,
    };
    let hints = [
        ("secrets", "set it in `env` if it is not secret"),
        ("uses", "give the address of an external service in `env`"),
        ("egress", "instances have no route out"),
        ("isolation", "every instance is a sandbox of its own"),
        ("migrate", "run the migration before the deploy"),
    ];
    hints.iter().for_each(|(key, hint)| table.reserved(key, hint, sink));
    table.finish(sink);
    spec
}

fn image(name: &ServiceName, table: &mut Table<'_>, images: &[ImageName], sink: Shared<'_, '_>) -> ImageName {
    let fallback =
        || ImageName::new(name.as_str()).unwrap_or_else(|_| unreachable!("both names have one rule"));
    let Some((text, span)) = table.string("image", sink) else {
        table.missing("image", "\"…\"", sink);
        return fallback();
    };
    if let Some(image) = images.iter().find(|i| i.as_str() == text) {
        return image.clone();
    }
    let known: Vec<&str> = images.iter().map(ImageName::as_str).collect();
    let hint =
        crate::error::did_you_mean(&text, &known).unwrap_or_else(|| format!("add an `[images.{text}]`"));
    sink.borrow_mut().push(span, format!("there is no image `{text}`"), Some(hint));
    fallback()
}

fn user(table: &mut Table<'_>, sink: Shared<'_, '_>) -> String {
    let Some((user, span)) = table.string("user", sink) else { return "65534".into() };
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
    if user.is_empty() || user.len() > 32 || !user.bytes().all(legal) || user.starts_with('-') {
        sink.borrow_mut().push(span, format!("`{user}` is not a user name or number"), None);
    }
    user
}

fn env(table: &mut Table<'_>, sink: Shared<'_, '_>) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    let Some(mut env) = table.table("env", sink) else { return variables };
    for (name, span) in env.keys() {
        let Some(value) = env.take_named(&name) else { continue };
        let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        if name.is_empty() || !name.bytes().all(legal) || name.as_bytes()[0].is_ascii_digit() {
            sink.borrow_mut().push(
                span,
                format!("`{name}` is not the name of an environment variable"),
                None,
            );
        } else if name.starts_with("KILN_") || name == "PORT" {
            sink.borrow_mut().push(
                span,
                format!("`{name}` is set by kiln"),
                Some("choose another name".into()),
            );
        } else if let Some(text) = value.as_str(&name, sink) {
            if text.contains('\0') {
                value.wrong(&name, "without NUL", sink);
            }
            variables.insert(name, text.to_owned());
        }
    }
    variables
}

fn writable(table: &mut Table<'_>, sink: Shared<'_, '_>) -> Vec<String> {
    let mut paths = vec![];
    for (path, span) in table.strings("writable", sink).unwrap_or_default() {
        let below =
            ["/proc", "/sys", "/dev"].iter().any(|p| path == *p || path.starts_with(&format!("{p}/")));
        if !is_absolute(&path) || below {
            let hint = "an absolute path without `..`, not below /proc, /sys or /dev".to_owned();
            sink.borrow_mut().push(span, format!("`{path}` cannot be writable"), Some(hint));
        } else if !["/tmp", "/run"].contains(&&*path) && !paths.contains(&path) {
            paths.push(path);
        }
    }
    paths
}

fn resources(mut table: Table<'_>, sink: Shared<'_, '_>) -> Resources {
    let mut resources = Resources::default();
    if let Some(cpu) = table.number("cpu", sink) {
        resources.cpu_milli = (cpu * 1000.0).clamp(10.0, 1_024_000.0) as u32;
    }
    let memory = table.size("memory", sink);
    if let Some(small) = memory.filter(|m| *m < MEMORY_MIN) {
        let message = format!("`memory` of {small} bytes is too little for any program");
        sink.borrow_mut().push(table.span.clone(), message, Some("the least is \"4MiB\"".into()));
    }
    resources.memory_bytes = memory.unwrap_or(resources.memory_bytes);
    resources.pids = table.integer("pids", 1..=100_000, sink).map_or(resources.pids, |p| p as u32);
    table.finish(sink);
    resources
}

/// What `http`, `tcp`, `file`, `listening` and `command` of a check table say. Exactly one may be there.
fn check_kind(table: &mut Table<'_>, port: Option<u16>, sink: Shared<'_, '_>) -> Option<CheckKind> {
    let span = table.span.clone();
    let (status, contains) =
        (table.integer("status", 100..=599, sink).map(|s| s as u16), table.string("contains", sink));
    let contains = contains.map(|c| c.0);
    let mut kinds = vec![];
    let mut needs_port = false;
    if let Some((path, span)) = table.string("http", sink) {
        if !path.starts_with('/') || path.contains(|c: char| c.is_control() || c == ' ') {
            sink.borrow_mut().push(span, "`http` must be a path that starts with `/`", None);
        }
        needs_port = true;
        let (contains, host) = (contains.clone(), table.string("host", sink).map(|h| h.0));
        kinds.push(CheckKind::Http { port: port.unwrap_or(0), path, status, contains, host });
    }
    if let Some(tcp) = table.take("tcp") {
        needs_port = true;
        match tcp.value.as_bool() {
            Some(true) => kinds.push(CheckKind::Tcp { port: port.unwrap_or(0) }),
            _ => tcp.wrong("tcp", "`true`", sink),
        }
    }
    if let Some((path, span)) = table.string("file", sink) {
        if !is_absolute(&path) {
            sink.borrow_mut().push(span, "`file` must be an absolute path", None);
        }
        kinds.push(CheckKind::File { path, contains: contains.clone() });
    }
    if let Some(port) = table.integer("listening", 1..=65535, sink) {
        kinds.push(CheckKind::Listening { port: port as u16 });
    }
    if let Some(argv) = table.strings("command", sink) {
        let argv: Vec<String> = argv.into_iter().map(|a| a.0).collect();
        if !argv.first().is_some_and(|c| is_absolute(c)) {
            sink.borrow_mut().push(
                span.clone(),
                "`command` of a check must start with an absolute path",
                None,
            );
        }
        kinds.push(CheckKind::Command { argv });
    }
    if needs_port && port.is_none() {
        let message = format!("`{}` checks a port, but the service has none", table.name);
        sink.borrow_mut().push(span, message, Some("add `port = …` to the service".into()));
        return None;
    }
    if kinds.len() != 1 {
        let hint = "one of `http`, `tcp`, `file`, `listening`, `command`".to_owned();
        sink.borrow_mut().push(
            span,
            format!("`{}` must say exactly one thing to check", table.name),
            Some(hint),
        );
    }
    kinds.into_iter().next()
}

fn health(mut table: Table<'_>, port: Option<u16>, sink: Shared<'_, '_>) -> Option<Health> {
    let kind = check_kind(&mut table, port, sink);
    let timeout = table.duration("timeout", sink).unwrap_or(HEALTH_TIMEOUT);
    let every = table.duration("every", sink).unwrap_or(Millis(1000)).max(Millis(10));
    let grace = table.duration("grace", sink).unwrap_or(Millis::from_secs(10));
    let healthy_after = table.integer("healthy_after", 1..=100, sink).unwrap_or(1) as u32;
    let unhealthy_after = table.integer("unhealthy_after", 1..=100, sink).unwrap_or(3) as u32;
    table.finish(sink);
    Some(Health { check: Check { kind: kind?, timeout }, every, grace, healthy_after, unhealthy_after })
}

fn validate(table: &mut Table<'_>, port: Option<u16>, sink: Shared<'_, '_>) -> Vec<Check> {
    let Some(value) = table.take("validate") else { return vec![] };
    let items = value.as_array("validate", "an array of checks", sink).unwrap_or_default();
    if items.len() > limits::CHECKS_MAX {
        value.wrong("validate", &format!("at most {} checks", limits::CHECKS_MAX), sink);
    }
    let name = table.child("validate");
    let one = |item: &Value<'_>| {
        let mut table = item.as_table(name.clone(), sink)?;
        let kind = check_kind(&mut table, port, sink);
        let timeout = table.duration("timeout", sink).unwrap_or(VALIDATE_TIMEOUT);
        table.finish(sink);
        Some(Check { kind: kind?, timeout })
    };
    items.iter().filter_map(one).collect()
}

fn rollout(table: Option<Table<'_>>, sink: Shared<'_, '_>) -> RolloutPolicy {
    let (drain, keep_previous, deadline) = (Millis::from_secs(10), Millis(0), Millis::from_secs(60));
    let Some(mut table) = table else { return RolloutPolicy { drain, keep_previous, deadline } };
    if let Some((strategy, span)) = table.string("strategy", sink) {
        let (message, hint) = match &*strategy {
            "blue-green" => (None, ""),
            "rolling" | "canary" => {
                (Some(format!("strategy `{strategy}` is not available yet")), "use \"blue-green\"")
            }
            _ => (Some(format!("unknown strategy `{strategy}`")), "use \"blue-green\""),
        };
        if let Some(message) = message {
            sink.borrow_mut().push(span, message, Some(hint.into()));
        }
    }
    let policy = RolloutPolicy {
        drain: table.duration("drain", sink).unwrap_or(drain),
        keep_previous: table.duration("keep_previous", sink).unwrap_or(keep_previous),
        deadline: table.duration("deadline", sink).unwrap_or(deadline),
    };
    for key in ["max_surge", "min_ready", "batch", "steps"] {
        table.reserved(key, "only blue-green exists so far", sink);
    }
    table.finish(sink);
    policy
}

fn stop(mut table: Table<'_>, sink: Shared<'_, '_>) -> Stop {
    let mut stop = Stop::default();
    if let Some((name, span)) = table.string("signal", sink) {
        // Numbers of x86-64 and arm64 Linux, signal(7).
        let known = [
            ("SIGHUP", 1),
            ("SIGINT", 2),
            ("SIGQUIT", 3),
            ("SIGKILL", 9),
            ("SIGUSR1", 10),
            ("SIGUSR2", 12),
            ("SIGTERM", 15),
            ("SIGWINCH", 28),
        ];
        match known.iter().find(|(known, _)| *known == name) {
            Some((_, number)) => stop.signal = *number,
            None => {
                let names: Vec<&str> = known.iter().map(|k| k.0).collect();
                let hint = format!("one of {}", names.join(", "));
                sink.borrow_mut().push(span, format!("unknown signal `{name}`"), Some(hint));
            }
        }
    }
    stop.timeout = table.duration("timeout", sink).unwrap_or(stop.timeout);
    table.finish(sink);
    stop
}
