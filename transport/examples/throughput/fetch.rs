//! The asking side.
use crate::{FetchOptions, INFO, Info, Mode, PING, RAW, cpu_seconds};
use bytes::Bytes;
use ks_transport::blocks::{BlockRequest, BlockSink, FetchLimits, fetch as fetch_blocks};
use ks_transport::endpoint::Endpoint;
use ks_transport::identity::Identity;
use ks_transport::key::ClusterKey;
use ks_transport::pool::{Peer, PeerPool};
use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const DEADLINE: Duration = Duration::from_secs(10);

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

pub async fn fetch(key: &ClusterKey, options: FetchOptions) -> Result<(), Box<dyn Error>> {
    let pool = PeerPool::new(Endpoint::outgoing(&Identity::node(key, "measures")?)?);
    let peer = pool.peer(&options.connect);
    let before: Info = info(&peer).await?;
    let (start, cpu_start) = (Instant::now(), cpu_seconds());
    let bytes = match options.mode {
        Mode::RawQuic => raw_quic(&peer, &options).await,
        Mode::RawTcp => raw_tcp(&options).await,
        Mode::Blocks => blocks(&peer, &options, &before).await,
        Mode::Ping => return ping(&peer, &options).await,
    }
    .map_err(|error| error.to_string())?;
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu_start);
    let after: Info = info(&peer).await?;
    let line = serde_json::json!({
        "bytes": bytes,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "server_cpu_seconds": after.cpu_seconds - before.cpu_seconds,
        "megabytes_per_second": bytes as f64 / seconds / 1e6,
    });
    println!("{line}");
    pool.endpoint().close().await;
    Ok(())
}

async fn info(peer: &Peer) -> Result<Info, Box<dyn Error>> {
    Ok(peer.request(INFO, &(), 1000, DEADLINE).await?)
}

/// The `part`-th share of `count`.
fn share(count: u64, parts: usize, part: usize) -> u64 {
    let (count, parts, part) = (u128::from(count), parts as u128, part as u128);
    (count * (part + 1) / parts - count * part / parts) as u64
}

async fn raw_quic(peer: &Peer, options: &FetchOptions) -> Outcome<u64> {
    let streams = (0..options.lanes).map(|lane| {
        let (peer, bytes) = (peer.clone(), share(options.count, options.lanes, lane));
        tokio::spawn(async move { raw_stream(&peer, lane, bytes).await })
    });
    let mut total = 0;
    for stream in streams.collect::<Vec<_>>() {
        total += stream.await??;
    }
    Ok(total)
}

async fn raw_stream(peer: &Peer, lane: usize, bytes: u64) -> Outcome<u64> {
    let mut stream = peer.open_lane(RAW, lane).await?;
    stream.write(&bytes).await?;
    let mut chunks: [Bytes; 64] = std::array::from_fn(|_| Bytes::new());
    let mut received = 0;
    while let Some(count) = stream.recv.read_chunks(&mut chunks).await? {
        let taken = chunks[..count].iter_mut().map(std::mem::take);
        received += taken.map(|chunk| chunk.len() as u64).sum::<u64>();
    }
    Ok(received)
}

async fn raw_tcp(options: &FetchOptions) -> Outcome<u64> {
    let (host, port) = options.connect.rsplit_once(':').ok_or("host:port")?;
    let port = port.parse::<u16>()? + 1;
    let streams = (0..options.lanes).map(|lane| {
        let (address, bytes) = (
            format!("{host}:{port}"),
            share(options.count, options.lanes, lane),
        );
        tokio::spawn(async move { tcp_stream(&address, bytes).await })
    });
    let mut total = 0;
    for stream in streams.collect::<Vec<_>>() {
        total += stream.await??;
    }
    Ok(total)
}

async fn tcp_stream(address: &str, bytes: u64) -> Outcome<u64> {
    let mut end = tokio::net::TcpStream::connect(address).await?;
    end.write_u64_le(bytes).await?;
    let (mut buffer, mut received) = (vec![0; 1 << 20], 0);
    loop {
        match end.read(&mut buffer).await? {
            0 => return Ok(received),
            count => received += count as u64,
        }
    }
}

struct FileSink {
    file: Arc<File>,
    first: Option<Instant>,
}

impl BlockSink for FileSink {
    fn data(&mut self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.first.get_or_insert_with(Instant::now);
        self.file.write_all_at(data, offset)
    }

    fn node(&mut self, _: u64, _: &[u8; 64]) -> std::io::Result<()> {
        Ok(())
    }
}

async fn blocks(peer: &Peer, options: &FetchOptions, info: &Info) -> Outcome<u64> {
    let file = Arc::new(
        File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&options.out)?,
    );
    let end = info.size.min(options.count);
    let next = Arc::new(AtomicU64::new(0));
    let flights = (0..options.flight.max(1)).map(|flight| {
        let (peer, file, next, options) =
            (peer.clone(), file.clone(), next.clone(), options.clone());
        let (hash, size) = (info.hash, info.size);
        tokio::spawn(async move {
            let limits = FetchLimits {
                stall: DEADLINE,
                lane: flight % options.lanes,
            };
            let mut sink = FileSink { file, first: None };
            let mut received = 0;
            loop {
                let start = next.fetch_add(options.request, Ordering::Relaxed);
                if start >= end {
                    return Outcome::Ok(received);
                }
                let until = (start + options.request).min(end);
                let request = BlockRequest {
                    locator: Vec::new(),
                    hash,
                    size,
                    ranges: std::iter::once(start..until).collect(),
                };
                let asked = Instant::now();
                fetch_blocks(&peer, &request, limits, &mut sink).await?;
                if start == 0
                    && let Some(first) = sink.first
                {
                    eprintln!("first bytes after {:?}", first - asked);
                }
                received += until - start;
            }
        })
    });
    let mut total = 0;
    for flight in flights.collect::<Vec<_>>() {
        total += flight.await??;
    }
    Ok(total)
}

async fn ping(peer: &Peer, options: &FetchOptions) -> Result<(), Box<dyn Error>> {
    let mut times = Vec::new();
    for number in 0..options.count.clamp(1, 1_000_000) {
        let start = Instant::now();
        let answer: u64 = peer.request(PING, &number, 16, DEADLINE).await?;
        times.push(start.elapsed());
        assert_eq!(answer, number);
    }
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e6;
    let line = serde_json::json!({
        "count": times.len(),
        "p50_microseconds": at(50),
        "p99_microseconds": at(99),
    });
    println!("{line}");
    Ok(())
}
