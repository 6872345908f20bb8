//! The named limits of what kiln accepts. Overload and hostile input meet an explicit answer here.

/// Services in one project.
pub const SERVICES_MAX: usize = 64;
/// Images in one project.
pub const IMAGES_MAX: usize = 64;
/// Routes in one environment.
pub const ROUTES_MAX: usize = 256;
/// Requests that an instance may have at once, that may wait, or that a client may make, as far as a route can ask for.
pub const IN_FLIGHT_MAX: u64 = 1_000_000;
/// Instances of one service.
pub const INSTANCES_PER_SERVICE_MAX: u32 = 250;
/// `validate` checks of one service.
pub const CHECKS_MAX: usize = 32;
/// Bytes of the value of a secret.
pub const SECRET_BYTES_MAX: usize = 64 * 1024;
/// Secrets of one environment.
pub const SECRETS_MAX: usize = 256;
/// Secrets of one service.
pub const SECRETS_PER_SERVICE_MAX: usize = 32;
/// Bytes of all secrets of one service together.
pub const SECRETS_PER_SERVICE_BYTES_MAX: usize = 192 * 1024;
/// Bytes of the reason that somebody gives for an act.
pub const REASON_BYTES_MAX: usize = 500;
/// Bytes of a `kiln.toml`.
pub const SPEC_BYTES_MAX: usize = 256 * 1024;
/// Bytes of a `kiln.lock`.
pub const LOCK_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of an uploaded source pack.
pub const PACK_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;
/// Bytes of one JSON request or answer of the API.
pub const JSON_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of one log line; a longer one is cut into frames of this size.
pub const LOG_LINE_BYTES_MAX: usize = 16 * 1024;
/// Bytes that the black box of one instance may hold, in two segments of half that size each.
pub const SPOOL_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Starts of one slot that may fail before a rollout is taken back.
pub const START_FAILURES_MAX: u32 = 3;
/// Times that one `validate` check may fail before the instance counts as failed.
pub const VALIDATE_ATTEMPTS_MAX: u32 = 3;
/// Answers that are remembered for clients that ask again.
pub const ANSWERS_MAX: usize = 1000;
/// Bytes of evidence text kept of one check.
pub const EVIDENCE_BYTES_MAX: usize = 1024;
