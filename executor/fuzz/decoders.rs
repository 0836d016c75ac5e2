//! Every decoder of what comes from outside a node: shared by the fuzz target and by the test that runs its corpus.
//!
//! What must hold: whatever the bytes, they are taken apart or refused; nothing panics, and no more memory is taken than they could fill.
use ks_executor::frames::{self, Decoder};
use ks_executor::protocol::{FromWorker, Request, ToWorker};
use ks_executor::queue::record::{self, StoredCall, StoredEnd};
use ks_fs::peer::{FileReply, FileRequest};
use ks_fs::record::{Entry, Inode, Link, decode as decode_record};
use ks_transport::blocks::{BlockRequest, Refusal};
use ks_transport::{frame, segments};

/// What a peer's frame may have.
const LIMIT_BYTES: usize = 1 << 20;

/// Takes the bytes apart as each of the things that they could be.
pub fn decode_all(bytes: &[u8]) {
    between_nodes(bytes);
    from_clients_and_workers(bytes);
    from_redis(bytes);
}

fn between_nodes(bytes: &[u8]) {
    let Some((header, rest)) = bytes.split_first_chunk::<4>() else {
        return;
    };
    let body = match frame::frame_len(*header, LIMIT_BYTES) {
        Ok(length) => &rest[..length.min(rest.len())],
        Err(_) => rest,
    };
    let _ = frame::decode::<BlockRequest>(body);
    let _ = frame::decode::<Result<(), Refusal>>(body);
    let _ = frame::decode::<FileRequest>(body);
    let _ = frame::decode::<FileReply>(body);
}

fn from_clients_and_workers(bytes: &[u8]) {
    let _ = segments::read(&mut &bytes[..]);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime of one thread");
    let mut decoder = Decoder::default();
    let mut rest = bytes;
    while let Ok(Some(segments)) = runtime.block_on(decoder.read(&mut rest)) {
        let _ = frames::header::<Request>(&segments);
        let _ = frames::header::<FromWorker>(&segments);
        let _ = frames::header::<ToWorker>(&segments);
    }
}

fn from_redis(bytes: &[u8]) {
    let _ = decode_record::<Inode>(bytes);
    let _ = Entry::from_bytes(bytes);
    let _ = Link::from_bytes(bytes);
    let _ = record::decode::<StoredCall>(bytes);
    let _ = record::decode::<StoredEnd>(bytes);
}
