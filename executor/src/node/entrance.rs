//! Where this node's Redis is, and how a node that joins through this one finds it.
use super::*;
use ks_transport::BoxFuture;
use ks_transport::frame::Stream;
use ks_transport::identity::PeerIdentity;
use serde::{Deserialize, Serialize};

/// Streams on which a joining node asks its way.
pub const ENTRANCE: StreamKind = StreamKind(48);
/// How long the node that is joined may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a question or answer.
const MESSAGE_BYTES_MAX: usize = 4096;
/// Nodes may have joined through nodes that joined: so many hops are followed.
const HOPS_MAX: usize = 8;

/// A joining node's question.
#[derive(Debug, Serialize, Deserialize)]
struct WhereIsRedis;

/// What it is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Directions {
    /// I carry it: open a tunnel to me.
    Here { password: Option<String>, db: i64 },
    /// It has an address of its own.
    Url(String),
    /// I joined through another node: ask there.
    Ask(String),
}

/// How this node reaches its Redis, and what it tells others.
pub(super) struct Access {
    pub(super) target: RedisTarget,
    directions: Directions,
    tunnel: Option<Target>,
}

impl Access {
    /// The Redis that is given, the one of the node that is joined, or a private one that is started now.
    pub(super) async fn find(
        options: &MountArgs,
        store: &Store,
        pool: &PeerPool,
        key: &ClusterKey,
    ) -> anyhow::Result<(Option<RedisServer>, Self)> {
        match (&options.redis, &options.join) {
            (Some(url), _) => Ok((None, Self::given(url))),
            (None, Some(host)) => Ok((None, Self::joined(&with_port(host), pool).await?)),
            (None, None) => {
                let server =
                    RedisServer::start_with_password(&store.state_dir(), key.redis_password())
                        .await?;
                let directions = Directions::Here {
                    password: Some(server.password()),
                    db: 0,
                };
                let access = Self {
                    target: server.target(),
                    directions,
                    tunnel: Some(Target::Unix(server.socket())),
                };
                Ok((Some(server), access))
            }
        }
    }

    fn given(url: &str) -> Self {
        let target = RedisTarget::Url(url.to_owned());
        Self {
            target,
            directions: Directions::Url(url.to_owned()),
            tunnel: None,
        }
    }

    async fn joined(host: &str, pool: &PeerPool) -> anyhow::Result<Self> {
        let mut address = host.to_owned();
        for _ in 0..HOPS_MAX {
            let peer = pool.peer(&address);
            let answer: Directions = peer
                .request(ENTRANCE, &WhereIsRedis, MESSAGE_BYTES_MAX, ANSWER_TIMEOUT)
                .await
                .with_context(|| format!("--join {address}: cannot join through that node (is it up, and has this machine its cluster key?)"))?;
            match answer {
                Directions::Here { password, db } => {
                    let target = RedisTarget::Through { peer, password, db };
                    return Ok(Self {
                        target,
                        directions: Directions::Ask(address),
                        tunnel: None,
                    });
                }
                Directions::Url(url) => return Ok(Self::given(&url)),
                Directions::Ask(next) => address = next,
            }
        }
        bail!("--join {host}: the nodes there refer to one another and none has the Redis")
    }

    /// What people call it, for errors.
    pub(super) fn described(&self) -> String {
        match &self.target {
            RedisTarget::Url(url) => format!("the Redis at {}", without_password(url)),
            RedisTarget::Socket { path, .. } => {
                format!("the private Redis at {}", path.display())
            }
            RedisTarget::Through { peer, .. } => format!("the Redis behind {}", peer.address()),
        }
    }

    pub(super) fn carried_by_us(&self) -> bool {
        self.tunnel.is_some()
    }

    /// Answers joining nodes, and carries Redis where it is ours.
    pub(super) fn handlers(&self) -> Vec<(StreamKind, Arc<dyn Handler>)> {
        let entrance: Arc<dyn Handler> = Arc::new(Entrance(self.directions.clone()));
        let mut handlers = vec![(ENTRANCE, entrance)];
        if let Some(target) = self.tunnel.clone() {
            handlers.push((StreamKind::TUNNEL, Arc::new(TunnelServer { target })));
        }
        handlers
    }
}

/// A URL as it may be shown: no password in it.
pub(super) fn without_password(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(start), Some(at)) if at > start => format!("{}://…{}", &url[..start], &url[at..]),
        _ => url.to_owned(),
    }
}

/// Serves `ENTRANCE`; nodes only.
pub(super) struct Entrance(Directions);

impl Handler for Entrance {
    fn handle(&self, peer: Arc<PeerIdentity>, mut stream: Stream) -> BoxFuture<'static, ()> {
        let directions = self.0.clone();
        Box::pin(async move {
            let answered = async {
                if stream
                    .read::<WhereIsRedis>(MESSAGE_BYTES_MAX)
                    .await?
                    .is_some()
                {
                    stream.write(&directions).await?;
                }
                Ok::<_, ks_transport::frame::FrameError>(())
            };
            match answered.await {
                Ok(()) => tracing::info!("{} ({}) asked its way in", peer.name, peer.address),
                Err(error) => tracing::info!("{} ({}): {error}", peer.name, peer.address),
            }
            let _ = stream.send.finish();
        })
    }
}

#[cfg(test)]
mod tests {
    use super::without_password;

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(
            without_password("redis://:secret@host:6379/0"),
            "redis://…@host:6379/0"
        );
        assert_eq!(
            without_password("tcp://host:6379?db=9"),
            "tcp://host:6379?db=9"
        );
    }
}
