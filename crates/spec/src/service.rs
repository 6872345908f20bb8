//! What to run: the `[services.NAME]` tables, with every default filled in.

use crate::reader::{Shared, Table, Value};
use crate::recipe::is_absolute;
use crate::rollout;
use kiln_model::{
    Autoscale, Check, CheckKind, Health, ImageName, Millis, Protocol, Resources, SecretName, ServiceName,
    ServiceSpec, Stop, limits, secret::SECRETS_DIR,
};
use std::collections::BTreeMap;

const HEALTH_TIMEOUT: Millis = Millis(1000);
const VALIDATE_TIMEOUT: Millis = Millis(5000);
const MEMORY_MIN: u64 = 4 << 20;
/// Cores: the kernel's least quota is 1 ms in its longest period, and no host has more.
const CPU_MIN: f64 = 0.01;
const CPU_MAX: f64 = 1024.0;
/// Checks more often than this measure themselves.
const EVERY_MIN: Millis = Millis(10);
const MS: Millis = Millis(1);

/// Reads one `[services.NAME]`, and what it says about the strategy of all. `images` are the names that exist.
pub(crate) fn read(
    name: ServiceName,
    mut table: Table<'_>,
    images: &[ImageName],
    sink: Shared<'_, '_>,
) -> (ServiceSpec, rollout::Declared) {
    let image = image(&name, &mut table, images, sink);
    if !table.has("command") {
        table.missing("command", "[\"/usr/bin/…\"]", sink);
    }
    let command = argv(&mut table, sink).unwrap_or_default();
    let max = u64::from(limits::INSTANCES_PER_SERVICE_MAX);
    let instances = table.integer("instances", 0..=max, sink).unwrap_or(1) as u32;
    let autoscale = autoscale(&mut table, instances, sink);
    // One that is wrong is reported as such, not as one that is missing: what stands in for it is never used.
    let stand_in = table.has("port").then_some(u16::MAX);
    let port = table.integer("port", 1..=65535, sink).map(|p| p as u16).or(stand_in);
    let unchecked = !table.has("health") && table.is_empty_array("validate");
    let health = table.table("health", sink).and_then(|t| health(t, port, sink));
    let validate = validate(&mut table, port, sink);
    if port.is_some() && unchecked {
        let hint = "add `health = { http = \"/\" }` or `health = { tcp = true }`".to_owned();
        let message = format!("`{}` has a port but neither `health` nor `validate`", table.name);
        sink.borrow_mut().push(table.span.clone(), message, Some(hint));
    }
    let place = table.place("proxy_protocol");
    let proxy_protocol = crate::policy::flag(&mut table, "proxy_protocol", sink);
    if let (true, None, Some(span)) = (proxy_protocol, port, place.clone()) {
        let hint = "add `port = …`, or leave `proxy_protocol` out".to_owned();
        sink.borrow_mut().push(span, "`proxy_protocol` needs a service with a port", Some(hint));
    }
    let speaks = protocol(&mut table, port, sink);
    if let (true, Protocol::H2c, Some(span)) = (proxy_protocol, speaks, place) {
        let hint = "leave `proxy_protocol` out; the client's address comes in `x-forwarded-for`".to_owned();
        sink.borrow_mut().push(
            span,
            "`proxy_protocol` does not go together with `protocol = \"h2c\"`",
            Some(hint),
        );
    }
    let (rollout, declared) = rollout::read(table.table("rollout", sink), sink);
    let spec = ServiceSpec {
        confinement: crate::confinement::read(&mut table, sink),
        image,
        command,
        instances: autoscale.map_or(instances, |rule: Autoscale| instances.clamp(rule.min, rule.max)),
        autoscale,
        port,
        protocol: speaks,
        proxy_protocol,
        user: user(&mut table, sink),
        env: env(&mut table, sink),
        secrets: secrets(&mut table, sink),
        writable: writable(&mut table, sink),
        resources: table.table("resources", sink).map_or_else(Resources::default, |t| resources(t, sink)),
        health,
        validate,
        rollout,
        stop: table.table("stop", sink).map_or_else(Stop::default, |t| stop(t, sink)),
        name,
    };
    let hints = [
        ("uses", "give the address of an external service in `env`"),
        ("migrate", "run the migration before the deploy"),
    ];
    hints.iter().for_each(|(key, hint)| table.reserved(key, hint, sink));
    table.finish(sink);
    (spec, declared)
}

fn protocol(table: &mut Table<'_>, port: Option<u16>, sink: Shared<'_, '_>) -> Protocol {
    let Some((text, span)) = table.string("protocol", sink) else { return Protocol::default() };
    if port.is_none() {
        let hint = Some("give it a `port`, or leave `protocol` out".to_owned());
        sink.borrow_mut().push(span.clone(), "`protocol` needs a service with a port", hint);
    }
    match text.as_str() {
        "http1" => Protocol::Http1,
        "h2c" => Protocol::H2c,
        _ => {
            let hint = "\"http1\", or \"h2c\" for HTTP/2 without TLS, as gRPC servers speak it".to_owned();
            let message = format!("`{}` is not a protocol of a service", text.escape_debug());
            sink.borrow_mut().push(span, message, Some(hint));
            Protocol::default()
        }
    }
}

