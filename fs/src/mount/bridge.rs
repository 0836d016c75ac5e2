//! Between the kernel's requests and the file system's futures: what can be answered from memory is answered on the thread
//! that read the request, the rest on the runtime, where the caller can still be freed (`interrupt`).
use super::{
    backing::Backings,
    directories::{Directories, Snapshot},
    interrupt::{Held, Requests},
    known::Known,
};
use crate::{
    catalog::Node_,
    error::FsError,
    filesystem::{Caller, FileSystem, Handle, Opened},
    record::{Ino, Kind, ROOT, Time},
};
use fuser::{Errno, FileAttr, FileType, FopenFlags, INodeNo, Request};
use std::{
    future::Future,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// What all requests share.
pub(super) struct Bridge {
    pub(super) fs: Arc<FileSystem>,
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) known: Arc<Known>,
    pub(super) directories: Directories,
    pub(super) backings: Backings,
    pub(super) requests: Arc<Requests>,
}

/// Which request, for the log and for freeing its caller.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) operation: &'static str,
    pub(super) ino: Ino,
    pub(super) pid: u32,
    pub(super) patient: bool,
}

impl Asked {
    pub(super) fn new(operation: &'static str, request: &Request, ino: INodeNo) -> Self {
        Self {
            operation,
            ino: ino.0,
            pid: request.pid(),
            patient: false,
        }
    }

    /// Whether it asks the catalog in any case: then it is begun where it will wait, and wakes one thread instead of two.
    fn always_waits(&self) -> bool {
        matches!(
            self.operation,
            "open" | "create" | "close" | "unlink" | "rename" | "mkdir"
        )
    }

    /// It may take as long as its caller waits.
    pub(super) fn patient(self, patient: bool) -> Self {
        Self { patient, ..self }
    }
}

pub(super) fn caller(request: &Request) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
        pid: request.pid(),
    }
}

impl Bridge {
    /// Runs `work` and gives its result to `finish`, which answers the kernel; exactly once, within `interrupt::DEADLINE`.
    pub(super) fn answer<T, W, F>(self: &Arc<Self>, asked: Asked, work: W, finish: F)
    where
        T: Send + 'static,
        W: Future<Output = Result<T, FsError>> + Send + 'static,
        F: FnOnce(&Arc<Bridge>, Result<T, FsError>) + Send + 'static,
    {
        self.answer_or_undo(asked, work, finish, |_, _| {});
    }

    /// Like `answer`; `undo` gives back what came after the caller had been freed.
    pub(super) fn answer_or_undo<T, W, F>(
        self: &Arc<Self>,
        asked: Asked,
        work: W,
        finish: F,
        undo: fn(&Arc<Bridge>, T),
    ) where
        T: Send + 'static,
        W: Future<Output = Result<T, FsError>> + Send + 'static,
        F: FnOnce(&Arc<Bridge>, Result<T, FsError>) + Send + 'static,
    {
        let mut work = Box::pin(work);
        let _runtime = self.runtime.enter();
        if !asked.always_waits() {
            let mut context = Context::from_waker(Waker::noop());
            if let Poll::Ready(result) = work.as_mut().poll(&mut context) {
                return finish(self, result);
            }
        }
        let slot = Arc::new(Mutex::new(Some(finish)));
        let number = self.requests.hold(self.held(asked, slot.clone()));
        let bridge = self.clone();
        tokio::spawn(async move {
            let result = work.await;
            bridge.requests.done(number);
            let finish = slot.lock().unwrap().take();
            match (finish, result) {
                (Some(finish), result) => finish(&bridge, result),
                (None, Ok(outcome)) => undo(&bridge, outcome),
                (None, Err(_)) => {}
            }
        });
    }

