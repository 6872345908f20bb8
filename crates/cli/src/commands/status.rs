//! `kiln status`: what runs, on one screen.

use crate::commands::instance;
use crate::output::{ago, now, table};
use crate::{Context, Failure, watch};
use clap::Args;
use kiln_api::pause::PauseView;
use kiln_api::server::LeaseView;
use kiln_api::status::{EdgeView, EnvironmentView, StatusView};
use kiln_model::{EnvName, Millis, RouteRule, Wall};

/// Options of `kiln status`.
#[derive(Debug, Args)]
#[command(after_help = "Outside of a project, all projects are shown.

Examples:
  kiln status
  kiln status --env staging --json")]
pub struct StatusArgs {
    /// Only this environment
    #[arg(long, value_name = "ENV")]
    env: Option<EnvName>,
}

pub(crate) async fn run(context: &Context<'_>, arguments: StatusArgs) -> Result<(), Failure> {
    let view = context.client()?.status(&context.scope(&arguments.env)?).await?;
    context.out().answer(&view, || text(&view, now()))
}

fn text(view: &StatusView, now: Wall) -> String {
    let mut text = String::new();
    if let Some(hold) = &view.recovery {
        text.push_str(&format!(
            "recovery hold for {}: the state is older than what runs: {}\nnothing begins before it is over: `{}`\n\n",
            hold.since_ms, hold.reason, hold.command
        ));
    }
    if let Some(pause) = &view.paused {
        text.push_str(&format!("{}\n\n", paused("the whole server", pause, now)));
    }
    for hold in &view.holds {
        text.push_str(&format!("{}: on hold for {}: {}\n\n", hold.env, hold.since_ms, hold.reason));
    }
    for environment in &view.environments {
        text.push_str(&paragraph(environment, now));
        text.push('\n');
    }
    if view.environments.is_empty() {
        text.push_str("nothing is deployed; `kiln deploy` deploys the commit that you stand on\n\n");
    }
    text.push_str(&edge(view.edge.as_ref()));
    if let Some(LeaseView { holder, epoch, left_ms: Some(left) }) = &view.server.lease {
        text.push_str(&format!("servers: `{holder}` leads (epoch {epoch}, for {} more)\n", Millis(*left)));
    }
    text
}

fn paused(what: &str, pause: &PauseView, now: Wall) -> String {
    format!("{what} is paused by {} ({}): {}", pause.actor, ago(pause.at, now), pause.reason)
}

fn edge(edge: Option<&EdgeView>) -> String {
    let Some(edge) = edge else { return "edge: does not answer\n".to_owned() };
    let table = if edge.generation == edge.wanted {
        format!("table {}", edge.generation)
    } else {
        format!("table {}, should be {}", edge.generation, edge.wanted)
    };
    let listening = if edge.listening.is_empty() { "nothing".to_owned() } else { edge.listening.join(", ") };
    let mut text = format!("edge: listens on {listening}; {table}\n");
    if edge.replaced > 0 {
        let many = if edge.replaced == 1 { " older process has" } else { " older processes have" };
        text.push_str(&format!("edge: {}{many} connections from before an upgrade\n", edge.replaced));
    }
    if let Some(tls) = &edge.tls {
        let (on, pairs) = (tls.listening.join(", "), tls.certificates);
        let one = if pairs == 1 { "" } else { "s" };
        text.push_str(&format!("edge: TLS on {on} with {pairs} certificate{one}\n"));
        tls.problems.iter().for_each(|problem| text.push_str(&format!("edge: not used: {problem}\n")));
    }
    text
}

fn paragraph(view: &EnvironmentView, now: Wall) -> String {
    let mut text = match &view.serving {
        Some(serving) => format!(
            "{}: release {} serves (commit {}, {}): {}\n",
            view.env,
            serving.release,
            serving.commit.short(),
            ago(serving.created, now),
            serving.subject
        ),
        None if view.destroyed => format!("{}: destroyed\n", view.env),
        None => format!("{}: nothing serves\n", view.env),
    };
    if let Some(pause) = &view.paused {
        text.push_str(&format!("  {}\n", paused("it", pause, now)));
    }
    if let Some(kept) = view.kept {
        text.push_str(&format!("  release {kept} is kept ready for a rollback\n"));
    }
    if let Some(rollout) = &view.rollout {
        let reason = rollout.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
        text.push_str(&format!("  {}{reason}\n", watch::step(rollout)));
        for figures in rollout.step.iter().flat_map(|step| &step.figures) {
            text.push_str(&format!("    {}\n", figures.text));
        }
        if let Some(step) = &rollout.step {
            let within = step.deadline_ms.map(|span| format!(" (within {span})")).unwrap_or_default();
            text.push_str(&format!("    next: {}{within}\n", step.next));
        }
    }
    if let Some(rollback) = &view.rollback {
        text.push_str(&format!("  {}", watch::safety(rollback)));
    }
    if view.reasons > 0 {
        let env = &view.env.env;
        text.push_str(&format!("  {} to be looked at: `kiln why --env {env}`\n", things(view.reasons)));
    }
    let requests = &view.requests;
    text.push_str(&format!(
        "  requests: {}; failed {}; cut {}\n",
        requests.requests, requests.failed, requests.cut
    ));
    for route in &view.routes {
        text.push_str(&format!("  route: {}\n", self::route(route)));
    }
    text.push_str(&services(view));
    text.push_str(&instances(view));
    text
}

