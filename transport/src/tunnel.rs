//! A byte tunnel over a QUIC stream: carries Redis from the node that has it to those that joined.
use crate::{
    BoxFuture,
    endpoint::Handler,
    frame::Stream,
    pool::{Peer, PeerError},
};
use std::sync::Arc;

/// Where a tunnel ends on the serving side.
#[derive(Clone, Debug)]
pub enum Target {
    Tcp(String),
    Unix(std::path::PathBuf),
}

/// Serves `StreamKind::TUNNEL` (nodes only): connects to the target, copies both ways.
pub struct TunnelServer {
    pub target: Target,
}
impl Handler for TunnelServer {
    fn handle(
        &self,
        peer: Arc<crate::identity::PeerIdentity>,
        stream: Stream,
    ) -> BoxFuture<'static, ()> {
        todo!()
    }
}

/// The joining side: one stream to the peer's Redis, as tokio's AsyncRead + AsyncWrite.
pub async fn open(
    peer: &Peer,
) -> Result<tokio::io::Join<quinn::RecvStream, quinn::SendStream>, PeerError> {
    todo!()
}
