//! A change of the catalog as a value: what must hold, what is then done, what is told to all nodes.
//! Pure; `commit.lua` carries it out in one step, all or nothing.
use crate::record::{Event, Ino, NodeId, encode};
use redis::Value;

use super::EventId;

/// The field of a directory's hash that holds its change time (decimal nanoseconds); no name contains a slash.
pub const TIME_FIELD: &[u8] = b"/t";
/// The field of a directory's hash that counts its subdirectories.
pub const SUBDIRECTORIES_FIELD: &[u8] = b"/n";
/// An empty directory's fields: the two above.
pub const EMPTY_DIRECTORY_FIELDS: usize = 2;

/// A key of the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// `ks:i:<ino>`: string, encoded `Inode`.
    Inode(Ino),
    /// `ks:d:<ino>`: hash, name -> `Entry`.
    Directory(Ino),
    /// `ks:l:<ino>`: set of `Link`s, all but the first.
    Links(Ino),
    /// `ks:h:<ino>`: hash, node -> encoded `Holding`.
    Holdings(Ino),
    /// `ks:nodes`: hash, node -> encoded `NodeInfo`.
    Nodes,
    /// `ks:alive:<node>`: string that expires.
    Alive(NodeId),
    /// `ks:meta`: hash of single values.
    Meta,
    /// `ks:recovered`: hash, what of whom -> after which event it stands (see `recovery`).
    Recovered,
}

impl Place {
    /// The key's bytes.
    pub fn key(&self) -> Vec<u8> {
        match self {
            Place::Inode(ino) => format!("ks:i:{ino}"),
            Place::Directory(ino) => format!("ks:d:{ino}"),
            Place::Links(ino) => format!("ks:l:{ino}"),
            Place::Holdings(ino) => format!("ks:h:{ino}"),
            Place::Nodes => "ks:nodes".into(),
            Place::Alive(node) => format!("ks:alive:{node}"),
            Place::Meta => "ks:meta".into(),
            Place::Recovered => "ks:recovered".into(),
        }
        .into_bytes()
    }

    /// Whether nodes remember what stands there, so that they are told of changes.
    pub fn is_remembered(&self) -> bool {
        matches!(self, Place::Inode(_) | Place::Directory(_))
    }

    /// The place of a key whose changes are told (inodes and directories).
    pub fn from_tracked_key(key: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(key).ok()?;
        if let Some(ino) = text.strip_prefix("ks:i:") {
            return Some(Place::Inode(ino.parse().ok()?));
        }
        let ino = text.strip_prefix("ks:d:")?;
        Some(Place::Directory(ino.parse().ok()?))
    }

    /// The inode that a tracked place speaks of.
    pub fn ino(&self) -> Option<Ino> {
        match self {
            Place::Inode(ino)
            | Place::Directory(ino)
            | Place::Links(ino)
            | Place::Holdings(ino) => Some(*ino),
            Place::Nodes | Place::Alive(_) | Place::Meta | Place::Recovered => None,
        }
    }
}

/// What must hold for the transaction to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// The key does not exist.
    Absent(Place),
    /// The key exists.
    Present(Place),
    /// The string has these bytes.
    Equals(Place, Vec<u8>),
    /// The hash has no such field.
    NoField(Place, Vec<u8>),
    /// The hash has such a field.
    Field(Place, Vec<u8>),
    /// The hash's field has these bytes.
    FieldEquals(Place, Vec<u8>, Vec<u8>),
    /// The hash has so many fields.
    Fields(Place, usize),
    /// The set has this member.
    Member(Place, Vec<u8>),
}

/// What it means when a check fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Otherwise {
    /// The operation fails with this errno.
    Errno(i32),
    /// What was read has changed: read again and plan anew.
    Stale,
}

