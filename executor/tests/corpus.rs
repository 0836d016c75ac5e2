//! The corpus of the fuzz target `frames`, and what comes of it by small damages: taken apart or refused, without a panic.
#[path = "../fuzz/decoders.rs"]
mod decoders;

use proptest::prelude::*;
use std::path::Path;

fn corpus() -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/frames");
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
        .iter()
        .map(|file| std::fs::read(file).unwrap())
        .collect()
}

#[test]
fn every_file_of_the_corpus() {
    let files = corpus();
    assert!(files.len() >= 20, "{} files", files.len());
    for bytes in &files {
        decoders::decode_all(bytes);
        for end in (0..bytes.len()).step_by(1 + bytes.len() / 64) {
            decoders::decode_all(&bytes[..end]);
        }
    }
}

proptest! {
    #[test]
    fn damaged_files_of_the_corpus(which in any::<prop::sample::Index>(), damages in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let files = corpus();
        let mut bytes = which.get(&files).clone();
        for (at, value) in damages {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
        }
        decoders::decode_all(&bytes);
    }
}
