//! How an image's parts are made: `[images.NAME.build]` and `provision`.

use super::{Base, base, packages};
use crate::reader::{Shared, Table};
use kiln_model::Millis;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How long a build may take unless the recipe says otherwise, and at most.
const TIME: Millis = Millis(10 * 60_000);
const TIME_MAX: Millis = Millis(4 * 3_600_000);
/// Bytes of memory of a build, and bytes that it may write, unless the recipe says otherwise; and the least of both.
const MEMORY: u64 = 2 << 30;
const DISK: u64 = 4 << 30;
const LEAST: u64 = 16 << 20;
/// Processes and threads of a build unless the recipe says otherwise.
const PIDS: u32 = 1024;
/// Commands of one build, and bytes of one of them.
const RUN_MAX: usize = 100;
const LINE_BYTES_MAX: usize = 16 << 10;

/// What is compiled in a builder: a sealed instance of its own that sees the committed tree at `/src` and its packages, and
/// has no network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildRecipe {
    /// What lies below the builder.
    pub base: Base,
    /// Debian packages beside the base's own.
    pub packages: Vec<String>,
    /// Commands, one after the other, each given to the builder's `/bin/sh -e -c` in `/src`. The first that fails ends it.
    pub run: Vec<String>,
    /// Environment variables beside the few that every build has.
    pub env: BTreeMap<String, String>,
    /// How long all commands together may take.
    pub time: Millis,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes that it may write.
    pub disk: u64,
    /// Processes and threads.
    pub pids: u32,
}

/// Configuration management that is run in the bake, over the packages and before `copy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provision {
    /// Path of an Ansible playbook in the commit.
    pub ansible: String,
}

/// Reads `[images.NAME.build]`.
pub(super) fn read(mut table: Table<'_>, sink: Shared<'_, '_>) -> BuildRecipe {
    let below = match table.string("base", sink) {
        Some((text, span)) => {
            let below = base(&text, span.clone(), sink);
            let usable =
                matches!(below, None | Some(Base::Debian { .. } | Base::Image { .. } | Base::Oci { .. }));
            if !usable {
                let hint = "use `debian:bookworm`, `oci:…` or `image:NAME`".to_owned();
                sink.borrow_mut().push(span, format!("nothing can be built on `{text}`"), Some(hint));
            }
            below.filter(|_| usable)
        }
        None => {
            table.missing("base", "\"debian:bookworm\"", sink);
            None
        }
    };
    let packages = packages(&mut table, below.as_ref(), sink);
    let mut run = vec![];
    for (line, span) in table.strings("run", sink).unwrap_or_default() {
        if line.trim().is_empty() || line.len() > LINE_BYTES_MAX || line.contains('\0') {
            sink.borrow_mut().push(span, "a command is empty, too long, or has a zero byte", None);
        } else {
            run.push(line);
        }
    }
    if run.is_empty() || run.len() > RUN_MAX {
        let message = format!("`{}` needs 1 to {RUN_MAX} commands in `run`", table.name);
        sink.borrow_mut().push(table.span.clone(), message, Some("add `run = [\"make\"]`".into()));
    }
    let env = crate::service::env(&mut table, sink);
    let time = table.duration_from("time", Millis(1000), sink).unwrap_or(TIME);
    if time > TIME_MAX {
        sink.borrow_mut().push(table.span.clone(), format!("`time` is more than {TIME_MAX}"), None);
    }
    let mut bytes = |key, usual| match table.size(key, sink) {
        Some((bytes, span)) if bytes < LEAST => {
            sink.borrow_mut().push(span, format!("`{key}` must be at least {} MiB", LEAST >> 20), None);
            usual
        }
        Some((bytes, _)) => bytes,
        None => usual,
    };
    let (memory, disk) = (bytes("memory", MEMORY), bytes("disk", DISK));
    let pids = table.integer("pids", 8..=100_000, sink).map_or(PIDS, |pids| pids as u32);
    table.reserved(
        "network",
        "a build has no network: commit or vendor what it needs, or add Debian packages to `packages`",
        sink,
    );
    table.finish(sink);
    BuildRecipe { base: below.unwrap_or(Base::Scratch), packages, run, env, time, memory, disk, pids }
}

/// Reads `provision`.
pub(super) fn provision(
    mut table: Table<'_>,
    base: Option<&Base>,
    sink: Shared<'_, '_>,
) -> Option<Provision> {
    let playbook = table.string("ansible", sink);
    if playbook.is_none() {
        table.missing("ansible", "\"site.yml\"", sink);
    }
    let span = table.span.clone();
    table.finish(sink);
    let (ansible, at) = playbook?;
    if !super::is_inner_path(&ansible) {
        let hint = "name a committed playbook, as in `provision = { ansible = \"site.yml\" }`".to_owned();
        sink.borrow_mut().push(at, format!("`{ansible}` is not a path inside the project"), Some(hint));
        return None;
    }
    if matches!(base, Some(Base::Scratch | Base::DebianSlim { .. })) {
        let hint = "use `base = \"debian:bookworm\"`".to_owned();
        sink.borrow_mut().push(span, "a playbook needs a whole system to run in", Some(hint));
        return None;
    }
    Some(Provision { ansible })
}
