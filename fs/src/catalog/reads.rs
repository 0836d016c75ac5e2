//! Reads of the tree: from memory while that is current, else one round trip.
use super::cache::{Cache, DirectoryMeta, Ticket};
use super::memory::parse;
use super::namespace::{DEPTH_MAX, Need, Record};
use super::transaction::Place;
use super::{Catalog, CatalogError, Listing, Located, Node_};
use crate::path::TreePath;
use crate::record::*;
use crate::redis_client::{RedisError, Script};
use redis::Value;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};

/// How often a question is asked again when the connection goes before the answer.
const ASK_ATTEMPTS: usize = 3;
/// Inodes asked for in one round trip.
const PAGE: usize = 1000;

/// How long after an own change of a directory, nanoseconds, a name that is not there is not asked for.
const HOT_FOR: Time = 1_000_000_000;

static LOOKUP: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lookup.lua")));
static INODES: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("inodes.lua")));
static LIST: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("list.lua")));
static RESOLVE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("resolve.lua")));
static LOCATE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("locate.lua")));

/// A record as it came, and a directory's own numbers.
type Found = (Record, Option<DirectoryMeta>);

pub(super) fn damaged(what: &str) -> CatalogError {
    CatalogError::Damaged(DamagedRecord(format!(
        "{what}: not what the script returns"
    )))
}

pub(super) fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.into_bytes()),
        Value::Int(number) => Some(number.to_string().into_bytes()),
        _ => None,
    }
}

pub(super) fn array(value: Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(values) => Some(values),
        Value::Map(pairs) => Some(pairs.into_iter().flat_map(|(k, v)| [k, v]).collect()),
        _ => None,
    }
}

fn found(inode: Value, time: Value, subdirectories: Value) -> Result<Option<Found>, CatalogError> {
    let Some(inode) = bytes(inode) else {
        return Ok(None);
    };
    let record = Record::from_bytes(inode)?;
    Ok(Some((record, meta(time, subdirectories))))
}

fn meta(time: Value, subdirectories: Value) -> Option<DirectoryMeta> {
    Some(DirectoryMeta {
        time: parse(&bytes(time)?)?,
        subdirectories: parse(&bytes(subdirectories)?)?,
    })
}

fn holders(values: Vec<Value>) -> Result<Vec<(NodeId, Holding)>, CatalogError> {
    let mut holders = Vec::with_capacity(values.len() / 2);
    let mut values = values.into_iter().filter_map(bytes);
    while let (Some(node), Some(holding)) = (values.next(), values.next()) {
        let node = std::str::from_utf8(&node)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| damaged("holder"))?;
        holders.push((node, Holding::from_bytes(&holding)?));
    }
    Ok(holders)
}

/// An inode as callers see it.
pub(super) fn node_of(ino: Ino, inode: Arc<Inode>, meta: Option<DirectoryMeta>) -> Node_ {
    let (dir_time, nlink) = match (inode.kind, meta) {
        (Kind::Directory, Some(meta)) => (meta.time, 2 + meta.subdirectories),
        _ => (inode.mtime, inode.nlink),
    };
    Node_ {
        ino,
        inode,
        dir_time,
        nlink,
    }
}

fn put_found(cache: &mut Cache, ticket: Ticket, ino: Ino, found: &Found) {
    cache.put_inode(ticket, ino, found.0.clone());
    if let Some(meta) = found.1 {
        cache.put_meta(ticket, ino, meta);
    }
}

/// From memory, where all of it is there.
fn remembered(cache: &mut Cache, ino: Ino) -> Option<Node_> {
    let record = cache.inode(ino)?;
    let meta = match record.inode.kind {
        Kind::Directory => Some(cache.meta(ino)?),
        _ => None,
    };
    Some(node_of(ino, record.inode, meta))
}

impl Catalog {
    /// A script that only reads: asked again when the connection went before its answer came.
    pub(super) async fn ask(&self, script: &Script, args: &[&[u8]]) -> Result<Value, RedisError> {
        for _ in 1..ASK_ATTEMPTS {
            match self.fenced(script, args).await {
                Err(RedisError::Lost(_)) => {}
                answer => return answer,
            }
        }
        self.fenced(script, args).await
    }

