//! Extended attributes: `user.*`, kept in the catalog. `user.ks.*` tells what the tree knows of a file and cannot be set.
use super::FileSystem;
use crate::{error::FsError, record::*};
use std::sync::Arc;

/// The prefix of what is kept.
const USER_PREFIX: &[u8] = b"user.";
/// The prefix of what belongs to the program, with the name that plain files carry.
const OWN_PREFIX: &[u8] = b"user.ks.";
/// See `OWN_PREFIX`.
const OWN: &[u8] = b"user.ks";
/// BLAKE3 of the current version, hexadecimal.
const BLAKE3: &[u8] = b"user.ks.blake3";
/// The current version's number.
const VERSION: &[u8] = b"user.ks.version";
/// MD5 of the current version, hexadecimal, where it is known.
const MD5: &[u8] = b"user.ks.md5";
/// The name of the node that takes the file's writes.
const HOME: &[u8] = b"user.ks.home";
/// The names of the nodes that hold the current version, separated by commas.
const HOLDERS: &[u8] = b"user.ks.holders";
/// The longest name, as on ext4.
const XATTR_NAME_BYTES_MAX: usize = 255;
/// The longest value; what is larger belongs in a file.
const XATTR_VALUE_BYTES_MAX: usize = 64 * 1024;

/// Asked by the kernel before writes: answered without a round trip.
const NEVER_SET: &[u8] = b"security.capability";

impl FileSystem {
    /// One attribute's value.
    pub async fn get_xattr(self: &Arc<Self>, ino: Ino, name: &[u8]) -> Result<Vec<u8>, FsError> {
        if name == NEVER_SET {
            return Err(FsError::NoAttribute);
        }
        if !name.starts_with(USER_PREFIX) {
            return Err(FsError::Unsupported);
        }
        if name == HOLDERS {
            return self.holders_text(ino).await;
        }
        let inode = self.catalog.node(ino).await?.ok_or(FsError::Stale)?.inode;
        match name {
            BLAKE3 => {
                let hash = inode.blake3.ok_or(FsError::NoAttribute)?;
                Ok(hex::encode(hash).into_bytes())
            }
            MD5 => self.md5_text(ino).await,
            HOME if inode.home != NodeId::NONE => Ok(self.node_name(inode.home).await.into_bytes()),
            VERSION if inode.kind == Kind::File => Ok(inode.version.to_string().into_bytes()),
            _ => {
                let value = inode.xattrs.get(name);
                value.cloned().ok_or(FsError::NoAttribute)
            }
        }
    }

    async fn holders_text(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        let located = self.catalog.located(ino).await?.ok_or(FsError::Stale)?;
        let inode = &located.node.inode;
        let mut names = Vec::new();
        for (node, holding) in &located.holders {
            if holding.version == inode.version && holding.bytes == inode.size {
                names.push(self.node_name(*node).await);
            }
        }
        match names.is_empty() {
            true => Err(FsError::NoAttribute),
            false => Ok(names.join(",").into_bytes()),
        }
    }

    /// The names of an inode's attributes (the program's are not listed: copying tools would try to set them).
    pub async fn list_xattrs(&self, ino: Ino) -> Result<Vec<Vec<u8>>, FsError> {
        let inode = self.catalog.node(ino).await?.ok_or(FsError::Stale)?.inode;
        let names = inode.xattrs.keys();
        Ok(names
            .filter(|name| name.starts_with(USER_PREFIX))
            .cloned()
            .collect())
    }

    /// Sets (`Some`) or removes an attribute; `flags` as setxattr has them.
    pub async fn set_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: Option<&[u8]>,
        flags: i32,
    ) -> Result<(), FsError> {
        if !name.starts_with(USER_PREFIX) {
            return Err(FsError::Unsupported);
        }
        if name == OWN || name.starts_with(OWN_PREFIX) {
            return Err(FsError::NotPermitted(
                "attributes that begin with user.ks belong to the program",
            ));
        }
        if name.len() > XATTR_NAME_BYTES_MAX {
            return Err(FsError::Io(std::io::Error::from_raw_os_error(libc::ERANGE)));
        }
        if value.is_some_and(|value| value.len() > XATTR_VALUE_BYTES_MAX) {
            return Err(FsError::Io(std::io::Error::from_raw_os_error(libc::E2BIG)));
        }
        let committed = self.catalog.set_xattr(ino, name, value, flags).await?;
        self.own(&committed).await;
        Ok(())
    }
}
