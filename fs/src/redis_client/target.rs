//! From a `RedisTarget` to a connection: what the URLs mean and how each kind of target is reached.
//! Every connection speaks RESP3.
use super::{RedisError, RedisTarget, VERSION_NEEDED, translate};
use ks_transport::pool::Peer;
use ks_transport::quiet::QuietStream;
use redis::aio::MultiplexedConnection;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo,
    ProtocolVersion, RedisConnectionInfo,
};
use std::fmt;
use std::future::Future;
use std::path::Path;

/// A Sentinel's port where the URL names none.
const SENTINEL_PORT: u16 = 26379;

/// A target whose URL has been understood.
pub(super) enum Endpoint {
    Direct {
        client: Client,
        shown: String,
    },
    Sentinel {
        client: tokio::sync::Mutex<SentinelClient>,
        shown: String,
    },
    Through {
        peer: Peer,
        settings: RedisConnectionInfo,
    },
}

/// As told to people: never with the password.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Direct { shown, .. } | Endpoint::Sentinel { shown, .. } => f.write_str(shown),
            Endpoint::Through { peer, .. } => write!(f, "redis through {}", peer.address()),
        }
    }
}

impl Endpoint {
    pub(super) fn new(target: RedisTarget) -> Result<Self, RedisError> {
        match target {
            RedisTarget::Url(url) if url.starts_with("redis+sentinel://") => sentinel(&url),
            RedisTarget::Url(url) => {
                let info = plain_url(&url)
                    .into_connection_info()
                    .map_err(|error| bad(&url, &error.to_string()))?;
                direct(info)
            }
            RedisTarget::Socket { path, password, db } => {
                let info = ConnectionAddr::Unix(path)
                    .into_connection_info()
                    .map_err(|error| RedisError::BadUrl(error.to_string()))?;
                direct(info.set_redis_settings(settings(password.as_deref(), db)))
            }
            RedisTarget::Through { peer, password, db } => Ok(Endpoint::Through {
                peer,
                settings: settings(password.as_deref(), db),
            }),
        }
    }

    /// One new connection, greeted and authenticated.
    pub(super) async fn connect(
        &self,
        config: AsyncConnectionConfig,
    ) -> Result<MultiplexedConnection, RedisError> {
        let made = match self {
            Endpoint::Direct { client, .. }
                if let ConnectionAddr::Unix(path) = client.get_connection_info().addr() =>
            {
                let stream = quiet(path).await?;
                let settings = client.get_connection_info().redis_settings();
                let made = MultiplexedConnection::new_with_config(settings, stream, config).await;
                made.map(driven)
            }
            Endpoint::Direct { client, .. } => {
                client
                    .get_multiplexed_async_connection_with_config(&config)
                    .await
            }
            Endpoint::Sentinel { client, .. } => {
                let mut client = client.lock().await;
                client.get_async_connection_with_config(&config).await
            }
            Endpoint::Through { peer, settings } => {
                let stream = ks_transport::tunnel::open(peer)
                    .await
                    .map_err(|error| RedisError::Unreachable(error.to_string()))?;
                let made = MultiplexedConnection::new_with_config(settings, stream, config).await;
                made.map(driven)
            }
        };
        made.map_err(|error| self.refusal(error))
    }

    /// Why there is no connection, and what to do.
    fn refusal(&self, error: redis::RedisError) -> RedisError {
        if error.kind() == ErrorKind::RESP3NotSupported {
            return RedisError::TooOld {
                found: format!("{self}, a version without RESP3"),
                needed: VERSION_NEEDED,
            };
        }
        match translate(error) {
            RedisError::Lost(text) => RedisError::Unreachable(format!("{self}: {text}")),
            RedisError::Refused(text) if asks_for_password(&text) => RedisError::Refused(format!(
                "{self} wants a password, or another one; give it in the URL: redis://:PASSWORD@HOST:PORT ({text})"
            )),
            RedisError::Refused(text) => RedisError::Refused(format!("{self}: {text}")),
            other => other,
        }
    }
}

/// Starts what carries a connection. It ends by itself when the last clone of the connection is dropped.
fn driven(
    (connection, driver): (
        MultiplexedConnection,
        impl Future<Output = ()> + Send + 'static,
    ),
) -> MultiplexedConnection {
    tokio::spawn(driver);
    connection
}

/// A socket of this machine. Its connecting end never waits for long: the queue of a listening unix socket is there or full at once.
async fn quiet(path: &Path) -> Result<QuietStream, RedisError> {
    let unreachable = |error: std::io::Error| {
        RedisError::Unreachable(format!("redis at {}: {error}", path.display()))
    };
    let stream = tokio::net::UnixStream::connect(path)
        .await
        .map_err(unreachable)?;
    let stream = stream.into_std().and_then(QuietStream::new);
    stream.map_err(unreachable)
}

fn asks_for_password(refusal: &str) -> bool {
    ["NOAUTH", "WRONGPASS", "AuthenticationFailed"]
        .iter()
        .any(|code| refusal.contains(code))
}

fn direct(info: ConnectionInfo) -> Result<Endpoint, RedisError> {
    let shown = format!("redis at {}", info.addr());
    let settings = info
        .redis_settings()
        .clone()
        .set_protocol(ProtocolVersion::RESP3);
    let client = Client::open(info.set_redis_settings(settings))
        .map_err(|error| RedisError::BadUrl(format!("{shown}: {error}")))?;
    Ok(Endpoint::Direct { client, shown })
}

