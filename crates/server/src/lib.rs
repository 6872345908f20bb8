//! The control plane's API over its Unix socket. Handlers read snapshots and submit commands; what they answer is made by
//! pure functions in `views`.
#![forbid(unsafe_code)]

mod actor;
mod download;
mod environments;
mod failure;
mod front;
mod handlers;
mod image_boot;
mod image_diff;
mod image_export;
mod image_gc;
mod image_import;
mod image_replicate;
mod images;
mod keys;
mod listen;
mod locks;
mod logs;
mod metrics;
mod named;
mod once;
mod pause;
mod promote;
mod rebuild;
mod recover;
mod secrets;
mod stream;
mod upload;
mod views;

pub use front::Front;
pub use listen::{ListenError, bind};

use axum::Router;
use axum::routing::{get, post, put};
use kiln_api::path;
use kiln_control::{Handle, Vault, Workshop};
use std::sync::Arc;
use tokio::net::UnixListener;

/// What every handler works with.
#[derive(Clone)]
pub struct Context {
    /// The control plane.
    pub handle: Handle,
    /// Sources, bakes and logs.
    pub workshop: Arc<Workshop>,
    /// Seals secrets and opens them.
    pub vault: Arc<Vault>,
}

/// Answers requests until the control plane stops.
///
/// # Errors
/// If the socket fails for good.
pub async fn serve(listener: UnixListener, context: Context) -> std::io::Result<()> {
    let mut stopping = context.handle.stopping();
    let app = router(context).into_make_service_with_connect_info::<actor::Actor>();
    axum::serve(listener, app)
        .with_graceful_shutdown(async move {
            // It also ends when the control plane is gone.
            let _ = stopping.wait_for(|stop| *stop).await;
        })
        .await
}

fn router(context: Context) -> Router {
    Router::new()
        .route(path::SERVER, get(handlers::server))
        .route(path::STATUS, get(handlers::status))
        .route(path::SOURCE, get(upload::has).put(upload::put))
        .route(path::DEPLOY, post(handlers::deploy))
        .route(path::ROLLBACK, post(handlers::rollback))
        .route(path::SCALE, post(handlers::scale))
        .route(path::ABORT, post(handlers::abort))
        .route(path::DESTROY, post(handlers::destroy))
        .route(path::PAUSE, post(pause::pause))
        .route(path::RESUME, post(pause::resume))
        .route(path::BACKUP, get(recover::backup))
        .route(path::RECOVER, post(recover::recover))
        .route(path::ROLLOUT, get(handlers::rollout))
        .route(path::ROLLOUT_WATCH, get(handlers::watch_rollout))
        .route(path::RELEASES, get(handlers::releases))
        .route(path::RELEASE, get(handlers::release))
        .route(path::IMAGES, get(images::list))
        .route(path::IMAGE, get(images::show))
        .route(path::IMAGE_DIFF, get(image_diff::diff))
        .route(path::IMAGE_OFFER, post(image_replicate::offer))
        .route(path::IMAGE_RECEIVE, post(image_replicate::receive))
        .route(path::LAYERS, put(image_replicate::put_layer))
        .route(path::LAYER, get(image_replicate::layer))
        .route(path::IMAGE_IMPORT, put(image_import::put))
        .route(path::IMAGE_PUSH, post(image_export::push))
        .route(path::IMAGE_EXPORT, post(image_export::prepare).get(image_export::bytes))
        .route(path::IMAGE_GC, post(image_gc::gc))
        .route(path::IMAGE_BUILD_LOG, get(images::build_log))
        .route(path::IMAGE_SBOM, get(images::sbom))
        .route(path::IMAGE_VERIFY, post(images::verify))
        .route(path::PROMOTE, post(promote::promote))
        .route(path::ENVIRONMENTS, get(environments::list).post(environments::create))
        .route(path::SECRETS, get(secrets::list))
        .route(path::SECRET, get(secrets::history).put(secrets::set).delete(secrets::unset))
        .route(path::KEYS, get(keys::list))
        .route(path::KEY_ROTATE, post(keys::rotate))
        .route(path::KEY_REMOVE, post(keys::remove))
        .route(path::IMAGE_REBUILD, post(rebuild::rebuild))
        .route(path::INSTANCES, get(handlers::instances))
        .route(path::INSTANCE, get(handlers::instance))
        .route(path::LOGS, get(logs::logs))
        .route(path::WHY, get(handlers::why))
        .route(path::METRICS, get(metrics::metrics))
        .route(path::AUDIT, get(handlers::audit))
        .route(path::AUDIT_VERIFY, get(handlers::verify_audit))
        .route(path::LOCK, post(handlers::lock))
        .route(path::BAKE, post(handlers::bake))
        .fallback(handlers::unknown)
        .with_state(context)
}
