//! docs/kiln.schema.json helps editors. It must accept what the parser accepts, and know no key that the parser does not know.

use kiln_spec::Project;
use serde_json::{Value, json};

const SCHEMA: &str = include_str!("../../../docs/kiln.schema.json");
const EXAMPLES: [&str; 6] = [
    include_str!("../../../examples/shop/kiln.toml"),
    include_str!("../../../examples/guestbook/kiln.toml"),
    include_str!("../../../examples/compiled/kiln.toml"),
    CANARY,
    ROLLING,
    EDGE,
];
const CANARY: &str = r#"
name = "x"
[images.a]
base = "scratch"
[services.a]
image = "a"
command = ["/a"]
port = 80
health = { tcp = true }
[services.a.rollout]
strategy = "canary"
keep_previous = "5m"
steps = [{ weight = 5, for = "1m" }, { weight = 50, for = "5m" }]
analysis = { min_requests = 50, errors = 0.5, latency = 2, latency_floor = "10ms", hold = "10m" }
"#;
const EDGE: &str = r#"
name = "x"
[images.a]
base = "scratch"
[services.a]
image = "a"
command = ["/a"]
port = 80
proxy_protocol = true
health = { tcp = true }
[[routes]]
path = "/api"
service = "a"
timeouts = { connect = "1s", answer = "5s", idle = "1m", total = "10m" }
body_max = "1MiB"
in_flight = { max = 10, queue = 5, wait = "2s" }
rate = { requests = 10, per = "1m", burst = 20 }
sticky = true
[[routes]]
tcp = 5432
service = "a"
timeouts = { connect = "1s", idle = "1h" }
in_flight = { max = 10 }
"#;
const ROLLING: &str = r#"
name = "x"
[images.a]
base = "scratch"
[services.a]
image = "a"
command = ["/a"]
rollout = { strategy = "rolling", max_surge = 2, batch = 1, min_ready = "5s" }
"#;

/// The part of JSON Schema that the file uses; `pattern` is left to editors.
fn valid(root: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    if let Some(target) = schema["$ref"].as_str() {
        let target = root.pointer(target.trim_start_matches('#')).ok_or(format!("dangling {target}"))?;
        valid(root, target, value)?;
    }
    let types = match &schema["type"] {
        Value::Array(types) => types.clone(),
        Value::Null => vec![],
        one => vec![one.clone()],
    };
    let is = |wanted: &str| match value {
        Value::Object(_) => wanted == "object",
        Value::Array(_) => wanted == "array",
        Value::String(_) => wanted == "string",
        Value::Bool(_) => wanted == "boolean",
        Value::Number(n) => wanted == "number" || (wanted == "integer" && !n.is_f64()),
        Value::Null => false,
    };
    if !types.is_empty() && !types.iter().filter_map(Value::as_str).any(is) {
        return Err(format!("{value} is not {types:?}"));
    }
    if schema["enum"].as_array().is_some_and(|words| !words.contains(value)) {
        return Err(format!("{value} is none of {}", schema["enum"]));
    }
    if let Some(number) = value.as_f64() {
        let below = schema["minimum"].as_f64().is_some_and(|least| number < least);
        if below || schema["maximum"].as_f64().is_some_and(|most| number > most) {
            return Err(format!("{value} is out of range"));
        }
    }
    for item in value.as_array().into_iter().flatten() {
        valid(root, &schema["items"], item)?;
    }
    for (key, item) in value.as_object().into_iter().flatten() {
        match (&schema["properties"][key], &schema["additionalProperties"]) {
            (Value::Null, Value::Bool(false)) => return Err(format!("unknown key {key}")),
            (Value::Null, Value::Null) => {}
            (Value::Null, every) => valid(root, every, item)?,
            (one, _) => valid(root, one, item)?,
        }
    }
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    match required.into_iter().find(|key| value.get(key).is_none()) {
        Some(key) => Err(format!("no {key}")),
        None => Ok(()),
    }
}

/// What the schema and the parser say of a document.
fn both(document: &Value) -> (Result<(), String>, Result<Project, String>) {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let text = toml::to_string(document).unwrap();
    (
        valid(&schema, &schema, document),
        Project::parse(&text, "kiln.toml").map_err(|e| format!("{e}\n{text}")),
    )
}

#[test]
fn the_examples_fit_both() {
    for text in EXAMPLES {
        let document: Value = toml::from_str(text).unwrap();
        let (schema, parser) = both(&document);
        schema.unwrap();
        parser.unwrap();
    }
}

/// Every place of an example, as JSON pointers.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    for (key, item) in value.as_object().into_iter().flatten() {
        places(item, &format!("{at}/{key}"), found);
    }
    for (n, item) in value.as_array().into_iter().flatten().enumerate() {
        places(item, &format!("{at}/{n}"), found);
    }
}

#[test]
fn what_the_schema_refuses_the_parser_refuses() {
    let mut n_refused = 0;
    for text in EXAMPLES {
        let document: Value = toml::from_str(text).unwrap();
        let mut found = vec![];
        places(&document, "", &mut found);
        for place in found.iter().filter(|place| !place.is_empty()) {
            for wrong in [json!(true), json!(7_000_000), json!("?"), json!([]), json!({ "surprise": 1 })] {
                let mut changed = document.clone();
                *changed.pointer_mut(place).unwrap() = wrong.clone();
                if let (Err(why), parser) = both(&changed) {
                    n_refused += 1;
                    assert!(
                        parser.is_err(),
                        "{place} = {wrong}: the schema says {why}, the parser accepts it"
                    );
                }
            }
            let mut changed = document.clone();
            if let Some(table) = changed.pointer_mut(place).and_then(Value::as_object_mut) {
                table.insert("surprise".into(), json!({}));
                let (schema, parser) = both(&changed);
                // The parser also knows which names exist, so it may refuse more.
                assert!(schema.is_ok() || parser.is_err(), "{place}.surprise: {schema:?}");
            }
        }
    }
    println!("{n_refused} changes refused by both");
    assert!(n_refused > 200, "the schema refuses only {n_refused} changes");
}

#[test]
fn the_parser_knows_every_key_of_the_schema() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let service = &schema["$defs"]["service"]["properties"];
    let tables = [
        ("[images.a]", &schema["$defs"]["image"]["properties"]),
        ("[images.a.build]", &schema["$defs"]["image"]["properties"]["build"]["properties"]),
        ("[services.a]", service),
        ("[services.a.resources]", &service["resources"]["properties"]),
        ("[services.a.rollout]", &service["rollout"]["properties"]),
        ("[services.a.stop]", &service["stop"]["properties"]),
        ("[[routes]]", &schema["$defs"]["routes"]["items"]["properties"]),
        ("[environments.a]", &schema["$defs"]["environment"]["properties"]),
        (
            "[environments.a.requires]",
            &schema["$defs"]["environment"]["properties"]["requires"]["properties"],
        ),
    ];
    for (table, properties) in tables {
        // A value of a type that no key has: whatever else is said, the key is not unknown.
        for key in properties.as_object().unwrap().keys() {
            let text = format!("name = \"x\"\n{table}\n{key} = 1979-05-27\n");
            let errors = Project::parse(&text, "kiln.toml").unwrap_err().to_string();
            assert!(!errors.contains("unknown key"), "{table} {key}: {errors}");
        }
    }
}
