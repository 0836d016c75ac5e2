//! Nodes and their heart-beats.
//!
//! What always holds: a name and a data directory have one live node at most. A node that was killed leaves its last
//! beat behind for up to `LIVENESS`; its successor does not wait where it has the same address (two processes cannot
//! listen there), and else waits to see whether the beat goes on.
use super::changes::Ended;
use super::reads::{array, bytes, damaged};
use super::transaction::{Check, Operation, Otherwise, Place, Transaction};
use super::{Catalog, CatalogError};
use crate::record::{NodeId, NodeInfo, decode, encode};
use crate::redis_client::Script;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

/// A node is gone when it has not been heard of for so long.
pub const LIVENESS: Duration = Duration::from_secs(6);
/// Time between heart-beats.
pub const HEARTBEAT: Duration = Duration::from_secs(2);
/// How old the list of the nodes may be that is used as it is.
const NODES_FRESH: Duration = Duration::from_millis(100);
/// A list that was read so short a time ago is not read again for a node that is not in it.
const NODES_JUST_READ: Duration = Duration::from_millis(10);
/// Between two looks at whether an old beat goes on.
const LOOK: Duration = Duration::from_millis(250);
/// How often a registration is tried against others that register at the same time.
const ATTEMPTS_MAX: usize = 64;

static NODES: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("nodes.lua")));

/// A node as the cluster sees it.
#[derive(Clone, Debug)]
pub struct NodeState {
    /// Its identity.
    pub id: NodeId,
    /// What it said of itself.
    pub info: NodeInfo,
    /// It was heard of within `LIVENESS`.
    pub alive: bool,
}

/// Why a node cannot join.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// Another live node has this name.
    #[error(
        "the node name '{name}' is taken by a live node at {address}; choose another with --node-name"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Where that node is.
        address: String,
    },
    /// Another live daemon runs with this data directory's identity.
    #[error("the data directory is in use by a live node '{name}' at {address}")]
    DatadirInUse {
        /// That node's name.
        name: String,
        /// Where it is.
        address: String,
    },
    /// The catalog did not answer.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// The nodes as they were read last, and this node's own record.
#[derive(Clone, Default)]
pub(super) struct NodesMemory(Arc<Mutex<Remembered>>);

#[derive(Default)]
struct Remembered {
    read: Option<(Instant, Arc<Vec<NodeState>>)>,
    mine: Option<Mine>,
}

#[derive(Clone)]
struct Mine {
    info: NodeInfo,
    beats: u64,
}

impl NodesMemory {
    pub(super) fn forget(&self) {
        self.0.lock().unwrap().read = None;
    }
}

/// A node's row: its record's bytes and its last beat ("<incarnation> <count>").
struct Row {
    id: NodeId,
    bytes: Vec<u8>,
    info: NodeInfo,
    beat: Option<Vec<u8>>,
}

/// What a registration means, given all rows.
#[derive(Debug)]
enum Verdict {
    /// Nobody is in the way.
    Free,
    /// This node's last beat is not over.
    InTheWay(NodeId, RegisterError),
}

fn judge(me: NodeId, info: &NodeInfo, rows: &[Row]) -> Verdict {
    let living = rows
        .iter()
        .filter(|row| row.beat.is_some() && row.info.address != info.address);
    for row in living {
        let (name, address) = (row.info.name.clone(), row.info.address.clone());
        if row.id == me && row.info.incarnation != info.incarnation {
            return Verdict::InTheWay(row.id, RegisterError::DatadirInUse { name, address });
        }
        if row.id != me && row.info.name == info.name {
            return Verdict::InTheWay(row.id, RegisterError::NameTaken { name, address });
        }
    }
    Verdict::Free
}

fn beat_text(info: &NodeInfo, beats: u64) -> Vec<u8> {
    format!("{} {beats}", info.incarnation).into_bytes()
}

/// Writes a node's record and its beat.
fn enter(change: &mut Transaction, me: NodeId, info: &NodeInfo, beats: u64) {
    let liveness = u64::try_from(LIVENESS.as_millis()).unwrap_or(u64::MAX);
    change.then(Operation::SetField(
        Place::Nodes,
        me.to_string().into_bytes(),
        encode(info),
    ));
    change.then(Operation::SetExpiring(
        Place::Alive(me),
        beat_text(info, beats),
        liveness,
    ));
}

