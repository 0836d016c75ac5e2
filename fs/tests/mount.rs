//! One node with a real mount: what programs see.
#[path = "support/cluster.rs"]
mod cluster;
use cluster::{Cluster, Options, TestNode, away, pattern};
use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink},
    path::Path,
};

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result
        .expect_err("must fail")
        .raw_os_error()
        .expect("an errno")
}

/// Runs a test on a node with passthrough and on one without.
async fn on_both(test: fn(&TestNode)) {
    if !Cluster::can_mount() {
        return;
    }
    for passthrough in [true, false] {
        let options = Options {
            passthrough,
            ..Options::default()
        };
        let mut cluster = Cluster::of(1, options).await;
        let node = cluster.nodes.remove(0);
        let node = away(move || {
            test(&node);
            node.await_closed();
            node
        })
        .await;
        away(move || drop(node)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_written_read_appended_and_cut() {
    on_both(|node| {
        let path = node.path("a file");
        let data = pattern(1, 3_000_000);
        fs::write(&path, &data).unwrap();
        assert_eq!(fs::read(&path).unwrap(), data);
        assert_eq!(fs::read(node.plain("a file")).unwrap(), data);

        let mut appending = OpenOptions::new().append(true).open(&path).unwrap();
        appending.write_all(b"more").unwrap();
        drop(appending);
        assert_eq!(fs::metadata(&path).unwrap().len(), 3_000_004);

        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        file.write_all_at(b"XYZ", 1_000_000).unwrap();
        let mut back = [0; 5];
        file.read_exact_at(&mut back, 999_999).unwrap();
        assert_eq!(&back[1..4], b"XYZ");
        file.set_len(1_000_002).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 1_000_002);
        drop(file);
        let read = fs::read(&path).unwrap();
        assert_eq!(read.len(), 1_000_002);
        assert_eq!(&read[..1_000_000], &data[..1_000_000]);
        assert_eq!(&read[1_000_000..], b"XY");

        fs::write(&path, b"short").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"short");
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(10)
            .unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"short\0\0\0\0\0");
        cut(&path, 2);
        assert_eq!(fs::read(&path).unwrap(), b"sh");
        fs::remove_file(&path).unwrap();
        assert!(!node.plain("a file").exists());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_local_file_is_read_by_the_kernel_alone() {
    if !Cluster::can_mount() {
        return;
    }
    let mut cluster = Cluster::one().await;
    let node = cluster.nodes.remove(0);
    away(move || {
        let data = pattern(2, 2_000_000);
        fs::write(node.path("f"), &data).unwrap();
        if !node.fs.counters().passthrough {
            eprintln!("NOT RUN: this kernel or user has no passthrough");
            return;
        }
        let before = node.fs.counters();
        assert_eq!(fs::read(node.path("f")).unwrap(), data);
        let mapped = map_and_sum(&node.path("f"));
        assert_eq!(mapped, data.iter().map(|b| u64::from(*b)).sum::<u64>());
        let after = node.fs.counters();
        assert_eq!(after.reads, before.reads, "reads came to the daemon");
        assert_eq!(after.opens_passthrough, before.opens_passthrough + 2);
    })
    .await;
}

/// Sums a file's bytes through a private mapping.
fn map_and_sum(path: &Path) -> u64 {
    let file = File::open(path).unwrap();
    let len = file.metadata().unwrap().len() as usize;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
    // SAFETY: a new mapping of a file nobody changes meanwhile; unmapped before it is forgotten.
    unsafe {
        let address = libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ,
            libc::MAP_PRIVATE,
            fd,
            0,
        );
        assert_ne!(
            address,
            libc::MAP_FAILED,
            "{}",
            std::io::Error::last_os_error()
        );
        let bytes = std::slice::from_raw_parts(address.cast::<u8>(), len);
        let sum = bytes.iter().map(|byte| u64::from(*byte)).sum();
        libc::munmap(address, len);
        sum
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mapped_files_can_be_read_and_written() {
    on_both(|node| {
        let path = node.path("mapped");
        fs::write(&path, pattern(3, 100_000)).unwrap();
        assert!(map_and_sum(&path) > 0);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        // SAFETY: as in `map_and_sum`; shared and writable.
        unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let address = libc::mmap(std::ptr::null_mut(), 8192, access, libc::MAP_SHARED, fd, 0);
            assert_ne!(
                address,
                libc::MAP_FAILED,
                "{}",
                std::io::Error::last_os_error()
            );
            std::slice::from_raw_parts_mut(address.cast::<u8>(), 8192)[5000] = 77;
            assert_eq!(libc::msync(address, 8192, libc::MS_SYNC), 0);
            libc::munmap(address, 8192);
        }
        drop(file);
        assert_eq!(fs::read(&path).unwrap()[5000], 77);
        assert_eq!(fs::read(node.plain("mapped")).unwrap()[5000], 77);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_made_moved_and_removed() {
    on_both(|node| {
        let at = |name: &str| node.path(name);
        fs::create_dir(at("d")).unwrap();
        fs::create_dir(at("d/e")).unwrap();
        fs::write(at("d/e/f"), b"1").unwrap();
        assert_eq!(errno(fs::create_dir(at("d"))), libc::EEXIST);
        assert_eq!(errno(fs::remove_dir(at("d"))), libc::ENOTEMPTY);
        assert_eq!(errno(fs::remove_file(at("d/e"))), libc::EISDIR);
        assert_eq!(errno(fs::remove_dir(at("d/e/f"))), libc::ENOTDIR);
        assert_eq!(errno(fs::read(at("d/none"))), libc::ENOENT);
        assert_eq!(errno(fs::read_dir(at("d/e/f"))), libc::ENOTDIR);
        assert_eq!(errno(fs::rename(at("d"), at("d/e/x"))), libc::EINVAL);

        fs::rename(at("d/e"), at("g")).unwrap();
        assert_eq!(fs::read(at("g/f")).unwrap(), b"1");
        assert_eq!(fs::read(node.plain("g/f")).unwrap(), b"1");
        assert!(!at("d/e").exists());

        fs::write(at("x"), b"new").unwrap();
        fs::rename(at("x"), at("g/f")).unwrap();
        assert_eq!(fs::read(at("g/f")).unwrap(), b"new");
        assert_eq!(fs::read(node.plain("g/f")).unwrap(), b"new");

        symlink("g/f", at("s")).unwrap();
        assert_eq!(fs::read_link(at("s")).unwrap(), Path::new("g/f"));
        assert_eq!(fs::read(at("s")).unwrap(), b"new");
        fs::hard_link(at("g/f"), at("h")).unwrap();
        assert_eq!(fs::metadata(at("h")).unwrap().nlink(), 2);
        fs::write(at("h"), b"through the other name").unwrap();
        assert_eq!(fs::read(at("g/f")).unwrap(), b"through the other name");
        fs::remove_file(at("g/f")).unwrap();
        assert_eq!(fs::read(at("h")).unwrap(), b"through the other name");
        assert_eq!(fs::metadata(at("h")).unwrap().nlink(), 1);
        let long = "n".repeat(256);
        assert_eq!(errno(fs::write(at(&long), b"")), libc::ENAMETOOLONG);
        fs::write(at(&long[..255]), b"").unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_three_thousand_names_is_listed_whole() {
    on_both(|node| {
        let dir = node.path("many");
        fs::create_dir(&dir).unwrap();
        let names: BTreeSet<String> = (0..3000).map(|n| format!("name-{n:05}")).collect();
        for name in &names {
            File::create(dir.join(name)).unwrap();
        }
        for _ in 0..2 {
            let listed: BTreeSet<String> = fs::read_dir(&dir)
                .unwrap()
                .map(|entry| {
                    let entry = entry.unwrap();
                    assert!(entry.metadata().unwrap().is_file());
                    entry.file_name().into_string().unwrap()
                })
                .collect();
            assert_eq!(listed, names);
        }
        fs::remove_file(dir.join("name-00000")).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 2999);
        fs::write(dir.join("another"), b"").unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 3000);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_are_kept() {
    on_both(|node| {
        let path = node.path("f");
        fs::write(&path, b"12345").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::chown(&path, Some(1000), Some(1001)).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 5);
        let file = File::options().write(true).open(&path).unwrap();
        file.set_times(fs::FileTimes::new().set_modified(time).set_accessed(time))
            .unwrap();
        drop(file);
        for path in [path.clone(), node.plain("f")] {
            let seen = fs::metadata(&path).unwrap();
            assert_eq!(seen.mode() & 0o7777, 0o640);
            assert_eq!((seen.uid(), seen.gid(), seen.len()), (1000, 1001, 5));
            assert_eq!(seen.modified().unwrap(), time);
        }
        assert_eq!(fs::read(&path).unwrap(), b"12345");

        fs::set_permissions(&path, fs::Permissions::from_mode(0o6755)).unwrap();
        std::os::unix::fs::chown(&path, Some(0), None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o755);

        fs::create_dir(node.path("shared")).unwrap();
        std::os::unix::fs::chown(node.path("shared"), None, Some(77)).unwrap();
        fs::set_permissions(node.path("shared"), fs::Permissions::from_mode(0o2775)).unwrap();
        fs::create_dir(node.path("shared/below")).unwrap();
        fs::write(node.path("shared/file"), b"").unwrap();
        let below = fs::metadata(node.path("shared/below")).unwrap();
        assert_eq!(
            (below.gid(), below.mode() & libc::S_ISGID),
            (77, libc::S_ISGID)
        );
        assert_eq!(fs::metadata(node.path("shared/file")).unwrap().gid(), 77);

        let space = rustix::fs::statvfs(&node.mountpoint).unwrap();
        assert!(space.f_blocks > 0 && space.f_bavail > 0 && space.f_namemax == 255);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changing_the_mode_while_writing_loses_nothing() {
    on_both(|node| {
        let path = node.path("f");
        let mut file = File::create(&path).unwrap();
        file.write_all(b"before").unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o600))
            .unwrap();
        file.write_all(b" and after").unwrap();
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), b"before and after");
        let size = fs::metadata(&path).unwrap().len();
        assert_eq!(size, 16);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unlinked_file_lives_while_it_is_open() {
    on_both(|node| {
        let path = node.path("gone");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        file.write_all(b"still").unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(errno(fs::metadata(&path)), libc::ENOENT);
        file.write_all(b" here").unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "still here");
        let seen = file.metadata().unwrap();
        assert_eq!((seen.nlink(), seen.len()), (0, 10));
        file.sync_all().unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_and_writers_of_one_file_see_each_other() {
    on_both(|node| {
        let path = node.path("f");
        fs::write(&path, b"0000").unwrap();
        let reader = File::open(&path).unwrap();
        let mut byte = [0; 4];
        reader.read_exact_at(&mut byte, 0).unwrap();
        let writer = OpenOptions::new().write(true).open(&path).unwrap();
        writer.write_all_at(b"1111", 0).unwrap();
        reader.read_exact_at(&mut byte, 0).unwrap();
        assert_eq!(&byte, b"1111");
        assert_eq!(fs::read(&path).unwrap(), b"1111");
        let second = OpenOptions::new().append(true).open(&path).unwrap();
        (&second).write_all(b"22").unwrap();
        writer.write_all_at(b"3", 3).unwrap();
        drop((writer, second));
        assert_eq!(fs::read(&path).unwrap(), b"111322");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn special_names_and_files() {
    on_both(|node| {
        assert_eq!(errno(fs::create_dir(node.path(".ks"))), libc::EPERM);
        assert_eq!(errno(fs::write(node.path(".ksx"), b"")), libc::EPERM);
        assert_eq!(errno(fs::metadata(node.path(".ks"))), libc::ENOENT);
        fs::create_dir(node.path("d")).unwrap();
        fs::write(node.path("d/.ks"), b"mine").unwrap();
        let names: Vec<_> = fs::read_dir(&node.mountpoint)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["d"]);
        let fifo = node.path("d/fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(fs::metadata(&fifo).unwrap().file_type().is_fifo());
        let again = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(node.path("d/.ks"));
        assert_eq!(errno(again), libc::EEXIST);
        let directory = OpenOptions::new().write(true).open(node.path("d"));
        assert_eq!(errno(directory), libc::EISDIR);
        let direct = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(node.path("d/.ks"));
        assert!(direct.is_ok());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn extended_attributes() {
    on_both(|node| {
        use rustix::fs::{XattrFlags, getxattr, listxattr, removexattr, setxattr};
        use rustix::io::Errno;
        let path = node.path("f");
        fs::write(&path, b"abc").unwrap();
        let get = |name: &str| {
            let mut buffer = vec![0; 256];
            let len = getxattr(&path, name, &mut buffer)?;
            buffer.truncate(len);
            Ok::<_, Errno>(buffer)
        };
        setxattr(&path, "user.one", b"1", XattrFlags::empty()).unwrap();
        assert_eq!(get("user.one").unwrap(), b"1");
        assert_eq!(get("user.two"), Err(Errno::NODATA));
        let mut names = vec![0; 256];
        let len = listxattr(&path, &mut names).unwrap();
        assert_eq!(&names[..len], b"user.one\0");
        let exists = setxattr(&path, "user.one", b"2", XattrFlags::CREATE);
        assert_eq!(exists, Err(Errno::EXIST));
        removexattr(&path, "user.one").unwrap();
        assert_eq!(get("user.one"), Err(Errno::NODATA));
        assert_eq!(removexattr(&path, "user.one"), Err(Errno::NODATA));
        let own = setxattr(&path, "user.ks.version", b"9", XattrFlags::empty());
        assert_eq!(own, Err(Errno::PERM));
        let hash = blake3::hash(b"abc").to_hex();
        assert_eq!(get("user.ks.blake3").unwrap(), hash.as_bytes());
        assert_eq!(get("user.ks.holders").unwrap(), b"node0");
        assert_eq!(get("security.capability"), Err(Errno::NODATA));
        assert_eq!(get("trusted.x"), Err(Errno::OPNOTSUPP));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_user_loses_set_user_id_by_writing() {
    on_both(|node| {
        let path = node.path("program");
        fs::write(&path, b"#!/bin/true\n").unwrap();
        fs::set_permissions(&node.mountpoint, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
        // The directories above belong to root alone.
        for above in node.mountpoint.ancestors().skip(1).take(1) {
            fs::set_permissions(above, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let written = std::process::Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .args(["sh", "-c", "printf x >> \"$0\""])
            .arg(&path)
            .status()
            .unwrap();
        assert!(written.success());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o777);
        assert_eq!(fs::read(&path).unwrap(), b"#!/bin/true\nx");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_in_the_mount_table_and_goes() {
    if !Cluster::can_mount() {
        return;
    }
    let mut cluster = Cluster::one().await;
    let mut node = cluster.nodes.remove(0);
    away(move || {
        let table = || fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = format!(" {} ", node.mountpoint.display());
        let socket = format!("ks:{}", node.plain(".ks/control").display());
        let mounted = table();
        let mounted = mounted.lines().find(|text| text.contains(&line)).unwrap();
        assert!(
            mounted.contains(" fuse.ks ") && mounted.contains(&socket),
            "{mounted}"
        );
        assert!(node.mount().is_mounted());
        let open = File::create(node.path("open")).unwrap();
        let ended = node.mount().until_ended();
        node.unmount();
        assert!(!table().contains(&line));
        drop(open);
        let runtime = tokio::runtime::Handle::current();
        let ended = runtime.block_on(async {
            tokio::time::timeout(std::time::Duration::from_secs(10), ended).await
        });
        ended.expect("whoever waits for the mount's end is told");
        // A node that is gone leaves a dead mount behind only when it is killed; an empty directory is no obstacle.
        ks_fs::mount::prepare(&node.mountpoint).unwrap();
    })
    .await;
}

/// truncate(2), without a handle.
fn cut(path: &Path, size: i64) {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: a path that lives through the call.
    let done = unsafe { libc::truncate(path.as_ptr(), size) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_mount_stays_for_its_successor_and_other_things_are_not_hidden() {
    if !Cluster::can_mount() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("ks");
    fs::create_dir(&path).unwrap();
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&device);
    let data = format!("fd={fd},rootmode=40000,user_id=0,group_id=0");
    let data = std::ffi::CString::new(data).unwrap();
    let flags = rustix::mount::MountFlags::NOSUID;
    let socket = home.path().join("control");
    let source = format!("ks:{}", socket.display());
    rustix::mount::mount(source, &path, "fuse.ks", flags, Some(data.as_c_str())).unwrap();
    let listening = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let lives = ks_fs::mount::prepare(&path);
    assert!(
        matches!(lives, Err(ks_fs::mount::MountError::AlreadyMounted(_))),
        "{lives:?}"
    );
    drop((listening, device));
    fs::remove_file(&socket).unwrap();
    assert_eq!(errno(fs::metadata(&path)), libc::ENOTCONN);
    // Programs that go on get errors, and do not write into the bare directory, until the new mount takes its place.
    ks_fs::mount::prepare(&path).unwrap();
    assert_eq!(errno(fs::metadata(&path)), libc::ENOTCONN);
    rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH).unwrap();
    ks_fs::mount::prepare(&path).unwrap();
    fs::write(path.join("mine"), b"").unwrap();
    let hidden = ks_fs::mount::prepare(&path);
    assert!(
        matches!(hidden, Err(ks_fs::mount::MountError::NotEmpty { .. })),
        "{hidden:?}"
    );
}
