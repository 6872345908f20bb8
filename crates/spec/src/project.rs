//! A whole `kiln.toml`.

use crate::error::{Sink, SpecErrors};
use crate::lock::{Lock, Recipes};
use crate::reader::{Shared, Table, Value};
use crate::recipe::{self, Base, ImageRecipe};
use crate::service;
use kiln_model::{
    EnvName, ImageName, Millis, ProjectName, Requirement, RouteRule, ServiceName, ServiceSpec, limits,
};
use std::cell::RefCell;
use std::collections::BTreeMap;
use toml::de::{DeTable, DeValue};

/// A parsed, valid `kiln.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// The project's name.
    pub name: ProjectName,
    /// Its images.
    pub images: BTreeMap<ImageName, ImageRecipe>,
    base: EnvironmentSpec,
    environments: BTreeMap<EnvName, EnvironmentSpec>,
}

/// What runs in one environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvironmentSpec {
    /// Its services, with every default filled in.
    pub services: BTreeMap<ServiceName, ServiceSpec>,
    /// Its routes, in the order of the file.
    pub routes: Vec<RouteRule>,
    /// What another environment must have shown of the images first.
    pub requires: Option<Requirement>,
}

impl Project {
    /// Parses and validates; reports every error that it finds.
    pub fn parse(text: &str, file: &str) -> Result<Self, SpecErrors> {
        let sink = RefCell::new(Sink { file, text, errors: vec![] });
        if text.len() > limits::SPEC_BYTES_MAX {
            sink.borrow_mut().push(
                0..0,
                format!("the file is larger than {} bytes", limits::SPEC_BYTES_MAX),
                None,
            );
            return Err(SpecErrors(sink.into_inner().errors));
        }
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            sink.borrow_mut().push(error.span().unwrap_or(0..0), error.message(), None);
        }
        let project =
            errors.is_empty().then(|| read(Table::new("", 0..0, document.get_ref()), &sink)).flatten();
        let mut errors = sink.into_inner().errors;
        errors.sort_by_key(|error| (error.line, error.column));
        match project {
            Some(project) if errors.is_empty() => Ok(project),
            _ => Err(SpecErrors(errors)),
        }
    }

    /// What runs in the environment. One that the file does not name equals the file without environments.
    pub fn environment(&self, env: &EnvName) -> &EnvironmentSpec {
        self.environments.get(env).unwrap_or(&self.base)
    }

    /// Whether the file has an `[environments.NAME]` of that name.
    pub fn names(&self, env: &EnvName) -> bool {
        self.environments.contains_key(env)
    }

    /// The paths that services with that image may write to, in any environment: an image is the same in all of them.
    pub fn writable_of(&self, image: &ImageName) -> std::collections::BTreeSet<String> {
        let environments = std::iter::once(&self.base).chain(self.environments.values());
        let services = environments.flat_map(|env| env.services.values());
        services.filter(|s| s.image == *image).flat_map(|s| s.writable.iter().cloned()).collect()
    }

    /// Whether a service with that image runs in virtual machines, in any environment.
    pub fn needs_machine(&self, image: &ImageName) -> bool {
        let environments = std::iter::once(&self.base).chain(self.environments.values());
        let mut services = environments.flat_map(|env| env.services.values());
        services.any(|s| s.image == *image && s.confinement.isolation == kiln_model::Isolation::Vm)
    }

    /// What a lock must pin.
    pub fn recipes(&self) -> Recipes {
        let mut recipes = Recipes::default();
        for image in self.images.values() {
            recipes.debian.extend(image.debian());
            for base in std::iter::once(&image.base).chain(image.build.as_ref().map(|build| &build.base)) {
                if let Base::Oci { reference } = base {
                    recipes.oci.insert(reference.clone());
                }
            }
        }
        recipes
    }

    /// Whether the lock was resolved from these recipes.
    pub fn fits(&self, lock: &Lock) -> bool {
        lock.unfit(&self.recipes()).is_empty()
    }
}

