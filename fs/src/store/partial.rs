//! A file that is here in part: a sparse file, the map of the 16 KiB groups it has, and the tree nodes seen so far.
//! Under `.ks/partial/<ino>-<version>{,.map,.tree}`. The map is written after the data it speaks of; a damaged one is thrown away.
//!
//! Always: one [`Partial`] per content in a process, however many have it open; a map on disk marks no group whose bytes and
//! hashes were not on disk before it (snapshot, sync of data and tree, then the map as a whole under its name); what a map
//! says counts only for the very content (inode, version, size and hash) it was written for.
//!
//! Not for which groups to fetch: that is `fetch`'s. Whoever writes data calls [`Partial::mark`] after it, and then
//! [`Partial::save_if_due`] now and then (not on the reactor's thread).
mod group_map;
pub(crate) mod nodes;
mod promote;

use super::{Store, StoreError, io_at, lock, state};
use crate::record::*;
use group_map::GroupMap;
use ks_transport::blocks::outboard_len;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// At most so often a map is written while its file is being fetched.
pub const SAVE_INTERVAL: Duration = Duration::from_secs(3);
/// So much of a new partial must find room on the disk (or all of it, where it is smaller); for more, ask `Store::ensure_room`.
pub const ROOM_AT_OPEN_BYTES: u64 = 16 * 1024 * 1024;
/// First byte of a map file.
const FORMAT: u8 = 1;
/// A map file ends with the BLAKE3 of what is before.
const CHECK_BYTES: usize = 32;

/// Which content: a version of a file, by its hash.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ContentKey {
    /// The file.
    pub ino: Ino,
    /// Its version.
    pub version: u64,
    /// Bytes.
    pub size: u64,
    /// BLAKE3 of the whole content.
    pub hash: Hash,
}

/// An open partial file. Methods are thread-safe; marking a range happens after its data has been written.
#[derive(Debug)]
pub struct Partial {
    key: ContentKey,
    data: Arc<File>,
    tree: Arc<File>,
    nodes: nodes::Nodes,
    path: PathBuf,
    map: Mutex<GroupMap>,
    save: Mutex<Saved>,
    /// Told of every mark: others may wait to pass on what comes.
    grown: tokio::sync::Notify,
    /// It became a plain file, or was given up: nothing more is written under its name. Held only for a rename.
    is_closed: Mutex<bool>,
}

#[derive(Debug)]
struct Saved {
    at: Instant,
    had_bytes: u64,
}

/// What a map file says.
#[derive(Serialize, Deserialize)]
struct MapFile {
    key: ContentKey,
    map: Vec<u8>,
}

impl Partial {
    /// Which content it is of.
    pub fn key(&self) -> &ContentKey {
        &self.key
    }

    /// The sparse file, open for reading and writing at offsets.
    pub fn data_file(&self) -> &Arc<File> {
        &self.data
    }

    /// The outboard so far, but for nodes that have not been flushed.
    pub fn tree_file(&self) -> &Arc<File> {
        &self.tree
    }

    /// A verified node of its hash tree, written together with others: those above a group's bytes come before the group is marked.
    pub fn add_node(&self, offset: u64, pair: &[u8; 64]) -> std::io::Result<()> {
        self.nodes.add((offset, *pair), &self.tree)
    }

    /// Writes the nodes that have come: before the map is saved, before it becomes a file, and before anybody else reads the tree.
    pub fn flush_nodes(&self) -> std::io::Result<()> {
        self.nodes.flush(&self.tree)
    }

