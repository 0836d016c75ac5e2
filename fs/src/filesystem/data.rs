//! Reading, writing, flushing.
use super::{
    Change, FileSystem, Handle,
    handles::{Content, OpenHandle, Served},
    on_disk,
    open_plan::Mode,
    opening::Want,
    writing::Writing,
};
use crate::{catalog::CatalogError, error::FsError, fetch::RemoteFile, record::Ino};
use bytes::Bytes;
use rustix::io::{Errno, ReadWriteFlags};
use std::{
    fs::File,
    io::IoSlice,
    os::unix::fs::FileExt,
    sync::{Arc, atomic::Ordering},
};

/// Reads that take at most so much are done in place; longer ones may wait for the disk and step aside.
const SHORT_READ_BYTES: usize = 64 * 1024;

/// How a write goes in.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteManner {
    /// Written back from the kernel's pages: `offset` is right whatever the handle's flags say.
    pub from_pages: bool,
    /// An ordinary user writes: set-user-id and set-group-id go.
    pub clear_privileges: bool,
}

impl FileSystem {
    /// Reads up to `len` bytes; fewer only at the end.
    pub async fn read(&self, handle: Handle, offset: u64, len: usize) -> Result<Bytes, FsError> {
        let open = self.table.handle(handle)?;
        let data = match &open.served {
            Served::Writing(writing) => read_local(&writing.file, offset, len)?,
            Served::Forwarded(forwarded) => forwarded.read(offset, len).await?,
            Served::Own(Content::Local(file)) => read_local(file, offset, len)?,
            Served::Own(content) => {
                let content = content.clone();
                self.read_content(&open, content, offset, len).await?
            }
            Served::Shared => {
                if open.inode.stale.load(Ordering::Acquire) {
                    self.refresh(&open).await;
                }
                if open.inode.outdated.load(Ordering::Acquire) {
                    return Err(FsError::Stale);
                }
                let (content, _) = open.inode.content();
                let data = self.read_content(&open, content, offset, len).await?;
                open.inode.note_given();
                data
            }
        };
        self.counts.reads.fetch_add(1, Ordering::Relaxed);
        let bytes = data.len() as u64;
        self.counts.read_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(data)
    }

    async fn read_content(
        &self,
        open: &OpenHandle,
        content: Content,
        offset: u64,
        len: usize,
    ) -> Result<Bytes, FsError> {
        match content {
            Content::Empty => Ok(Bytes::new()),
            Content::Local(file) => read_local(&file, offset, len),
            Content::Live(forwarded) => forwarded.read(offset, len).await,
            Content::Remote(remote) => {
                if let Some(tried) = open.inode.failed_lately() {
                    let path = self.path_of(open.ino).await;
                    return Err(FsError::NoHolder { path, tried });
                }
                self.read_remote(open, &remote, offset, len).await
            }
        }
    }

    async fn read_remote(
        &self,
        open: &OpenHandle,
        remote: &Arc<RemoteFile>,
        offset: u64,
        len: usize,
    ) -> Result<Bytes, FsError> {
        let read = {
            let _waiting = open.group.map(|group| self.usage.waiting(group));
            remote.read(offset, len).await
        };
        match read {
            Ok((data, fetched)) => {
                if let Some(group) = open.group {
                    self.usage.note_fetched(group, open.ino, fetched);
                }
                Ok(data)
            }
            Err(FsError::Stale) => self.read_newer(open, offset, len).await,
            Err(error) => {
                if let FsError::NoHolder { tried, .. } = &error {
                    open.inode.note_failure(tried.clone());
                }
                Err(error)
            }
        }
    }

    /// The holders have changed the version that is open. Where nothing of it was given out yet, a newer one of the same size is read from
    /// now on, as `refresh` does when it is told; else ESTALE, as a mix would be worse.
    /// Not for a version whose bytes were wrong: nothing unchecked is read in its place.
    async fn read_newer(
        &self,
        open: &OpenHandle,
        offset: u64,
        len: usize,
    ) -> Result<Bytes, FsError> {
        let shared = matches!(open.served, Served::Shared);
        if !shared || !open.inode.may_change() {
            return Err(FsError::Stale);
        }
        let (_, version) = open.inode.content();
        let found = self.find(open.ino, Want::READ).await?;
        let current = found.located.node.inode.version;
        if current > version && found.located.node.inode.size != open.inode.node().inode.size {
            // The kernel would cut it off at the old size.
            open.inode.outdated.store(true, Ordering::Release);
            return Err(FsError::Stale);
        }
        let served = match current > version {
            true => self.serve(&found, Want::READ).await?,
            // It is being written where it lives: read there, as on opening.
            false => self.serve_live(&found, FsError::Stale.to_string()).await?,
        };
        let Served::Own(content) = served else {
            return Err(FsError::Stale);
        };
        tracing::info!(path = %found.path, version, current, "reading a newer version");
        open.inode.set_content(content.clone(), current);
        self.tell_contents(open.ino);
        match content {
            Content::Empty => Ok(Bytes::new()),
            Content::Local(file) => read_local(&file, offset, len),
            Content::Live(forwarded) => forwarded.read(offset, len).await,
            Content::Remote(remote) => Ok(remote.read(offset, len).await?.0),
        }
    }

