//! Application error codes: why a stream or a connection was ended, told to the peer.
use quinn::VarInt;

/// The process ends in good order.
pub const GOODBYE: VarInt = VarInt::from_u32(0);
/// A frame was longer than may come there.
pub const TOO_LONG: VarInt = VarInt::from_u32(1);
/// A stream ended inside a frame.
pub const CUT_OFF: VarInt = VarInt::from_u32(2);
/// A frame was not a message of the protocol.
pub const MALFORMED: VarInt = VarInt::from_u32(3);
/// Nobody here serves streams of that kind.
pub const UNKNOWN_KIND: VarInt = VarInt::from_u32(4);
/// The peer's role may not open streams of that kind.
pub const NOT_ALLOWED: VarInt = VarInt::from_u32(5);
/// The peer said nothing for too long.
pub const TOO_SLOW: VarInt = VarInt::from_u32(6);
/// Who wanted the answer wants it no more.
pub const CANCELLED: VarInt = VarInt::from_u32(7);
/// The file could not be read to its end.
pub const UNREADABLE: VarInt = VarInt::from_u32(8);
/// The target of a tunnel cannot be reached.
pub const NO_TARGET: VarInt = VarInt::from_u32(9);
/// The bytes did not match the hash.
pub const CORRUPT: VarInt = VarInt::from_u32(10);
/// The certificate is valid and yet not one of ours.
pub const NOT_A_MEMBER: VarInt = VarInt::from_u32(11);
/// Not used any more; will be made again when it is.
pub const IDLE: VarInt = VarInt::from_u32(12);

/// What a code means, for people.
pub fn describe(code: u64) -> String {
    let meaning = match u32::try_from(code).map(VarInt::from_u32) {
        Ok(GOODBYE) => "the process stopped",
        Ok(TOO_LONG) => "a frame was too long",
        Ok(CUT_OFF) => "a frame was cut off",
        Ok(MALFORMED) => "a frame was not a message of the protocol",
        Ok(UNKNOWN_KIND) => "it does not serve that",
        Ok(NOT_ALLOWED) => "not allowed: that is for nodes, and this is a client key",
        Ok(TOO_SLOW) => "nothing came for too long",
        Ok(CANCELLED) => "not wanted any more",
        Ok(UNREADABLE) => "the file could not be read to its end",
        Ok(NO_TARGET) => "its Redis cannot be reached",
        Ok(CORRUPT) => "bytes did not match their hash",
        Ok(NOT_A_MEMBER) => "not a member's certificate",
        Ok(IDLE) => "not in use",
        _ => return format!("code {code}"),
    };
    meaning.to_owned()
}