/// What is done when all checks hold, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// The string becomes these bytes.
    Set(Place, Vec<u8>),
    /// The string becomes these bytes, for so many milliseconds.
    SetExpiring(Place, Vec<u8>, u64),
    /// The key goes.
    Delete(Place),
    /// The hash's field becomes these bytes.
    SetField(Place, Vec<u8>, Vec<u8>),
    /// The hash's field goes.
    DeleteField(Place, Vec<u8>),
    /// The hash's field, a number, changes by so much; the reply tells what it came to.
    Increase(Place, Vec<u8>, i64),
    /// The set gets this member.
    AddMember(Place, Vec<u8>),
    /// The set loses this member.
    RemoveMember(Place, Vec<u8>),
    /// What follows is nothing that somebody did just now: what journals say later of the same things still counts.
    Quietly,
}

impl Operation {
    /// The key it changes.
    pub fn place(&self) -> Place {
        match self {
            Operation::Set(place, _)
            | Operation::SetExpiring(place, _, _)
            | Operation::Delete(place)
            | Operation::SetField(place, _, _)
            | Operation::DeleteField(place, _)
            | Operation::Increase(place, _, _)
            | Operation::AddMember(place, _)
            | Operation::RemoveMember(place, _) => *place,
            Operation::Quietly => Place::Recovered,
        }
    }
}

/// One atomic change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// All of them must hold.
    pub conditions: Vec<(Check, Otherwise)>,
    /// Done in order.
    pub operations: Vec<Operation>,
    /// Told to all nodes, at this place of the stream.
    pub event: Option<Event>,
}

impl Transaction {
    /// Adds a condition whose failure is the operation's errno.
    pub fn require(&mut self, check: Check, errno: i32) {
        self.conditions.push((check, Otherwise::Errno(errno)));
    }
    /// Adds a condition whose failure means that what was read has changed.
    pub fn expect(&mut self, check: Check) {
        if !self.conditions.iter().any(|(known, _)| *known == check) {
            self.conditions.push((check, Otherwise::Stale));
        }
    }
    /// Makes all of it something that nobody did just now (see `Operation::Quietly`).
    pub fn quietly(&mut self) {
        if !self.operations.is_empty() && !self.is_quiet() {
            self.operations.insert(0, Operation::Quietly);
        }
    }
    /// Whether it is nothing that somebody did just now.
    pub fn is_quiet(&self) -> bool {
        self.operations.first() == Some(&Operation::Quietly)
    }
    /// Adds an operation.
    pub fn then(&mut self, operation: Operation) {
        self.operations.push(operation);
    }
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty() && self.event.is_none()
    }

    /// The keys of inodes and directories that it changes, each once: what others may remember of them is old then.
    pub fn touched(&self) -> Vec<Place> {
        let places = self.operations.iter().map(Operation::place);
        let mut touched: Vec<Place> = places.filter(Place::is_remembered).collect();
        touched.sort();
        touched.dedup();
        touched
    }

    /// The arguments of `commit.lua`. `nonce` tells this attempt from all others, in the event stream and among what is told.
    pub fn arguments(&self, origin: NodeId, nonce: u64) -> Vec<Vec<u8>> {
        let mut words = vec![self.conditions.len().to_string().into_bytes()];
        for (check, _) in &self.conditions {
            check_words(check, &mut words);
        }
        for operation in &self.operations {
            operation_words(operation, &mut words);
        }
        let touched: Vec<Vec<u8>> = self.touched().iter().map(Place::key).collect();
        if self.event.is_some() || !touched.is_empty() {
            let event = self.event.as_ref().map(encode).unwrap_or_default();
            let (origin, nonce) = (origin.to_string(), nonce.to_string());
            let touched = touched.join(&b',');
            words.extend([
                b"tell".to_vec(),
                origin.into(),
                nonce.into(),
                touched,
                event,
            ]);
        }
        words
    }
}

fn check_words(check: &Check, words: &mut Vec<Vec<u8>>) {
    let (kind, place, rest): (&str, &Place, Vec<Vec<u8>>) = match check {
        Check::Absent(place) => ("absent", place, vec![]),
        Check::Present(place) => ("present", place, vec![]),
        Check::Equals(place, value) => ("equals", place, vec![value.clone()]),
        Check::NoField(place, field) => ("nofield", place, vec![field.clone()]),
        Check::Field(place, field) => ("field", place, vec![field.clone()]),
        Check::FieldEquals(place, field, value) => {
            ("fieldequals", place, vec![field.clone(), value.clone()])
        }
        Check::Fields(place, count) => ("fields", place, vec![count.to_string().into_bytes()]),
        Check::Member(place, member) => ("member", place, vec![member.clone()]),
    };
    words.push(kind.into());
    words.push(place.key());
    words.extend(rest);
}

