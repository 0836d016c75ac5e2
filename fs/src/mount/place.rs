//! Where a mount goes: onto the bare directory, or into the place of a stale one.
//!
//! What always holds as root: while a stale mount is replaced, no program sees the bare directory beneath it, where what it
//! writes would be lost to the tree. The new mount is put beneath the stale one, which then goes (Linux 6.5); an older kernel
//! mounts it over the stale one, which `clear_beneath` takes away when the tree is unmounted.
//! Ordinary users have the setuid helper alone, which does not mount on a dead mount: theirs is cleared first (`prepare`).
use super::FS_SUBTYPE;
use rustix::{
    fs::CWD,
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
        fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
        unmount,
    },
};
use std::{
    fs::File,
    os::fd::{AsRawFd, OwnedFd},
    os::unix::fs::MetadataExt,
    path::Path,
};

/// The type of a directory, as the kernel has it in a mode.
const DIRECTORY_MODE: u32 = 0o040_000;

/// Mounts on the bare directory. `PERM`: this user may not. Set-user-id programs and devices of other nodes are not honoured:
/// whoever can write on one node would else be root on all of them.
pub(super) fn onto_directory(
    device: &File,
    mountpoint: &Path,
    source: &str,
) -> std::io::Result<()> {
    let mode = std::fs::symlink_metadata(mountpoint)?.mode();
    let data = format!(
        "fd={},rootmode={mode:o},user_id={},group_id={},default_permissions,allow_other",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    let data = std::ffi::CString::new(data)?;
    let kind = format!("fuse.{FS_SUBTYPE}");
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount(
        source,
        mountpoint,
        kind.as_str(),
        flags,
        Some(data.as_c_str()),
    )?;
    Ok(())
}

/// Mounts in the place of a stale mount. `NOSYS`: this kernel cannot (older than 5.2); `PERM`: this user may not.
pub(super) fn for_stale(device: &File, mountpoint: &Path, source: &str) -> std::io::Result<()> {
    let mount = detached(device, source)?;
    match move_to(&mount, mountpoint, MoveMountFlags::MOVE_MOUNT_BENEATH) {
        Ok(()) => unmount(mountpoint, UnmountFlags::DETACH)?,
        // A kernel that does not know the flag, or mounts that are shared in a way that does not allow it.
        Err(Errno::INVAL) => move_to(&mount, mountpoint, MoveMountFlags::empty())?,
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

fn move_to(mount: &OwnedFd, mountpoint: &Path, how: MoveMountFlags) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | how;
    move_mount(mount, "", CWD, mountpoint, flags)
}

/// A mount that has no place yet.
fn detached(device: &File, source: &str) -> Result<OwnedFd, Errno> {
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let values = [
        ("source", source.to_owned()),
        ("subtype", FS_SUBTYPE.to_owned()),
        ("fd", device.as_raw_fd().to_string()),
        ("rootmode", format!("{DIRECTORY_MODE:o}")),
        ("user_id", rustix::process::getuid().as_raw().to_string()),
        ("group_id", rustix::process::getgid().as_raw().to_string()),
    ];
    for (key, value) in values {
        fsconfig_set_string(&context, key, value)?;
    }
    for flag in ["default_permissions", "allow_other"] {
        fsconfig_set_flag(&context, flag)?;
    }
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

#[cfg(test)]
mod tests {
    use super::super::table;
    use super::*;

    /// A mount whose daemon is gone.
    fn dead(mountpoint: &Path, source: &str) -> bool {
        let device = File::options().read(true).write(true).open("/dev/fuse");
        device.is_ok_and(|device| onto_directory(&device, mountpoint, source).is_ok())
    }

    fn sources(mountpoint: &Path) -> Vec<String> {
        let lines = table::read().unwrap().into_iter();
        let here = lines.filter(|line| line.mountpoint == mountpoint);
        here.map(|line| line.source.into_string().unwrap())
            .collect()
    }

    /// Takes all mounts away, whatever becomes of the test.
    struct Cleared<'a>(&'a Path);

    impl Drop for Cleared<'_> {
        fn drop(&mut self) {
            while unmount(self.0, UnmountFlags::DETACH).is_ok() {}
        }
    }

    #[test]
    fn a_new_mount_takes_the_place_of_a_stale_one_or_covers_it() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().canonicalize().unwrap();
        let _cleared = Cleared(&path);
        if !dead(&path, "ks:/old/control.sock") {
            eprintln!("NOT RUN: this user may not mount");
            return;
        }
        let device = || File::options().read(true).write(true).open("/dev/fuse");
        let held = device().unwrap();
        for_stale(&held, &path, "ks:/new/control.sock").unwrap();
        let found = sources(&path);
        assert_eq!(found.last().unwrap(), "ks:/new/control.sock");
        drop(held);

        // As an older kernel does it.
        let mount = detached(&device().unwrap(), "ks:/over/control.sock").unwrap();
        move_to(&mount, &path, MoveMountFlags::empty()).unwrap();
        assert_eq!(sources(&path).len(), found.len() + 1);
        assert_eq!(sources(&path).last().unwrap(), "ks:/over/control.sock");
        super::super::prepare::clear_beneath(&path);
        assert_eq!(sources(&path), Vec::<String>::new());
    }
}
