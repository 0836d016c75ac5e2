//! What a node is started with: flags, then `KS_…` variables, then keys of `ks.toml`, then defaults.
//! This module only reads and checks; `node` acts on it.
use anyhow::{Context, bail};
use clap::builder::BoolishValueParser;
use clap::{Args, Command};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The port nodes listen on when none is given.
pub const DEFAULT_PORT: u16 = 6323;

/// No disk and no memory is larger, bytes: 8 EiB.
const SIZE_BYTES_MAX: f64 = 9.223_372_036_854_776e18;

/// A size as people write it: `200M`, `1.5G`, `4096`, or a share of the disk, `5%`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Size {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of the whole.
    Percent(f64),
}

impl Size {
    /// In bytes, of a whole of `total` bytes.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Size::Bytes(bytes) => bytes,
            Size::Percent(percent) => (total as f64 * percent / 100.0) as u64,
        }
    }
}

impl std::str::FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a size: write 4096, 200M, 1.5G or 5%");
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == '%');
        let number: f64 = digits.trim().parse().map_err(|_| wrong())?;
        if !number.is_finite() || number < 0.0 {
            return Err(wrong());
        }
        let unit = text[digits.len()..].to_ascii_lowercase();
        let factor: f64 = match unit.trim_end_matches("ib").trim_end_matches('b') {
            "%" if number <= 100.0 => return Ok(Size::Percent(number)),
            "%" => return Err(format!("'{text}' is more than the whole")),
            "" => 1.0,
            "k" => 1024.0,
            "m" => 1024.0 * 1024.0,
            "g" => 1024.0 * 1024.0 * 1024.0,
            "t" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
            _ => return Err(wrong()),
        };
        if number * factor > SIZE_BYTES_MAX {
            return Err(format!("'{text}' is more than there is anywhere"));
        }
        Ok(Size::Bytes((number * factor) as u64))
    }
}

/// A time as people write it: `90`, `90s`, `10m`, `2h`, `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub std::time::Duration);

impl std::str::FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a time: write 90s, 10m, 2h or 7d");
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        let factor = match &text[digits.len()..] {
            "" | "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return Err(wrong()),
        };
        let seconds = number.checked_mul(factor).ok_or_else(wrong)?;
        Ok(Self(std::time::Duration::from_secs(seconds)))
    }
}

/// A number of days, also parts of one; zero means never.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Days(pub std::time::Duration);

impl std::str::FromStr for Days {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        /// A hundred years.
        const DAYS_MAX: f64 = 36_500.0;
        match text.trim().parse::<f64>() {
            Ok(days) if (0.0..=DAYS_MAX).contains(&days) => Ok(Self(
                std::time::Duration::from_secs_f64(days * 24.0 * 3600.0),
            )),
            _ => Err(format!(
                "'{text}' is not a number of days, such as 30 or 0.5"
            )),
        }
    }
}

/// An interpreter that calls can ask for by name: `NAME=PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPython {
    /// What `_python=` says.
    pub name: String,
    /// The interpreter.
    pub path: PathBuf,
}

impl std::str::FromStr for NamedPython {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok(Self {
                name: name.to_owned(),
                path: path.into(),
            }),
            _ => Err(format!(
                "'{text}': write NAME=PATH, for example torch=/opt/torch/bin/python"
            )),
        }
    }
}

/// The command was used wrongly: exit status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct WrongUse(pub String);

/// Environment variable for `--redis`.
pub const REDIS_VARIABLE: &str = "KS_REDIS";

