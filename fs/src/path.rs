//! Paths inside the tree: bytes, relative to the root, no leading slash, no `.`/`..`; the root is empty.
use std::path::{Path, PathBuf};

/// The name in the data directory's root that belongs to the program. Never visible in the tree.
pub const STATE_DIR: &str = ".ks";

/// A path inside the tree, e.g. `flights/2013-01.csv`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TreePath(Vec<u8>);

impl TreePath {
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
                name if name.len() > 255 || name.contains(&0) => return None,
                name => parts.push(name),
            }
        }
        Some(Self(parts.join(&b'/')))
    }
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|&b| b == b'/').filter(|p| !p.is_empty())
    }
    pub fn join(&self, name: &[u8]) -> Self {
        let mut joined = self.0.clone();
        if !joined.is_empty() {
            joined.push(b'/');
        }
        joined.extend_from_slice(name);
        Self(joined)
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
impl std::fmt::Display for TreePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "/{}", String::from_utf8_lossy(&self.0))
    }
}
