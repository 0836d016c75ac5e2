//! `ks doctor`: looks at this machine and its node, and says what is wrong and how to mend it.
use super::{Format, connect, print_json};
use anyhow::Context;
use clap::Args;
use ks_executor::config::default_key_file;
use ks_executor::control::mounted_trees;
use ks_executor::node::default_python;
use ks_executor::protocol::{Answer, Ask};
use ks_transport::key::ClusterKey;
use serde::Serialize;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// `ks doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// The cluster's secret [default: ~/.config/ks/cluster.key]
    #[arg(long, value_name = "FILE", env = "KS_CLUSTER_KEY")]
    cluster_key: Option<PathBuf>,
    #[command(flatten)]
    format: Format,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warning,
    Failed,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    verdict: Verdict,
    found: String,
    cure: Option<String>,
}

impl Finding {
    fn ok(what: &'static str, found: impl Into<String>) -> Self {
        Self {
            what,
            verdict: Verdict::Ok,
            found: found.into(),
            cure: None,
        }
    }
    fn warning(what: &'static str, found: impl Into<String>, cure: &str) -> Self {
        Self {
            what,
            verdict: Verdict::Warning,
            found: found.into(),
            cure: Some(cure.into()),
        }
    }
    fn failed(what: &'static str, found: impl Into<String>, cure: &str) -> Self {
        Self {
            what,
            verdict: Verdict::Failed,
            found: found.into(),
            cure: Some(cure.into()),
        }
    }
}

impl DoctorArgs {
    /// Exit status 1 when something is wrong that keeps a node from working.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let mut findings = vec![
            fuse_device(),
            fusermount(),
            passthrough(),
            redis_server(),
            self.key(),
            python(),
        ];
        findings.extend(nodes().await);
        if self.format.json {
            print_json(&findings)?;
        } else {
            findings.iter().for_each(print);
        }
        let failed = findings
            .iter()
            .any(|finding| finding.verdict == Verdict::Failed);
        Ok(if failed {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        })
    }

    fn key(&self) -> Finding {
        let file = match self.cluster_key.clone().map_or_else(default_key_file, Ok) {
            Ok(file) => file,
            Err(error) => {
                return Finding::failed("cluster key", error.to_string(), "use --cluster-key FILE");
            }
        };
        if !file.exists() {
            let cure =
                "the first 'ks mount' makes one; to join a cluster, copy its key file here first";
            return Finding::warning(
                "cluster key",
                format!("{}: not there", file.display()),
                cure,
            );
        }
        match ClusterKey::load(&file) {
            Ok(key) => Finding::ok(
                "cluster key",
                format!("{} ({})", file.display(), key.fingerprint()),
            ),
            Err(error) => Finding::failed(
                "cluster key",
                error.to_string(),
                "copy the key file of a node that works, mode 0600",
            ),
        }
    }
}

fn print(finding: &Finding) {
    let mark = match finding.verdict {
        Verdict::Ok => "ok     ",
        Verdict::Warning => "warning",
        Verdict::Failed => "FAILED ",
    };
    println!("{mark}  {:<14} {}", finding.what, finding.found);
    if let Some(cure) = &finding.cure {
        println!("{:<26}-> {cure}", "");
    }
}

fn fuse_device() -> Finding {
    match std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
    {
        Ok(_) => Finding::ok("/dev/fuse", "can be opened"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Finding::failed(
            "/dev/fuse",
            "not there",
            "modprobe fuse; in a container: --device /dev/fuse --cap-add SYS_ADMIN",
        ),
        Err(error) => Finding::failed(
            "/dev/fuse",
            error.to_string(),
            "run as root, or: chmod 666 /dev/fuse",
        ),
    }
}

fn fusermount() -> Finding {
    match version_of("fusermount3") {
        Some(version) => Finding::ok("fusermount3", version),
        None if rustix::process::geteuid().is_root() => {
            Finding::ok("fusermount3", "not there; root needs none")
        }
        None => Finding::failed("fusermount3", "not there", "apt-get install fuse3"),
    }
}

/// Kernel passthrough needs Linux 6.9 and CAP_SYS_ADMIN.
fn passthrough() -> Finding {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let what = "passthrough";
    if version < (6, 9) {
        let found = format!("Linux {release} has none: local files are read through the daemon");
        return Finding::warning(
            what,
            found,
            "Linux 6.9 or newer reads them at the disk's speed",
        );
    }
    if !rustix::process::geteuid().is_root() {
        return Finding::warning(
            what,
            "needs CAP_SYS_ADMIN: local files are read through the daemon",
            "run the node as root",
        );
    }
    Finding::ok(what, format!("Linux {release}"))
}

fn redis_server() -> Finding {
    match version_of("redis-server") {
        Some(version) => Finding::ok("redis-server", version),
        None => Finding::warning(
            "redis-server",
            "not there",
            "the first node needs it: apt-get install redis-server (or use --redis URL)",
        ),
    }
}

/// The first line that `program --version` prints.
fn version_of(program: &str) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output
        .status
        .success()
        .then(|| text.lines().next().unwrap_or_default().to_owned())
}

