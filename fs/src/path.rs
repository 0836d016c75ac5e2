//! Paths inside the tree: bytes, relative to the root, no leading slash, no `.`/`..`; the root is empty.
use std::path::{Path, PathBuf};

/// The name in the data directory's root that belongs to the program. Never visible in the tree.
pub const STATE_DIR: &str = ".ks";

/// Whether a name in the directory `above` belongs to the program: it is never seen in the tree, nor taken into it.
pub fn is_own_name(above: &TreePath, name: &[u8]) -> bool {
    above.is_root() && name.starts_with(STATE_DIR.as_bytes())
}

/// A path inside the tree, e.g. `flights/2013-01.csv`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TreePath(Vec<u8>);

impl TreePath {
    /// The root directory's.
    pub fn root() -> Self {
        Self::default()
    }
    /// Normalises `/a//b/./c` to `a/b/c`; `None` for `..`, NUL, or a name over 255 bytes.
    pub fn new(path: &[u8]) -> Option<Self> {
        let mut parts: Vec<&[u8]> = Vec::new();
        for part in path.split(|&b| b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return None,
                name if name.len() > NAME_BYTES_MAX || name.contains(&0) => return None,
                name => parts.push(name),
            }
        }
        Some(Self(parts.join(&b'/')))
    }
    /// The names with slashes between; empty for the root.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
    /// Whether it is the root directory's.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }
    /// Its names, from the root down.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|&b| b == b'/').filter(|p| !p.is_empty())
    }
    /// The path of `name` (valid, see `check_name`) in this directory.
    pub fn join(&self, name: &[u8]) -> Self {
        let mut joined = self.0.clone();
        if !joined.is_empty() {
            joined.push(b'/');
        }
        joined.extend_from_slice(name);
        Self(joined)
    }
    /// The directory it is in and its last name; `None` for the root.
    pub fn split_last(&self) -> Option<(TreePath, &[u8])> {
        if self.is_root() {
            return None;
        }
        match self.0.iter().rposition(|&b| b == b'/') {
            Some(slash) => Some((Self(self.0[..slash].to_vec()), &self.0[slash + 1..])),
            None => Some((Self::root(), &self.0)),
        }
    }
    /// Where it is below `base`.
    pub fn under(&self, base: &Path) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        if self.is_root() {
            base.to_owned()
        } else {
            base.join(std::ffi::OsStr::from_bytes(&self.0))
        }
    }
}

/// Longest name, bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// Whether `name` can stand in a directory; else the errno: EINVAL, ENAMETOOLONG.
pub fn check_name(name: &[u8]) -> Result<(), i32> {
    match name {
        b"" | b"." | b".." => Err(libc::EINVAL),
        name if name.len() > NAME_BYTES_MAX => Err(libc::ENAMETOOLONG),
        name if name.iter().any(|&b| b == 0 || b == b'/') => Err(libc::EINVAL),
        _ => Ok(()),
    }
}

impl std::fmt::Display for TreePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "/{}", String::from_utf8_lossy(&self.0))
    }
}

/// `NAME.conflict-NODE`, cut so that it is a name; from the second attempt on with a number.
pub(crate) fn conflict_name(name: &[u8], node: &str, attempt: usize) -> Vec<u8> {
    let node: String = node
        .chars()
        .map(|c| if c == '/' || c == '\0' { '_' } else { c })
        .take(NAME_BYTES_MAX / 8)
        .collect();
    let suffix = match attempt {
        1 => format!(".conflict-{node}"),
        _ => format!(".conflict-{node}-{attempt}"),
    };
    let kept = name.len().min(NAME_BYTES_MAX - suffix.len());
    [&name[..kept], suffix.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_normalised_or_refused() {
        let path = |text: &str| TreePath::new(text.as_bytes());
        assert_eq!(path("/a//b/./c").unwrap().as_bytes(), b"a/b/c");
        assert!(path("/").unwrap().is_root());
        assert!(path("a/../b").is_none());
        assert!(path(&"x".repeat(256)).is_none());
        assert_eq!(path("a/b/c").unwrap().to_string(), "/a/b/c");
    }

    #[test]
    fn the_last_name_comes_off() {
        let path = TreePath::new(b"a/b/c").unwrap();
        let (parent, name) = path.split_last().unwrap();
        assert_eq!((parent.as_bytes(), name), (&b"a/b"[..], &b"c"[..]));
        assert_eq!(parent.join(name), path);
        let top = TreePath::new(b"top").unwrap();
        assert!(top.split_last().unwrap().0.is_root());
        assert!(TreePath::root().split_last().is_none());
    }
}