/// `ks mount`.
#[derive(Args, Clone, Debug)]
pub struct MountArgs {
    /// Where the tree appears
    pub mountpoint: PathBuf,
    /// The node's own files
    #[arg(long, value_name = "DIR", env = "KS_DATADIR")]
    pub datadir: PathBuf,
    /// Use this Redis: redis://, rediss://, redis+sentinel://, unix:// or tcp://host:port?db=9 [default: start a private one]
    #[arg(
        long,
        value_name = "URL",
        env = REDIS_VARIABLE,
        conflicts_with = "join",
        value_parser = parse_redis
    )]
    pub redis: Option<String>,
    /// Never start a Redis; fail if none is given
    #[arg(long, env = "KS_NO_REDIS", value_parser = BoolishValueParser::new())]
    pub no_redis: bool,
    /// Take the cluster's Redis from that node, through its QUIC connection
    #[arg(long, value_name = "HOST[:PORT]", env = "KS_JOIN", value_parser = parse_host)]
    pub join: Option<String>,
    /// UDP address for QUIC (always mutual TLS)
    #[arg(long, value_name = "ADDR:PORT", env = "KS_LISTEN", default_value = "[::]:6323", value_parser = parse_listen)]
    pub listen: SocketAddr,
    /// How others reach this node [default: the listen address]
    #[arg(long, value_name = "HOST:PORT", env = "KS_ADVERTISE", value_parser = parse_host)]
    pub advertise: Option<String>,
    /// The same as a URL, e.g. http://host1:6323/
    #[arg(
        long,
        value_name = "URL",
        env = "KS_NODE_URL",
        conflicts_with = "advertise",
        value_parser = parse_node_url
    )]
    pub node_url: Option<String>,
    /// This node's name [default: the host's name]
    #[arg(long, value_name = "NAME", env = "KS_NODE_NAME", value_parser = parse_node_name)]
    pub node_name: Option<String>,
    /// Python worker processes [default: number of cores]
    #[arg(long, value_name = "N", env = "KS_NUM_WORKERS", value_parser = clap::value_parser!(u32).range(0..=4096))]
    pub num_workers: Option<u32>,
    /// Calls that may wait at a time for calls which they made themselves; each gives its place to another call meanwhile, for which a
    /// further worker is started [default: 4 for each worker]
    #[arg(long, value_name = "N", env = "KS_MAX_NESTED", value_parser = clap::value_parser!(u32).range(0..=16384))]
    pub max_nested: Option<u32>,
    /// Calls that may wait or run in the cluster when this node takes another: each takes about 1 KiB of Redis's memory. Beyond it
    /// calls wait to be taken, 20 s at most, and are refused then (TooManyJobs)
    #[arg(long, value_name = "N", env = "KS_MAX_QUEUED", default_value = "1000000", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub max_queued: u64,
    /// A queue served beside `default` and `data` (repeat for several)
    #[arg(
        long = "queue",
        value_name = "NAME",
        env = "KS_QUEUE",
        value_delimiter = ',',
        value_parser = parse_queue
    )]
    pub queues: Vec<String>,
    /// A further interpreter that calls can ask for (repeat for several)
    #[arg(
        long = "python",
        value_name = "NAME=PATH",
        env = "KS_PYTHON",
        value_delimiter = ','
    )]
    pub pythons: Vec<NamedPython>,
    /// A module whose functions this node serves by name (repeat for several)
    #[arg(
        long = "module",
        value_name = "MOD",
        env = "KS_MODULE",
        value_delimiter = ','
    )]
    pub modules: Vec<String>,
    /// Refuse functions that are not registered
    #[arg(long, env = "KS_REGISTERED_ONLY", value_parser = BoolishValueParser::new())]
    pub registered_only: bool,
    /// Store nothing new on this node
    #[arg(long, env = "KS_READ_ONLY", value_parser = BoolishValueParser::new())]
    pub read_only: bool,
    /// How much fetched data to keep; a share is of the disk's free space
    #[arg(
        long,
        value_name = "SIZE",
        env = "KS_CACHE_LIMIT",
        default_value = "50%",
        id = "cache-limit"
    )]
    pub cache_limit: Size,
    /// Copies kept of what is written under this node, where neither the file nor a directory above has a number of its own
    #[arg(long, value_name = "N", env = "KS_REPLICAS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub replicas: u16,
    /// A node that stays away for so long: copies that it had are made again elsewhere (90s, 10m, 2h)
    #[arg(
        long,
        value_name = "TIME",
        env = "KS_REPAIR_AFTER",
        default_value = "10m",
        id = "repair-after"
    )]
    pub repair_after: Span,
    /// Re-read every file here once in so many days, and mend what has rotted; 0: never
    #[arg(
        long,
        value_name = "DAYS",
        env = "KS_SCRUB_DAYS",
        default_value = "30",
        id = "scrub-days"
    )]
    pub scrub_days: Days,
    /// How much of the disk to leave free
    #[arg(
        long,
        value_name = "SIZE",
        env = "KS_KEEP_FREE",
        default_value = "5%",
        id = "keep-free"
    )]
    pub keep_free: Size,
    /// The daemon's budget for buffers
    #[arg(
        long,
        value_name = "SIZE",
        env = "KS_MEMORY_LIMIT",
        default_value = "256M",
        id = "memory-limit"
    )]
    pub memory_limit: Size,
    /// Memory (tmpfs) for values that are kept; what does not fit stands on the disk. 0: all does; a share is of the machine's memory
    #[arg(
        long,
        value_name = "SIZE",
        env = "KS_MEMORY_TIER",
        default_value = "25%",
        id = "memory-tier"
    )]
    pub memory_tier: Size,
    /// A node that would have to fetch more than this may not run a call
    #[arg(
        long,
        value_name = "SIZE",
        env = "KS_DATA_THRESHOLD",
        default_value = "200M",
        id = "data-threshold"
    )]
    pub data_threshold: Size,
    /// A worker that grows beyond this (%: of the machine's memory) is ended, and the call that it ran fails with the reason
    #[arg(
        long,
        value_name = "SIZE",
        env = "KS_WORKER_MEMORY_LIMIT",
        default_value = "80%",
        id = "worker-memory-limit"
    )]
    pub worker_memory_limit: Size,
    /// How long results are kept for who asks for them later, in s, m, h or d
    #[arg(long, value_name = "TIME", env = "KS_RESULT_TTL", default_value = "24h", value_parser = parse_time)]
    pub result_ttl: Duration,
    /// The cluster's secret; made at the first start [default: ~/.config/ks/cluster.key]
    #[arg(long, value_name = "FILE", env = "KS_CLUSTER_KEY")]
    pub cluster_key: Option<PathBuf>,
    /// Do not follow what other programs do in the data directory while the node runs (inotify): it is found at the next start
    #[arg(long, env = "KS_NO_WATCH", value_parser = BoolishValueParser::new())]
    pub no_watch: bool,
    /// Serve local files through the daemon even where the kernel could read them directly
    #[arg(long, env = "KS_NO_PASSTHROUGH", value_parser = BoolishValueParser::new())]
    pub no_passthrough: bool,
    /// Stay in the foreground and log to standard error (for systemd and containers)
    #[arg(short, long)]
    pub foreground: bool,
    /// The descriptor on which a daemon tells its parent that it is ready
    #[arg(long, hide = true)]
    pub ready_fd: Option<i32>,
}

