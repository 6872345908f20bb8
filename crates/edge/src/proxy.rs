//! One request: the gate, the table, a target, the attempts, the answer.

use crate::access::Record;
use crate::acme;
use crate::admission::Turn;
use crate::alarm::Alarm;
use crate::certificates::Certificate;
use crate::choose::{self, NoTarget};
use crate::flight::{AnswerBody, Flight};
use crate::gate::{self, Origin};
use crate::health;
use crate::inside::Entrance;
use crate::limits::{
    ATTEMPTS_MAX, BODY_IDLE, CONNECT_TIMEOUT, IDLE_MAX, IDLE_MAX_UNSAFE, RETRIES_MAX, TUNNEL_IDLE,
};
use crate::meter::Refused;
use crate::mux;
use crate::pool::{self, Sender};
use crate::proxy_protocol::{self, Ends};
use crate::replay::{Again, Kept};
use crate::rules::{body_timeout, too_large};
use crate::shared::{Open, Phase, Shared};
use crate::sticky::Place;
use crate::table::{Found, Route, Upstream};
use crate::tap::Notes;
use crate::target::{Outcome, TargetState};
use crate::trace::{self, TraceId};
use crate::upload::{Progress, RequestBody, Streamed};
use crate::watched::{Moved, Watched};
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use kiln_model::{Millis, Protocol};
use std::error::Error;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};

static RELEASE: HeaderName = HeaderName::from_static("x-kiln-release");
static INSTANCE: HeaderName = HeaderName::from_static("x-kiln-instance");

/// One client connection.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) shared: Arc<Shared>,
    pub(crate) thread: usize,
    pub(crate) ends: Ends,
    pub(crate) forwarded_for: HeaderValue,
    pub(crate) entrance: Entrance,
    pub(crate) notes: Arc<Notes>,
    /// Whether it came over TLS.
    pub(crate) secure: bool,
    /// The certificate that the client was shown for the host that it named: it must not ask for others.
    pub(crate) shown: Option<Arc<Certificate>>,
}

/// Why no instance answered.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) reason: String,
    /// Seconds after which it makes sense to ask again.
    pub(crate) retry: Option<u64>,
}

/// What came of an exchange with one instance.
enum Exchange {
    Answer(Response<Incoming>, Sender),
    /// Nothing was written: anybody may have it.
    Unsent(Box<Request<RequestBody>>),
    /// The instance said that it has not begun it.
    Refused,
    /// It broke after something was written.
    Broken(String),
    Timeout,
}

/// A request on its way: what of it is needed for another attempt.
pub(crate) struct Message {
    pub(crate) request: Option<Request<RequestBody>>,
    /// Head of a request that may be sent twice.
    spare: Option<(Method, Uri, HeaderMap)>,
    /// Gives its body out again, if it has one and that was kept.
    again: Option<Again>,
    pub(crate) progress: Arc<Progress>,
    idempotent: bool,
    upgrade: Option<OnUpgrade>,
    /// It came by HTTP/1.0.
    old: bool,
    pub(crate) trace: TraceId,
}

impl Client {
    /// Answers one request. Never fails: what goes wrong is an answer.
    pub(crate) async fn handle(&self, mut request: Request<Incoming>) -> Response<AnswerBody> {
        let id = request_id();
        gate::name_host(&mut request);
        let is_h2 = request.version() == Version::HTTP_2;
        let mut answer = self.route(request, &id).await;
        if is_h2 {
            // There it says nothing: a stream ends by itself, a connection by GOAWAY.
            answer.headers_mut().remove(header::CONNECTION);
        } else if self.shared.phase() != Phase::Open && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        answer.headers_mut().insert(gate::REQUEST_ID.clone(), id);
        answer
    }

