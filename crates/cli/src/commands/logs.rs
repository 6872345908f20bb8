//! `kiln logs`: what instances printed, while they live and after they are gone.

use crate::output::{now, parse_since, timestamp};
use crate::watch::Patience;
use crate::{Context, Failure};
use clap::Args;
use kiln_api::client::ClientError;
use kiln_api::logs::{LogLine, LogQuery};
use kiln_api::{Client, Code, Update};
use kiln_model::{EnvName, InstanceId, ReleaseNumber, ServiceName, Wall};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::str::FromStr;

/// Lines that are shown if nothing else is asked for.
const LINES_DEFAULT: &str = "1000";

/// Options of `kiln logs`.
#[derive(Debug, Args)]
#[command(
    after_help = "Filters that are given must all match. A line reads TIME INSTANCE | TEXT. With `--json` the lines are in one document; \
with `--follow` as well, each line is a document of its own.

Examples:
  kiln logs web --follow
  kiln logs --release 3 --grep error
  kiln logs --since 10m --env staging
  kiln logs --instance web-17 --lines all"
)]
pub struct LogsArgs {
    /// Only this service
    #[arg(value_name = "SERVICE")]
    service: Option<ServiceName>,
    /// Only this environment
    #[arg(long, value_name = "ENV")]
    env: Option<EnvName>,
    /// Only this release
    #[arg(long, value_name = "N")]
    release: Option<ReleaseNumber>,
    /// Only this instance, alive or gone
    #[arg(long, value_name = "ID")]
    instance: Option<InstanceId>,
    /// Only commits that start with this
    #[arg(long, value_name = "COMMIT", value_parser = commit_digits)]
    commit: Option<String>,
    /// Only from then on: a span such as `10m` or a time such as `2026-11-24T09:15:03Z`
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Wall>,
    /// Only lines that contain this text
    #[arg(long, value_name = "TEXT")]
    grep: Option<String>,
    /// Only the newest so many lines, or `all`
    #[arg(short = 'n', long, value_name = "N", default_value = LINES_DEFAULT)]
    lines: Lines,
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
}

/// A number of lines; none for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lines(Option<usize>);

impl FromStr for Lines {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self(None));
        }
        text.parse().map(|n| Self(Some(n))).map_err(|_| "expected a number or `all`".to_owned())
    }
}

fn since(text: &str) -> Result<Wall, String> {
    parse_since(text, now())
}

