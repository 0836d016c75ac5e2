//! Names: looking them up, making, linking, removing and renaming them. Each change is one script in the catalog and then,
//! in its place among the changes of others, a change in the data directory.
use super::{Caller, FileSystem, eviction::is_full, handles::with_stamp, writing::now};
use crate::{
    catalog::{Committed, Listing, Node_},
    error::FsError,
    path::{STATE_DIR, TreePath},
    record::*,
};
use std::{collections::BTreeMap, fs::File, sync::Arc};

/// The longest name, bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// What a new file takes of the disk at most, with its directory.
const MAKE_BYTES: u64 = 64 * 1024;
/// The longest target of a symlink, bytes.
const TARGET_BYTES_MAX: usize = 4095;

/// Whether a name belongs to the program and is never seen in the tree.
pub(crate) fn is_hidden(parent: Ino, name: &[u8]) -> bool {
    parent == ROOT && name.starts_with(STATE_DIR.as_bytes())
}

/// Whether a name may be made.
fn check_name(parent: Ino, name: &[u8]) -> Result<(), FsError> {
    match name {
        b"" => Err(FsError::NotFound),
        b"." | b".." => Err(FsError::Exists),
        _ if name.len() > NAME_BYTES_MAX => Err(FsError::NameTooLong),
        _ if is_hidden(parent, name) => Err(FsError::NotPermitted(
            "names that begin with .ks in the tree's root belong to the program",
        )),
        _ => Ok(()),
    }
}

/// Whether a name may stand for something.
fn check_there(parent: Ino, name: &[u8]) -> Result<(), FsError> {
    match name.len() {
        length if length > NAME_BYTES_MAX => Err(FsError::NameTooLong),
        _ if is_hidden(parent, name) => Err(FsError::NotFound),
        _ => Ok(()),
    }
}

impl FileSystem {
    /// What a name stands for, with live attributes.
    pub async fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Node_, FsError> {
        check_there(parent, name)?;
        let node = self.catalog.lookup(parent, name).await?;
        Ok(self.live(node.ok_or(FsError::NotFound)?))
    }

    /// A whole directory; the attributes are the catalog's (see `live`).
    pub async fn list(&self, dir: Ino) -> Result<Arc<Listing>, FsError> {
        Ok(self.catalog.list(dir).await?)
    }

    /// The node with the size and times of the plain file where it is open for writing here.
    pub fn live(&self, node: Node_) -> Node_ {
        let open = self.table.live_inode(node.ino);
        let writing = open.and_then(|inode| inode.writing());
        match writing.map(|writing| writing.stamp()) {
            Some(Ok(stamp)) => with_stamp(node, stamp),
            _ => node,
        }
    }

    /// Makes a directory, symlink, device, fifo, socket or an empty file.
    #[allow(clippy::too_many_arguments)]
    pub async fn make(
        &self,
        parent: Ino,
        name: &[u8],
        kind: Kind,
        mode: u32,
        rdev: u32,
        target: &[u8],
        who: Caller,
    ) -> Result<Node_, FsError> {
        if kind == Kind::File {
            return Ok(self.create_file(parent, name, mode, who, false).await?.0);
        }
        if target.len() > TARGET_BYTES_MAX {
            return Err(FsError::NameTooLong);
        }
        let mut inode = self.new_inode(parent, name, kind, mode, who).await?;
        inode.rdev = rdev;
        inode.size = target.len() as u64;
        inode.target = target.to_vec();
        let _making = self.making.begin(parent);
        let entered = self.enter(parent, name, inode).await?;
        self.make_plain(parent, name, &entered).await;
        Ok(entered.value)
    }

    /// Directories and symlinks stand in the data directory of the node that made them, so that it is a tree by itself.
    async fn make_plain(&self, parent: Ino, name: &[u8], entered: &Committed<Node_>) {
        let Node_ { ino, inode, .. } = &entered.value;
        let make = |path: &TreePath| match inode.kind {
            Kind::Directory => self.store.make_dir(path, *ino, inode),
            Kind::Symlink => self.store.make_symlink(path, inode),
            _ => Ok(()),
        };
        let made = self
            .applier
            .at_new_path(entered.event, (parent, name), *ino, make)
            .await;
        if let Err(error) = made {
            let name = String::from_utf8_lossy(name);
            tracing::warn!(%name, %error, "it is in the tree, but not in the data directory");
        }
    }

