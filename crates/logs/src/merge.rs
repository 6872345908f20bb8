//! The lines of several instances as one: in order from the oldest on, or only the newest of all.

use crate::blackbox::BlackBox;
use crate::{Filter, Line, Tags};
use kiln_model::{InstanceId, Wall};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::ops::ControlFlow;

/// One instance and how far it was read.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) tags: Tags,
    black_box: BlackBox,
    /// Read, but not given to anybody yet.
    pending: Option<Line>,
}

impl Source {
    pub(crate) fn new(tags: Tags, black_box: BlackBox) -> Self {
        Self { tags, black_box, pending: None }
    }

    fn look(&mut self, since: Option<Wall>) {
        self.black_box.look();
        if let Some(since) = since {
            self.black_box.skip_if_before(since);
        }
    }

    fn next_line(&mut self, filter: &Filter) -> Option<Line> {
        if let Some(line) = self.pending.take() {
            return Some(line);
        }
        loop {
            let entry = self.black_box.next_entry()?;
            if filter.shows(&entry) {
                return Some(self.tags.line(entry));
            }
        }
    }

    /// Reads the next line ahead: what it is sorted by.
    fn key(&mut self, filter: &Filter) -> Option<(Wall, InstanceId, u64)> {
        self.pending = self.next_line(filter);
        self.pending.as_ref().map(|line| (line.at, line.instance.clone(), line.sequence))
    }
}

/// All lines, oldest first, until `each` breaks.
pub(crate) fn forward(
    sources: &mut [&mut Source],
    filter: &Filter,
    each: &mut dyn FnMut(Line) -> ControlFlow<()>,
) {
    let mut heap = BinaryHeap::new();
    for (n, source) in sources.iter_mut().enumerate() {
        source.look(filter.since);
        heap.extend(source.key(filter).map(|key| Reverse((key, n))));
        // Its turn may come much later.
        source.black_box.release();
    }
    while let Some(Reverse((_, n))) = heap.pop() {
        if sources[n].pending.take().is_some_and(|line| each(line).is_break()) {
            break;
        }
        heap.extend(sources[n].key(filter).map(|key| Reverse((key, n))));
    }
    sources.iter_mut().for_each(|source| source.black_box.release());
}

/// The newest `last` lines of all, oldest first; everything is read after this. The instances that printed last are read
/// first, so that those that ended before the oldest line wanted need not be read.
pub(crate) fn newest(sources: &mut [&mut Source], filter: &Filter, last: usize) -> Vec<Line> {
    sources.iter_mut().for_each(|source| source.look(filter.since));
    sources.sort_by_key(|source| Reverse(source.black_box.changed()));
    let mut lines: Vec<Line> = vec![];
    for source in sources {
        if lines.len() == last
            && let Some(oldest) = lines.first()
        {
            source.black_box.skip_if_before(oldest.at);
        }
        let mut own = VecDeque::new();
        while let Some(line) = source.next_line(filter) {
            own.push_back(line);
            if own.len() > last {
                own.pop_front();
            }
        }
        lines.extend(own);
        lines.sort_by(|a, b| (a.at, &a.instance, a.sequence).cmp(&(b.at, &b.instance, b.sequence)));
        lines.drain(..lines.len().saturating_sub(last));
    }
    lines
}