    /// Which of `range`'s bytes are missing, as group-aligned ranges (the last one ends at the size).
    pub fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        lock(&self.map).missing(range)
    }

    /// Marks whole groups as had: those that lie wholly in `range`.
    pub fn mark(&self, range: Range<u64>) {
        lock(&self.map).mark(range);
        self.grown.notify_waiters();
    }

    /// How many of its bytes are here.
    pub fn had_bytes(&self) -> u64 {
        lock(&self.map).had_bytes()
    }

    /// Whether all of it is here.
    pub fn is_whole(&self) -> bool {
        lock(&self.map).is_whole()
    }

    /// Reads into `buffer` from `offset`, up to the content's end; returns the bytes read. The caller has made sure that nothing is `missing` there.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let room = self.key.size.saturating_sub(offset);
        let wanted = buffer
            .len()
            .min(usize::try_from(room).unwrap_or(usize::MAX));
        self.data.read_exact_at(&mut buffer[..wanted], offset)?;
        Ok(wanted)
    }

    /// Writes the map to disk (data is synced first). No-op when nothing is new since the last time, or it is a partial no more.
    pub fn save(&self) -> Result<(), StoreError> {
        let mut saved = lock(&self.save);
        // The snapshot comes first: what is marked while the data is being synced waits for the next time.
        let snapshot = lock(&self.map).clone();
        if *lock(&self.is_closed) || snapshot.had_bytes() == saved.had_bytes {
            return Ok(());
        }
        self.data.sync_data().map_err(io_at(&self.path))?;
        if outboard_len(self.key.size) > 0 {
            self.tree.sync_data().map_err(io_at(&self.path))?;
        }
        let map_path = with_suffix(&self.path, ".map");
        let temporary = state::write_beside(&map_path, &encode_map(&self.key, &snapshot))?;
        let is_closed = lock(&self.is_closed);
        if *is_closed {
            let _ = std::fs::remove_file(&temporary);
            return Ok(());
        }
        std::fs::rename(&temporary, &map_path).map_err(io_at(&map_path))?;
        drop(is_closed);
        saved.at = Instant::now();
        saved.had_bytes = snapshot.had_bytes();
        Ok(())
    }

    /// `save`, at most once in [`SAVE_INTERVAL`].
    pub fn save_if_due(&self) -> Result<(), StoreError> {
        let is_due = match self.save.try_lock() {
            Ok(saved) => saved.at.elapsed() >= SAVE_INTERVAL,
            Err(_) => false,
        };
        if is_due { self.save() } else { Ok(()) }
    }

    /// Waits until all of `ranges` is here; `false`: not within `patience`.
    pub(super) async fn has_soon(&self, ranges: &[Range<u64>], patience: Duration) -> bool {
        let wait = async {
            loop {
                let grown = self.grown.notified();
                if ranges
                    .iter()
                    .all(|range| self.missing(range.clone()).is_empty())
                {
                    return;
                }
                grown.await;
            }
        };
        tokio::time::timeout(patience, wait).await.is_ok()
    }

    fn close(&self) {
        *lock(&self.is_closed) = true;
    }
}

/// The partials of a store.
#[derive(Debug, Default)]
pub(super) struct Partials {
    /// Those that somebody has open (or had: dead ones are forgotten now and then).
    live: HashMap<(Ino, u64), Weak<Partial>>,
    /// Those that have a file, by inode and version.
    on_disk: BTreeSet<(Ino, u64)>,
}

impl Partials {
    /// What a directory of partials holds.
    pub(super) fn open(directory: &Path) -> Result<Self, StoreError> {
        let mut on_disk = BTreeSet::new();
        for entry in std::fs::read_dir(directory).map_err(io_at(directory))? {
            let entry = entry.map_err(io_at(directory))?;
            match parse_name(&entry.file_name()) {
                Some(slot) => {
                    on_disk.insert(slot);
                }
                // A temporary file of a process that was killed.
                None => std::fs::remove_file(entry.path()).map_err(io_at(&entry.path()))?,
            }
        }
        Ok(Self {
            live: HashMap::new(),
            on_disk,
        })
    }

    fn insert(&mut self, partial: &Arc<Partial>) {
        if self.live.len() == self.live.capacity() {
            self.live.retain(|_, partial| partial.strong_count() > 0);
        }
        let slot = (partial.key.ino, partial.key.version);
        self.live.insert(slot, Arc::downgrade(partial));
        self.on_disk.insert(slot);
    }

    /// Those that have a file and that nobody has open.
    pub(super) fn idle(&self) -> Vec<(Ino, u64)> {
        let slots = self.on_disk.iter().copied();
        slots.filter(|slot| self.live(*slot).is_none()).collect()
    }

    fn live(&self, slot: (Ino, u64)) -> Option<Arc<Partial>> {
        self.live.get(&slot).and_then(Weak::upgrade)
    }
}

