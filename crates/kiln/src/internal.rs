//! The parts that kiln plays for itself, each in a process of its own: `kiln internal PART …`. Not for people.

use kiln_control::crash;
use kiln_image::{builder, containerfile, debian, kernel, worker};
use kiln_provider::{local, vm};
use std::ffi::OsString;
use std::process::ExitCode;

pub(crate) fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let part = arguments.next().and_then(|part| part.into_string().ok()).unwrap_or_default();
    let texts = |arguments: &mut dyn Iterator<Item = OsString>| -> Vec<String> {
        arguments.map(|a| a.to_string_lossy().into_owned()).collect()
    };
    match part.as_str() {
        // The process that clones pids 1 of instances.
        "zygote" => local::zygote::main(arguments),
        // The parent of a virtual machine.
        "machine" => vm::main(arguments),
        // A `command` check inside an instance.
        "exec" => local::exec::main(),
        // One bake.
        "bake" => worker::main(),
        // The installer of Debian packages, in its sandbox.
        "rootfs" => debian::rootfs::main(texts(&mut arguments)),
        // buildah, in a sandbox of its own.
        "containerfile" => containerfile::main(texts(&mut arguments)),
        // The supervisor of a build in a sealed builder.
        "build" => builder::main(),
        // Fills a folder that serves as `--mirror file:DIR`; used by the demo and the tests.
        "mirror" => debian::fill::main(texts(&mut arguments)),
        // The kernel of virtual machines, for tests.
        "kernel" => kernel::main(texts(&mut arguments)),
        // Where `KILN_CRASH_AT` can end the server, for tests.
        "points" => {
            crash::Point::ALL.iter().for_each(|point| println!("{}", point.name()));
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("error: `{part}` is not a part that kiln plays");
            ExitCode::from(64)
        }
    }
}
