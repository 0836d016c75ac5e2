//! The `ks` program.
fn main() {}
