//! Files that wait to be hashed: first come, first served; one place for each inode. Pure.
use super::Job;
use crate::record::Ino;
use std::collections::{HashMap, VecDeque};

pub(super) struct Queue {
    max: usize,
    order: VecDeque<Ino>,
    jobs: HashMap<Ino, Job>,
    /// Something did not fit.
    is_overflown: bool,
}

impl Queue {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            order: VecDeque::new(),
            jobs: HashMap::new(),
            is_overflown: false,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// A newer version takes the place of an older one of the same inode; an older one changes nothing.
    pub(super) fn push(&mut self, job: Job) {
        if let Some(queued) = self.jobs.get_mut(&job.ino) {
            if queued.version <= job.version {
                *queued = job;
            }
        } else if self.order.len() >= self.max {
            self.is_overflown = true;
        } else {
            self.order.push_back(job.ino);
            self.jobs.insert(job.ino, job);
        }
    }

    pub(super) fn pop(&mut self) -> Option<Job> {
        let ino = self.order.pop_front()?;
        self.jobs.remove(&ino)
    }

    pub(super) fn set_overflow(&mut self) {
        self.is_overflown = true;
    }

    /// Whether something did not fit since the last time this was asked.
    pub(super) fn take_overflow(&mut self) -> bool {
        std::mem::take(&mut self.is_overflown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::TreePath;
    use proptest::prelude::*;

    fn job(ino: Ino, version: u64) -> Job {
        Job {
            path: TreePath::root(),
            ino,
            version,
        }
    }

    proptest! {
        #[test]
        fn bounded_first_come_first_served_newest_version(pushes in prop::collection::vec((0u64..20, 0u64..5), 0..60)) {
            let mut queue = Queue::new(8);
            let mut model: Vec<(u64, u64)> = Vec::new();
            let mut is_overflown = false;
            for (ino, version) in pushes {
                let is_full = model.len() == 8;
                match model.iter_mut().find(|(of, _)| *of == ino) {
                    Some((_, queued)) => *queued = version.max(*queued),
                    None if is_full => is_overflown = true,
                    None => model.push((ino, version)),
                }
                queue.push(job(ino, version));
                prop_assert_eq!(queue.len(), model.len());
            }
            prop_assert_eq!(queue.take_overflow(), is_overflown);
            prop_assert!(!queue.take_overflow());
            for (ino, version) in model {
                prop_assert_eq!(queue.pop(), Some(job(ino, version)));
            }
            prop_assert_eq!(queue.pop(), None);
        }
    }
}
