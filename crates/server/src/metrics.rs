//! `GET /v1/metrics`: what the edge counts, in the text form of Prometheus (version 0.0.4).

use crate::Context;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use kiln_model::edge::{EdgeStatus, RouteStatus, TargetStatus};
use std::fmt::Write;

/// Answers with the counts of the edge that was seen last.
pub(crate) async fn metrics(State(context): State<Context>) -> impl IntoResponse {
    let text = text(context.handle.observed().edge.as_ref());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

/// A family of metrics and how a line of it is made.
struct Family<T: 'static> {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    value: fn(&T) -> u64,
}

const ROUTES: &[Family<RouteStatus>] = &[
    Family {
        name: "failed_total",
        kind: "counter",
        help: "Requests that the edge answered itself because no instance did",
        value: |r| r.failed,
    },
    Family {
        name: "cut_total",
        kind: "counter",
        help: "Answers and raw connections that an instance broke off",
        value: |r| r.cut,
    },
    Family {
        name: "abandoned_total",
        kind: "counter",
        help: "Requests whose client went away first",
        value: |r| r.abandoned,
    },
    Family {
        name: "received_bytes_total",
        kind: "counter",
        help: "Bytes from clients, without heads",
        value: |r| r.bytes_in,
    },
    Family {
        name: "sent_bytes_total",
        kind: "counter",
        help: "Bytes to clients, without heads",
        value: |r| r.bytes_out,
    },
    Family {
        name: "retries_total",
        kind: "counter",
        help: "Attempts beyond the first ones",
        value: |r| r.retries,
    },
    Family {
        name: "shed_total",
        kind: "counter",
        help: "Requests that were sent away because every instance had as much as it may",
        value: |r| r.shed,
    },
    Family {
        name: "rate_limited_total",
        kind: "counter",
        help: "Requests that were refused because their client asked too often",
        value: |r| r.limited,
    },
];

const TARGETS: &[Family<TargetStatus>] = &[
    Family {
        name: "in_flight",
        kind: "gauge",
        help: "Requests and connections in flight",
        value: |t| t.in_flight,
    },
    Family {
        name: "ejected",
        kind: "gauge",
        help: "Whether the edge sends it nothing because it failed",
        value: |t| t.ejected.into(),
    },
    Family {
        name: "ejections_total",
        kind: "counter",
        help: "How often it was ejected",
        value: |t| t.ejections,
    },
];

/// The whole page.
fn text(edge: Option<&EdgeStatus>) -> String {
    let mut page = String::new();
    head(&mut page, "up", "gauge", "Whether the edge answers");
    line(&mut page, "up", "", u64::from(edge.is_some()));
    let Some(edge) = edge else { return page };
    head(&mut page, "table_generation", "gauge", "Generation of the route table in use");
    line(&mut page, "table_generation", "", edge.generation.0);
    head(&mut page, "waiting_requests", "gauge", "Requests that wait for an instance that is not full");
    line(&mut page, "waiting_requests", "", edge.waiting);
    head(&mut page, "log_lines_lost_total", "counter", "Lines of its logs that could not be written");
    line(&mut page, "log_lines_lost_total", "", edge.log_lines_lost);
    head(&mut page, "unrouted_requests_total", "counter", "Requests that no pool got");
    for (env, tally) in &edge.unrouted {
        let labels = env.as_ref().map_or(String::new(), |env| labels(&[("env", &env.to_string())]));
        line(&mut page, "unrouted_requests_total", &labels, tally.requests);
    }
    routes(&mut page, &edge.routes);
    for family in TARGETS {
        let name = format!("instance_{}", family.name);
        head(&mut page, &name, family.kind, family.help);
        for target in &edge.targets {
            let (env, release) = (target.env.to_string(), target.release.to_string());
            let labels = labels(&[
                ("env", &env),
                ("service", target.service.as_str()),
                ("release", &release),
                ("instance", target.instance.as_str()),
            ]);
            line(&mut page, &name, &labels, (family.value)(target));
        }
    }
    page
}

