//! Giving names: what the merged records say, made into directories. One node does it, when all that are there have brought what they know.
//!
//! Always: it can be begun again by any node after any step. Two inodes of one name: whoever claims it later has it (`claim`), the other one is `NAME.conflict-NODE`. What
//! stands in a directory that nobody knows, or in one that is its own ancestor, is found again in the root, under `recovered-NUMBER`.
use super::claim::{self, Claim};
use super::{BATCH, Instant, RECOVERED, Rebuilding, text};
use crate::catalog::journal::{Entry as Journaled, Stand, What};
use crate::catalog::reads::{array, bytes, damaged};
use crate::catalog::{CatalogError, now};
use crate::record::*;
use crate::redis_client::Script;
use redis::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::LazyLock;
use std::time::Duration;

static NAME: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("../name.lua")));
static UNNAMED: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("../unnamed.lua")));
static ENTER: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("../enter.lua")));
/// How often whoever leads says that it still does.
const LEADING: Duration = Duration::from_secs(2);
/// Names that are tried for something whose own is taken.
const NAMES_TRIED: usize = 100;

/// A name to be given.
#[derive(Clone, Debug)]
struct Wanted {
    ino: Ino,
    parent: Ino,
    name: Vec<u8>,
    kind: Kind,
    /// A directory's time where none is known.
    time: Time,
    /// The first link's: the record says so.
    is_first: bool,
}

impl Wanted {
    fn link(&self) -> Link {
        Link {
            parent: self.parent,
            name: self.name.clone(),
        }
    }
}

/// What is known of the tree's shape while names are given.
#[derive(Default)]
struct Shape {
    /// Every directory's parent.
    directories: HashMap<Ino, Ino>,
    /// Directories in which something stands.
    parents: HashSet<Ino>,
    last: Stand,
}

impl Shape {
    /// Directories that are needed and that nobody knows.
    fn missing(&self) -> Vec<Ino> {
        let needed = self.parents.iter().copied();
        let mut missing: Vec<Ino> = needed
            .filter(|ino| *ino != ROOT && !self.directories.contains_key(ino))
            .collect();
        missing.sort_unstable();
        missing
    }

    /// The directories of each ring that hangs nowhere.
    fn rings(&self) -> Vec<Vec<Ino>> {
        let mut settled: HashSet<Ino> = HashSet::from([ROOT]);
        let mut rings = Vec::new();
        let mut inos: Vec<Ino> = self.directories.keys().copied().collect();
        inos.sort_unstable();
        for start in inos {
            let mut way = Vec::new();
            let mut on_way = HashSet::new();
            let mut at = start;
            while !settled.contains(&at) && on_way.insert(at) {
                way.push(at);
                match self.directories.get(&at) {
                    Some(parent) => at = *parent,
                    None => break,
                }
            }
            if !settled.contains(&at) && on_way.contains(&at) && self.directories.contains_key(&at)
            {
                let from = way.iter().position(|ino| *ino == at);
                rings.push(way[from.unwrap_or(0)..].to_vec());
            }
            settled.extend(way);
        }
        rings
    }
}

/// The giving of names, under way.
pub(super) struct Naming<'r> {
    of: &'r Rebuilding<'r>,
    shape: Shape,
    led: Instant,
    conflicts: u64,
}

impl<'r> Naming<'r> {
    pub(super) fn new(of: &'r Rebuilding<'r>) -> Self {
        Self {
            of,
            shape: Shape::default(),
            led: Instant::now(),
            conflicts: 0,
        }
    }

    /// Gives all names and declares the tree whole.
    pub(super) async fn run(mut self) -> Result<(), CatalogError> {
        self.clear_names().await?;
        self.act("begin", &now().to_string()).await?;
        let mut cursor = "0".to_owned();
        loop {
            let (next, inos) = self.page(&cursor).await?;
            for batch in inos.chunks(BATCH) {
                self.name(batch).await?;
            }
            cursor = next;
            if cursor == "0" {
                break;
            }
        }
        for ino in self.shape.missing() {
            self.make_missing(ino).await?;
        }
        for ring in self.shape.rings() {
            let ino = self.stalest(&ring).await?;
            self.break_ring(ino).await?;
        }
        let Stand(ms, sequence, _) = self.shape.last;
        self.act("end", &format!("{ms}-{}", sequence.saturating_add(1)))
            .await?;
        tracing::info!(
            directories = self.shape.directories.len() + 1,
            conflicts = self.conflicts,
            "the tree is whole again"
        );
        Ok(())
    }