fn read(mut root: Table<'_>, sink: Shared<'_, '_>) -> Option<Project> {
    let name = match root.string("name", sink) {
        Some((text, span)) => match ProjectName::new(text) {
            Ok(name) => Some(name),
            Err(error) => {
                sink.borrow_mut().push(span, error.to_string(), None);
                None
            }
        },
        None => {
            sink.borrow_mut().push(
                0..0,
                "there is no `name`",
                Some("add `name = \"…\"` as the first line".into()),
            );
            None
        }
    };
    let absent = |key, hint: &str| {
        sink.borrow_mut().push(0..0, format!("there are no `{key}`"), Some(hint.into()));
    };
    let images = images(root.table("images", sink), sink);
    if images.is_empty() && !root.has_misspelt("images") {
        absent("images", "add an `[images.NAME]` with a `base`");
    }
    let names: Vec<ImageName> = images.keys().cloned().collect();
    let services = root.take("services");
    if services.is_none() && !root.has_misspelt("services") {
        absent("services", "add a `[services.NAME]` with `image` and `command`");
    }
    let routes = root.take("routes");
    let table = services.as_ref().and_then(|s| s.as_table("[services]".into(), sink));
    let base = environment(table, routes.clone(), &names, sink);
    let mut environments = BTreeMap::new();
    if let Some(mut tables) = root.table("environments", sink) {
        for (key, span) in tables.keys() {
            let Ok(env) = EnvName::new(key.clone()) else {
                sink.borrow_mut().push(span, format!("`{key}` is not a legal environment name"), None);
                continue;
            };
            let Some(value) = tables.take_named(&key) else { continue };
            let Some(table) = value.as_table(format!("[environments.{key}]"), sink) else { continue };
            if let Some(spec) = overlay(&env, table, services.as_ref(), routes.as_ref(), &names, sink) {
                environments.insert(env, spec);
            }
        }
    }
    let hints = [
        ("data", "give the address of an external database in `env`"),
        ("jobs", "run one-off tasks from another service for now"),
        ("chaos", "kill instances by hand for now"),
        ("alerts", "watch `kiln status --json` for now"),
        ("pipeline", "call `kiln deploy` from your CI"),
    ];
    hints.iter().for_each(|(key, hint)| root.reserved(key, hint, sink));
    root.finish(sink);
    Some(Project { name: name?, images, base, environments })
}

fn images(table: Option<Table<'_>>, sink: Shared<'_, '_>) -> BTreeMap<ImageName, ImageRecipe> {
    let mut images = BTreeMap::new();
    let Some(mut table) = table else { return images };
    for (key, span) in table.keys() {
        let Some(value) = table.take_named(&key) else { continue };
        match ImageName::new(key.clone()) {
            Ok(name) => {
                if let Some(one) = value.as_table(table.child(&key), sink) {
                    let one = one.at(span);
                    images.insert(name.clone(), recipe::read(name, one, sink));
                }
            }
            Err(error) => sink.borrow_mut().push(span, error.to_string(), None),
        }
    }
    if images.len() > limits::IMAGES_MAX {
        sink.borrow_mut().push(table.span.clone(), format!("more than {} images", limits::IMAGES_MAX), None);
    } else {
        // What follows every chain to its end would take hours on a file that holds nothing but one.
        dangling(&images, &table, sink);
    }
    images
}

/// Reports bases `image:NAME` that name no image, or that lead back to their own image.
fn dangling(images: &BTreeMap<ImageName, ImageRecipe>, table: &Table<'_>, sink: Shared<'_, '_>) {
    let bases = |image: &ImageRecipe| -> Vec<ImageName> {
        let below = std::iter::once(&image.base).chain(image.build.as_ref().map(|build| &build.base));
        below
            .filter_map(|base| if let Base::Image { name } = base { Some(name.clone()) } else { None })
            .collect()
    };
    for image in images.values() {
        let error = |message: String, hint: &str| {
            sink.borrow_mut().push(table.span.clone(), message, Some(hint.to_owned()));
        };
        let mut queue = bases(image);
        let mut seen: Vec<ImageName> = vec![];
        while let Some(name) = queue.pop() {
            match images.get(&name) {
                None if seen.is_empty() => {
                    error(
                        format!("image `{}` stands on `image:{name}`, which is not there", image.name),
                        "add that image",
                    );
                }
                // It is reported where it is named.
                None => {}
                Some(_) if name == image.name => {
                    error(
                        format!("image `{name}` stands on itself"),
                        "one of its bases has to be another one",
                    );
                    break;
                }
                Some(below) if !seen.contains(&name) => queue.extend(bases(below)),
                Some(_) => {}
            }
            seen.push(name);
        }
    }
}

