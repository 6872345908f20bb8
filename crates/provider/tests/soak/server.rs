//! The server of the soak tests: a process of its own that may be killed at any moment. It is told what shall run by a file in
//! its state folder, makes it so, and knows nothing of the servers before it but what the provider knows.

use kiln_model::*;
use kiln_provider::local::{self, LocalConfig, LocalProvider};
use kiln_provider::{Provider, ProviderError};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;
use tokio::task::JoinSet;

const WISHES: &str = "wishes.json";
/// Instances that are started and stopped at the same time.
const TOGETHER: usize = 6;

/// What shall become of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wish {
    /// It is started and destroyed after some milliseconds.
    Pass(u64),
    /// It is started, ends by itself, and is destroyed then.
    End,
    /// It is started.
    Stay,
}

/// Writes down what the next servers are to do.
pub fn wish(state: &Path, wishes: &[(InstanceSpec, Wish)]) {
    std::fs::write(state.join(WISHES), serde_json::to_vec(wishes).unwrap()).unwrap();
}

/// Ends what a failed case left, so that nothing outlives the test. Declared before the servers are started.
pub struct Sweeper<'a>(pub &'a Path);

impl Drop for Sweeper<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = local::sweep(self.0);
        }
    }
}

/// A running server, which does not outlive a test that fails.
pub struct Server(pub Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a server.
pub fn start(state: &Path) -> Server {
    let mut command = Command::new(std::env::current_exe().unwrap());
    Server(command.arg("server").arg(state).stdin(Stdio::null()).spawn().unwrap())
}

/// A server's life. It ends with 0 when all wishes are fulfilled and none is to stay.
pub fn main(state: &Path) -> ExitCode {
    let wishes: Vec<(InstanceSpec, Wish)> =
        serde_json::from_slice(&std::fs::read(state.join(WISHES)).unwrap()).unwrap();
    let mut config = LocalConfig::new(state);
    config.program = std::env::current_exe().unwrap();
    crate::stage::runtime().block_on(async {
        let provider = LocalProvider::open(config).unwrap();
        let stays = wishes.iter().any(|(_, wish)| *wish == Wish::Stay);
        let mut tasks = JoinSet::new();
        for (spec, wish) in wishes {
            if local::instance_folder(state, &spec.id).join("gone.json").exists() {
                continue;
            }
            while tasks.len() >= TOGETHER {
                tasks.join_next().await.unwrap().unwrap();
            }
            tasks.spawn(fulfil(provider.clone(), spec, wish));
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        if stays {
            std::future::pending::<()>().await;
        }
    });
    ExitCode::SUCCESS
}

async fn fulfil(provider: LocalProvider, spec: InstanceSpec, wish: Wish) {
    loop {
        match provider.ensure(fence(), &spec, &NO_SECRETS).await {
            Ok(_) => break,
            // A server before this one destroyed it.
            Err(ProviderError::Tombstoned { .. }) => return,
            // What was killed meanwhile may have been needed for it.
            Err(ProviderError::Retry { .. }) => tokio::time::sleep(Duration::from_millis(2)).await,
            Err(error) => panic!("{error}"),
        }
    }
    match wish {
        Wish::Stay => return,
        Wish::Pass(milliseconds) => tokio::time::sleep(Duration::from_millis(milliseconds)).await,
        Wish::End => {
            let ended = |state: &SeenState| matches!(state, SeenState::Exited(_));
            kiln_provider::conformance::until(&provider, &spec.id, ended).await;
        }
    }
    while let Err(error) = provider.absent(fence(), &spec.id).await {
        assert!(matches!(error, ProviderError::Retry { .. }), "{error}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub fn fence() -> Fence {
    Fence { incarnation: Incarnation(1), epoch: Epoch(9), revision: Revision(100), op: OpId(1) }
}
