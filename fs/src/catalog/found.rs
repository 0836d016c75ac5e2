//! What the tree has at many paths: one question for the names of a directory, all in one round trip.
use super::memory::parse;
use super::namespace::Record;
use super::reads::{array, bytes, damaged, node_of};
use super::transaction::Place;
use super::{Catalog, CatalogError, Node_};
use crate::path::TreePath;
use crate::record::*;
use crate::redis_client::Script;
use std::collections::BTreeMap;
use std::sync::LazyLock;

static FOUND: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("found.lua")));

impl Catalog {
    /// What stands at these paths (symlinks are not followed; of directories without their own numbers), in their order. One
    /// round trip, so of at most some hundreds. The root is not asked for.
    pub async fn found(&self, paths: &[TreePath]) -> Result<Vec<Option<Node_>>, CatalogError> {
        let mut groups: BTreeMap<TreePath, Vec<(usize, &[u8])>> = BTreeMap::new();
        for (index, path) in paths.iter().enumerate() {
            if let Some((parent, name)) = path.split_last() {
                groups.entry(parent).or_default().push((index, name));
            }
        }
        let mut all = vec![None; paths.len()];
        if groups.is_empty() {
            return Ok(all);
        }
        let calls = groups.iter().map(|(parent, names)| {
            let above: Vec<&[u8]> = parent.names().collect();
            let mut words = vec![above.len().to_string().into_bytes()];
            words.extend(above.iter().map(|name| name.to_vec()));
            words.extend(names.iter().map(|(_, name)| name.to_vec()));
            words
        });
        let calls: Vec<Vec<Vec<u8>>> = calls.collect();
        let reading = self.shared.memory.reading();
        let replies = self.fenced_all(&FOUND, &calls).await?;
        for (names, reply) in groups.values().zip(replies) {
            let mut values = array(reply).ok_or_else(|| damaged("found"))?.into_iter();
            let Some(directory) = values.next() else {
                continue;
            };
            let directory = bytes(directory).and_then(|ino| parse(&ino));
            let directory: Ino = directory.ok_or_else(|| damaged("found"))?;
            let mut entries = Vec::with_capacity(names.len());
            for (index, name) in names {
                if let (Some(entry), Some(inode)) = (values.next(), values.next())
                    && let (Some(entry), Some(inode)) = (bytes(entry), bytes(inode))
                {
                    let (entry, record) = (Entry::from_bytes(&entry)?, Record::from_bytes(inode)?);
                    all[*index] = Some(node_of(entry.ino, record.inode.clone(), None));
                    entries.push((*name, entry, record));
                }
            }
            reading.keep(|cache, ticket| cache.put_entries(ticket, directory, entries));
        }
        Ok(all)
    }

    /// Those of these copies of this node that the tree does not know so.
    pub async fn untold(
        &self,
        copies: Vec<(Ino, Holding)>,
    ) -> Result<Vec<(Ino, Holding)>, CatalogError> {
        if copies.is_empty() {
            return Ok(copies);
        }
        let me = self.me().to_string();
        let mut pipeline = redis::pipe();
        for (ino, _) in &copies {
            pipeline
                .cmd("HGET")
                .arg(Place::Holdings(*ino).key())
                .arg(&me);
        }
        let told = self.redis().pipe(&pipeline).await?;
        let copies = copies.into_iter().zip(told);
        let untold = copies.filter(|((_, holding), told)| {
            let told = bytes(told.clone());
            told.is_none_or(|told| told != holding.to_bytes())
        });
        Ok(untold.map(|(copy, _)| copy).collect())
    }
}
