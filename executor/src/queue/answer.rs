//! What the scripts answer, taken apart. `None`: it makes no sense.
use super::{Claimed, Claims, Finished, Full, Listed, Next, Submitted};
use redis::Value;

pub(super) fn parse_submitted(answer: Value) -> Option<Submitted> {
    let [now, claimed, known, full] = fields(answer)?;
    let full = match text(full)?.as_str() {
        "" => None,
        "jobs" => Some(Full::Jobs),
        "bodies" => Some(Full::Bodies),
        _ => return None,
    };
    Some(Submitted {
        full,
        now_ms: integer(&now)?,
        claimed: list(claimed)?
            .into_iter()
            .map(text)
            .collect::<Option<_>>()?,
        known: list(known)?.into_iter().map(text).collect::<Option<_>>()?,
    })
}

/// The bytes that ends take, and what became of each of the batch.
pub(super) fn parse_finished(answer: Value) -> Option<(u64, Vec<Finished>)> {
    let [bytes, answers] = fields(answer)?;
    let parse = |value: Value| {
        Some(match text(value)?.as_str() {
            "ended" => Finished::Ended,
            "again" => Finished::Again,
            _ => Finished::Refused,
        })
    };
    let answers = list(answers)?.into_iter().map(parse);
    Some((integer(&bytes)?, answers.collect::<Option<_>>()?))
}

pub(super) fn parse_claims(answer: Value) -> Option<Claims> {
    let [now, next, taken] = fields(answer)?;
    let now_ms = integer(&now)?;
    let next = match next {
        Value::Int(-1) => Next::Nothing,
        Value::Int(0) => Next::Now,
        Value::Int(at) => Next::In((at as u64).saturating_sub(now_ms)),
        _ => return None,
    };
    let parse = |value: Value| {
        let [job, body, retries, accepted, origin] = fields(value)?;
        Some(Claimed {
            job: text(job)?,
            body: bytes(body)?,
            retries: text(retries)?.parse().ok()?,
            accepted_ms: text(accepted)?.parse().ok()?,
            origin: text(origin)?.parse().ok()?,
        })
    };
    let jobs = list(taken)?.into_iter().map(parse).collect::<Option<_>>()?;
    Some(Claims { now_ms, next, jobs })
}

/// `None` too where it has ended meanwhile.
pub(super) fn parse_listed(job: &str, answer: Value) -> Option<Listed> {
    let [state, body, queue, priority, retries, token, accepted] = fields(answer)?;
    Some(Listed {
        job: job.to_owned(),
        state: text(state)?,
        body: bytes(body)?,
        queue: text(queue)?,
        priority: text(priority)?.parse().ok()?,
        retries: text(retries)?.parse().ok()?,
        token: text(token).unwrap_or_default(),
        accepted_ms: text(accepted)?.parse().ok()?,
    })
}

/// What ZSCAN answers: where to go on, and members (each is followed by its score).
pub(super) fn parse_portion(answer: Value) -> Option<(String, Vec<String>)> {
    let [next, members] = fields(answer)?;
    let members = list(members)?.into_iter().step_by(2).map(text);
    Some((text(next)?, members.collect::<Option<_>>()?))
}

pub(super) fn list(value: Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(values) | Value::Set(values) => Some(values),
        _ => None,
    }
}

pub(super) fn fields<const N: usize>(value: Value) -> Option<[Value; N]> {
    list(value)?.try_into().ok()
}

pub(super) fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.into_bytes()),
        _ => None,
    }
}

pub(super) fn text(value: Value) -> Option<String> {
    String::from_utf8(bytes(value)?).ok()
}

pub(super) fn integer(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}
