//! The mount point before and after: stale mounts, the directory itself.
//! Nothing here looks at a mounted tree: a dead one answers ENOTCONN, a hanging one never.
use super::{
    FS_SUBTYPE, MountError,
    table::{MountLine, mounted_at},
};
use rustix::fs::Dir;
use std::{
    fs::File,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
};

/// How many of the files that would be hidden are named.
const NAMED: usize = 3;

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
/// its successor takes its place (`place`): programs that go on get errors, and do not write into the bare directory.
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
        if let Some(found) = named(&File::open(&path).map_err(io)?).map_err(io)? {
            return Err(MountError::NotEmpty { path, found });
        }
    }
    match Path::new("/dev/fuse").exists() {
        true => Ok(()),
        false => Err(MountError::NoFuse),
    }
}

/// Whether a mount of ours whose daemon is gone is there; `AlreadyMounted` where it is not gone. `own_socket`: of this very daemon,
/// which has no mount yet: what is there under its name is its predecessor's.
pub(super) fn is_stale(path: &Path, own_socket: Option<&Path>) -> Result<bool, MountError> {
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

/// Clears a stale mount where its successor cannot take its place in one step, and opens the bare directory. What a program puts
/// there until the successor is mounted is told of (`tell_of_hidden`), and no reason to stay away.
pub(super) fn clear(path: &Path) -> std::io::Result<File> {
    unmount_lazily(path)?;
    File::open(path)
}

/// See `clear`.
pub(super) fn tell_of_hidden(path: &Path, bare: &File) {
    if let Ok(Some(hidden)) = named(bare) {
        tracing::error!(
            mountpoint = %path.display(),
            hidden,
            "files stand in the bare directory beneath the mount; they are seen, and can be moved away, after ks umount"
        );
    }
}

/// Takes away what stale mounts an older kernel left beneath the mount that was unmounted now (see `place`).
pub fn clear_beneath(path: &Path) {
    while is_stale(path, None).is_ok_and(|is_stale| is_stale) {
        if let Err(error) = unmount_lazily(path) {
            tracing::warn!(mountpoint = %path.display(), %error, "a stale mount is left there");
            return;
        }
    }
}

/// What is in a directory, for people: the first names in their order, and how many more; `None`: nothing.
fn named(directory: &File) -> std::io::Result<Option<String>> {
    let entries = Dir::read_from(directory)?;
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_owned()));
    let mut names = names.collect::<Result<Vec<_>, _>>()?;
    names.retain(|name| !matches!(name.to_bytes(), b"." | b".."));
    names.sort();
    let first = names.iter().take(NAMED);
    let first: Vec<String> = first
        .map(|name| name.to_bytes().escape_ascii().to_string())
        .collect();
    let more = names.len() - first.len();
    let told = first.join(", ");
    Ok(match (names.len(), more) {
        (0, _) => None,
        (_, 0) => Some(told),
        _ => Some(format!("{told} and {more} more")),
    })
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
        for name in ["x", "y", "z\x1b", "zz"] {
            std::fs::write(path.join(name), "").unwrap();
        }
        let refused = prepare(&path).unwrap_err();
        assert!(matches!(refused, MountError::NotEmpty { .. }));
        let named = r"not an empty directory: x, y, z\x1b and 1 more would be hidden";
        assert!(refused.to_string().contains(named), "{refused}");
        assert!(matches!(
            prepare(&path.join("x")),
            Err(MountError::NotADirectory(_))
        ));
    }
}