fn autoscale(table: &mut Table<'_>, instances: u32, sink: Shared<'_, '_>) -> Option<Autoscale> {
    let has_port = table.has("port");
    let value = table.has("autoscale").then(|| table.span.clone());
    let mut rule = table.table("autoscale", sink)?;
    let most = u64::from(limits::INSTANCES_PER_SERVICE_MAX);
    let min = rule.integer("min", 1..=most, sink).unwrap_or(u64::from(instances.max(1))) as u32;
    if !rule.has("max") {
        rule.missing("max", "10", sink);
    }
    if !rule.has("requests") {
        rule.missing("requests", "100", sink);
    }
    let max = rule.integer("max", 1..=most, sink).map_or(min, |max| max as u32);
    let requests = rule.integer("requests", 1..=1_000_000, sink).unwrap_or(1) as u32;
    let span = rule.span.clone();
    rule.reserved("cpu", "scale by `requests`", sink);
    rule.finish(sink);
    if max < min {
        let hint = Some("`min` is the number of instances if it is not given".to_owned());
        sink.borrow_mut().push(
            span,
            format!("`autoscale` has a `max` of {max} below its `min` of {min}"),
            hint,
        );
    }
    if let (false, Some(span)) = (has_port, value) {
        let hint = Some("only requests are counted: give it a `port`, or leave `autoscale` out".to_owned());
        sink.borrow_mut().push(span, "`autoscale` needs a service with a port", hint);
    }
    (max >= min).then_some(Autoscale { min, max, requests })
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
    if images.is_empty() {
        // That there are none at all was reported.
        return fallback();
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
        let hint = "a name of the image's /etc/passwd such as \"www-data\", or a number".to_owned();
        sink.borrow_mut().push(span, format!("`{user}` is not a user name or number"), Some(hint));
    }
    user
}

