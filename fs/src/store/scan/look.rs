//! A look at one path: does what stands there agree with the tree? Cheap, for it is asked after every event of the data directory.
//!
//! Always: `Agrees` changes nothing, whatever it misses is found by a later event or scan. `Differs` carries all that was seen as one
//! number, so that two looks can be compared; nothing is decided here about what becomes of it.
use super::super::meta::{self, Tag, ctime_ns, mtime_ns};
use super::super::watch::due::{Look, Task};
use super::super::{DIRTY_SIZE, LocalMeta, Store};
use super::Live;
use crate::catalog::{Catalog, Node_};
use crate::path::TreePath;
use crate::record::*;
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::mem::MaybeUninit;

/// What stands at a path of the data directory, at a glance.
#[derive(Debug)]
pub(crate) enum Glance {
    /// Nothing.
    Nothing,
    /// A pipe, socket or device, or another file system: none of the tree's business.
    Other,
    /// A file, directory or symlink.
    There {
        kind: Kind,
        stat: Box<Stat>,
        tag: Option<Box<Tag>>,
        /// A symlink's.
        target: Vec<u8>,
    },
}

impl Glance {
    /// All that was seen, as one number; another time of access is no difference.
    pub(crate) fn number(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        if let Glance::There {
            kind,
            stat,
            tag,
            target,
        } = self
        {
            (*kind as u8, stat.st_dev, stat.st_ino, stat.st_mode).hash(&mut hasher);
            (stat.st_uid, stat.st_gid, target).hash(&mut hasher);
            if *kind != Kind::Directory {
                (stat.st_size, mtime_ns(stat), ctime_ns(stat)).hash(&mut hasher);
            }
            tag.as_ref()
                .map_or(0, |tag| tag.directory)
                .hash(&mut hasher);
            if let Some(meta) = tag.as_ref().and_then(|tag| tag.meta.as_ref()) {
                (meta.ino, meta.version, meta.size, meta.mtime).hash(&mut hasher);
            }
        }
        hasher.finish()
    }

    /// Whether nothing stands there.
    pub(crate) fn is_nothing(&self) -> bool {
        matches!(self, Glance::Nothing)
    }

    /// Kind, if it is anything of the tree's.
    pub(crate) fn kind(&self) -> Option<Kind> {
        match self {
            Glance::There { kind, .. } => Some(*kind),
            _ => None,
        }
    }

    pub(crate) fn meta(&self) -> Option<&LocalMeta> {
        match self {
            Glance::There { tag, .. } => tag.as_ref()?.meta.as_ref(),
            _ => None,
        }
    }

    /// Which inode a directory says it is; 0: it does not say.
    pub(crate) fn directory(&self) -> Ino {
        match self {
            Glance::There { tag: Some(tag), .. } => tag.directory,
            _ => 0,
        }
    }

    /// A symlink's target.
    pub(crate) fn target(&self) -> &[u8] {
        match self {
            Glance::There { target, .. } => target,
            _ => b"",
        }
    }
}

impl Store {
    /// Looks without opening anything. What a symlink above it leads to may be seen in its place: nothing is to be done on this word alone.
    pub(crate) fn glance(&self, path: &TreePath) -> io::Result<Glance> {
        let at = path.under(&self.datadir);
        let stat = match rustix::fs::lstat(&at) {
            Ok(stat) => stat,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Glance::Nothing),
            Err(error) => return Err(error.into()),
        };
        let mut target = Vec::new();
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            _ => return Ok(Glance::Other),
        };
        if !self.root.is_same_device(stat.st_dev) {
            return Ok(Glance::Other);
        }
        let mut tag = None;
        if kind == Kind::Symlink {
            target = rustix::fs::readlink(&at, Vec::new())?.into_bytes();
        } else {
            let mut buffer = [MaybeUninit::<u8>::uninit(); meta::ATTRIBUTE_BYTES_MAX];
            tag = match rustix::fs::lgetxattr(&at, meta::ATTRIBUTE, &mut buffer) {
                Ok((bytes, _)) => self.own_tag(bytes, &stat),
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Glance::Nothing),
                Err(_) => None,
            };
        }
        Ok(Glance::There {
            kind,
            stat: Box::new(stat),
            tag: tag.map(Box::new),
            target,
        })
    }

    /// Whether a file of that inode waits, set aside for a moment, to be put in its place.
    pub(crate) fn is_parked(&self, ino: Ino) -> bool {
        let parked = self.state_dir().join("parked").join(ino.to_string());
        std::fs::symlink_metadata(parked).is_ok()
    }
}

/// What was seen at a path, on disk and in the tree.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) look: Look,
    pub(crate) glance: Glance,
    /// What the tree has there; not asked for where the disk alone tells enough.
    pub(crate) node: Option<Node_>,
}