fn operation_words(operation: &Operation, words: &mut Vec<Vec<u8>>) {
    let (kind, rest): (&str, Vec<Vec<u8>>) = match operation {
        Operation::Set(_, value) => ("set", vec![value.clone()]),
        Operation::SetExpiring(_, value, milliseconds) => (
            "expiring",
            vec![value.clone(), milliseconds.to_string().into_bytes()],
        ),
        Operation::Delete(_) => ("del", vec![]),
        Operation::SetField(_, field, value) => ("hset", vec![field.clone(), value.clone()]),
        Operation::DeleteField(_, field) => ("hdel", vec![field.clone()]),
        Operation::Increase(_, field, by) => {
            ("hincrby", vec![field.clone(), by.to_string().into_bytes()])
        }
        Operation::AddMember(_, member) => ("sadd", vec![member.clone()]),
        Operation::RemoveMember(_, member) => ("srem", vec![member.clone()]),
        Operation::Quietly => ("quietly", vec![]),
    };
    words.push(kind.into());
    words.push(operation.place().key());
    words.extend(rest);
}

/// What `commit.lua` said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was done: this condition (by index) does not hold.
    Failed(usize),
    /// Done.
    Done {
        /// The event's id (0-0 without event).
        event: EventId,
        /// The last event's id before it (0-0 without event).
        previous: EventId,
        /// What each `Increase` came to, in order.
        counts: Vec<i64>,
    },
}

impl Outcome {
    /// Reads the script's reply; `None` when it makes no sense.
    pub fn from_reply(reply: Value) -> Option<Self> {
        let Value::Array(parts) = reply else {
            return None;
        };
        match &parts[..] {
            [Value::Int(0), Value::Int(failed)] => Some(Outcome::Failed(
                usize::try_from(*failed).ok()?.checked_sub(1)?,
            )),
            [Value::Int(1), event, previous, counts @ ..] => Some(Outcome::Done {
                event: EventId::from_value(event)?,
                previous: EventId::from_value(previous)?,
                counts: counts
                    .iter()
                    .map(|count| match count {
                        Value::Int(count) => Some(*count),
                        _ => None,
                    })
                    .collect::<Option<_>>()?,
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tracked_keys_are_known_again() {
        for place in [Place::Inode(7), Place::Directory(9)] {
            assert_eq!(Place::from_tracked_key(&place.key()), Some(place));
        }
        assert_eq!(Place::from_tracked_key(&Place::Nodes.key()), None);
    }

    #[test]
    fn arguments_are_in_the_scripts_order() {
        let mut change = Transaction::default();
        change.require(Check::Fields(Place::Directory(2), 2), libc::ENOTEMPTY);
        change.then(Operation::Delete(Place::Directory(2)));
        let words: Vec<String> = change
            .arguments(NodeId(1), 5)
            .into_iter()
            .map(|word| String::from_utf8(word).unwrap())
            .collect();
        let own = NodeId(1).to_string();
        let change = ["1", "fields", "ks:d:2", "2", "del", "ks:d:2"];
        let told = ["tell", &own, "5", "ks:d:2", ""];
        assert_eq!(words, [&change[..], &told[..]].concat());
    }

    #[test]
    fn replies_are_read() {
        let text = |text: &str| Value::BulkString(text.into());
        let failed = Value::Array(vec![Value::Int(0), Value::Int(2)]);
        assert_eq!(Outcome::from_reply(failed), Some(Outcome::Failed(1)));
        let done = vec![Value::Int(1), text("5-1"), text("4-0"), Value::Int(3)];
        assert_eq!(
            Outcome::from_reply(Value::Array(done)),
            Some(Outcome::Done {
                event: EventId(5, 1),
                previous: EventId(4, 0),
                counts: vec![3],
            })
        );
        assert_eq!(Outcome::from_reply(Value::Nil), None);
    }
}