pub(crate) fn env(table: &mut Table<'_>, sink: Shared<'_, '_>) -> BTreeMap<String, String> {
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

fn secrets(table: &mut Table<'_>, sink: Shared<'_, '_>) -> Vec<SecretName> {
    let mut names = vec![];
    for (text, span) in table.strings("secrets", sink).unwrap_or_default() {
        match SecretName::new(text) {
            Ok(name) if names.contains(&name) => {
                sink.borrow_mut().push(span, format!("`{name}` is there twice"), None);
            }
            Ok(name) => names.push(name),
            Err(error) => {
                let hint = "the names of secrets; their values are set with `kiln secret set`".to_owned();
                sink.borrow_mut().push(span, error.to_string(), Some(hint));
            }
        }
    }
    if names.len() > limits::SECRETS_PER_SERVICE_MAX {
        let message = format!("more than {} secrets", limits::SECRETS_PER_SERVICE_MAX);
        sink.borrow_mut().push(table.span.clone(), message, None);
    }
    names.sort();
    names
}

fn writable(table: &mut Table<'_>, sink: Shared<'_, '_>) -> Vec<String> {
    let mut paths = vec![];
    for (path, span) in table.strings("writable", sink).unwrap_or_default() {
        let below = ["/proc", "/sys", "/dev", SECRETS_DIR]
            .iter()
            .any(|p| path == *p || path.starts_with(&format!("{p}/")));
        if !is_absolute(&path) || below {
            let hint =
                "an absolute path without `..`, not below /proc, /sys, /dev or /run/secrets".to_owned();
            sink.borrow_mut().push(span, format!("`{path}` cannot be writable"), Some(hint));
        } else if !["/tmp", "/run"].contains(&&*path) && !paths.contains(&path) {
            paths.push(path);
        }
    }
    paths
}

fn resources(mut table: Table<'_>, sink: Shared<'_, '_>) -> Resources {
    let mut resources = Resources::default();
    if let Some(cpu) = table.number("cpu", CPU_MIN..=CPU_MAX, sink) {
        resources.cpu_milli = (cpu * 1000.0).round() as u32;
    }
    if let Some((memory, span)) = table.size("memory", sink) {
        if memory < MEMORY_MIN {
            let message = format!("`memory` of {memory} bytes is too little for any program");
            sink.borrow_mut().push(span, message, Some("the least is \"4MiB\"".into()));
        }
        resources.memory_bytes = memory;
    }
    resources.pids = table.integer("pids", 1..=100_000, sink).map_or(resources.pids, |p| p as u32);
    table.finish(sink);
    resources
}

/// Program and arguments: an absolute path first, because there is no shell and no search path.
fn argv(table: &mut Table<'_>, sink: Shared<'_, '_>) -> Option<Vec<String>> {
    let words = table.strings("command", sink)?;
    let message = match words.first() {
        Some((program, _)) if !is_absolute(program) => Some(format!("`{program}` is not an absolute path")),
        None => Some("`command` is empty".to_owned()),
        _ => None,
    };
    if let Some(message) = message {
        let hint = "the first word is the program's absolute path: there is no shell and no search path";
        let span = words.first().map_or(table.span.clone(), |(_, span)| span.clone());
        sink.borrow_mut().push(span, message, Some(hint.into()));
    }
    for (_, span) in words.iter().filter(|(word, _)| word.contains('\0')) {
        sink.borrow_mut().push(span.clone(), "an argument cannot contain NUL", None);
    }
    Some(words.into_iter().map(|(word, _)| word).collect())
}

/// The keys that say what to check, each with the further keys that belong to it.
const KINDS: [(&str, &[&str]); 5] = [
    ("http", &["status", "contains", "host"]),
    ("tcp", &[]),
    ("file", &["contains"]),
    ("listening", &[]),
    ("command", &[]),
];

/// What `http`, `tcp`, `file`, `listening` or `command` of a check table says. Exactly one of `allowed` may be there, and only
/// with the keys that belong to it.
fn check_kind(
    table: &mut Table<'_>,
    allowed: &[&str],
    port: Option<u16>,
    sink: Shared<'_, '_>,
) -> Option<CheckKind> {
    let kinds = || KINDS.iter().filter(|(kind, _)| allowed.contains(kind));
    let present: Vec<_> = kinds().filter(|(kind, _)| table.has(kind)).collect();
    let &[&(kind, more)] = present.as_slice() else {
        let hint = format!("one of {}", kinds().map(|k| format!("`{}`", k.0)).collect::<Vec<_>>().join(", "));
        let message = format!("`{}` must say exactly one thing to check", table.name);
        sink.borrow_mut().push(table.span.clone(), message, Some(hint));
        table.forget(kinds().flat_map(|(kind, more)| more.iter().copied().chain([*kind])));
        return None;
    };
    if matches!(kind, "http" | "tcp") && port.is_none() {
        let message = format!("`{}` checks a port, but the service has none", table.name);
        let hint = "add `port = …` to the service".to_owned();
        sink.borrow_mut().push(table.span.clone(), message, Some(hint));
    }
    let port = port.unwrap_or(0);
    let contains = more.contains(&"contains").then(|| table.string("contains", sink)).flatten().map(|c| c.0);
    match kind {
        "http" => http(table, port, contains, sink),
        "tcp" => {
            let tcp = table.take("tcp")?;
            match tcp.value.as_bool() {
                Some(true) => Some(CheckKind::Tcp { port }),
                _ => {
                    tcp.wrong("tcp", "`true`", sink);
                    None
                }
            }
        }
        "file" => {
            let (path, span) = table.string("file", sink)?;
            if !is_absolute(&path) {
                sink.borrow_mut().push(span, "`file` must be an absolute path without `..`", None);
            }
            Some(CheckKind::File { path, contains })
        }
        "listening" => {
            let port = table.integer("listening", 1..=65535, sink)? as u16;
            Some(CheckKind::Listening { port })
        }
        _ => argv(table, sink).map(|argv| CheckKind::Command { argv }),
    }
}

/// An http check. Its path and host are written into a request, so that they must not be able to end a line.
fn http(
    table: &mut Table<'_>,
    port: u16,
    contains: Option<String>,
    sink: Shared<'_, '_>,
) -> Option<CheckKind> {
    let status = table.integer("status", 100..=599, sink).map(|s| s as u16);
    let host = table.string("host", sink);
    if let Some((host, span)) = host.as_ref().filter(|(host, _)| !is_host(host)) {
        sink.borrow_mut().push(span.clone(), format!("`{}` is not a host name", host.escape_debug()), None);
    }
    let (path, span) = table.string("http", sink)?;
    if !path.starts_with('/') || !path.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        let hint = "such as \"/healthz\"; write other characters as %XX".to_owned();
        sink.borrow_mut().push(span, "`http` must be a path that starts with `/`", Some(hint));
    }
    Some(CheckKind::Http { port, path, status, contains, host: host.map(|h| h.0) })
}

/// A host name or an IPv4 address, without port.
pub(crate) fn is_host(host: &str) -> bool {
    let part = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    host.len() <= 253 && host.split('.').all(part)
}

fn health(mut table: Table<'_>, port: Option<u16>, sink: Shared<'_, '_>) -> Option<Health> {
    let kind = check_kind(&mut table, &["http", "tcp", "command"], port, sink);
    let timeout = table.duration_from("timeout", MS, sink).unwrap_or(HEALTH_TIMEOUT);
    let every = table.duration_from("every", EVERY_MIN, sink).unwrap_or(Millis(1000));
    let grace = table.duration_from("grace", MS, sink).unwrap_or(Millis::from_secs(10));
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
        let kind = check_kind(&mut table, &KINDS.map(|k| k.0), port, sink);
        let timeout = table.duration_from("timeout", MS, sink).unwrap_or(VALIDATE_TIMEOUT);
        table.finish(sink);
        Some(Check { kind: kind?, timeout })
    };
    items.iter().filter_map(one).collect()
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
