//! Enters what a scan found: directories one by one (their children need their numbers), files in pipelines of `BATCH`.
use super::changes::COMMIT;
use super::journal::{self, Stand};
use super::memory::Changing;
use super::namespace::{self, ParentTime};
use super::transaction::{Outcome, Place, Transaction};
use super::{Adopted, Catalog, CatalogError, Node_, fresh_node};
use crate::path::TreePath;
use crate::record::*;
use crate::redis_client::RedisError;
use std::collections::{BTreeSet, HashMap};
use tokio::time::Instant;

/// Files in one round trip.
const BATCH: usize = 500;
/// How often a batch is sent again when the connection goes before its answer.
const BATCH_ATTEMPTS: usize = 3;
/// Permissions of a directory that had to be made: its own entry was not among those found.
const PARENT_MODE: u32 = 0o755;

/// Where a path's directory is: its number, or what stands in the way.
type Directory = Result<Ino, Node_>;

/// A file about to be entered.
struct Pending {
    /// Its place among those found.
    index: usize,
    parent: Ino,
    name: Vec<u8>,
    ino: Ino,
    inode: Inode,
}

impl Catalog {
    pub(super) async fn adopt_(
        &self,
        found: Vec<(TreePath, Inode)>,
    ) -> Result<Vec<Adopted>, CatalogError> {
        let mut directories: HashMap<TreePath, Directory> = HashMap::new();
        let mut results: Vec<Option<Adopted>> = (0..found.len()).map(|_| None).collect();
        let mut pending: Vec<Pending> = Vec::new();
        for (index, (path, inode)) in found.into_iter().enumerate() {
            let Some((parent, name)) = path.split_last() else {
                results[index] = self.node(ROOT).await?.map(Adopted::Occupied);
                continue;
            };
            let parent = match self.directory(&parent, &inode, &mut directories).await? {
                Ok(parent) => parent,
                Err(in_the_way) => {
                    results[index] = Some(Adopted::Occupied(in_the_way));
                    continue;
                }
            };
            if inode.kind == Kind::Directory {
                let adopted = self.adopt_one(parent, name, inode).await?;
                if let Adopted::New(node) | Adopted::Occupied(node) = &adopted
                    && node.inode.kind == Kind::Directory
                {
                    directories.insert(path, Ok(node.ino));
                }
                results[index] = Some(adopted);
                continue;
            }
            pending.push(Pending {
                index,
                parent,
                name: name.to_vec(),
                ino: self.shared.numbers.take(self).await?,
                inode,
            });
            if pending.len() == BATCH {
                self.adopt_batch(std::mem::take(&mut pending), &mut results)
                    .await?;
            }
        }
        self.adopt_batch(pending, &mut results).await?;
        let all: Option<Vec<Adopted>> = results.into_iter().collect();
        // The root alone can lack one, when there is no tree.
        all.ok_or(CatalogError::Posix(libc::ENOENT))
    }

    /// The directory at `path`, made where it is missing (owned as `like` is).
    async fn directory(
        &self,
        path: &TreePath,
        like: &Inode,
        known: &mut HashMap<TreePath, Directory>,
    ) -> Result<Directory, CatalogError> {
        if let Some(directory) = known.get(path) {
            return Ok(directory.clone());
        }
        let mut at = Ok(ROOT);
        let mut walked = TreePath::root();
        for name in path.names() {
            walked = walked.join(name);
            at = match (known.get(&walked), at) {
                (Some(directory), _) => directory.clone(),
                (None, Ok(parent)) => self.child_directory(parent, name, like).await?,
                (None, in_the_way) => in_the_way,
            };
            known.insert(walked.clone(), at.clone());
        }
        Ok(at)
    }

    async fn child_directory(
        &self,
        parent: Ino,
        name: &[u8],
        like: &Inode,
    ) -> Result<Directory, CatalogError> {
        let node = match self.lookup(parent, name).await? {
            Some(node) => node,
            None => match self.adopt_one(parent, name, parent_like(like)).await? {
                Adopted::New(node) | Adopted::Occupied(node) => node,
            },
        };
        Ok(match node.inode.kind {
            Kind::Directory => Ok(node.ino),
            _ => Err(node),
        })
    }

