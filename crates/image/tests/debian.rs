//! The Debian installer on real packages.
fn main() -> std::process::ExitCode {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some("internal") && args.next().as_deref() == Some("mirror") {
        return kiln_image::debian::fill::main(args);
    }
    std::process::ExitCode::SUCCESS
}