impl Store {
    /// Opens the partial of `key`, or makes it (sparse, `NoSpace` when the disk has not the room).
    pub fn open_partial(&self, key: &ContentKey) -> Result<Arc<Partial>, StoreError> {
        let mut partials = lock(&self.partials);
        let slot = (key.ino, key.version);
        if let Some(partial) = partials.live(slot) {
            return if partial.key == *key {
                Ok(partial)
            } else {
                Err(StoreError::Mismatch {
                    path: partial.path.clone(),
                })
            };
        }
        let path = self.partial_path(key.ino, key.version);
        let partial = Arc::new(self.load_partial(key, &path)?);
        partials.insert(&partial);
        Ok(partial)
    }

    /// A block map that cannot be believed; one that is not there is nothing to speak of.
    fn note_damaged_map(&self, ino: Ino, version: u64) {
        let map = std::fs::read(with_suffix(&self.partial_path(ino, version), ".map"));
        if map.is_ok_and(|bytes| decode_map(&bytes).is_none()) {
            self.note_thrown_away(format!(
                "the block map of inode {ino}, version {version}, which was here in part,"
            ));
        }
    }

    fn load_partial(&self, key: &ContentKey, path: &Path) -> Result<Partial, StoreError> {
        let map = read_map(path).filter(|(found, _)| found == key);
        let length = std::fs::symlink_metadata(path).map(|found| found.len());
        let tree_path = with_suffix(path, ".tree");
        let tree_bytes = outboard_len(key.size);
        let is_tree_whole = tree_bytes == 0
            || std::fs::symlink_metadata(&tree_path).is_ok_and(|found| found.len() == tree_bytes);
        let map = match map {
            Some((_, map)) if length.is_ok_and(|len| len == key.size) && is_tree_whole => map,
            found => {
                if found.is_none() {
                    self.note_damaged_map(key.ino, key.version);
                }
                remove_files(path);
                GroupMap::new(key.size)
            }
        };
        let lacking = key.size - map.had_bytes();
        self.ensure_room(lacking.min(ROOM_AT_OPEN_BYTES))?;
        let data = Arc::new(open_sized(path, key.size)?);
        let tree = match tree_bytes {
            0 => self.nothing.clone(),
            _ => Arc::new(open_sized(&tree_path, tree_bytes)?),
        };
        Ok(Partial {
            key: key.clone(),
            data,
            tree,
            nodes: Default::default(),
            path: path.to_owned(),
            save: Mutex::new(Saved {
                at: Instant::now(),
                had_bytes: map.had_bytes(),
            }),
            map: Mutex::new(map),
            grown: tokio::sync::Notify::new(),
            is_closed: Mutex::new(false),
        })
    }

    /// Gives up a partial; those who have it open keep reading what it had.
    pub fn discard_partial(&self, key: &ContentKey) -> Result<(), StoreError> {
        self.discard(key.ino, key.version);
        Ok(())
    }

    pub(super) fn discard(&self, ino: Ino, version: u64) {
        let mut partials = lock(&self.partials);
        if let Some(partial) = partials.live((ino, version)) {
            partial.close();
        }
        partials.live.remove(&(ino, version));
        partials.on_disk.remove(&(ino, version));
        remove_files(&self.partial_path(ino, version));
    }

    /// Gives up the partials of `ino` that are of a version before `version` (`u64::MAX`: all of them).
    pub(super) fn discard_partials_before(&self, ino: Ino, version: u64) {
        let old: Vec<(Ino, u64)> = lock(&self.partials)
            .on_disk
            .range((ino, 0)..(ino, version))
            .copied()
            .collect();
        for (ino, version) in old {
            self.discard(ino, version);
        }
    }

    /// Partials found at start (for the catalog's holdings), each with the bytes it has. Those without a map that can be
    /// trusted have nothing and are given up.
    pub fn partials(&self) -> Vec<(ContentKey, u64)> {
        let slots: Vec<(Ino, u64)> = lock(&self.partials).on_disk.iter().copied().collect();
        let mut found = Vec::new();
        for (ino, version) in slots {
            if let Some(live) = lock(&self.partials).live((ino, version)) {
                found.push((live.key.clone(), live.had_bytes()));
                continue;
            }
            match read_map(&self.partial_path(ino, version)) {
                Some((key, map)) if (key.ino, key.version) == (ino, version) => {
                    found.push((key, map.had_bytes()));
                }
                found => {
                    if found.is_none() {
                        self.note_damaged_map(ino, version);
                    }
                    self.discard(ino, version);
                }
            }
        }
        found
    }