    async fn adopt_one(
        &self,
        parent: Ino,
        name: &[u8],
        inode: Inode,
    ) -> Result<Adopted, CatalogError> {
        let ino = self.shared.numbers.take(self).await?;
        let label = format!("'{}'", String::from_utf8_lossy(name));
        let committed = self.change(&label, |_, _| {
            namespace::create(parent, name, ino, inode.clone(), ParentTime::Stays)
        });
        match committed.await {
            Ok(committed) => {
                self.tell_own(parent);
                Ok(Adopted::New(fresh_node(ino, committed.value)))
            }
            Err(CatalogError::Posix(libc::EEXIST)) => {
                match self.lookup(parent, name).await? {
                    Some(node) => Ok(Adopted::Occupied(node)),
                    // It came and went meanwhile.
                    None => Err(CatalogError::Contention(label)),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Enters files in one round trip; those whose names are taken are looked up.
    async fn adopt_batch(
        &self,
        batch: Vec<Pending>,
        results: &mut [Option<Adopted>],
    ) -> Result<(), CatalogError> {
        if batch.is_empty() {
            return Ok(());
        }
        let mut plans: Vec<(Pending, Transaction, Inode)> = Vec::with_capacity(batch.len());
        for file in batch {
            let inode = file.inode.clone();
            let planned =
                namespace::create(file.parent, &file.name, file.ino, inode, ParentTime::Stays);
            match planned {
                Ok(plan) => plans.push((file, plan.transaction, plan.value)),
                Err(namespace::Stop::Posix(errno)) => return Err(CatalogError::Posix(errno)),
                Err(namespace::Stop::Need(_)) => {
                    return Err(CatalogError::Contention("adopt".into()));
                }
            }
        }
        let outcomes = self.commit_all(&plans).await?;
        let mut parents = BTreeSet::new();
        let mut journaled = Vec::new();
        for ((file, change, inode), outcome) in plans.into_iter().zip(outcomes) {
            let adopted = match outcome {
                Outcome::Done {
                    event, previous, ..
                } => {
                    let stand = Stand::of(event, previous);
                    journaled.extend(journal::entries_of(&change, stand));
                    Adopted::New(fresh_node(file.ino, inode))
                }
                Outcome::Failed(_) => match self.lookup(file.parent, &file.name).await? {
                    // Ours, from an attempt whose answer was lost.
                    Some(node) if node.ino == file.ino => Adopted::New(node),
                    Some(node) => Adopted::Occupied(node),
                    None => self.adopt_one(file.parent, &file.name, file.inode).await?,
                },
            };
            results[file.index] = Some(adopted);
            parents.insert(file.parent);
        }
        self.journal(&journaled);
        parents
            .iter()
            .for_each(|parent| self.journal_above(*parent));
        parents.into_iter().for_each(|parent| self.tell_own(parent));
        self.wake_events();
        Ok(())
    }

    async fn commit_all(
        &self,
        plans: &[(Pending, Transaction, Inode)],
    ) -> Result<Vec<Outcome>, CatalogError> {
        let mut pipeline = redis::pipe();
        // Whatever Redis forgot: the script is there before it is called.
        pipeline.cmd("SCRIPT").arg("LOAD").arg(COMMIT.source());
        for (_, transaction, _) in plans {
            pipeline.cmd("EVALSHA").arg(COMMIT.sha1());
            pipeline.arg(1).arg(self.cluster());
            for word in transaction.arguments(self.me(), self.nonce()) {
                pipeline.arg(word);
            }
        }
        let _changing = self.changing_all(plans);
        let mut attempt = 1;
        let rebuilt_by = Instant::now() + super::fence::REBUILD_WAIT;
        let answers = loop {
            match self.redis().pipe(&pipeline).await {
                Err(RedisError::Lost(_)) if attempt < BATCH_ATTEMPTS => attempt += 1,
                Err(error) if super::fence::is_refusal(&error) => {
                    self.await_whole(rebuilt_by).await?;
                }
                answers => break answers?,
            }
        };
        let outcomes = answers.into_iter().skip(1).map(|answer| {
            Outcome::from_reply(answer).ok_or_else(|| super::reads::damaged("commit"))
        });
        outcomes.collect()
    }

    /// Drops what is remembered of everything that the batch touches, when it has been carried out.
    fn changing_all(&self, plans: &[(Pending, Transaction, Inode)]) -> Changing<'_> {
        let touched = plans.iter().flat_map(|(_, change, _)| change.touched());
        let mut places: Vec<Place> = touched.collect();
        places.sort();
        places.dedup();
        self.shared.memory.changing_places(places, self.nonce())
    }
}

/// A directory for something that was found below it.
fn parent_like(child: &Inode) -> Inode {
    Inode {
        kind: Kind::Directory,
        mode: PARENT_MODE,
        nlink: 2,
        size: 0,
        rdev: 0,
        target: Vec::new(),
        xattrs: Default::default(),
        version: 0,
        epoch: 0,
        home: NodeId::NONE,
        blake3: None,
        md5: None,
        ..child.clone()
    }
}
