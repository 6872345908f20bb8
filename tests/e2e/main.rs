//! End-to-end suites.
fn main() {}
