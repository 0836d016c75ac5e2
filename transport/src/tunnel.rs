//! A byte tunnel over a QUIC stream: carries Redis from the node that has it to those that joined.
//!
//! Always holds: nodes only; bytes pass as they come; each direction's end is passed on, and when
//! both have ended nothing is left on either side.
//! Not for: files (`blocks`).
use crate::{
    BoxFuture,
    endpoint::{Handler, StreamKind, code},
    frame::Stream,
    identity::PeerIdentity,
    pool::{Peer, PeerError},
};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// How long the target may take to answer the connect.
const TARGET_DEADLINE: Duration = Duration::from_secs(3);
/// Bytes under way in each direction.
const BUFFER_BYTES: usize = 64 << 10;

/// Where a tunnel ends on the serving side.
#[derive(Clone, Debug)]
pub enum Target {
    /// "host:port".
    Tcp(String),
    /// A unix socket's path.
    Unix(std::path::PathBuf),
}

/// Serves `StreamKind::TUNNEL` (nodes only): connects to the target, copies both ways.
pub struct TunnelServer {
    /// Where all its tunnels end.
    pub target: Target,
}

impl Handler for TunnelServer {
    fn handle(&self, peer: Arc<PeerIdentity>, stream: Stream) -> BoxFuture<'static, ()> {
        let target = self.target.clone();
        Box::pin(async move {
            if let Err(error) = carry(&target, stream).await {
                tracing::debug!(peer = %peer.name, ?target, %error, "a tunnel ended");
            }
        })
    }
}

async fn carry(target: &Target, mut stream: Stream) -> io::Result<()> {
    let connected = tokio::time::timeout(TARGET_DEADLINE, connect(target))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    match connected {
        Ok(Connected::Tcp(end)) => copy(stream, end).await,
        Ok(Connected::Unix(end)) => copy(stream, end).await,
        Err(error) => {
            tracing::warn!(?target, %error, "the target of a tunnel cannot be reached");
            stream.abandon(code::NO_TARGET);
            Err(error)
        }
    }
}

enum Connected {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

async fn connect(target: &Target) -> io::Result<Connected> {
    match target {
        Target::Tcp(address) => {
            let end = tokio::net::TcpStream::connect(address).await?;
            end.set_nodelay(true)?;
            Ok(Connected::Tcp(end))
        }
        Target::Unix(path) => Ok(Connected::Unix(
            tokio::net::UnixStream::connect(path).await?,
        )),
    }
}

async fn copy(stream: Stream, mut end: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut near = tokio::io::join(stream.recv, stream.send);
    tokio::io::copy_bidirectional_with_sizes(&mut near, &mut end, BUFFER_BYTES, BUFFER_BYTES)
        .await?;
    Ok(())
}

/// The joining side: one stream to the peer's Redis, as tokio's AsyncRead + AsyncWrite. An attempt is made whatever was in
/// vain before: the pace is the caller's.
pub async fn open(
    peer: &Peer,
) -> Result<tokio::io::Join<quinn::RecvStream, quinn::SendStream>, PeerError> {
    peer.urge();
    let stream = peer.open(StreamKind::TUNNEL).await?;
    Ok(tokio::io::join(stream.recv, stream.send))
}
