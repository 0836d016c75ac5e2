//! The event stream: what changed, in the one order that all nodes see.
use super::reads::{array, bytes, damaged};
use super::{Catalog, CatalogError, EventId, EventsTrimmed};
use crate::record::{Event, NodeId, decode};
use crate::redis_client::RedisError;
use redis::Value;
use redis::aio::MultiplexedConnection;
use std::time::Duration;

/// The stream's key.
pub(super) const STREAM: &str = "ks:events";
/// How long Redis waits for the first event.
const WAIT: Duration = Duration::from_secs(10);
/// How much longer than `WAIT` an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most events in one answer, whatever is asked for.
const BATCH_MAX: usize = 10_000;

/// An entry of the stream.
pub(super) struct EntryRead {
    pub(super) id: EventId,
    pub(super) origin: NodeId,
    pub(super) nonce: u64,
    event: Vec<u8>,
}

/// Reads `[[id, [field, value, ...]], ...]`.
pub(super) fn entries(value: Value) -> Result<Vec<EntryRead>, CatalogError> {
    let values = match value {
        Value::Nil => return Ok(Vec::new()),
        value => array(value).ok_or_else(|| damaged("events"))?,
    };
    let read = values
        .into_iter()
        .map(|value| entry(value).ok_or_else(|| damaged("events")));
    read.collect()
}

fn entry(value: Value) -> Option<EntryRead> {
    let [id, fields]: [Value; 2] = array(value)?.try_into().ok()?;
    let mut fields = array(fields)?.into_iter().filter_map(bytes);
    let (mut origin, mut nonce, mut event) = (None, None, None);
    while let (Some(field), Some(value)) = (fields.next(), fields.next()) {
        match &field[..] {
            b"o" => origin = std::str::from_utf8(&value).ok()?.parse().ok(),
            b"k" => nonce = super::memory::parse(&value),
            b"e" => event = Some(value),
            _ => {}
        }
    }
    Some(EntryRead {
        id: EventId::from_value(&id)?,
        origin: origin?,
        nonce: nonce?,
        event: event?,
    })
}

impl Catalog {
    /// Events after `after`, waiting up to 10 s for the first; `Err(Trimmed)` in the inner result when the stream no longer reaches back that far
    /// (or never had that event: another Redis). A connection of its own; one caller at a time.
    pub async fn events(
        &self,
        after: EventId,
        max: usize,
    ) -> Result<Result<Vec<(EventId, NodeId, Event)>, EventsTrimmed>, CatalogError> {
        let kept = self.shared.events.lock().unwrap().take();
        let mut connection = match kept {
            Some(connection) => connection,
            None => self.redis().dedicated().await?,
        };
        // An error or a caller that gives up drops the connection, and the question with it.
        let (new, check) = read_stream(&mut connection, after, max).await?;
        *self.shared.events.lock().unwrap() = Some(connection);
        if !reaches_back(after, check)? {
            return Ok(Err(EventsTrimmed));
        }
        let stream = match new {
            Value::Nil => return Ok(Ok(Vec::new())),
            new => stream_of(new).ok_or_else(|| damaged("events"))?,
        };
        let read = entries(stream)?.into_iter().map(|entry| {
            let event = decode(&entry.event)?;
            Ok((entry.id, entry.origin, event))
        });
        Ok(Ok(read.collect::<Result<_, CatalogError>>()?))
    }

    /// Where the stream ends now; 0-0 when it is empty.
    pub async fn last_event(&self) -> Result<EventId, CatalogError> {
        let mut command = redis::cmd("XREVRANGE");
        command.arg(STREAM).arg("+").arg("-").arg("COUNT").arg(1);
        let last = entries(self.redis().run(&command).await?)?;
        Ok(last.first().map(|entry| entry.id).unwrap_or_default())
    }
}

/// The new events, and what tells whether there is a gap before them. The second is read after the first: if `after`
/// still stands then, nothing past it was trimmed before.
async fn read_stream(
    connection: &mut MultiplexedConnection,
    after: EventId,
    max: usize,
) -> Result<(Value, Value), CatalogError> {
    let mut pipeline = redis::pipe();
    pipeline
        .cmd("XREAD")
        .arg("COUNT")
        .arg(max.clamp(1, BATCH_MAX))
        .arg("BLOCK")
        .arg(WAIT.as_millis() as u64)
        .arg("STREAMS")
        .arg(STREAM)
        .arg(after.to_string());
    if after == EventId::default() {
        pipeline.cmd("EXISTS").arg(STREAM);
        pipeline.cmd("XINFO").arg("STREAM").arg(STREAM).ignore();
    } else {
        let at = after.to_string();
        pipeline.cmd("XRANGE").arg(STREAM).arg(&at).arg(&at);
    }
    let answer = connection.send_packed_commands(&pipeline, 0, pipeline.len());
    let answers = match tokio::time::timeout(WAIT + PATIENCE, answer).await {
        Ok(Ok(answers)) => answers,
        Ok(Err(error)) => return Err(RedisError::Lost(error.to_string()).into()),
        Err(_) => return Err(RedisError::Timeout(WAIT + PATIENCE).into()),
    };
    let mut answers = answers.into_iter();
    let new = answers.next().unwrap_or(Value::Nil);
    if let Value::ServerError(error) = new {
        let error = redis::RedisError::from(error);
        return Err(RedisError::Refused(error.to_string()).into());
    }
    Ok((new, answers.next_back().unwrap_or(Value::Nil)))
}

/// Whether nothing between `after` and the first new event has been trimmed.
fn reaches_back(after: EventId, check: Value) -> Result<bool, CatalogError> {
    if after != EventId::default() {
        return Ok(!entries(check)?.is_empty());
    }
    // From the very beginning: every event that was ever added must still be there. No stream at all is an error.
    let Some(info) = array(check) else {
        return Ok(true);
    };
    let mut info = info.into_iter();
    let (mut length, mut added) = (None, None);
    while let (Some(field), Some(value)) = (info.next(), info.next()) {
        match bytes(field).as_deref() {
            Some(b"length") => length = bytes(value),
            Some(b"entries-added") => added = bytes(value),
            _ => {}
        }
    }
    Ok(length == added)
}

/// The one stream's entries out of XREAD's answer, a map (RESP3) or a list of pairs.
fn stream_of(value: Value) -> Option<Value> {
    match value {
        Value::Map(streams) => streams.into_iter().next().map(|(_, entries)| entries),
        Value::Array(streams) => match streams.into_iter().next()? {
            Value::Array(pair) => pair.into_iter().nth(1),
            _ => None,
        },
        _ => None,
    }
}
