//! What an instance gets of its secrets, in a sandbox and in a virtual machine alike, and what is nowhere else.

use crate::fence;
use crate::host::Host;
use kiln_model::frame::Stream;
use kiln_model::*;
use kiln_provider::Provider;
use kiln_provider::conformance::until;

const CANARY: &str = "canary-of-the-provider-4711";

fn holds(haystack: &[u8]) -> bool {
    haystack.windows(CANARY.len()).any(|window| window == CANARY.as_bytes())
}

/// The files of an instance that have the canary in them, and where else of its process it is.
fn leaks(host: &Host, id: &InstanceId) -> Vec<String> {
    let folder = kiln_provider::local::instance_folder(host.state(), id);
    let files = std::fs::read_dir(folder).unwrap().flatten().filter(|entry| entry.path().is_file());
    let mut found: Vec<_> = files.map(|entry| entry.path()).collect();
    let process = format!("/proc/{}", host.supervisor(id));
    found.extend(["environ", "cmdline"].map(|name| format!("{process}/{name}").into()));
    let fds = std::fs::read_dir(format!("{process}/fd")).unwrap().flatten();
    let held = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    let memory = held.filter(|path| path.to_string_lossy().contains("kiln-secrets"));
    let leaking = found.into_iter().filter(|path| std::fs::read(path).is_ok_and(|bytes| holds(&bytes)));
    leaking.chain(memory).map(|path| path.display().to_string()).collect()
}

pub async fn run(host: &Host) {
    let provider = host.provider();
    let mut spec = host.spec(290, &["probe", "secrets"]);
    let name = |text: &str| SecretName::new(text).unwrap();
    spec.secrets = [(name("API_KEY"), SecretVersion(3)), (name("BIG"), SecretVersion(1))].into();
    let missing = provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap_err().to_string();
    assert!(missing.contains("the value of `API_KEY` did not come"), "{missing}");
    assert!(provider.list().await.unwrap().is_empty(), "nothing was started, and nothing written down");
    let big: Vec<u8> = (0..limits::SECRET_BYTES_MAX).map(|n| n as u8).collect();
    let values =
        [(name("API_KEY"), SecretValue::new(CANARY.into())), (name("BIG"), SecretValue::new(big))].into();
    provider.ensure(fence(), &spec, &values).await.unwrap();
    let printed = || host.printed(&spec.id, Stream::Out);
    until(&provider, &spec.id, |_| printed().iter().any(|line| line == "ready")).await;
    let expected = [
        "folder 500 mine",
        "API_KEY 400 mine 27 bytes, sum 2432",
        "BIG 400 mine 65536 bytes, sum 8355840",
        "create: ReadOnlyFilesystem",
        "write refused: true",
        "remove: ReadOnlyFilesystem",
        "ready",
    ];
    assert_eq!(printed(), expected);
    assert_eq!(leaks(host, &spec.id), Vec::<String>::new());
    // The same look finds one that is there.
    let folder = kiln_provider::local::instance_folder(host.state(), &spec.id);
    std::fs::write(folder.join("planted"), format!("x{CANARY}x")).unwrap();
    assert_eq!(leaks(host, &spec.id).len(), 1, "a planted one is found");
    std::fs::remove_file(folder.join("planted")).unwrap();
    // A server that is started again needs none of them for what runs.
    drop(provider);
    let provider = host.provider();
    let again = provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
    assert_eq!(again.state, SeenState::Running);
    provider.absent(fence(), &spec.id).await.unwrap();
    println!("secrets: files in memory for their user alone, and nowhere else");
}