    /// Another node published: cached handles that have read nothing yet read the new version from now on (if it is as
    /// long: the kernel goes by the size it knows), the others nothing any more. Where it cannot be had, the old one stays.
    async fn refresh(&self, open: &OpenHandle) {
        let _one = open.inode.refreshing.lock().await;
        if !open.inode.stale.swap(false, Ordering::AcqRel) {
            return;
        }
        let (content, version) = open.inode.content();
        // Read at the home, as it is there: always the newest.
        if let Content::Live(_) = content {
            return;
        }
        let found = match self.find(open.ino, Want::READ).await {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(ino = open.ino, %error, "no newer version to be had");
                return;
            }
        };
        let current = found.located.node.inode.version;
        if current <= version || found.located.node.inode.home == self.me() {
            return;
        }
        let other_size = found.located.node.inode.size != open.inode.node().inode.size;
        if other_size || !open.inode.may_change() {
            open.inode.outdated.store(true, Ordering::Release);
            return;
        }
        match self.serve(&found, Want::READ).await {
            Ok(Served::Own(content)) => {
                open.inode.set_content(content, current);
                self.tell_contents(open.ino);
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(path = %found.path, %error, "the new version cannot be read")
            }
        }
    }

    /// Writes all of `data` at `offset` (at the end where the handle appends).
    pub async fn write(&self, handle: Handle, offset: u64, data: Bytes) -> Result<u32, FsError> {
        self.write_as(handle, offset, data, WriteManner::default())
            .await
    }

    /// Like `write`, with what the kernel says beside.
    pub async fn write_as(
        &self,
        handle: Handle,
        offset: u64,
        data: Bytes,
        manner: WriteManner,
    ) -> Result<u32, FsError> {
        let open = self.table.handle(handle)?;
        let at_end = open.append && !manner.from_pages;
        self.counts.writes.fetch_add(1, Ordering::Relaxed);
        match &open.served {
            Served::Writing(writing) => {
                self.write_here(writing, (!at_end).then_some(offset), &data)
                    .await?;
                if manner.clear_privileges {
                    self.clear_privileges(open.ino).await?;
                }
                Ok(data.len() as u32)
            }
            Served::Forwarded(forwarded) => {
                let offset = (!at_end).then_some(offset);
                forwarded.write(offset, data, manner.clear_privileges).await
            }
            Served::Own(_) | Served::Shared => {
                Err(FsError::Io(std::io::Error::from_raw_os_error(libc::EBADF)))
            }
        }
    }

    /// At `close()`: publishes what was written; returns when others can see it.
    pub async fn flush(&self, handle: Handle) -> Result<(), FsError> {
        let open = self.table.handle(handle)?;
        match &open.served {
            Served::Writing(writing) => {
                self.publish(writing).await?;
                if open.maps && open.mode == Mode::Passthrough {
                    // The kernel does not see what is written through a mapping of the plain file.
                    self.tell(Change::Attributes(open.ino));
                }
                Ok(())
            }
            Served::Forwarded(forwarded) => {
                forwarded.publish().await?;
                self.published_for_us(open.ino).await
            }
            Served::Own(_) | Served::Shared => Ok(()),
        }
    }

    /// To disk, and published.
    pub async fn fsync(&self, handle: Handle, data_only: bool) -> Result<(), FsError> {
        let open = self.table.handle(handle)?;
        match &open.served {
            Served::Writing(writing) => {
                let file = writing.file.clone();
                let synced = tokio::task::spawn_blocking(move || match data_only {
                    true => file.sync_data(),
                    false => file.sync_all(),
                });
                synced.await.map_err(std::io::Error::other)??;
                self.publish(writing).await
            }
            Served::Forwarded(forwarded) => {
                forwarded.sync().await?;
                self.published_for_us(open.ino).await
            }
            Served::Own(_) | Served::Shared => Ok(()),
        }
    }

    /// Reserves, punches or zeroes (`mode` as fallocate has it), at the home.
    pub async fn allocate(
        &self,
        handle: Handle,
        offset: u64,
        len: u64,
        mode: i32,
    ) -> Result<(), FsError> {
        let open = self.table.handle(handle)?;
        match &open.served {
            Served::Writing(writing) => self.allocate_here(writing, offset, len, mode).await,
            Served::Forwarded(forwarded) => forwarded.allocate(offset, len, mode).await,
            Served::Own(_) | Served::Shared => {
                Err(FsError::Io(std::io::Error::from_raw_os_error(libc::EBADF)))
            }
        }
    }

    /// Into the plain file, at `offset` or at the end; fetched copies make room.
    pub(super) async fn write_here(
        &self,
        writing: &Writing,
        offset: Option<u64>,
        data: &[u8],
    ) -> Result<(), FsError> {
        // Of an append that found the disk full in the middle, the rest is still to come.
        let mut rest = data;
        let write = || write_local(writing, offset, &mut rest);
        self.making_room(data.len() as u64, write).await
    }

    /// In the plain file; fetched copies make room.
    pub(super) async fn allocate_here(
        &self,
        writing: &Writing,
        offset: u64,
        len: u64,
        mode: i32,
    ) -> Result<(), FsError> {
        let allocate = || allocate_local(writing, offset, len, mode);
        self.making_room(len, allocate).await
    }

    /// Where the next data or the next hole is (`whence`: SEEK_DATA, SEEK_HOLE); ENXIO behind the end. What is fetched from
    /// others counts as data throughout.
    pub async fn seek(&self, handle: Handle, offset: u64, whence: i32) -> Result<u64, FsError> {
        let open = self.table.handle(handle)?;
        let content = match &open.served {
            Served::Writing(writing) => return seek_local(&writing.file, offset, whence),
            Served::Forwarded(forwarded) => return forwarded.seek(offset, whence).await,
            Served::Own(content) => content.clone(),
            Served::Shared => open.inode.content().0,
        };
        match content {
            Content::Local(file) => seek_local(&file, offset, whence),
            Content::Live(forwarded) => forwarded.seek(offset, whence).await,
            Content::Empty => all_data(0, offset, whence),
            Content::Remote(_) => all_data(open.inode.node().inode.size, offset, whence),
        }
    }

    async fn published_for_us(&self, ino: Ino) -> Result<(), FsError> {
        self.table.pages_unknown(Some(ino));
        match self.catalog.located(ino).await {
            Ok(_) | Err(CatalogError::Posix(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Reads from a plain file.
pub(super) fn read_local(file: &Arc<File>, offset: u64, len: usize) -> Result<Bytes, FsError> {
    let read = || {
        let mut buffer = Vec::with_capacity(len);
        while buffer.len() < len {
            let at = offset + buffer.len() as u64;
            let spare = rustix::buffer::spare_capacity(&mut buffer);
            match rustix::io::pread(&**file, spare, at) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(std::io::Error::from(error)),
            }
        }
        Ok(buffer)
    };
    let buffer = match len > SHORT_READ_BYTES {
        true => on_disk(read),
        false => read(),
    }?;
    Ok(Bytes::from(buffer))
}

/// A file of `size` bytes without a hole but the one behind its end.
fn all_data(size: u64, offset: u64, whence: i32) -> Result<u64, FsError> {
    match whence {
        _ if offset >= size => Err(FsError::Io(std::io::Error::from_raw_os_error(libc::ENXIO))),
        libc::SEEK_DATA => Ok(offset),
        libc::SEEK_HOLE => Ok(size),
        _ => Err(FsError::Invalid("whence")),
    }
}

/// The next data or hole of a plain file. Its own position, which nobody uses, moves.
pub(super) fn seek_local(file: &File, offset: u64, whence: i32) -> Result<u64, FsError> {
    let to = match whence {
        libc::SEEK_DATA => rustix::fs::SeekFrom::Data(offset),
        libc::SEEK_HOLE => rustix::fs::SeekFrom::Hole(offset),
        _ => return Err(FsError::Invalid("whence")),
    };
    Ok(rustix::fs::seek(file, to).map_err(std::io::Error::from)?)
}

/// As fallocate does, on the plain file.
fn allocate_local(writing: &Writing, offset: u64, len: u64, mode: i32) -> Result<(), FsError> {
    let flags = rustix::fs::FallocateFlags::from_bits_retain(mode as u32);
    on_disk(|| rustix::fs::fallocate(&*writing.file, flags, offset, len))
        .map_err(std::io::Error::from)?;
    writing.touch();
    Ok(())
}

/// Writes all of `data` into the plain file, at `offset` or at the end; then it is what was not appended, if it failed.
fn write_local(writing: &Writing, offset: Option<u64>, data: &mut &[u8]) -> Result<(), FsError> {
    let file = &*writing.file;
    on_disk(|| match offset {
        Some(offset) => file.write_all_at(data, offset),
        None => append_all(file, data),
    })?;
    writing.touch();
    Ok(())
}

/// One `pwritev2` with RWF_APPEND, so that appends of several writers never overlap.
fn append_all(file: &File, data: &mut &[u8]) -> std::io::Result<()> {
    while !data.is_empty() {
        let slices = [IoSlice::new(data)];
        match rustix::io::pwritev2(file, &slices, 0, ReadWriteFlags::APPEND) {
            Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
            Ok(written) => *data = &data[written..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
