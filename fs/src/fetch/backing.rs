//! Where the bytes of one content are while it is fetched: a partial file of the store, or memory for a small one, or a bounded scratch file on a node
//! that keeps nothing. When the disk is full, what comes from then on goes to bounded memory and is not kept.
//!
//! A group of zeros is not written to a partial file, which is sparse: a hole stays one. (What may stand there from before a crash was verified, and so zeros, too.)
//!
//! Always: a group is marked after its bytes have been written; a read gives bytes only if all of its groups are marked.
//! Not for: deciding what to bring (`plan`), or making the file whole (`surroundings`).
use super::budget::SmallTaken;
use super::flight::lock;
use super::group_map::GroupMap;
use super::plan::BlockMap;
use super::ranges::{Ranges, clip, intersect, total};
use super::scratch::Scratch;
use crate::store::partial::{Partial, nodes::Node};
use bytes::Bytes;
use ks_transport::blocks::GROUP_BYTES;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// Contents up to this size are gathered in memory and become a file in one go.
pub const SMALL_BYTES: u64 = 64 * 1024;
/// Bytes of a file that are kept in memory when the disk is full.
pub const OVERFLOW_BYTES: u64 = 32 * 1024 * 1024;

/// A content that is gathered in memory.
struct Small {
    /// Empty until the first bytes come.
    data: Vec<u8>,
    map: GroupMap,
    nodes: Vec<Node>,
    _room: Option<SmallTaken>,
}

impl Small {
    fn write(&mut self, offset: u64, bytes: &[u8], size: u64) {
        self.data.resize(size as usize, 0);
        let start = offset as usize;
        self.data[start..start + bytes.len()].copy_from_slice(bytes);
    }

    fn read(&self, range: &Range<u64>) -> Option<Bytes> {
        let here = self.map.missing(range.clone()).is_empty();
        here.then(|| Bytes::copy_from_slice(&self.data[range.start as usize..range.end as usize]))
    }
}

/// Where it goes first.
enum Base {
    Partial(Arc<Partial>),
    Small(Mutex<Small>),
    Scratch(Scratch),
}

/// Where written bytes went, for `mark`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Where they belong.
    Base,
    /// In memory, because the disk is full.
    Overflow,
}

/// What a read found.
pub enum Found {
    /// The bytes.
    Data(Bytes),
    /// Not all of it is here.
    Missing,
    /// It is here and has to be read from the disk: use `read_blocking` on a thread that may wait.
    OnDisk,
}

/// A whole content, ready to become a file.
pub enum WholeCopy {
    /// A partial file that has everything.
    Partial(Arc<Partial>),
    /// The bytes and the tree's nodes.
    Bytes(Vec<u8>, Vec<Node>),
}

/// The bytes of one content.
pub struct Backing {
    size: u64,
    base: Base,
    overflow: OnceLock<Scratch>,
    disk_full: AtomicBool,
    /// The partial file was empty when it was opened: what it has was written just now and is in the page cache.
    fresh: bool,
}

impl Backing {
    /// In a partial file of the store.
    pub fn partial(partial: Arc<Partial>) -> Self {
        let (size, fresh) = (partial.key().size, partial.had_bytes() == 0);
        Self::new(size, Base::Partial(partial), fresh)
    }

    /// In memory until it is whole, which `room` was taken for.
    pub fn small(size: u64, room: Option<SmallTaken>) -> Self {
        let small = Small {
            data: Vec::new(),
            map: GroupMap::new(size),
            nodes: Vec::new(),
            _room: room,
        };
        Self::new(size, Base::Small(Mutex::new(small)), true)
    }

    /// In a scratch file; never kept.
    pub fn scratch(size: u64, scratch: Scratch) -> Self {
        Self::new(size, Base::Scratch(scratch), true)
    }

    fn new(size: u64, base: Base, fresh: bool) -> Self {
        Self {
            size,
            base,
            overflow: OnceLock::new(),
            disk_full: AtomicBool::new(false),
            fresh,
        }
    }

    /// Bytes that are here.
    pub fn had_bytes(&self) -> u64 {
        match &self.base {
            Base::Partial(partial) => partial.had_bytes(),
            Base::Small(small) => lock(small).map.had_bytes(),
            Base::Scratch(scratch) => scratch.had_bytes(),
        }
    }

