//! Who holds what, and bringing whole files here: for commands and calls.
use super::FileSystem;
use crate::{catalog::Located, error::FsError, path::TreePath, record::*};
use std::sync::Arc;

/// A copy of a file, for `ks where`.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Copy_ {
    /// The node's name.
    pub node: String,
    /// Whether that node is heard of.
    pub alive: bool,
    /// Bytes of it that are there.
    pub bytes: u64,
    /// Of which version.
    pub version: u64,
    /// Whether that is the current version.
    pub current: bool,
    /// Whether that node is the file's home.
    pub home: bool,
}

/// Who holds a file.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Where {
    /// Its path in the tree; as the asker's programs open it, once a node's session has seen it.
    pub path: String,
    /// `file`, `directory`, `symlink`, ...
    pub kind: String,
    /// Bytes.
    pub size: u64,
    /// The current version's number.
    pub version: u64,
    /// Its hash, hexadecimal, once it is known.
    pub blake3: Option<String>,
    /// Its MD5, hexadecimal, where somebody has asked for it.
    pub md5: Option<String>,
    /// Who holds it, by node name.
    pub copies: Vec<Copy_>,
}

impl FileSystem {
    /// Who holds what stands at `path`.
    pub async fn where_is(&self, path: &TreePath) -> Result<Where, FsError> {
        let located = self.catalog.locate_path(path).await?;
        let located = located.ok_or(FsError::NotFound)?;
        let copies = self.copies(&located).await?;
        let inode = &located.node.inode;
        Ok(Where {
            path: path.to_string(),
            kind: format!("{:?}", inode.kind).to_lowercase(),
            size: inode.size,
            version: inode.version,
            blake3: inode.blake3.map(hex::encode),
            md5: inode.md5.map(hex::encode),
            copies,
        })
    }

    async fn copies(&self, located: &Located) -> Result<Vec<Copy_>, FsError> {
        let nodes = self.catalog.nodes().await?;
        let inode = &located.node.inode;
        let mut copies: Vec<Copy_> = located
            .holders
            .iter()
            .map(|(node, holding)| {
                let known = nodes.iter().find(|state| state.id == *node);
                Copy_ {
                    node: known.map_or_else(|| node.to_string(), |state| state.info.name.clone()),
                    alive: known.is_some_and(|state| state.alive),
                    bytes: holding.bytes,
                    version: holding.version,
                    current: holding.version == inode.version,
                    home: *node == inode.home,
                }
            })
            .collect();
        copies.sort_by(|a, b| a.node.cmp(&b.node));
        Ok(copies)
    }

    /// Brings a whole file here; `progress(have, size)` in bytes. A hash that a holder is still computing is waited for, however
    /// long that takes: whoever asks can give up.
    pub async fn fetch_whole(
        self: &Arc<Self>,
        path: &TreePath,
        progress: impl Fn(u64, u64) + Send + Sync,
    ) -> Result<(), FsError> {
        let node = self.catalog.resolve(path).await?;
        let node = node.ok_or(FsError::NotFound)?;
        if node.inode.kind == Kind::Directory {
            return Err(FsError::IsADirectory);
        }
        self.bring(node.ino, None, &progress).await
    }
}