    fn held<T, F>(self: &Arc<Self>, asked: Asked, slot: Arc<Mutex<Option<F>>>) -> Held
    where
        T: Send + 'static,
        F: FnOnce(&Arc<Bridge>, Result<T, FsError>) + Send + 'static,
    {
        let bridge = self.clone();
        Held {
            operation: asked.operation,
            ino: asked.ino,
            pid: asked.pid,
            since: Instant::now(),
            patient: asked.patient,
            cancel: Box::new(move |error| {
                let finish = slot.lock().unwrap().take();
                if let Some(finish) = finish {
                    finish(&bridge, Err(error));
                }
            }),
        }
    }

    /// Work whose end nobody waits for.
    pub(super) fn detach(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut work = Box::pin(work);
        let _runtime = self.runtime.enter();
        let mut context = Context::from_waker(Waker::noop());
        if work.as_mut().poll(&mut context).is_pending() {
            tokio::spawn(work);
        }
    }

    /// Logs what a person should see, and says what the kernel is told.
    pub(super) fn errno(&self, operation: &str, ino: Ino, error: &FsError) -> Errno {
        match error {
            FsError::NoHolder { .. } | FsError::Catalog(_) | FsError::NoSpace => {
                tracing::warn!(operation, ino, %error, "failed");
            }
            FsError::Io(source) if source.raw_os_error() == Some(libc::EIO) => {
                tracing::error!(operation, ino, %error, "failed");
            }
            _ => tracing::debug!(operation, ino, %error, "failed"),
        }
        Errno::from_i32(error.to_errno())
    }

    /// How long the kernel may keep this inode's attributes.
    pub(super) fn attributes_for(&self, ino: Ino) -> Duration {
        match self.fs.attributes_are_live(ino) {
            true => Duration::ZERO,
            false => self.known.keeps(ino),
        }
    }

    /// The kernel is told of an entry: for how long it may keep the attributes, and the name.
    pub(super) fn tell_entry(
        &self,
        node: &Node_,
        parent: Ino,
        name: &[u8],
    ) -> (Duration, Duration) {
        let keep = self.known.told(node.ino, parent, name);
        match self.fs.attributes_are_live(node.ino) {
            true => (Duration::ZERO, keep),
            false => (keep, keep),
        }
    }

    pub(super) fn forget(&self, ino: Ino, lookups: u64) {
        if self.known.forget(ino, lookups) {
            self.fs.forgotten(ino);
        }
    }

    /// The handle's files are given back, and what was written is published.
    pub(super) fn release(self: &Arc<Self>, handle: Handle) {
        self.backings.release(handle);
        let fs = self.fs.clone();
        self.detach(async move { fs.release(handle).await });
    }

    /// How the kernel is told of an opened file.
    pub(super) fn shape(
        &self,
        ino: Ino,
        opened: Opened,
        read_only: bool,
        make: impl FnOnce(&std::fs::File) -> std::io::Result<fuser::BackingId>,
    ) -> Result<Shape, FsError> {
        let mut flags = FopenFlags::empty();
        if read_only {
            flags |= FopenFlags::FOPEN_NOFLUSH;
        }
        match opened {
            Opened::Passthrough { handle, file } => {
                match self.backings.for_handle(ino, handle, || make(&file)) {
                    Ok(backing) => Ok(Shape::new(handle, flags, Some(backing))),
                    Err(error) => {
                        self.fs.refuse_passthrough(&why_not(&error));
                        let opened = self.fs.without_passthrough(handle)?;
                        self.shape(ino, opened, read_only, make_nothing)
                    }
                }
            }
            Opened::Cached { handle, keep_cache } => {
                if keep_cache {
                    flags |= FopenFlags::FOPEN_KEEP_CACHE;
                }
                Ok(Shape::new(handle, flags, None))
            }
            Opened::Direct { handle } => {
                flags |= FopenFlags::FOPEN_DIRECT_IO;
                // Beside passthrough opens the kernel wants their backing file here too; FOPEN_DIRECT_IO goes before it.
                Ok(Shape::new(handle, flags, self.backings.join(ino, handle)))
            }
        }
    }

