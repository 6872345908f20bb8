//! A switch that the edge does not acknowledge in time is taken back by the next table. That is safe at any moment: nothing
//! of the release before was retired, and the edge refuses the older table should it come late.

use crate::draft::Draft;
use kiln_model::{Millis, Rollout, RolloutPhase};

/// How long the edge may take to acknowledge a switch. One that hangs is replaced sooner, by its keeper.
pub const SWITCH_DEADLINE: Millis = Millis::from_secs(60);

/// Takes the switch back if its time is over; answers whether it did. Without a release before there is nothing to go
/// back to: the switch is tried until it works.
pub(crate) fn switch(draft: &mut Draft<'_>, rollout: &Rollout) -> bool {
    let deadline = rollout.since + SWITCH_DEADLINE;
    let before = rollout.from.filter(|from| {
        *from != rollout.to && draft.snapshot.release(&rollout.env, *from).is_some_and(|r| r.images.is_some())
    });
    let Some(before) = before else { return false };
    if draft.now() < deadline {
        draft.wake_at(deadline);
        return false;
    }
    draft.put_environment(&rollout.env, |env| {
        env.serving = Some(before);
        env.keep = None;
        env.deaths.clear();
        env.kept_deaths.clear();
    });
    let cause = draft.observed.edge.as_ref().map_or("it does not answer", |_| "it has not taken the table");
    let reason = format!("the edge did not acknowledge the switch within {SWITCH_DEADLINE}: {cause}");
    crate::rollout::finish(draft, rollout, RolloutPhase::TakenBack, Some(reason));
    true
}