/// `ADDR:PORT`, `ADDR` or `:PORT`.
fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let wrong = || format!("'{text}': write ADDR:PORT, for example 0.0.0.0:{DEFAULT_PORT}");
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    if let Ok(ip) = text.parse() {
        return Ok(SocketAddr::new(ip, DEFAULT_PORT));
    }
    match text.strip_prefix(':') {
        Some(port) => Ok(SocketAddr::from((
            [0; 16],
            port.parse().map_err(|_| wrong())?,
        ))),
        None => Err(wrong()),
    }
}

/// `90`, `90s`, `15m`, `24h` or `7d`.
fn parse_time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}': write a number of s, m, h or d, for example 24h");
    let unit_seconds = match text.as_bytes().last() {
        Some(b'm') => 60,
        Some(b'h') => 3600,
        Some(b'd') => 24 * 3600,
        _ => 1,
    };
    let number = text.trim_end_matches(['s', 'm', 'h', 'd']);
    if text.len() - number.len() > 1 {
        return Err(wrong());
    }
    let count: u64 = number.parse().map_err(|_| wrong())?;
    match count.checked_mul(unit_seconds) {
        Some(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
        _ => Err(wrong()),
    }
}

/// A host, with or without a port.
fn parse_host(text: &str) -> Result<String, String> {
    let good =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']' | '%');
    let (host, port) = match text.rsplit_once(':') {
        // What follows the last colon of an address without brackets is a part of it.
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    if host.is_empty() || !text.chars().all(good) || port.is_some_and(|port| !is_port(port)) {
        return Err(format!(
            "'{text}': write HOST or HOST:PORT, for example host1:{DEFAULT_PORT}"
        ));
    }
    Ok(text.to_owned())
}

fn parse_node_url(text: &str) -> Result<String, String> {
    let wrong = || format!("'{text}': write a URL, for example http://host1:{DEFAULT_PORT}/");
    let (_, rest) = text.split_once("://").ok_or_else(wrong)?;
    parse_host(rest.trim_end_matches('/')).map_err(|_| wrong())?;
    Ok(text.to_owned())
}