    /// The directory as this handle sees it; a fresh look at its beginning.
    pub(super) async fn snapshot(
        &self,
        ino: Ino,
        handle: u64,
        offset: u64,
    ) -> Result<Arc<Snapshot>, FsError> {
        if offset > 0
            && let Some(snapshot) = self.directories.snapshot(handle)
        {
            return Ok(snapshot);
        }
        let listing = self.fs.list(ino).await?;
        let parent = match ino {
            ROOT => ROOT,
            _ => self.fs.attributes(ino).await?.inode.parent,
        };
        let snapshot = Arc::new(Snapshot {
            ino,
            parent,
            listing,
        });
        self.directories.set(handle, snapshot.clone());
        Ok(snapshot)
    }
}

/// What an open reply says.
pub(super) struct Shape {
    pub(super) handle: Handle,
    pub(super) flags: FopenFlags,
    pub(super) backing: Option<Arc<fuser::BackingId>>,
}

impl Shape {
    fn new(handle: Handle, flags: FopenFlags, backing: Option<Arc<fuser::BackingId>>) -> Self {
        Self {
            handle,
            flags,
            backing,
        }
    }
}

fn make_nothing(_: &std::fs::File) -> std::io::Result<fuser::BackingId> {
    Err(std::io::Error::from_raw_os_error(libc::EOPNOTSUPP))
}

fn why_not(error: &std::io::Error) -> String {
    let reason = match error.raw_os_error() {
        Some(libc::EPERM) => "it needs CAP_SYS_ADMIN (run ks as root)",
        Some(libc::ELOOP) => "the data directory is on a stacked file system",
        Some(libc::ENOTTY | libc::ENOSYS | libc::EINVAL) => "the kernel is older than 6.9",
        _ => "the kernel refuses the data directory's files",
    };
    format!("{reason} ({error})")
}

pub(super) fn attr(node: &Node_) -> FileAttr {
    let inode = &node.inode;
    let times = [inode.atime, inode.mtime, inode.ctime];
    let [atime, mut mtime, mut ctime] = times;
    if inode.kind == Kind::Directory {
        mtime = node.dir_time;
        ctime = ctime.max(node.dir_time);
    }
    FileAttr {
        ino: INodeNo(node.ino),
        size: inode.size,
        blocks: inode.size.div_ceil(512),
        atime: system_time(atime),
        mtime: system_time(mtime),
        ctime: system_time(ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(inode.kind),
        perm: (inode.mode & 0o7777) as u16,
        nlink: node.nlink,
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
        blksize: 4096,
        flags: 0,
    }
}

pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

/// The kind that a mode's type bits say; no type is a file.
pub(super) fn kind_of_mode(mode: u32) -> Option<Kind> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Some(Kind::File),
        libc::S_IFIFO => Some(Kind::Fifo),
        libc::S_IFSOCK => Some(Kind::Socket),
        libc::S_IFCHR => Some(Kind::CharDevice),
        libc::S_IFBLK => Some(Kind::BlockDevice),
        _ => None,
    }
}

pub(super) fn system_time(time: Time) -> SystemTime {
    let whole = Duration::from_nanos(time.unsigned_abs());
    match time >= 0 {
        true => UNIX_EPOCH + whole,
        false => UNIX_EPOCH - whole,
    }
}

pub(super) fn tree_time(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |n| -n),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_both_ways() {
        for time in [0, 1, -1, 1_700_000_000_123_456_789, -86_400_000_000_001] {
            assert_eq!(tree_time(system_time(time)), time);
        }
    }

    #[test]
    fn modes_say_kinds() {
        assert_eq!(kind_of_mode(0o644), Some(Kind::File));
        assert_eq!(kind_of_mode(libc::S_IFIFO | 0o644), Some(Kind::Fifo));
        assert_eq!(kind_of_mode(libc::S_IFDIR), None);
    }
}