    pub(super) async fn node_(&self, ino: Ino) -> Result<Option<Node_>, CatalogError> {
        if let Some(node) = remembered(&mut self.shared.memory.locked(), ino) {
            return Ok(Some(node));
        }
        if !self.is_answering()
            && let Some(node) = self.last_known(ino)
        {
            return Ok(Some(node));
        }
        let entry = Entry {
            ino,
            kind: Kind::Directory,
        };
        match self.fetch_inodes(&[entry]).await {
            Ok(mut found) => Ok(found
                .pop()
                .flatten()
                .map(|(record, meta)| node_of(ino, record.inode, meta))),
            Err(CatalogError::Redis(error)) => {
                let gone = !self.is_answering();
                let known = self.last_known(ino).filter(|_| gone);
                known.map(Some).ok_or(error.into())
            }
            Err(error) => Err(error),
        }
    }

    fn last_known(&self, ino: Ino) -> Option<Node_> {
        let (record, meta) = self.shared.memory.locked().last_known(ino)?;
        Some(node_of(ino, record.inode, Some(meta)))
    }

    /// See `Catalog::remembered`.
    pub(super) fn remembered_(&self, ino: Ino) -> Option<(Node_, TreePath)> {
        let mut cache = self.shared.memory.locked();
        let node = remembered(&mut cache, ino)?;
        let mut names = Vec::new();
        let mut at = (ino, node.inode.clone());
        while at.0 != ROOT && names.len() <= DEPTH_MAX {
            let parent = at.1.parent;
            names.push(at.1.name.clone());
            if parent == ROOT {
                break;
            }
            at = (parent, cache.inode(parent)?.inode);
        }
        let root = TreePath::root();
        let path = names.iter().rev().fold(root, |path, name| path.join(name));
        Some((node, path))
    }

    /// See `Catalog::remembered_while_away`.
    pub(super) fn remembered_while_away_(&self, ino: Ino) -> Option<Node_> {
        match self.redis().is_away() || !self.is_answering() && self.redis().is_connected() {
            true => remembered(&mut self.shared.memory.locked(), ino),
            false => None,
        }
    }

    /// Inodes by number, at most `PAGE`; remembered.
    async fn fetch_inodes(&self, entries: &[Entry]) -> Result<Vec<Option<Found>>, CatalogError> {
        let words: Vec<Vec<u8>> = entries.iter().map(|entry| entry.to_bytes()).collect();
        let args: Vec<&[u8]> = words.iter().map(|word| &word[..]).collect();
        let reading = self.shared.memory.reading();
        let reply = self.ask(&INODES, &args).await?;
        let mut values = array(reply).ok_or_else(|| damaged("inodes"))?.into_iter();
        let mut all = Vec::with_capacity(entries.len());
        while let (Some(inode), Some(time), Some(subdirectories)) =
            (values.next(), values.next(), values.next())
        {
            all.push(found(inode, time, subdirectories)?);
        }
        if all.len() != entries.len() {
            return Err(damaged("inodes"));
        }
        reading.keep(|cache, ticket| {
            for (entry, found) in entries.iter().zip(&all) {
                if let Some(found) = found {
                    put_found(cache, ticket, entry.ino, found);
                }
            }
        });
        Ok(all)
    }

    /// A name and its inode, asked for; remembered.
    async fn fetch_entry(
        &self,
        parent: Ino,
        name: &[u8],
    ) -> Result<Option<(Entry, Option<Found>)>, CatalogError> {
        let parent_text = parent.to_string();
        let reading = self.shared.memory.reading();
        let reply = self.ask(&LOOKUP, &[parent_text.as_bytes(), name]).await?;
        let parts = array(reply).ok_or_else(|| damaged("lookup"))?;
        if parts.is_empty() {
            return Ok(None);
        }
        let [entry, inode, time, subdirectories]: [Value; 4] =
            parts.try_into().map_err(|_| damaged("lookup"))?;
        let entry = Entry::from_bytes(&bytes(entry).ok_or_else(|| damaged("lookup"))?)?;
        let found = found(inode, time, subdirectories)?;
        reading.keep(|cache, ticket| {
            cache.put_entry(ticket, parent, name, entry);
            if let Some(found) = &found {
                put_found(cache, ticket, entry.ino, found);
            }
        });
        Ok(Some((entry, found)))
    }