/// The interpreter that workers run must have the package.
fn python() -> Finding {
    let python = default_python();
    let shown = python.display().to_string();
    let check = "import sys, kitchensink; print('Python %d.%d, kitchensink' % sys.version_info[:2], kitchensink.__version__)";
    match Command::new(&python).args(["-c", check]).output() {
        Ok(output) if output.status.success() => Finding::ok(
            "python",
            format!(
                "{shown}: {}",
                String::from_utf8_lossy(&output.stdout).trim()
            ),
        ),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr)
                .trim()
                .lines()
                .last()
                .unwrap_or_default()
                .to_owned();
            Finding::failed(
                "python",
                format!("{shown}: {said}"),
                "install the package there: pip install kitchensink; or: ks mount --python default=PATH",
            )
        }
        Err(error) => Finding::failed(
            "python",
            format!("{shown}: {error}"),
            "ks mount --python default=PATH names the interpreter",
        ),
    }
}

/// Every mount here, its node, and the cluster as that node sees it.
async fn nodes() -> Vec<Finding> {
    let trees = match mounted_trees() {
        Ok(trees) => trees,
        Err(error) => {
            return vec![Finding::failed(
                "mounts",
                format!("{error:#}"),
                "mount /proc",
            )];
        }
    };
    if trees.is_empty() {
        return vec![Finding::warning(
            "mounts",
            "no tree is mounted here",
            "ks mount /ks --datadir DIR",
        )];
    }
    let mut findings = Vec::new();
    for tree in &trees {
        let shown = tree.mountpoint.display().to_string();
        match look_at_node(&tree.mountpoint).await {
            Ok(more) => {
                findings.push(Finding::ok("mount", shown));
                findings.extend(more);
            }
            Err(error) => {
                let cure = format!(
                    "where the node has died: ks mount {shown} --datadir DIR again, as before; it clears the dead mount"
                );
                findings.push(Finding::failed(
                    "mount",
                    format!("{shown}: {error:#}"),
                    &cure,
                ));
            }
        }
        findings.extend(socket_mode(&tree.socket));
    }
    findings
}

/// Others must not be able to talk to the node as this user.
fn socket_mode(socket: &Path) -> Option<Finding> {
    let mode = std::fs::metadata(socket).ok()?.permissions().mode();
    (mode & 0o077 != 0).then(|| {
        let found = format!(
            "{} is open to others (mode {:o})",
            socket.display(),
            mode & 0o777
        );
        Finding::warning(
            "control socket",
            found,
            &format!("chmod 600 {}", socket.display()),
        )
    })
}

/// Whether the node hears of what happens in its data directory.
fn watching(status: &serde_json::Value) -> Option<Finding> {
    // Null: it was not asked for.
    let is_watched = status.get("watched")?.as_bool()?;
    Some(if is_watched {
        Finding::ok(
            "data directory",
            "watched: what is put there is in the tree moments later",
        )
    } else {
        let found = "not all of its directories are watched: what is put there is found by a scan now and then";
        let cure = "more watches, then mount again: sysctl fs.inotify.max_user_watches=1048576 (and fs.inotify.max_user_instances=1024)";
        Finding::warning("data directory", found, cure)
    })
}

