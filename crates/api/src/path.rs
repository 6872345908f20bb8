//! The paths of the API, each written once. `{…}` is a part that the caller fills in; every part is a name, a number or a
//! digest, so nothing needs escaping.

/// GET: [`crate::server::ServerView`].
pub const SERVER: &str = "/v1/server";
/// GET with [`crate::environment::Scope`]: [`crate::status::StatusView`].
pub const STATUS: &str = "/v1/status";
/// GET: [`crate::source::SourceView`]; PUT a git pack: the same.
pub const SOURCE: &str = "/v1/source/{project}/{commit}";
/// POST [`crate::deploy::DeployRequest`]: a stream of [`crate::update::Update`] of [`crate::deploy::DeployView`].
pub const DEPLOY: &str = "/v1/deploy";
/// POST [`crate::deploy::RollbackRequest`]: [`crate::deploy::DeployView`].
pub const ROLLBACK: &str = "/v1/rollback";
/// POST [`crate::scale::ScaleRequest`]: [`crate::scale::ScaleView`].
pub const SCALE: &str = "/v1/scale";
/// POST [`crate::environment::EnvRequest`]: [`crate::rollout::AbortView`].
pub const ABORT: &str = "/v1/abort";
/// POST [`crate::environment::EnvRequest`]: [`crate::environment::DestroyView`].
pub const DESTROY: &str = "/v1/destroy";
/// POST [`crate::pause::PauseRequest`]: [`crate::pause::PauseView`].
pub const PAUSE: &str = "/v1/pause";
/// GET: a backup of the state, see `kiln_store::dump`.
pub const BACKUP: &str = "/v1/backup";
/// POST [`crate::backup::RecoverRequest`]: [`crate::backup::RecoverView`].
pub const RECOVER: &str = "/v1/recover";
/// POST [`crate::pause::ResumeRequest`]: [`crate::pause::ResumeView`].
pub const RESUME: &str = "/v1/resume";
/// GET: [`crate::rollout::RolloutView`].
pub const ROLLOUT: &str = "/v1/rollout/{id}";
/// GET: a stream of [`crate::update::Update`] of [`crate::rollout::RolloutView`], the last of which ended.
pub const ROLLOUT_WATCH: &str = "/v1/rollout/{id}/watch";
/// GET with [`crate::environment::Scope`]: [`crate::release::ReleaseList`].
pub const RELEASES: &str = "/v1/release";
/// GET: [`crate::release::ReleaseDetail`].
pub const RELEASE: &str = "/v1/release/{project}/{env}/{number}";
/// GET with [`crate::environment::Scope`]: [`crate::image::ImageList`].
pub const IMAGES: &str = "/v1/image";
/// GET with a digest or its first digits: [`crate::image::ImageDetail`].
pub const IMAGE: &str = "/v1/image/{digest}";
/// GET with two digests or their first digits: [`crate::image::DiffView`].
pub const IMAGE_DIFF: &str = "/v1/image/{digest}/diff/{other}";
/// POST [`crate::export::ExportRequest`]: a stream of [`crate::update::Update`] of [`crate::export::ExportView`], after which
/// all is prepared. GET with the same as query: the bytes.
pub const IMAGE_EXPORT: &str = "/v1/image/{digest}/export";
/// POST [`crate::replicate::OfferRequest`]: [`crate::replicate::OfferView`].
pub const IMAGE_OFFER: &str = "/v1/images/offer";
/// POST [`crate::replicate::ReceiveRequest`]: [`crate::export::ImportView`].
pub const IMAGE_RECEIVE: &str = "/v1/images/receive";
/// PUT a layer as the other server sent it: [`crate::replicate::LayerView`].
pub const LAYERS: &str = "/v1/layers";
/// GET with [`crate::replicate::LayerQuery`]: the bytes for the other server.
pub const LAYER: &str = "/v1/layers/{digest}";
/// PUT an archive, with [`crate::export::ImportQuery`]: [`crate::export::ImportView`].
pub const IMAGE_IMPORT: &str = "/v1/images/import";
/// POST [`crate::export::PushRequest`]: a stream of [`crate::update::Update`] of [`crate::export::PushView`].
pub const IMAGE_PUSH: &str = "/v1/image/{digest}/push";
/// POST [`crate::image::GcRequest`]: a stream of [`crate::update::Update`] of [`crate::image::GcView`].
pub const IMAGE_GC: &str = "/v1/image-gc";
/// GET with a digest or its first digits: [`crate::image::BuildLogView`].
pub const IMAGE_BUILD_LOG: &str = "/v1/image/{digest}/build-log";
/// GET with [`crate::image::SbomQuery`]: [`crate::image::SbomView`].
pub const IMAGE_SBOM: &str = "/v1/image/{digest}/sbom";
/// POST [`crate::image::VerifyRequest`]: a stream of [`crate::update::Update`] of [`crate::image::VerifyReport`].
pub const IMAGE_VERIFY: &str = "/v1/image/verify";
/// POST [`crate::deploy::PromoteRequest`]: a stream of [`crate::update::Update`] of [`crate::deploy::DeployView`].
pub const PROMOTE: &str = "/v1/promote";
/// GET with [`crate::environment::Scope`]: [`crate::environment::EnvironmentList`]. POST
/// [`crate::environment::CreateRequest`]: [`crate::environment::EnvironmentDetail`].
pub const ENVIRONMENTS: &str = "/v1/environment";
/// GET with [`crate::secret::SecretQuery`]: [`crate::secret::SecretList`].
pub const SECRETS: &str = "/v1/secret";
/// GET: [`crate::secret::SecretHistory`]. PUT the value, as it is: [`crate::secret::SecretSet`]. DELETE: the same.
pub const SECRET: &str = "/v1/secret/{project}/{env}/{name}";
/// GET: [`crate::key::KeyList`].
pub const KEYS: &str = "/v1/key";
/// POST: [`crate::key::KeyList`].
pub const KEY_ROTATE: &str = "/v1/key/rotate";
/// POST [`crate::key::KeyRequest`]: [`crate::key::KeyList`].
pub const KEY_REMOVE: &str = "/v1/key/remove";
/// POST with a digest or its first digits: a stream of [`crate::update::Update`] of [`crate::image::RebuildView`].
pub const IMAGE_REBUILD: &str = "/v1/image/{digest}/rebuild";
/// GET with [`crate::instance::InstanceQuery`]: [`crate::instance::InstanceList`].
pub const INSTANCES: &str = "/v1/instance";
/// GET: [`crate::instance::InstanceDetail`].
pub const INSTANCE: &str = "/v1/instance/{id}";
/// GET with [`crate::logs::LogQuery`]: a stream of [`crate::update::Update`] of [`crate::logs::LogLine`].
pub const LOGS: &str = "/v1/logs";
/// GET with [`crate::environment::Scope`]: [`crate::why::WhyView`].
pub const WHY: &str = "/v1/why";
/// GET: what the load balancer counts, in the text form of Prometheus.
pub const METRICS: &str = "/v1/metrics";
/// GET with [`crate::audit::AuditQuery`]: [`crate::audit::AuditView`].
pub const AUDIT: &str = "/v1/audit";
/// GET: [`crate::audit::VerifyView`].
pub const AUDIT_VERIFY: &str = "/v1/audit/verify";
/// POST [`crate::lock::LockRequest`]: a stream of [`crate::update::Update`] of [`crate::lock::LockView`].
pub const LOCK: &str = "/v1/lock";
/// POST [`crate::bake::BakeRequest`]: a stream of [`crate::update::Update`] of [`crate::bake::BakeView`].
pub const BAKE: &str = "/v1/bake";

/// `template` with its `{…}` parts replaced in order.
pub fn fill(template: &str, parts: &[&dyn std::fmt::Display]) -> String {
    let mut out = String::with_capacity(template.len() + 64);
    let mut parts = parts.iter();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        out.push_str(before);
        if let Some(part) = parts.next() {
            out.push_str(&part.to_string());
        }
        rest = after.split_once('}').map_or("", |(_, tail)| tail);
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn parts_are_filled_in_in_order() {
        assert_eq!(super::fill(super::RELEASE, &[&"shop", &"staging", &4]), "/v1/release/shop/staging/4");
        assert_eq!(super::fill(super::ROLLOUT_WATCH, &[&7]), "/v1/rollout/7/watch");
        assert_eq!(super::fill(super::STATUS, &[]), "/v1/status");
    }
}
