//! Plans a pass around environments that cannot be planned: one that makes the planner panic, or breaks a rule, is held with
//! the reason, and the others go on in the same pass.

use kiln_model::{Boot, EnvRef, Hold, Millis, Snapshot};
use kiln_plan::{Observed, Plan};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Time after which an environment that is held is tried again.
const TRY_AGAIN: Millis = Millis::from_secs(10);

/// What is held, in memory: after a restart it is found again.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    held: BTreeMap<EnvRef, Hold>,
    tried: Boot,
}

impl Holds {
    /// Plans one pass with `planner`, and puts into `observed` what is held. An error is about no environment in particular.
    pub(crate) fn plan(
        &mut self,
        snapshot: &Snapshot,
        observed: &mut Observed,
        planner: impl Fn(&Snapshot, &Observed) -> Plan,
    ) -> Result<Plan, String> {
        let again = !self.held.is_empty() && observed.now.since(self.tried) >= TRY_AGAIN;
        observed.held = if again { BTreeMap::new() } else { self.held.clone() };
        let error = match attempt(snapshot, observed, &planner) {
            Ok(plan) => {
                self.held.clone_from(&observed.held);
                return Ok(plan);
            }
            Err(error) => error,
        };
        self.tried = observed.now;
        let found = culprits(snapshot, observed, &planner);
        if found.is_empty() {
            return Err(error);
        }
        for (env, reason) in found {
            eprintln!("kiln: error: `{env}` is on hold: {reason}");
            let since = self.held.get(&env).map_or(observed.now, |hold| hold.since);
            observed.held.insert(env, Hold { since, reason });
        }
        self.held.clone_from(&observed.held);
        attempt(snapshot, observed, &planner)
    }
}

/// Environments that cannot be planned even when all others are left as they are.
fn culprits(
    snapshot: &Snapshot,
    observed: &Observed,
    planner: &impl Fn(&Snapshot, &Observed) -> Plan,
) -> Vec<(EnvRef, String)> {
    let owners = snapshot.instances.values().map(|instance| &instance.env);
    let all: BTreeSet<&EnvRef> = snapshot.environments.keys().chain(owners).collect();
    let nobody = Hold { since: observed.now, reason: String::new() };
    let mut alone = observed.clone();
    alone.held.extend(all.iter().map(|env| ((*env).clone(), nobody.clone())));
    let mut found = vec![];
    for env in all.into_iter().filter(|env| !observed.held.contains_key(env)) {
        alone.held.remove(env);
        found.extend(attempt(snapshot, &alone, planner).err().map(|error| (env.clone(), error)));
        alone.held.insert(env.clone(), nobody.clone());
    }
    found
}

fn attempt(
    snapshot: &Snapshot,
    observed: &Observed,
    planner: &impl Fn(&Snapshot, &Observed) -> Plan,
) -> Result<Plan, String> {
    // The planner is a pure function of values that nobody else has: nothing is left half done by its panic.
    let planned = catch_unwind(AssertUnwindSafe(|| planner(snapshot, observed)));
    let plan = planned.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        format!("it cannot be planned: {text}")
    })?;
    let broken = kiln_plan::lint::lint(snapshot, &plan);
    if broken.is_empty() { Ok(plan) } else { Err(format!("its plan was refused: {}", broken.join("; "))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_model::{Environment, Mutation};

    fn env(name: &str) -> EnvRef {
        EnvRef::try_from(format!("shop/{name}")).unwrap()
    }

    /// A planner that panics over `bad` unless that is held, and says so for every other by a mutation.
    fn planner(bad: &'static str) -> impl Fn(&Snapshot, &Observed) -> Plan {
        move |snapshot, observed| {
            let moving = snapshot.environments.keys().filter(|env| !observed.held.contains_key(env));
            let mut plan = Plan::default();
            for name in moving {
                assert!(*name != env(bad), "planted");
                plan.mutations.push(Mutation::PutEnvironment(Environment::new(name.clone())));
            }
            plan
        }
    }

    #[test]
    fn one_that_cannot_be_planned_holds_up_nobody_and_is_tried_again() {
        let mut snapshot = Snapshot::default();
        for name in ["a", "b", "c"] {
            snapshot.apply(&Mutation::PutEnvironment(Environment::new(env(name))));
        }
        let mut holds = Holds::default();
        let mut observed = Observed { now: Boot(100), ..Observed::default() };
        let plan = holds.plan(&snapshot, &mut observed, planner("b")).unwrap();
        assert_eq!(plan.mutations.len(), 2, "the others in the same pass");
        assert_eq!(observed.held.keys().collect::<Vec<_>>(), [&env("b")]);
        assert!(observed.held[&env("b")].reason.contains("planted"));
        observed.now = Boot(200);
        holds.plan(&snapshot, &mut observed, planner("none")).unwrap();
        assert_eq!(observed.held[&env("b")].since, Boot(100), "not yet tried again, with its age");
        observed.now = Boot(100) + TRY_AGAIN;
        let plan = holds.plan(&snapshot, &mut observed, planner("none")).unwrap();
        assert_eq!((plan.mutations.len(), observed.held.len()), (3, 0), "it works again");
    }

    #[test]
    fn a_failure_of_nobody_in_particular_is_told_as_such() {
        let mut observed = Observed::default();
        let failed = Holds::default().plan(&Snapshot::default(), &mut observed, |_, _| panic!("planted"));
        assert!(failed.unwrap_err().contains("planted"));
    }
}