    async fn act(&self, act: &str, last: &str) -> Result<(), CatalogError> {
        let nothing = encode(&Event::Attributes {
            ino: ROOT,
            path: Vec::new(),
        });
        let last = if last == "0-1" { "0-0" } else { last };
        let args = [
            self.of.cluster.as_bytes(),
            act.as_bytes(),
            last.as_bytes(),
            &nothing,
        ];
        self.of.redis.script(&NAME, &[], &args).await?;
        Ok(())
    }

    /// Inodes that are known, some at a time.
    async fn page(&mut self, cursor: &str) -> Result<(String, Vec<Ino>), CatalogError> {
        self.goes_on().await?;
        let mut command = redis::cmd("HSCAN");
        command.arg(RECOVERED).arg(cursor).arg("COUNT").arg(1000);
        let answer = array(self.of.redis.run(&command).await?).ok_or_else(|| damaged(RECOVERED))?;
        let [next, fields]: [Value; 2] = answer.try_into().map_err(|_| damaged(RECOVERED))?;
        let mut fields = array(fields).ok_or_else(|| damaged(RECOVERED))?.into_iter();
        let mut inos = BTreeSet::new();
        while let (Some(field), Some(stand)) = (fields.next(), fields.next()) {
            if let Some(stand) = text(stand).and_then(|stand| Stand::from_text(&stand)) {
                self.shape.last = self.shape.last.max(stand);
            }
            inos.extend(text(field).and_then(|field| field.parse::<Ino>().ok()));
        }
        let next = text(next).ok_or_else(|| damaged(RECOVERED))?;
        Ok((next, inos.into_iter().collect()))
    }

    async fn name(&mut self, inos: &[Ino]) -> Result<(), CatalogError> {
        let records = self.records(inos).await?;
        let gone = inos.iter().filter(|ino| !records.contains_key(ino));
        self.clear(gone).await?;
        let times = self.times(&records).await?;
        let linked = records.iter().filter(|(_, inode)| inode.nlink > 1);
        let linked: Vec<Ino> = linked
            .filter(|(_, inode)| inode.kind != Kind::Directory)
            .map(|(ino, _)| *ino)
            .collect();
        let links = self.links(&linked, &records).await?;
        let mut wanted = Vec::new();
        for (ino, inode) in &records {
            if *ino == ROOT {
                continue;
            }
            let mut want = |parent, name: &[u8], is_first| {
                wanted.push(Wanted {
                    ino: *ino,
                    parent,
                    name: name.to_vec(),
                    kind: inode.kind,
                    time: times.get(ino).copied().unwrap_or(inode.mtime),
                    is_first,
                });
            };
            want(inode.parent, &inode.name, true);
            for link in links.get(ino).into_iter().flatten() {
                want(link.parent, &link.name, false);
                self.shape.parents.insert(link.parent);
            }
            self.shape.parents.insert(inode.parent);
            if inode.kind == Kind::Directory {
                self.shape.directories.insert(*ino, inode.parent);
            }
        }
        // Before names are settled, which changes records.
        for (ino, inode) in &records {
            let count = links.get(ino).map_or(0, BTreeSet::len) as u32 + 1;
            if inode.kind != Kind::Directory && inode.nlink != count {
                let nlink = count;
                self.put(
                    *ino,
                    Inode {
                        nlink,
                        ..inode.clone()
                    },
                )
                .await?;
            }
        }
        for refused in self.enter(&wanted).await? {
            self.settle(refused).await?;
        }
        Ok(())
    }

    async fn records(&self, inos: &[Ino]) -> Result<BTreeMap<Ino, Inode>, CatalogError> {
        let mut command = redis::cmd("MGET");
        for ino in inos {
            command.arg(format!("ks:i:{ino}"));
        }
        let values = array(self.of.redis.run(&command).await?).ok_or_else(|| damaged("records"))?;
        let mut records = BTreeMap::new();
        for (ino, value) in inos.iter().zip(values) {
            let Some(record) = bytes(value) else { continue };
            match decode(&record) {
                Ok(inode) => {
                    records.insert(*ino, inode);
                }
                Err(error) => tracing::error!(ino, %error, "a journaled record cannot be read"),
            }
        }
        Ok(records)
    }

