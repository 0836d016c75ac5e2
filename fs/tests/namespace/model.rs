//! A tree that is obviously right: what the catalog is compared with. Slow, in memory, without any of its ideas.
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A thing of the model; 0 is the root.
pub type Id = usize;

/// One operation. Directories and files are chosen by number among those that were ever made.
#[derive(Clone, Debug)]
pub enum Step {
    Create(usize, u8, bool),
    Link(usize, usize, u8),
    Unlink(usize, u8),
    Rmdir(usize, u8),
    Rename(usize, u8, usize, u8, u32),
}

pub fn steps(count: usize) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..count)
}

pub fn step() -> impl Strategy<Value = Step> {
    let dir = 0usize..12;
    let name = 0u8..4;
    prop_oneof![
        4 => (dir.clone(), name.clone(), prop::bool::ANY).prop_map(|(d, n, k)| Step::Create(d, n, k)),
        2 => (0usize..12, dir.clone(), name.clone()).prop_map(|(f, d, n)| Step::Link(f, d, n)),
        2 => (dir.clone(), name.clone()).prop_map(|(d, n)| Step::Unlink(d, n)),
        1 => (dir.clone(), name.clone()).prop_map(|(d, n)| Step::Rmdir(d, n)),
        4 => (dir.clone(), name.clone(), dir, name, prop_oneof![4 => Just(0u32), 1 => Just(1), 1 => Just(2)])
            .prop_map(|(d, n, e, m, f)| Step::Rename(d, n, e, m, f)),
    ]
}

/// The names that steps use.
pub fn name(number: u8) -> Vec<u8> {
    vec![b'a' + number]
}

#[derive(Clone, Debug)]
enum Thing {
    Directory(BTreeMap<Vec<u8>, Id>),
    File,
}

/// The tree: things are never forgotten, only unreachable.
#[derive(Clone, Debug)]
pub struct Model {
    things: Vec<Thing>,
}

/// What stands at a path: which thing, whether a directory, its link count.
pub type Shape = BTreeMap<Vec<u8>, (Id, bool, u32)>;

impl Default for Model {
    fn default() -> Self {
        Self {
            things: vec![Thing::Directory(BTreeMap::new())],
        }
    }
}

impl Model {
    /// The n-th directory ever made (the root is one).
    pub fn directory(&self, number: usize) -> Id {
        let all: Vec<Id> = (0..self.things.len())
            .filter(|id| self.is_directory(*id))
            .collect();
        all[number % all.len()]
    }
    /// The n-th file ever made.
    pub fn file(&self, number: usize) -> Option<Id> {
        let all: Vec<Id> = (0..self.things.len())
            .filter(|id| !self.is_directory(*id))
            .collect();
        (!all.is_empty()).then(|| all[number % all.len()])
    }
    /// The number the next created thing gets.
    pub fn next(&self) -> Id {
        self.things.len()
    }
    pub fn is_directory(&self, id: Id) -> bool {
        matches!(self.things[id], Thing::Directory(_))
    }
    fn names(&self, id: Id) -> &BTreeMap<Vec<u8>, Id> {
        match &self.things[id] {
            Thing::Directory(names) => names,
            Thing::File => panic!("not a directory"),
        }
    }
    fn names_mut(&mut self, id: Id) -> &mut BTreeMap<Vec<u8>, Id> {
        match &mut self.things[id] {
            Thing::Directory(names) => names,
            Thing::File => panic!("not a directory"),
        }
    }
    fn is_below(&self, id: Id, above: Id) -> bool {
        id == above
            || self.is_directory(above)
                && self
                    .names(above)
                    .values()
                    .any(|child| self.is_below(id, *child))
    }
    fn exists(&self, id: Id) -> bool {
        self.is_below(id, 0)
    }
    fn get(&self, dir: Id, name: &[u8]) -> Option<Id> {
        self.names(dir)
            .get(name)
            .copied()
            .filter(|_| self.exists(dir))
    }

