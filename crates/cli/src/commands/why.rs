//! `kiln why`: what blocks, since when, what happens next, and what helps.

use crate::{Context, Failure};
use clap::Args;
use kiln_api::why::ReasonView;
use kiln_model::EnvName;

/// Options of `kiln why`.
#[derive(Debug, Args)]
#[command(after_help = "Says nothing but `all is as desired` if there is nothing to say.

Examples:
  kiln why
  kiln why --env staging")]
pub struct WhyArgs {
    /// Only this environment
    #[arg(long, value_name = "ENV")]
    env: Option<EnvName>,
}

pub(crate) async fn run(context: &Context<'_>, arguments: WhyArgs) -> Result<(), Failure> {
    let view = context.client()?.why(&context.scope(&arguments.env)?).await?;
    context.out().answer(&view, || {
        if view.reasons.is_empty() {
            return "all is as desired\n".to_owned();
        }
        view.reasons.iter().map(paragraph).collect::<Vec<_>>().join("\n")
    })
}

fn paragraph(reason: &ReasonView) -> String {
    let mut text = format!("{}: {}\n", reason.env, reason.what);
    text.push_str(&format!("  since     {}\n", reason.since_ms));
    let deadline = reason.deadline_ms.map(|span| format!(" (within {span})")).unwrap_or_default();
    text.push_str(&format!("  next      {}{deadline}\n", reason.next));
    if let Some(command) = &reason.command {
        text.push_str(&format!("  command   {command}\n"));
    }
    if !reason.evidence.is_empty() {
        text.push_str("  evidence\n");
    }
    for line in reason.evidence.iter().flat_map(|evidence| evidence.lines()) {
        text.push_str(&format!("    {line}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_model::Millis;

    #[test]
    fn a_reason_says_all_that_is_known() {
        let mut reason = ReasonView {
            env: "shop/production".to_owned().try_into().unwrap(),
            what: "release 3 was taken back".into(),
            since_ms: Millis(1500),
            next: "nothing".into(),
            deadline_ms: Some(Millis(20_000)),
            command: Some("kiln logs --release 3".into()),
            evidence: vec!["web-7: exited with status 1\nweb-7: no".into()],
        };
        assert_eq!(
            paragraph(&reason),
            "shop/production: release 3 was taken back\n  since     1.5 s\n  next      nothing (within 20.0 s)\n  command   kiln logs --release 3\n  evidence\n    web-7: exited with status 1\n    web-7: no\n"
        );
        reason.evidence.clear();
        reason.command = None;
        reason.deadline_ms = None;
        assert_eq!(
            paragraph(&reason),
            "shop/production: release 3 was taken back\n  since     1.5 s\n  next      nothing\n"
        );
    }
}