/// Looks at paths after events: what the disk alone does not tell, and is not remembered of the tree, is asked for in one round trip. Of at
/// most some hundreds.
pub(crate) async fn look_all(
    store: &Store,
    catalog: &Catalog,
    live: &dyn Live,
    tasks: &[Task],
) -> Vec<Seen> {
    let mut seen: Vec<Option<Seen>> = Vec::with_capacity(tasks.len());
    let mut asked: Vec<(usize, Glance)> = Vec::new();
    for (index, task) in tasks.iter().enumerate() {
        match of_interest(store, live, task) {
            Err(glance) => seen.push(Some(agrees(glance))),
            Ok(glance) => match catalog.remembered_at(&task.path) {
                Some(node) => seen.push(Some(compare(store, task, glance, Some(node)))),
                None => {
                    seen.push(None);
                    asked.push((index, glance));
                }
            },
        }
    }
    let paths: Vec<TreePath> = asked
        .iter()
        .map(|(index, _)| tasks[*index].path.clone())
        .collect();
    let nodes = match catalog.found(&paths).await {
        Ok(nodes) => nodes.into_iter().map(Ok).collect(),
        Err(_) => vec![Err(()); paths.len()],
    };
    for ((index, glance), node) in asked.into_iter().zip(nodes) {
        seen[index] = Some(match node {
            Ok(node) => compare(store, &tasks[index], glance, node),
            Err(()) => Seen {
                look: Look::Failed,
                glance: Glance::Other,
                node: None,
            },
        });
    }
    seen.into_iter().flatten().collect()
}

/// What stands there, where the tree is to be asked; else (`Err`) there is nothing to do.
fn of_interest(store: &Store, live: &dyn Live, task: &Task) -> Result<Glance, Glance> {
    // Too deep for one name, or not to be read: the scan says so.
    let glance = store.glance(&task.path).map_err(|_| Glance::Other)?;
    let is_of_no_interest = match &glance {
        Glance::Nothing => !task.was_removed,
        Glance::Other => true,
        Glance::There { .. } => glance
            .meta()
            .is_some_and(|meta| meta.size == DIRTY_SIZE && live.is_written(meta.ino)),
    };
    match is_of_no_interest {
        true => Err(glance),
        false => Ok(glance),
    }
}

fn compare(store: &Store, task: &Task, glance: Glance, node: Option<Node_>) -> Seen {
    let me = store.node_id();
    let is_changed = |node: &Node_| {
        attributes(&glance, node, me, store.is_superuser, task.has_attributes).is_some()
    };
    if is_as_the_tree_has_it(&glance, node.as_ref(), me) && !node.as_ref().is_some_and(is_changed) {
        return agrees(glance);
    }
    let mut hasher = DefaultHasher::new();
    glance.number().hash(&mut hasher);
    if let Some(node) = &node {
        (node.ino, node.inode.version, node.inode.ctime).hash(&mut hasher);
    }
    Seen {
        look: Look::Differs(hasher.finish()),
        glance,
        node,
    }
}

fn agrees(glance: Glance) -> Seen {
    Seen {
        look: Look::Agrees,
        glance,
        node: None,
    }
}

/// Whether there is nothing to do. Of what is gone: whether the tree has nothing there either.
fn is_as_the_tree_has_it(glance: &Glance, node: Option<&Node_>, me: NodeId) -> bool {
    let Some(kind) = glance.kind() else {
        let is_standing = |node: &Node_| {
            matches!(
                node.inode.kind,
                Kind::File | Kind::Directory | Kind::Symlink
            )
        };
        return !node.is_some_and(is_standing);
    };
    let Some(node) = node.filter(|node| node.inode.kind == kind) else {
        return false;
    };
    match kind {
        Kind::Directory => glance.directory() == node.ino,
        Kind::Symlink => glance.target() == node.inode.target,
        _ => is_that_file(glance, node, me),
    }
}

fn is_that_file(glance: &Glance, node: &Node_, me: NodeId) -> bool {
    let (Some(meta), Glance::There { stat, .. }) = (glance.meta(), glance) else {
        return false;
    };
    let record = &node.inode;
    let is_current = meta.version == record.version && meta.size == record.size;
    // An older copy is replaced when it is fetched again; one that is newer has an event under way.
    let may_differ = record.home != me;
    meta.ino == node.ino && meta::is_untouched(meta, stat) && (is_current || may_differ)
}

/// Mode, owner and group that somebody gave, behind the daemon's back, to what this node's word counts for: files whose home it is,
/// directories that the daemon did not make (those carry its mark), and those that it has marked, once it was heard that they were changed.
pub(crate) fn attributes(
    glance: &Glance,
    node: &Node_,
    me: NodeId,
    is_superuser: bool,
    is_heard: bool,
) -> Option<(u32, u32, u32)> {
    let Glance::There {
        kind, stat, tag, ..
    } = glance
    else {
        return None;
    };
    let record = &node.inode;
    let counts = match kind {
        Kind::File => record.home == me && glance.meta()?.ino == node.ino,
        Kind::Directory => match tag {
            Some(tag) => is_heard && tag.directory == node.ino,
            None => true,
        },
        _ => false,
    };
    let mode = match (is_superuser, kind) {
        // The system takes these off what an ordinary user sets.
        (false, Kind::Directory) => stat.st_mode & 0o1777 | record.mode & 0o6000,
        _ => stat.st_mode & 0o7777,
    };
    // An ordinary user's daemon keeps files readable and writable for itself, and cannot give them away.
    let kept = match (is_superuser, kind) {
        (true, _) => 0,
        (false, Kind::Directory) => 0o700,
        (false, _) => 0o600,
    };
    let owner = match is_superuser {
        true => (stat.st_uid, stat.st_gid),
        false => (record.uid, record.gid),
    };
    let is_same = mode == record.mode & 0o7777 | kept && owner == (record.uid, record.gid);
    (counts && record.kind == *kind && !is_same).then_some((mode, owner.0, owner.1))
}
