//! `ensure`: from a specification to a running instance. What was decided is durable before anything exists.

use super::folder::{EXIT, Exit, Record, SPEC};
use super::order::{self, Failure, Order, Report};
use super::{Entry, Inner};
use crate::ProviderError;
use kiln_model::{ExitReason, Fence, InstanceId, InstanceSpec, Isolation, Seen, SeenState, Wall};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::{Arc, PoisonError};

impl Inner {
    pub(super) fn ensure(self: &Arc<Self>, fence: Fence, spec: InstanceSpec) -> Result<Seen, ProviderError> {
        let id = spec.id.clone();
        let work = self.work(&id);
        let _work = work.lock().unwrap_or_else(PoisonError::into_inner);
        if self.books().gone.contains_key(&id) {
            return Err(ProviderError::Tombstoned { id });
        }
        self.admit(fence, &id)?;
        let known = self.books().entries.get(&id).map(|entry| entry.record.clone());
        match known {
            Some(record) if record.spec != spec => {
                let detail = "it came with other content before".to_owned();
                return Err(ProviderError::Stale { id, detail });
            }
            Some(_) => self.raise(fence, &id)?,
            None => self.write_down(fence, spec).map_err(|failure| failure.of(&id))?,
        }
        if let Some(seen) = self.seen(&id).filter(|seen| seen.state != SeenState::Starting) {
            return Ok(seen);
        }
        self.start(&id)?;
        let gone = || Failure::retry("start", "it vanished").of(&id);
        self.seen(&id).ok_or_else(gone)
    }

    /// Gives the instance its number and makes that durable.
    fn write_down(&self, fence: Fence, spec: InstanceSpec) -> Result<(), Failure> {
        let id = spec.id.clone();
        let mut books = self.books();
        let used: std::collections::BTreeSet<u32> = books.entries.values().map(|e| e.record.number).collect();
        let number =
            self.config.subnet.next(books.number, |number| used.contains(&number)).ok_or_else(|| {
                Failure::retry("allocate an address", format!("{} is full", self.config.subnet))
            })?;
        let address = self.config.subnet.address(number);
        let record = Record { spec, address, number, fence };
        let folder = self.root.folder(&id);
        let written = folder.create().and_then(|()| folder.write(SPEC, &record));
        written.map_err(|error| Failure::io("write `spec.json`", &error))?;
        books.number = number;
        let state = SeenState::Starting;
        books
            .entries
            .insert(id, Entry { record: Arc::new(record), fence, state, process: None, layers: vec![] });
        Ok(())
    }

    /// Starts an instance that is written down and not started, whatever is left of earlier tries.
    fn start(self: &Arc<Self>, id: &InstanceId) -> Result<(), ProviderError> {
        self.root.folder(id).wait_for_others();
        self.settle(id);
        if self.seen(id).is_none_or(|seen| seen.state != SeenState::Starting) {
            self.watch(id);
            return Ok(());
        }
        let failure = self.clear(id).and_then(|()| self.launch(id)).err();
        if let Some(failure) = &failure {
            self.record_failure(id, failure);
        }
        self.settle(id);
        self.watch(id);
        failure.map_or(Ok(()), |failure| Err(failure.of(id)))
    }

    /// A permanent failure ends the instance; after another one nothing is left of the try.
    fn record_failure(&self, id: &InstanceId, failure: &Failure) {
        let folder = self.root.folder(id);
        if failure.permanent && folder.read::<Exit>(EXIT).is_none() {
            let error = format!("{}: {}", failure.step, failure.detail);
            let exit =
                Exit { at: Wall(kiln_sys::clock::wall_ms()), reason: ExitReason::NotStarted { error } };
            // If it cannot be written the instance stays `Starting`, and the next ensure meets the failure again.
            let _ = folder.write(EXIT, &exit);
        }
        if !failure.permanent {
            // Best effort: the next try does the same first.
            let _ = self.clear(id);
        }
    }

    fn launch(self: &Arc<Self>, id: &InstanceId) -> Result<(), Failure> {
        let record = self.books().entries.get(id).map(|e| e.record.clone());
        let record = record.ok_or_else(|| Failure::retry("start", "it vanished"))?;
        if record.spec.confinement.isolation == Isolation::Vm {
            return self.launch_machine(&record);
        }
        let layers = self.layers.of(&record.spec.manifest)?;
        let order = Order {
            mark: self.mark.clone(),
            prefix: self.config.subnet.prefix(),
            cgroup_v1: self.config.forced.cgroup_v1,
        };
        let io = |step: &'static str| move |error: std::io::Error| Failure::io(step, &error);
        let (ours, theirs) = order::pair().map_err(io("make a socket"))?;
        let mut child = Command::new(&self.config.program)
            .args(["internal", "supervise"])
            .arg(&self.root.folder(id).path)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(io("start the supervisor"))?;
        let descriptors: Vec<_> = layers.iter().map(|layer| layer.as_fd()).collect();
        let report = order::send(&ours, &order, &descriptors)
            .and_then(|()| order::receive::<Report>(&ours))
            .map_err(io("talk to the supervisor"));
        // It ends by itself; pid 1 is not its to take along.
        let _ = child.wait();
        match report? {
            Some((Report::Started, _)) => {
                if let Some(entry) = self.books().entries.get_mut(id) {
                    entry.layers = layers;
                }
                Ok(())
            }
            Some((Report::Failed(failure), _)) => Err(failure),
            None => Err(Failure::retry("start the instance", "the supervisor was killed")),
        }
    }
}