    async fn route(&self, request: Request<Incoming>, id: &HeaderValue) -> Response<AnswerBody> {
        let mut flight = Flight::new(self.thread, self.shared.unrouted.clone());
        if let Some(log) = &self.shared.access {
            flight.record = Some(Box::new(Record {
                log: log.clone(),
                id: id.clone(),
                method: request.method().clone(),
                host: request.headers().get(header::HOST).cloned(),
                uri: request.uri().clone(),
                bytes: 0,
                trace: [b'0'; 32],
            }));
        }
        if let Err(refusal) = gate::check(&request, &self.notes) {
            let failure = Failure {
                status: refusal.status,
                code: "refused",
                reason: format!("refused: {}", refusal.reason),
                retry: None,
            };
            let mut answer = edge_answer(flight, failure);
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            return answer;
        }
        let proof = || acme::proof(&self.shared.dir, request.uri().path());
        if self.entrance == Entrance::Outside
            && let Some(proof) = proof()
        {
            flight.outcome = Outcome::Answered;
            flight.status = StatusCode::OK.as_u16();
            return Response::new(AnswerBody::edge(proof, Some(flight)));
        }
        choose::earn();
        let host = gate::host(request.headers().get(header::HOST));
        if self.shown.as_ref().is_some_and(|certificate| !certificate.covers(&host)) {
            let reason = "this connection was made for another host".to_owned();
            let status = StatusCode::MISDIRECTED_REQUEST;
            let failure = Failure { status, code: "misdirected", reason, retry: None };
            return unread_answer(flight, failure, request.body().is_end_stream());
        }
        let mut hsts = None;
        let mut answer = self.find_and_send(request, id, flight, &mut hsts).await;
        if let Some(hsts) = hsts {
            answer.headers_mut().insert(header::STRICT_TRANSPORT_SECURITY, hsts);
        }
        answer
    }

    /// Sends the client to the same URL in `https`.
    fn redirect(&self, flight: Flight, host: &str, uri: &Uri, bodyless: bool) -> Response<AnswerBody> {
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let port = self.shared.https_port.map(|port| format!(":{port}")).unwrap_or_default();
        let location = HeaderValue::from_str(&format!("https://{host}{port}{path}"));
        let Some(location) = location.ok().filter(|_| !host.is_empty()) else {
            let reason = "this is only served over HTTPS, and the request names no host".to_owned();
            let status = StatusCode::BAD_REQUEST;
            let failure = Failure { status, code: "https-only", reason, retry: None };
            return unread_answer(flight, failure, bodyless);
        };
        let reason = "this is only served over HTTPS".to_owned();
        let status = StatusCode::PERMANENT_REDIRECT;
        let failure = Failure { status, code: "https-only", reason, retry: None };
        let mut answer = unread_answer(flight, failure, bodyless);
        answer.headers_mut().insert(header::LOCATION, location);
        answer
    }

    /// Finds out whose it is and whether it may come in, waits for its turn if need be, and sends it.
    async fn find_and_send(
        &self,
        request: Request<Incoming>,
        id: &HeaderValue,
        mut flight: Flight,
        hsts: &mut Option<HeaderValue>,
    ) -> Response<AnswerBody> {
        let bodyless = request.body().is_end_stream();
        let (host, uri) = (request.headers().get(header::HOST).cloned(), request.uri().clone());
        let (mut request, mut message) = (Some(request), None);
        let (mut sticky, mut turn) = (None, None);
        // Once for most. After every wait anew: the table may have been switched, and what left it may be gone.
        loop {
            let table = self.shared.table.load_full();
            let place = |route: &Route, total| {
                let headers = request.as_ref().map(Request::headers);
                self.place(route, total, headers, &mut sticky)
            };
            let name = gate::host(host.as_ref());
            let found = table.find(self.entrance, &name, uri.path(), place);
            if !self.secure && found.https().is_some_and(|https| https.only) {
                return self.redirect(flight, &name, &uri, bodyless);
            }
            *hsts = found.https().filter(|_| self.secure).and_then(|https| https.hsts.clone());
            let (pool, route) = match found {
                Found::Pool(pool, route) => (pool, route),
                nobody => return self.nobody(&nobody, flight, bodyless),
            };
            flight.lost = pool.lost.clone();
            flight.meter = route.meter(pool).cloned();
            if let Some(request) = request.take() {
                let mut accepted = match self.accept((pool, route), request, id, &mut flight) {
                    Ok(accepted) => accepted,
                    Err(refusal) => return unread_answer(flight, refusal, bodyless),
                };
                let held = self.hold(route, &mut accepted).await;
                message = Some(accepted);
                match held {
                    Ok(false) => {}
                    Ok(true) => continue,
                    Err(refusal) => return unread_answer(flight, refusal, false),
                }
            }
            let bound = route.policy.in_flight;
            let first = match choose::first(pool, &[], self.thread, bound.as_ref(), turn.is_some()) {
                Ok(first) => first,
                Err(NoTarget::Nobody) => return unread_answer(flight, no_instance(pool), bodyless),
                Err(NoTarget::Full) => {
                    turn = turn.or_else(|| Turn::new(&pool.line, bound?));
                    match &turn {
                        Some(turn) if Box::pin(turn.wait()).await => continue,
                        _ => {
                            flight.refused = Some(Refused::Shed);
                            return unread_answer(flight, overloaded(pool), bodyless);
                        }
                    }
                }
            };
            flight.retarget(first);
            drop(turn);
            let Some(message) = message else { return unread_answer(flight, no_instance(pool), bodyless) };
            let progress = message.progress.clone();
            let mut answer = self.send(pool, route, message, flight).await;
            if !progress.ended.load(Ordering::Relaxed) {
                close(&mut answer);
            }
            if let Some(cookie) = sticky.filter(|place| place.is_new).and_then(Place::cookie) {
                answer.headers_mut().append(header::SET_COOKIE, cookie);
            }
            return answer;
        }
    }

