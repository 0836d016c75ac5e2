//! Space for the append-only file on a disk that others have filled.
//!
//! Redis refuses every change once it cannot write its append-only file, removing a file of the tree among them: nobody
//! could make room through the tree any more. So some space is kept aside in a file of its own, beside Redis's, and given
//! back a step at a time while the disk stays full: whoever filled it has met the end of it by then, and gets little of
//! what a step frees.
use rustix::fs::{FallocateFlags, fallocate, fstatvfs};
use std::{fs::File, io, path::Path, time::Duration};

/// Between two looks at the disk.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(5);
const MIB: u64 = 1 << 20;
/// What is kept aside.
const BALLAST_BYTES: u64 = 32 * MIB;
/// What one look gives back.
const STEP_BYTES: u64 = 4 * MIB;
/// A disk with less than this may be full: file systems refuse new blocks while they still count some as free (ext4 keeps
/// up to 16 MiB), so it is tried.
const SCARCE_BYTES: u64 = 64 * MIB;
/// What has to go in, or the disk is full.
const TRIAL_BYTES: u64 = MIB;
/// With more than this, what is kept aside is made whole again.
const ROOMY_BYTES: u64 = 16 * BALLAST_BYTES;

/// How large the ballast is to be, from the disk's free bytes, whether it is full, and its size so far.
fn wanted(free_bytes: u64, full: bool, ballast_bytes: u64) -> u64 {
    match free_bytes {
        _ if full => ballast_bytes.saturating_sub(STEP_BYTES),
        free if free > ROOMY_BYTES => BALLAST_BYTES,
        _ => ballast_bytes,
    }
}

/// The file, and what is known of its disk.
pub(super) struct Ballast {
    file: File,
    bytes: u64,
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
        Ok(Self { file, bytes })
    }

    /// Looks at the disk, and takes or gives back.
    pub(super) fn look(&mut self) -> io::Result<()> {
        let disk = fstatvfs(&self.file)?;
        let free_bytes = disk.f_bavail.saturating_mul(disk.f_frsize);
        let full = free_bytes < SCARCE_BYTES && !self.more_goes_in()?;
        let bytes = wanted(free_bytes, full, self.bytes);
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
        Ok(())
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
        match result {
            Err(ref error) if !told => {
                tracing::warn!(%error, "no space can be kept aside for Redis")
            }
            _ => {}
        }
        told = result.is_err();
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_gets_it_back_a_step_at_a_time() {
        let mut bytes = wanted(ROOMY_BYTES + 1, false, 0);
        assert_eq!(bytes, BALLAST_BYTES);
        for left in (0..BALLAST_BYTES / STEP_BYTES).rev() {
            bytes = wanted(0, true, bytes);
            assert_eq!(bytes, left * STEP_BYTES);
        }
        assert_eq!(wanted(0, true, 0), 0);
    }

    #[test]
    fn it_grows_only_where_there_is_much_room() {
        assert_eq!(wanted(ROOMY_BYTES, false, STEP_BYTES), STEP_BYTES);
        assert_eq!(wanted(0, false, STEP_BYTES), STEP_BYTES);
        assert_eq!(wanted(ROOMY_BYTES + 1, false, STEP_BYTES), BALLAST_BYTES);
    }
}