    pub(super) async fn lookup_(
        &self,
        parent: Ino,
        name: &[u8],
    ) -> Result<Option<Node_>, CatalogError> {
        {
            let mut cache = self.shared.memory.locked();
            if let Some(entry) = cache.entry(parent, name)
                && let Some(node) = remembered(&mut cache, entry.ino)
            {
                return Ok(Some(node));
            }
            if cache.absent(parent, name, super::now(), HOT_FOR) {
                return Ok(None);
            }
        }
        let fetched = self.fetch_entry(parent, name).await?;
        Ok(fetched.and_then(|(entry, found)| {
            found.map(|(record, meta)| node_of(entry.ino, record.inode, meta))
        }))
    }

    pub(super) async fn located_(&self, ino: Ino) -> Result<Option<Located>, CatalogError> {
        let reading = self.shared.memory.reading();
        let reply = self.ask(&LOCATE, &[ino.to_string().as_bytes()]).await?;
        let parts = array(reply).ok_or_else(|| damaged("locate"))?;
        let [inode, time, subdirectories, held]: [Value; 4] =
            parts.try_into().map_err(|_| damaged("locate"))?;
        let Some(found) = found(inode, time, subdirectories)? else {
            return Ok(None);
        };
        let holders = holders(array(held).ok_or_else(|| damaged("locate"))?)?;
        reading.keep(|cache, ticket| put_found(cache, ticket, ino, &found));
        let node = node_of(ino, found.0.inode, found.1);
        Ok(Some(Located { node, holders }))
    }

    pub(super) async fn resolve_(&self, path: &TreePath) -> Result<Option<Node_>, CatalogError> {
        if let Some(node) = self.resolve_remembered(path) {
            return Ok(Some(node));
        }
        Ok(self.walk(path).await?.map(|located| located.node))
    }

    pub(super) fn resolve_remembered(&self, path: &TreePath) -> Option<Node_> {
        let mut cache = self.shared.memory.locked();
        let mut at = ROOT;
        for name in path.names() {
            at = cache.entry(at, name)?.ino;
        }
        remembered(&mut cache, at)
    }

    /// A path, asked for in one round trip; remembered.
    pub(super) async fn walk(&self, path: &TreePath) -> Result<Option<Located>, CatalogError> {
        if path.is_root() {
            return self.located_(ROOT).await;
        }
        let names: Vec<&[u8]> = path.names().collect();
        let reading = self.shared.memory.reading();
        let reply = self.ask(&RESOLVE, &names).await?;
        let parts = array(reply).ok_or_else(|| damaged("resolve"))?;
        let [steps, time, subdirectories, held]: [Value; 4] =
            parts.try_into().map_err(|_| damaged("resolve"))?;
        let mut steps = array(steps).ok_or_else(|| damaged("resolve"))?.into_iter();
        let mut chain = Vec::with_capacity(names.len());
        while let (Some(entry), Some(inode)) = (steps.next(), steps.next()) {
            let entry = Entry::from_bytes(&bytes(entry).ok_or_else(|| damaged("resolve"))?)?;
            let Some(inode) = bytes(inode) else { break };
            chain.push((entry, Record::from_bytes(inode)?));
        }
        let meta = meta(time, subdirectories);
        reading.keep(|cache, ticket| {
            let mut parent = ROOT;
            for (name, (entry, record)) in names.iter().zip(&chain) {
                cache.put_entry(ticket, parent, name, *entry);
                cache.put_inode(ticket, entry.ino, record.clone());
                parent = entry.ino;
            }
            if let (Some(meta), true) = (meta, chain.len() == names.len()) {
                cache.put_meta(ticket, parent, meta);
            }
        });
        if chain.len() < names.len() {
            return Ok(None);
        }
        let holders = holders(array(held).ok_or_else(|| damaged("resolve"))?)?;
        Ok(chain.pop().map(|(entry, record)| Located {
            node: node_of(entry.ino, record.inode, meta),
            holders,
        }))
    }