    /// Where a request stands among the shares of its route.
    fn place(
        &self,
        route: &Route,
        total: u64,
        headers: Option<&HeaderMap>,
        sticky: &mut Option<Place>,
    ) -> u64 {
        if !route.policy.sticky || !route.is_shared() {
            return choose::random();
        }
        let place = sticky.or_else(|| headers.map(Place::of));
        *sticky = place;
        place.map_or_else(choose::random, |place| place.among(total))
    }

    /// The answer to a request that no pool gets.
    fn nobody(&self, found: &Found<'_>, mut flight: Flight, bodyless: bool) -> Response<AnswerBody> {
        let failure = match found {
            Found::Nobody(Some(pool), _) => {
                flight.lost = pool.lost.clone();
                no_instance(pool)
            }
            Found::NoRoute => {
                let reason = match self.entrance {
                    Entrance::Outside => "no route matches the host and path",
                    Entrance::Inside(_) => "no service of this environment has this name and a port",
                };
                Failure {
                    status: StatusCode::NOT_FOUND,
                    code: "no-route",
                    reason: reason.to_owned(),
                    retry: None,
                }
            }
            _ => unavailable("no-table", "no route exists yet".to_owned()),
        };
        unread_answer(flight, failure, bodyless)
    }

    pub(crate) fn message(
        &self,
        mut request: Request<Incoming>,
        id: &HeaderValue,
        protocol: Protocol,
        body_max: u64,
    ) -> Message {
        let to = gate::upgrade(&request);
        let upgrade = to.is_some().then(|| hyper::upgrade::on(&mut request));
        let old = request.version() == Version::HTTP_10;
        let (mut parts, body) = request.into_parts();
        let origin = Origin { peer: &self.forwarded_for, secure: self.secure, id };
        gate::outward(&mut parts, origin, to);
        let trace = trace::continue_or_begin(&mut parts.headers);
        let bodyless = body.is_end_stream();
        let safe =
            [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE].contains(&parts.method);
        let idempotent = safe && bodyless && upgrade.is_none();
        let may_be_refused = protocol == Protocol::H2c;
        let spare = idempotent || may_be_refused;
        let spare = spare.then(|| (parts.method.clone(), parts.uri.clone(), parts.headers.clone()));
        let progress = Arc::new(Progress::new(bodyless, body_max));
        let (body, again) = match (bodyless, may_be_refused) {
            (true, _) => (RequestBody::Empty, None),
            (false, false) => (RequestBody::Once(Streamed::new(body, progress.clone())), None),
            (false, true) => {
                let (body, again) = Kept::keep(body, progress.clone());
                (body, Some(again))
            }
        };
        let request = Some(Request::from_parts(parts, body));
        Message { request, spare, again, progress, idempotent, upgrade, old, trace }
    }