    /// Whether all of it is here.
    pub fn is_whole(&self) -> bool {
        match &self.base {
            Base::Partial(partial) => partial.is_whole(),
            Base::Small(small) => lock(small).map.is_whole(),
            Base::Scratch(scratch) => scratch.is_whole(),
        }
    }

    /// The partial file, where there is one.
    pub fn as_partial(&self) -> Option<&Arc<Partial>> {
        match &self.base {
            Base::Partial(partial) => Some(partial),
            Base::Small(_) | Base::Scratch(_) => None,
        }
    }

    /// Whether the disk was found full.
    pub fn is_disk_full(&self) -> bool {
        self.disk_full.load(Ordering::Relaxed)
    }

    /// What comes from now on is not kept.
    pub fn set_disk_full(&self) {
        self.disk_full.store(true, Ordering::Relaxed);
    }

    /// The whole content, if it is one that can be kept.
    pub fn whole_copy(&self) -> io::Result<Option<WholeCopy>> {
        if !self.is_whole() {
            return Ok(None);
        }
        match &self.base {
            Base::Partial(partial) => {
                self.flush_nodes()?;
                Ok(Some(WholeCopy::Partial(partial.clone())))
            }
            Base::Small(small) => {
                let small = lock(small);
                Ok(Some(WholeCopy::Bytes(
                    small.data.clone(),
                    small.nodes.clone(),
                )))
            }
            Base::Scratch(_) => Ok(None),
        }
    }

    /// Writes verified bytes.
    pub fn write(&self, offset: u64, data: &[u8]) -> io::Result<Place> {
        match &self.base {
            Base::Partial(partial) if !self.is_disk_full() => {
                match write_sparse(partial.data_file(), offset, data, self.size) {
                    Err(error) if is_full(&error) => {}
                    result => return result.map(|()| Place::Base),
                }
            }
            Base::Partial(_) => {}
            Base::Small(small) => {
                lock(small).write(offset, data, self.size);
                return Ok(Place::Base);
            }
            Base::Scratch(scratch) => return scratch.write(offset, data).map(|()| Place::Base),
        }
        self.overflowing()?.write(offset, data)?;
        Ok(Place::Overflow)
    }

    /// Whole groups have been written.
    pub fn mark(&self, range: Range<u64>, place: Place) {
        match (&self.base, place) {
            (_, Place::Overflow) => {
                if let Some(overflow) = self.overflow.get() {
                    overflow.mark(range);
                }
            }
            (Base::Partial(partial), Place::Base) => partial.mark(range),
            (Base::Small(small), Place::Base) => lock(small).map.set(range, true),
            (Base::Scratch(scratch), Place::Base) => scratch.mark(range),
        }
    }

    /// A verified tree node; written together with others.
    pub fn node(&self, offset: u64, pair: &[u8; 64]) -> io::Result<()> {
        match &self.base {
            Base::Partial(partial) if !self.is_disk_full() => {
                self.unless_full(partial.add_node(offset, pair))
            }
            Base::Small(small) => {
                lock(small).nodes.push((offset, *pair));
                Ok(())
            }
            Base::Partial(_) | Base::Scratch(_) => Ok(()),
        }
    }

    /// Writes the gathered tree nodes; before the map is saved, and before the content becomes a file.
    pub fn flush_nodes(&self) -> io::Result<()> {
        match self.as_partial() {
            Some(partial) => self.unless_full(partial.flush_nodes()),
            None => Ok(()),
        }
    }

    /// Without its tree the file cannot become whole here; its readers do not mind.
    fn unless_full(&self, written: io::Result<()>) -> io::Result<()> {
        match written {
            Err(error) if is_full(&error) => self.overflowing().map(|_| ()),
            other => other,
        }
    }

    fn overflowing(&self) -> io::Result<&Scratch> {
        self.set_disk_full();
        if self.overflow.get().is_none() {
            let scratch = Scratch::in_memory(self.size, OVERFLOW_BYTES)?;
            let _ = self.overflow.set(scratch);
        }
        self.overflow
            .get()
            .ok_or_else(|| io::Error::other("no memory for what does not fit on the disk"))
    }

    /// Reads `range` if it is here and does not have to come from the disk.
    pub fn read_now(&self, range: &Range<u64>) -> io::Result<Found> {
        if let Base::Partial(partial) = &self.base
            && !self.fresh
            && partial.missing(range.clone()).is_empty()
        {
            return read_cached(partial.data_file(), range);
        }
        let read = self.read_blocking(range)?;
        Ok(read.map_or(Found::Missing, Found::Data))
    }