fn environment(
    services: Option<Table<'_>>,
    routes: Option<Value<'_>>,
    images: &[ImageName],
    sink: Shared<'_, '_>,
) -> EnvironmentSpec {
    let (mut read, mut declared) = (BTreeMap::new(), BTreeMap::new());
    let Some(mut table) = services else {
        // That there are none was reported; routes to them would only bring more errors.
        return EnvironmentSpec { services: read, routes: vec![], requires: None };
    };
    for (key, span) in table.keys() {
        let Some(value) = table.take_named(&key) else { continue };
        let Some(one) = value.as_table(table.child(&key), sink) else { continue };
        let Some(name) = service_name(&key, span.clone(), sink) else { continue };
        let (service, own) = service::read(name.clone(), one.at(span), images, sink);
        declared.insert(name.clone(), own);
        read.insert(name, service);
    }
    if read.len() > limits::SERVICES_MAX {
        sink.borrow_mut().push(0..0, format!("more than {} services", limits::SERVICES_MAX), None);
    }
    crate::rollout::agree(&mut read, &declared, sink);
    let routes = read_routes(routes, &read, sink);
    EnvironmentSpec { services: read, routes, requires: None }
}

fn service_name(key: &str, span: std::ops::Range<usize>, sink: Shared<'_, '_>) -> Option<ServiceName> {
    ServiceName::new(key).map_err(|error| sink.borrow_mut().push(span, error.to_string(), None)).ok()
}

/// An environment: tables merge, arrays replace, images are never there.
fn overlay<'d>(
    env: &EnvName,
    mut table: Table<'d>,
    services: Option<&Value<'d>>,
    routes: Option<&Value<'d>>,
    images: &[ImageName],
    sink: Shared<'_, '_>,
) -> Option<EnvironmentSpec> {
    if let Some(value) = table.take_named("images") {
        let hint = "an environment differs in scale, routes and data, never in images".to_owned();
        sink.borrow_mut().push(value.span, format!("`{}` cannot have images", table.name), Some(hint));
    }
    let over = table.take("services");
    let own_routes = table.take("routes");
    let requires = table.table("requires", sink).and_then(|table| requirement(env, table, sink));
    table.finish(sink);
    let base = services?;
    let over = match &over {
        Some(over) => Some(over.value.as_table().or_else(|| {
            over.wrong("services", "a table", sink);
            None
        })?),
        None => None,
    };
    for (key, span) in over.into_iter().flatten().map(|(key, _)| (key.get_ref(), key.span())) {
        if base.value.as_table().is_some_and(|base| !base.contains_key(&**key)) {
            let message = format!("there is no service `{key}` to change");
            sink.borrow_mut().push(
                span,
                message,
                Some("an environment changes services, it adds none".into()),
            );
        }
    }
    let mut merged = base.value.as_table()?.clone();
    // A service that is not there was reported; it would only bring more errors.
    let known = |key: &str| base.value.as_table().is_some_and(|base| base.contains_key(key));
    for (key, value) in over.into_iter().flatten().filter(|(key, _)| known(key.get_ref())) {
        merge_one(&mut merged, key, value);
    }
    let table = Table::new("[services]", base.span.clone(), &merged);
    Some(EnvironmentSpec {
        requires,
        ..environment(Some(table), own_routes.or(routes.cloned()), images, sink)
    })
}

/// `{ environment = "staging", for = "1h" }`.
fn requirement(env: &EnvName, mut table: Table<'_>, sink: Shared<'_, '_>) -> Option<Requirement> {
    let named = table.string("environment", sink);
    if named.is_none() && !table.has_misspelt("environment") {
        table.missing("environment", "\"staging\"", sink);
    }
    let time = table.duration("for", sink).unwrap_or(Millis(0));
    table.finish(sink);
    let (text, span) = named?;
    match EnvName::new(text) {
        Ok(name) if name == *env => {
            let hint = "name the environment that has to run the images first".to_owned();
            sink.borrow_mut().push(span, format!("`{env}` cannot require itself"), Some(hint));
            None
        }
        Ok(env) => Some(Requirement { env, time }),
        Err(error) => {
            sink.borrow_mut().push(span, error.to_string(), None);
            None
        }
    }
}

