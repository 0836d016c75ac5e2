//! The private redis-server of a first node: a child on a unix socket, with a password and an append-only file under `.ks/redis/`.
//!
//! Takes part: this module writes the configuration, finds and ends what a killed daemon left, and starts the thread
//! that supervises the child (`redis_server/supervisor.rs`). `redis_server/ballast.rs` keeps space aside for a full disk.
//!
//! What always holds:
//! - One redis-server at most on one `.ks/redis/`: the caller holds the data directory's lock, and what an earlier
//!   daemon left is ended before a new one starts.
//! - What was acknowledged survives `kill -9` of redis-server or of the daemon: every change has been written to the
//!   append-only file before its answer goes out. It is synced to disk once a second, so a power failure can take the
//!   last second of names and holders; the data directories carry what rebuilds those. We do that ourselves
//!   (`redis_server/syncing.rs`): Redis's own `appendfsync everysec` answers without having written while a sync is
//!   under way, and a killed redis-server then takes up to two seconds of acknowledged changes with it.
//!   `appendfsync always` would cost a disk flush per batch of changes, milliseconds instead of microseconds on most
//!   disks, to guard what can be rebuilt anyway.
//! - Only this user can reach it: the socket's directory is 0700, the password's file 0600, and it listens on no port.
use crate::redis_client::{Redis, RedisError, RedisTarget, VERSION_NEEDED, at_least};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

mod ballast;
mod stale;
mod supervisor;
mod syncing;

/// How long a start may take, reading the append-only file included.
pub const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long an orderly end may take before it is killed.
pub const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks at whether it answers yet.
const READY_POLL: Duration = Duration::from_millis(10);
/// Longest path of a unix socket (`sun_path`, without its final NUL).
const SOCKET_PATH_BYTES_MAX: usize = 107;
const PROGRAM: &str = "redis-server";

/// Why there is no private Redis.
#[derive(Debug, thiserror::Error)]
pub enum RedisServerError {
    /// The program is missing.
    #[error(
        "redis-server is not installed; run: apt-get install redis-server (or give --redis URL)"
    )]
    NotInstalled,
    /// The program is older than what we need.
    #[error("redis-server {found} is too old, 7.0 is needed")]
    TooOld {
        /// Its version.
        found: String,
    },
    /// It ended at once or never answered; the text has the end of its log.
    #[error("redis-server did not start: {0}")]
    DidNotStart(String),
}

/// The supervised child: restarted when it dies, ended with the node (PR_SET_PDEATHSIG too).
pub struct RedisServer {
    files: Files,
    password: String,
    supervisor: Arc<supervisor::Supervisor>,
    /// Keeps space aside (`ballast`).
    keeper: Option<tokio::task::AbortHandle>,
}

/// Where everything of it stands.
#[derive(Clone)]
struct Files {
    /// `.ks/redis`
    directory: PathBuf,
    socket: PathBuf,
}

impl Files {
    fn configuration(&self) -> PathBuf {
        self.directory.join("redis.conf")
    }
    fn password(&self) -> PathBuf {
        self.directory.join("password")
    }
    fn log(&self) -> PathBuf {
        self.directory.join("redis.log")
    }
    fn pid(&self) -> PathBuf {
        self.directory.join("pid")
    }
}

impl RedisServer {
    /// Starts it under `state_dir` (`.ks`), with the password of its earlier starts or a random one, and returns when it answers.
    /// The caller holds the data directory's lock.
    pub async fn start(state_dir: &Path) -> Result<Self, RedisServerError> {
        Self::start_as(state_dir.to_owned(), None).await
    }

    /// As `start`, with this password.
    pub async fn start_with_password(
        state_dir: &Path,
        password: String,
    ) -> Result<Self, RedisServerError> {
        Self::start_as(state_dir.to_owned(), Some(password)).await
    }