    /// Reads `range` if it is here; may wait for the disk.
    pub fn read_blocking(&self, range: &Range<u64>) -> io::Result<Option<Bytes>> {
        let len = (range.end - range.start) as usize;
        match &self.base {
            Base::Small(small) => Ok(lock(small).read(range)),
            Base::Scratch(scratch) => {
                let mut buffer = vec![0; len];
                let here = scratch.read_into(range.start, &mut buffer)?;
                Ok(here.then(|| Bytes::from(buffer)))
            }
            Base::Partial(partial) => {
                let gaps = clip(&partial.missing(range.clone()), range);
                if gaps.is_empty() {
                    return read_all(partial.data_file(), range).map(Some);
                }
                self.read_overflowed(partial.data_file(), range, &gaps)
            }
        }
    }

    fn read_overflowed(
        &self,
        file: &File,
        range: &Range<u64>,
        gaps: &[Range<u64>],
    ) -> io::Result<Option<Bytes>> {
        let Some(overflow) = self.overflow.get() else {
            return Ok(None);
        };
        if gaps
            .iter()
            .any(|gap| total(&overflow.missing(gap.clone())) > 0)
        {
            return Ok(None);
        }
        let mut buffer = read_all(file, range)?.to_vec();
        for gap in gaps {
            let part = (gap.start - range.start) as usize..(gap.end - range.start) as usize;
            if !overflow.read_into(gap.start, &mut buffer[part])? {
                return Ok(None);
            }
        }
        Ok(Some(Bytes::from(buffer)))
    }
}

