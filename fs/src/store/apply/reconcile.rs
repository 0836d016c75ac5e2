//! When events were missed: the whole data directory is compared with the catalog.
//!
//! Files that the catalog knows (by `user.ks`) go to where it has them; those whose inode is gone from it were unlinked
//! meanwhile and go, unless they were changed here (they stay; the scan enters them). Files without `user.ks` are the scan's.
use super::super::StoreError;
use super::super::files::Standing;
use super::super::walk::{Found, Walker};
use super::local::Local;
use crate::catalog::EventId;
use crate::path::TreePath;
use crate::record::*;
use std::sync::Arc;

/// Directories that the catalog does not know and that may turn out empty: so many are remembered.
const DIRECTORIES_MAX: usize = 100_000;

/// Brings the data directory to where the catalog is at (or after) the event `last`.
pub(super) async fn reconcile(local: &Local<'_>, last: EventId) -> Result<(), StoreError> {
    let mut unknown = Vec::new();
    let mut walker = Walker::new(Arc::clone(local.store), TreePath::root());
    while let Some(found) = walker.next() {
        match found {
            Found::Entry {
                path,
                kind: Kind::File,
                ..
            } => file(local, last, &path).await?,
            Found::Entry {
                path,
                kind: Kind::Directory,
                ..
            } if unknown.len() < DIRECTORIES_MAX => {
                if local.names.at(&path).await?.is_none() {
                    unknown.push(path);
                }
            }
            Found::Entry { .. } => {}
            Found::Unreadable { path, error } => {
                tracing::warn!(%path, %error, "cannot be compared with the catalog");
            }
        }
    }
    for directory in unknown.iter().rev() {
        // Moved or removed on other nodes; what the tree does not know keeps it.
        local.remove_empty(directory)?;
    }
    Ok(())
}

async fn file(local: &Local<'_>, last: EventId, path: &TreePath) -> Result<(), StoreError> {
    let standing = local.look(path)?;
    let Some(meta) = standing.meta().cloned() else {
        return Ok(());
    };
    let Some(inode) = local.names.inode(meta.ino).await? else {
        if !standing.is_dirty() {
            local.store.remove(path, meta.ino)?;
            local.store.discard_partials_before(meta.ino, u64::MAX);
        }
        return Ok(());
    };
    match local.names.path_of(meta.ino).await? {
        Some(now) if now != *path => {
            let at = local.names.at(path).await?;
            // A further link stands rightly at its own path.
            if at.is_none_or(|(there, _)| there != meta.ino) {
                local.move_file(last, path, &now, meta.ino).await?;
                return published(local, &now, meta.ino, &inode).await;
            }
            Ok(())
        }
        _ => published(local, path, meta.ino, &inode).await,
    }
}

async fn published(
    local: &Local<'_>,
    path: &TreePath,
    ino: Ino,
    inode: &Inode,
) -> Result<(), StoreError> {
    if inode.home == local.me {
        return Ok(());
    }
    let standing: Standing = local.look(path)?;
    match standing.meta_of(ino) {
        Some(meta) if meta.version < inode.version => {
            local.published(path, ino, inode.version).await
        }
        _ => Ok(()),
    }
}