/// Files that need a person, on any node.
fn troubles(status: &serde_json::Value) -> Vec<Finding> {
    let listed = |name: &str| {
        let first = status
            .pointer(&format!("/{name}/first"))
            .and_then(serde_json::Value::as_array);
        let shown = |one: &serde_json::Value| {
            format!(
                "{} on {}",
                super::text(one, "path"),
                super::text(one, "node")
            )
        };
        let count = status
            .get(name)
            .map_or(0, |listed| super::number(listed, "count"));
        let shown: Vec<String> = first.into_iter().flatten().map(shown).collect();
        (count, shown)
    };
    let mut findings = Vec::new();
    let (count, damaged) = listed("damaged");
    for file in damaged {
        let cure = "every copy that was found is damaged: restore it from a backup, or remove it";
        findings.push(Finding::failed("damaged file", file, cure));
    }
    if count == 0 {
        findings.push(Finding::ok("files", "no file is known to be damaged"));
    }
    let (count, conflicts) = listed("conflicts");
    if count > 0 {
        let found = format!("{count}: {}", conflicts.join(", "));
        let cure = "two nodes had a name with other content: compare, then remove or rename one";
        findings.push(Finding::warning("conflicts", found, cure));
    }
    let (count, unpublished) = listed("unpublished");
    if count > 0 {
        let found = format!("{count}: {}", unpublished.join(", "));
        let cure = "nothing is to be done where redis is away: they are published when it answers again; where it answers, look at the node's log";
        findings.push(Finding::warning("not published", found, cure));
    }
    for what in listed("thrown_away").1 {
        let cure = "nothing is to be done: it was thrown away and made anew; look at that node's disk if it goes on";
        findings.push(Finding::warning("damaged state", what, cure));
    }
    findings
}

/// Whether the catalog's Redis is there and takes changes.
fn redis(status: &serde_json::Value) -> Finding {
    if status.get("connected") != Some(&serde_json::Value::Bool(true)) {
        let (at, carrier) = (super::text(status, "at"), super::text(status, "carrier"));
        let is_ours = status.get("private") == Some(&serde_json::Value::Bool(true));
        let cure = match (is_ours, carrier.as_str()) {
            (true, _) => "this node starts it again by itself; its log says what hinders it".into(),
            (false, "") => format!("start {at} again; local files stay readable meanwhile"),
            (false, carrier) => format!(
                "{carrier} carries it and is gone, or cannot be reached: start that node again (on its machine: ks mount); local files stay readable meanwhile"
            ),
        };
        return Finding::failed("redis", format!("{at} does not answer"), &cure);
    }
    let refuses = super::text(status, "refuses");
    if refuses.is_empty() {
        return Finding::ok("redis", "connected");
    }
    let machine = match super::text(status, "carrier") {
        name if name.is_empty() => "Redis's machine".to_owned(),
        name => name,
    };
    let cure = if refuses.starts_with("MISCONF") {
        format!(
            "it cannot write its file: make room on the disk of {machine}, where the data directory's .ks/redis (or its own directory) is"
        )
    } else if refuses.starts_with("OOM") {
        format!(
            "it has used all the memory it may: raise maxmemory there (redis-cli config set maxmemory 0: no limit), or let calls end (ks jobs; ks cancel --all); it is on {machine}"
        )
    } else {
        format!("look at Redis's configuration and log on {machine}")
    };
    let found = format!("no name in the cluster can change: {refuses}");
    Finding::failed("redis", found, &cure)
}

/// How much room the data directory's disk has; `None`: it could not be asked.
fn disk(status: &serde_json::Value) -> Option<Finding> {
    let free = status.get("free_bytes")?.as_u64()?;
    let keep_free = super::number(status, "keep_free_bytes");
    let shown = format!("{} free", super::human_bytes(free));
    // Some file systems refuse new blocks while they still count a few as free.
    const FULL_BYTES: u64 = 16 << 20;
    Some(if free < FULL_BYTES {
        let cure = "make room: nothing can be written, and files of other nodes are read without being kept";
        Finding::warning(
            "disk",
            format!("the data directory's is full: {shown}"),
            cure,
        )
    } else if free < keep_free {
        let kept = super::human_bytes(keep_free);
        let cure =
            "make room, or mount with a smaller --keep-free: no fetched files are kept meanwhile";
        Finding::warning(
            "disk",
            format!("{shown}, less than the {kept} of --keep-free"),
            cure,
        )
    } else {
        Finding::ok("disk", shown)
    })
}

