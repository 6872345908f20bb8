//! `kiln logs`: what instances printed, and what comes.

use crate::Context;
use crate::failure::Failure;
use crate::handlers::Query;
use crate::named;
use crate::stream::{Lines, stopped, stream};
use axum::extract::State;
use axum::response::Response;
use kiln_api::Code;
use kiln_api::error::chain;
use kiln_api::logs::{LogLine, LogQuery};
use kiln_api::update::Update;
use kiln_logs::{Cursor, Filter, Line};
use kiln_model::InstanceId;
use std::ops::ControlFlow;
use std::time::Duration;

/// Time between two looks for new lines.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Lines that wait for a slow client.
const BACKLOG: usize = 256;

pub(crate) async fn logs(State(context): State<Context>, Query(query): Query<LogQuery>) -> Response {
    stream(move |lines: Lines<LogLine>| async move {
        let has_lines = |id: &InstanceId| context.workshop.logs().holds(id);
        named::lines(&*context.handle.snapshot()?, &query, has_lines)?;
        let follow = query.follow;
        let filter = filter(query);
        let (sender, mut receiver) = tokio::sync::mpsc::channel(BACKLOG);
        let mut stopping = context.handle.stopping();
        let reading = tokio::task::spawn_blocking(move || {
            let folder = context.workshop.logs();
            if !follow {
                return folder.read(&filter, &mut |line| match sender.blocking_send(line.clone()) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                });
            }
            let mut cursor = Cursor::new(folder.clone());
            let mut filter = filter;
            while !sender.is_closed() {
                for line in cursor.next_lines(&filter)? {
                    if sender.blocking_send(line).is_err() {
                        return Ok(());
                    }
                }
                // Only the first look is limited to the newest lines.
                filter.last = None;
                std::thread::sleep(LOOK_EVERY);
            }
            Ok(())
        });
        loop {
            let line = tokio::select! {
                line = receiver.recv() => line,
                () = stopped(&mut stopping) => {
                    return Err(Failure::new(Code::Unavailable, "the server stops"));
                }
                () = lines.closed() => return Ok(()),
            };
            let Some(line) = line else { break };
            if lines.send(Update::Item(wire(line))).await.is_err() {
                return Ok(());
            }
        }
        reading.await?.map_err(|error| Failure::new(Code::Store, chain(&error)))
    })
}

fn filter(query: LogQuery) -> Filter {
    Filter {
        project: query.project,
        env: query.env,
        service: query.service,
        release: query.release,
        instance: query.instance,
        commit: query.commit,
        since: query.since,
        grep: query.grep,
        last: query.lines,
    }
}

fn wire(line: Line) -> LogLine {
    LogLine {
        at: line.at,
        env: line.env,
        service: line.service,
        release: line.release,
        instance: line.instance,
        image: line.image,
        commit: line.commit,
        stream: line.stream,
        sequence: line.sequence,
        line: line.line,
    }
}