/// Enters this node on the condition that nobody else registered since `rows` were read.
fn registration(me: NodeId, info: &NodeInfo, rows: &[Row]) -> Transaction {
    let mut change = Transaction::default();
    for row in rows {
        // A heart-beat changes free bytes alone; a row with our name or identity is what matters.
        if row.id == me || row.info.name == info.name {
            let field = row.id.to_string().into_bytes();
            change.expect(Check::FieldEquals(Place::Nodes, field, row.bytes.clone()));
        }
    }
    change.expect(Check::Fields(Place::Nodes, rows.len()));
    if !rows.iter().any(|row| row.id == me) {
        let field = me.to_string().into_bytes();
        change.expect(Check::NoField(Place::Nodes, field));
    }
    enter(&mut change, me, info, 0);
    change
}

impl Catalog {
    /// Enters this node, atomically with the checks above. Waits up to `LIVENESS` where a node that is in the way may be dead.
    pub async fn register(&self, info: NodeInfo) -> Result<(), RegisterError> {
        let give_up = Instant::now() + LIVENESS + LOOK;
        let mut waiting_for: Option<(NodeId, Option<Vec<u8>>)> = None;
        let mut attempts = 0;
        loop {
            let rows = self.node_rows().await?;
            match judge(self.me(), &info, &rows) {
                Verdict::Free => {
                    let change = registration(self.me(), &info, &rows);
                    if let Ended::Done { .. } = self.commit(&change).await? {
                        break;
                    }
                    attempts += 1;
                    if attempts == ATTEMPTS_MAX {
                        let contention = CatalogError::Contention("the list of nodes".into());
                        return Err(contention.into());
                    }
                }
                Verdict::InTheWay(id, error) => {
                    let row = rows.iter().find(|row| row.id == id);
                    let beat = row.and_then(|row| row.beat.clone());
                    let lives = waiting_for
                        .as_ref()
                        .is_some_and(|(other, before)| *other == id && *before != beat);
                    if lives || Instant::now() > give_up {
                        return Err(error);
                    }
                    waiting_for = Some((id, beat));
                    tokio::time::sleep(LOOK).await;
                }
            }
        }
        let mut memory = self.shared.nodes.0.lock().unwrap();
        memory.mine = Some(Mine { info, beats: 0 });
        memory.read = None;
        Ok(())
    }

    /// One heart-beat; call every `HEARTBEAT`. ESTALE: another daemon has taken this node's identity; ENOENT: not registered.
    pub async fn heartbeat(&self, free_bytes: u64, total_bytes: u64) -> Result<(), CatalogError> {
        let before = self.shared.nodes.0.lock().unwrap().mine.clone();
        let Some(before) = before else {
            return Err(CatalogError::Posix(libc::ENOENT));
        };
        let mut next = before.clone();
        next.beats += 1;
        next.info.free_bytes = free_bytes;
        next.info.total_bytes = total_bytes;
        let field = self.me().to_string().into_bytes();
        let as_left = Check::FieldEquals(Place::Nodes, field, encode(&before.info));
        if self.beat(as_left, &next).await? {
            return Ok(());
        }
        // A beat whose answer was lost may have changed the record; or Redis has lost it: then it is made again.
        let as_found = self.own_record(&before.info).await?;
        match self.beat(as_found, &next).await? {
            true => Ok(()),
            false => Err(CatalogError::Posix(libc::ESTALE)),
        }
    }

    /// Enters this node again at once, where Redis has lost its record; the heart-beat would come to it a little later.
    pub(super) async fn enter_again(&self) -> Result<(), CatalogError> {
        let mine = self.shared.nodes.0.lock().unwrap().mine.clone();
        if let Some(mine) = mine {
            let as_found = self.own_record(&mine.info).await?;
            self.beat(as_found, &mine).await?;
        }
        Ok(())
    }

    /// False: the condition does not hold.
    async fn beat(&self, condition: Check, next: &Mine) -> Result<bool, CatalogError> {
        let mut change = Transaction::default();
        change.conditions.push((condition, Otherwise::Stale));
        enter(&mut change, self.me(), &next.info, next.beats);
        let Ended::Done { .. } = self.commit(&change).await? else {
            return Ok(false);
        };
        self.shared.nodes.0.lock().unwrap().mine = Some(next.clone());
        Ok(true)
    }

    /// That this node's record stands as it does now. ESTALE: it is another daemon's.
    async fn own_record(&self, mine: &NodeInfo) -> Result<Check, CatalogError> {
        let field = self.me().to_string().into_bytes();
        let mut command = redis::cmd("HGET");
        command.arg(Place::Nodes.key()).arg(&field);
        let Some(found) = bytes(self.redis().run(&command).await?) else {
            return Ok(Check::NoField(Place::Nodes, field));
        };
        let info: NodeInfo = decode(&found)?;
        match info.incarnation == mine.incarnation {
            true => Ok(Check::FieldEquals(Place::Nodes, field, found)),
            false => Err(CatalogError::Posix(libc::ESTALE)),
        }
    }