    pub(super) async fn path_of_(&self, ino: Ino) -> Result<Option<TreePath>, CatalogError> {
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut at = ino;
        while at != ROOT {
            if names.len() > DEPTH_MAX {
                return Err(CatalogError::Posix(libc::ELOOP));
            }
            let Some(record) = self.record(at, true).await? else {
                return Ok(None);
            };
            names.push(record.inode.name.clone());
            at = record.inode.parent;
        }
        let path = names
            .iter()
            .rev()
            .fold(TreePath::root(), |path, name| path.join(name));
        Ok(Some(path))
    }

    pub(super) async fn list_(&self, dir: Ino) -> Result<Arc<Listing>, CatalogError> {
        let names = self.shared.memory.locked().names(dir);
        let mut entries = match names {
            Some(names) => self.list_remembered(names).await?,
            None => self.list_asked(dir).await?,
        };
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(Arc::new(Listing { entries }))
    }

    /// The names are here; those inodes that are not are asked for.
    async fn list_remembered(
        &self,
        names: Vec<(Vec<u8>, Entry)>,
    ) -> Result<Vec<(Vec<u8>, Node_)>, CatalogError> {
        let mut entries = Vec::with_capacity(names.len());
        let mut missing = Vec::new();
        {
            let mut cache = self.shared.memory.locked();
            for (name, entry) in names {
                match remembered(&mut cache, entry.ino) {
                    Some(node) => entries.push((name, node)),
                    None => missing.push((name, entry)),
                }
            }
        }
        for page in missing.chunks(PAGE) {
            let wanted: Vec<Entry> = page.iter().map(|(_, entry)| *entry).collect();
            let found = self.fetch_inodes(&wanted).await?;
            for ((name, entry), found) in page.iter().zip(found) {
                // None: it was removed since; its directory's invalidation is on its way.
                if let Some((record, meta)) = found {
                    entries.push((name.clone(), node_of(entry.ino, record.inode, meta)));
                }
            }
        }
        Ok(entries)
    }

    async fn list_asked(&self, dir: Ino) -> Result<Vec<(Vec<u8>, Node_)>, CatalogError> {
        let reading = self.shared.memory.reading();
        let mut rows: Vec<Row> = Vec::new();
        let mut cursor = b"0".to_vec();
        let own = loop {
            let page = self.list_page(dir, &cursor).await?;
            rows.extend(page.rows);
            cursor = page.cursor;
            if cursor == b"0" {
                break page.meta;
            }
        };
        let Some(own) = own else {
            return Err(CatalogError::Posix(libc::ENOENT));
        };
        // A page may repeat names of an earlier one while the hash grows.
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        rows.dedup_by(|a, b| a.name == b.name);
        reading.keep(|cache, ticket| {
            for row in &rows {
                put_found(cache, ticket, row.entry.ino, &row.found);
            }
            let names = rows.iter().map(|row| (&row.name[..], row.entry));
            cache.put_names(ticket, dir, own, names);
        });
        let nodes = rows.into_iter().map(|row| {
            let (record, meta) = row.found;
            (row.name, node_of(row.entry.ino, record.inode, meta))
        });
        Ok(nodes.collect())
    }

