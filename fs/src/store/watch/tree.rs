//! Which directory each inotify watch stands for: a name below another watch, so that renaming a directory is one change however
//! much is below it. No disk inside.
use crate::path::TreePath;
use std::collections::HashMap;

/// Longest way from a directory up to the root.
const DEPTH_MAX: usize = 2_048;

#[derive(Debug)]
struct Place {
    /// `None`: the root.
    above: Option<i32>,
    name: Box<[u8]>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tree {
    root: Option<i32>,
    places: HashMap<i32, Place>,
    names: HashMap<(i32, Box<[u8]>), i32>,
}

impl Tree {
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// The watch of the directory at a path.
    pub(super) fn find(&self, path: &TreePath) -> Option<i32> {
        let mut at = self.root?;
        for name in path.names() {
            at = *self.names.get(&(at, name.into()))?;
        }
        Some(at)
    }

    /// A watch stands for the directory at `path` from now on. `true`: it is a new watch.
    pub(super) fn put(&mut self, watch: i32, path: &TreePath) -> bool {
        let is_new = !self.remove(watch);
        let Some((above, name)) = path.split_last() else {
            self.root = Some(watch);
            let (above, name) = (None, Box::default());
            self.places.insert(watch, Place { above, name });
            return is_new;
        };
        let Some(above) = self.find(&above) else {
            return is_new;
        };
        self.names.insert((above, name.into()), watch);
        let (above, name) = (Some(above), name.into());
        self.places.insert(watch, Place { above, name });
        is_new
    }

    /// A watch is no more. `true`: it was there.
    pub(super) fn remove(&mut self, watch: i32) -> bool {
        let Some(place) = self.places.remove(&watch) else {
            return false;
        };
        if let Some(above) = place.above {
            let key = (above, place.name);
            // Another directory may have the name by now.
            if self.names.get(&key) == Some(&watch) {
                self.names.remove(&key);
            }
        }
        true
    }

    /// Where a watched directory stands; `None`: not known (any more).
    pub(super) fn path_of(&self, watch: i32) -> Option<TreePath> {
        let mut names: Vec<&[u8]> = Vec::new();
        let mut at = self.places.get(&watch)?;
        while let Some(above) = at.above {
            names.push(&at.name);
            at = self.places.get(&above)?;
            if names.len() > DEPTH_MAX {
                return None;
            }
        }
        names.reverse();
        TreePath::new(&names.join(&b'/'))
    }

    /// The watches of a directory and of all below it.
    pub(super) fn at_and_below(&self, path: &TreePath) -> Vec<i32> {
        let Some(top) = self.find(path) else {
            return Vec::new();
        };
        let is_below = |mut watch: i32| {
            for _ in 0..DEPTH_MAX {
                match self.places.get(&watch).and_then(|place| place.above) {
                    _ if watch == top => return true,
                    Some(above) => watch = above,
                    None => return false,
                }
            }
            false
        };
        let all = self.places.keys().copied();
        all.filter(|watch| is_below(*watch)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TreePath {
        TreePath::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn what_is_below_a_renamed_directory_follows() {
        let mut tree = Tree::default();
        for (watch, at) in [(1, ""), (2, "a"), (3, "a/b"), (4, "a/b/c"), (5, "d")] {
            assert!(tree.put(watch, &path(at)));
        }
        assert_eq!(tree.path_of(4), Some(path("a/b/c")));
        assert!(!tree.put(3, &path("d/moved")), "the same directory");
        assert_eq!(tree.path_of(4), Some(path("d/moved/c")));
        assert_eq!(tree.find(&path("a/b")), None);
        assert_eq!(tree.find(&path("d/moved/c")), Some(4));
        let mut below = tree.at_and_below(&path("d"));
        below.sort();
        assert_eq!(below, [3, 4, 5]);
        assert!(tree.remove(3));
        assert_eq!(tree.path_of(4), None);
        assert_eq!(tree.path_of(1), Some(TreePath::root()));
    }

    #[test]
    fn a_name_that_was_taken_over_stays_with_its_new_directory() {
        let mut tree = Tree::default();
        tree.put(1, &TreePath::root());
        tree.put(2, &path("a"));
        tree.put(3, &path("a"));
        assert!(tree.remove(2));
        assert_eq!(tree.find(&path("a")), Some(3));
    }
}
