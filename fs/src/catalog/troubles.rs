//! What the nodes say needs a person: `ks:troubles` (hash: node -> encoded `Troubles`), and the records themselves, looked at for damage.
//!
//! Not for finding damaged files (the scrub and `ks verify` do): this is where the cluster is told of them.
use super::reads::{array, bytes};
use super::transaction::Place;
use super::{Catalog, CatalogError};
use crate::path::TreePath;
use crate::record::*;
use crate::store::troubles::Troubles;
use redis::Value;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Where they stand.
const TROUBLES: &str = "ks:troubles";
/// Keys asked for at once.
const PART: usize = 1000;
/// Damaged records that are told.
const DAMAGED_MAX: usize = 100;
/// The records are looked at for so long at most.
const LOOK_AT_MOST: Duration = Duration::from_secs(20);

/// What looking at the catalog's records found.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct RecordsLookedAt {
    /// Records that were read.
    pub records: u64,
    /// There was no time for all of them, or too many are damaged.
    pub is_part: bool,
    /// Those that cannot be read: what they are of, and where that is in the tree as far as is known.
    pub damaged: Vec<String>,
    /// Files that no node of the cluster has whole, their home being none of its nodes.
    pub without_content: Vec<String>,
}

/// Inodes to be named.
#[derive(Default)]
struct Named {
    damaged: BTreeSet<Ino>,
    homeless: BTreeSet<Ino>,
}

impl Catalog {
    /// Tells the cluster this node's troubles.
    pub async fn tell_troubles(&self, troubles: &Troubles) -> Result<(), CatalogError> {
        let field = self.me().to_string();
        let command = match troubles.is_empty() {
            true => {
                let mut command = redis::cmd("HDEL");
                command.arg(TROUBLES).arg(field);
                command
            }
            false => {
                let mut command = redis::cmd("HSET");
                command.arg(TROUBLES).arg(field).arg(encode(troubles));
                command
            }
        };
        self.redis().run(&command).await?;
        Ok(())
    }

    /// All nodes' troubles; what cannot be read is passed over.
    pub async fn troubles(&self) -> Result<Vec<(NodeId, Troubles)>, CatalogError> {
        let mut command = redis::cmd("HGETALL");
        command.arg(TROUBLES);
        let found = pairs(self.redis().run(&command).await?);
        let read = found.into_iter().filter_map(|(node, told)| {
            let node = String::from_utf8(node).ok()?.parse().ok()?;
            Some((node, decode(&told).ok()?))
        });
        Ok(read.collect())
    }

    /// Reads every inode, directory entry and holding, and names those that cannot be read. For `ks doctor`: it costs what the whole catalog costs.
    pub async fn look_at_records(&self) -> Result<RecordsLookedAt, CatalogError> {
        let until = Instant::now() + LOOK_AT_MOST;
        let mut found = RecordsLookedAt::default();
        let mut inodes = self.inodes_to_name(&mut found, until).await?;
        self.keep_lost(&mut inodes.homeless).await?;
        let mut placed = BTreeSet::new();
        let mut cursor = b"0".to_vec();
        loop {
            let (next, keys) = self.scan("ks:d:*", &cursor).await?;
            for key in keys {
                let Some(Place::Directory(directory)) = Place::from_tracked_key(&key) else {
                    continue;
                };
                self.look_at_directory(directory, &inodes, &mut placed, &mut found)
                    .await?;
            }
            cursor = next;
            found.is_part |= Instant::now() > until || found.damaged.len() >= DAMAGED_MAX;
            if cursor == b"0" || found.is_part {
                break;
            }
        }
        for ino in inodes.damaged.difference(&placed) {
            found.damaged.push(format!(
                "inode {ino}: its record cannot be read, and no directory has it"
            ));
        }
        Ok(found)
    }

    /// Of files whose home is no node, those that no other has whole.
    async fn keep_lost(&self, homeless: &mut BTreeSet<Ino>) -> Result<(), CatalogError> {
        for ino in homeless.clone() {
            let located = self.located(ino).await?;
            let is_lost = located.is_some_and(|located| {
                let inode = &located.node.inode;
                let mut holders = located.holders.iter();
                !holders.any(|(_, holding)| super::copies::is_whole(inode, holding))
            });
            if !is_lost {
                homeless.remove(&ino);
            }
        }
        Ok(())
    }

