//! The mount table, `/proc/self/mountinfo`: the one place that reads it.
//!
//! Nothing here looks at a mounted tree: a dead one answers ENOTCONN, a hanging one never. Paths are bytes, as everywhere.
use super::FS_SUBTYPE;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountLine {
    /// This mount's number.
    pub id: u64,
    /// The number of the mount that it stands on.
    pub parent: u64,
    /// `major:minor`.
    pub device: String,
    /// Where it stands.
    pub mountpoint: PathBuf,
    /// The file system's type.
    pub kind: String,
    /// What is mounted.
    pub source: OsString,
    /// The user who mounted it, where the file system says so (FUSE does).
    pub owner: Option<u32>,
}

impl MountLine {
    /// The control socket of the node whose tree this is; `None`: it is no tree of ours.
    pub fn control_socket(&self) -> Option<PathBuf> {
        if self.kind != format!("fuse.{FS_SUBTYPE}") {
            return None;
        }
        let socket = self.source.as_bytes().strip_prefix(b"ks:")?;
        Some(PathBuf::from(std::ffi::OsStr::from_bytes(socket)))
    }
}

/// The table as it is now, in the order of mounting: of several lines with one mount point the last is on top.
pub fn read() -> io::Result<Vec<MountLine>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// Reads the table's text; lines that make no sense are left out.
pub fn parse(table: &[u8]) -> Vec<MountLine> {
    let lines = table.split(|byte| *byte == b'\n');
    lines.filter_map(parse_line).collect()
}

/// Those that can be reached: nothing was mounted over them, nor over a directory above them.
pub fn reachable(table: &[MountLine]) -> Vec<&MountLine> {
    let lines = table.iter();
    lines
        .filter(|line| !is_hidden(table, line, line.id, 0))
        .collect()
}

/// What is mounted over a directory stands on the same mount as what it hides below that directory; what is mounted over a
/// mount's own root stands on that mount (and hides it from all but `seen_from`, if that is it).
fn is_hidden(table: &[MountLine], line: &MountLine, seen_from: u64, depth: usize) -> bool {
    let covers = |other: &&MountLine| {
        let on_top = other.parent == line.id && other.mountpoint == line.mountpoint;
        let above = other.parent == line.parent && line.mountpoint.starts_with(&other.mountpoint);
        other.id != line.id && other.id != seen_from && (on_top || above)
    };
    if table.iter().any(|other| covers(&other)) {
        return true;
    }
    let parent = table.iter().find(|other| other.id == line.parent);
    // The root may be named as its own parent.
    let parent = parent.filter(|parent| parent.id != line.id && depth < table.len());
    parent.is_some_and(|parent| is_hidden(table, parent, line.id, depth + 1))
}

fn parse_line(line: &[u8]) -> Option<MountLine> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let text = |field: &[u8]| String::from_utf8(field.to_vec()).ok();
    Some(MountLine {
        id: text(fields.first()?)?.parse().ok()?,
        parent: text(fields.get(1)?)?.parse().ok()?,
        device: text(fields.get(2)?)?,
        mountpoint: unescape(fields.get(4)?).into(),
        kind: text(fields.get(dash + 1)?)?,
        source: unescape(fields.get(dash + 2)?),
        owner: fields.get(dash + 3).and_then(|options| {
            let mut options = options.split(|byte| *byte == b',');
            let owner = options.find_map(|option| option.strip_prefix(b"user_id="))?;
            text(owner)?.parse().ok()
        }),
    })
}

/// Undoes the table's octal escapes (`\040` for a space).
fn unescape(field: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|digits| byte == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        rest = match octal {
            Some(digits) => {
                let value = digits
                    .iter()
                    .fold(0u32, |value, digit| value * 8 + u32::from(digit - b'0'));
                plain.push(value as u8);
                &tail[3..]
            }
            None => {
                plain.push(byte);
                tail
            }
        };
    }
    OsString::from_vec(plain)
}

/// What is mounted on top of `mountpoint`, if anything.
pub(super) fn mounted_at(mountpoint: &Path) -> io::Result<Option<MountLine>> {
    Ok(read()?
        .into_iter()
        .rfind(|line| line.mountpoint == mountpoint))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"36 35 98:0 / /mnt rw,noatime master:1 - ext4 /dev/root rw\n\
        91 36 0:52 / /my\\040tree rw,nosuid - fuse.ks ks:/data/with\\040space/.ks/control.sock rw,user_id=0\n\
        broken line\n\
        98 28 0:49 / /other rw - fuse.sshfs ks:/x rw\n";

    #[test]
    fn the_table_is_read_with_its_escapes() {
        let lines = parse(TABLE);
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[1].mountpoint, Path::new("/my tree"));
        assert_eq!((lines[1].device.as_str(), lines[1].id), ("0:52", 91));
        assert_eq!((lines[0].owner, lines[1].owner), (None, Some(0)));
        let socket = Path::new("/data/with space/.ks/control.sock");
        assert_eq!(lines[1].control_socket().as_deref(), Some(socket));
        assert_eq!(
            lines[2].control_socket(),
            None,
            "another program's file system"
        );
        assert_eq!(unescape(b"a\\"), "a\\");
        assert_eq!(unescape(b"a\\134b"), "a\\b");
    }

    #[test]
    fn what_something_else_was_mounted_over_cannot_be_reached() {
        let table = b"1 0 8:1 / / rw - ext4 /dev/root rw\n\
            20 1 0:50 / /ks rw - fuse.ks ks:/a rw\n\
            21 20 0:51 / /ks rw - fuse.ks ks:/b rw\n\
            30 1 0:52 / /mnt/ks rw - fuse.ks ks:/c rw\n\
            31 1 0:53 / /mnt rw - tmpfs tmpfs rw\n\
            32 1 0:54 / /mnt2 rw - fuse.ks ks:/d rw\n";
        let lines = parse(table);
        let ids: Vec<u64> = reachable(&lines).iter().map(|line| line.id).collect();
        assert_eq!(ids, [1, 21, 31, 32]);
    }
}
