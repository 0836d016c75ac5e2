//! The same random operations on a mounted tree and on a plain directory: the same answers, and the same trees.
#[path = "support/cluster.rs"]
mod cluster;
use cluster::{Cluster, Options, away};
use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

/// A generator from a seed (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    /// One of a few paths, so that operations meet.
    fn path(&mut self) -> PathBuf {
        let mut path = PathBuf::new();
        for _ in 0..=self.below(3) {
            path.push(["a", "b", "c", "d"][self.below(4) as usize]);
        }
        path
    }
}

#[derive(Debug, Clone)]
enum Operation {
    Write(PathBuf, u8, usize),
    WriteAt(PathBuf, u64, u8, usize),
    Append(PathBuf, u8, usize),
    Cut(PathBuf, u64),
    MakeDir(PathBuf),
    RemoveFile(PathBuf),
    RemoveDir(PathBuf),
    Rename(PathBuf, PathBuf),
    Link(PathBuf, PathBuf),
    Symlink(PathBuf, PathBuf),
    Mode(PathBuf, u32),
}

fn operation(random: &mut Random) -> Operation {
    let path = random.path();
    let (byte, len) = (random.below(256) as u8, random.below(70_000) as usize);
    match random.below(14) {
        0..=2 => Operation::Write(path, byte, len),
        3 => Operation::WriteAt(path, random.below(100_000), byte, len),
        4 => Operation::Append(path, byte, len),
        5 => Operation::Cut(path, random.below(100_000)),
        6 | 7 => Operation::MakeDir(path),
        8 => Operation::RemoveFile(path),
        9 => Operation::RemoveDir(path),
        10 | 11 => Operation::Rename(path, random.path()),
        12 => match random.below(2) {
            0 => Operation::Link(path, random.path()),
            _ => Operation::Symlink(path, random.path()),
        },
        _ => Operation::Mode(path, random.below(0o1000) as u32),
    }
}

/// Does it; the errno where it fails.
fn run(root: &Path, operation: &Operation) -> Result<(), i32> {
    let at = |path: &PathBuf| root.join(path);
    let outcome = match operation {
        Operation::Write(path, byte, len) => fs::write(at(path), vec![*byte; *len]),
        Operation::WriteAt(path, offset, byte, len) => OpenOptions::new()
            .write(true)
            .open(at(path))
            .and_then(|file| file.write_all_at(&vec![*byte; *len], *offset)),
        Operation::Append(path, byte, len) => OpenOptions::new()
            .append(true)
            .open(at(path))
            .and_then(|mut file| std::io::Write::write_all(&mut file, &vec![*byte; *len])),
        Operation::Cut(path, size) => OpenOptions::new()
            .write(true)
            .open(at(path))
            .and_then(|file| file.set_len(*size)),
        Operation::MakeDir(path) => fs::create_dir(at(path)),
        Operation::RemoveFile(path) => fs::remove_file(at(path)),
        Operation::RemoveDir(path) => fs::remove_dir(at(path)),
        Operation::Rename(from, to) => fs::rename(at(from), at(to)),
        Operation::Link(from, to) => fs::hard_link(at(from), at(to)),
        Operation::Symlink(target, path) => symlink(target, at(path)),
        Operation::Mode(path, mode) => match fs::symlink_metadata(at(path)) {
            Ok(seen) if !seen.is_symlink() => {
                fs::set_permissions(at(path), fs::Permissions::from_mode(*mode))
            }
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        },
    };
    outcome.map_err(|error| error.raw_os_error().unwrap_or(-1))
}

/// What stands at each path: kind, mode, links, and content or target.
fn tree(root: &Path, below: &Path, found: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let path = below.join(entry.unwrap().file_name());
        if path == Path::new(".ks") {
            continue;
        }
        let full = root.join(&path);
        let seen = fs::symlink_metadata(&full).unwrap();
        let (mode, links) = (seen.mode() & 0o7777, seen.nlink());
        if seen.is_dir() {
            found.insert(path.clone(), format!("directory {mode:o} {links}"));
            tree(root, &path, found);
        } else if seen.is_symlink() {
            found.insert(path, format!("symlink {:?}", fs::read_link(&full).unwrap()));
        } else {
            let data = fs::read(&full).unwrap();
            assert_eq!(data.len() as u64, seen.len(), "{path:?}: its size");
            let hash = blake3::hash(&data).to_hex();
            found.insert(path, format!("file {mode:o} {links} {} {hash}", data.len()));
        }
    }
}

fn whole_tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    tree(root, Path::new(""), &mut found);
    found
}

fn compare(mounted: &Path, plain: &Path, datadir: &Path, seed: u64, count: usize) {
    let mut random = Random(seed);
    let mut done = Vec::new();
    for step in 0..count {
        let next = operation(&mut random);
        let (ours, theirs) = (run(mounted, &next), run(plain, &next));
        done.push(next);
        let last = &done[done.len().saturating_sub(8)..];
        assert_eq!(ours, theirs, "seed {seed}, step {step}: {last:#?}");
        if step % 25 == 24 || step + 1 == count {
            let mut expected = whole_tree(plain);
            assert_eq!(
                whole_tree(mounted),
                expected,
                "seed {seed}, step {step}: {last:#?}"
            );
            // Of a file with several names, the data directory has one.
            let several: Vec<_> = expected
                .iter()
                .filter(|(_, what)| what.starts_with("file") && what.split(' ').nth(2) != Some("1"))
                .map(|(path, _)| path.clone())
                .collect();
            let mut standing = whole_tree(datadir);
            for path in several {
                expected.remove(&path);
                standing.remove(&path);
            }
            assert_eq!(
                standing, expected,
                "the data directory, seed {seed}, step {step}: {last:#?}"
            );
        }
    }
}

async fn model(passthrough: bool, seeds: std::ops::Range<u64>) {
    if !Cluster::can_mount() {
        return;
    }
    for seed in seeds {
        let options = Options {
            passthrough,
            ..Options::default()
        };
        let mut cluster = Cluster::of(1, options).await;
        let node = cluster.nodes.remove(0);
        away(move || {
            let plain = tempfile::tempdir().unwrap();
            compare(&node.mountpoint, plain.path(), &node.datadir, seed, 400);
            drop(node);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tree_is_a_directory_like_any_other() {
    model(true, 1..5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tree_is_a_directory_without_passthrough_too() {
    model(false, 11..14).await;
}
