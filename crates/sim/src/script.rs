//! What operators ask for, and when. Two of them may do so at the same time, in any state of a rollout.

use crate::project::{env, release, service_name};
use crate::rng::Rng;
use kiln_model::ReleaseNumber;
use kiln_plan::Command;

/// One act of an operator.
#[derive(Debug, Clone)]
pub enum Act {
    /// Sends a command.
    Ask(Command),
    /// Does nothing; the run goes on until then.
    Rest,
}

/// Acts by time, in milliseconds.
#[derive(Debug, Clone)]
pub struct Script(pub Vec<(u64, Act)>);

fn deploy(n: usize, commit: u64, keep: u64) -> Act {
    Act::Ask(Command::Deploy { env: env(n), spec: Box::new(release(n, commit, keep)) })
}

impl Script {
    /// A deploy, another, one that fails, a warm rollback, a scale, a death-free end: every phase is passed.
    pub fn fixed() -> Self {
        let web = |n| [(service_name("web"), n)].into();
        Self(vec![
            (0, deploy(0, 1, 5_000)),
            (2_500, deploy(0, 2, 5_000)),
            (5_000, deploy(0, 5, 5_000)),
            (7_500, Act::Ask(Command::Rollback { env: env(0), to: None })),
            (9_500, Act::Ask(Command::Scale { env: env(0), instances: web(Some(3)) })),
            (10_500, deploy(0, 4, 0)),
            (13_000, Act::Rest),
        ])
    }

    /// What a seed asks for.
    pub fn random(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x5C21);
        let (environments, mut at) = (1 + rng.below(2), 0);
        let mut acts: Vec<(u64, Act)> = (0..environments).map(|n| (n as u64, deploy(n, 1, 0))).collect();
        for _ in 0..3 + rng.below(6) {
            // Often while the one before is under way; sometimes two at the same time.
            at += [0, 300, 1_500, 4_000][rng.below(4)] + rng.below(800) as u64;
            let n = rng.below(environments);
            let act = match rng.below(18) {
                0..8 => {
                    let keep = [0, 1_000, 6_000][rng.below(3)];
                    deploy(n, 1 + rng.below(14) as u64, keep)
                }
                8 | 9 => Act::Ask(Command::Rollback { env: env(n), to: None }),
                10 => {
                    let to = Some(ReleaseNumber(1 + rng.below(4) as u64));
                    Act::Ask(Command::Rollback { env: env(n), to })
                }
                11 | 12 => {
                    let service = service_name(if n == 0 { ["web", "api"][rng.below(2)] } else { "blog" });
                    let count = Some(rng.below(5) as u32).filter(|n| *n < 4);
                    Act::Ask(Command::Scale { env: env(n), instances: [(service, count)].into() })
                }
                13 | 14 => Act::Ask(Command::Abort { env: env(n) }),
                15 => {
                    let whose = (rng.below(3) > 0).then(|| env(n));
                    Act::Ask(Command::Pause { env: whose, reason: "lunch".into() })
                }
                16 => Act::Ask(Command::Resume { env: (rng.below(3) > 0).then(|| env(n)) }),
                _ => Act::Ask(Command::Destroy { env: env(n) }),
            };
            acts.push((at, act));
        }
        acts.push((at + 3_000, Act::Rest));
        Self(acts)
    }
}

/// A command in words.
pub(crate) fn words(command: &Command) -> String {
    match command {
        Command::Deploy { env, spec } => {
            format!("operator: deploy {env} commit {}", number(spec.commit.as_str()))
        }
        Command::Rollback { env, to } => {
            let to = to.map_or("the one before".to_owned(), |to| to.to_string());
            format!("operator: rollback {env} to {to}")
        }
        Command::Scale { env, instances } => format!("operator: scale {env} {instances:?}"),
        Command::Abort { env } => format!("operator: abort {env}"),
        Command::Destroy { env } => format!("operator: destroy {env}"),
        Command::Pause { env, .. } => format!("operator: pause {env:?}"),
        Command::Resume { env } => format!("operator: resume {env:?}"),
        // Operators of the simulation do not ask for these.
        other => format!("operator: {other:?}"),
    }
}

fn number(commit: &str) -> u64 {
    u64::from_str_radix(commit, 16).unwrap_or(0)
}