    async fn start_as(
        state_dir: PathBuf,
        password: Option<String>,
    ) -> Result<Self, RedisServerError> {
        let prepared = tokio::task::spawn_blocking(move || prepare(&state_dir, password)).await;
        let (files, password) =
            prepared.map_err(|error| RedisServerError::DidNotStart(error.to_string()))??;
        let supervisor = supervisor::start(files.clone())
            .map_err(|error| RedisServerError::DidNotStart(error.to_string()))?;
        let keeper = match ballast::Ballast::open(&files.directory) {
            Ok(ballast) => Some(tokio::spawn(ballast::keep(ballast)).abort_handle()),
            Err(error) => {
                tracing::warn!(%error, "no space can be kept aside for Redis");
                None
            }
        };
        let server = Self {
            files,
            password,
            supervisor,
            keeper,
        };
        match server.answers().await {
            Ok(()) => Ok(server),
            Err(error) => {
                server.stop().await;
                Err(error)
            }
        }
    }

    /// How the catalog connects to it.
    pub fn target(&self) -> RedisTarget {
        RedisTarget::Socket {
            path: self.socket(),
            password: Some(self.password.clone()),
            db: 0,
        }
    }

    /// Its unix socket.
    pub fn socket(&self) -> PathBuf {
        self.files.socket.clone()
    }

    /// Its password: for the nodes that join through this one.
    pub fn password(&self) -> String {
        self.password.clone()
    }

    /// The child's process id; `None` between its death and its restart.
    pub fn pid(&self) -> Option<i32> {
        self.supervisor.pid()
    }

    /// Ends it in order (SIGTERM: it syncs its append-only file and goes), killed after `STOP_DEADLINE`.
    pub async fn stop(self) {
        let supervisor = self.supervisor.clone();
        supervisor.end();
        let waited =
            tokio::task::spawn_blocking(move || supervisor.wait_until_ended(STOP_DEADLINE)).await;
        if !matches!(waited, Ok(true)) {
            tracing::warn!("redis-server did not end in time and was killed");
            self.supervisor.kill();
        }
        self.remove_runtime_files();
    }

    /// Kills it and waits for its end: for tests, which throw its files away.
    #[doc(hidden)]
    pub fn end_now(self) {
        self.supervisor.end();
        self.supervisor.kill();
        self.supervisor.wait_until_ended(STOP_DEADLINE);
        self.remove_runtime_files();
    }

    fn remove_runtime_files(&self) {
        let _ = std::fs::remove_file(&self.files.socket);
        let _ = std::fs::remove_file(self.files.pid());
        if !self.files.socket.starts_with(&self.files.directory)
            && let Some(directory) = self.files.socket.parent()
        {
            let _ = std::fs::remove_dir(directory);
        }
    }

    /// Waits until it answers; an end of the child or the deadline ends the wait.
    async fn answers(&self) -> Result<(), RedisServerError> {
        let deadline = tokio::time::Instant::now() + START_DEADLINE;
        loop {
            let error = match Redis::connect(self.target(), false, Arc::new(|_| {})).await {
                Ok(_) => return Ok(()),
                Err(RedisError::TooOld { found, .. }) => {
                    return Err(RedisServerError::TooOld { found });
                }
                Err(error) => error,
            };
            if self.supervisor.deaths() > 0 || tokio::time::Instant::now() > deadline {
                let end = end_of_log(&self.files.log());
                let text = if end.is_empty() {
                    error.to_string()
                } else {
                    end
                };
                return Err(RedisServerError::DidNotStart(text));
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.supervisor.end();
        if let Some(keeper) = &self.keeper {
            keeper.abort();
        }
    }
}

/// Checks the program, makes directory, password and configuration, ends what an earlier daemon left.
fn prepare(
    state_dir: &Path,
    password: Option<String>,
) -> Result<(Files, String), RedisServerError> {
    let found = installed_version()?;
    if !at_least(&found, VERSION_NEEDED) {
        return Err(RedisServerError::TooOld { found });
    }
    let io = |what: &Path| {
        let what = what.to_owned();
        move |error: std::io::Error| {
            RedisServerError::DidNotStart(format!("{}: {error}", what.display()))
        }
    };
    let directory = state_dir.join("redis");
    private_directory(&directory).map_err(io(&directory))?;
    let directory = directory.canonicalize().map_err(io(&directory))?;
    let socket = socket_path(&directory);
    if let Some(parent) = socket.parent() {
        private_directory(parent).map_err(io(parent))?;
    }
    let files = Files { directory, socket };
    stale::end_left_over(&files).map_err(io(&files.pid()))?;
    let password = match password {
        Some(password) => write_private(&files.password(), &password).map(|()| password),
        None => kept_password(&files.password()),
    };
    let password = password.map_err(io(&files.password()))?;
    let text = configuration(&files, &password);
    write_private(&files.configuration(), &text).map_err(io(&files.configuration()))?;
    // The log of this start alone: its end explains why a start failed.
    let _ = std::fs::remove_file(files.log());
    Ok((files, password))
}

fn installed_version() -> Result<String, RedisServerError> {
    let output = match Command::new(PROGRAM).arg("--version").output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(RedisServerError::NotInstalled);
        }
        Err(error) => return Err(RedisServerError::DidNotStart(error.to_string())),
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix("v="));
    Ok(version.unwrap_or(text.trim()).to_owned())
}

