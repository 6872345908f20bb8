//! What a question names has to exist: an empty answer about a name that was mistyped would read as "all is well".

use crate::failure::Failure;
use kiln_api::Code;
use kiln_api::environment::Scope;
use kiln_api::logs::LogQuery;
use kiln_model::Snapshot;

/// Refuses a question about an environment that never was. One that was destroyed still has its history.
pub(crate) fn environment(snapshot: &Snapshot, scope: &Scope) -> Result<(), Failure> {
    let Some(env) = &scope.env else { return Ok(()) };
    let unreadable = snapshot.damaged.iter().filter_map(|row| row.env.as_ref());
    if snapshot.environments.keys().chain(unreadable).any(|known| scope.covers(known)) {
        return Ok(());
    }
    let name = scope.project.as_ref().map_or_else(|| env.to_string(), |project| format!("{project}/{env}"));
    Err(Failure::new(Code::NoEnvironment, format!("there is no environment `{name}`")))
}

/// Refuses a question about lines of an environment, a release, a service or an instance that never was. `has_lines` says
/// whether an instance that the snapshot does not know any more left any.
pub(crate) fn lines(
    snapshot: &Snapshot,
    query: &LogQuery,
    has_lines: impl FnOnce(&kiln_model::InstanceId) -> bool,
) -> Result<(), Failure> {
    let scope = Scope { project: query.project.clone(), env: query.env.clone() };
    environment(snapshot, &scope)?;
    let place = match (&query.project, &query.env) {
        (Some(project), Some(env)) => format!(" of `{project}/{env}`"),
        (Some(project), None) => format!(" of `{project}`"),
        _ => String::new(),
    };
    let releases = || snapshot.releases.iter().filter(|((env, _), _)| scope.covers(env));
    if let Some(number) = query.release.filter(|wanted| !releases().any(|((_, number), _)| number == wanted))
    {
        return Err(Failure::new(Code::NoRelease, format!("there is no release {number}{place}")));
    }
    if let Some(name) = &query.service
        && !releases().any(|(_, release)| release.spec.services.contains_key(name))
    {
        return Err(Failure::new(Code::NoService, format!("no release{place} has a service `{name}`")));
    }
    let Some(id) = &query.instance else { return Ok(()) };
    let known = match snapshot.instances.get(id) {
        Some(instance) => scope.covers(&instance.env),
        None => has_lines(id),
    };
    if known {
        return Ok(());
    }
    Err(Failure::new(Code::NoInstance, format!("there is no instance `{id}`{place}, alive or gone")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_model::{EnvRef, Environment};
    use std::sync::Arc;

    fn snapshot() -> Snapshot {
        let env: EnvRef = "shop/production".to_owned().try_into().unwrap();
        let mut snapshot = Snapshot::default();
        snapshot.environments.insert(env.clone(), Arc::new(Environment::new(env)));
        snapshot
    }

    fn scope(project: Option<&str>, env: Option<&str>) -> Scope {
        Scope { project: project.map(|p| p.parse().unwrap()), env: env.map(|e| e.parse().unwrap()) }
    }

    #[test]
    fn an_environment_that_is_named_must_be_there() {
        let snapshot = snapshot();
        for (project, env) in [
            (None, None),
            (None, Some("production")),
            (Some("shop"), Some("production")),
            (Some("shop"), None),
            // A project that was never deployed has nothing yet, and that is no mistake.
            (Some("other"), None),
        ] {
            assert!(environment(&snapshot, &scope(project, env)).is_ok(), "{project:?} {env:?}");
        }
        for (project, env, name) in [
            (None, "prodction", "prodction"),
            (Some("shop"), "prodction", "shop/prodction"),
            (Some("other"), "production", "other/production"),
        ] {
            let Failure(error) = environment(&snapshot, &scope(project, Some(env))).unwrap_err();
            assert_eq!(error.code, Code::NoEnvironment);
            assert_eq!(error.message, format!("there is no environment `{name}`"));
            assert!(error.hint.is_some());
        }
    }

    #[test]
    fn lines_of_what_never_was_are_no_empty_answer() {
        let snapshot = snapshot();
        let ask = |change: fn(&mut LogQuery)| {
            let mut query = LogQuery { project: Some("shop".parse().unwrap()), ..LogQuery::default() };
            change(&mut query);
            lines(&snapshot, &query, |id| id.as_str() == "web-7").map_err(|Failure(error)| error.code)
        };
        assert_eq!(ask(|_| {}), Ok(()));
        assert_eq!(ask(|q| q.instance = Some("web-7".parse().unwrap())), Ok(()));
        assert_eq!(ask(|q| q.instance = Some("web-8".parse().unwrap())), Err(Code::NoInstance));
        assert_eq!(ask(|q| q.service = Some("web".parse().unwrap())), Err(Code::NoService));
        assert_eq!(ask(|q| q.release = Some(kiln_model::ReleaseNumber(9))), Err(Code::NoRelease));
        assert_eq!(ask(|q| q.env = Some("staging".parse().unwrap())), Err(Code::NoEnvironment));
    }
}