    /// Enters a new file and makes its plain file; its home is this node. `is_written`: by the one who asks, from now on.
    pub(super) async fn create_file(
        &self,
        parent: Ino,
        name: &[u8],
        mode: u32,
        who: Caller,
        is_written: bool,
    ) -> Result<(Node_, File), FsError> {
        if self.options.read_only {
            return Err(FsError::ReadOnly(
                "this node takes nothing new (--read-only)",
            ));
        }
        let inode = self.new_inode(parent, name, Kind::File, mode, who).await?;
        let _making = self.making.begin(parent);
        let committed = self.enter(parent, name, inode).await?;
        let node = committed.value;
        let create = |path: &TreePath| match is_written {
            true => self.store.create_for_writing(path, node.ino, &node.inode),
            false => self.store.create(path, node.ino, &node.inode),
        };
        let mut made = self
            .applier
            .at_new_path(committed.event, (parent, name), node.ino, create)
            .await
            .map_err(FsError::from);
        if made.as_ref().is_err_and(is_full) && self.make_room(MAKE_BYTES).await {
            let again = self.applier.at_path(node.ino, create).await;
            made = again.map_err(FsError::from);
        }
        match made {
            Ok(file) => Ok((node, file)),
            Err(error) => {
                tracing::warn!(name = %String::from_utf8_lossy(name), %error, "the plain file cannot be made");
                let _ = self.unlink(parent, name).await;
                Err(error)
            }
        }
    }

    async fn new_inode(
        &self,
        parent: Ino,
        name: &[u8],
        kind: Kind,
        mode: u32,
        who: Caller,
    ) -> Result<Inode, FsError> {
        check_name(parent, name)?;
        let above = self.catalog.node(parent).await?.ok_or(FsError::NotFound)?;
        let (mode, gid) = inherited(&above.inode, kind, mode, who.gid);
        let time = now();
        Ok(Inode {
            kind,
            mode,
            uid: who.uid,
            gid,
            rdev: 0,
            nlink: if kind == Kind::Directory { 2 } else { 1 },
            size: 0,
            atime: time,
            mtime: time,
            ctime: time,
            parent,
            name: name.to_vec(),
            target: Vec::new(),
            xattrs: BTreeMap::new(),
            version: 0,
            epoch: 1,
            home: match kind {
                Kind::File => self.me(),
                _ => NodeId::NONE,
            },
            blake3: None,
            md5: None,
        })
    }

    async fn enter(
        &self,
        parent: Ino,
        name: &[u8],
        inode: Inode,
    ) -> Result<Committed<Node_>, FsError> {
        let committed = self.catalog.create(parent, name, inode).await?;
        self.own(&committed).await;
        Ok(committed)
    }

    /// A further name for an inode.
    pub async fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Node_, FsError> {
        check_name(parent, name)?;
        let committed = self.catalog.link(ino, parent, name).await?;
        self.own(&committed).await;
        Ok(self.live(committed.value))
    }

    /// Removes a name of something that is not a directory.
    pub async fn unlink(&self, parent: Ino, name: &[u8]) -> Result<(), FsError> {
        check_there(parent, name)?;
        let committed = self.catalog.unlink(parent, name).await?;
        self.own(&committed).await;
        Ok(())
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<(), FsError> {
        check_there(parent, name)?;
        let committed = self.catalog.rmdir(parent, name).await?;
        self.own(&committed).await;
        Ok(())
    }

    /// Renames; `flags` as renameat2 has them (RENAME_NOREPLACE, RENAME_EXCHANGE).
    pub async fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: u32,
    ) -> Result<(), FsError> {
        if flags & !(libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE) != 0 {
            return Err(FsError::Invalid("rename flags"));
        }
        check_there(parent, name)?;
        check_name(new_parent, new_name)?;
        let committed = self
            .catalog
            .rename(parent, name, new_parent, new_name, flags)
            .await?;
        self.own(&committed).await;
        Ok(())
    }
}

/// Mode and group of a new entry: below a set-group-id directory the group is the directory's, and directories inherit the bit.
fn inherited(above: &Inode, kind: Kind, mode: u32, gid: u32) -> (u32, u32) {
    let mode = mode & 0o7777;
    match (above.mode & libc::S_ISGID != 0, kind) {
        (false, _) => (mode, gid),
        (true, Kind::Directory) => (mode | libc::S_ISGID, above.gid),
        (true, _) => (mode, above.gid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_program_are_refused_in_the_root_alone() {
        assert!(matches!(
            check_name(ROOT, b".ks"),
            Err(FsError::NotPermitted(_))
        ));
        assert!(check_name(ROOT, b".ksx").is_err());
        assert!(check_name(ROOT, b".k").is_ok());
        assert!(check_name(7, b".ks").is_ok());
        assert!(check_name(7, &[b'a'; 255]).is_ok());
        assert!(matches!(
            check_name(7, &[b'a'; 256]),
            Err(FsError::NameTooLong)
        ));
    }
}