fn parse_node_name(text: &str) -> Result<String, String> {
    check_name(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

fn parse_redis(text: &str) -> Result<String, String> {
    ks_fs::redis_client::check_url(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

fn parse_queue(text: &str) -> Result<String, String> {
    if !crate::queue::name_is_valid(text) {
        return Err(format!(
            "'{text}': a queue's name is up to 64 letters, digits, '_', '-' and '.'"
        ));
    }
    Ok(text.to_owned())
}

/// `HOST`, `HOST:PORT`, `[V6]:PORT` or a bare IPv6 address, as `host:port`.
pub fn with_port(host: &str) -> String {
    if host.parse::<std::net::Ipv6Addr>().is_ok() {
        return format!("[{host}]:{DEFAULT_PORT}");
    }
    match host.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => host.to_owned(),
        _ => format!("{host}:{DEFAULT_PORT}"),
    }
}

impl MountArgs {
    /// What contradicts itself, said before anything is started.
    pub fn check(&self) -> Result<(), WrongUse> {
        self.contradiction()
            .map_err(|error| WrongUse(error.to_string()))
    }

    fn contradiction(&self) -> anyhow::Result<()> {
        if self.no_redis && self.redis.is_none() && self.join.is_none() {
            bail!("--no-redis: no Redis is given; add --redis URL or --join HOST");
        }
        if self
            .memory_limit
            .of(u64::MAX)
            .checked_ilog2()
            .unwrap_or_default()
            < 24
        {
            bail!("--memory-limit: at least 16M is needed");
        }
        for python in &self.pythons {
            if python.path.components().count() > 1 && !python.path.is_file() {
                bail!(
                    "--python {}: {} is not there",
                    python.name,
                    python.path.display()
                );
            }
        }
        if self.datadir.starts_with(&self.mountpoint) || self.mountpoint.starts_with(&self.datadir)
        {
            bail!(
                "the data directory {} and the mount point {} may not lie in one another",
                self.datadir.display(),
                self.mountpoint.display()
            );
        }
        Ok(())
    }

    /// This node's name.
    pub fn name(&self) -> anyhow::Result<String> {
        match &self.node_name {
            Some(name) => Ok(name.clone()),
            None => {
                let name = rustix::system::uname()
                    .nodename()
                    .to_string_lossy()
                    .into_owned();
                check_name(&name)
                    .context("the host's name cannot be the node's; use --node-name")?;
                Ok(name)
            }
        }
    }

    /// Where the cluster key is.
    pub fn key_file(&self) -> anyhow::Result<PathBuf> {
        match &self.cluster_key {
            Some(path) => Ok(path.clone()),
            None => default_key_file(),
        }
    }

    /// How others reach this node, given the address it listens on and, where it joins, the node it joins.
    pub fn advertised(&self, listening: SocketAddr) -> anyhow::Result<String> {
        if let Some(address) = &self.advertise {
            return Ok(with_port(address));
        }
        if let Some(url) = &self.node_url {
            let rest = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
            return Ok(with_port(rest.trim_end_matches('/')));
        }
        if !listening.ip().is_unspecified() {
            return Ok(listening.to_string());
        }
        let ip = own_address(self.join.as_deref())
            .context("no address of this machine is known to others; use --advertise HOST:PORT")?;
        Ok(SocketAddr::new(ip, listening.port()).to_string())
    }
}

/// `~/.config/ks/cluster.key`.
pub fn default_key_file() -> anyhow::Result<PathBuf> {
    let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
    let base = config
        .or(home)
        .context("neither HOME nor XDG_CONFIG_HOME is set; use --cluster-key FILE")?;
    Ok(base.join("ks/cluster.key"))
}

/// A node's name is a word that can stand in a file name and in a queue's name.
fn check_name(name: &str) -> anyhow::Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.is_empty() || name.len() > 64 || !name.chars().all(good) {
        bail!("the node name '{name}' must be 1 to 64 of a-z A-Z 0-9 . - _");
    }
    Ok(())
}

/// The address other machines see: the one from which `towards` is reached, else that of the first interface that is up.
fn own_address(towards: Option<&str>) -> Option<std::net::IpAddr> {
    let routed = |target: &str| -> Option<std::net::IpAddr> {
        use std::net::ToSocketAddrs;
        let target = with_port(target).to_socket_addrs().ok()?.next()?;
        let any: SocketAddr = if target.is_ipv4() {
            ([0, 0, 0, 0], 0).into()
        } else {
            ([0u16; 8], 0).into()
        };
        let socket = std::net::UdpSocket::bind(any).ok()?;
        socket.connect(target).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    if let Some(ip) = towards.and_then(routed) {
        return Some(ip);
    }
    let interfaces = if_addrs::get_if_addrs().ok()?;
    let mut addresses: Vec<_> = interfaces
        .iter()
        .filter(|i| !i.is_loopback() && !i.is_link_local())
        .map(|i| i.ip())
        .collect();
    addresses.sort_by_key(|ip| !ip.is_ipv4());
    addresses
        .first()
        .copied()
        .or(Some(std::net::Ipv4Addr::LOCALHOST.into()))
}

/// Where `ks.toml` may stand, the first that exists counts; `KS_CONFIG` names another.
fn config_files() -> Vec<PathBuf> {
    if let Some(file) = std::env::var_os("KS_CONFIG") {
        return vec![file.into()];
    }
    let user = default_key_file()
        .ok()
        .map(|key| key.with_file_name("ks.toml"));
    ["ks.toml".into(), "/etc/ks/ks.toml".into()]
        .into_iter()
        .chain(user)
        .collect()
}

/// Gives the keys of `ks.toml` to `ks mount` as defaults, below flags and environment.
pub fn with_config_file(command: Command) -> anyhow::Result<Command> {
    let Some(file) = config_files().into_iter().find(|file| file.exists()) else {
        return Ok(command);
    };
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let table: toml::Table = text
        .parse()
        .with_context(|| format!("{}: not TOML", file.display()))?;
    let mut mount = command
        .find_subcommand("mount")
        .context("no mount command")?
        .clone();
    for (key, value) in &table {
        mount = with_default(mount, &file, key, value)?;
    }
    Ok(command.mut_subcommand("mount", |_| mount))
}

/// One key of the file as its flag's default.
fn with_default(
    mount: Command,
    file: &Path,
    key: &str,
    value: &toml::Value,
) -> anyhow::Result<Command> {
    let flag = key.replace('_', "-");
    let argument = mount
        .get_arguments()
        .find(|a| a.get_long() == Some(&flag) || a.get_id() == flag.as_str())
        .filter(|a| !a.is_hide_set());
    let Some(id) = argument.map(|a| a.get_id().clone()) else {
        bail!(
            "{}: '{key}' is not a key; the keys are the flags of 'ks mount'",
            file.display()
        );
    };
    let is_path =
        |a: &clap::Arg| a.get_value_parser().type_id() == std::any::TypeId::of::<PathBuf>();
    if mount
        .get_arguments()
        .any(|a| *a.get_id() == id && is_path(a))
        && !value.is_str()
    {
        bail!(
            "{}: '{key}' must be a path in quotes, not {value}",
            file.display()
        );
    }
    let values = match value {
        toml::Value::Array(values) => values.iter().map(plain).collect::<Option<Vec<_>>>(),
        toml::Value::Table(table) => table
            .iter()
            .map(|(name, value)| Some(format!("{name}={}", plain(value)?)))
            .collect(),
        value => plain(value).map(|value| vec![value]),
    };
    let values =
        values.with_context(|| format!("{}: '{key}' must be a value or a list", file.display()))?;
    Ok(mount.mut_arg(id, |a| a.required(false).default_values(values)))
}

/// A TOML value as it would be written on the command line.
fn plain(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{FromArgMatches, Parser};

    #[derive(Parser)]
    struct Cli {
        #[command(subcommand)]
        command: Sub,
    }
    #[derive(clap::Subcommand)]
    enum Sub {
        Mount(Box<MountArgs>),
    }

    fn parse(args: &[&str]) -> MountArgs {
        match Cli::parse_from(["ks", "mount"].iter().chain(args)).command {
            Sub::Mount(args) => *args,
        }
    }

    #[test]
    fn sizes() {
        assert_eq!("200M".parse(), Ok(Size::Bytes(200 << 20)));
        assert_eq!("1.5GiB".parse(), Ok(Size::Bytes(3 << 29)));
        assert_eq!("4096".parse(), Ok(Size::Bytes(4096)));
        assert_eq!("5%".parse::<Size>().unwrap().of(1000), 50);
        for wrong in ["", "M", "5 parsecs", "-1", "200%", "nan", "1e999G%"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn days() {
        assert_eq!("0".parse(), Ok(Days(Duration::ZERO)));
        assert_eq!("0.5".parse(), Ok(Days(Duration::from_secs(43_200))));
        for wrong in ["", "-1", "nan", "inf", "30d", "1e9"] {
            assert!(wrong.parse::<Days>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn ports_are_added_where_missing() {
        assert_eq!(with_port("host1"), "host1:6323");
        assert_eq!(with_port("host1:7000"), "host1:7000");
        assert_eq!(with_port("fe80::1"), "[fe80::1]:6323");
        assert_eq!(with_port("[fe80::1]:7"), "[fe80::1]:7");
    }

    #[test]
    fn listen_addresses() {
        assert_eq!(parse_listen(":7").unwrap().port(), 7);
        assert_eq!(
            parse_listen("10.0.0.1").unwrap().to_string(),
            "10.0.0.1:6323"
        );
        assert!(parse_listen("nonsense").is_err());
    }

    #[test]
    fn nonsense_is_refused_as_it_is_read() {
        let refused = |args: &[&str]| {
            let all = ["ks", "mount", "/ks", "--datadir", "/data"]
                .iter()
                .chain(args);
            Cli::try_parse_from(all).is_err()
        };
        for wrong in [
            ["--redis", ""],
            ["--redis", "foo://x"],
            ["--join", ""],
            ["--join", "host1:abc"],
            ["--join", "host1:0"],
            ["--join", ":6323"],
            ["--advertise", "x y"],
            ["--advertise", "host1:99999"],
            ["--advertise", "[fe80::1]:"],
            ["--node-url", "foo"],
            ["--node-url", "http://host1:port/"],
            ["--queue", "a b"],
            ["--node-name", ""],
            ["--node-name", "a/b"],
            ["--memory-limit", "99999999999999999999G"],
        ] {
            assert!(refused(&wrong), "{wrong:?}");
        }
        for right in [
            ["--redis", "redis://host1"],
            ["--join", "host1:7"],
            ["--join", "[fe80::1]:7"],
            ["--join", "fe80::1"],
            ["--join", "[fe80::1]"],
            ["--advertise", "10.0.0.1"],
            ["--node-url", "http://host1:6323/"],
        ] {
            assert!(!refused(&right), "{right:?}");
        }
    }

    #[test]
    fn contradictions_are_told() {
        assert!(
            parse(&["/ks", "--datadir", "/data", "--no-redis"])
                .check()
                .is_err()
        );
        assert!(parse(&["/ks", "--datadir", "/ks/data"]).check().is_err());
        assert!(
            parse(&["/ks", "--datadir", "/data", "--memory-limit", "1M"])
                .check()
                .is_err()
        );
        let absent = [
            "/ks",
            "--datadir",
            "/data",
            "--python",
            "old=/no/such/python",
        ];
        assert!(parse(&absent).check().is_err());
        parse(&["/ks", "--datadir", "/data"]).check().unwrap();
    }

    #[test]
    fn a_key_of_the_file_is_a_default_and_a_flag_wins() {
        let file = Path::new("ks.toml");
        let table: toml::Table =
            "datadir = '/data'\nnum_workers = 3\nno_watch = true\nqueue = ['gpu', 'big']\n[python]\ntorch = '/opt/t'"
                .parse()
                .unwrap();
        let mut mount = <Cli as clap::CommandFactory>::command()
            .find_subcommand("mount")
            .unwrap()
            .clone();
        for (key, value) in &table {
            mount = with_default(mount, file, key, value).unwrap();
        }
        let matches = mount
            .clone()
            .get_matches_from(["mount", "/ks", "--num-workers", "5"]);
        let args = MountArgs::from_arg_matches(&matches).unwrap();
        assert_eq!(args.datadir, Path::new("/data"));
        assert_eq!(args.num_workers, Some(5));
        assert_eq!(args.queues, ["gpu", "big"]);
        assert!(args.no_watch && !args.read_only);
        assert_eq!(args.pythons[0].name, "torch");
        let wrong = with_default(mount, file, "colour", &toml::Value::Boolean(true));
        assert!(wrong.unwrap_err().to_string().contains("'colour'"));
        for wrong in [
            toml::Value::Integer(5),
            toml::Value::Boolean(true),
            toml::Value::Array(vec![]),
        ] {
            let refused = with_default(
                <Cli as clap::CommandFactory>::command()
                    .find_subcommand("mount")
                    .unwrap()
                    .clone(),
                file,
                "datadir",
                &wrong,
            );
            let said = refused.unwrap_err().to_string();
            assert!(
                said.contains("ks.toml: 'datadir' must be a path in quotes"),
                "{said}"
            );
        }
    }
}