fn routes(page: &mut String, routes: &[RouteStatus]) {
    head(
        page,
        "requests_total",
        "counter",
        "Requests and raw connections that ended, by class of their status",
    );
    for route in routes {
        for (class, n) in route.statuses.iter().enumerate().filter(|(_, n)| **n > 0) {
            let code = if class == 0 { "none".to_owned() } else { format!("{class}xx") };
            line(page, "requests_total", &of_route(route, &[("code", &code)]), *n);
        }
    }
    for family in ROUTES {
        head(page, family.name, family.kind, family.help);
        for route in routes {
            line(page, family.name, &of_route(route, &[]), (family.value)(route));
        }
    }
    head(
        page,
        "request_duration_seconds",
        "histogram",
        "From the head of a request to the end of its answer",
    );
    for route in routes {
        let mut sum = 0;
        for (n, count) in route.latency.iter().enumerate() {
            sum += count;
            // Powers of two from 128 us; the last bucket takes what is slower.
            let bound = match n + 1 == route.latency.len() {
                true => "+Inf".to_owned(),
                false => format!("{}", (128_u64 << n) as f64 / 1e6),
            };
            line(page, "request_duration_seconds_bucket", &of_route(route, &[("le", &bound)]), sum);
        }
        let labels = of_route(route, &[]);
        let _ =
            writeln!(page, "kiln_edge_request_duration_seconds_sum{labels} {}", route.micros as f64 / 1e6);
        line(page, "request_duration_seconds_count", &labels, sum);
    }
}

fn of_route(route: &RouteStatus, more: &[(&str, &str)]) -> String {
    let (env, release) = (route.env.to_string(), route.release.to_string());
    let own = [
        ("route", route.route.as_str()),
        ("env", &env),
        ("service", route.service.as_str()),
        ("release", &release),
    ];
    labels(&[&own[..], more].concat())
}

fn labels(pairs: &[(&str, &str)]) -> String {
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let all: Vec<String> =
        pairs.iter().map(|(name, value)| format!("{name}=\"{}\"", quoted(value))).collect();
    format!("{{{}}}", all.join(","))
}

fn head(page: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(page, "# HELP kiln_edge_{name} {help}\n# TYPE kiln_edge_{name} {kind}");
}

fn line(page: &mut String, name: &str, labels: &str, value: u64) {
    let _ = writeln!(page, "kiln_edge_{name}{labels} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_model::{EnvRef, ReleaseNumber, ServiceName};

    #[test]
    fn a_page_has_each_family_once_and_cumulative_buckets() {
        let route = RouteStatus {
            route: "a\"b\\/x".into(),
            env: EnvRef::try_from("shop/production".to_owned()).unwrap(),
            service: ServiceName::new("web").unwrap(),
            release: ReleaseNumber(7),
            in_table: true,
            statuses: vec![0, 0, 5, 0, 1, 0],
            failed: 0,
            cut: 0,
            abandoned: 0,
            bytes_in: 0,
            bytes_out: 99,
            retries: 3,
            shed: 0,
            limited: 0,
            micros: 1_500_000,
            latency: vec![1, 2, 3],
        };
        let edge = EdgeStatus { routes: vec![route], waiting: 4, ..EdgeStatus::default() };
        let page = text(Some(&edge));
        let own = r#"route="a\"b\\/x",env="shop/production",service="web",release="7""#;
        for expected in [
            "kiln_edge_up 1",
            "kiln_edge_waiting_requests 4",
            "kiln_edge_log_lines_lost_total 0",
            &format!(r#"kiln_edge_requests_total{{{own},code="2xx"}} 5"#),
            &format!("kiln_edge_sent_bytes_total{{{own}}} 99"),
            &format!("kiln_edge_retries_total{{{own}}} 3"),
            &format!(r#"kiln_edge_request_duration_seconds_bucket{{{own},le="0.000128"}} 1"#),
            &format!(r#"kiln_edge_request_duration_seconds_bucket{{{own},le="0.000256"}} 3"#),
            &format!(r#"kiln_edge_request_duration_seconds_bucket{{{own},le="+Inf"}} 6"#),
            &format!("kiln_edge_request_duration_seconds_sum{{{own}}} 1.5"),
        ] {
            assert!(page.lines().any(|l| l == expected), "{expected}\n{page}");
        }
        let types: Vec<&str> = page.lines().filter(|l| l.starts_with("# TYPE")).collect();
        assert_eq!(types.len(), types.iter().collect::<std::collections::BTreeSet<_>>().len(), "{types:?}");
        assert_eq!(text(None).lines().last(), Some("kiln_edge_up 0"));
    }
}