impl BlockMap for Backing {
    fn missing(&self, range: Range<u64>) -> Ranges {
        let missing = match &self.base {
            Base::Partial(partial) => partial.missing(range),
            Base::Small(small) => lock(small).map.missing(range),
            Base::Scratch(scratch) => scratch.missing(range),
        };
        match self.overflow.get() {
            Some(overflow) if !missing.is_empty() => missing
                .iter()
                .flat_map(|gap| {
                    intersect(&overflow.missing(gap.clone()), std::slice::from_ref(gap))
                })
                .collect(),
            _ => missing,
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// Writes all but the whole groups that are zeros.
fn write_sparse(file: &File, offset: u64, data: &[u8], size: u64) -> io::Result<()> {
    let (mut from, mut at) = (0, 0);
    while at < data.len() {
        let here = offset + at as u64;
        let group_end = (here - here % GROUP_BYTES + GROUP_BYTES).min(size);
        let next = data.len().min((group_end - offset) as usize);
        let is_whole = here.is_multiple_of(GROUP_BYTES) && offset + next as u64 == group_end;
        if is_whole && is_zeros(&data[at..next]) {
            if from < at {
                file.write_all_at(&data[from..at], offset + from as u64)?;
            }
            from = next;
        }
        at = next;
    }
    match from < data.len() {
        true => file.write_all_at(&data[from..], offset + from as u64),
        false => Ok(()),
    }
}

/// Ends at the first byte or so that is not zero.
fn is_zeros(data: &[u8]) -> bool {
    let any = |part: &[u8]| part.iter().fold(0, |any, byte| any | byte);
    data.chunks(64).all(|part| any(part) == 0)
}

/// Reads without clearing the buffer first.
fn read_all(file: &File, range: &Range<u64>) -> io::Result<Bytes> {
    let len = (range.end - range.start) as usize;
    let mut buffer: Vec<u8> = Vec::with_capacity(len);
    while buffer.len() < len {
        let offset = range.start + buffer.len() as u64;
        let spare = rustix::buffer::spare_capacity(&mut buffer);
        match rustix::io::pread(file, spare, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    buffer.truncate(len);
    Ok(Bytes::from(buffer))
}

/// Reads from the page cache only.
fn read_cached(file: &File, range: &Range<u64>) -> io::Result<Found> {
    let len = (range.end - range.start) as usize;
    let mut buffer = vec![0; len];
    let read = rustix::io::preadv2(
        file,
        &mut [io::IoSliceMut::new(&mut buffer)],
        range.start,
        rustix::io::ReadWriteFlags::NOWAIT,
    );
    match read {
        Ok(count) if count == len => Ok(Found::Data(Bytes::from(buffer))),
        // In part or not at all in the page cache, or not supported by the file system.
        _ => Ok(Found::OnDisk),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use crate::store::partial::ContentKey;
    use proptest::prelude::*;

    const G: u64 = GROUP_BYTES;

    #[test]
    fn a_disk_that_fills_up_keeps_what_it_has_and_memory_takes_the_rest() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path(), 0).expect("a store");
        let key = ContentKey {
            ino: 5,
            version: 1,
            size: 8 * G + 100,
            hash: [3; 32],
        };
        let backing = Backing::partial(store.open_partial(&key).expect("a partial"));
        let put = |group: u64| {
            let len = G.min(key.size - group * G) as usize;
            let place = backing
                .write(group * G, &vec![group as u8; len])
                .expect("written");
            backing.mark(group * G..group * G + len as u64, place);
            place
        };
        assert_eq!([put(0), put(1)], [Place::Base; 2]);
        backing.set_disk_full();
        assert_eq!([put(2), put(8)], [Place::Overflow; 2]);
        assert_eq!(backing.missing(0..key.size), vec![3 * G..8 * G]);
        let across = backing.read_blocking(&(G - 10..3 * G)).expect("read");
        let across = across.expect("all of it is here");
        assert_eq!(across.len() as u64, 2 * G + 10);
        assert!(across[..10].iter().all(|byte| *byte == 0));
        assert!(across[10..10 + G as usize].iter().all(|byte| *byte == 1));
        assert!(across[10 + G as usize..].iter().all(|byte| *byte == 2));
        let end = backing.read_blocking(&(8 * G + 1..key.size)).expect("read");
        assert_eq!(end.as_deref(), Some(&[8u8; 99][..]));
        assert!(
            backing
                .read_blocking(&(2 * G..4 * G))
                .expect("read")
                .is_none()
        );
        assert!(!backing.is_whole());
    }

    proptest! {
        /// However the bytes come: what is read is what was written, and groups of zeros take no space.
        #[test]
        fn holes_stay_holes(
            groups in prop::collection::vec(any::<bool>(), 1..40), tail in 1u64..G,
            cuts in prop::collection::vec(1usize..3 * G as usize, 1..20),
        ) {
            let size = (groups.len() as u64 - 1) * G + tail;
            let mut content = vec![0u8; size as usize];
            for (index, _) in groups.iter().enumerate().filter(|(_, zeros)| !**zeros) {
                // One byte is enough, wherever it stands.
                let at = (index as u64 * G + (index as u64 * 7919) % G).min(size - 1);
                content[at as usize] = 7;
            }
            let file = tempfile::tempfile().expect("a file");
            file.set_len(size).expect("sparse");
            let mut at = 0;
            for cut in cuts.iter().cycle() {
                let end = (at + cut).min(content.len());
                write_sparse(&file, at as u64, &content[at..end], size).expect("written");
                at = end;
                if at == content.len() {
                    break;
                }
            }
            let mut read = vec![1; content.len()];
            file.read_exact_at(&mut read, 0).expect("read");
            prop_assert!(read == content);
        }
    }

    #[test]
    fn groups_of_zeros_take_no_space() {
        use std::os::unix::fs::MetadataExt;
        let file = tempfile::tempfile().expect("a file");
        file.set_len(64 * G).expect("sparse");
        write_sparse(&file, 0, &vec![0; 64 * G as usize], 64 * G).expect("written");
        assert_eq!(file.metadata().expect("there").blocks(), 0);
        let mut some = vec![0; 8 * G as usize];
        some[3 * G as usize] = 1;
        write_sparse(&file, 8 * G, &some, 64 * G).expect("written");
        assert_eq!(file.metadata().expect("there").blocks() * 512, G);
    }

    #[test]
    fn nodes_are_written_together_at_their_offsets() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path(), 0).expect("a store");
        let key = ContentKey {
            ino: 5,
            version: 1,
            size: 100 * G,
            hash: [3; 32],
        };
        let partial = store.open_partial(&key).expect("a partial");
        let backing = Backing::partial(partial.clone());
        for index in [3u64, 1, 2, 90, 1] {
            backing.node(index * 64, &[index as u8; 64]).expect("taken");
        }
        backing.flush_nodes().expect("written");
        let mut tree = vec![0; 99 * 64];
        partial
            .tree_file()
            .read_exact_at(&mut tree, 0)
            .expect("read");
        for index in 0..99usize {
            let expected = if [1, 2, 3, 90].contains(&index) {
                index as u8
            } else {
                0
            };
            assert!(
                tree[index * 64..][..64]
                    .iter()
                    .all(|byte| *byte == expected)
            );
        }
    }
}
