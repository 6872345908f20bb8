//! `kiln image export`.

use crate::output::bytes;
use crate::progress::Progress;
use crate::{Context, Failure};
use clap::{Args, ValueEnum};
use kiln_api::export::{Compression, ExportRequest, Format, PushRequest};
use kiln_api::{Client, Code};
use kiln_model::ServiceName;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// What to export.
#[derive(Debug, Args)]
#[command(
    after_help = "The image's own digest does not change: it is a label of what is exported. With `--service` the exported image starts \
as that service of the newest release that uses it.

Examples:
  kiln image export 3f9a52c1 --output web.tar --name web:1 && podman load --input web.tar
  kiln image export 3f9a52c1 --format docker-archive --service web --name shop/web:1 --output web.tar
  kiln image export 3f9a52c1 --format oci-dir --compression zstd --output web/
  kiln image export 3f9a52c1 --push registry.example.org/shop/web:1 --service web
  kiln image export 3f9a52c1 --format qcow2 --service web --kernel-image 80b1c2d3 --output web.qcow2"
)]
pub struct ExportArgs {
    /// Its digest, or the first digits of it
    #[arg(value_name = "DIGEST")]
    digest: String,
    /// What to write
    #[arg(long, value_enum, default_value_t = Form::OciArchive)]
    format: Form,
    /// Where to; it must not exist
    #[arg(long, short, value_name = "PATH", required_unless_present = "push")]
    output: Option<PathBuf>,
    /// Push it to a registry instead, with the server's credentials
    #[arg(long, value_name = "HOST/NAME:TAG", conflicts_with_all = ["output", "format", "name", "kernel_image", "address"])]
    push: Option<String>,
    /// How layers are compressed; a docker archive has them plain
    #[arg(long, value_enum, default_value_t = How::Gzip)]
    compression: How,
    /// The service whose command, environment, user and port it starts with
    #[arg(long, value_name = "SERVICE")]
    service: Option<ServiceName>,
    /// What it is called there
    #[arg(long, value_name = "NAME:TAG", value_parser = name)]
    name: Option<String>,
    /// Take the kernel of what boots from this image (its digest, or the first digits of it)
    #[arg(long, value_name = "DIGEST")]
    kernel_image: Option<String>,
    /// The address of what boots; without one it asks DHCP
    #[arg(long, value_name = "ADDRESS/BITS", value_parser = address)]
    address: Option<String>,
    /// The way out of its network
    #[arg(long, value_name = "ADDRESS", requires = "address")]
    gateway: Option<std::net::Ipv4Addr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// An OCI layout in one file
    OciArchive,
    /// An OCI layout in a folder
    OciDir,
    /// What `docker save` writes
    DockerArchive,
    /// A disk that UEFI boots
    Raw,
    /// The same disk as a file of QEMU
    Qcow2,
    /// A folder with kernel, initial RAM disk, command line and root file system
    Kernel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum How {
    /// Understood by everything
    Gzip,
    /// Smaller and faster; podman, containerd, skopeo from 1.14 on
    Zstd,
    /// Not at all
    None,
}

fn name(text: &str) -> Result<String, String> {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-/:".contains(&b);
    let is_name = !text.is_empty() && text.len() <= 255 && text.bytes().all(legal) && text.contains(':');
    if is_name { Ok(text.to_owned()) } else { Err("a name with a tag, such as `shop/web:1.2`".into()) }
}

fn address(text: &str) -> Result<String, String> {
    let legal = text.split_once('/').is_some_and(|(address, bits)| {
        address.parse::<std::net::Ipv4Addr>().is_ok() && bits.parse::<u8>().is_ok_and(|bits| bits <= 32)
    });
    if legal { Ok(text.to_owned()) } else { Err("an address with its bits, such as `10.0.2.15/24`".into()) }
}

pub(super) async fn run(context: &Context<'_>, arguments: ExportArgs) -> Result<(), Failure> {
    let compression = match arguments.compression {
        How::Gzip => Compression::Gzip,
        How::Zstd => Compression::Zstd,
        How::None => Compression::None,
    };
    if let Some(to) = arguments.push {
        let request = PushRequest { to, compression, service: arguments.service };
        return push(context, &arguments.digest, &request).await;
    }
    let output = context.dir().join(arguments.output.unwrap_or_default());
    if output.exists() {
        let failure = Failure::new(Code::File, format!("`{}` exists", output.display()));
        return Err(failure.hint("name another path with `--output`, or remove it"));
    }
    let format = match arguments.format {
        Form::DockerArchive => Format::DockerArchive,
        Form::OciArchive | Form::OciDir => Format::OciArchive,
        Form::Raw => Format::Raw,
        Form::Qcow2 => Format::Qcow2,
        Form::Kernel => Format::Kernel,
    };
    let request = ExportRequest {
        format,
        compression,
        service: arguments.service,
        reference: arguments.name,
        kernel_image: arguments.kernel_image,
        address: arguments.address,
        gateway: arguments.gateway,
    };
    let client = context.client()?;
    let mut progress = Progress::start();
    let stream = client.prepare_export(&arguments.digest, &request).await?;
    let view = stream.answer(|text| progress.now(text)).await?;
    // Half an archive is never seen under its name.
    let part = part_of(&output);
    let result = match arguments.format {
        Form::OciDir | Form::Kernel => {
            folder(&client, &arguments.digest, &request, &part, &mut progress).await
        }
        _ => file(&client, &arguments.digest, &request, &part, &mut progress).await,
    };
    let result = result.and_then(|()| std::fs::rename(&part, &output).map_err(|e| unwritable(&output, &e)));
    if result.is_err() {
        // One of them does not exist.
        let _ = std::fs::remove_file(&part);
        let _ = std::fs::remove_dir_all(&part);
    }
    result?;
    drop(progress);
    context.out().answer(&view, || {
        let (what, parts) = if format.boots() { ("root", "content") } else { ("manifest", "layers") };
        format!("{} written: {what} {}, {parts} {}\n", output.display(), view.manifest, bytes(view.size))
    })
}

async fn push(context: &Context<'_>, digest: &str, request: &PushRequest) -> Result<(), Failure> {
    let client = context.client()?;
    let mut progress = Progress::start();
    let stream = client.push(digest, request).await?;
    let view = stream.answer(|text| progress.now(text)).await?;
    drop(progress);
    context.out().answer(&view, || {
        let (sent, size) = (bytes(view.sent), bytes(view.size));
        format!("pushed to {}: manifest {}, {sent} sent, layers {size}\n", request.to, view.manifest)
    })
}

fn part_of(output: &Path) -> PathBuf {
    let mut part = output.as_os_str().to_owned();
    while part.as_encoded_bytes().ends_with(b"/") {
        part = PathBuf::from(part).components().as_path().as_os_str().to_owned();
    }
    part.push(format!(".{}.part", std::process::id()));
    part.into()
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Code::File, format!("`{}` could not be written: {error}", path.display()))
}