    async fn send(
        &self,
        pool: &Upstream,
        route: &Route,
        mut message: Box<Message>,
        mut flight: Flight,
    ) -> Response<AnswerBody> {
        let mut tried: Vec<u64> = vec![];
        let mut retries = 0;
        let mut last = no_instance(pool);
        let mut again: Option<Arc<TargetState>> = None;
        let until = route.policy.total.map(|total| flight.start() + total.duration());
        for attempt in 0..ATTEMPTS_MAX {
            let fresh_only = again.is_some();
            let current = if attempt == 0 { flight.target() } else { again.take() };
            let target = match current {
                Some(target) => target,
                None => {
                    let bound = route.policy.in_flight.as_ref();
                    let Ok(next) = choose::admitted(pool, &tried, self.thread, bound) else { break };
                    let target = next.0.clone();
                    flight.retarget(next);
                    target
                }
            };
            flight.retries = attempt;
            let kept = self.kept(pool, &target, &message, fresh_only).map(|sender| Ok((sender, true)));
            let reached = match kept {
                Some(kept) => kept,
                // Seldom, and large.
                None => Box::pin(self.reach(pool, route, &target, fresh_only)).await,
            };
            let (sender, reused) = match reached {
                Ok(reached) => reached,
                Err(e) => {
                    last = self.unreachable(pool, &target, &e);
                    tried.push(target.id);
                    continue;
                }
            };
            let request = match message.request.take() {
                Some(request) => Some(request),
                None => Box::pin(message.once_more()).await,
            };
            let Some(mut request) = request else { break };
            if !request.headers().contains_key(header::HOST) {
                let host = HeaderValue::from_str(&target.key.address.to_string());
                request.headers_mut().extend(host.ok().map(|h| (header::HOST, h)));
            }
            if pool.protocol == Protocol::H2c {
                gate::as_h2(&mut request, target.key.address);
            }
            match self.exchange(sender, request, &message.progress, self.times(route, until)).await {
                Exchange::Answer(answer, sender) => {
                    target.success();
                    return self.answer(answer, sender, &target, message, flight, (route, until));
                }
                Exchange::Unsent(request) => {
                    message.request = Some(*request);
                    again = Some(target);
                }
                Exchange::Timeout => return self.late(pool, &target, &message, flight, until),
                Exchange::Refused => {
                    let reason = format!("{} takes no requests", name(pool, &target));
                    let status = StatusCode::BAD_GATEWAY;
                    last = Failure { status, code: "refused-stream", reason, retry: None };
                    if retries == RETRIES_MAX || !choose::spend() {
                        break;
                    }
                    retries += 1;
                    tried.push(target.id);
                    let other = choose::target(pool, &tried, self.thread);
                    // It may only be this connection that takes no more.
                    again = other.is_none().then_some(target);
                }
                Exchange::Broken(_) if message.progress.too_large.load(Ordering::Relaxed) => {
                    return edge_answer(flight, too_large(route));
                }
                Exchange::Broken(_) if message.progress.failed.load(Ordering::Relaxed) => {
                    return abandoned(flight);
                }
                Exchange::Broken(reason) => {
                    // The end of an idle connection says nothing about the instance.
                    if !reused {
                        health::failed(&self.shared, &target, &reason);
                    }
                    let text = format!("{} closed the connection before it answered", name(pool, &target));
                    last =
                        Failure { status: StatusCode::BAD_GATEWAY, code: "reset", reason: text, retry: None };
                    if !message.idempotent || retries == RETRIES_MAX || !choose::spend() {
                        break;
                    }
                    retries += 1;
                    tried.push(target.id);
                    let other = choose::target(pool, &tried, self.thread);
                    again = other.is_none().then_some(target).filter(|_| reused);
                }
            }
        }
        edge_answer(flight, last)
    }

    /// How long the head of an answer may take, and when the whole has to be over.
    fn times(&self, route: &Route, until: Option<Instant>) -> (Duration, Option<Instant>) {
        (route.policy.answer.map_or(self.shared.answer_timeout, Millis::duration), until)
    }

    /// The answer to a request whose time is up.
    fn late(
        &self,
        pool: &Upstream,
        target: &TargetState,
        message: &Message,
        flight: Flight,
        until: Option<Instant>,
    ) -> Response<AnswerBody> {
        if message.progress.starved.load(Ordering::Relaxed) {
            return edge_answer(flight, body_timeout());
        }
        let (code, reason) = if until.is_some_and(|until| until <= Instant::now()) {
            ("total-timeout", format!("{} did not end its answer in time", name(pool, target)))
        } else {
            health::failed(&self.shared, target, "it does not answer in time");
            ("timeout", format!("{} does not answer in time", name(pool, target)))
        };
        let status = StatusCode::GATEWAY_TIMEOUT;
        edge_answer(flight, Failure { status, code, reason, retry: None })
    }

