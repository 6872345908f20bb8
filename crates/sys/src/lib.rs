//! The one place that makes raw system calls. Everything here is a thin, safe wrapper with one error type,
//! [`CallError`], that names the call and its object; policy lives in the crates above.
//!
//! | module | for |
//! |---|---|
//! | [`process`] | `clone3` with a closure, pidfds, start times, signals |
//! | [`exec`] | becoming another program |
//! | [`namespace`] | new namespaces, uid maps, entering others; [`namespace::enter_private_net`] for tests |
//! | [`mount`] | the file-descriptor mount API, EROFS images, idmaps, changing the root |
//! | [`sandbox`] | /dev, /proc and the scratch namespace that instances and builders share |
//! | [`privilege`] | user, capabilities, `no_new_privs`, resource limits |
//! | [`seccomp`] | the system call filter of instances |
//! | [`syscalls`] | the names of system calls |
//! | [`text`] | formatting without the heap |
//! | [`netlink`] | bridges, veth pairs, addresses, routes |
//! | [`nftables`] | tables of the packet filter |
//! | [`cgroup`] | limits, killing and counting, on v1, v2 and hybrid hosts |
//! | [`path`] | opening a path below a root that is not trusted |
//! | [`host`] | what the host has: room, limits, and trials of what instances are made of |
//! | [`clock`] | boot id and clocks |
//! | [`message`] | datagrams with descriptors |
//! | [`seal`] | the promise to leave the heap alone |
//! | [`tap`] | network cards of virtual machines |
//! | [`wire`] | what an instance in a virtual machine and its host say to each other |
//!
//! [`GUEST_INIT`] is a program of its own, pid 1 of virtual machines; its source is in `guest/`.
#![expect(
    unsafe_code,
    reason = "this crate is where raw system calls are made; each block says why it is sound"
)]

pub mod cgroup;
pub mod clock;
mod error;
pub mod exec;
pub mod host;
pub mod message;
pub mod mount;
pub mod namespace;
pub mod netlink;
pub mod nftables;
pub mod path;
pub mod privilege;
pub mod process;
pub mod sandbox;
pub mod seal;
pub mod seccomp;
pub mod syscalls;
pub mod tap;
pub mod text;
#[path = "../guest/wire.rs"]
pub mod wire;

/// The static program that is pid 1 of a virtual machine.
pub const GUEST_INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest-init"));

pub use error::{CallError, Context};
