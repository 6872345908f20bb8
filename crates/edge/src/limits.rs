//! The named limits and times of the edge.

use std::time::Duration;

/// Bytes of one control message.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of the part of a PROXY protocol header behind its first 16.
pub const PROXY_HEADER_BYTES_MAX: usize = 4096;
/// How long a trusted proxy may take for it.
pub const PROXY_HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes that are copied at once between the sockets of a raw connection.
pub const COPY_BYTES: usize = 64 * 1024;
/// Bytes one way without an answer after which the kernel moves what follows: below it, a pipe costs more than it saves.
pub const SPLICE_AFTER: usize = 64 * 1024;
/// Bytes that a pipe may hold.
pub const PIPE_BYTES: usize = 1024 * 1024;
/// Empty pipes that a thread keeps for the next who needs one.
pub const PIPES_KEPT: usize = 32;
/// Pipes of a thread; who comes later copies.
pub const PIPES_MAX: usize = 256;
/// Bytes one way of one connection before the other connections of its thread have their turn.
pub const TURN_BYTES: u64 = 4 * 1024 * 1024;
/// How long an upgraded or raw connection may carry nothing, unless its route says so.
pub const TUNNEL_IDLE: Duration = Duration::from_secs(3600);
/// The same once one side of a raw connection has ended: the other may be gone without having said so.
pub const HALF_CLOSED_IDLE: Duration = Duration::from_secs(30);
/// When the kernel begins to ask whether the peer of a silent raw connection is still there, how often, and how many times.
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// See [`KEEPALIVE_IDLE`].
pub const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
/// See [`KEEPALIVE_IDLE`].
pub const KEEPALIVE_PROBES: u32 = 3;
/// Attempts of one request of any kind, connecting included; a bound, not a policy.
pub const ATTEMPTS_MAX: u32 = 8;
/// Clients that a route with a rate knows at once.
pub const RATE_CLIENTS_MAX: usize = 64 * 1024;
/// How often who waits for an instance looks whether one came back.
pub const TURN_TICK: Duration = Duration::from_millis(100);
/// Bytes of a body of unknown length that are held back to see whether it keeps to the limit of its route.
pub const HOLD_BYTES_MAX: u64 = 256 * 1024;
/// How long an answer may carry nothing, unless its route says so.
pub const BODY_IDLE: Duration = Duration::from_secs(300);
/// Counts of routes and releases outside the table that are still reported.
pub const METERS_DEPARTED_MAX: usize = 256;
/// Routes of one table, over all environments.
pub const TABLE_ROUTES_MAX: usize = 16 * 1024;
/// Pools of one table.
pub const TABLE_POOLS_MAX: usize = 16 * 1024;
/// Targets of one table.
pub const TABLE_TARGETS_MAX: usize = 64 * 1024;
/// Bytes of one request head; hyper answers 431 above it.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Header fields of one request.
pub const HEADERS_MAX: usize = 100;
/// How long a client may take for a request head, and how long its connection may idle: the guard against slowloris.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a thread looks for timeouts that have passed.
pub const ALARM_TICK: Duration = Duration::from_millis(250);
/// How long connecting to an instance may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long an instance may take until the head of its answer; then the client gets 504.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a client may take nothing of what it is sent; then it counts as gone, or it would be in flight for ever.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an upstream connection may idle. Below the 5 s of common backends, so that the edge closes first.
pub const IDLE_MAX: Duration = Duration::from_secs(4);
/// How long a connection may have idled to carry a request that must not be sent twice.
pub const IDLE_MAX_UNSAFE: Duration = Duration::from_secs(1);
/// Idle upstream connections per target and thread.
pub const IDLE_CONNECTIONS_MAX: usize = 256;
/// Further attempts of one request.
pub const RETRIES_MAX: u32 = 2;
/// Retries that a thread may have saved up; every request adds a fifth of one.
pub const RETRY_TOKENS_MAX: f64 = 50.0;
/// What one request adds to the retry budget: 20 %.
pub const RETRY_TOKENS_PER_REQUEST: f64 = 0.2;
/// Consecutive resets after which a target is ejected; a refused connection ejects at once.
pub const FAILURES_MAX: u32 = 3;
/// First pause before an ejected target is probed; it doubles with every further ejection.
pub const PROBE_PAUSE: Duration = Duration::from_millis(250);
/// Lines of one kind that a log gets in each ten seconds, where strangers can cause them.
pub const SELDOM_PAUSE: Duration = Duration::from_secs(10);
/// Doublings of [`PROBE_PAUSE`].
pub const PROBE_DOUBLINGS_MAX: u32 = 5;
/// Bytes of a health check's body that are searched.
pub const CHECK_BODY_BYTES_MAX: usize = 64 * 1024;
/// Targets outside the table that are still reported one by one; older ones are folded into their environment.
pub const DEPARTED_MAX: usize = 256;
/// Bytes of a log file before it is renamed to `NAME.1`.
pub const LOG_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Bytes of the access log before it is renamed to `access.log.1`.
pub const ACCESS_LOG_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Bytes of a thread's access log buffer.
pub const ACCESS_BUFFER_BYTES: usize = 64 * 1024;
/// Bytes of one text of the access log; what is longer is cut.
pub const ACCESS_TEXT_BYTES_MAX: usize = 2048;
/// How long control waits for every thread to take a new table.
pub const SWITCH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long answers carry `Connection: close` before idle connections are closed.
pub const LAME_DUCK: Duration = Duration::from_secs(2);
/// The hard end after a stop.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause of the accept loop when file descriptors are used up.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long one call of the client may take, its connection included.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a started edge may take until it answers.
pub const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Pairs of certificate and key.
pub const CERTIFICATES_MAX: usize = 4096;
/// Bytes of one file of a certificate or key.
pub const CERTIFICATE_BYTES_MAX: u64 = 1024 * 1024;
/// How often the folder of certificates is looked at; what changed is read once it stays the same from one look to the next.
pub const CERTIFICATES_EVERY: Duration = Duration::from_secs(1);
/// How long a client may take for a TLS handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests that one HTTP/2 connection may have at a time.
pub const H2_STREAMS_MAX: u32 = 128;
/// Bytes that a client may send ahead on one stream, and on all streams of a connection.
pub const H2_WINDOW_BYTES: (u32, u32) = (256 * 1024, 1024 * 1024);
/// Bytes of an answer that wait on one stream for the client to take them.
pub const H2_SEND_BYTES_MAX: usize = 64 * 1024;
/// Streams that a client reset before they were looked at; more than these at once end its connection (CVE-2023-44487).
pub const H2_PENDING_RESETS_MAX: usize = 20;
/// Streams that the edge had to reset because of a client's errors; more end its connection (CVE-2025-8671).
pub const H2_OWN_RESETS_MAX: usize = 1024;
/// Silence after which the kernel asks whether the other host still lives; after three questions at a third of it, it does not.
pub const KEEPALIVE: Duration = Duration::from_secs(60);
/// How long a HTTP/2 client that was told to go may take if it has no requests in flight.
pub const H2_LEAVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a body that are kept, so that another instance can have it if one refuses the request unread.
pub const REPLAY_BYTES_MAX: usize = 64 * 1024;
/// Requests at a time on one HTTP/2 connection to an instance, if the instance allows as many.
pub const LINK_STREAMS_MAX: usize = 100;
/// HTTP/2 connections per target and thread; requests beyond wait on one of them.
pub const LINKS_MAX: usize = 16;
/// How long a HTTP/2 connection to an instance may idle.
pub const LINK_IDLE_MAX: Duration = Duration::from_secs(60);
/// Bytes of a proof for an ACME authority.
pub const CHALLENGE_BYTES_MAX: u64 = 4096;
/// Descriptors in one message to the next edge; the kernel's limit is 253.
pub const PASSED_AT_ONCE_MAX: usize = 128;
/// How long each step of a hand-over may take. Until the last one the edge before serves on.
pub const HANDOVER_TIMEOUT: Duration = Duration::from_secs(8);
/// How long a started successor may take as a whole.
pub const UPGRADE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long connections of an edge that was replaced may go on.
pub const REPLACED_DRAIN: Duration = Duration::from_secs(3600);
/// How long the next edge waits for what the one before counted, and for its switch.
pub const PREDECESSOR_TIMEOUT: Duration = Duration::from_secs(3);
/// How often a replaced edge asks the one that it replaced itself.
pub const PREDECESSOR_LOOK_EVERY: Duration = Duration::from_millis(200);
/// Control connections that wait to be accepted.
pub const CONTROL_BACKLOG: i32 = 128;
/// Descriptors that are left for what are no connections: files, listeners, control, connections that are kept to instances.
pub const DESCRIPTORS_KEPT: usize = 128;
/// Connections at a time, however few descriptors there are.
pub const CONNECTIONS_MIN: usize = 16;
