//! A lock as it is answered: its text, and what differs from the previous one.

use kiln_api::lock::{LockChange, LockChangeKind, LockTotal, LockView, LockedView};
use kiln_control::lock_changes::{Change, Locked, changes, size};
use kiln_spec::Lock;
use std::cmp::Ordering;

pub(crate) fn view(before: Option<&Lock>, after: &Lock) -> LockView {
    let changes: Vec<LockChange> = changes(before, after).into_iter().map(change).collect();
    let count = |kind| changes.iter().filter(|change| change.kind == kind).count();
    let total = LockTotal {
        packages: after.packages.len(),
        added: count(LockChangeKind::Added),
        removed: count(LockChangeKind::Removed),
        upgraded: count(LockChangeKind::Upgraded),
        downgraded: count(LockChangeKind::Downgraded),
        bytes_before: before.map_or(0, size),
        bytes_after: size(after),
    };
    LockView { text: after.to_text(), changes, total }
}

fn change(change: Change) -> LockChange {
    let kind = match (&change.before, &change.after, change.direction()) {
        (None, _, _) => LockChangeKind::Added,
        (_, None, _) => LockChangeKind::Removed,
        (_, _, Ordering::Less) => LockChangeKind::Downgraded,
        _ => LockChangeKind::Upgraded,
    };
    let locked = |locked: Locked| LockedView { version: locked.version, size: locked.size };
    let (before, after) = (change.before.map(locked), change.after.map(locked));
    LockChange { name: change.name, kind, before, after, images: change.users.into_iter().collect() }
}