    /// What belonged to inodes that are gone.
    async fn clear(&self, gone: impl Iterator<Item = &Ino>) -> Result<(), CatalogError> {
        let keys = gone.flat_map(|ino| ["d", "l", "h"].map(|kind| format!("ks:{kind}:{ino}")));
        let keys = keys.map(String::into_bytes);
        let command: Vec<Vec<u8>> = [b"UNLINK".to_vec()].into_iter().chain(keys).collect();
        match command.len() {
            1 => Ok(()),
            _ => self.write(vec![command]).await,
        }
    }

    /// The further links of these; one that became its file's own name, by somebody who has not come yet, is none any more.
    async fn links(
        &self,
        inos: &[Ino],
        records: &BTreeMap<Ino, Inode>,
    ) -> Result<BTreeMap<Ino, BTreeSet<Link>>, CatalogError> {
        let mut links = BTreeMap::new();
        if inos.is_empty() {
            return Ok(links);
        }
        let mut pipeline = redis::pipe();
        for ino in inos {
            pipeline.cmd("SMEMBERS").arg(format!("ks:links:{ino}"));
        }
        for (ino, members) in inos.iter().zip(self.of.redis.pipe(&pipeline).await?) {
            let members = match members {
                Value::Set(members) | Value::Array(members) => members,
                _ => return Err(damaged("links")),
            };
            let read = members.into_iter().filter_map(bytes);
            let read = read.filter_map(|member| Link::from_bytes(&member).ok());
            let own = |link: &Link| {
                let inode = records.get(ino);
                inode.is_some_and(|inode| (inode.parent, &inode.name) == (link.parent, &link.name))
            };
            links.insert(*ino, read.filter(|link| !own(link)).collect());
        }
        self.put_links(&links).await?;
        Ok(links)
    }

    async fn put_links(&self, links: &BTreeMap<Ino, BTreeSet<Link>>) -> Result<(), CatalogError> {
        let mut commands = Vec::new();
        for (ino, of) in links {
            let key = format!("ks:l:{ino}").into_bytes();
            commands.push(vec![b"DEL".to_vec(), key.clone()]);
            let added = of.iter().map(|link| link.to_bytes());
            commands.extend(added.map(|link| vec![b"SADD".to_vec(), key.clone(), link]));
        }
        self.write(commands).await
    }

    /// When the entries of these directories changed, as far as it was told.
    async fn times(
        &self,
        records: &BTreeMap<Ino, Inode>,
    ) -> Result<HashMap<Ino, Time>, CatalogError> {
        let directories = records
            .iter()
            .filter(|(_, inode)| inode.kind == Kind::Directory);
        let directories: Vec<Ino> = directories.map(|(ino, _)| *ino).collect();
        if directories.is_empty() {
            return Ok(HashMap::new());
        }
        let mut command = redis::cmd("HMGET");
        command.arg("ks:times").arg(&directories);
        let values =
            array(self.of.redis.run(&command).await?).ok_or_else(|| damaged("ks:times"))?;
        let times = directories.into_iter().zip(values);
        let times = times.filter_map(|(ino, time)| Some((ino, text(time)?.parse().ok()?)));
        Ok(times.collect())
    }

