//! When events were missed: the whole data directory is compared with the catalog.
//!
//! First, files that the catalog knows (by `user.ks`) and has elsewhere are parked under `.ks/parked/`, whatever stood between
//! them and their places; then each goes where the catalog has it. Files whose inode is gone were unlinked meanwhile and go,
//! unless they were changed here (they stay, and the scan enters them). Files without `user.ks` are the scan's; one that
//! stands where a file of the tree belongs is set aside.
//!
//! Always: a crash in between loses nothing: what is parked is put in its place at the next start ([`place_parked`]). Memory
//! does not grow with the number of files.
use super::super::files::{Standing, is, is_not_that_file};
use super::super::walk::{Found, Walker};
use super::super::{StoreError, UNKNOWN_DIRECTORY, confine, io_at, meta, state};
use super::local::Local;
use crate::catalog::EventId;
use crate::path::TreePath;
use crate::record::*;
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Directories that the catalog does not know and that may turn out empty: so many are remembered.
const DIRECTORIES_MAX: usize = 100_000;

/// Brings the data directory to where the catalog is at (or after) the event `last`.
pub(super) async fn reconcile(
    local: &Local<'_>,
    last: EventId,
    is_news: &(dyn Fn(&TreePath) -> bool + Sync),
) -> Result<(), StoreError> {
    state::make_private_directory(&parked_directory(local))?;
    let mut unknown = Vec::new();
    for found in Walker::new(Arc::clone(local.store), TreePath::root()) {
        match found {
            // Somebody moved it behind the daemon's back: the tree is to follow.
            Found::Entry { path, .. } if is_news(&path) => {}
            Found::Entry {
                path,
                kind: Kind::File,
                ..
            } => park_if_misplaced(local, &path).await?,
            Found::Entry {
                path,
                kind: Kind::Directory,
                ..
            } if unknown.len() < DIRECTORIES_MAX => {
                let there = local.names.at(&path).await?;
                let is_known = there.is_some_and(|(_, inode)| inode.kind == Kind::Directory);
                if !is_known && was_of_the_tree(local, &path).await? {
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
    place_parked(local, last).await
}

/// Puts what is parked where the catalog has it.
pub(super) async fn place_parked(local: &Local<'_>, last: EventId) -> Result<(), StoreError> {
    let directory = parked_directory(local);
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if is_not_that_file(&error) => return Ok(()),
        Err(error) => return Err(io_at(&directory)(error)),
    };
    for entry in entries {
        let parked = entry.map_err(io_at(&directory))?.path();
        if !place(local, last, &parked).await? {
            tracing::error!(
                parked = %parked.display(),
                "a file of the tree cannot be put in its place in the data directory; the next start tries again"
            );
        }
    }
    Ok(())
}

/// Whether a directory is one that the daemon made, or that the tree has elsewhere now or had: not somebody's that is yet to be taken in.
async fn was_of_the_tree(local: &Local<'_>, path: &TreePath) -> Result<bool, StoreError> {
    let Standing::Directory { tag: Some(tag), .. } = local.look(path)? else {
        return Ok(false);
    };
    match tag.directory {
        0 => Ok(true),
        UNKNOWN_DIRECTORY => Ok(false),
        ino if local.names.inode(ino).await?.is_some() => Ok(true),
        ino => local.names.was_removed(ino).await,
    }
}

async fn park_if_misplaced(local: &Local<'_>, path: &TreePath) -> Result<(), StoreError> {
    let standing = local.look(path)?;
    let Some(meta) = standing.meta().cloned() else {
        return Ok(());
    };
    let Some(inode) = local.names.inode(meta.ino).await? else {
        if !standing.is_dirty() && local.names.was_removed(meta.ino).await? {
            local.store.remove(path, meta.ino)?;
            local.store.discard_partials_before(meta.ino, u64::MAX);
        }
        return Ok(());
    };
    if inode.home != local.me && meta.version < inode.version {
        return local.published(path, meta.ino, inode.version).await;
    }
    let there = local.names.at(path).await?;
    if there.is_some_and(|(ino, _)| ino == meta.ino) {
        return Ok(());
    }
    let parked = parked_directory(local).join(meta.ino.to_string());
    let (from, name) = local
        .store
        .root
        .parent(path)
        .map_err(local.store.io(path))?;
    let parking = local.store.root.taking(&[path], || {
        rustix::fs::renameat_with(&from, name, CWD, &parked, RenameFlags::NOREPLACE)
    });
    match parking {
        Ok(()) => Ok(()),
        Err(error) if is(&error, Errno::EXIST) => second_misplaced(local, path, &standing, &parked),
        Err(error) => Err(local.store.io(path)(error)),
    }
}

/// Of a file that is parked already something else is misplaced: another name of the very same file goes (its bytes are parked), a copy that
/// is worth no more than the parked one too. What was changed here is kept under another name.
fn second_misplaced(
    local: &Local<'_>,
    path: &TreePath,
    standing: &Standing,
    parked: &Path,
) -> Result<(), StoreError> {
    let (Standing::File { stat, .. }, Some(meta)) = (standing, standing.meta()) else {
        return Ok(());
    };
    let first = File::open(parked).map_err(io_at(parked))?;
    let first_stat = rustix::fs::fstat(&first).map_err(|error| io_at(parked)(error.into()))?;
    if (first_stat.st_dev, first_stat.st_ino) == (stat.st_dev, stat.st_ino) {
        return match local.store.is_still(path, standing) {
            true => local
                .store
                .root
                .unlink(path, false)
                .map_err(local.store.io(path)),
            false => Ok(()),
        };
    }
    let first_meta = local.store.read_meta(&first).map_err(io_at(parked))?;
    let is_worth_less = first_meta.is_some_and(|first| {
        let is_whole = meta::is_untouched(&first, &first_stat);
        is_whole && first.ino == meta.ino && first.version >= meta.version
    });
    match is_worth_less && !standing.is_dirty() {
        true => local.store.remove(path, meta.ino),
        false => local.store.set_aside(path).map(|_| ()),
    }
}

/// `false`: it stays parked.
async fn place(local: &Local<'_>, last: EventId, parked: &Path) -> Result<bool, StoreError> {
    let file = File::open(parked).map_err(io_at(parked))?;
    let stat = rustix::fs::fstat(&file).map_err(|error| io_at(parked)(error.into()))?;
    let Some(meta) = local.store.read_meta(&file).map_err(io_at(parked))? else {
        return Ok(false);
    };
    let is_untouched = meta::is_untouched(&meta, &stat);
    let drop_it = || {
        std::fs::remove_file(parked)
            .map_err(io_at(parked))
            .map(|()| true)
    };
    let Some(path) = local.names.path_of(meta.ino).await? else {
        let is_to_go = is_untouched && local.names.was_removed(meta.ino).await?;
        return if is_to_go { drop_it() } else { Ok(false) };
    };
    clear_the_way(local, &path).await?;
    let placed = local.store.with_parents(&path, || {
        let (to, name) = local.store.root.parent(&path)?;
        let renamed = rustix::fs::renameat_with(CWD, parked, &to, name, RenameFlags::NOREPLACE);
        Ok(renamed?)
    });
    match placed {
        Ok(()) => local.mark(last, &path).map(|()| true),
        Err(error) if is(&error, Errno::EXIST) => {
            let is_here = local.look(&path)?.meta_of(meta.ino).is_some();
            if is_here && is_untouched {
                drop_it()
            } else {
                Ok(false)
            }
        }
        Err(error) => Err(local.store.io(&path)(error)),
    }
}

/// What the tree does not know, and stands at `path` or where a directory above it belongs, is set aside.
async fn clear_the_way(local: &Local<'_>, path: &TreePath) -> Result<(), StoreError> {
    let mut above = path.clone();
    let mut chain = Vec::new();
    while !above.is_root() {
        chain.push(above.clone());
        above = confine::split(&above).map_or(TreePath::root(), |(parent, _)| parent);
    }
    for at in chain.iter().rev() {
        let is_target = at == path;
        match local.look(at)? {
            Standing::Directory { .. } if is_target => local.remove_empty(at)?,
            Standing::Symlink => local.redo_symlink(at).await?,
            Standing::Nothing => return Ok(()),
            _ => {}
        }
        let is_in_the_way = match local.look(at)? {
            Standing::Directory { .. } => is_target,
            Standing::File { .. } => local.look(at)?.meta().is_none(),
            Standing::Symlink | Standing::Other => true,
            Standing::Nothing => false,
        };
        if is_in_the_way {
            let aside = local.store.set_aside(at)?;
            tracing::warn!(path = %at, kept_as = %aside, "stood where a file of the tree belongs: kept under another name");
        }
    }
    Ok(())
}

fn parked_directory(local: &Local<'_>) -> PathBuf {
    local.store.state_dir().join("parked")
}
