//! Where an instance with `isolation = "vm"` leaves the way of a sandbox: everything before is the same, and everything after.

use super::etc::{self, Neighbours};
use super::folder::Record;
use super::order::Failure;
use super::slot::Host;
use super::{Inner, network, secrets};
use crate::vm::launch::{self, MachineOrder};
use crate::vm::{Accelerator, FIRST_WORD, LAYERS_MAX};
use kiln_model::SecretValues;
use kiln_sys::netlink::Netlink;

impl Inner {
    pub(super) fn launch_machine(
        &self,
        record: &Record,
        neighbours: &Neighbours,
        secrets: &SecretValues,
    ) -> Result<(), Failure> {
        let step = "find the kernel of virtual machines";
        let none = || {
            let detail =
                "this server has none; hint: leave `isolation` out, or start `kiln serve` with a mirror";
            Failure::permanent(step, detail)
        };
        let source = self.config.machine.as_ref().ok_or_else(none)?;
        let machine = source.machine().map_err(|error| Failure::retry(step, error.to_string()))?;
        let layers = self.layers.files(&record.spec.manifest, LAYERS_MAX)?;
        let Host { mark, subnet, boot, .. } = &*self.host;
        let block = subnet.block(record.number);
        // Another bridge than the first may not be there yet.
        network::bridge(&Netlink::open()?, mark, *subnet, record.number)?;
        let [hosts, resolver] = etc::files(record, neighbours);
        let order = |accelerator| MachineOrder {
            mark: mark.clone(),
            bridge: mark.bridge(block.index),
            prefix: block.prefix,
            gateway: block.gateway,
            hosts: hosts.clone(),
            resolver: resolver.clone(),
            forced: self.config.forced,
            boot: boot.clone(),
            accelerator,
            boot_max: self.config.boot_max,
            has_secrets: !secrets.is_empty(),
        };
        let program = &self.config.program;
        let accelerator = match self.config.forced.emulation {
            true => Accelerator::Emulation,
            false => *self.accelerator.get_or_init(|| {
                launch::accelerator(
                    program,
                    MachineOrder { has_secrets: false, ..order(Accelerator::Kvm) },
                    &machine,
                )
            }),
        };
        let folder = self.host.root.folder(&record.spec.id).path;
        // A probe boots without them.
        let launch = |layers| {
            let secrets = secrets::file_of(secrets)?;
            launch::launch(program, &folder, &order(accelerator), &machine, secrets, layers)
        };
        match launch(layers) {
            Err(failure) if failure.step == FIRST_WORD => {
                self.clear(&record.spec.id)?;
                launch(self.layers.files(&record.spec.manifest, LAYERS_MAX)?)
            }
            done => done,
        }
    }
}
