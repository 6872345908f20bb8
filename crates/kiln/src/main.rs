//! The kiln binary: parses, composes roles, maps exit codes.

fn main() {}
