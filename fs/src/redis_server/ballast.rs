//! Space for the append-only file on a disk that others have filled.
//!
//! Redis refuses every change once it cannot write its append-only file, removing a file of the tree among them: nobody
//! could make room through the tree any more. So some space is kept aside in a file of its own, beside Redis's, and given
//! back a step at a time while the disk stays full: whoever filled it has met the end of it by then, and gets little of
//! what a step frees. Changes that Redis refused in between are asked for again (`redis_client`).
use rustix::fs::{FallocateFlags, fallocate, fstatvfs};
use std::{fs::File, io, path::Path, time::Duration};

/// The longest wait between two looks at the disk.
const LOOK_LATEST: Duration = Duration::from_secs(5);
/// The shortest: where a disk may be full before the next look.
const LOOK_SOONEST: Duration = Duration::from_millis(500);
/// How fast a disk is filled, in bytes a second, at most as a rule.
const FILLED_PER_SECOND: u64 = 200 * MIB;
const MIB: u64 = 1 << 20;
/// What is kept aside at most.
const BALLAST_BYTES_MAX: u64 = 32 * MIB;
/// What is kept aside of a small disk: one part in so many.
const PART_OF_DISK: u64 = 16;
/// In so many steps it is given back.
const STEPS: u64 = 8;
/// A disk with less than this may be full: file systems refuse new blocks while they still count some as free (ext4 keeps
/// up to 16 MiB), so it is tried.
const SCARCE_BYTES: u64 = 64 * MIB;
/// What has to go in, or the disk is full.
const TRIAL_BYTES: u64 = MIB;

/// What is known of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Disk {
    total_bytes: u64,
    free_bytes: u64,
}

impl Disk {
    /// What is kept aside of it.
    fn whole_ballast(self) -> u64 {
        let part = self.total_bytes / PART_OF_DISK / (STEPS * MIB / 4) * (STEPS * MIB / 4);
        part.min(BALLAST_BYTES_MAX)
    }

    /// With more free than this, what is kept aside is made whole again.
    fn roomy_bytes(self) -> u64 {
        (PART_OF_DISK * BALLAST_BYTES_MAX).min(self.total_bytes / 2)
    }

    /// How large the ballast is to be, from whether the disk is full, and its size so far.
    fn wanted(self, full: bool, ballast_bytes: u64) -> u64 {
        let whole = self.whole_ballast();
        match self.free_bytes {
            _ if full => ballast_bytes.saturating_sub((whole / STEPS).max(1)),
            free if free > self.roomy_bytes() => whole,
            _ => ballast_bytes,
        }
    }

    /// When to look again: before it can have been filled.
    fn look_after(self) -> Duration {
        let filled_after = Duration::from_millis(self.free_bytes * 1000 / FILLED_PER_SECOND);
        filled_after.clamp(LOOK_SOONEST, LOOK_LATEST)
    }
}

/// The file, and what is known of its disk.
pub(super) struct Ballast {
    file: File,
    bytes: u64,
    /// What was found last, and that it was not full.
    not_full: Option<Disk>,
}

impl Ballast {
    /// Opens or makes the file; `look` fills it.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join("ballast"))?;
        let bytes = file.metadata()?.len();
        Ok(Self {
            file,
            bytes,
            not_full: None,
        })
    }

    /// Looks at the disk, and takes or gives back. Returns when to look again.
    fn look(&mut self) -> io::Result<Duration> {
        let found = fstatvfs(&self.file)?;
        let disk = Disk {
            total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
            free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
        };
        let may_be_full = disk.free_bytes < SCARCE_BYTES && self.not_full != Some(disk);
        let full = may_be_full && !self.more_goes_in()?;
        self.not_full = (!full).then_some(disk);
        let bytes = disk.wanted(full, self.bytes);
        if bytes < self.bytes {
            self.file.set_len(bytes)?;
            tracing::error!(
                left_bytes = bytes,
                "the disk of this node's Redis is full: space that was kept aside for it is given back; remove files, or no name \
                 of the cluster's tree can change any more"
            );
        } else if bytes > self.bytes {
            fallocate(&self.file, FallocateFlags::empty(), 0, bytes)?;
        }
        self.bytes = bytes;
        Ok(disk.look_after())
    }

    fn more_goes_in(&self) -> io::Result<bool> {
        let tried = fallocate(&self.file, FallocateFlags::empty(), self.bytes, TRIAL_BYTES);
        self.file.set_len(self.bytes)?;
        match tried {
            Err(rustix::io::Errno::NOSPC) => Ok(false),
            tried => tried.map(|()| true).map_err(io::Error::from),
        }
    }
}

/// Looks now and then, for as long as the task lives.
pub(super) async fn keep(mut ballast: Ballast) {
    let mut told = false;
    loop {
        let looked = tokio::task::spawn_blocking(move || (ballast.look(), ballast)).await;
        let Ok((result, kept)) = looked else { return };
        ballast = kept;
        let look_after = *result.as_ref().unwrap_or(&LOOK_LATEST);
        match result {
            Err(ref error) if !told => {
                tracing::warn!(%error, "no space can be kept aside for Redis")
            }
            _ => {}
        }
        told = result.is_err();
        tokio::time::sleep(look_after).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn disk(total_bytes: u64, free_bytes: u64) -> Disk {
        Disk {
            total_bytes,
            free_bytes,
        }
    }

    #[test]
    fn a_full_disk_gets_it_back_a_step_at_a_time() {
        for total in [120 * MIB, GIB, 4000 * GIB] {
            let mut bytes = disk(total, total).wanted(false, 0);
            assert!(
                bytes > 0 && bytes <= total / PART_OF_DISK,
                "{total}: {bytes}"
            );
            let whole = bytes;
            for left in (0..STEPS).rev() {
                bytes = disk(total, 0).wanted(true, bytes);
                assert_eq!(bytes, left * whole / STEPS);
            }
            assert_eq!(disk(total, 0).wanted(true, 0), 0);
        }
        assert_eq!(
            disk(4000 * GIB, 4000 * GIB).wanted(false, 0),
            BALLAST_BYTES_MAX
        );
    }

    #[test]
    fn it_grows_only_where_there_is_much_room() {
        for (total, free) in [(120 * MIB, 60 * MIB), (4000 * GIB, 512 * MIB)] {
            assert_eq!(disk(total, free).wanted(false, MIB), MIB);
            assert_eq!(disk(total, 0).wanted(false, MIB), MIB);
            assert!(disk(total, free + 1).wanted(false, MIB) > MIB);
        }
    }

    #[test]
    fn a_disk_that_may_soon_be_full_is_looked_at_soon() {
        assert_eq!(disk(GIB, 0).look_after(), LOOK_SOONEST);
        assert_eq!(
            disk(GIB, 300 * MIB).look_after(),
            Duration::from_millis(1500)
        );
        assert_eq!(disk(4000 * GIB, 3000 * GIB).look_after(), LOOK_LATEST);
    }
}
