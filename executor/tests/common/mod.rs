//! What several tests need.
#![allow(dead_code, missing_docs)]
use std::path::PathBuf;

pub mod cluster;

/// The worker that tests use in Python's place (`examples/fake_worker.rs`, which cargo builds with the tests).
pub fn fake_worker() -> PathBuf {
    let mut path = std::env::current_exe().expect("a test has a path");
    path.pop();
    path.pop();
    path.push("examples/fake_worker");
    assert!(
        path.exists(),
        "{} is not built; run: cargo build --examples",
        path.display()
    );
    path
}