    /// Sends a request over a connection and waits for the head of the answer. Time counts while the body of the
    /// request does not move.
    async fn exchange(
        &self,
        mut sender: Sender,
        request: Request<RequestBody>,
        progress: &Progress,
        (timeout, until): (Duration, Option<Instant>),
    ) -> Exchange {
        let left =
            || until.map_or(timeout, |until| timeout.min(until.saturating_duration_since(Instant::now())));
        let alarm = sender.alarm.clone();
        alarm.set(left());
        let mut moved = progress.moves();
        let sent = {
            let mut sending = pin!(sender.connection.try_send_request(request));
            poll_fn(|cx| {
                if let Poll::Ready(sent) = sending.as_mut().poll(cx) {
                    return Poll::Ready(Some(sent));
                }
                while alarm.poll(cx).is_ready() {
                    let now = progress.moves();
                    let left = left();
                    if now == moved || left.is_zero() {
                        return Poll::Ready(None);
                    }
                    moved = now;
                    alarm.set(left);
                }
                Poll::Pending
            })
            .await
        };
        alarm.clear();
        let Some(sent) = sent else { return Exchange::Timeout };
        match sent {
            Ok(answer) => Exchange::Answer(answer, sender),
            Err(mut e) => match e.take_message() {
                Some(request) => Exchange::Unsent(Box::new(request)),
                None => {
                    let error = e.into_error();
                    if is_unbegun(&error) { Exchange::Refused } else { Exchange::Broken(error.to_string()) }
                }
            },
        }
    }

    fn answer(
        &self,
        mut answer: Response<Incoming>,
        sender: Sender,
        target: &Arc<TargetState>,
        message: Box<Message>,
        mut flight: Flight,
        (route, until): (&Route, Option<Instant>),
    ) -> Response<AnswerBody> {
        let switching = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
        flight.status = answer.status().as_u16();
        let upstream = switching.then(|| hyper::upgrade::on(&mut answer));
        let (mut parts, body) = answer.into_parts();
        gate::inward(&mut parts, switching);
        parts.extensions.clear();
        let (release, instance) = &target.marks;
        parts.headers.insert(RELEASE.clone(), release.clone());
        parts.headers.insert(INSTANCE.clone(), instance.clone());
        match (upstream, message.upgrade) {
            (Some(upstream), Some(client)) => {
                self.notes.raw.store(true, Ordering::Relaxed);
                let idle = route.policy.idle.map_or(TUNNEL_IDLE, Millis::duration);
                tokio::spawn(tunnel(client, upstream, flight, idle, Open::new(&self.shared)));
                Response::from_parts(parts, AnswerBody::edge(Bytes::new(), None))
            }
            (Some(_), None) => {
                let reason = format!("instance `{}` switched protocols unasked", target.key.instance);
                edge_answer(
                    flight,
                    Failure { status: StatusCode::BAD_GATEWAY, code: "protocol", reason, retry: None },
                )
            }
            (None, _) => {
                let idle = route.policy.idle.map_or(BODY_IDLE, Millis::duration);
                let until_close =
                    (message.old && body.size_hint().exact().is_none()).then(|| self.notes.clone());
                Response::from_parts(
                    parts,
                    AnswerBody::instance(body, flight, (target.id, sender), until_close, (idle, until)),
                )
            }
        }
    }

    fn unreachable(&self, pool: &Upstream, target: &TargetState, error: &std::io::Error) -> Failure {
        let was_out = target.ejected();
        health::unreachable(&self.shared, target, error);
        let status = if was_out { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::BAD_GATEWAY };
        let retry = was_out.then_some(1);
        Failure {
            status,
            code: "connect",
            reason: format!("{} cannot be reached", name(pool, target)),
            retry,
        }
    }

    /// A connection that has carried other requests. What must not be sent twice gets a recently used one: an older one may be
    /// closing at this moment.
    fn kept(
        &self,
        pool: &Upstream,
        target: &TargetState,
        message: &Message,
        fresh_only: bool,
    ) -> Option<Sender> {
        if target.key.protocol == Protocol::H2c
            || fresh_only
            || message.upgrade.is_some()
            || pool.proxy_protocol
        {
            return None;
        }
        pool::get(target.id, if message.idempotent { IDLE_MAX } else { IDLE_MAX_UNSAFE })
    }

    /// A new connection, or a stream on one of HTTP/2, and whether that has carried others.
    async fn reach(
        &self,
        pool: &Upstream,
        route: &Route,
        target: &TargetState,
        fresh_only: bool,
    ) -> std::io::Result<(Sender, bool)> {
        let time = route.policy.connect.map_or(CONNECT_TIMEOUT, Millis::duration);
        if target.key.protocol == Protocol::H2c {
            return mux::reach(target.id, target.key.address, time, fresh_only).await;
        }
        let header = pool.proxy_protocol.then(|| proxy_protocol::header(self.ends));
        Ok((pool::connect(target.key.address, time, header).await?, false))
    }
}

/// Whether an instance said of a stream that it has not begun it (RFC 9113, section 8.7): by refusing it, or by a GOAWAY that names
/// an earlier one as its last.
fn is_unbegun(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    cause.is_some_and(|e| e.is_remote() && (e.is_go_away() || e.reason() == Some(h2::Reason::REFUSED_STREAM)))
}