    /// Takes the names away that stood before, where a tree that was there is rebuilt (`ks recover`), or one that was begun.
    async fn clear_names(&mut self) -> Result<(), CatalogError> {
        for kind in ["ks:d:*", "ks:l:*", "ks:h:*"] {
            let mut cursor = "0".to_owned();
            loop {
                let (next, keys) = super::scan_keys(self.of.redis, kind, &cursor).await?;
                if !keys.is_empty() {
                    let command = [b"UNLINK".to_vec()].into_iter().chain(keys);
                    self.write(vec![command.collect()]).await?;
                }
                self.goes_on().await?;
                cursor = next;
                if cursor == "0" {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Says from time to time that this node still leads.
    async fn goes_on(&mut self) -> Result<(), CatalogError> {
        if self.led.elapsed() > LEADING {
            self.led = Instant::now();
            self.of.goes_on_leading().await?;
        }
        Ok(())
    }

    /// Returns those whose names stand for something else already.
    async fn enter(&self, wanted: &[Wanted]) -> Result<Vec<Wanted>, CatalogError> {
        let mut refused = Vec::new();
        for batch in wanted.chunks(BATCH) {
            let mut words = vec![self.of.cluster.as_bytes().to_vec()];
            for one in batch {
                let (ino, kind) = (one.ino, one.kind);
                words.push(one.parent.to_string().into_bytes());
                words.push(one.name.clone());
                words.push(Entry { ino, kind }.to_bytes());
                words.push(one.time.to_string().into_bytes());
            }
            let args: Vec<&[u8]> = words.iter().map(|word| &word[..]).collect();
            let reply = self.of.redis.script(&ENTER, &[], &args).await?;
            // Whole already: another node was faster.
            let Some(reply) = array(reply) else { continue };
            let taken = batch.iter().zip(reply);
            let taken = taken.filter(|(_, answer)| *answer == Value::Int(0));
            refused.extend(taken.map(|(one, _)| one.clone()));
        }
        Ok(refused)
    }

    /// Its name is another's: whoever claims it later has it (`claim`), the other one gets one beside it; of a further link the name goes.
    async fn settle(&mut self, refused: Wanted) -> Result<(), CatalogError> {
        self.conflicts += 1;
        let loser = match self.occupant(&refused).await? {
            Some(there) if self.claim(&there).await? < self.claim(&refused).await? => {
                self.replace(&there, &refused).await?;
                there
            }
            _ => refused,
        };
        let Some(inode) = self.records(&[loser.ino]).await?.remove(&loser.ino) else {
            return Ok(());
        };
        match loser.is_first {
            true => self.name_beside(loser, inode).await,
            false => {
                let link = loser.link();
                let key = format!("ks:l:{}", loser.ino).into_bytes();
                let command = vec![b"SREM".to_vec(), key, link.to_bytes()];
                self.write(vec![command]).await?;
                let nlink = inode.nlink.saturating_sub(1).max(1);
                self.put(loser.ino, Inode { nlink, ..inode }).await
            }
        }
    }

    async fn name_beside(&mut self, loser: Wanted, inode: Inode) -> Result<(), CatalogError> {
        let home = match inode.home {
            NodeId::NONE => self.of.me,
            home => home,
        };
        for attempt in 1..=NAMES_TRIED {
            let name = crate::path::conflict_name(&loser.name, &home.to_string(), attempt);
            let wanted = Wanted {
                name: name.clone(),
                ..loser.clone()
            };
            if self.enter(&[wanted]).await?.is_empty() {
                tracing::warn!(
                    ino = loser.ino, name = %String::from_utf8_lossy(&name),
                    "two things of one name: one is kept under another name"
                );
                return self.put(loser.ino, Inode { name, ..inode }).await;
            }
        }
        Err(CatalogError::Contention(format!("inode {}", loser.ino)))
    }

    /// What has the name.
    async fn occupant(&self, refused: &Wanted) -> Result<Option<Wanted>, CatalogError> {
        let mut command = redis::cmd("HGET");
        command.arg(format!("ks:d:{}", refused.parent));
        command.arg(&refused.name);
        let Some(entry) = bytes(self.of.redis.run(&command).await?) else {
            return Ok(None);
        };
        let entry = Entry::from_bytes(&entry)?;
        let record = self.records(&[entry.ino]).await?.remove(&entry.ino);
        let own = record.map(|inode| (inode.parent, inode.name));
        Ok(Some(Wanted {
            ino: entry.ino,
            kind: entry.kind,
            is_first: own == Some((refused.parent, refused.name.clone())),
            ..refused.clone()
        }))
    }

    async fn claim(&self, of: &Wanted) -> Result<Claim, CatalogError> {
        let field = match of.is_first {
            true => claim::inode_field(of.ino),
            false => claim::link_field(of.ino, &of.link()),
        };
        let mut command = redis::cmd("HGET");
        command.arg(RECOVERED).arg(field);
        let known = text(self.of.redis.run(&command).await?);
        let record = self.records(&[of.ino]).await?.remove(&of.ino);
        Ok(match record {
            Some(inode) if of.is_first => Claim::of_inode(known.as_deref(), &inode),
            _ => Claim::of_link(known.as_deref()),
        })
    }

    /// The name is the other's from now on.
    async fn replace(&self, there: &Wanted, by: &Wanted) -> Result<(), CatalogError> {
        let directory = format!("ks:d:{}", there.parent).into_bytes();
        let (ino, kind) = (by.ino, by.kind);
        let entry = Entry { ino, kind }.to_bytes();
        let set = [b"HSET".to_vec(), directory.clone(), by.name.clone(), entry];
        let directories = |of: &Wanted| i64::from(of.kind == Kind::Directory);
        let more = (directories(by) - directories(there)).to_string();
        let counted = [b"HINCRBY".to_vec(), directory, b"/n".to_vec(), more.into()];
        self.write(vec![set.to_vec(), counted.to_vec()]).await
    }

    /// Commands, unless the tree is whole by now.
    async fn write(&self, commands: Vec<Vec<Vec<u8>>>) -> Result<(), CatalogError> {
        for batch in commands.chunks(BATCH) {
            let mut words = vec![self.of.cluster.as_bytes().to_vec()];
            for command in batch {
                words.push(command.len().to_string().into_bytes());
                words.extend(command.iter().cloned());
            }
            let args: Vec<&[u8]> = words.iter().map(|word| &word[..]).collect();
            self.of.redis.script(&UNNAMED, &[], &args).await?;
        }
        Ok(())
    }

    /// A record that no journal has so: set, and journaled here.
    async fn put(&self, ino: Ino, inode: Inode) -> Result<(), CatalogError> {
        let bytes = encode(&inode);
        let key = format!("ks:i:{ino}").into_bytes();
        self.write(vec![vec![b"SET".to_vec(), key, bytes.clone()]])
            .await?;
        // What others know of it, and bring later, counts more.
        let entry = Journaled {
            ino,
            stand: Stand::HEARSAY,
            what: What::Record(bytes),
        };
        let appended = self.of.journal.append(&[entry]);
        appended.map_err(|error| CatalogError::Journal(error.to_string()))
    }

    /// A directory of which nothing is known but what stands in it.
    async fn make_missing(&mut self, ino: Ino) -> Result<(), CatalogError> {
        let inode = super::found_directory(ino);
        tracing::warn!(
            directory = %String::from_utf8_lossy(&inode.name),
            "no journal that is here knows this directory; what stands in it is there"
        );
        self.enter_in_root(ino, inode).await
    }

    /// Whose place in a ring is the oldest claim: somebody who has not come has moved it.
    async fn stalest(&self, ring: &[Ino]) -> Result<Ino, CatalogError> {
        let mut stalest: Option<(Claim, Ino)> = None;
        for (ino, inode) in self.records(ring).await? {
            let of = Wanted {
                ino,
                parent: inode.parent,
                name: inode.name,
                kind: inode.kind,
                time: inode.mtime,
                is_first: true,
            };
            let claim = (self.claim(&of).await?, ino);
            if stalest.as_ref().is_none_or(|known| claim < *known) {
                stalest = Some(claim);
            }
        }
        Ok(stalest.map_or(ring[0], |(_, ino)| ino))
    }

    async fn break_ring(&mut self, ino: Ino) -> Result<(), CatalogError> {
        let Some(inode) = self.records(&[ino]).await?.remove(&ino) else {
            return Ok(());
        };
        let above = format!("ks:d:{}", inode.parent).into_bytes();
        let less = ["HINCRBY", "/n", "-1"].map(|word| word.as_bytes().to_vec());
        let [act, count, by] = less;
        self.write(vec![
            vec![b"HDEL".to_vec(), above.clone(), inode.name.clone()],
            vec![act, above, count, by],
        ])
        .await?;
        let name = super::found_directory(ino).name;
        self.enter_in_root(
            ino,
            Inode {
                parent: ROOT,
                name,
                ..inode
            },
        )
        .await
    }

    async fn enter_in_root(&mut self, ino: Ino, inode: Inode) -> Result<(), CatalogError> {
        let wanted = Wanted {
            ino,
            parent: ROOT,
            name: inode.name.clone(),
            kind: Kind::Directory,
            time: inode.mtime,
            is_first: true,
        };
        self.put(ino, inode).await?;
        for refused in self.enter(&[wanted]).await? {
            self.settle(refused).await?;
        }
        self.shape.directories.insert(ino, ROOT);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// With what is missing made, and one of each ring moved to the root, every directory hangs from the root.
        #[test]
        fn everything_hangs_from_the_root(pairs in proptest::collection::vec((2u64..20, 1u64..24), 0..30), picked in 0usize..20) {
            let mut shape = Shape { directories: pairs.into_iter().collect(), ..Shape::default() };
            shape.parents = shape.directories.values().copied().collect();
            for ino in shape.missing() {
                shape.directories.insert(ino, ROOT);
            }
            prop_assert!(shape.missing().is_empty());
            for ring in shape.rings() {
                let ino = ring[picked % ring.len()];
                shape.directories.insert(ino, ROOT);
            }
            prop_assert!(shape.rings().is_empty());
            for start in shape.directories.keys() {
                let mut at = *start;
                let mut steps = 0;
                while at != ROOT {
                    at = shape.directories[&at];
                    steps += 1;
                    prop_assert!(steps <= shape.directories.len());
                }
            }
        }
    }
}
