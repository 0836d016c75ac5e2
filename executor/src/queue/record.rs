//! What a job's record carries through Redis: the call as it was accepted, and its end. Opaque to the scripts.
use crate::protocol::{Call, Update};
use ks_fs::record::{DamagedRecord, NodeId};
use serde::{Deserialize, Serialize};

/// A call as it was accepted (`ks:j:<job>`, field `b`): its payload's parts are inline or blobs, never segments.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoredCall {
    /// As the client wants it.
    pub call: Call,
    /// The node that keeps its blobs (and the function's, where that is one).
    pub keeper: NodeId,
    /// Why it was placed as it was, for people.
    pub why: String,
    /// What each node would have had to fetch, by name.
    pub costs: Vec<(String, u64)>,
    /// Its hints are not its own: they are what earlier calls make likely.
    #[serde(default)]
    pub is_learned: bool,
}

/// A job's end (field `e`): `update` is an `Update::Ended`, its parts inline or blobs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoredEnd {
    /// What its caller is told.
    pub update: Update,
    /// The node that keeps its blobs.
    pub keeper: NodeId,
    /// The end of what it wrote, for who asks later.
    #[serde(default)]
    pub wrote: Wrote,
}

/// What a call wrote to its standard output and error, as far as it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrote {
    /// Descriptor (1 or 2) and bytes, in order.
    pub pieces: Vec<(u8, serde_bytes::ByteBuf)>,
    /// Bytes before them that are not kept.
    pub omitted_bytes: u64,
}

/// A function's code (`ks:f:<hash>`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum StoredFunction {
    /// The code itself.
    Inline(serde_bytes::ByteBuf),
    /// A blob.
    Blob {
        /// Its BLAKE3 hash.
        hash: [u8; 32],
        /// Bytes.
        size: u64,
        /// The node that has it.
        keeper: NodeId,
    },
}

/// First byte of each: the format's version.
const FORMAT: u8 = 1;

/// Encodes for Redis. MessagePack, as protocol types are made for it, without names.
pub fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    let mut bytes = vec![FORMAT];
    rmp_serde::encode::write(&mut bytes, record).expect("records always encode");
    bytes
}

/// Decodes what `encode` made.
pub fn decode<T: for<'d> Deserialize<'d>>(bytes: &[u8]) -> Result<T, DamagedRecord> {
    match bytes.split_first() {
        Some((&FORMAT, rest)) => {
            rmp_serde::from_slice(rest).map_err(|e| DamagedRecord(e.to_string()))
        }
        Some((other, _)) => Err(DamagedRecord(format!(
            "format {other}, this program reads {FORMAT}"
        ))),
        None => Err(DamagedRecord("empty".into())),
    }
}
