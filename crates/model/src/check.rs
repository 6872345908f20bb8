//! Checks of an instance, and the evidence that one ran.

use crate::time::{Millis, Wall};
use serde::{Deserialize, Serialize};

/// One thing that must hold of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What is looked at.
    #[serde(flatten)]
    pub kind: CheckKind,
    /// How long one attempt may take.
    pub timeout: Millis,
}

/// What a check looks at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "check", rename_all = "snake_case")]
pub enum CheckKind {
    /// `GET path` on `port` answers with `status`, and its body contains `contains`.
    Http {
        /// TCP port.
        port: u16,
        /// Path with query, starting with `/`.
        path: String,
        /// Expected status; none means any from 200 to 399.
        status: Option<u16>,
        /// Text that the body must contain.
        contains: Option<String>,
        /// `Host` header; none means the instance's address.
        host: Option<String>,
    },
    /// `port` accepts a TCP connection.
    Tcp {
        /// TCP port.
        port: u16,
    },
    /// A file exists in the instance's file system; read from outside.
    File {
        /// Absolute path in the instance.
        path: String,
        /// Text that the file must contain.
        contains: Option<String>,
    },
    /// Some process of the instance listens on the TCP port; read from outside.
    Listening {
        /// TCP port.
        port: u16,
    },
    /// A program in the instance's namespaces ends with status 0.
    Command {
        /// Program and arguments; no shell.
        argv: Vec<String>,
    },
}

impl std::fmt::Display for CheckKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CheckKind::Http { port, path, .. } => write!(f, "http :{port}{path}"),
            CheckKind::Tcp { port } => write!(f, "tcp :{port}"),
            CheckKind::File { path, .. } => write!(f, "file {path}"),
            CheckKind::Listening { port } => write!(f, "listening :{port}"),
            CheckKind::Command { argv } => write!(f, "command {}", argv.join(" ")),
        }
    }
}

/// That a check ran, and what it saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// The check, as [`CheckKind`] prints it.
    pub check: String,
    /// Whether it held.
    pub passed: bool,
    /// What was seen: `200 in 3 ms`, `connection refused`.
    pub detail: String,
    /// How long it took.
    pub took: Millis,
    /// When it ended.
    pub at: Wall,
}
