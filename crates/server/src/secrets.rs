//! Secrets. Values come in, sealed before anything else is done with them; none ever goes out.

use crate::Context;
use crate::actor::Actor;
use crate::failure::Failure;
use crate::handlers::{Answer, Look, Query};
use axum::Json;
use axum::body::Body;
use axum::extract::{ConnectInfo, Path, State};
use kiln_api::Code;
use kiln_api::secret::{SecretHistory, SecretList, SecretQuery, SecretSet, SecretState, SecretView};
use kiln_model::{
    EnvName, EnvRef, ProjectName, Secret, SecretContent, SecretName, SecretValue, SecretVersion, Snapshot,
    limits,
};
use kiln_plan::{Command, Outcome};

type Named = (ProjectName, EnvName, SecretName);

pub(crate) async fn list(
    State(context): State<Context>,
    Query(query): Query<SecretQuery>,
) -> Answer<SecretList> {
    let look = Look::take(&context)?;
    let snapshot = &*look.snapshot;
    let asked = |secret: &&std::sync::Arc<Secret>| {
        secret.env.project == query.project && query.env.as_ref().is_none_or(|env| *env == secret.env.env)
    };
    let newest = |secret: &Secret| {
        let current = snapshot.current_secret(&secret.env, &secret.name);
        current.is_some_and(|current| current.version == secret.version)
    };
    let secrets = snapshot.secrets.values().filter(asked).filter(|secret| newest(secret));
    Ok(Json(SecretList { secrets: secrets.map(|secret| view(snapshot, secret)).collect() }))
}

pub(crate) async fn history(
    State(context): State<Context>,
    Path((project, env, name)): Path<Named>,
) -> Answer<SecretHistory> {
    let env = EnvRef { project, env };
    let look = Look::take(&context)?;
    let versions = look.snapshot.secrets_of(&env, Some(&name)).rev();
    let versions: Vec<SecretView> = versions.map(|secret| view(&look.snapshot, secret)).collect();
    if versions.is_empty() {
        return Err(Failure::new(Code::NoSecret, format!("the secret `{name}` was never set in `{env}`")));
    }
    Ok(Json(SecretHistory { env, name, versions }))
}

pub(crate) async fn set(
    State(context): State<Context>,
    ConnectInfo(Actor(actor)): ConnectInfo<Actor>,
    Path((project, env, name)): Path<Named>,
    body: Body,
) -> Answer<SecretSet> {
    let env = EnvRef { project, env };
    let bytes = axum::body::to_bytes(body, limits::SECRET_BYTES_MAX + 1).await;
    let bytes = bytes.ok().filter(|bytes| bytes.len() <= limits::SECRET_BYTES_MAX).ok_or_else(|| {
        let text = format!("the value of a secret has at most {} bytes", limits::SECRET_BYTES_MAX);
        Failure::hinted(
            Code::TooLarge,
            text,
            Some("give large files to the image, and keep only the key secret".into()),
        )
    })?;
    if bytes.is_empty() {
        let hint = Some(format!("`kiln secret unset {name}` takes it out"));
        return Err(Failure::hinted(Code::Usage, format!("the value of `{name}` is empty"), hint));
    }
    let value = SecretValue::new(bytes.into());
    let work = move || -> Result<SecretSet, Failure> {
        let snapshot = context.handle.snapshot()?;
        if let Some(current) = snapshot.current_secret(&env, &name)
            // One that cannot be opened is set anew.
            && context.vault.unseal(current).is_ok_and(|known| known == value)
        {
            return Ok(answer(&snapshot, env, name, current.version, false));
        }
        let content = context.vault.seal(&env, &name, &value)?;
        let command = Command::SetSecret { env: env.clone(), name: name.clone(), content };
        submit(&context, &actor, env, name, command)
    };
    Ok(Json(tokio::task::spawn_blocking(work).await??))
}

pub(crate) async fn unset(
    State(context): State<Context>,
    ConnectInfo(Actor(actor)): ConnectInfo<Actor>,
    Path((project, env, name)): Path<Named>,
) -> Answer<SecretSet> {
    let env = EnvRef { project, env };
    let command = Command::UnsetSecret { env: env.clone(), name: name.clone() };
    Ok(Json(submit(&context, &actor, env, name, command)?))
}

fn submit(
    context: &Context,
    actor: &str,
    env: EnvRef,
    name: SecretName,
    command: Command,
) -> Result<SecretSet, Failure> {
    match context.handle.submit(actor, command)? {
        Outcome::Secret { version } => Ok(answer(&*context.handle.snapshot()?, env, name, version, true)),
        other => Err(Failure::new(Code::Internal, format!("unexpected outcome {other:?}"))),
    }
}

fn answer(
    snapshot: &Snapshot,
    env: EnvRef,
    name: SecretName,
    version: SecretVersion,
    changed: bool,
) -> SecretSet {
    let release = snapshot.environments.get(&env).and_then(|e| e.serving);
    let release = release.and_then(|number| snapshot.release(&env, number));
    let has_another = |release: &&std::sync::Arc<kiln_model::Release>| {
        release.spec.secrets.get(&name).is_some_and(|bound| *bound != version)
    };
    let serving = release.filter(has_another).map(|release| release.number);
    SecretSet { env, name, version, changed, serving }
}

fn view(snapshot: &Snapshot, secret: &Secret) -> SecretView {
    let has_it =
        |release: &kiln_model::Release| release.spec.secrets.get(&secret.name) == Some(&secret.version);
    let releases = snapshot.releases_of(&secret.env).filter(|release| has_it(release));
    let releases: Vec<_> = releases.map(|release| release.number).collect();
    let serving = snapshot.environments.get(&secret.env).and_then(|e| e.serving);
    SecretView {
        env: secret.env.clone(),
        name: secret.name.clone(),
        version: secret.version,
        created: secret.created,
        actor: secret.actor.clone(),
        state: match secret.content {
            SecretContent::Sealed { .. } => SecretState::Set,
            SecretContent::Unset => SecretState::Unset,
            SecretContent::Removed => SecretState::Removed,
        },
        bytes: secret.bytes(),
        serving: serving.is_some_and(|number| releases.contains(&number)),
        releases,
    }
}
