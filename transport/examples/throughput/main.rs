//! How fast bytes move between two machines (or two network namespaces), by several ways.
//!
//! `serve` on one side, `fetch` on the other with the same `--key`; `fetch` prints one line of
//! JSON. `raw-quic` is a bare stream over our endpoint, read and discarded; `raw-tcp` the same over
//! TCP; `blocks` a verified fetch into a file; `ping` a bare question and answer.
mod fetch;
mod serve;

use clap::{Parser, Subcommand, ValueEnum};
use ks_transport::endpoint::StreamKind;
use std::net::SocketAddr;
use std::path::PathBuf;

/// A stream of as many bytes as its first message says.
const RAW: StreamKind = StreamKind(200);
/// Answers with its question.
const PING: StreamKind = StreamKind(201);
/// Tells what the server has and has used.
const INFO: StreamKind = StreamKind(202);

/// What the server has (the file to fetch), and the seconds of CPU it has used.
#[derive(serde::Serialize, serde::Deserialize)]
struct Info {
    hash: [u8; 32],
    size: u64,
    cpu_seconds: f64,
}

#[derive(Parser)]
struct Options {
    /// The cluster key file; made if it is not there.
    #[arg(long)]
    key: PathBuf,
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Answers until it is killed.
    Serve {
        /// UDP for QUIC; TCP with the next number.
        #[arg(long)]
        listen: SocketAddr,
        /// What `blocks` fetches.
        #[arg(long)]
        file: PathBuf,
    },
    /// Measures once.
    Fetch(FetchOptions),
}

#[derive(clap::Args, Clone)]
struct FetchOptions {
    /// The server's address.
    #[arg(long)]
    connect: String,
    #[arg(long)]
    mode: Mode,
    /// How many bytes (`blocks`: at most the file's); for `ping`, how many times.
    #[arg(long, default_value_t = 1 << 30)]
    count: u64,
    /// Connections.
    #[arg(long, default_value_t = 1)]
    lanes: usize,
    /// Bytes of one block request.
    #[arg(long, default_value_t = 4 << 20)]
    request: u64,
    /// Block requests at once.
    #[arg(long, default_value_t = 4)]
    flight: usize,
    /// Where `blocks` writes.
    #[arg(long, default_value = "/dev/null")]
    out: PathBuf,
}

#[derive(Clone, Copy, ValueEnum, PartialEq)]
enum Mode {
    RawQuic,
    RawTcp,
    Blocks,
    Ping,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    ks_transport::memory::keep_freed();
    run()
}

#[tokio::main]
async fn run() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let options = Options::parse();
    let (key, _) = ks_transport::key::ClusterKey::load_or_create(&options.key)?;
    match options.role {
        Role::Serve { listen, file } => serve::serve(&key, listen, &file).await,
        Role::Fetch(options) => fetch::fetch(&key, options).await,
    }
}

/// Seconds of CPU that this process has used.
fn cpu_seconds() -> f64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}