    async fn inodes_to_name(
        &self,
        found: &mut RecordsLookedAt,
        until: Instant,
    ) -> Result<Named, CatalogError> {
        let (mut named, mut cursor) = (Named::default(), b"0".to_vec());
        let nodes = self.nodes().await?;
        let is_homeless = |inode: &Inode| {
            let is_known = nodes.iter().any(|node| node.id == inode.home);
            inode.kind == Kind::File && inode.size > 0 && !is_known
        };
        loop {
            let (next, keys) = self.scan("ks:i:*", &cursor).await?;
            if !keys.is_empty() {
                let mut command = redis::cmd("MGET");
                command.arg(&keys);
                let records = array(self.redis().run(&command).await?).unwrap_or_default();
                for (key, record) in keys.iter().zip(records) {
                    let Some(record) = bytes(record) else {
                        continue;
                    };
                    found.records += 1;
                    let Some(Place::Inode(ino)) = Place::from_tracked_key(key) else {
                        continue;
                    };
                    match decode::<Inode>(&record) {
                        Err(_) => drop(named.damaged.insert(ino)),
                        Ok(inode) if is_homeless(&inode) && named.homeless.len() < DAMAGED_MAX => {
                            named.homeless.insert(ino);
                        }
                        Ok(_) => {}
                    }
                }
            }
            cursor = next;
            found.is_part |= Instant::now() > until || named.damaged.len() >= DAMAGED_MAX;
            if cursor == b"0" || found.is_part {
                return Ok(named);
            }
        }
    }

    /// Its entries, and where those are whose inodes are damaged.
    async fn look_at_directory(
        &self,
        directory: Ino,
        inodes: &Named,
        placed: &mut BTreeSet<Ino>,
        found: &mut RecordsLookedAt,
    ) -> Result<(), CatalogError> {
        let mut cursor = b"0".to_vec();
        loop {
            let mut command = redis::cmd("HSCAN");
            command.arg(Place::Directory(directory).key());
            command.arg(&cursor).arg("COUNT").arg(PART);
            let Some((next, entries)) = scanned(self.redis().run(&command).await?) else {
                return Ok(());
            };
            let entries: Vec<Vec<u8>> = entries;
            for pair in entries.chunks_exact(2) {
                let (name, entry) = (&pair[0], &pair[1]);
                if name.first() == Some(&b'/') {
                    continue;
                }
                found.records += 1;
                let what = match Entry::from_bytes(entry) {
                    Err(_) => "the directory's entry cannot be read",
                    Ok(entry) if inodes.homeless.contains(&entry.ino) => {
                        let path = self.path_in(directory, name).await;
                        found.without_content.push(path);
                        continue;
                    }
                    Ok(entry) if inodes.damaged.contains(&entry.ino) => {
                        placed.insert(entry.ino);
                        "its record cannot be read"
                    }
                    Ok(_) => continue,
                };
                let path = self.path_in(directory, name).await;
                found.damaged.push(format!("{path}: {what}"));
            }
            cursor = next;
            if cursor == b"0" || found.damaged.len() >= DAMAGED_MAX {
                return Ok(());
            }
        }
    }

    async fn path_in(&self, directory: Ino, name: &[u8]) -> String {
        let above = if directory == ROOT {
            Some(TreePath::root())
        } else {
            self.path_of(directory).await.ok().flatten()
        };
        match above {
            Some(above) => above.join(name).to_string(),
            None => format!(
                "'{}' in directory {directory}",
                String::from_utf8_lossy(name)
            ),
        }
    }

    pub(super) async fn scan(
        &self,
        pattern: &str,
        cursor: &[u8],
    ) -> Result<(Vec<u8>, Vec<Vec<u8>>), CatalogError> {
        let mut command = redis::cmd("SCAN");
        command.arg(cursor).arg("MATCH").arg(pattern);
        command.arg("COUNT").arg(PART);
        let answer = self.redis().run(&command).await?;
        scanned(answer).ok_or_else(|| super::reads::damaged("SCAN"))
    }
}

/// The next cursor and the values of a SCAN or HSCAN.
fn scanned(answer: Value) -> Option<(Vec<u8>, Vec<Vec<u8>>)> {
    let mut parts = array(answer)?.into_iter();
    let cursor = bytes(parts.next()?)?;
    let values = match parts.next()? {
        Value::Map(pairs) => (pairs.into_iter())
            .flat_map(|(key, value)| [bytes(key), bytes(value)])
            .flatten()
            .collect(),
        other => array(other)?.into_iter().filter_map(bytes).collect(),
    };
    Some((cursor, values))
}

/// A hash, in whichever of its two forms it comes.
fn pairs(answer: Value) -> Vec<(Vec<u8>, Vec<u8>)> {
    let both = |(key, value): (Value, Value)| Some((bytes(key)?, bytes(value)?));
    match answer {
        Value::Map(pairs) => pairs.into_iter().filter_map(both).collect(),
        other => {
            let values: Vec<Vec<u8>> = array(other)
                .unwrap_or_default()
                .into_iter()
                .filter_map(bytes)
                .collect();
            let pairs = values.chunks_exact(2);
            pairs
                .map(|pair| (pair[0].clone(), pair[1].clone()))
                .collect()
        }
    }
}
