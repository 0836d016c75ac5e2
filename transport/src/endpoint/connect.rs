//! Making one connection: resolve, shake hands, say what went wrong.
use super::{ConnectError, tuning};
use crate::identity::NODE_HOST;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;

/// How long a name may take to resolve.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(2);
/// How long a handshake with all addresses of a name may take together.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// How long a handshake may go unanswered before another is begun beside it.
const AFRESH_AFTER: Duration = Duration::from_millis(300);
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;

pub(super) async fn connect(
    endpoint: &quinn::Endpoint,
    config: &quinn::ClientConfig,
    has_ipv6: bool,
    address: &str,
) -> Result<quinn::Connection, ConnectError> {
    let candidates = resolve(address, has_ipv6).await?;
    let share = CONNECT_DEADLINE / candidates.len() as u32;
    let mut last = ConnectError::Gone(address.to_owned());
    for candidate in candidates {
        match tokio::time::timeout(share, shake_any(endpoint, config, candidate, address)).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => last = error,
            Err(_) => last = ConnectError::Gone(address.to_owned()),
        }
    }
    Err(last)
}

async fn resolve(address: &str, has_ipv6: bool) -> Result<Vec<SocketAddr>, ConnectError> {
    let unresolved = || ConnectError::Resolve(address.to_owned());
    let found = tokio::time::timeout(RESOLVE_DEADLINE, tokio::net::lookup_host(address))
        .await
        .map_err(|_| unresolved())?
        .map_err(|_| unresolved())?;
    let usable: Vec<_> = found
        .filter(|candidate| has_ipv6 || candidate.is_ipv4())
        .take(ADDRESSES_MAX)
        .collect();
    if usable.is_empty() {
        return Err(unresolved());
    }
    Ok(usable)
}

/// Shakes hands, and begins afresh for as long as nothing is heard: QUIC repeats what is lost at ever longer intervals, so a
/// peer that comes back meanwhile would be found late. The caller has the deadline.
async fn shake_any(
    endpoint: &quinn::Endpoint,
    config: &quinn::ClientConfig,
    candidate: SocketAddr,
    address: &str,
) -> Result<quinn::Connection, ConnectError> {
    let answered = Arc::new(AtomicBool::new(false));
    let mut hands = JoinSet::new();
    loop {
        if !answered.load(Ordering::Relaxed) {
            let (endpoint, config) = (endpoint.clone(), config.clone());
            let (address, answered) = (address.to_owned(), answered.clone());
            hands.spawn(async move {
                shake_hands(&endpoint, &config, candidate, &address, &answered).await
            });
        }
        // The first that ends decides; those that are left end with the set.
        match tokio::time::timeout(AFRESH_AFTER, hands.join_next()).await {
            Ok(Some(Ok(outcome))) => return outcome,
            Ok(Some(Err(_)) | None) => return Err(ConnectError::Gone(address.to_owned())),
            Err(_) => {}
        }
    }
}

async fn shake_hands(
    endpoint: &quinn::Endpoint,
    config: &quinn::ClientConfig,
    candidate: SocketAddr,
    address: &str,
    answered: &AtomicBool,
) -> Result<quinn::Connection, ConnectError> {
    let mut connecting = endpoint
        .connect_with(
            tuning::client_config_for(config, candidate),
            candidate,
            NODE_HOST,
        )
        .map_err(|error| ConnectError::Refused {
            address: address.to_owned(),
            reason: error.to_string(),
        })?;
    if connecting.handshake_data().await.is_ok() {
        answered.store(true, Ordering::Relaxed);
    }
    let connection = connecting.await.map_err(|error| explain(address, &error))?;
    confirm(&connection)
        .await
        .map_err(|error| explain(address, &error))?;
    tuning::fit_to_path(&connection);
    Ok(connection)
}

/// Waits for the server's word that our certificate is good.
///
/// In TLS 1.3 the client is done before the server has seen its certificate, so a refusal comes
/// after the handshake. The server confirms by finishing it, which shows as a stream's credit.
async fn confirm(connection: &quinn::Connection) -> Result<(), quinn::ConnectionError> {
    let mut welcome = connection.accept_uni().await?;
    let _ = welcome.read_to_end(0).await;
    Ok(())
}

/// Whether the peer, or our check of it, refused, or whether nobody is there.
pub(super) fn explain(address: &str, error: &quinn::ConnectionError) -> ConnectError {
    use quinn::ConnectionError;
    let refused = |reason: String| ConnectError::Refused {
        address: address.to_owned(),
        reason,
    };
    match error {
        ConnectionError::TransportError(_) | ConnectionError::ConnectionClosed(_) => {
            refused(describe(error))
        }
        ConnectionError::ApplicationClosed(close) if close.error_code == super::code::GOODBYE => {
            ConnectError::Gone(address.to_owned())
        }
        ConnectionError::ApplicationClosed(close) => {
            refused(super::code::describe(close.error_code.into_inner()))
        }
        ConnectionError::VersionMismatch => refused("it speaks another version of QUIC".into()),
        ConnectionError::TimedOut
        | ConnectionError::Reset
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => ConnectError::Gone(address.to_owned()),
    }
}

/// What went wrong in a handshake, as its own side saw it.
pub(super) fn describe(error: &quinn::ConnectionError) -> String {
    use quinn::ConnectionError;
    match error {
        ConnectionError::TransportError(inner) => match alert_meaning(inner.code) {
            Some(meaning) => format!("{meaning} ({})", inner.reason),
            None => inner.to_string(),
        },
        ConnectionError::ConnectionClosed(close) => match alert_meaning(close.error_code) {
            Some(meaning) => meaning.to_owned(),
            None => close.to_string(),
        },
        other => other.to_string(),
    }
}

/// TLS alerts (RFC 8446, 6) as they show for us.
fn alert_meaning(code: quinn::TransportErrorCode) -> Option<&'static str> {
    let code = u64::from(code);
    if code >> 8 != 1 {
        return None;
    }
    Some(match code & 0xff {
        40 => "no common way to speak",
        42..=46 | 48 | 49 | 51 => "not the same cluster key",
        70 => "another version of TLS",
        116 => "no certificate was shown: a cluster key or client key is needed",
        120 => "another version of KitchenSink",
        _ => "the handshake failed",
    })
}
