//! Two nodes, each with a real mount: what one sees of the other.
#[path = "support/cluster.rs"]
mod cluster;
use cluster::{Cluster, Options, TestNode, away, eventually, pattern};
use ks_fs::path::TreePath;
use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    net::UdpSocket,
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

/// Runs a test on two mounted nodes.
async fn on_two(passthrough: bool, test: impl FnOnce(&TestNode, &TestNode) + Send + 'static) {
    if !Cluster::can_mount() {
        return;
    }
    let options = Options {
        passthrough,
        ..Options::default()
    };
    let mut cluster = Cluster::of(2, options).await;
    let nodes: Vec<_> = cluster.nodes.drain(..).collect();
    let nodes = away(move || {
        test(&nodes[0], &nodes[1]);
        nodes.iter().for_each(TestNode::await_closed);
        nodes
    })
    .await;
    away(move || drop(nodes)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_the_other_node_is_read_checked_and_kept() {
    on_two(true, |a, b| {
        let data = pattern(1, 5_000_000);
        fs::create_dir(a.path("d")).unwrap();
        fs::write(a.path("d/f"), &data).unwrap();
        assert_eq!(fs::metadata(b.path("d/f")).unwrap().len(), 5_000_000);
        assert_eq!(fs::read(b.path("d/f")).unwrap(), data);
        assert!(b.fs.counters().bytes_fetched >= 5_000_000);
        eventually("the copy is a plain file", || b.plain("d/f").exists());
        assert_eq!(fs::read(b.plain("d/f")).unwrap(), data);
        eventually("the second read is the kernel's alone", || {
            let before = b.reads();
            fs::read(b.path("d/f")).unwrap() == data && b.reads() == before
        });
        let copies = tokio::runtime::Runtime::new().unwrap();
        let path = TreePath::new(b"d/f").unwrap();
        let told = copies.block_on(a.fs.where_is(&path)).unwrap();
        assert_eq!(told.copies.len(), 2, "{told:?}");
        assert!(told.copies.iter().all(|copy| copy.current && copy.alive));
        assert!(told.blake3.is_some());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_small_read_moves_little() {
    on_two(true, |a, b| {
        fs::write(a.path("large"), pattern(2, 30_000_000)).unwrap();
        let file = File::open(b.path("large")).unwrap();
        let mut few = [0; 4096];
        file.read_exact_at(&mut few, 20_000_000).unwrap();
        assert_eq!(few, pattern(2, 30_000_000)[20_000_000..][..4096]);
        let moved = b.fs.counters().bytes_fetched;
        assert!(moved < 2_000_000, "{moved} bytes for 4096");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_the_small_files_of_a_directory_in_turn_finds_the_next_ones_here() {
    on_two(true, |a, b| {
        for directory in ["few", "many"] {
            fs::create_dir(a.path(directory)).unwrap();
            for number in 0..12 {
                let path = a.path(&format!("{directory}/{number:02}"));
                fs::write(path, pattern(number, 10_000)).unwrap();
            }
            assert_eq!(fs::read_dir(b.path(directory)).unwrap().count(), 12);
        }
        let read = |name: &str| fs::read(b.path(name)).unwrap();
        assert_eq!(read("few/00"), pattern(0, 10_000));
        assert_eq!(read("few/01"), pattern(1, 10_000));
        for number in 0..3 {
            assert_eq!(read(&format!("many/{number:02}")), pattern(number, 10_000));
        }
        for number in 3..7 {
            let copy = b.plain(&format!("many/{number:02}"));
            eventually("the next one is a copy here", || copy.exists());
            assert_eq!(fs::read(copy).unwrap(), pattern(number, 10_000));
        }
        assert!(!b.plain("many/11").exists(), "too far ahead");
        assert!(!b.plain("few/02").exists(), "two are no evidence");
        fs::write(a.path("many/05"), b"newer").unwrap();
        assert_eq!(read("many/05"), b"newer");
    })
    .await;
}

fn close_to_open(a: &TestNode, b: &TestNode) {
    for round in 0..20u8 {
        let (writer, reader) = if round % 2 == 0 { (a, b) } else { (b, a) };
        // The same size each time: only the version tells.
        let data = vec![round; 40_000];
        fs::write(writer.path("shared"), &data).unwrap();
        assert_eq!(
            fs::read(reader.path("shared")).unwrap(),
            data,
            "round {round}"
        );
        assert_eq!(
            fs::read(writer.path("shared")).unwrap(),
            data,
            "round {round}"
        );
    }
    for round in 0..20usize {
        let name = format!("new-{round}");
        fs::write(a.path(&name), pattern(round as u64, 1000 + round)).unwrap();
        assert_eq!(
            fs::read(b.path(&name)).unwrap(),
            pattern(round as u64, 1000 + round)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_closed_on_one_is_seen_by_opens_on_the_other() {
    on_two(true, close_to_open).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_closed_is_seen_without_passthrough_too() {
    on_two(false, close_to_open).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_into_a_file_of_the_other_node_go_to_its_home() {
    on_two(true, |a, b| {
        let mut data = pattern(3, 3_000_000);
        fs::write(a.path("f"), &data).unwrap();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(b.path("f"))
            .unwrap();
        file.write_all_at(&[9; 4096], 1_000_000).unwrap();
        data[1_000_000..][..4096].fill(9);
        let mut back = vec![0; 5000];
        file.read_exact_at(&mut back, 999_500).unwrap();
        assert_eq!(back, data[999_500..][..5000]);
        file.sync_all().unwrap();
        assert_eq!(fs::read(a.path("f")).unwrap(), data);
        file.set_len(2_000_000).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 2_000_000);
        drop(file);
        data.truncate(2_000_000);
        assert_eq!(fs::read(a.path("f")).unwrap(), data);
        assert_eq!(fs::read(b.path("f")).unwrap(), data);
        assert_eq!(fs::read(a.plain("f")).unwrap(), data);
        assert!(b.fs.counters().bytes_sent == 0);
        fs::write(b.path("f"), b"new").unwrap();
        assert_eq!(fs::read(a.path("f")).unwrap(), b"new");
        assert_eq!(fs::metadata(b.path("f")).unwrap().len(), 3);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_of_both_never_overlap() {
    on_two(true, |a, b| {
        fs::write(a.path("log"), b"").unwrap();
        std::thread::scope(|scope| {
            for (node, letter) in [(a, b'a'), (b, b'b')] {
                scope.spawn(move || {
                    let path = node.path("log");
                    let mut file = OpenOptions::new().append(true).open(path).unwrap();
                    for _ in 0..200 {
                        file.write_all(&[letter, letter, letter, b'\n']).unwrap();
                    }
                });
            }
        });
        let text = fs::read_to_string(b.path("log")).unwrap();
        assert_eq!(text.lines().filter(|line| *line == "aaa").count(), 200);
        assert_eq!(text.lines().filter(|line| *line == "bbb").count(), 200);
        assert_eq!(fs::read_to_string(a.path("log")).unwrap(), text);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_being_written_can_be_read_elsewhere() {
    on_two(true, |a, b| {
        let mut log = File::create(a.path("log")).unwrap();
        log.write_all(&pattern(4, 100_000)).unwrap();
        log.sync_data().unwrap();
        log.write_all(b"unpublished").unwrap();
        let seen = fs::read(b.path("log")).unwrap();
        assert_eq!(seen[..100_000], pattern(4, 100_000));
        drop(log);
        assert_eq!(fs::read(b.path("log")).unwrap().len(), 100_011);
    })
    .await;
}

/// Reads at `offset`; `None`: ESTALE.
fn read_or_stale(file: &File, buffer: &mut [u8], offset: u64) -> Option<usize> {
    match file.read_at(buffer, offset) {
        Ok(count) => Some(count),
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{error}");
            None
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_never_gets_a_mix_of_versions() {
    on_two(true, |a, b| {
        let size = 3_000_000;
        fs::write(a.path("f"), vec![1; size]).unwrap();
        eventually("it is hashed", || {
            let mut hash = [0; 64];
            rustix::fs::getxattr(b.path("f"), "user.ks.blake3", &mut hash).is_ok()
        });
        let old = File::open(b.path("f")).unwrap();
        let mut buffer = [0; 4096];
        assert_eq!(old.read_at(&mut buffer, 0).unwrap(), 4096);
        for version in 2..6u8 {
            fs::write(a.path("f"), vec![version; size + usize::from(version)]).unwrap();
            assert_eq!(
                fs::read(b.path("f")).unwrap(),
                vec![version; size + usize::from(version)]
            );
            for offset in (0..size as u64 + 4096).step_by(300_000) {
                if let Some(count) = read_or_stale(&old, &mut buffer, offset) {
                    assert!(
                        buffer[..count].iter().all(|byte| *byte == 1),
                        "a mix at {offset}"
                    );
                }
            }
        }
        eventually("the old version is stale", || {
            read_or_stale(&old, &mut buffer, 0).is_none()
        });
        let fresh = File::open(b.path("f")).unwrap();
        assert_eq!(fresh.read_at(&mut buffer, 0).unwrap(), 4096);
        assert_eq!(buffer[0], 5);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_has_read_nothing_yet_reads_what_is_published() {
    on_two(true, |a, b| {
        fs::write(a.path("log"), b"one\n").unwrap();
        let reader = File::open(b.path("log")).unwrap();
        fs::write(a.path("log"), b"two and more\n").unwrap();
        eventually("the new version is read, or none", || {
            let mut buffer = [0; 64];
            let count = read_or_stale(&reader, &mut buffer, 0);
            assert!(
                count.is_none_or(|count| b"two and more\n"[..] == buffer[..count]
                    || &buffer[..count] == b"one\n")
            );
            true
        });
        assert_eq!(fs::read(b.path("log")).unwrap(), b"two and more\n");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_through_a_mapping_after_close_is_published() {
    on_two(true, |a, b| {
        fs::write(a.path("array"), vec![0; 100_000]).unwrap();
        assert_eq!(fs::read(b.path("array")).unwrap()[70_000], 0);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(a.path("array"))
            .unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        // SAFETY: a new shared mapping of 100,000 bytes of a file that is as long; used by nobody else, then unmapped.
        unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let address = libc::mmap(
                std::ptr::null_mut(),
                100_000,
                access,
                libc::MAP_SHARED,
                fd,
                0,
            );
            assert_ne!(
                address,
                libc::MAP_FAILED,
                "{}",
                std::io::Error::last_os_error()
            );
            drop(file);
            std::slice::from_raw_parts_mut(address.cast::<u8>(), 100_000)[70_000] = 5;
            std::thread::sleep(Duration::from_millis(1500));
            std::slice::from_raw_parts_mut(address.cast::<u8>(), 100_000)[70_001] = 6;
            libc::munmap(address, 100_000);
        }
        eventually("the array is published", || {
            fs::read(b.path("array")).unwrap()[70_000..70_002] == [5, 6]
        });
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn holes_are_told_and_made_on_both() {
    on_two(true, |a, b| {
        use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
        fs::write(a.path("f"), vec![7; 1_048_576]).unwrap();
        for (node, hole) in [(a, 65_536), (b, 262_144)] {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .open(node.path("f"));
            let file = file.unwrap();
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&file, punch, hole, 65_536).unwrap();
            assert_eq!(seek(&file, SeekFrom::Data(hole)).unwrap(), hole + 65_536);
            assert_eq!(seek(&file, SeekFrom::Hole(hole - 10)).unwrap(), hole);
            let end = seek(&file, SeekFrom::Data(2_000_000));
            assert_eq!(end, Err(rustix::io::Errno::NXIO));
        }
        let mut expected = vec![7; 1_048_576];
        expected[65_536..131_072].fill(0);
        expected[262_144..327_680].fill(0);
        assert_eq!(fs::read(a.path("f")).unwrap(), expected);
        assert_eq!(fs::read(b.path("f")).unwrap(), expected);
        let file = OpenOptions::new().write(true).open(b.path("f")).unwrap();
        fallocate(&file, FallocateFlags::empty(), 1_048_576, 1000).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 1_049_576);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_change_on_both() {
    on_two(true, |a, b| {
        fs::create_dir(a.path("d")).unwrap();
        fs::write(a.path("d/f"), b"f").unwrap();
        assert_eq!(fs::read(b.path("d/f")).unwrap(), b"f");
        fs::rename(a.path("d"), a.path("e")).unwrap();
        eventually("the rename", || {
            b.path("e/f").exists() && !b.path("d").exists()
        });
        assert_eq!(fs::read(b.path("e/f")).unwrap(), b"f");
        fs::write(b.path("e/g"), b"g").unwrap();
        fs::rename(b.path("e/g"), b.path("e/f")).unwrap();
        eventually("the other content", || {
            fs::read(a.path("e/f")).is_ok_and(|data| data == b"g")
        });
        assert_eq!(fs::read(a.path("e/f")).unwrap(), b"g");
        let list = |node: &TestNode| {
            let mut names: Vec<_> = fs::read_dir(node.path("e"))
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            names.sort();
            names
        };
        assert_eq!(list(a), ["f"]);
        fs::write(a.path("e/h"), b"").unwrap();
        eventually("a new name in a listed directory", || list(b) == ["f", "h"]);
        fs::remove_file(a.path("e/f")).unwrap();
        eventually("a name is gone", || {
            !b.path("e/f").exists() && list(b) == ["h"]
        });
        fs::set_permissions(b.path("e/h"), fs::Permissions::from_mode(0o600)).unwrap();
        eventually("a mode", || {
            fs::metadata(a.path("e/h")).unwrap().mode() & 0o777 == 0o600
        });
    })
    .await;
}

/// A node whose peers hang: its address takes packets and answers none.
async fn hang(cluster: &mut Cluster, number: usize) -> UdpSocket {
    let node = &mut cluster.nodes[number];
    node.endpoint.close().await;
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut info = node.info.clone();
    info.address = silent.local_addr().unwrap().to_string();
    let catalog = node.fs.catalog();
    catalog.deregister().await.unwrap();
    catalog.register(info).await.unwrap();
    silent
}

fn await_exit(child: &mut Child, deadline: Duration) -> std::process::ExitStatus {
    let until = Instant::now() + deadline;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < until, "it still runs after {deadline:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_a_hanging_holder_can_be_killed_and_ends_by_itself() {
    if !Cluster::can_mount() {
        return;
    }
    let mut cluster = Cluster::of(2, Options::default()).await;
    let written = cluster.nodes[0].path("f");
    away(move || fs::write(written, pattern(5, 3_000_000)).unwrap()).await;
    let _silent = hang(&mut cluster, 0).await;
    let path = cluster.nodes[1].path("f");
    away(move || {
        let cat = || {
            let mut command = Command::new("cat");
            command
                .arg(&path)
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            command.spawn().unwrap()
        };
        for signal in [libc::SIGKILL, libc::SIGINT] {
            let mut reader = cat();
            std::thread::sleep(Duration::from_millis(500));
            assert!(reader.try_wait().unwrap().is_none(), "it does not wait");
            let pid = rustix::process::Pid::from_child(&reader);
            let signal = rustix::process::Signal::from_named_raw(signal).unwrap();
            rustix::process::kill_process(pid, signal).unwrap();
            await_exit(&mut reader, Duration::from_secs(1));
        }
        let begun = Instant::now();
        let failed = fs::read(&path).expect_err("no holder answers");
        assert_eq!(failed.raw_os_error(), Some(libc::EIO));
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(10), "EIO only after {took:?}");
    })
    .await;
    away(move || drop(cluster)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_goes_in_the_middle_of_a_read_ends_in_eio() {
    if !Cluster::can_mount() {
        return;
    }
    let cluster = Cluster::of(2, Options::default()).await;
    let written = cluster.nodes[0].path("f");
    away(move || fs::write(written, pattern(6, 40_000_000)).unwrap()).await;
    let path = cluster.nodes[1].path("f");
    let reader = Arc::new(away(move || File::open(path).unwrap()).await);
    let first = reader.clone();
    away(move || {
        let mut few = [0; 4096];
        first.read_exact_at(&mut few, 0).unwrap();
    })
    .await;
    cluster.nodes[0].endpoint.close().await;
    away(move || {
        let begun = Instant::now();
        let mut few = [0; 4096];
        let failed = reader
            .read_exact_at(&mut few, 35_000_000)
            .expect_err("nobody is there");
        assert_eq!(failed.raw_os_error(), Some(libc::EIO));
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "{:?}",
            begun.elapsed()
        );
    })
    .await;
    away(move || drop(cluster)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_streams_hold_no_place_for_long() {
    on_two(true, |a, b| {
        fs::write(a.path("f"), pattern(3, 100_000)).unwrap();
        assert_eq!(fs::read(b.path("f")).unwrap().len(), 100_000);
        eventually("the copy is a plain file", || b.plain("f").exists());
        let runtime = tokio::runtime::Handle::current();
        let path = TreePath::new(b"f").unwrap();
        let is_asked = || {
            let verified = runtime.block_on(a.fs.verify(&path)).unwrap();
            verified.good && verified.copies.len() == 2 && {
                let asked = |copy: &ks_fs::filesystem::CheckedCopy| copy.state == "good";
                verified.copies.iter().all(asked)
            }
        };
        eventually("both copies are looked at", is_asked);
        let pool = ks_transport::pool::PeerPool::new(a.endpoint.clone());
        let peer = pool.peer(&b.info.address);
        // More than there are places: the last question may still have had one, and whom it kept out has gone.
        let held: Vec<_> = (0..80)
            .map(|_| runtime.block_on(peer.open(ks_fs::copies::COPIES)).unwrap())
            .collect();
        eventually("all places are taken", || !is_asked());
        eventually("who asks for nothing loses its place", is_asked);
        drop(held);
    })
    .await;
}
