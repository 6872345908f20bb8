//! `ensure`: from a specification to a running instance. What it is appears in its folder, as a whole, before anything of
//! the image runs.

use super::etc::{self, Neighbours};
use super::fit::Fit;
use super::folder::{EXIT, Exit, Record, SPEC};
use super::order::Failure;
use super::pool::{FITS_MAX, Pool};
use super::slot::{Begun, Slot};
use super::wire::{self, Start};
use super::{Entry, Inner, program, secrets};
use crate::ProviderError;
use kiln_model::{
    ExitReason, Fence, InstanceId, InstanceSpec, Isolation, SecretValues, Seen, SeenState, Wall,
};
use kiln_sys::exec::Words;
use std::sync::{Arc, PoisonError};

impl Inner {
    pub(super) fn ensure(
        self: &Arc<Self>,
        pool: &Pool,
        fence: Fence,
        spec: InstanceSpec,
        secrets: &SecretValues,
    ) -> Result<Seen, ProviderError> {
        let id = spec.id.clone();
        let _at_work = self.begin_work(&id)?;
        let work = self.work(&id);
        let _work = work.lock().unwrap_or_else(PoisonError::into_inner);
        if self.books().gone.contains_key(&id) {
            return Err(ProviderError::Tombstoned { id });
        }
        self.admit(fence, &id)?;
        let known = self.books().entries.get(&id).map(|entry| entry.record.clone());
        match known {
            Some(record) if !record.spec.is_same(&spec) => {
                let detail = "it came with other content before".to_owned();
                return Err(ProviderError::Stale { id, detail });
            }
            Some(_) => {
                self.raise(fence, &id)?;
                if self.seen(&id).is_some_and(|seen| seen.state == SeenState::Starting) {
                    self.start_again(&id, secrets)?;
                }
            }
            None => self.start(pool, fence, spec, secrets)?,
        }
        self.seen(&id).ok_or_else(|| Failure::retry("start", "it vanished").of(&id))
    }

    /// The first try.
    fn start(
        self: &Arc<Self>,
        pool: &Pool,
        fence: Fence,
        spec: InstanceSpec,
        secrets: &SecretValues,
    ) -> Result<(), ProviderError> {
        let id = spec.id.clone();
        secrets::check(&spec, secrets).map_err(|failure| failure.of(&id))?;
        let _underway = pool.begin();
        if spec.confinement.isolation == Isolation::Vm {
            self.write_down(fence, spec).map_err(|failure| failure.of(&id))?;
            return self.boot(&id, secrets);
        }
        let fit = self.layers.of(&spec.manifest).and_then(|layers| Fit::of(&spec, layers));
        let (slot, fit) = match fit.and_then(|fit| Ok((pool.take(&fit)?, fit))) {
            Ok(ready) => ready,
            Err(failure) => {
                self.write_down(fence, spec).map_err(|failure| failure.of(&id))?;
                return self.failed(&id, failure);
            }
        };
        let number = slot.network.number;
        let address = self.host.subnet.address(number);
        let record = Arc::new(Record { spec, address, number, fence, tag: Some(slot.network.tag.clone()) });
        if let Err(failure) = slot.move_in(&self.host.root.folder(&id), &record) {
            slot.discard();
            self.host.give_back(number);
            return Err(failure.of(&id));
        }
        let entry = Entry::starting(record.clone());
        self.books().entries.insert(id.clone(), entry);
        self.begin(&id, &record, slot, &fit, secrets)?;
        pool.expect(fit);
        Ok(())
    }

    /// Gives an instance that cannot be started now its number, and writes it down.
    fn write_down(&self, fence: Fence, spec: InstanceSpec) -> Result<(), Failure> {
        let id = spec.id.clone();
        let number = self.host.take_number()?;
        let record = Record { spec, address: self.host.subnet.address(number), number, fence, tag: None };
        let folder = self.host.root.folder(&id);
        let written = folder.create().and_then(|()| folder.write(SPEC, &record));
        if let Err(error) = written {
            self.host.give_back(number);
            return Err(Failure::io("write `spec.json`", &error));
        }
        self.books().entries.insert(id, Entry::starting(Arc::new(record)));
        Ok(())
    }

    /// After a restart: what runs may have to be started again. In the background, as the first look at a layer reads it whole.
    pub(super) fn expect_again(self: &Arc<Self>, pool: &Arc<Pool>) {
        let mut specs: Vec<InstanceSpec> = vec![];
        let runs = |entry: &&Entry| entry.state == SeenState::Running;
        let mut living: Vec<_> =
            self.books().entries.values().filter(runs).map(|e| e.record.clone()).collect();
        living.sort_by_key(|record| std::cmp::Reverse(record.spec.id.sequence()));
        for record in living {
            let spec = &record.spec;
            let is_new = specs.iter().all(|known| known.manifest != spec.manifest);
            if is_new && spec.confinement.isolation != Isolation::Vm && specs.len() < FITS_MAX {
                specs.push(spec.clone());
            }
        }
        let (inner, pool) = (self.clone(), Arc::downgrade(pool));
        let read = move || {
            // The last started comes last: it is the first that is made ready.
            for spec in specs.iter().rev() {
                let fit = inner.layers.of(&spec.manifest).and_then(|layers| Fit::of(spec, layers));
                // A damaged image is met by whoever starts it.
                if let (Ok(fit), Some(pool)) = (fit, pool.upgrade()) {
                    pool.expect(fit);
                }
            }
        };
        // Without a thread the next start is a little slower.
        let _ = std::thread::Builder::new().name("fits".into()).spawn(read);
    }