    /// The live partial of a content that has all of `ranges`.
    pub(super) fn partial_with(
        &self,
        ino: Ino,
        hash: &Hash,
        ranges: &[Range<u64>],
    ) -> Option<Arc<Partial>> {
        let has_all = |partial: &Partial| {
            let mut ranges = ranges.iter();
            ranges.all(|range| partial.missing(range.clone()).is_empty())
        };
        let partials = lock(&self.partials);
        let mut versions = partials.on_disk.range((ino, 0)..=(ino, u64::MAX));
        versions.find_map(|slot| {
            partials
                .live(*slot)
                .filter(|partial| partial.key.hash == *hash && has_all(partial))
        })
    }

    /// The live partial of a content, whatever it has.
    pub(super) fn partial_under_way(&self, ino: Ino, hash: &Hash) -> Option<Arc<Partial>> {
        let partials = lock(&self.partials);
        let mut versions = partials.on_disk.range((ino, 0)..=(ino, u64::MAX));
        versions.find_map(|slot| {
            partials
                .live(*slot)
                .filter(|partial| partial.key.hash == *hash)
        })
    }

    pub(super) fn live_partials(&self) -> Vec<Arc<Partial>> {
        let partials = lock(&self.partials);
        partials.live.values().filter_map(Weak::upgrade).collect()
    }

    pub(super) fn partial_path(&self, ino: Ino, version: u64) -> PathBuf {
        self.state_dir().join(format!("partial/{ino}-{version}"))
    }
}

/// `<ino>-<version>`, with or without `.map` or `.tree`; `None` for anything else.
fn parse_name(name: &OsStr) -> Option<(Ino, u64)> {
    let name = name.to_str()?;
    let stem = [".map", ".tree"]
        .iter()
        .find_map(|suffix| name.strip_suffix(suffix))
        .unwrap_or(name);
    let (ino, version) = stem.split_once('-')?;
    Some((ino.parse().ok()?, version.parse().ok()?))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The map goes first: data without a map is nothing, a map without its data would be a lie.
fn remove_files(path: &Path) {
    for path in [
        with_suffix(path, ".map"),
        with_suffix(path, ".tree"),
        path.to_owned(),
    ] {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "a partial file cannot be removed");
            }
            _ => {}
        }
    }
}

/// Opens (or makes) a sparse file of that size; what is already in it stays.
fn open_sized(path: &Path, size: u64) -> Result<File, StoreError> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(io_at(path))?;
    file.set_len(size).map_err(io_at(path))?;
    Ok(file)
}

fn encode_map(key: &ContentKey, map: &GroupMap) -> Vec<u8> {
    let file = MapFile {
        key: key.clone(),
        map: map.to_bytes(),
    };
    let mut bytes = postcard::to_extend(&file, vec![FORMAT]).expect("plain data always encodes");
    let check = *blake3::hash(&bytes).as_bytes();
    bytes.extend_from_slice(&check);
    bytes
}

/// `None`: cut off, changed, of another format, or not a map.
fn decode_map(bytes: &[u8]) -> Option<(ContentKey, GroupMap)> {
    let (body, check) = bytes.split_at_checked(bytes.len().checked_sub(CHECK_BYTES)?)?;
    if blake3::hash(body).as_bytes() != check {
        return None;
    }
    let (format, rest) = body.split_first()?;
    if *format != FORMAT {
        return None;
    }
    let file: MapFile = postcard::from_bytes(rest).ok()?;
    let map = GroupMap::from_bytes(file.key.size, &file.map)?;
    Some((file.key, map))
}

fn read_map(path: &Path) -> Option<(ContentKey, GroupMap)> {
    decode_map(&std::fs::read(with_suffix(path, ".map")).ok()?)
}

#[cfg(test)]
#[path = "partial_tests.rs"]
#[allow(clippy::single_range_in_vec_init)] // one range is meant
mod tests;
