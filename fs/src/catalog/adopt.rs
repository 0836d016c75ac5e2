//! Enters what a scan found: directories one by one (their children need their numbers), files in pipelines of `BATCH`, one script
//! and one event for those of one directory.
use super::journal::{self, Stand, What};
use super::namespace::{self, ParentTime};
use super::transaction::Place;
use super::{Adopted, Catalog, CatalogError, EventId, Node_, fresh_node};
use crate::path::TreePath;
use crate::record::*;
use crate::redis_client::Script;
use redis::Value;
use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

static ADOPT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("adopt.lua")));

/// Files in one round trip.
const BATCH: usize = 500;
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
        let mut groups: BTreeMap<Ino, Vec<Pending>> = BTreeMap::new();
        for mut file in batch {
            namespace::check_new_name(file.parent, &file.name).map_err(CatalogError::Posix)?;
            file.inode = namespace::as_created(file.inode, file.parent, &file.name);
            groups.entry(file.parent).or_default().push(file);
        }
        let replies = self.commit_groups(&groups).await?;
        let mut journaled = Vec::new();
        for ((parent, files), reply) in groups.iter().zip(replies) {
            let entered = Entered::read(reply).ok_or_else(|| super::reads::damaged("adopt"))?;
            let mut done = entered.done.into_iter();
            for file in files {
                let adopted = match done.next() {
                    Some(true) => {
                        journaled.push(journal::Entry {
                            ino: file.ino,
                            stand: entered.stand,
                            what: What::Record(encode(&file.inode)),
                        });
                        Adopted::New(fresh_node(file.ino, file.inode.clone()))
                    }
                    _ => self.adopt_taken(file).await?,
                };
                results[file.index] = Some(adopted);
            }
            self.tell_own(*parent);
        }
        self.journal(&journaled);
        groups.keys().for_each(|parent| self.journal_above(*parent));
        self.wake_events();
        Ok(())
    }

    /// A file that was not entered with the others.
    async fn adopt_taken(&self, file: &Pending) -> Result<Adopted, CatalogError> {
        Ok(match self.lookup(file.parent, &file.name).await? {
            // Ours, from an attempt whose answer was lost.
            Some(node) if node.ino == file.ino => Adopted::New(node),
            Some(node) => Adopted::Occupied(node),
            None => {
                let inode = file.inode.clone();
                self.adopt_one(file.parent, &file.name, inode).await?
            }
        })
    }

    /// One script for each directory, all in one round trip.
    async fn commit_groups(
        &self,
        groups: &BTreeMap<Ino, Vec<Pending>>,
    ) -> Result<Vec<Value>, CatalogError> {
        let words = groups.iter().map(|(parent, files)| {
            let (origin, nonce) = (self.me().to_string(), self.nonce().to_string());
            let event = Event::Entered {
                parent: *parent,
                inos: files.iter().map(|file| file.ino).collect(),
            };
            let mut words = vec![parent.to_string().into_bytes()];
            words.extend([origin.into(), nonce.into(), encode(&event)]);
            files.iter().for_each(|file| file.words(&mut words));
            words
        });
        let words: Vec<Vec<Vec<u8>>> = words.collect();
        let places = groups.keys().map(|parent| Place::Directory(*parent));
        let memory = &self.shared.memory;
        // Dropped when it has been carried out: what is remembered of the directories goes then.
        let _changing = memory.changing_places(places.collect(), self.nonce());
        self.fenced_all(&ADOPT, &words).await
    }
}

impl Pending {
    /// What `adopt.lua` is told of it.
    fn words(&self, words: &mut Vec<Vec<u8>>) {
        let (ino, inode) = (self.ino, &self.inode);
        let entry = Entry {
            ino,
            kind: inode.kind,
        };
        words.extend([self.name.clone(), entry.to_bytes(), encode(inode)]);
        let is_held = inode.kind == Kind::File && inode.home != NodeId::NONE;
        let (node, holding) = match is_held {
            true => (inode.home.to_string().into(), whole(inode).to_bytes()),
            false => Default::default(),
        };
        words.extend([node, holding]);
    }
}

fn whole(inode: &Inode) -> Holding {
    Holding {
        version: inode.version,
        bytes: inode.size,
        is_put: false,
    }
}

/// What became of the files of one directory.
struct Entered {
    stand: Stand,
    /// In their order; fewer where the directory is gone.
    done: Vec<bool>,
}

impl Entered {
    fn read(reply: Value) -> Option<Self> {
        let parts = super::reads::array(reply)?;
        let [event, previous, done @ ..] = &parts[..] else {
            return parts.is_empty().then(|| Self {
                stand: Stand::default(),
                done: Vec::new(),
            });
        };
        let (event, previous) = (EventId::from_value(event)?, EventId::from_value(previous)?);
        Some(Self {
            stand: Stand::of(event, previous),
            done: done.iter().map(|done| *done == Value::Int(1)).collect(),
        })
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