/// Records of the catalog that cannot be read.
fn records_found(records: &serde_json::Value, mountpoint: &Path) -> Vec<Finding> {
    // What stands in a directory whose own path is not known is told by that directory's number.
    let seen = |path: &str| match path.contains("' in directory ") {
        true => path.to_owned(),
        false => mountpoint
            .join(path.trim_start_matches('/'))
            .display()
            .to_string(),
    };
    let damaged = records.get("damaged").and_then(serde_json::Value::as_array);
    let without = records.get("without_content");
    let without = without.and_then(serde_json::Value::as_array);
    let without = without.into_iter().flatten().map(|path| {
        let path = seen(path.as_str().unwrap_or_default());
        let found = format!("{path} is in the tree, and no node has it");
        let cure = "start the node that had it (its home is forgotten, or was away when the catalog was rebuilt), or remove the file";
        Finding::warning("file without content", found, cure)
    });
    let mut damaged: Vec<Finding> = (damaged.into_iter().flatten())
        .map(|one| {
            let found = seen(one.as_str().unwrap_or_default());
            let cure = "its bytes are in the data directories of the nodes that hold it";
            Finding::failed("record", found, cure)
        })
        .collect();
    damaged.extend(without);
    if !damaged.is_empty() {
        return damaged;
    }
    let count = super::text(records, "records");
    let found = match records.get("is_part") == Some(&serde_json::Value::Bool(true)) {
        true => format!("{count} were looked at in the time there is, all of them readable"),
        false => format!("all {count} of them can be read"),
    };
    vec![Finding::ok("records", found)]
}

async fn look_at_node(mountpoint: &Path) -> anyhow::Result<Vec<Finding>> {
    let mut node = connect(Some(mountpoint)).await?;
    let Answer::Status(status) = node.ask(Ask::Status).await? else {
        anyhow::bail!("the node gave no status");
    };
    let mut findings = Vec::new();
    findings.push(redis(status.get("redis").context("an incomplete status")?));
    findings.extend(status.get("disk").and_then(disk));
    findings.extend(watching(&status));
    findings.extend(troubles(&status));
    match node.ask(Ask::Records).await {
        Ok(Answer::Status(records)) => findings.extend(records_found(&records, mountpoint)),
        Ok(_) => anyhow::bail!("the node did not say how its records are"),
        Err(error) => findings.push(Finding::failed(
            "records",
            format!("{error:#}"),
            "the catalog must answer for them to be looked at",
        )),
    }
    let nodes = match node.ask(Ask::Nodes).await {
        Ok(Answer::Nodes(nodes)) => nodes,
        Ok(_) => anyhow::bail!("the node gave no list of nodes"),
        Err(error) => {
            let cure = "this node lives; which others do is known when Redis answers again";
            findings.push(Finding::warning("nodes", format!("{error:#}"), cure));
            return Ok(findings);
        }
    };
    for other in &nodes {
        let shown = format!(
            "{} at {}",
            super::text(other, "name"),
            super::text(other, "address")
        );
        findings.push(
            if other.get("alive") == Some(&serde_json::Value::Bool(true)) {
                Finding::ok("node", shown)
            } else {
                Finding::warning(
                    "node",
                    format!("{shown} is gone"),
                    "start it again: what only it holds cannot be read meanwhile",
                )
            },
        );
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::{Verdict, disk, redis};
    use serde_json::json;

    #[test]
    fn a_redis_that_takes_no_changes_is_told_with_its_machine() {
        let full = "MISCONF Errors writing to the AOF file: No space left on device";
        let found = redis(&json!({"connected": true, "refuses": full, "carrier": "host1"}));
        assert_eq!(found.verdict, Verdict::Failed);
        assert!(found.found.contains(full) && found.cure.unwrap().contains("the disk of host1"));
        let full = "OOM command not allowed when used memory > 'maxmemory'.";
        let found = redis(&json!({"connected": true, "refuses": full, "carrier": "host1"}));
        let cure = found.cure.unwrap();
        assert!(cure.contains("maxmemory") && cure.contains("host1"));
        let well = redis(&json!({"connected": true, "refuses": null, "carrier": null}));
        assert_eq!(well.verdict, Verdict::Ok);
        let gone = redis(
            &json!({"connected": false, "carrier": "host1", "at": "the Redis behind host1:6323"}),
        );
        assert_eq!(gone.verdict, Verdict::Failed);
        let (found, cure) = (gone.found, gone.cure.unwrap());
        assert!(
            found.contains("host1:6323") && cure.contains("host1 carries it"),
            "{cure}"
        );
    }

    #[test]
    fn a_disk_with_little_room_is_told() {
        let judged = |free: u64| {
            let status = json!({"free_bytes": free << 20, "keep_free_bytes": 100 << 20});
            let found = disk(&status).unwrap();
            (found.verdict, found.found.contains("full"))
        };
        let expected = [
            (Verdict::Warning, true),
            (Verdict::Warning, false),
            (Verdict::Ok, false),
        ];
        assert_eq!([0, 99, 100].map(judged), expected);
        assert!(disk(&json!(null)).is_none());
    }
}
