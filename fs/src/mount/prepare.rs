//! The mount point before and after: stale mounts, the directory itself.
//! Nothing here looks at a mounted tree: a dead one answers ENOTCONN, a hanging one never.
use super::{
    FS_SUBTYPE, MountError,
    table::{MountLine, mounted_at},
};
use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
};

/// The path as the mount table has it, without looking at the mount point itself (a symlink is followed).
pub(super) fn resolved(mountpoint: &Path) -> std::io::Result<PathBuf> {
    let mut absolute = std::path::absolute(mountpoint)?;
    // Reading a link asks nothing of a mounted tree, as looking at its attributes would: it may be dead or hang.
    if let Ok(target) = std::fs::read_link(&absolute) {
        absolute = std::path::absolute(absolute.with_file_name(target))?;
    }
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) if parent.exists() => Ok(parent.canonicalize()?.join(name)),
        _ => Ok(absolute),
    }
}

/// Makes the directory if missing, checks that it is an empty directory. A stale mount of ours (its daemon is gone) stays until
/// its successor is ready (`make_way`): programs that go on get errors, and do not write into the bare directory.
pub fn prepare(mountpoint: &Path) -> Result<(), MountError> {
    let io = |source| MountError::Io {
        path: mountpoint.to_owned(),
        source,
    };
    let path = resolved(mountpoint).map_err(io)?;
    if !is_stale(&path, None)? {
        if std::fs::symlink_metadata(&path).is_ok_and(|found| !found.is_dir()) {
            return Err(MountError::NotADirectory(path));
        }
        std::fs::create_dir_all(&path).map_err(io)?;
        if std::fs::read_dir(&path).map_err(io)?.next().is_some() {
            return Err(MountError::NotEmpty(path));
        }
    }
    match Path::new("/dev/fuse").exists() {
        true => Ok(()),
        false => Err(MountError::NoFuse),
    }
}

/// Whether a mount of ours whose daemon is gone is there; `AlreadyMounted` where it is not gone. `own_socket`: of this very daemon,
/// which has no mount yet: what is there under its name is its predecessor's.
fn is_stale(path: &Path, own_socket: Option<&Path>) -> Result<bool, MountError> {
    let line = mounted_at(path).map_err(|source| MountError::Io {
        path: path.to_owned(),
        source,
    })?;
    match line.filter(|line| line.kind == format!("fuse.{FS_SUBTYPE}")) {
        Some(line) if line.control_socket().as_deref() == own_socket => Ok(true),
        Some(line) if daemon_lives(&line) => Err(MountError::AlreadyMounted(path.to_owned())),
        found => Ok(found.is_some()),
    }
}

/// Clears a stale mount, just before the new one takes its place. What a program puts into the bare directory in that moment is
/// told of, and no reason to stay away.
pub(super) fn make_way(path: &Path, own_socket: &Path) -> Result<(), MountError> {
    if !is_stale(path, Some(own_socket))? {
        return Ok(());
    }
    tracing::warn!(mountpoint = %path.display(), "clearing the mount of a node that is gone");
    unmount_lazily(path).map_err(|source| MountError::Io {
        path: path.to_owned(),
        source,
    })?;
    let hidden = std::fs::read_dir(path).map_or(0, Iterator::count);
    if hidden > 0 {
        tracing::error!(
            mountpoint = %path.display(),
            hidden,
            "files stand in the bare directory beneath the mount; they are seen, and can be moved away, after ks umount"
        );
    }
    Ok(())
}

/// Whether the node that the mount's source names answers at its control socket.
fn daemon_lives(line: &MountLine) -> bool {
    let socket = line.control_socket();
    socket.is_some_and(|socket| UnixStream::connect(socket).is_ok())
}

/// Takes the mount out of the tree at once; who still uses it keeps it until they let go.
pub(super) fn unmount_lazily(mountpoint: &Path) -> std::io::Result<()> {
    match rustix::mount::unmount(mountpoint, rustix::mount::UnmountFlags::DETACH) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::PERM) => unmount_as_user(mountpoint),
        Err(error) => Err(error.into()),
    }
}

/// Users may unmount their own through the setuid helper alone.
fn unmount_as_user(mountpoint: &Path) -> std::io::Result<()> {
    let helper = Command::new("fusermount3")
        .args(["-u", "-z", "--"])
        .arg(mountpoint)
        .output()?;
    match helper.status.success() {
        true => Ok(()),
        false => Err(std::io::Error::other(
            String::from_utf8_lossy(&helper.stderr).trim().to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_made_and_must_be_empty() {
        if !Path::new("/dev/fuse").exists() {
            eprintln!("not run: no /dev/fuse here");
            return;
        }
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("new/ks");
        prepare(&path).unwrap();
        assert!(path.is_dir());
        std::fs::write(path.join("x"), "").unwrap();
        assert!(matches!(prepare(&path), Err(MountError::NotEmpty(_))));
        assert!(matches!(
            prepare(&path.join("x")),
            Err(MountError::NotADirectory(_))
        ));
    }
}