    /// Another try for an instance that is written down and not started, whatever is left of earlier ones.
    fn start_again(self: &Arc<Self>, id: &InstanceId, secrets: &SecretValues) -> Result<(), ProviderError> {
        self.host.root.folder(id).wait_for_others();
        self.settle(id);
        if self.seen(id).is_none_or(|seen| seen.state != SeenState::Starting) {
            self.watch(id);
            return Ok(());
        }
        let known = self.books().entries.get(id).map(|entry| entry.record.clone());
        let known = known.ok_or_else(|| Failure::retry("start", "it vanished").of(id))?;
        secrets::check(&known.spec, secrets).map_err(|failure| failure.of(id))?;
        if known.spec.confinement.isolation == Isolation::Vm {
            return self.clear(id).map_err(|failure| failure.of(id)).and_then(|()| self.boot(id, secrets));
        }
        let made = self.clear(id).and_then(|()| {
            let fit = Fit::of(&known.spec, self.layers.of(&known.spec.manifest)?)?;
            let slot = Slot::make(&self.host, self.host.site_of(known.number)?)?;
            let record = Arc::new(Record { tag: Some(slot.network.tag.clone()), ..(*known).clone() });
            if let Err(failure) = slot.move_in(&self.host.root.folder(id), &record) {
                slot.discard();
                return Err(failure);
            }
            if let Some(entry) = self.books().entries.get_mut(id) {
                entry.record = record.clone();
            }
            Ok((fit, slot, record))
        });
        match made {
            Ok((fit, slot, record)) => self.begin(id, &record, slot, &fit, secrets),
            Err(failure) => self.failed(id, failure),
        }
    }

    /// A virtual machine, of which nothing is there yet.
    fn boot(self: &Arc<Self>, id: &InstanceId, secrets: &SecretValues) -> Result<(), ProviderError> {
        let record = self.books().entries.get(id).map(|entry| entry.record.clone());
        let record = record.ok_or_else(|| Failure::retry("start", "it vanished").of(id))?;
        if let Err(failure) =
            self.allow(&record).and_then(|neighbours| self.launch_machine(&record, &neighbours, secrets))
        {
            return self.failed(id, failure);
        }
        self.settle(id);
        self.watch(id);
        Ok(())
    }

    /// From a slot that is the instance's by now to a running program.
    fn begin(
        self: &Arc<Self>,
        id: &InstanceId,
        record: &Record,
        mut slot: Slot,
        fit: &Fit,
        secrets: &SecretValues,
    ) -> Result<(), ProviderError> {
        let begun = self.allow(record).and_then(|neighbours| {
            with_start(record, &neighbours, |start, user| {
                let secrets = secrets::mount_of(record.number, user, secrets)?;
                let start = Start { has_secrets: secrets.is_some(), ..*start };
                slot.begin(&self.host, &self.roots, fit, &start, secrets)
            })
        });
        match begun {
            Ok(begun) => {
                let (process, pidfd, told) = slot.let_go();
                if let Some(entry) = self.books().entries.get_mut(id) {
                    entry.layers.clone_from(&fit.layers);
                    entry.process = Some((process, Arc::new(pidfd)));
                    entry.told = Some(Arc::new(told));
                    entry.state = SeenState::Running;
                }
                match begun {
                    Begun::Runs => self.changed.notify_one(),
                    Begun::Ended => self.settle(id),
                }
                self.watch(id);
                Ok(())
            }
            Err(failure) => {
                slot.discard();
                self.failed(id, failure)
            }
        }
    }

    /// Lets the instance reach what it may.
    fn allow(&self, record: &Record) -> Result<Neighbours, Failure> {
        let policy = self.policy()?;
        self.keep_policy()?;
        let _filtering = self.filtering.lock().unwrap_or_else(PoisonError::into_inner);
        policy.allow(record)?;
        Ok(policy.neighbours(record))
    }

    /// A permanent failure ends the instance; after another one nothing is left of the try.
    fn failed(&self, id: &InstanceId, failure: Failure) -> Result<(), ProviderError> {
        let folder = self.host.root.folder(id);
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
        self.settle(id);
        Err(failure.of(id))
    }
}

/// What the shim is told of an instance.
fn with_start<T>(
    record: &Record,
    neighbours: &Neighbours,
    work: impl FnOnce(&Start<'_>, (u32, u32)) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let spec = &record.spec;
    let user = program::user_of(spec).map_err(|detail| Failure::permanent("find the user", detail))?;
    let unfit = |detail: &str| Failure::permanent("prepare the command", detail);
    if spec.command.first().is_none_or(String::is_empty) {
        return Err(unfit("the command is empty"));
    }
    let words = |list: &[String]| {
        wire::words(list.iter().map(String::as_str))
            .map_err(|_| unfit("a NUL byte in the command or its environment"))
    };
    let (variables, search) = program::environment_of(spec);
    let (argv, environment) = (words(&spec.command)?, words(&variables)?);
    let [hosts, resolver] = etc::files(record, neighbours);
    let whole = |bytes| Words::new(bytes).unwrap_or_default();
    let start = Start {
        argv: whole(&argv),
        environment: whole(&environment),
        search: &search,
        host_name: spec.id.as_str(),
        hosts: &hosts,
        resolver: &resolver,
        greeting: &super::blackbox::greeting(&spec.id, &spec.command),
        stop_signal: spec.stop.signal,
        has_secrets: false,
    };
    work(&start, user)
}