async fn file(
    client: &Client,
    digest: &str,
    request: &ExportRequest,
    path: &Path,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let mut file = File::create_new(path).map_err(|e| unwritable(path, &e))?;
    let mut download = client.export(digest, request).await?;
    let mut size = 0;
    while let Some(piece) = download.next().await? {
        file.write_all(&piece).map_err(|e| unwritable(path, &e))?;
        size += piece.len() as u64;
        progress.now(&format!("writing, {} MB", size / 1_000_000));
    }
    file.sync_all().map_err(|e| unwritable(path, &e))
}

/// The archive, unpacked as it comes. Its members are files whose names the server chose; anything else is refused.
async fn folder(
    client: &Client,
    digest: &str,
    request: &ExportRequest,
    path: &Path,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let archive = path.with_extension("archive");
    let whole = file(client, digest, request, &archive, progress).await;
    let unpacked = whole.and_then(|()| unpack(&archive, path).map_err(|e| unwritable(path, &e)));
    // It may not have come to be.
    let _ = std::fs::remove_file(&archive);
    unpacked
}

fn unpack(archive: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir(to)?;
    for entry in tar::Archive::new(File::open(archive)?).entries()? {
        let mut entry = entry?;
        // Refuses what leads out of the folder.
        if !entry.unpack_in(to)? {
            return Err(std::io::Error::other("the archive has a name that leads out of it"));
        }
    }
    Ok(())
}
