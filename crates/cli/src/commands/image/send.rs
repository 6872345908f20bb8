//! `kiln image send`.

use crate::output::bytes;
use crate::progress::Progress;
use crate::{Context, Failure};
use clap::Args;
use kiln_api::image::{SbomFormat, SbomQuery};
use kiln_api::replicate::{MissingLayer, OfferRequest, ReceiveRequest};
use kiln_api::{Address, Client, ClientError, Code};
use serde::Serialize;

/// What to send, and where to.
#[derive(Debug, Args)]
#[command(
    after_help = "Layers that the other server has are not sent. One that changed goes as a patch against the newest layer of its role \
there; it is verified by its digest on arrival, and sent whole if the patch does not fit. The other server takes it only if it trusts the \
key that signed it: give it `kiln key show` of this one with `kiln serve --trust FILE`.

Examples:
  kiln image send 3f9a52c1 --to unix:/run/kiln-2/kiln.sock
  ssh -N -L /tmp/web2.sock:/run/kiln/kiln.sock web2 &
  kiln image send 3f9a52c1 --to unix:/tmp/web2.sock"
)]
pub struct SendArgs {
    /// Its digest, or the first digits of it
    #[arg(value_name = "DIGEST")]
    digest: String,
    /// The socket of the other server
    #[arg(long, value_name = "ADDR")]
    to: Address,
}

/// What was sent.
#[derive(Debug, Serialize)]
struct Sent {
    image: kiln_model::Digest,
    /// Bytes of all layers of the image.
    size: u64,
    /// Bytes that were sent.
    sent: u64,
    /// Layers that the other server had.
    n_known: usize,
}

pub(super) async fn run(context: &Context<'_>, arguments: SendArgs) -> Result<(), Failure> {
    let (here, there) = (context.client()?, Client::new(arguments.to));
    let shown = here.image(&arguments.digest).await?;
    let manifest = shown.manifest.ok_or_else(|| {
        Failure::new(Code::NoImage, format!("the layers of {} are not there any more", shown.image.digest))
    })?;
    let statement = shown.statement;
    let offer = OfferRequest { manifest: manifest.clone(), statement: statement.clone() };
    let offer = there.offer(&offer).await?;
    let mut progress = Progress::start();
    let mut sent = 0;
    for layer in &offer.missing {
        progress.now(&format!("sending layer {}, {}", layer.layer.short(), bytes(layer.size)));
        sent += send(&here, &there, layer).await?;
    }
    let size = manifest.layers.iter().map(|layer| layer.size).sum();
    let n_known = manifest.layers.len() - offer.missing.len();
    let mut sboms = vec![];
    for format in [SbomFormat::Spdx, SbomFormat::Cyclonedx] {
        sboms.push((format, here.sbom(&arguments.digest, &SbomQuery { format }).await?.text));
    }
    there.receive(&ReceiveRequest { manifest, statement, sboms }).await?;
    drop(progress);
    let done = Sent { image: offer.image, size, sent, n_known };
    context.out().answer(&done, || {
        format!("sent {}: {} of {}, {n_known} layers were there\n", done.image, bytes(sent), bytes(size))
    })
}

/// As a patch if there is something that it may stand on, else whole.
async fn send(here: &Client, there: &Client, layer: &MissingLayer) -> Result<u64, ClientError> {
    match here.send_layer(layer, there).await {
        Err(ClientError::Server(error)) if error.code == Code::LayerRefused && !layer.like.is_empty() => {
            here.send_layer(&MissingLayer { like: vec![], ..layer.clone() }, there).await
        }
        result => result,
    }
}