fn settings(password: Option<&str>, db: i64) -> RedisConnectionInfo {
    let settings = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP3)
        .set_db(db);
    match password {
        Some(password) => settings.set_password(password),
        None => settings,
    }
}

fn bad(url: &str, what: &str) -> RedisError {
    RedisError::BadUrl(format!("the redis URL '{}': {what}", without_password(url)))
}

/// The URL as it may be shown.
fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let rest = rest.split('?').next().unwrap_or(rest);
    match rest.rsplit_once('@') {
        Some((_, place)) => format!("{scheme}://{place}"),
        None => format!("{scheme}://{rest}"),
    }
}

/// The seeds' `tcp://host:port?db=9` in the form that the redis crate reads; others as they are.
fn plain_url(url: &str) -> String {
    let Some(rest) = url.strip_prefix("tcp://") else {
        return url.to_owned();
    };
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let db = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("db="))
        .unwrap_or("");
    format!("redis://{}/{db}", place.trim_end_matches('/'))
}

/// What a Sentinel URL says: `redis+sentinel://[user:password@]host[:port],host[:port]/master[/db]`.
#[derive(Debug, PartialEq)]
struct SentinelUrl {
    user: Option<String>,
    password: Option<String>,
    sentinels: Vec<(String, u16)>,
    master: String,
    db: i64,
}

fn parse_sentinel(url: &str) -> Result<SentinelUrl, RedisError> {
    let rest = url.strip_prefix("redis+sentinel://").unwrap_or(url);
    let (auth, rest) = match rest.rsplit_once('@') {
        Some((auth, rest)) => (Some(auth), rest),
        None => (None, rest),
    };
    let mut parts = rest.split('/');
    let sentinels = parts
        .next()
        .unwrap_or("")
        .split(',')
        .map(|place| host_and_port(place).ok_or_else(|| bad(url, "'host:port' is expected")))
        .collect::<Result<Vec<_>, _>>()?;
    let master = match parts.next() {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => return Err(bad(url, "the master's name is missing (…/NAME)")),
    };
    let db = match parts.next() {
        None | Some("") => 0,
        Some(db) => db
            .parse()
            .map_err(|_| bad(url, "the database is a number"))?,
    };
    let (user, password) = match auth.map(|auth| auth.split_once(':').unwrap_or(("", auth))) {
        Some((user, password)) => (
            (!user.is_empty()).then(|| user.to_owned()),
            Some(password.to_owned()),
        ),
        None => (None, None),
    };
    Ok(SentinelUrl {
        user,
        password,
        sentinels,
        master,
        db,
    })
}

fn host_and_port(place: &str) -> Option<(String, u16)> {
    match place.rsplit_once(':') {
        _ if place.is_empty() => None,
        Some((host, port)) => Some((host.trim_matches(['[', ']']).to_owned(), port.parse().ok()?)),
        None => Some((place.to_owned(), SENTINEL_PORT)),
    }
}

fn sentinel(url: &str) -> Result<Endpoint, RedisError> {
    let parsed = parse_sentinel(url)?;
    let addresses = parsed
        .sentinels
        .iter()
        .map(|(host, port)| ConnectionAddr::Tcp(host.clone(), *port));
    let mut builder =
        SentinelClientBuilder::new(addresses, &parsed.master, SentinelServerType::Master)
            .map_err(|error| bad(url, &error.to_string()))?
            .set_client_to_redis_protocol(ProtocolVersion::RESP3)
            .set_client_to_redis_db(parsed.db);
    if let Some(user) = &parsed.user {
        builder = builder.set_client_to_redis_username(user);
    }
    if let Some(password) = &parsed.password {
        builder = builder.set_client_to_redis_password(password);
    }
    let client = builder
        .build()
        .map_err(|error| bad(url, &error.to_string()))?;
    Ok(Endpoint::Sentinel {
        client: tokio::sync::Mutex::new(client),
        shown: format!("redis '{}' of {}", parsed.master, without_password(url)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_url_names_its_database() {
        assert_eq!(plain_url("tcp://host:6379?db=9"), "redis://host:6379/9");
        assert_eq!(plain_url("tcp://host:6379"), "redis://host:6379/");
        assert_eq!(plain_url("redis://host/2"), "redis://host/2");
    }

    #[test]
    fn a_sentinel_url_is_read() {
        let parsed = parse_sentinel("redis+sentinel://me:secret@a:1,b/mymaster/3").unwrap();
        assert_eq!(
            parsed,
            SentinelUrl {
                user: Some("me".into()),
                password: Some("secret".into()),
                sentinels: vec![("a".into(), 1), ("b".into(), SENTINEL_PORT)],
                master: "mymaster".into(),
                db: 3,
            }
        );
        assert!(parse_sentinel("redis+sentinel://a:1").is_err());
        assert!(parse_sentinel("redis+sentinel:///mymaster").is_err());
    }

    #[test]
    fn no_message_shows_the_password() {
        let error = match Endpoint::new(RedisTarget::Url("http://u:secret@host/".into())) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("http is not redis"),
        };
        assert!(!error.contains("secret"), "{error}");
        assert!(error.contains("host"), "{error}");
    }
}