impl Message {
    /// The request for another attempt; none if it cannot be had again.
    async fn once_more(&mut self) -> Option<Request<RequestBody>> {
        let mut request = again_of(self.spare.as_ref()?);
        if let Some(again) = &self.again {
            *request.body_mut() = again.body().await?;
        }
        Some(request)
    }
}

fn name(pool: &Upstream, target: &TargetState) -> String {
    format!("service `{}` of `{}`: instance `{}`", pool.service, pool.env, target.key.instance)
}

fn no_instance(pool: &Upstream) -> Failure {
    let reason = format!("service `{}` of `{}`: no instance is ready", pool.service, pool.env);
    unavailable("no-instance", reason)
}

fn overloaded(pool: &Upstream) -> Failure {
    let reason =
        format!("service `{}` of `{}`: every instance has as much as it may", pool.service, pool.env);
    unavailable("overloaded", reason)
}

fn unavailable(code: &'static str, reason: String) -> Failure {
    Failure { status: StatusCode::SERVICE_UNAVAILABLE, code, reason, retry: Some(1) }
}

fn again_of((method, uri, headers): &(Method, Uri, HeaderMap)) -> Request<RequestBody> {
    let mut request = Request::new(RequestBody::Empty);
    *request.method_mut() = method.clone();
    *request.uri_mut() = uri.clone();
    *request.headers_mut() = headers.clone();
    request
}

fn edge_answer(mut flight: Flight, failure: Failure) -> Response<AnswerBody> {
    let by_edge = [StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT];
    flight.outcome = if by_edge.contains(&failure.status) { Outcome::Failed } else { Outcome::Answered };
    flight.status = failure.status.as_u16();
    let mut answer =
        Response::new(AnswerBody::edge(Bytes::from(format!("{}\n", failure.reason)), Some(flight)));
    *answer.status_mut() = failure.status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(gate::ERROR.clone(), HeaderValue::from_static(failure.code));
    if let Some(seconds) = failure.retry {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    answer
}

/// An answer to a request that was not sent to anybody.
fn unread_answer(flight: Flight, failure: Failure, bodyless: bool) -> Response<AnswerBody> {
    let mut answer = edge_answer(flight, failure);
    if !bodyless {
        close(&mut answer);
    }
    answer
}

/// hyper ends a connection whose request was not read to its end: the client must not send another one.
fn close(answer: &mut Response<AnswerBody>) {
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
}

/// The client broke off its own body; nobody reads this.
fn abandoned(mut flight: Flight) -> Response<AnswerBody> {
    flight.outcome = Outcome::Abandoned;
    flight.status = StatusCode::BAD_REQUEST.as_u16();
    let mut answer = Response::new(AnswerBody::edge(Bytes::new(), Some(flight)));
    *answer.status_mut() = StatusCode::BAD_REQUEST;
    answer
}

/// Carries an upgraded connection until either side ends it, or nothing came for `idle`. It is in flight for as long.
async fn tunnel(client: OnUpgrade, upstream: OnUpgrade, mut flight: Flight, idle: Duration, _open: Open) {
    if let (Ok(client), Ok(upstream)) = tokio::join!(client, upstream) {
        let moved = Arc::new(Moved::default());
        let mut client = Watched { io: TokioIo::new(client), moved: moved.clone() };
        let mut upstream = TokioIo::new(upstream);
        let alarm = Alarm::new();
        alarm.set(idle);
        let mut seen = (0, 0);
        let mut copy = pin!(tokio::io::copy_bidirectional(&mut client, &mut upstream));
        let ended = poll_fn(|cx| {
            if copy.as_mut().poll(cx).is_ready() {
                return Poll::Ready(true);
            }
            let now = moved.now();
            if now != seen {
                seen = now;
                alarm.set(idle);
            }
            alarm.poll(cx).map(|()| false)
        });
        flight.outcome = if ended.await { Outcome::Answered } else { Outcome::Abandoned };
        (flight.bytes_in, flight.bytes) = moved.now();
    }
}

/// 32 hexadecimal digits.
pub(crate) fn request_id() -> HeaderValue {
    let number = u128::from(choose::random()) << 64 | u128::from(choose::random());
    let digit = |n: usize| b"0123456789abcdef"[(number >> (124 - 4 * n)) as usize & 15];
    let text: [u8; 32] = std::array::from_fn(digit);
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("-"))
}
