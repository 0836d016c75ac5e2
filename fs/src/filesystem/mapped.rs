//! Files that are still mapped for writing after their last handle is gone.
//!
//! The kernel maps the plain file itself where it passes a file through, and the mapping does not keep the handle: a program
//! may open, map, close (numpy's memmap does) and go on writing. Nothing tells us when it ends; but as long as anybody can write
//! to a file the kernel grants no read lease on it. So such files are looked at once a second, and published when the last
//! mapping is gone.
use super::{Change, FileSystem, handles::Served, opening::Want, writing::mark_dirty};
use crate::{
    error::FsError,
    record::Ino,
    store::{LocalMeta, OpenLocal},
};
use std::{
    collections::HashSet,
    fs::File,
    os::fd::AsRawFd,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Files that are looked at; further ones are published at the next open or start here.
const FILES_MAX: usize = 1024;

/// `fcntl`'s number for it on Linux, which the libc crate does not name.
const F_SETSIG: i32 = 10;

/// The files, and whether somebody looks at them.
#[derive(Default)]
pub(super) struct Mapped {
    files: Mutex<HashSet<Ino>>,
}

impl Mapped {
    /// Whether it may be written to, though nobody has it open.
    pub(super) fn has(&self, ino: Ino) -> bool {
        self.files.lock().unwrap().contains(&ino)
    }
}

impl FileSystem {
    /// A file's last writer, which could map it, is gone: if it is mapped still, it is kept in sight, and counts as being written.
    pub(super) async fn watch_mapping(self: &Arc<Self>, ino: Ino) {
        let Some((file, meta)) = self.mapped_file(ino).await else {
            return;
        };
        if let Err(error) = mark_dirty(&self.store, &file, &meta) {
            let path = self.path_of(ino).await;
            tracing::warn!(%path, %error, "a mapped file does not say that it is being written");
        }
        let first = {
            let mut files = self.mapped.files.lock().unwrap();
            if files.len() >= FILES_MAX {
                tracing::warn!(
                    ino,
                    "too many files are mapped for writing: published at the next open here"
                );
                return;
            }
            files.insert(ino);
            files.len() == 1
        };
        if first {
            tokio::spawn(look_until_none(Arc::downgrade(self)));
        }
    }

    /// The plain file, where somebody can write to it.
    async fn mapped_file(&self, ino: Ino) -> Option<(File, LocalMeta)> {
        let path = self.catalog.path_of(ino).await.ok()??;
        let how = OpenLocal {
            write: false,
            truncate: false,
        };
        let (file, meta) = self.store.open_file(&path, ino, how).ok()?;
        somebody_may_write(&file).then_some((file, meta))
    }

    /// `true`: files are left.
    async fn look_at_mapped(&self) -> bool {
        let files: Vec<Ino> = self.mapped.files.lock().unwrap().iter().copied().collect();
        for ino in files {
            if self.mapped_file(ino).await.is_some() {
                continue;
            }
            match self.publish_unmapped(ino).await {
                // Removed meanwhile, as temporary files are: there is nothing to publish.
                Ok(()) | Err(FsError::NotFound | FsError::Stale) => {}
                Err(error) => {
                    self.note_unpublished(ino).await;
                    let path = self.path_of(ino).await;
                    tracing::warn!(%path, %error, "a file that was mapped is not published yet; that is done when the catalog answers again");
                }
            }
            self.mapped.files.lock().unwrap().remove(&ino);
        }
        !self.mapped.files.lock().unwrap().is_empty()
    }

    async fn publish_unmapped(&self, ino: Ino) -> Result<(), FsError> {
        let published = self.publish_changed(ino).await;
        self.tell(Change::Attributes(ino));
        published
    }

    /// Publishes what stands in a plain file here, whatever size and mtime say: pages that were dirty already change without a new mtime.
    pub(super) async fn publish_changed(&self, ino: Ino) -> Result<(), FsError> {
        let want = Want {
            write: true,
            ..Want::READ
        };
        let found = self.find(ino, want).await?;
        let Served::Writing(writing) = self.serve(&found, want).await? else {
            return Ok(());
        };
        writing.touch();
        let published = self.publish(&writing).await;
        self.release_writer(ino, &writing).await;
        published
    }
}

async fn look_until_none(file_system: Weak<FileSystem>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        match file_system.upgrade() {
            Some(file_system) if file_system.look_at_mapped().await => {}
            _ => return,
        }
    }
}

/// Whether the file is open or mapped for writing by anybody: the kernel then grants no read lease.
fn somebody_may_write(file: &File) -> bool {
    let fd = file.as_raw_fd();
    // SAFETY: fcntl on a descriptor that lives through the calls, with integer arguments. SIGURG (ignored by default) instead
    // of SIGIO, which would end the process if somebody opened the file for writing in the moment the lease is held.
    unsafe {
        if libc::fcntl(fd, F_SETSIG, libc::SIGURG) != 0 {
            return false;
        }
        if libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK) != 0 {
            return std::io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN);
        }
        libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_somebody_may_write_is_told_from_one_that_nobody_may() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("f");
        let writer = File::create(&path).unwrap();
        let reader = File::open(&path).unwrap();
        assert!(somebody_may_write(&reader));
        drop(writer);
        assert!(!somebody_may_write(&reader));
    }
}
