//! Handlers of `kiln image export` for what boots: disks, and kernel with initial RAM disk.

use crate::Context;
use crate::download::download;
use crate::failure::Failure;
use crate::image_export::service_of;
use crate::images::find;
use axum::response::Response;
use kiln_api::Code;
use kiln_api::export::{ExportRequest, Format};
use kiln_image::export::ExportError;
use kiln_image::export::boot::Guest;
use kiln_image::export::disk::Machine;
use kiln_image::worker::chain;
use kiln_model::{Digest, ServiceName};

pub(crate) fn prepared(
    context: &Context,
    image: Digest,
    request: &ExportRequest,
    progress: &mut dyn FnMut(String),
) -> Result<Machine, Failure> {
    let service = request.service.as_ref().ok_or_else(|| {
        let text = "a machine runs one service, and none is named".to_owned();
        Failure::hinted(Code::Usage, text, Some("name it with `--service`".into()))
    })?;
    let guest = guest(context, image, service, request)?;
    let kernel = request.kernel_image.as_deref().map(|prefix| find(context, prefix)).transpose()?;
    let uefi = request.format != Format::Kernel;
    let machine = context.workshop.machine(image, kernel.unwrap_or(image), uefi, &guest, progress);
    machine.map_err(|error| {
        let hint = match &error {
            ExportError::Boot(error) => error.hint(),
            _ => return Failure::new(Code::Internal, chain(&error)),
        };
        Failure::hinted(Code::NotBootable, chain(&error), hint)
    })
}

pub(crate) async fn bytes(
    context: Context,
    image: Digest,
    request: ExportRequest,
) -> Result<Response, Failure> {
    let format = request.format;
    let work = move || prepared(&context, image, &request, &mut |_| {});
    let machine = tokio::task::spawn_blocking(work).await??;
    Ok(download(move |mut out| match format {
        Format::Qcow2 => machine.qcow2(&mut out),
        Format::Kernel => machine.kernel(&mut out),
        _ => machine.raw(&mut out),
    }))
}

/// What the machine runs: the service as an instance of it would.
fn guest(
    context: &Context,
    image: Digest,
    service: &ServiceName,
    request: &ExportRequest,
) -> Result<Guest, Failure> {
    let spec = service_of(context, image, service)?;
    let manifest = context.workshop.manifest(image);
    let users = manifest.map_err(|error| Failure::new(Code::Internal, chain(&error)))?.config.users;
    let number = || {
        let uid: u32 = spec.user.parse().ok()?;
        Some(users.values().find(|(known, _)| *known == uid).copied().unwrap_or((uid, uid)))
    };
    let user =
        users.get(&spec.user).copied().or_else(number).ok_or_else(|| {
            Failure::new(Code::NotBootable, format!("the image has no user `{}`", spec.user))
        })?;
    let port = spec.port.map(|port| ("PORT".to_owned(), port.to_string()));
    Ok(Guest {
        name: spec.name.to_string(),
        command: spec.command,
        env: spec.env.into_iter().chain(port).collect(),
        user,
        writable: spec.writable,
        writable_bytes: spec.resources.memory_bytes,
        stop_signal: spec.stop.signal,
        stop_seconds: spec.stop.timeout.0.div_ceil(1000),
        address: request.address.clone(),
        gateway: request.gateway.map(|gateway| gateway.to_string()),
    })
}
