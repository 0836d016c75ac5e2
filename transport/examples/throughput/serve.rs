//! The answering side.
use crate::{INFO, Info, PING, RAW, cpu_seconds};
use bytes::Bytes;
use ks_transport::BoxFuture;
use ks_transport::blocks::{
    BlockRequest, BlockServer, BlockSource, Content, Hash, Outboard, Refusal, hash_file,
};
use ks_transport::endpoint::{Endpoint, Handler, StreamKind};
use ks_transport::frame::Stream;
use ks_transport::identity::{Identity, PeerIdentity};
use ks_transport::key::ClusterKey;
use std::error::Error;
use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Bytes of one write of a bare stream.
const PIECE_BYTES: usize = 1 << 20;

pub async fn serve(
    key: &ClusterKey,
    listen: SocketAddr,
    path: &Path,
) -> Result<(), Box<dyn Error>> {
    let file = Arc::new(File::open(path)?);
    let size = file.metadata()?.len();
    let start = Instant::now();
    let (hash, outboard) = hash_file(&file, size)?;
    let seconds = start.elapsed().as_secs_f64();
    eprintln!("hashed {size} bytes in {seconds:.3} s");
    let one = OneFile {
        file,
        size,
        hash,
        outboard: Bytes::from(outboard),
    };
    let info = Tell { hash, size };
    let endpoint = Endpoint::bind(listen, &Identity::node(key, "throughput")?)?;
    let handlers: Vec<(StreamKind, Arc<dyn Handler>)> = vec![
        (
            StreamKind::BLOCKS,
            Arc::new(BlockServer::new(Arc::new(one))),
        ),
        (RAW, Arc::new(Raw(Bytes::from(vec![7; PIECE_BYTES])))),
        (PING, Arc::new(Ping)),
        (INFO, Arc::new(info)),
    ];
    endpoint.serve(handlers);
    let tcp = tokio::net::TcpListener::bind((listen.ip(), listen.port() + 1)).await?;
    println!("ready");
    loop {
        let (end, _) = tcp.accept().await?;
        tokio::spawn(async move {
            if let Err(error) = pour_tcp(end).await {
                eprintln!("tcp: {error}");
            }
        });
    }
}

async fn pour_tcp(mut end: tokio::net::TcpStream) -> std::io::Result<()> {
    let mut left = end.read_u64_le().await?;
    let piece = vec![7; PIECE_BYTES];
    while left > 0 {
        let len = left.min(PIECE_BYTES as u64);
        end.write_all(&piece[..len as usize]).await?;
        left -= len;
    }
    end.shutdown().await
}

struct OneFile {
    file: Arc<File>,
    size: u64,
    hash: Hash,
    outboard: Bytes,
}

impl BlockSource for OneFile {
    fn open<'a>(&'a self, request: &'a BlockRequest) -> BoxFuture<'a, Result<Content, Refusal>> {
        Box::pin(async move {
            if request.hash != self.hash {
                return Err(Refusal::NotHere);
            }
            Ok(Content {
                file: self.file.clone(),
                size: self.size,
                outboard: Outboard::Memory(self.outboard.clone()),
            })
        })
    }
}

struct Raw(Bytes);

impl Handler for Raw {
    fn handle(&self, _: Arc<PeerIdentity>, mut stream: Stream) -> BoxFuture<'static, ()> {
        let piece = self.0.clone();
        Box::pin(async move {
            let Ok(Some(mut left)) = stream.read::<u64>(16).await else {
                return;
            };
            while left > 0 {
                let len = left.min(PIECE_BYTES as u64);
                let bytes = piece.slice(..len as usize);
                if stream.send.write_chunk(bytes).await.is_err() {
                    return;
                }
                left -= len;
            }
            let _ = stream.send.finish();
        })
    }
}

struct Ping;

impl Handler for Ping {
    fn handle(&self, _: Arc<PeerIdentity>, mut stream: Stream) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if let Ok(Some(question)) = stream.read::<u64>(16).await {
                let _ = stream.write(&question).await;
                let _ = stream.send.finish();
            }
        })
    }
}

struct Tell {
    hash: Hash,
    size: u64,
}

impl Handler for Tell {
    fn handle(&self, _: Arc<PeerIdentity>, mut stream: Stream) -> BoxFuture<'static, ()> {
        let info = Info {
            hash: self.hash,
            size: self.size,
            cpu_seconds: cpu_seconds(),
        };
        Box::pin(async move {
            let _ = stream.write(&info).await;
            let _ = stream.send.finish();
        })
    }
}