fn commit_digits(text: &str) -> Result<String, String> {
    let legal = (4..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    legal.then(|| text.to_ascii_lowercase()).ok_or_else(|| "expected 4 to 64 hexadecimal digits".to_owned())
}

pub(crate) async fn run(context: &Context<'_>, arguments: LogsArgs) -> Result<(), Failure> {
    let query = LogQuery {
        project: context.project_if_any()?,
        env: arguments.env,
        service: arguments.service,
        release: arguments.release,
        instance: arguments.instance,
        commit: arguments.commit,
        since: arguments.since,
        grep: arguments.grep,
        lines: arguments.lines.0,
        follow: arguments.follow,
    };
    let client = context.client()?;
    if query.follow { follow(context, &client, query).await } else { show(context, &client, &query).await }
}

/// All lines that there are. As text they are printed as they come, so that any number of them fits.
async fn show(context: &Context<'_>, client: &Client, query: &LogQuery) -> Result<(), Failure> {
    let mut updates = client.logs(query).await?;
    let mut lines = vec![];
    let terminal = std::io::stdout().is_terminal();
    while let Some(update) = updates.next().await? {
        match update {
            Update::Item(line) if context.out().is_json() => lines.push(line),
            Update::Item(line) => context.out().text(&text(&line, terminal))?,
            Update::Progress(text) => context.out().note(&text),
            Update::Alive | Update::Error(_) => {}
        }
    }
    if context.out().is_json() {
        return context.out().answer(&serde_json::json!({ "lines": lines }), String::new);
    }
    Ok(())
}

/// Lines as they come, over restarts of the server.
async fn follow(context: &Context<'_>, client: &Client, mut query: LogQuery) -> Result<(), Failure> {
    // The first contact: a server that does not run is not waited for.
    let mut updates = client.logs(&query).await?;
    let mut seen = Seen::default();
    let mut patience = Patience::default();
    let terminal = std::io::stdout().is_terminal();
    loop {
        let error = loop {
            match updates.next().await {
                Ok(Some(Update::Item(line))) => {
                    patience.reset();
                    if seen.is_new(&line) {
                        context.out().text(&followed(&line, context.out().is_json(), terminal)?)?;
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => break lost(client),
                Err(error) => break error,
            }
        };
        patience.wait(error, "the logs are kept").await?;
        if let Some(at) = seen.last {
            query.since = Some(at);
            query.lines = None;
        }
        updates = loop {
            match client.logs(&query).await {
                Ok(updates) => break updates,
                Err(error) => patience.wait(error, "the logs are kept").await?,
            }
        };
    }
}

fn lost(client: &Client) -> ClientError {
    let source = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
    ClientError::Lost { address: client.address().clone(), source: source.into() }
}

/// What was printed already: after a new connection some lines come again.
#[derive(Default)]
struct Seen {
    last: Option<Wall>,
    sequences: BTreeMap<InstanceId, u64>,
}

impl Seen {
    fn is_new(&mut self, line: &LogLine) -> bool {
        let before = self.sequences.get(&line.instance);
        if before.is_some_and(|before| *before >= line.sequence) {
            return false;
        }
        self.sequences.insert(line.instance.clone(), line.sequence);
        // The lines of several instances are not in order of time to the millisecond.
        self.last = self.last.max(Some(Wall(line.at.0.saturating_sub(1000))));
        true
    }
}

fn followed(line: &LogLine, json: bool, terminal: bool) -> Result<String, Failure> {
    if !json {
        return Ok(text(line, terminal));
    }
    let json = serde_json::to_string(line);
    let json =
        json.map_err(|e| Failure::new(Code::Internal, format!("a line could not be written as JSON: {e}")))?;
    Ok(format!("{json}\n"))
}

/// `TIME INSTANCE | TEXT`. A terminal obeys control characters, and instances are not trusted with it.
fn text(line: &LogLine, terminal: bool) -> String {
    let shown: String = match terminal {
        true => line.line.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect(),
        false => line.line.clone(),
    };
    format!("{} {} | {shown}\n", timestamp(line.at), line.instance)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_model::Digest;

    fn line(instance: &str, sequence: u64, text: &str) -> LogLine {
        LogLine {
            at: Wall(1_700_000_000_120),
            env: "shop/production".to_owned().try_into().unwrap(),
            service: ServiceName::new("web").unwrap(),
            release: ReleaseNumber(1),
            instance: instance.parse().unwrap(),
            image: Digest::of(b""),
            commit: "a".repeat(40).parse().unwrap(),
            stream: "out".into(),
            sequence,
            line: text.into(),
        }
    }

    #[test]
    fn a_line_reads_well_and_cannot_steer_a_terminal() {
        let hostile = line("web-7", 1, "a\tb\x1b[2J");
        assert_eq!(text(&hostile, true), "2023-11-14T22:13:20.120Z web-7 | a\tb\u{fffd}[2J\n");
        assert_eq!(text(&hostile, false), "2023-11-14T22:13:20.120Z web-7 | a\tb\x1b[2J\n");
        assert_eq!(followed(&hostile, true, true).unwrap().lines().count(), 1);
    }

    #[test]
    fn after_a_new_connection_no_line_comes_twice() {
        let mut seen = Seen::default();
        assert!(seen.is_new(&line("web-7", 1, "")));
        assert!(seen.is_new(&line("web-8", 1, "")));
        assert!(!seen.is_new(&line("web-7", 1, "")));
        assert!(seen.is_new(&line("web-7", 2, "")));
    }

    #[test]
    fn numbers_and_commits_are_checked() {
        assert_eq!("all".parse(), Ok(Lines(None)));
        assert_eq!("5".parse(), Ok(Lines(Some(5))));
        assert!("-5".parse::<Lines>().is_err() && "".parse::<Lines>().is_err());
        assert_eq!(commit_digits("ABCD"), Ok("abcd".into()));
        assert!(commit_digits("abc").is_err() && commit_digits("main").is_err());
    }
}