/// In the state directory, or, where that makes too long a path for a socket, in a directory of the user's own.
fn socket_path(directory: &Path) -> PathBuf {
    let here = directory.join("redis.sock");
    if here.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
        return here;
    }
    let hash = blake3::hash(directory.as_os_str().as_bytes()).to_hex();
    let base = std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|base| base.is_dir() && base.as_os_str().len() < SOCKET_PATH_BYTES_MAX / 2)
        .unwrap_or_else(|| PathBuf::from("/tmp"));
    base.join(format!("ks-redis-{}", &hash[..16])).join("s")
}

fn private_directory(directory: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())
}

/// The password of earlier starts, or a new random one.
fn kept_password(path: &Path) -> std::io::Result<String> {
    match std::fs::read_to_string(path) {
        Ok(text) if text.trim().len() >= 32 => return Ok(text.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut random = [0u8; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    let password = hex::encode(random);
    write_private(path, &password)?;
    Ok(password)
}

fn configuration(files: &Files, password: &str) -> String {
    let quoted = |path: &Path| quote(path.as_os_str().as_bytes());
    format!(
        "# Written by ks at every start.\n\
         port 0\n\
         unixsocket {socket}\n\
         unixsocketperm 700\n\
         dir {directory}\n\
         logfile {log}\n\
         requirepass {password}\n\
         daemonize no\n\
         appendonly yes\n\
         appendfsync no\n\
         aof-load-truncated yes\n\
         save \"\"\n\
         maxmemory-policy noeviction\n\
         hash-max-listpack-value 1024\n\
         databases 16\n",
        socket = quoted(&files.socket),
        directory = quoted(&files.directory),
        log = quoted(&files.log()),
    )
}

/// A word of redis.conf.
fn quote(bytes: &[u8]) -> String {
    let mut quoted = String::from("\"");
    for &byte in bytes {
        match byte {
            b'"' | b'\\' => {
                quoted.push('\\');
                quoted.push(byte as char);
            }
            b' '..=b'~' => quoted.push(byte as char),
            _ => quoted.push_str(&format!("\\x{byte:02x}")),
        }
    }
    quoted.push('"');
    quoted
}

/// The last lines of the log, in one.
fn end_of_log(path: &Path) -> String {
    const LINES: usize = 3;
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LINES)..].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_for_the_configuration() {
        assert_eq!(quote(b"/a b\"\\"), "\"/a b\\\"\\\\\"");
        assert_eq!(quote("/ü".as_bytes()), "\"/\\xc3\\xbc\"");
    }

    #[test]
    fn a_long_path_gets_a_short_socket() {
        let long = PathBuf::from("/").join("x".repeat(120));
        let socket = socket_path(&long);
        assert!(socket.as_os_str().len() <= SOCKET_PATH_BYTES_MAX);
        assert_ne!(
            socket,
            socket_path(&PathBuf::from("/").join("y".repeat(120)))
        );
    }
}
