//! How far the event stream has been applied: `.ks/events`.
//!
//! The position is an extended attribute of that (empty) file, because a journalling file system keeps the order of changes of
//! names and attributes: after a crash of the machine the position is never ahead of the renames it speaks of. Where it is
//! behind, events are applied again, which does no harm; so an event that changes nothing here is noted in memory first. Belongs to one catalog; another one's is nobody's position.
use super::super::{StoreError, io_at};
use crate::catalog::EventId;
use rustix::fs::XattrFlags;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const ATTRIBUTE: &str = "user.ks.position";
/// Cluster, milliseconds, sequence: little-endian 64-bit numbers.
const BYTES: usize = 24;
/// Events without an effect here after which the position is written all the same.
const UNWRITTEN_MAX: usize = 256;

pub(super) struct PositionFile {
    file: File,
    path: PathBuf,
    cluster: u64,
    /// Positions noted since the last one that was written, and the last of them.
    unwritten: usize,
    noted: EventId,
}

impl PositionFile {
    pub(super) fn open(state_dir: &Path, cluster: u64) -> Result<Self, StoreError> {
        let path = state_dir.join("events");
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_at(&path))?;
        Ok(Self {
            file,
            path,
            cluster,
            unwritten: 0,
            noted: EventId::default(),
        })
    }

    /// `None`: none for this catalog.
    pub(super) fn read(&self) -> Option<EventId> {
        let mut bytes = [0u8; BYTES];
        let length = rustix::fs::fgetxattr(&self.file, ATTRIBUTE, &mut bytes[..]).ok()?;
        let number = |at: usize| Some(u64::from_le_bytes(bytes[at..at + 8].try_into().ok()?));
        (length == BYTES && number(0)? == self.cluster).then_some(EventId(number(8)?, number(16)?))
    }

    pub(super) fn write(&mut self, position: EventId) -> Result<(), StoreError> {
        let numbers = [self.cluster, position.0, position.1];
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.unwritten = 0;
        rustix::fs::fsetxattr(&self.file, ATTRIBUTE, &bytes, XattrFlags::empty())
            .map_err(|error| io_at(&self.path)(error.into()))
    }

    /// As `write`, for an event that changed nothing here: written with one of the next, or after `UNWRITTEN_MAX` of them.
    pub(super) fn note(&mut self, position: EventId) -> Result<(), StoreError> {
        self.unwritten += 1;
        self.noted = position;
        match self.unwritten {
            UNWRITTEN_MAX => self.write(position),
            _ => Ok(()),
        }
    }

    /// Writes what was only noted.
    pub(super) fn finish(&mut self) -> Result<(), StoreError> {
        match self.unwritten {
            0 => Ok(()),
            _ => self.write(self.noted),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_kept_for_its_catalog() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = PositionFile::open(directory.path(), 5).unwrap();
        assert_eq!(file.read(), None);
        file.write(EventId(3, 4)).unwrap();
        file.write(EventId(3, 5)).unwrap();
        drop(file);
        let again = PositionFile::open(directory.path(), 5).unwrap();
        assert_eq!(again.read(), Some(EventId(3, 5)));
        let mut noted = PositionFile::open(directory.path(), 5).unwrap();
        for sequence in 6..6 + UNWRITTEN_MAX as u64 {
            noted.note(EventId(3, sequence)).unwrap();
        }
        let written = EventId(3, 5 + UNWRITTEN_MAX as u64);
        assert_eq!(noted.read(), Some(written));
        noted.note(EventId(4, 0)).unwrap();
        assert_eq!(noted.read(), Some(written));
        noted.finish().unwrap();
        assert_eq!(noted.read(), Some(EventId(4, 0)));
        let other = PositionFile::open(directory.path(), 6).unwrap();
        assert_eq!(other.read(), None);
    }
}
