//! `kiln lock`: resolves packages into kiln.lock.

use crate::output::bytes;
use crate::progress::Progress;
use crate::project::{self, LOCK, SPEC};
use crate::{Context, Failure};
use clap::Args;
use kiln_api::lock::{LockChange, LockChangeKind, LockRequest, LockTotal, LockedView};
use kiln_model::limits;
use kiln_spec::Project;

/// Options of `kiln lock`.
#[derive(Debug, Args)]
#[command(
    after_help = "What is locked stays as it is unless kiln.toml asks for something else; `--update` takes the newest versions. \
Commit kiln.lock: a bake takes the one of the commit.

Examples:
  kiln lock && git add kiln.lock && git commit -m 'Lock packages'
  kiln lock --update --plan           which newer versions there are"
)]
pub struct LockArgs {
    /// Take the newest versions
    #[arg(long)]
    update: bool,
    /// Only say what would change
    #[arg(long)]
    plan: bool,
}

pub(crate) async fn run(context: &Context<'_>, arguments: LockArgs) -> Result<(), Failure> {
    let dir = context.project_dir()?;
    let toml = project::read(&dir.join(SPEC), limits::SPEC_BYTES_MAX)?;
    Project::parse(&toml, SPEC)?;
    let path = dir.join(LOCK);
    let previous = if path.exists() { Some(project::read(&path, limits::LOCK_BYTES_MAX)?) } else { None };
    let request = LockRequest { toml, previous, update: arguments.update };
    let mut progress = Progress::start();
    let client = context.client()?;
    let view = client.lock(&request).await?.answer(|text| progress.now(text)).await?;
    drop(progress);
    let same = request.previous.as_ref() == Some(&view.text);
    // What changes is told before anything is written.
    context.out().answer(&view, || {
        // In a first lock everything is new.
        let changes = if request.previous.is_some() { &view.changes[..] } else { &[] };
        let mut text: String = changes.iter().map(|change| line(change) + "\n").collect();
        if !same {
            text.push_str(&total(&view.total));
        }
        match (same, arguments.plan) {
            (true, _) => text.push_str(&format!("{LOCK} is up to date\n")),
            (false, true) => text.push_str(&format!("{LOCK} would change\n")),
            (false, false) => {}
        }
        text
    })?;
    if !same && !arguments.plan {
        project::write(&path, &view.text)?;
        context.out().note(&format!("{LOCK} written"));
        context.out().hint(&format!("`git add {LOCK} && git commit` pins what the project is made of"));
    }
    Ok(())
}

/// `~ nginx-light 1.22.1-9+deb12u2 -> 1.22.1-9+deb12u3 (+1.2 KiB) web`
fn line(change: &LockChange) -> String {
    let version = |locked: &LockedView| locked.version.clone();
    let size = |locked: &Option<LockedView>| locked.as_ref().map_or(0, |locked| locked.size);
    let sign = match change.kind {
        LockChangeKind::Added => '+',
        LockChangeKind::Removed => '-',
        LockChangeKind::Upgraded | LockChangeKind::Downgraded => '~',
    };
    let versions = [&change.before, &change.after].map(|locked| locked.as_ref().map(version));
    let versions = versions.into_iter().flatten().collect::<Vec<_>>().join(" -> ");
    let mut text = format!("{sign} {} {versions}", change.name);
    if change.kind == LockChangeKind::Downgraded {
        text.push_str(" (older)");
    }
    text.push_str(&format!(" ({})", difference(size(&change.before), size(&change.after))));
    let images = change.images.iter().map(|image| format!(" {image}"));
    text + &images.collect::<String>()
}

fn total(total: &LockTotal) -> String {
    let kinds = [
        (total.added, "added"),
        (total.removed, "removed"),
        (total.upgraded, "upgraded"),
        (total.downgraded, "downgraded"),
    ];
    let kinds: Vec<_> = kinds.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    let kinds = if kinds.is_empty() { "nothing changed".to_owned() } else { kinds.join(", ") };
    let bytes_now = bytes(total.bytes_after);
    let difference = difference(total.bytes_before, total.bytes_after);
    format!("{} packages: {kinds}; {bytes_now} in all ({difference})\n", total.packages)
}

/// `+1.2 KiB`
fn difference(before: u64, after: u64) -> String {
    match after.checked_sub(before) {
        Some(0) => "same size".to_owned(),
        Some(more) => format!("+{}", bytes(more)),
        None => format!("-{}", bytes(before - after)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_one_line() {
        let locked = |version: &str, size| Some(LockedView { version: version.into(), size });
        let change = |kind, before, after| LockChange {
            name: "nginx".into(),
            kind,
            before,
            after,
            images: vec!["app".into(), "web".into()],
        };
        let lines = [
            line(&change(LockChangeKind::Upgraded, locked("1.0-1", 1000), locked("1.0-2", 3048))),
            line(&change(LockChangeKind::Downgraded, locked("1.0-2", 3048), locked("1.0-1", 1000))),
            line(&change(LockChangeKind::Added, None, locked("1.0-2", 5))),
            line(&change(LockChangeKind::Removed, locked("1.0-2", 5), None)),
            total(&LockTotal {
                packages: 4,
                added: 1,
                upgraded: 2,
                bytes_before: 9,
                bytes_after: 9,
                ..LockTotal::default()
            }),
        ];
        assert_eq!(
            lines,
            [
                "~ nginx 1.0-1 -> 1.0-2 (+2.0 KiB) app web",
                "~ nginx 1.0-2 -> 1.0-1 (older) (-2.0 KiB) app web",
                "+ nginx 1.0-2 (+5 B) app web",
                "- nginx 1.0-2 (-5 B) app web",
                "4 packages: 1 added, 2 upgraded; 9 B in all (same size)\n",
            ]
        );
    }
}
