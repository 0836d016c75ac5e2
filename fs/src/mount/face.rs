//! The requests, one by one: unpack, call the file system, answer.
use super::bridge::{Asked, Bridge, attr, caller, file_type, kind_of_mode, tree_time};
use crate::{
    catalog::{AttributeChange, Node_},
    error::FsError,
    filesystem::{Locking, Opened, Space, WriteManner},
    locks::{self, Waiter},
    record::{Ino, Kind},
};
use bytes::Bytes;
use fuser::{
    BsdFileFlags, Errno, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLock, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::Notify;

/// The largest request the kernel may send or ask for.
const TRANSFER_BYTES_MAX: u32 = 1024 * 1024;
/// Requests of the kernel's own (read-ahead, write-back) that may be under way.
const BACKGROUND_MAX: u16 = 64;
/// File systems stacked on each other: the data directory may itself be on an overlay.
const STACK_DEPTH_MAX: u32 = 2;
/// Numbers are never used again.
const GENERATION: Generation = Generation(0);
/// The unit of statfs, bytes.
const BLOCK_BYTES: u64 = 4096;
/// What statfs says of inodes, of which there is no lack.
const INODES_SAID: u64 = 1 << 40;

/// fuser's trait, over the bridge.
pub(super) struct Face {
    pub(super) bridge: Arc<Bridge>,
    /// Told when the kernel has given the mount up.
    pub(super) ended: Arc<Notify>,
}

impl Face {
    /// Answers with an entry, and counts it.
    fn entry(
        &self,
        asked: Asked,
        name: &OsStr,
        work: impl Future<Output = Result<Node_, FsError>> + Send + 'static,
        reply: ReplyEntry,
    ) {
        let name = name.as_bytes().to_vec();
        self.bridge
            .answer(asked, work, move |bridge, result| match result {
                Ok(node) => {
                    let (attributes, entry) = bridge.tell_entry(&node, asked.ino, &name);
                    reply.entry_with_ttls(&attributes, &entry, &attr(&node), GENERATION);
                }
                // Not found is the commonest answer, and no failure.
                Err(FsError::NotFound) => reply.error(Errno::ENOENT),
                Err(error) => reply.error(bridge.errno(asked.operation, asked.ino, &error)),
            });
    }

    fn empty(
        &self,
        asked: Asked,
        work: impl Future<Output = Result<(), FsError>> + Send + 'static,
        reply: ReplyEmpty,
    ) {
        self.bridge
            .answer(asked, work, move |bridge, result| match result {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(bridge.errno(asked.operation, asked.ino, &error)),
            });
    }

    fn xattr(
        &self,
        asked: Asked,
        size: u32,
        work: impl Future<Output = Result<Vec<u8>, FsError>> + Send + 'static,
        reply: ReplyXattr,
    ) {
        self.bridge
            .answer(asked, work, move |bridge, result| match result {
                Ok(value) if size == 0 => reply.size(value.len() as u32),
                Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
                Ok(value) => reply.data(&value),
                Err(error) => reply.error(bridge.errno(asked.operation, asked.ino, &error)),
            });
    }
}

fn give_back(bridge: &Arc<Bridge>, opened: Opened) {
    bridge.release(opened.handle());
}

/// What a lock request wants; `None`: nonsense.
fn lock_wanted(owner: LockOwner, start: u64, end: u64, typ: i32, pid: u32) -> Option<locks::Want> {
    let kind = match typ {
        libc::F_RDLCK => Some(locks::Kind::Shared),
        libc::F_WRLCK => Some(locks::Kind::Exclusive),
        libc::F_UNLCK => None,
        _ => return None,
    };
    let last = end.min(locks::Range::WHOLE.last);
    (start <= last).then_some(locks::Want {
        owner: owner.0,
        kind,
        range: locks::Range { first: start, last },
        pid,
    })
}

fn lock_asked(
    request: &Request,
    ino: INodeNo,
    handle: FileHandle,
    want: Option<locks::Want>,
) -> Option<Locking> {
    Some(Locking {
        ino: ino.0,
        handle: handle.0,
        want: want?,
        thread: request.pid(),
    })
}

fn lock_type(kind: locks::Kind) -> i32 {
    match kind {
        locks::Kind::Shared => libc::F_RDLCK,
        locks::Kind::Exclusive => libc::F_WRLCK,
    }
}

fn reads_only(flags: i32) -> bool {
    flags & libc::O_ACCMODE == libc::O_RDONLY
}

fn time_of(time: TimeOrNow) -> i64 {
    match time {
        TimeOrNow::SpecificTime(time) => tree_time(time),
        TimeOrNow::Now => tree_time(SystemTime::now()),
    }
}

impl Filesystem for Face {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            InitFlags::FUSE_POSIX_LOCKS,
            InitFlags::FUSE_FLOCK_LOCKS,
        ];
        for flag in wanted {
            if let Err(missing) = config.add_capabilities(flag) {
                tracing::debug!(?missing, "the kernel does without");
            }
        }
        // For these the nearest value that it takes is as good.
        if let Err(nearest) = config.set_max_readahead(TRANSFER_BYTES_MAX) {
            let _ = config.set_max_readahead(nearest);
        }
        let _ = config.set_max_write(TRANSFER_BYTES_MAX);
        let _ = config.set_max_background(BACKGROUND_MAX);
        match config.add_capabilities(InitFlags::FUSE_PASSTHROUGH) {
            Ok(()) => {
                let _ = config.set_max_stack_depth(STACK_DEPTH_MAX);
            }
            Err(_) => self
                .bridge
                .fs
                .refuse_passthrough("the kernel is older than 6.9"),
        }
        Ok(())
    }

    fn destroy(&mut self) {
        self.ended.notify_one();
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let fs = self.bridge.fs.clone();
        let wanted = name.as_bytes().to_vec();
        let work = async move { fs.lookup(parent.0, &wanted).await };
        self.entry(Asked::new("lookup", request, parent), name, work, reply);
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.bridge.forget(ino.0, lookups);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let fs = self.bridge.fs.clone();
        let asked = Asked::new("getattr", request, ino);
        let work = async move { fs.attributes(ino.0).await };
        self.bridge
            .answer(asked, work, move |bridge, result| match result {
                Ok(node) => reply.attr(&bridge.attributes_for(ino.0), &attr(&node)),
                Err(error) => reply.error(bridge.errno("getattr", ino.0, &error)),
            });
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = AttributeChange {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            atime: atime.map(time_of),
            mtime: mtime.map(time_of),
            ctime: ctime.map(tree_time),
        };
        let fs = self.bridge.fs.clone();
        let ordinary_user_cuts = size.is_some() && request.uid() != 0 && mode.is_none();
        let handle = handle.map(|handle| handle.0);
        let asked = Asked::new("setattr", request, ino);
        let work = async move {
            if ordinary_user_cuts {
                fs.clear_privileges(ino.0).await?;
            }
            fs.set_attributes(ino.0, handle, size, change).await
        };
        self.bridge
            .answer(asked, work, move |bridge, result| match result {
                Ok(node) => reply.attr(&bridge.attributes_for(ino.0), &attr(&node)),
                Err(error) => reply.error(bridge.errno("setattr", ino.0, &error)),
            });
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        let fs = self.bridge.fs.clone();
        let asked = Asked::new("readlink", request, ino);
        let work = async move { fs.attributes(ino.0).await };
        self.bridge
            .answer(asked, work, move |bridge, result| match result {
                Ok(node) if node.inode.kind == Kind::Symlink => reply.data(&node.inode.target),
                Ok(_) => reply.error(Errno::EINVAL),
                Err(error) => reply.error(bridge.errno("readlink", ino.0, &error)),
            });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let Some(kind) = kind_of_mode(mode) else {
            return reply.error(Errno::EINVAL);
        };
        let (fs, who) = (self.bridge.fs.clone(), caller(request));
        let new = name.as_bytes().to_vec();
        let work = async move { fs.make(parent.0, &new, kind, mode, rdev, &[], who).await };
        self.entry(Asked::new("mknod", request, parent), name, work, reply);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let (fs, who) = (self.bridge.fs.clone(), caller(request));
        let new = name.as_bytes().to_vec();
        let work = async move {
            fs.make(parent.0, &new, Kind::Directory, mode, 0, &[], who)
                .await
        };
        self.entry(Asked::new("mkdir", request, parent), name, work, reply);
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let (fs, who) = (self.bridge.fs.clone(), caller(request));
        let new = name.as_bytes().to_vec();
        let target = target.as_os_str().as_bytes().to_vec();
        let work = async move {
            fs.make(parent.0, &new, Kind::Symlink, 0o777, 0, &target, who)
                .await
        };
        self.entry(Asked::new("symlink", request, parent), name, work, reply);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, name) = (self.bridge.fs.clone(), name.as_bytes().to_vec());
        let work = async move { fs.unlink(parent.0, &name).await };
        self.empty(Asked::new("unlink", request, parent), work, reply);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, name) = (self.bridge.fs.clone(), name.as_bytes().to_vec());
        let work = async move { fs.rmdir(parent.0, &name).await };
        self.empty(Asked::new("rmdir", request, parent), work, reply);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let fs = self.bridge.fs.clone();
        let (name, new_name) = (name.as_bytes().to_vec(), new_name.as_bytes().to_vec());
        let work = async move {
            fs.rename(parent.0, &name, new_parent.0, &new_name, flags.bits())
                .await
        };
        self.empty(Asked::new("rename", request, parent), work, reply);
    }

    fn link(
        &self,
        request: &Request,
        ino: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        let fs = self.bridge.fs.clone();
        let name = new_name.as_bytes().to_vec();
        let work = async move { fs.link(ino.0, new_parent.0, &name).await };
        let asked = Asked::new("link", request, new_parent);
        self.entry(asked, new_name, work, reply);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (fs, who) = (self.bridge.fs.clone(), caller(request));
        let work = async move { fs.open(ino.0, flags.0, who).await };
        let asked = Asked::new("open", request, ino);
        let read_only = reads_only(flags.0);
        let finish = move |bridge: &Arc<Bridge>, result: Result<Opened, FsError>| {
            let shaped = result.and_then(|opened| {
                bridge.shape(ino.0, opened, read_only, |file| reply.open_backing(file))
            });
            match shaped {
                Ok(shape) => match &shape.backing {
                    Some(backing) => {
                        reply.opened_passthrough(FileHandle(shape.handle), shape.flags, backing)
                    }
                    None => reply.opened(FileHandle(shape.handle), shape.flags),
                },
                Err(error) => reply.error(bridge.errno("open", ino.0, &error)),
            }
        };
        self.bridge.answer_or_undo(asked, work, finish, give_back);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (fs, who) = (self.bridge.fs.clone(), caller(request));
        let (new, name) = (name.as_bytes().to_vec(), name.as_bytes().to_vec());
        let work = async move { fs.create(parent.0, &new, mode, flags, who).await };
        let asked = Asked::new("create", request, parent);
        let read_only = reads_only(flags);
        let finish = move |bridge: &Arc<Bridge>, result: Result<(Node_, Opened), FsError>| {
            let shaped = result.and_then(|(node, opened)| {
                let make = |file: &std::fs::File| reply.open_backing(file);
                let shape = bridge.shape(node.ino, opened, read_only, make)?;
                Ok((node, shape))
            });
            let (node, shape) = match shaped {
                Ok(shaped) => shaped,
                Err(error) => return reply.error(bridge.errno("create", parent.0, &error)),
            };
            let (_, keep) = bridge.tell_entry(&node, parent.0, &name);
            let (handle, attr) = (FileHandle(shape.handle), attr(&node));
            match &shape.backing {
                Some(backing) => reply.created_passthrough(
                    &keep,
                    &attr,
                    GENERATION,
                    handle,
                    shape.flags,
                    backing,
                ),
                None => reply.created(&keep, &attr, GENERATION, handle, shape.flags),
            }
        };
        let undo = |bridge: &Arc<Bridge>, made: (Node_, Opened)| give_back(bridge, made.1);
        self.bridge.answer_or_undo(asked, work, finish, undo);
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let fs = self.bridge.fs.clone();
        let work = async move { fs.read(handle.0, offset, size as usize).await };
        let asked = Asked::new("read", request, ino);
        self.bridge
            .answer(asked, work, move |bridge, result| match result {
                Ok(data) => reply.data(&data),
                Err(error) => reply.error(bridge.errno("read", ino.0, &error)),
            });
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let manner = WriteManner {
            from_pages: write_flags.contains(WriteFlags::FUSE_WRITE_CACHE),
            clear_privileges: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
        };
        let (fs, data) = (self.bridge.fs.clone(), Bytes::copy_from_slice(data));
        let work = async move { fs.write_as(handle.0, offset, data, manner).await };
        let asked = Asked::new("write", request, ino);
        self.bridge
            .answer(asked, work, move |bridge, result| match result {
                Ok(written) => reply.written(written),
                Err(error) => reply.error(bridge.errno("write", ino.0, &error)),
            });
    }

    fn flush(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let fs = self.bridge.fs.clone();
        let work = async move {
            let flushed = fs.flush(handle.0).await;
            fs.closed_by(ino.0, lock_owner.0).await;
            flushed
        };
        self.empty(Asked::new("close", request, ino), work, reply);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.bridge.release(handle.0);
        reply.ok();
    }

    fn fsync(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        let fs = self.bridge.fs.clone();
        let work = async move { fs.fsync(handle.0, data_only).await };
        self.empty(Asked::new("fsync", request, ino), work, reply);
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let fs = self.bridge.fs.clone();
        let work = async move { fs.allocate(handle.0, offset, length, mode).await };
        self.empty(Asked::new("fallocate", request, ino), work, reply);
    }

    fn getlk(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let want = lock_wanted(lock_owner, start, end, typ, pid);
        let Some(asked) = lock_asked(request, ino, handle, want) else {
            return reply.error(Errno::EINVAL);
        };
        let fs = self.bridge.fs.clone();
        let work = async move { fs.lock_in_the_way(asked).await };
        let question = Asked::new("getlk", request, ino);
        self.bridge
            .answer(question, work, move |bridge, result| match result {
                Ok(Some((kind, range, pid))) => {
                    reply.locked(range.first, range.last, lock_type(kind), pid);
                }
                Ok(None) => reply.locked(start, end, libc::F_UNLCK, 0),
                Err(error) => reply.error(bridge.errno("getlk", ino.0, &error)),
            });
    }

    fn setlk(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let want = lock_wanted(lock_owner, start, end, typ, pid);
        let Some(asked) = lock_asked(request, ino, handle, want) else {
            return reply.error(Errno::EINVAL);
        };
        let fs = self.bridge.fs.clone();
        let waiter = Waiter::default();
        let waiting = waiter.clone();
        let work = async move {
            fs.lock(asked, sleep.then_some(&waiting)).await?;
            Ok(asked)
        };
        let finish = move |bridge: &Arc<Bridge>, result: Result<Locking, FsError>| {
            // Where the caller was freed early, the wait ends too.
            waiter.end();
            match result {
                Ok(_) => reply.ok(),
                Err(error) => reply.error(bridge.errno("lock", ino.0, &error)),
            }
        };
        let question = Asked::new("lock", request, ino).patient(sleep);
        let undo = |bridge: &Arc<Bridge>, asked: Locking| {
            let fs = bridge.fs.clone();
            bridge.detach(async move { fs.lock_unwanted(asked).await });
        };
        self.bridge.answer_or_undo(question, work, finish, undo);
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let Some(handle) = self.bridge.directories.open() else {
            return reply.error(Errno::ENFILE);
        };
        // The kernel may keep the names of a directory whose changes it will be told of.
        let flags = match self.bridge.known.knows(ino.0) {
            true => FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
            false => FopenFlags::empty(),
        };
        reply.opened(FileHandle(handle), flags);
    }

    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let bridge = self.bridge.clone();
        let work = async move { bridge.snapshot(ino.0, handle.0, offset).await };
        let asked = Asked::new("readdir", request, ino);
        self.bridge.answer(asked, work, move |bridge, result| {
            let snapshot = match result {
                Ok(snapshot) => snapshot,
                Err(error) => return reply.error(bridge.errno("readdir", ino.0, &error)),
            };
            let dots = [(snapshot.ino, "."), (snapshot.parent, "..")];
            for (at, (dot, name)) in dots.into_iter().enumerate().skip(offset as usize) {
                let next = at as u64 + 1;
                if reply.add(INodeNo(dot), next, FileType::Directory, name) {
                    return reply.ok();
                }
            }
            let first = (offset as usize).saturating_sub(2);
            let entries = snapshot.listing.entries.iter().enumerate().skip(first);
            for (at, (name, node)) in entries {
                let (next, kind) = (at as u64 + 3, file_type(node.inode.kind));
                if reply.add(INodeNo(node.ino), next, kind, OsStr::from_bytes(name)) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let bridge = self.bridge.clone();
        let work = async move {
            let snapshot = bridge.snapshot(ino.0, handle.0, offset).await?;
            let here = bridge.fs.attributes(snapshot.ino).await?;
            let above = bridge.fs.attributes(snapshot.parent).await?;
            Ok((snapshot, here, above))
        };
        let asked = Asked::new("readdirplus", request, ino);
        self.bridge.answer(asked, work, move |bridge, result| {
            let (snapshot, here, above) = match result {
                Ok(found) => found,
                Err(error) => return reply.error(bridge.errno("readdirplus", ino.0, &error)),
            };
            let dots = [(here, "."), (above, "..")];
            for (at, (dot, name)) in dots.iter().enumerate().skip(offset as usize) {
                let (node, next) = (INodeNo(dot.ino), at as u64 + 1);
                // The kernel takes no attributes of these two.
                if reply.add(node, next, name, &Duration::ZERO, &attr(dot), GENERATION) {
                    return reply.ok();
                }
            }
            let first = (offset as usize).saturating_sub(2);
            let entries = snapshot.listing.entries.iter().enumerate().skip(first);
            for (at, (name, node)) in entries {
                if !add_plus(bridge, &mut reply, snapshot.ino, at as u64 + 3, name, node) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.bridge.directories.close(handle.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        // Names are the catalog's, and there when they are acknowledged.
        reply.ok();
    }

    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let fs = self.bridge.fs.clone();
        let work = async move { Ok(fs.statfs().await) };
        let asked = Asked::new("statfs", request, ino);
        self.bridge
            .answer(asked, work, move |_, result: Result<Space, FsError>| {
                let space = result.unwrap_or_default();
                let (unit, name) = (BLOCK_BYTES as u32, crate::filesystem::NAME_BYTES_MAX as u32);
                reply.statfs(
                    space.total_bytes / BLOCK_BYTES,
                    space.free_bytes / BLOCK_BYTES,
                    space.free_here_bytes / BLOCK_BYTES,
                    INODES_SAID,
                    INODES_SAID,
                    unit,
                    name,
                    unit,
                );
            });
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let fs = self.bridge.fs.clone();
        let (name, value) = (name.as_bytes().to_vec(), value.to_vec());
        let work = async move { fs.set_xattr(ino.0, &name, Some(&value), flags).await };
        self.empty(Asked::new("setxattr", request, ino), work, reply);
    }

    fn getxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let (fs, name) = (self.bridge.fs.clone(), name.as_bytes().to_vec());
        let work = async move { fs.get_xattr(ino.0, &name).await };
        self.xattr(Asked::new("getxattr", request, ino), size, work, reply);
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let fs = self.bridge.fs.clone();
        let work = async move {
            let mut list = Vec::new();
            for name in fs.list_xattrs(ino.0).await? {
                list.extend_from_slice(&name);
                list.push(0);
            }
            Ok(list)
        };
        self.xattr(Asked::new("listxattr", request, ino), size, work, reply);
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, name) = (self.bridge.fs.clone(), name.as_bytes().to_vec());
        let work = async move { fs.set_xattr(ino.0, &name, None, 0).await };
        self.empty(Asked::new("removexattr", request, ino), work, reply);
    }

    fn lseek(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let Ok(from) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        let fs = self.bridge.fs.clone();
        let work = async move { fs.seek(handle.0, from, whence).await };
        let asked = Asked::new("lseek", request, ino);
        self.bridge
            .answer(asked, work, move |bridge, result| match result {
                Ok(position) => reply.offset(position as i64),
                Err(error) => reply.error(bridge.errno("lseek", ino.0, &error)),
            });
    }

    fn access(&self, _: &Request, _: INodeNo, _: fuser::AccessFlags, reply: ReplyEmpty) {
        // The kernel checks permissions itself.
        reply.error(Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: fuser::CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The kernel then copies by reading and writing.
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: fuser::IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: fuser::ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: fuser::PollNotifier,
        _: fuser::PollEvents,
        _: fuser::PollFlags,
        reply: fuser::ReplyPoll,
    ) {
        // Files are always ready, and the kernel does not ask again.
        reply.error(Errno::ENOSYS);
    }
}

/// Adds one entry with its attributes; `false`: the answer is full.
fn add_plus(
    bridge: &Arc<Bridge>,
    reply: &mut ReplyDirectoryPlus,
    parent: Ino,
    next: u64,
    name: &[u8],
    node: &Node_,
) -> bool {
    let node = bridge.fs.live(node.clone());
    let (keep, _) = bridge.tell_entry(&node, parent, name);
    let full = reply.add(
        INodeNo(node.ino),
        next,
        OsStr::from_bytes(name),
        &keep,
        &attr(&node),
        GENERATION,
    );
    if full {
        // It did not go out: the kernel has not heard of it.
        bridge.known.forget(node.ino, 1);
    }
    !full
}
