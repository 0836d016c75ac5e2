//! The event stream: what changed, in the one order that all nodes see.
use super::feed::Taken;
use super::reads::{array, bytes, damaged};
use super::{Catalog, CatalogError, EventId, EventsTrimmed};
use crate::record::{Event, NodeId, decode};
use crate::redis_client::RedisError;
use redis::Value;
use std::time::Duration;

/// The stream's key.
pub(super) const STREAM: &str = "ks:events";
/// How long the first event is waited for; then the stream is looked at, in case its telling was not heard.
const WAIT: Duration = Duration::from_secs(10);
/// Most events in one answer, whatever is asked for.
const BATCH_MAX: usize = 10_000;

/// Events with their places and who made them; or that there is a gap.
pub type EventsRead = Result<Vec<(EventId, NodeId, Event)>, EventsTrimmed>;

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
    /// (or never had that event: another Redis). One caller at a time.
    ///
    /// They are not older than what is remembered: both are told on one connection, in Redis's order. Own ones alone do not
    /// end the waiting (see `wake_events`).
    pub async fn events(&self, after: EventId, max: usize) -> Result<EventsRead, CatalogError> {
        self.events_after(|| after, max).await
    }

    /// As `events`, after a position that moves meanwhile.
    pub async fn events_after(
        &self,
        position: impl Fn() -> EventId,
        max: usize,
    ) -> Result<EventsRead, CatalogError> {
        let deadline = tokio::time::Instant::now() + WAIT;
        let feed = &self.shared.feed;
        loop {
            let after = position();
            match feed.take(after, max) {
                Taken::Events(told) => {
                    let events = told.into_iter().map(|event| {
                        let decoded = decode(&event.encoded)?;
                        Ok((event.id, event.origin, decoded))
                    });
                    return Ok(Ok(events.collect::<Result<_, CatalogError>>()?));
                }
                Taken::Gap => match self.read_stream(after, max).await? {
                    Ok(events) if events.is_empty() => feed.ends_at(after),
                    read => return Ok(read),
                },
                Taken::Nothing => {
                    let news = tokio::time::timeout_at(deadline, feed.news());
                    if news.await.is_err() {
                        feed.doubt();
                        return Ok(Ok(Vec::new()));
                    }
                }
            }
        }
    }

    /// Whoever waits for events takes own ones too, now.
    pub fn wake_events(&self) {
        self.shared.feed.wake();
    }

    /// What the stream has after `after`, without waiting. The second question is asked after the first: if `after`
    /// still stands then, nothing past it was trimmed before.
    async fn read_stream(&self, after: EventId, max: usize) -> Result<EventsRead, CatalogError> {
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(max.clamp(1, BATCH_MAX));
        command.arg("STREAMS").arg(STREAM).arg(after.to_string());
        let new = self.redis().run(&command).await?;
        if !self.reaches_back(after).await? {
            self.look_for_lost_event(after).await?;
            self.check_whole().await?;
            return Ok(Err(EventsTrimmed));
        }
        let stream = match new {
            Value::Nil => {
                self.look_for_lost_changes().await?;
                return Ok(Ok(Vec::new()));
            }
            new => stream_of(new).ok_or_else(|| damaged("events"))?,
        };
        let read = entries(stream)?.into_iter().map(|entry| {
            let event = decode(&entry.event)?;
            Ok((entry.id, entry.origin, event))
        });
        Ok(Ok(read.collect::<Result<_, CatalogError>>()?))
    }

    /// Whether nothing between `after` and the first new event has been trimmed.
    pub(super) async fn reaches_back(&self, after: EventId) -> Result<bool, CatalogError> {
        if after != EventId::default() {
            let mut command = redis::cmd("XRANGE");
            let at = after.to_string();
            command.arg(STREAM).arg(&at).arg(&at);
            return Ok(!entries(self.redis().run(&command).await?)?.is_empty());
        }
        let mut command = redis::cmd("XINFO");
        command.arg("STREAM").arg(STREAM);
        match self.redis().run(&command).await {
            Ok(info) => Ok(has_all_that_was_added(info)),
            // No stream at all.
            Err(RedisError::Refused(_)) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Where the stream ends now; 0-0 when it is empty.
    pub async fn last_event(&self) -> Result<EventId, CatalogError> {
        let mut command = redis::cmd("XREVRANGE");
        command.arg(STREAM).arg("+").arg("-").arg("COUNT").arg(1);
        let last = entries(self.redis().run(&command).await?)?;
        Ok(last.first().map(|entry| entry.id).unwrap_or_default())
    }
}

/// From the very beginning: every event that was ever added must still be there.
fn has_all_that_was_added(info: Value) -> bool {
    let Some(info) = array(info) else {
        return true;
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
    length == added
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
