//! The mount point before and after: what the mount table says, stale mounts, the directory itself.
//! Nothing here looks at a mounted tree: a dead one answers ENOTCONN, a hanging one never.
use super::{FS_SUBTYPE, MountError};
use std::{
    ffi::OsString,
    os::unix::{ffi::OsStringExt, net::UnixStream},
    path::{Path, PathBuf},
    process::Command,
};

/// A line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MountLine {
    pub(super) device: String,
    pub(super) mountpoint: PathBuf,
    pub(super) kind: String,
    pub(super) source: String,
}

/// Parses the table; the last line of a mount point is the one on top.
pub(super) fn parse_mount_table(table: &str) -> Vec<MountLine> {
    table.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<MountLine> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ');
    let device = left.nth(2)?.to_owned();
    let mountpoint = PathBuf::from(OsString::from_vec(unescape(left.nth(1)?)));
    let mut right = right.split(' ');
    let kind = right.next()?.to_owned();
    let source = String::from_utf8(unescape(right.next()?)).ok()?;
    Some(MountLine {
        device,
        mountpoint,
        kind,
        source,
    })
}

/// Undoes the table's octal escapes (`\040` for a space).
fn unescape(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = (bytes[at] == b'\\')
            .then(|| bytes.get(at + 1..at + 4))
            .flatten();
        let code = code.and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                at += 4;
            }
            None => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    plain
}

/// What is mounted on top of `mountpoint`, if anything.
pub(super) fn mounted_at(mountpoint: &Path) -> std::io::Result<Option<MountLine>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let found = parse_mount_table(&table);
    let on_top = found
        .into_iter()
        .rfind(|line| line.mountpoint == mountpoint);
    Ok(on_top)
}

/// The path as the mount table has it, without looking at the mount point itself (a symlink is followed).
pub(super) fn resolved(mountpoint: &Path) -> std::io::Result<PathBuf> {
    let mut absolute = std::path::absolute(mountpoint)?;
    if std::fs::symlink_metadata(&absolute).is_ok_and(|found| found.is_symlink()) {
        let target = std::fs::read_link(&absolute)?;
        absolute = std::path::absolute(absolute.with_file_name(target))?;
    }
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) if parent.exists() => Ok(parent.canonicalize()?.join(name)),
        _ => Ok(absolute),
    }
}

/// Clears a stale mount of ours (its daemon is gone), makes the directory if missing, checks that it is an empty directory.
pub fn prepare(mountpoint: &Path) -> Result<(), MountError> {
    let io = |source| MountError::Io {
        path: mountpoint.to_owned(),
        source,
    };
    let path = resolved(mountpoint).map_err(io)?;
    if let Some(line) = mounted_at(&path).map_err(io)?
        && line.kind == format!("fuse.{FS_SUBTYPE}")
    {
        if daemon_lives(&line) {
            return Err(MountError::AlreadyMounted(path));
        }
        tracing::warn!(mountpoint = %path.display(), "clearing the mount of a node that is gone");
        unmount_lazily(&path).map_err(io)?;
    }
    if std::fs::symlink_metadata(&path).is_ok_and(|found| !found.is_dir()) {
        return Err(MountError::NotADirectory(path));
    }
    std::fs::create_dir_all(&path).map_err(io)?;
    if std::fs::read_dir(&path).map_err(io)?.next().is_some() {
        return Err(MountError::NotEmpty(path));
    }
    if !Path::new("/dev/fuse").exists() {
        return Err(MountError::NoFuse);
    }
    Ok(())
}

/// Whether the node that the mount's source names answers at its control socket.
fn daemon_lives(line: &MountLine) -> bool {
    let socket = line.source.strip_prefix("ks:");
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
    fn the_mount_table_is_read_with_its_escapes() {
        let table = "36 35 98:0 / /mnt rw,noatime master:1 - ext4 /dev/root rw\n\
                     91 36 0:52 / /my\\040tree rw,nosuid - fuse.ks ks:/data/.ks/control rw,user_id=0\n\
                     broken line\n";
        let lines = parse_mount_table(table);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1].mountpoint, Path::new("/my tree"));
        assert_eq!(lines[1].device, "0:52");
        assert_eq!(lines[1].kind, "fuse.ks");
        assert_eq!(lines[1].source, "ks:/data/.ks/control");
        assert_eq!(unescape("a\\"), b"a\\");
        assert_eq!(unescape("a\\134b"), b"a\\b");
    }

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
