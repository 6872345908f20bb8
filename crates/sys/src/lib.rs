//! The one place that makes raw system calls: namespaces, the new mount API, netlink, seccomp, cgroups, pidfds.
//! Everything above is safe Rust with typed errors that name the step and the object.
