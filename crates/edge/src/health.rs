//! The health of targets, looked after by one task each on the control thread: active checks, and the way back of
//! what the data path ejected. A probe, never a client's request, finds out whether an ejected target lives again.

use crate::limits::{CHECK_BODY_BYTES_MAX, CONNECT_TIMEOUT};
use crate::proxy_protocol;
use crate::shared::Shared;
use crate::table::Compiled;
use crate::target::TargetState;
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use kiln_model::{CheckKind, Health};
use serde_json::json;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// The shortest pause between two checks of a target.
const EVERY_MIN: Duration = Duration::from_millis(50);

/// The tasks, one per target of the table.
#[derive(Debug, Default)]
pub(crate) struct Watchers(HashMap<u64, (Option<Health>, bool, JoinHandle<()>)>);

impl Watchers {
    /// Makes the tasks those of `table`.
    pub(crate) fn update(&mut self, shared: &Arc<Shared>, table: &Compiled) {
        self.0.retain(|id, (_, _, task)| {
            let keep = table.ids.contains(id);
            if !keep {
                task.abort();
            }
            keep
        });
        for pool in &table.pools {
            for target in &pool.targets {
                match self.0.get(&target.id) {
                    Some((health, header, _)) if (health, *header) == (&pool.health, pool.proxy_protocol) => {
                        continue;
                    }
                    Some((_, _, task)) => task.abort(),
                    None => {}
                }
                let (health, header) = (pool.health.clone(), pool.proxy_protocol);
                let task = tokio::spawn(watch(shared.clone(), target.clone(), health.clone(), header));
                self.0.insert(target.id, (health, header, task));
            }
        }
    }
}

async fn watch(shared: Arc<Shared>, target: Arc<TargetState>, health: Option<Health>, header: bool) {
    let (mut passed, mut failed) = (0, 0);
    loop {
        let out = target.ejected();
        let every = health.as_ref().map(|h| h.every.duration().max(EVERY_MIN));
        match (out, every) {
            (true, every) => {
                let pause = target.probe_pause();
                tokio::time::sleep(every.map_or(pause, |e| e.min(pause))).await;
            }
            (false, Some(every)) => tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = target.ejection.notified() => {}
            },
            (false, None) => {
                target.ejection.notified().await;
                continue;
            }
        }
        let result = match &health {
            Some(health) => check(&target, health, header).await,
            None => connect(target.key.address, header).await.map(drop),
        };
        (passed, failed) = if result.is_ok() { (passed + 1, 0) } else { (0, failed + 1) };
        let instance = &target.key.instance;
        if passed >= health.as_ref().map_or(1, |h| h.healthy_after) && target.readmit() {
            shared.log.event("info", "readmitted", json!({ "instance": instance }));
        }
        if let Err(reason) = result
            && failed >= health.as_ref().map_or(1, |h| h.unhealthy_after)
            && target.eject(&reason)
        {
            shared.log.event("warn", "ejected", json!({ "instance": instance, "reason": reason }));
        }
    }
}

/// `header` tells that the instance expects one of the PROXY protocol.
async fn check(target: &TargetState, health: &Health, header: bool) -> Result<(), String> {
    let attempt = async {
        match &health.check.kind {
            CheckKind::Http { port, path, status, contains, host } => {
                let address = SocketAddr::new(target.key.address.ip(), *port);
                let stream = connect(address, header).await?;
                http_check(stream, address, path, *status, contains.as_deref(), host.as_deref()).await
            }
            CheckKind::Tcp { port } => {
                connect(SocketAddr::new(target.key.address.ip(), *port), header).await.map(drop)
            }
            // Only who looks into the instance could run these. What the edge needs to know is whether it can send.
            CheckKind::File { .. } | CheckKind::Listening { .. } | CheckKind::Command { .. } => {
                connect(target.key.address, header).await.map(drop)
            }
        }
    };
    let timeout = health.check.timeout.duration();
    let result = tokio::time::timeout(timeout, attempt).await;
    result.unwrap_or_else(|_| Err(format!("no answer within {}", health.check.timeout))).map_err(|reason| {
        match &health.check.kind {
            kind @ (CheckKind::Http { .. } | CheckKind::Tcp { .. }) => format!("{kind}: {reason}"),
            _ => reason,
        }
    })
}

/// A connection to a target failed: refused at once, or broken for the last of several times, it is ejected.
pub(crate) fn unreachable(shared: &Shared, target: &TargetState, error: &std::io::Error) {
    let refused = error.kind() == std::io::ErrorKind::ConnectionRefused;
    let out = if refused { target.eject("connection refused") } else { target.failure(&error.to_string()) };
    log_ejection(shared, target, out);
}

/// It broke an exchange, or did not answer.
pub(crate) fn failed(shared: &Shared, target: &TargetState, reason: &str) {
    log_ejection(shared, target, target.failure(reason));
}

fn log_ejection(shared: &Shared, target: &TargetState, out: bool) {
    if out {
        let fields = json!({ "instance": target.key.instance, "reason": target.report(true).reason });
        shared.log.event("warn", "ejected", fields);
    }
}

async fn connect(address: SocketAddr, header: bool) -> Result<TcpStream, String> {
    let connected = async {
        let mut stream = TcpStream::connect(address).await?;
        if header {
            stream.write_all(&proxy_protocol::own_header()).await?;
        }
        Ok::<_, std::io::Error>(stream)
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, connected).await {
        Ok(connected) => connected.map_err(|e| e.to_string()),
        Err(_) => Err(format!("no connection within {} s", CONNECT_TIMEOUT.as_secs())),
    }
}

async fn http_check(
    stream: TcpStream,
    address: SocketAddr,
    path: &str,
    status: Option<u16>,
    contains: Option<&str>,
    host: Option<&str>,
) -> Result<(), String> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path)
        .header(header::HOST, host.map_or_else(|| address.to_string(), str::to_owned))
        .header(header::CONNECTION, "close")
        .header(header::USER_AGENT, "kiln-edge")
        .body(Empty::<Bytes>::new())
        .map_err(|e| e.to_string())?;
    let answered = async {
        let answer = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let got = answer.status().as_u16();
        if !status.map_or((200..400).contains(&got), |s| s == got) {
            return Err(format!("status {got}"));
        }
        let Some(text) = contains else { return Ok(()) };
        let body = Limited::new(answer.into_body(), CHECK_BODY_BYTES_MAX).collect().await;
        let body = body.map_err(|e| e.to_string())?.to_bytes();
        let found = text.is_empty() || body.windows(text.len()).any(|w| w == text.as_bytes());
        if found { Ok(()) } else { Err(format!("the body does not contain `{text}`")) }
    };
    let result = answered.await;
    connection.abort();
    result
}