fn things(n: usize) -> String {
    if n == 1 { "1 thing has".to_owned() } else { format!("{n} things have") }
}

/// `example.com/api → api`.
pub(crate) fn route(route: &RouteRule) -> String {
    let only = if route.https.only { ", HTTPS only" } else { "" };
    format!("{} → {}{only}", route.place("*"), route.service)
}

fn services(view: &EnvironmentView) -> String {
    if view.services.is_empty() {
        return String::new();
    }
    let row = |service: &kiln_api::status::ServiceView| {
        let wanted = match (service.scaled, service.autoscale) {
            (true, _) => format!("{} (scaled)", service.wanted),
            (false, None) => service.wanted.to_string(),
            (false, Some(rule)) => {
                let rate = service.requests_per_second.map(|rate| format!(", {rate}/s"));
                format!("{} of {} to {}{}", service.wanted, rule.min, rule.max, rate.unwrap_or_default())
            }
        };
        let image = service.image.map_or_else(|| "-".to_owned(), |digest| digest.short());
        vec![
            service.name.to_string(),
            wanted,
            service.validated.to_string(),
            service.serving.to_string(),
            image,
        ]
    };
    let rows: Vec<_> = view.services.iter().map(row).collect();
    indented(&table(&["SERVICE", "WANTED", "VALIDATED", "SERVING", "IMAGE"], &rows))
}

fn instances(view: &EnvironmentView) -> String {
    if view.instances.is_empty() {
        return String::new();
    }
    let row = |i: &kiln_api::instance::InstanceView| {
        let note = i.traffic.as_ref().and_then(|t| t.ejected.as_ref()).map(|why| format!("ejected: {why}"));
        let note = i.reason.clone().or(note).or_else(|| i.process.clone()).unwrap_or_else(|| "-".into());
        vec![i.id.to_string(), i.release.to_string(), instance::state(i), instance::address(i), note]
    };
    let rows: Vec<_> = view.instances.iter().map(row).collect();
    indented(&table(&["INSTANCE", "RELEASE", "STATE", "ADDRESS", "PROCESS"], &rows))
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_api::server::ServerView;
    use kiln_api::status::{ServiceView, ServingView};
    use kiln_model::edge::Tally;
    use kiln_model::{ReleaseNumber, ServiceName};

    fn view() -> StatusView {
        let environment = EnvironmentView {
            env: "shop/production".to_owned().try_into().unwrap(),
            serving: Some(ServingView {
                release: ReleaseNumber(4),
                commit: "a".repeat(40).parse().unwrap(),
                subject: "Faster".into(),
                created: Wall(1000),
            }),
            kept: Some(ReleaseNumber(3)),
            destroyed: false,
            services: vec![ServiceView {
                name: ServiceName::new("web").unwrap(),
                image: None,
                wanted: 3,
                scaled: true,
                autoscale: None,
                requests_per_second: None,
                validated: 3,
                serving: 2,
            }],
            routes: vec![RouteRule {
                tcp: None,
                policy: Default::default(),
                host: None,
                path: "/".into(),
                service: ServiceName::new("web").unwrap(),
                https: kiln_model::Https::default(),
            }],
            instances: vec![],
            rollout: None,
            rollback: None,
            requests: Tally { requests: 7, ..Tally::default() },
            reasons: 1,
            paused: None,
        };
        StatusView {
            server: ServerView { version: "1".into(), pid: 1, revision: 1, lease: None },
            edge: Some(EdgeView {
                generation: 4,
                wanted: 5,
                listening: vec!["0.0.0.0:80".into()],
                pid: 7,
                program: "1-a-b".into(),
                replaced: 1,
                tls: None,
            }),
            environments: vec![environment],
            paused: None,
            recovery: None,
            holds: vec![],
        }
    }

    #[test]
    fn all_is_on_one_screen() {
        let expected = "\
shop/production: release 4 serves (commit aaaaaaaaaa, 9.0 s ago): Faster
  release 3 is kept ready for a rollback
  1 thing has to be looked at: `kiln why --env production`
  requests: 7; failed 0; cut 0
  route: */ → web
  SERVICE  WANTED      VALIDATED  SERVING  IMAGE
  web      3 (scaled)  3          2        -

edge: listens on 0.0.0.0:80; table 4, should be 5
edge: 1 older process has connections from before an upgrade
";
        assert_eq!(text(&view(), Wall(10_000)), expected);
        let empty = StatusView { environments: vec![], edge: None, ..view() };
        assert!(text(&empty, Wall(0)).contains("kiln deploy"));
        assert!(text(&empty, Wall(0)).ends_with("edge: does not answer\n"));
    }
}