/// Tables merge, everything else replaces.
fn merge_one<'d>(
    base: &mut DeTable<'d>,
    key: &toml::Spanned<std::borrow::Cow<'d, str>>,
    value: &toml::Spanned<DeValue<'d>>,
) {
    match (base.get_mut(&**key.get_ref()).map(toml::Spanned::get_mut), value.get_ref()) {
        (Some(DeValue::Table(base)), DeValue::Table(over)) => {
            // Another strategy does not inherit the keys of the one that it replaces.
            if over.contains_key("strategy") {
                crate::rollout::OWN_KEYS.iter().for_each(|key| drop(base.remove(*key)));
            }
            over.iter().for_each(|(key, value)| merge_one(base, key, value));
        }
        _ => {
            // Removed first, so that the key's place is the environment's too.
            base.remove(&**key.get_ref());
            base.insert(key.clone(), value.clone());
        }
    }
}

fn read_routes(
    routes: Option<Value<'_>>,
    services: &BTreeMap<ServiceName, ServiceSpec>,
    sink: Shared<'_, '_>,
) -> Vec<RouteRule> {
    let mut rules: Vec<RouteRule> = vec![];
    let Some(value) = routes else { return rules };
    let items = value
        .as_array("routes", "an array of tables { host, path or tcp, service }", sink)
        .unwrap_or_default();
    if items.len() > limits::ROUTES_MAX {
        value.wrong("routes", &format!("at most {} routes", limits::ROUTES_MAX), sink);
    }
    for item in items {
        let Some(table) = item.as_table("[[routes]]".into(), sink) else { continue };
        let Some(rule) = route(table, services, sink) else { continue };
        if let Some(other) = rules.iter().find(|other| other.is_same_place(&rule)) {
            let what = rule.place("any host, ");
            let message = match rule.tcp {
                Some(_) => {
                    format!("there are two routes for {what}: `{}` and `{}`", other.service, rule.service)
                }
                None => format!("there are two routes for {what}"),
            };
            sink.borrow_mut().push(item.span, message, None);
        } else {
            rules.push(rule);
        }
    }
    rules
}

fn route(
    mut table: Table<'_>,
    services: &BTreeMap<ServiceName, ServiceSpec>,
    sink: Shared<'_, '_>,
) -> Option<RouteRule> {
    let is_tcp = table.has("tcp");
    let policy = crate::policy::read(&mut table, is_tcp, sink);
    let tcp = table.integer("tcp", 1..=65535, sink).and_then(|port| u16::try_from(port).ok());
    let host = table.string("host", sink).and_then(|(host, span)| {
        let host = host.to_ascii_lowercase();
        if !service::is_host(&host) {
            let hint = "a name or address without port, such as \"shop.example.com\"".to_owned();
            sink.borrow_mut().push(span, format!("`{}` is not a host name", host.escape_debug()), Some(hint));
            return None;
        }
        Some(host)
    });
    let path = table.string("path", sink).map_or("/".to_owned(), |(path, span)| {
        let legal = |b: u8| b.is_ascii_graphic() && !b"?#".contains(&b);
        let inner = path.strip_prefix('/').map(|rest| rest.strip_suffix('/').unwrap_or(rest));
        if !inner.is_some_and(|p| p.is_empty() || recipe::is_inner_path(p)) || !path.bytes().all(legal) {
            let hint = "a path such as \"/api\", without query, `..` and empty parts".to_owned();
            let message = format!("`{}` is not a path prefix", path.escape_debug());
            sink.borrow_mut().push(span, message, Some(hint));
        }
        if path.len() > 1 { path.trim_end_matches('/').to_owned() } else { path }
    });
    let https = crate::https::read(&mut table, sink);
    let service = table.string("service", sink);
    if service.is_none() {
        table.missing("service", "\"…\"", sink);
    }
    let (name, span) = service?;
    table.finish(sink);
    let known: Vec<&str> = services.keys().map(ServiceName::as_str).collect();
    let Some(spec) = services.values().find(|s| s.name.as_str() == name) else {
        let hint =
            crate::error::did_you_mean(&name, &known).unwrap_or_else(|| format!("add a `[services.{name}]`"));
        sink.borrow_mut().push(span, format!("there is no service `{name}`"), Some(hint));
        return None;
    };
    if spec.port.is_none() {
        let hint = format!("add `port = …` to `[services.{name}]`");
        sink.borrow_mut().push(span, format!("service `{name}` has no port to route to"), Some(hint));
    }
    if is_tcp && tcp.is_none() {
        return None;
    }
    Some(RouteRule { host, path, service: spec.name.clone(), https, tcp, policy })
}
