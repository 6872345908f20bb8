//! Compiles the init of virtual machines (`guest/init.rs`) into a static program that kiln embeds.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=guest");
    println!("cargo::rerun-if-changed=build.rs");
    let variable = |name| std::env::var_os(name).unwrap_or_default();
    let out = PathBuf::from(variable("OUT_DIR")).join("guest-init");
    // The same bytes wherever it is compiled: no path of this host, one unit of code, nothing to link at run time.
    let mut command = Command::new(variable("RUSTC"));
    command.args([
        "guest/init.rs",
        "--edition",
        "2024",
        "--crate-name",
        "kiln_guest_init",
        "--crate-type",
        "bin",
    ]);
    command.args(["-C", "target-feature=+crt-static", "-C", "relocation-model=static", "-C", "panic=abort"]);
    command.args(["-C", "opt-level=s", "-C", "codegen-units=1", "-C", "lto=fat", "-C", "strip=symbols"]);
    command.args(["-C", "link-arg=-Wl,--build-id=none", "--target"]).arg(variable("TARGET"));
    command.arg("-o").arg(out).current_dir(variable("CARGO_MANIFEST_DIR"));
    match command.status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        result => {
            println!("cargo::error=the init of virtual machines does not compile: {result:?}");
            ExitCode::FAILURE
        }
    }
}
