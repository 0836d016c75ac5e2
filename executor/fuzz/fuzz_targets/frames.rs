//! Bytes that a peer, a client or a worker may send, against everything that takes them apart.
#![no_main]

#[path = "../decoders.rs"]
mod decoders;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| decoders::decode_all(bytes));