    pub fn create(&mut self, dir: Id, name: &[u8], directory: bool) -> Result<Id, i32> {
        if !self.exists(dir) {
            return Err(libc::ENOENT);
        }
        if self.get(dir, name).is_some() {
            return Err(libc::EEXIST);
        }
        let id = self.next();
        self.things.push(match directory {
            true => Thing::Directory(BTreeMap::new()),
            false => Thing::File,
        });
        self.names_mut(dir).insert(name.to_vec(), id);
        Ok(id)
    }
    pub fn link(&mut self, file: Id, dir: Id, name: &[u8]) -> Result<(), i32> {
        if !self.exists(file) || !self.exists(dir) {
            return Err(libc::ENOENT);
        }
        if self.get(dir, name).is_some() {
            return Err(libc::EEXIST);
        }
        self.names_mut(dir).insert(name.to_vec(), file);
        Ok(())
    }
    pub fn unlink(&mut self, dir: Id, name: &[u8]) -> Result<(), i32> {
        match self.get(dir, name) {
            None => Err(libc::ENOENT),
            Some(id) if self.is_directory(id) => Err(libc::EISDIR),
            Some(_) => {
                self.names_mut(dir).remove(name);
                Ok(())
            }
        }
    }
    pub fn rmdir(&mut self, dir: Id, name: &[u8]) -> Result<(), i32> {
        match self.get(dir, name) {
            None => Err(libc::ENOENT),
            Some(id) if !self.is_directory(id) => Err(libc::ENOTDIR),
            Some(id) if !self.names(id).is_empty() => Err(libc::ENOTEMPTY),
            Some(_) => {
                self.names_mut(dir).remove(name);
                Ok(())
            }
        }
    }
    pub fn rename(
        &mut self,
        dir: Id,
        name: &[u8],
        to: Id,
        to_name: &[u8],
        flags: u32,
    ) -> Result<(), i32> {
        let moved = self.get(dir, name).ok_or(libc::ENOENT)?;
        if !self.exists(to) {
            return Err(libc::ENOENT);
        }
        let target = self.get(to, to_name);
        match (flags, target) {
            (1, Some(_)) => return Err(libc::EEXIST),
            (2, None) => return Err(libc::ENOENT),
            _ => {}
        }
        if target == Some(moved) {
            return Ok(());
        }
        if self.is_directory(moved) && self.is_below(to, moved) {
            return Err(libc::EINVAL);
        }
        if let (2, Some(target)) = (flags, target) {
            if self.is_directory(target) && self.is_below(dir, target) {
                return Err(libc::EINVAL);
            }
            self.names_mut(dir).insert(name.to_vec(), target);
        } else {
            match target {
                Some(target) if self.is_directory(target) => {
                    if !self.is_directory(moved) {
                        return Err(libc::EISDIR);
                    }
                    if !self.names(target).is_empty() {
                        return Err(libc::ENOTEMPTY);
                    }
                }
                Some(_) if self.is_directory(moved) => return Err(libc::ENOTDIR),
                _ => {}
            }
            self.names_mut(dir).remove(name);
        }
        self.names_mut(to).insert(to_name.to_vec(), moved);
        Ok(())
    }

    /// Everything that can be reached, by path.
    pub fn shape(&self) -> Shape {
        let mut shape = Shape::new();
        self.visit(0, &[], &mut shape);
        let mut links: BTreeMap<Id, u32> = BTreeMap::new();
        for (id, directory, _) in shape.values() {
            if !directory {
                *links.entry(*id).or_default() += 1;
            }
        }
        for (id, directory, count) in shape.values_mut() {
            *count = match directory {
                true => {
                    let children = self.names(*id).values();
                    2 + children.filter(|child| self.is_directory(**child)).count() as u32
                }
                false => links[id],
            };
        }
        shape
    }
    fn visit(&self, dir: Id, path: &[u8], shape: &mut Shape) {
        for (name, id) in self.names(dir) {
            let mut below = path.to_vec();
            below.push(b'/');
            below.extend_from_slice(name);
            shape.insert(below.clone(), (*id, self.is_directory(*id), 0));
            if self.is_directory(*id) {
                self.visit(*id, &below, shape);
            }
        }
    }
}
