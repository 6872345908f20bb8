//! One connection of a raw TCP route: an instance is chosen when it begins, and it stays there to its end, whatever is switched
//! meanwhile. It is one request of its instance, in flight for as long as it lives.
//!
//! How it ends is passed on: an end of one side's bytes as such, and a broken side as a reset of the other, so that a cut never
//! looks like a clean end.

use crate::access::Record;
use crate::admission::Turn;
use crate::choose::{self, NoTarget};
use crate::flight::Flight;
use crate::health::{failed, unreachable};
use crate::limits::{
    ATTEMPTS_MAX, CONNECT_TIMEOUT, KEEPALIVE_EVERY, KEEPALIVE_IDLE, KEEPALIVE_PROBES, TUNNEL_IDLE,
};
use crate::meter::Refused;
use crate::proxy_protocol::{self, Ends};
use crate::shared::{Open, Shared};
use crate::splice::{End, Side, carry};
use crate::table::Found;
use crate::target::{Outcome, TargetState};
use http::{HeaderValue, Method, Uri};
use kiln_model::Millis;
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// An instance that took a connection.
struct Reached {
    stream: TcpStream,
    target: Arc<TargetState>,
    idle: Duration,
}

/// Carries one connection from its first byte to its last.
pub(crate) async fn serve(shared: Arc<Shared>, thread: usize, port: u16, mut client: TcpStream, ends: Ends) {
    let _open = Open::new(&shared);
    let mut flight = Flight::new(thread, shared.unrouted.clone());
    flight.raw = true;
    flight.record = shared.access.as_ref().map(|log| Box::new(record(log.clone(), port)));
    watch_over(&client);
    let Some(reached) = reach(&shared, thread, port, ends, &mut flight).await else {
        flight.outcome = Outcome::Failed;
        reset(&client);
        return;
    };
    let Reached { mut stream, target, idle } = reached;
    // What a canary is judged by: how fast it took the connection, not how long people stayed.
    flight.latency = Some(flight.elapsed());
    let carried = carry(&mut client, &mut stream, idle).await;
    (flight.bytes_in, flight.bytes) = (carried.up, carried.down);
    let is_retired = || !shared.table.load().ids.contains(&target.id);
    flight.outcome = match &carried.end {
        // It was ended with its instance, in the middle of what the client was doing.
        End::Clean(Side::Instance) | End::Idle(Some(Side::Instance)) if is_retired() => Outcome::Cut,
        End::Clean(_) | End::Idle(Some(Side::Instance)) => Outcome::Answered,
        End::Broken(Side::Instance, e) => {
            if carried.down == 0 {
                failed(&shared, &target, &e.to_string());
            }
            Outcome::Cut
        }
        End::Broken(Side::Client, _) | End::Idle(_) => Outcome::Abandoned,
    };
    if !matches!(carried.end, End::Clean(_)) {
        reset(&client);
        reset(&stream);
    }
}

/// Connects to an instance of whatever the port leads to at this moment. Nothing was sent yet, so that any other may have it.
async fn reach(
    shared: &Shared,
    thread: usize,
    port: u16,
    ends: Ends,
    flight: &mut Flight,
) -> Option<Reached> {
    let mut tried: Vec<u64> = vec![];
    let mut turn: Option<Turn> = None;
    let mut n_attempts = 0;
    while n_attempts < ATTEMPTS_MAX {
        let table = shared.table.load_full();
        let (pool, route) = match table.find_port(port, choose::random()) {
            Found::Pool(pool, route) => (pool, route),
            Found::Nobody(Some(pool), _) => {
                flight.lost = pool.lost.clone();
                return None;
            }
            Found::Nobody(None, _) | Found::Nothing | Found::NoRoute => return None,
        };
        flight.lost = pool.lost.clone();
        flight.meter = route.meter(pool).cloned();
        let bound = route.policy.in_flight;
        // Who was refused by one had its turn.
        let had_turn = turn.is_some() || !tried.is_empty();
        let chosen = match choose::first(pool, &tried, thread, bound.as_ref(), had_turn) {
            Ok(chosen) => chosen,
            Err(NoTarget::Nobody) => return None,
            Err(NoTarget::Full) => {
                turn = turn.or_else(|| Turn::new(&pool.line, bound?));
                match &turn {
                    Some(turn) if turn.wait().await => continue,
                    _ => {
                        flight.refused = Some(Refused::Shed);
                        return None;
                    }
                }
            }
        };
        let target = chosen.0.clone();
        flight.retarget(chosen);
        turn = None;
        flight.retries = n_attempts;
        n_attempts += 1;
        let header = pool.proxy_protocol.then(|| proxy_protocol::header(ends));
        let time = route.policy.connect.map_or(CONNECT_TIMEOUT, Millis::duration);
        match connect(&target, time, header).await {
            Ok(stream) => {
                target.success();
                watch_over(&stream);
                let idle = route.policy.idle.map_or(TUNNEL_IDLE, Millis::duration);
                return Some(Reached { stream, target, idle });
            }
            Err(e) => {
                unreachable(shared, &target, &e);
                tried.push(target.id);
            }
        }
    }
    None
}

async fn connect(target: &TargetState, time: Duration, header: Option<Vec<u8>>) -> io::Result<TcpStream> {
    let connected = async {
        let mut stream = TcpStream::connect(target.key.address).await?;
        stream.set_nodelay(true)?;
        if let Some(header) = header {
            stream.write_all(&header).await?;
        }
        Ok(stream)
    };
    tokio::time::timeout(time, connected).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Has the kernel find out when a peer is gone without a word: an instance that was removed with its network says none.
fn watch_over(stream: &TcpStream) {
    let alive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_EVERY)
        .with_retries(KEEPALIVE_PROBES);
    let _ = SockRef::from(stream).set_tcp_keepalive(&alive);
}

/// Makes its end a reset.
fn reset(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

fn record(log: Arc<crate::log::Log>, port: u16) -> Record {
    Record {
        log,
        id: crate::proxy::request_id(),
        method: Method::from_bytes(b"TCP").unwrap_or_default(),
        host: HeaderValue::from_str(&format!(":{port}")).ok(),
        uri: Uri::from_static("/"),
        bytes: 0,
        trace: [b'0'; 32],
    }
}
