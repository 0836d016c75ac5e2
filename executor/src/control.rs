//! The client's side of the control socket, for the `ks` program: finds this machine's node by the mount table and talks to it.
use crate::protocol::{Answer, Ask, Request, Tell, VERSION};
use anyhow::{Context, bail};
use bytes::Bytes;
use ks_fs::mount::table;
use ks_transport::segments;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

/// How long a node on this machine may take to answer a question that needs no work.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A mount of ours, as the mount table has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountedTree {
    /// Where the tree appears.
    pub mountpoint: PathBuf,
    /// The control socket of its node.
    pub socket: PathBuf,
}

/// The trees that are mounted here and can be reached (nothing else was mounted over them), whether their nodes live or not.
pub fn mounted_trees() -> anyhow::Result<Vec<MountedTree>> {
    let table = table::read().context("/proc/self/mountinfo")?;
    Ok(trees_in(&table))
}

fn trees_in(table: &[table::MountLine]) -> Vec<MountedTree> {
    let ours = |line: &&table::MountLine| {
        Some(MountedTree {
            mountpoint: line.mountpoint.clone(),
            socket: line.control_socket()?,
        })
    };
    table::reachable(table).iter().filter_map(ours).collect()
}

/// Whether a node answers behind the tree's socket.
fn lives(tree: &MountedTree) -> bool {
    std::os::unix::net::UnixStream::connect(&tree.socket).is_ok()
}

/// The tree that `path` lies in; with no path, the one that holds the working directory, else the first one whose
/// node lives.
pub fn find_tree(path: Option<&Path>) -> anyhow::Result<MountedTree> {
    let trees = mounted_trees()?;
    let containing = |path: &Path| {
        trees
            .iter()
            .filter(|tree| path.starts_with(&tree.mountpoint))
            .max_by_key(|tree| tree.mountpoint.as_os_str().len())
    };
    let found = match path {
        Some(path) => {
            let absolute = absolute(path)?;
            let found = containing(&absolute).cloned();
            if found.is_none() && !trees.is_empty() {
                bail!(
                    "{}: outside the tree, which is mounted at {}",
                    absolute.display(),
                    trees[0].mountpoint.display()
                );
            }
            found
        }
        None => std::env::current_dir()
            .ok()
            .and_then(|here| containing(&here).cloned())
            .or_else(|| trees.iter().find(|tree| lives(tree)).cloned())
            .or_else(|| trees.first().cloned()),
    };
    found.context("no tree is mounted on this machine; run: ks mount /ks --datadir DIR")
}

/// The path as it would be opened, without touching the file system.
pub fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    let joined = std::path::absolute(path).with_context(|| path.display().to_string())?;
    let mut clean = PathBuf::new();
    for part in joined.components() {
        match part {
            std::path::Component::ParentDir => {
                clean.pop();
            }
            part => clean.push(part),
        }
    }
    Ok(clean)
}

/// A conversation with a node.
pub struct Control {
    stream: UnixStream,
    next_request: u64,
    /// What the node said of itself.
    pub hello: Hello,
}

/// A node's introduction.
#[derive(Clone, Debug, Default)]
pub struct Hello {
    /// Its name.
    pub node: String,
    /// Where it mounts the tree.
    pub mountpoint: PathBuf,
}

impl Control {
    /// Connects to the node behind `socket`.
    pub async fn connect(socket: &Path) -> anyhow::Result<Self> {
        let stream = match UnixStream::connect(socket).await {
            Ok(stream) => stream,
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => bail!(
                "{}: the node belongs to another user, who alone may control it",
                socket.display()
            ),
            Err(error) => {
                return Err(error).with_context(|| {
                    format!(
                        "the node behind {} does not answer; if it has died, run: ks umount, then ks mount again",
                        socket.display()
                    )
                });
            }
        };
        let mut control = Self {
            stream,
            next_request: 0,
            hello: Hello::default(),
        };
        let hello = Ask::Hello {
            version: VERSION,
            program: format!("ks {}", env!("CARGO_PKG_VERSION")),
        };
        match control.ask(hello).await? {
            Answer::Hello {
                node, mountpoint, ..
            } => {
                control.hello = Hello {
                    node,
                    mountpoint: OsString::from_vec(mountpoint.into_vec()).into(),
                };
                Ok(control)
            }
            other => bail!("the node said {other:?} where a greeting was due"),
        }
    }

    /// Sends a question; its answer is read with `next`.
    pub async fn send(&mut self, body: Ask, payloads: &[&[u8]]) -> anyhow::Result<u64> {
        self.next_request += 1;
        let request = Request {
            request: self.next_request,
            body,
        };
        let header = rmp_serde::to_vec_named(&request)?;
        let frame: Vec<&[u8]> = std::iter::once(header.as_slice())
            .chain(payloads.iter().copied())
            .collect();
        segments::write_async(&mut self.stream, &frame)
            .await
            .context("the node")?;
        Ok(self.next_request)
    }

    /// What the node says next, and the frame's payload segments (index 0 is the header).
    pub async fn next(&mut self) -> anyhow::Result<(Tell, Vec<Bytes>)> {
        let frame = segments::read_async(&mut self.stream)
            .await
            .context("the node")?
            .context("the node has closed the connection")?;
        let tell = rmp_serde::from_slice(&frame[0]).context("the node's answer")?;
        Ok((tell, frame))
    }

    /// What is said of a node that takes questions and does not answer.
    fn silence(&self) -> String {
        let process = self.stream.peer_cred().ok().and_then(|peer| peer.pid());
        let process = process.map_or_else(|| "its process".into(), |pid| format!("process {pid}"));
        format!(
            "the node's {process} does not answer; if it does not come back, end it (kill -9) and run: ks mount again"
        )
    }

    /// One question, one answer; a `Failed` answer is an error.
    pub async fn ask(&mut self, body: Ask) -> anyhow::Result<Answer> {
        self.ask_within(body, ANSWER_TIMEOUT).await
    }

    /// As `ask`, for a question that may need more work than others.
    pub async fn ask_within(&mut self, body: Ask, timeout: Duration) -> anyhow::Result<Answer> {
        let sent = self.send(body, &[]).await?;
        loop {
            let (tell, _) = tokio::time::timeout(timeout, self.next())
                .await
                .with_context(|| self.silence())??;
            match tell {
                Tell::Reply { request, answer } if request == sent => return failed(answer),
                _ => continue,
            }
        }
    }
}

/// The node's own word that it will not, or cannot: it is there, and other questions may be asked.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

/// A `Failed` answer as an error.
pub fn failed(answer: Answer) -> anyhow::Result<Answer> {
    match answer {
        Answer::Failed { message, .. } => bail!(Refused(message)),
        answer => Ok(answer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_mounts_are_found_in_the_table() {
        let table = b"22 28 0:21 / /sys rw shared:7 - sysfs sysfs rw\n\
            99 28 0:50 / /ks rw,nosuid shared:1 - fuse.ks ks:/data/with\\040space/.ks/control.sock rw,user_id=0\n\
            98 28 0:49 / /other rw - fuse.sshfs ks:/x rw\n";
        let trees = trees_in(&table::parse(table));
        assert_eq!(
            trees,
            [MountedTree {
                mountpoint: "/ks".into(),
                socket: "/data/with space/.ks/control.sock".into()
            }]
        );
    }

    #[test]
    fn paths_are_made_absolute_without_looking() {
        assert_eq!(
            absolute(Path::new("/ks/a/../b")).unwrap(),
            Path::new("/ks/b")
        );
    }
}
