//! The cache against simulations: two clients and a store, with answers and pushes that take their time.
use super::*;
use crate::record::{Inode, Kind, NodeId};
use proptest::prelude::*;
use std::collections::VecDeque;

fn record(size: u64) -> Record {
    Record::new(Inode {
        kind: Kind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        rdev: 0,
        nlink: 1,
        size,
        atime: 0,
        mtime: 0,
        ctime: 0,
        parent: 1,
        name: b"f".to_vec(),
        target: vec![],
        xattrs: BTreeMap::new(),
        version: 1,
        epoch: 0,
        home: NodeId::NONE,
        blake3: None,
        md5: None,
    })
}

#[test]
fn an_answer_that_raced_with_a_change_is_not_kept() {
    let mut cache = Cache::default();
    let ticket = cache.ticket();
    cache.invalidate(Place::Inode(7));
    cache.put_inode(ticket, 7, record(1));
    cache.put_inode(ticket, 8, record(1));
    cache.release(ticket);
    assert!(cache.inode(7).is_none());
    assert!(cache.inode(8).is_some());
    let ticket = cache.ticket();
    cache.put_inode(ticket, 7, record(2));
    cache.release(ticket);
    assert!(cache.inode(7).is_some());
}

#[test]
fn a_reset_ends_all_tickets() {
    let mut cache = Cache::default();
    let ticket = cache.ticket();
    cache.reset();
    cache.put_inode(ticket, 7, record(1));
    cache.release(ticket);
    assert!(cache.inode(7).is_none());
}

#[test]
fn many_changes_during_a_read_are_bounded_and_safe() {
    let mut cache = Cache::default();
    let ticket = cache.ticket();
    cache.invalidate(Place::Inode(7));
    for ino in 0..(RECENT_MAX as u64 + 10) {
        cache.invalidate(Place::Directory(ino));
    }
    assert!(cache.recent.len() <= RECENT_MAX);
    cache.put_inode(ticket, 7, record(1));
    cache.release(ticket);
    assert!(cache.inode(7).is_none());
    assert!(cache.recent.is_empty());
}

#[test]
fn own_changes_renew_what_nobody_else_touched() {
    let mut cache = Cache::default();
    let ticket = cache.ticket();
    cache.invalidate(Place::Inode(8));
    let own = cache.own_change(ticket, &[Place::Inode(7), Place::Inode(8)]);
    own.put_inode(&mut cache, 7, record(1));
    own.put_inode(&mut cache, 8, record(1));
    cache.release(ticket);
    assert!(cache.inode(7).is_some());
    assert!(cache.inode(8).is_none());
}

#[test]
fn a_whole_directory_is_listed_and_a_partial_one_is_not() {
    let mut cache = Cache::default();
    let meta = DirectoryMeta {
        time: 1,
        subdirectories: 0,
    };
    let entry = Entry {
        ino: 9,
        kind: Kind::File,
    };
    let ticket = cache.ticket();
    cache.put_entry(ticket, 1, b"a", entry);
    assert_eq!(cache.entry(1, b"a"), Some(entry));
    assert!(cache.names(1).is_none());
    cache.put_names(ticket, 1, meta, [(&b"b"[..], entry)].into_iter());
    cache.release(ticket);
    assert_eq!(cache.names(1).unwrap(), vec![(b"b".to_vec(), entry)]);
    assert_eq!(cache.meta(1), Some(meta));
    cache.invalidate(Place::Directory(1));
    assert!(cache.names(1).is_none() && cache.meta(1).is_none());
}

/// One client of the simulation: its cache, and what is on its way to it, in order.
struct Client {
    cache: Cache,
    inbox: VecDeque<Arriving>,
    /// Answers that came out of the connection, waiting for their task to run.
    pending: Vec<(Ticket, Reply)>,
}

enum Arriving {
    Push(Ino),
    Answer(Ticket, Reply),
}

#[derive(Clone, Copy)]
enum Reply {
    Read(Ino, u64),
    Written(Ino, u64),
}

#[derive(Clone, Debug)]
enum Step {
    /// Client asks for a key; the store answers with what it has at that time.
    Read(usize, Ino),
    /// Client writes a key: the other is pushed to, itself not (NOLOOP).
    Write(usize, Ino),
    /// The client's connection delivers the next thing.
    Deliver(usize),
    /// One of the client's tasks runs with its answer.
    Run(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let client = 0usize..2;
    let key = 0u64..3;
    prop_oneof![
        (client.clone(), key.clone()).prop_map(|(c, k)| Step::Read(c, k)),
        (client.clone(), key).prop_map(|(c, k)| Step::Write(c, k)),
        client.clone().prop_map(Step::Deliver),
        (client, 0usize..8).prop_map(|(c, n)| Step::Run(c, n)),
    ]
}

impl Client {
    fn deliver(&mut self) -> bool {
        match self.inbox.pop_front() {
            Some(Arriving::Push(ino)) => self.cache.invalidate(Place::Inode(ino)),
            Some(Arriving::Answer(ticket, reply)) => self.pending.push((ticket, reply)),
            None => return false,
        }
        true
    }
    fn run(&mut self, index: usize) -> bool {
        if self.pending.is_empty() {
            return false;
        }
        let (ticket, reply) = self.pending.remove(index % self.pending.len());
        match reply {
            Reply::Read(ino, value) => self.cache.put_inode(ticket, ino, record(value)),
            Reply::Written(ino, value) => {
                let own = self.cache.own_change(ticket, &[Place::Inode(ino)]);
                own.put_inode(&mut self.cache, ino, record(value));
            }
        }
        self.cache.release(ticket);
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    /// However answers, pushes and tasks interleave: once all has arrived, nothing old is remembered.
    #[test]
    fn when_all_has_arrived_the_caches_are_right(steps in prop::collection::vec(step(), 1..60)) {
        let mut store: HashMap<Ino, u64> = (0..3).map(|ino| (ino, 0)).collect();
        let mut version = 0;
        let mut clients: Vec<Client> = (0..2)
            .map(|_| Client { cache: Cache::default(), inbox: VecDeque::new(), pending: vec![] })
            .collect();
        for step in steps {
            match step {
                Step::Read(client, ino) => {
                    let ticket = clients[client].cache.ticket();
                    let answer = Arriving::Answer(ticket, Reply::Read(ino, store[&ino]));
                    clients[client].inbox.push_back(answer);
                }
                Step::Write(client, ino) => {
                    version += 1;
                    store.insert(ino, version);
                    let ticket = clients[client].cache.ticket();
                    let answer = Arriving::Answer(ticket, Reply::Written(ino, version));
                    clients[client].inbox.push_back(answer);
                    clients[1 - client].inbox.push_back(Arriving::Push(ino));
                }
                Step::Deliver(client) => { clients[client].deliver(); }
                Step::Run(client, index) => { clients[client].run(index); }
            }
        }
        for client in &mut clients {
            while client.deliver() {}
            while client.run(0) {}
            prop_assert!(client.cache.tickets.is_empty() && client.cache.recent.is_empty());
            for (ino, value) in &store {
                if let Some(kept) = client.cache.inode(*ino) {
                    prop_assert_eq!(kept.inode.size, *value);
                }
            }
        }
    }
}
