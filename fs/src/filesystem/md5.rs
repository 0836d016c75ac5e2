//! The MD5 of whole files: metadata for those who compare with sums from elsewhere. Computed when it is first asked for, by a node that has the whole version, and kept in
//! the catalog with that version.
//!
//! Always: it is of one version, and computed once at a time on a node however many ask. What protects the bytes is BLAKE3; a whole file whose MD5 is known is compared with that, too,
//! when it is fetched (`fetch::surroundings`).
use super::FileSystem;
use crate::catalog::copies::is_whole;
use crate::copies::{CopyError, CopyReply, CopyRequest};
use crate::error::FsError;
use crate::record::*;
use std::sync::Arc;
use std::time::Duration;

/// Who asks for it as an attribute waits so long; the computing goes on.
const ATTRIBUTE_WAIT: Duration = Duration::from_secs(20);

impl FileSystem {
    /// The current version's MD5, whoever has to compute it.
    pub async fn md5(self: &Arc<Self>, ino: Ino) -> Result<Md5, CopyError> {
        let located = self.catalog.located(ino).await?.ok_or(FsError::Stale)?;
        let inode = located.node.inode.clone();
        if inode.kind != Kind::File {
            return Err(FsError::NoAttribute.into());
        }
        if let Some(known) = inode.md5 {
            return Ok(known);
        }
        if inode.size == 0 {
            return Ok(crate::store::md5_of(&b""[..]).map_err(FsError::from)?);
        }
        let mut whole: Vec<NodeId> = located
            .holders
            .iter()
            .filter(|(_, holding)| is_whole(&inode, holding))
            .map(|(node, _)| *node)
            .collect();
        whole.sort_by_key(|node| *node != self.me());
        let mut last = CopyError::Fs(FsError::NoAttribute);
        for node in whole {
            let asked = match node == self.me() {
                true => self.md5_here(ino, inode.version).await.map_err(Into::into),
                false => self.md5_at(node, ino, inode.version).await,
            };
            match asked {
                Ok(md5) => return Ok(md5),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn md5_at(&self, node: NodeId, ino: Ino, version: u64) -> Result<Md5, CopyError> {
        let question = CopyRequest::Md5 { ino, version };
        match self.ask_for_work(node, &question, &|_, _| {}).await? {
            CopyReply::Md5(md5) => Ok(md5),
            _ => Err(self.nonsense(node).await),
        }
    }

    /// Computes it from this node's whole copy of that version, and tells the catalog.
    pub(crate) async fn md5_here(self: &Arc<Self>, ino: Ino, version: u64) -> Result<Md5, FsError> {
        let file_system = self.clone();
        // It goes on when nobody waits any more; one at a time: who comes second finds it in the catalog.
        let computing = tokio::spawn(async move {
            let _turn = file_system.md5_turn.lock().await;
            let node = file_system.catalog.node(ino).await?.ok_or(FsError::Stale)?;
            if node.inode.version != version {
                return Err(FsError::Stale);
            }
            if let Some(known) = node.inode.md5 {
                return Ok(known);
            }
            let path = file_system.catalog.path_of(ino).await?;
            let path = path.ok_or(FsError::Stale)?;
            let store = file_system.store.clone();
            let read = tokio::task::spawn_blocking(move || store.md5(&path, ino, version));
            let md5 = read.await.map_err(std::io::Error::other)??;
            file_system.catalog.set_md5(ino, version, md5).await?;
            Ok(md5)
        });
        computing.await.map_err(std::io::Error::other)?
    }

    /// As an attribute's value. EAGAIN: it takes long; ask again later.
    pub(super) async fn md5_text(self: &Arc<Self>, ino: Ino) -> Result<Vec<u8>, FsError> {
        match tokio::time::timeout(ATTRIBUTE_WAIT, self.md5(ino)).await {
            Ok(Ok(md5)) => Ok(hex::encode(md5).into_bytes()),
            Ok(Err(CopyError::Fs(error))) => Err(error),
            Ok(Err(error)) => {
                tracing::debug!(ino, %error, "no holder computes the MD5");
                Err(FsError::NoAttribute)
            }
            Err(_) => Err(std::io::Error::from_raw_os_error(libc::EAGAIN).into()),
        }
    }
}
