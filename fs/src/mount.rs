//! The thin FUSE face: unpack, call `FileSystem`, map the error, reply. Kernel caches and their invalidation; freeing interrupted callers.
use crate::filesystem::FileSystem;
use std::{path::Path, sync::Arc};

#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error(
        "/dev/fuse is missing; run: modprobe fuse (in a container: --device /dev/fuse --cap-add SYS_ADMIN)"
    )]
    NoFuse,
    #[error("{0}: not an empty directory")]
    NotEmpty(std::path::PathBuf),
    #[error("{0}: already mounted; run: ks umount {0}")]
    AlreadyMounted(std::path::PathBuf),
    #[error("{path}: {source}")]
    Io {
        path: std::path::PathBuf,
        source: std::io::Error,
    },
}

/// What the mount table says of ours: `fuse.ks`, source `ks:<control socket>`.
pub const FS_SUBTYPE: &str = "ks";

/// A live mount; dropping it unmounts.
pub struct Mount {/* fuser::BackgroundSession, .. */}

/// Clears a stale mount of ours (its daemon is gone), makes the directory if missing, checks that it is an empty directory.
pub fn prepare(mountpoint: &Path) -> Result<(), MountError> {
    todo!()
}

impl Mount {
    /// Mounts; `control_socket` goes into the mount table so that every process can find its node.
    pub fn mount(
        fs: Arc<FileSystem>,
        mountpoint: &Path,
        control_socket: &Path,
        runtime: tokio::runtime::Handle,
    ) -> Result<Self, MountError> {
        todo!()
    }
    /// The kernel is told what changed elsewhere (never from a thread that answers a request).
    pub fn notifier(&self) -> Notifier {
        todo!()
    }
    /// Whether the kernel still has it (false after `umount` by someone else).
    pub fn is_mounted(&self) -> bool {
        todo!()
    }
    pub fn unmount(self) -> Result<(), MountError> {
        todo!()
    }
}
/// Drops kernel caches.
#[derive(Clone)]
pub struct Notifier {/* .. */}