    async fn list_page(&self, dir: Ino, cursor: &[u8]) -> Result<Page, CatalogError> {
        let reply = self
            .ask(&LIST, &[dir.to_string().as_bytes(), cursor])
            .await?;
        let parts = array(reply).ok_or_else(|| damaged("list"))?;
        let [cursor, time, subdirectories, rows]: [Value; 4] =
            parts.try_into().map_err(|_| damaged("list"))?;
        let mut values = array(rows).ok_or_else(|| damaged("list"))?.into_iter();
        let mut rows = Vec::with_capacity(values.len() / 5);
        while let (Some(name), Some(entry), Some(inode), Some(time), Some(subdirectories)) = (
            values.next(),
            values.next(),
            values.next(),
            values.next(),
            values.next(),
        ) {
            let name = bytes(name).ok_or_else(|| damaged("list"))?;
            let entry = Entry::from_bytes(&bytes(entry).ok_or_else(|| damaged("list"))?)?;
            match found(inode, time, subdirectories)? {
                Some(found) => rows.push(Row { name, entry, found }),
                None => {
                    tracing::error!(directory = dir, name = %String::from_utf8_lossy(&name), "a name in the catalog has no inode; run: ks recover");
                }
            }
        }
        Ok(Page {
            cursor: bytes(cursor).ok_or_else(|| damaged("list"))?,
            meta: meta(time, subdirectories),
            rows,
        })
    }

    /// An inode's record; `cached`: what is remembered will do.
    pub(super) async fn record(
        &self,
        ino: Ino,
        cached: bool,
    ) -> Result<Option<Record>, CatalogError> {
        if cached && let Some(record) = self.shared.memory.locked().inode(ino) {
            return Ok(Some(record));
        }
        if cached
            && !self.is_answering()
            && let Some((record, _)) = self.shared.memory.locked().last_known(ino)
        {
            return Ok(Some(record));
        }
        let entry = Entry {
            ino,
            kind: Kind::Directory,
        };
        let found = self.fetch_inodes(&[entry]).await?.pop().flatten();
        Ok(found.map(|(record, _)| record))
    }

    /// The records of these inodes, as they are now; of those that there are.
    pub(super) async fn records(&self, inos: &[Ino]) -> Result<HashMap<Ino, Record>, CatalogError> {
        let mut records = HashMap::with_capacity(inos.len());
        for page in inos.chunks(PAGE) {
            let kind = Kind::Directory;
            let entries: Vec<Entry> = page.iter().map(|ino| Entry { ino: *ino, kind }).collect();
            for (ino, found) in page.iter().zip(self.fetch_inodes(&entries).await?) {
                records.extend(found.map(|(record, _)| (*ino, record)));
            }
        }
        Ok(records)
    }

    /// Reads what a decision needs. True: part of it is from memory.
    pub(super) async fn learn(
        &self,
        known: &mut super::namespace::Known,
        need: Need,
        cached: bool,
    ) -> Result<bool, CatalogError> {
        match need {
            Need::Inode(ino) => {
                let here = cached && self.shared.memory.locked().inode(ino).is_some();
                known.learn_inode(ino, self.record(ino, cached).await?);
                Ok(here)
            }
            Need::Entry(parent, name) => {
                let here = match cached {
                    true => self.shared.memory.locked().entry(parent, &name),
                    false => None,
                };
                if let Some(entry) = here {
                    known.learn_entry(parent, &name, Some(entry));
                    return Ok(true);
                }
                let fetched = self.fetch_entry(parent, &name).await?;
                known.learn_entry(parent, &name, fetched.as_ref().map(|(entry, _)| *entry));
                if let Some((entry, found)) = fetched {
                    known.learn_inode(entry.ino, found.map(|(record, _)| record));
                }
                Ok(false)
            }
            Need::Links(ino) => {
                let mut command = redis::cmd("SMEMBERS");
                command.arg(Place::Links(ino).key());
                let links = match self.redis().run(&command).await? {
                    Value::Set(members) | Value::Array(members) => members,
                    _ => return Err(damaged("links")),
                };
                let links: Result<BTreeSet<Link>, _> = links
                    .into_iter()
                    .filter_map(bytes)
                    .map(|member| Link::from_bytes(&member))
                    .collect();
                known.learn_links(ino, links?);
                Ok(false)
            }
        }
    }
}

struct Row {
    name: Vec<u8>,
    entry: Entry,
    found: Found,
}

struct Page {
    cursor: Vec<u8>,
    meta: Option<DirectoryMeta>,
    rows: Vec<Row>,
}