    /// This node leaves in order: it is gone for the others at once. Its record stays, so that it is still known by name.
    pub async fn deregister(&self) -> Result<(), CatalogError> {
        self.shared.nodes.0.lock().unwrap().mine = None;
        let mut change = Transaction::default();
        change.then(Operation::Delete(Place::Alive(self.me())));
        self.commit(&change).await?;
        self.shared.nodes.forget();
        Ok(())
    }

    /// All nodes, by name; from a cache that is at most `NODES_FRESH` old.
    pub async fn nodes(&self) -> Result<Arc<Vec<NodeState>>, CatalogError> {
        self.nodes_since(NODES_FRESH).await
    }

    /// All nodes as they were when they were last asked for, however long ago; empty: never.
    pub fn remembered_nodes(&self) -> Arc<Vec<NodeState>> {
        let cache = self.shared.nodes.0.lock().unwrap();
        let read = cache.read.as_ref();
        read.map_or_else(Arc::default, |(_, nodes)| nodes.clone())
    }

    /// All nodes, by name, as they were at most `age` ago.
    async fn nodes_since(&self, age: Duration) -> Result<Arc<Vec<NodeState>>, CatalogError> {
        if let Some((when, nodes)) = &self.shared.nodes.0.lock().unwrap().read
            && when.elapsed() < age
        {
            return Ok(nodes.clone());
        }
        let asked = Instant::now();
        let rows = self.node_rows().await?;
        let mut nodes: Vec<NodeState> = rows
            .into_iter()
            .map(|row| NodeState {
                id: row.id,
                info: row.info,
                alive: row.beat.is_some(),
            })
            .collect();
        nodes.sort_by(|a, b| (&a.info.name, a.id).cmp(&(&b.info.name, b.id)));
        let nodes = Arc::new(nodes);
        self.shared.nodes.0.lock().unwrap().read = Some((asked, nodes.clone()));
        Ok(nodes)
    }

    /// The address of a live node. One that is not known to live is asked for once more: it may just have come.
    pub async fn address_of(&self, node: NodeId) -> Result<Option<String>, CatalogError> {
        let mut address = None;
        for age in [NODES_FRESH, NODES_JUST_READ] {
            let nodes = self.nodes_since(age).await?;
            let found = nodes.iter().find(|state| state.id == node && state.alive);
            address = found.map(|state| state.info.address.clone());
            if address.is_some() {
                break;
            }
        }
        Ok(address)
    }

    async fn node_rows(&self) -> Result<Vec<Row>, CatalogError> {
        let reply = self.ask(&NODES, &[]).await?;
        let mut values = array(reply).ok_or_else(|| damaged("nodes"))?.into_iter();
        let mut rows = Vec::new();
        while let (Some(id), Some(info), Some(beat)) = (values.next(), values.next(), values.next())
        {
            let id = bytes(id).and_then(|id| String::from_utf8(id).ok()?.parse().ok());
            let info = bytes(info).ok_or_else(|| damaged("nodes"))?;
            rows.push(Row {
                id: id.ok_or_else(|| damaged("nodes"))?,
                info: decode(&info)?,
                bytes: info,
                beat: bytes(beat),
            });
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &str, address: &str, incarnation: u64) -> NodeInfo {
        NodeInfo {
            name: name.into(),
            address: address.into(),
            mountpoint: "/ks".into(),
            datadir: "/data".into(),
            incarnation,
            version: "0".into(),
            workers: 1,
            queues: vec![],
            read_only: false,
            carries_redis: false,
            started: 0,
            free_bytes: 0,
            total_bytes: 0,
        }
    }

    fn row(id: u64, info: NodeInfo, alive: bool) -> Row {
        Row {
            id: NodeId(id),
            bytes: encode(&info),
            beat: alive.then(|| beat_text(&info, 1)),
            info,
        }
    }

    #[test]
    fn names_and_data_directories_have_one_live_node() {
        let mine = info("a", "h1:1", 7);
        let judged = |row: Row| judge(NodeId(1), &mine, &[row]);
        let free = |verdict: Verdict| matches!(verdict, Verdict::Free);
        assert!(free(judged(row(2, info("b", "h2:1", 1), true))));
        assert!(free(judged(row(2, info("a", "h2:1", 1), false))));
        // The same address: that process is gone, we listen there.
        assert!(free(judged(row(2, info("a", "h1:1", 1), true))));
        assert!(free(judged(row(1, info("a", "h1:1", 1), true))));
        assert!(matches!(
            judged(row(2, info("a", "h2:1", 1), true)),
            Verdict::InTheWay(_, RegisterError::NameTaken { .. })
        ));
        assert!(matches!(
            judged(row(1, info("z", "h2:1", 1), true)),
            Verdict::InTheWay(_, RegisterError::DatadirInUse { .. })
        ));
    }
}
