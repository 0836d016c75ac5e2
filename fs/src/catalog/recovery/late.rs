//! What a node that comes when the tree is whole again still brings: what is news of its journal, as ordinary changes.
//!
//! Always: what was changed since the tree was whole, and what another node's journal knew better, stays as it is. Done again, it changes
//! nothing more. The names of what others have made meanwhile are theirs: what comes late is `NAME.conflict-NODE` then.
use super::{RECOVERED, read_part, text};
use crate::catalog::changes::COMMIT;
use crate::catalog::journal::{Folded, PARTS, Stand};
use crate::catalog::namespace::{self, ParentTime, Plan, rename};
use crate::catalog::reads::array;
use crate::catalog::transaction::{Check, Operation, Place, TIME_FIELD, Transaction};
use crate::catalog::{Catalog, CatalogError};
use crate::path::conflict_name;
use crate::record::*;
use std::collections::BTreeMap;

/// Names that are tried for something whose own is taken.
const NAMES_TRIED: usize = 100;
/// Inodes asked about in one round trip.
const PAGE: usize = 1000;

/// One inode's news.
struct News {
    stand: Stand,
    ino: Ino,
    /// `None`: only its links are news.
    record: Option<Option<Inode>>,
    links: BTreeMap<Link, bool>,
    time: Option<Time>,
}

/// Without the time of now for the directory: it happened long ago.
fn quietly<T>(mut plan: Plan<T>) -> Plan<T> {
    let is_time = |operation: &Operation| matches!(operation, Operation::SetField(Place::Directory(_), field, _) if field == TIME_FIELD);
    plan.transaction
        .operations
        .retain(|operation| !is_time(operation));
    plan
}

impl Catalog {
    /// Brings what is news of this node's journal into a tree that was rebuilt without it.
    pub(in crate::catalog) async fn bring_late(&self) -> Result<(), CatalogError> {
        let Some(journal) = &self.shared.journal else {
            return Ok(());
        };
        let mut news = Vec::new();
        for part in 0..PARTS {
            let folded: Vec<(Ino, Folded)> = read_part(journal, part).await?.into_iter().collect();
            for page in folded.chunks(PAGE) {
                news.extend(self.news_of(page).await?);
            }
        }
        // In the order in which it happened: a directory before what is in it, a name is free before it is taken.
        news.sort_by_key(|one| (one.stand, one.record != Some(None), one.ino));
        let count = news.len();
        for is_last in [false, false, false, true] {
            news = self.bring_round(news, is_last).await?;
        }
        if count > 0 {
            tracing::info!(inodes = count, "what this node alone knew is in the tree");
        }
        Ok(())
    }

    /// Brings what has a place; returns what finds its name taken, which may become free by the rest. `is_last`: it gets another.
    async fn bring_round(&self, news: Vec<News>, is_last: bool) -> Result<Vec<News>, CatalogError> {
        let mut waiting = Vec::new();
        for one in news {
            match self.bring_one(&one, is_last).await {
                Ok(()) => {}
                Err(CatalogError::Posix(libc::EEXIST)) if !is_last => waiting.push(one),
                Err(CatalogError::Posix(errno)) => {
                    let error = std::io::Error::from_raw_os_error(errno);
                    tracing::warn!(ino = one.ino, %error, "a journaled change has no place in the tree as it is now");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(waiting)
    }

    async fn news_of(&self, page: &[(Ino, Folded)]) -> Result<Vec<News>, CatalogError> {
        let mut command = redis::cmd("HMGET");
        command.arg(RECOVERED);
        for (ino, of) in page {
            command.arg(ino.to_string());
            for link in of.links.keys() {
                command.arg([format!("l{ino}/").as_bytes(), &link.to_bytes()].concat());
            }
            command.arg(format!("t{ino}"));
        }
        let answer = array(self.redis().run(&command).await?);
        let known = answer.ok_or_else(|| crate::catalog::reads::damaged(RECOVERED))?;
        let mut known = known
            .into_iter()
            .map(|known| text(known).unwrap_or_default());
        let mut news = Vec::new();
        for (ino, of) in page {
            let mut is_later = |stand: Stand| stand.to_text() > known.next().unwrap_or_default();
            let later = is_later(
                of.record
                    .as_ref()
                    .map(|(stand, _)| *stand)
                    .unwrap_or_default(),
            );
            let record = match &of.record {
                Some((_, Some(bytes))) if later => Some(Some(decode(bytes)?)),
                Some((_, None)) if later => Some(None),
                _ => None,
            };
            let links = of.links.iter().filter(|(_, (stand, _))| is_later(*stand));
            let links: BTreeMap<Link, bool> = links
                .map(|(link, (_, is_there))| (link.clone(), *is_there))
                .collect();
            let since = of.time.map(|(stand, _)| stand).unwrap_or_default();
            let is_news = is_later(since);
            let time = of.time.filter(|_| is_news).map(|(_, time)| time);
            if record.is_none() && links.is_empty() && time.is_none() {
                continue;
            }
            let stands = of.links.values().map(|(stand, _)| *stand);
            let last = of.record.as_ref().map(|(stand, _)| *stand);
            news.push(News {
                stand: last.or(stands.max()).unwrap_or_default(),
                ino: *ino,
                record,
                links,
                time,
            });
        }
        Ok(news)
    }

    async fn bring_one(&self, one: &News, is_last: bool) -> Result<(), CatalogError> {
        let current = self.record(one.ino, false).await?;
        match (&one.record, current.is_some()) {
            (Some(None), true) => return self.bring_gone(one.ino).await,
            (Some(None), false) => return self.note_gone(one.ino, one.stand).await,
            (Some(Some(inode)), false) => {
                self.bring_new(one.ino, inode.clone(), is_last).await?;
            }
            (Some(Some(inode)), true) => self.bring_changed(one.ino, inode, is_last).await?,
            (None, true) => {}
            (None, false) => return Ok(()),
        }
        for (link, is_there) in &one.links {
            let done = self.bring_link(one.ino, link, *is_there).await;
            match done {
                Ok(()) | Err(CatalogError::Posix(_)) => {}
                Err(error) => return Err(error),
            }
        }
        match one.time {
            Some(time) => self.bring_time(one.ino, time).await,
            None => Ok(()),
        }
    }

    async fn bring_link(&self, ino: Ino, link: &Link, is_there: bool) -> Result<(), CatalogError> {
        let stands = self.lookup(link.parent, &link.name).await?;
        let is_its = stands.as_ref().is_some_and(|node| node.ino == ino);
        if is_there && stands.is_none() {
            let linked = self.change("a link", |known, now| {
                namespace::link(known, ino, link.parent, &link.name, now).map(quietly)
            });
            linked.await?;
        } else if let Some(node) = stands.filter(|_| !is_there && is_its)
            // No further link any more: removed, or, where the record stands there, its own name since another was removed.
            && (node.inode.parent, &node.inode.name) != (link.parent, &link.name)
        {
            self.bring_unlinked(link.parent, &link.name).await?;
        }
        self.tell_own(link.parent);
        Ok(())
    }

    async fn bring_unlinked(&self, parent: Ino, name: &[u8]) -> Result<(), CatalogError> {
        let unlinked = self.change("a name", |known, now| {
            namespace::unlink(known, parent, name, now).map(quietly)
        });
        unlinked.await?;
        self.tell_own(parent);
        Ok(())
    }

    /// When a directory's entries changed last, where nobody knows a later time.
    async fn bring_time(&self, ino: Ino, time: Time) -> Result<(), CatalogError> {
        let node = self.node(ino).await?;
        if node.is_none_or(|node| node.inode.kind != Kind::Directory || node.dir_time >= time) {
            return Ok(());
        }
        let place = Place::Directory(ino);
        let mut change = Transaction::default();
        change.expect(Check::Field(place, TIME_FIELD.to_vec()));
        let time = time.to_string().into_bytes();
        change.then(Operation::SetField(place, TIME_FIELD.to_vec(), time));
        self.commit(&change).await?;
        self.tell_own(ino);
        Ok(())
    }

    /// The tree does not know it: it comes under its old number.
    async fn bring_new(&self, ino: Ino, inode: Inode, is_last: bool) -> Result<(), CatalogError> {
        if ino == ROOT {
            return Ok(());
        }
        if self.record(inode.parent, false).await?.is_none() {
            let above = super::found_directory(inode.parent);
            self.enter_numbered(inode.parent, above, true).await?;
        }
        self.enter_numbered(ino, inode, is_last).await
    }

    /// Enters an inode under a number that it has already; where its name is taken, `is_beside`: under a name beside it, else EEXIST.
    pub(in crate::catalog) async fn enter_numbered(
        &self,
        ino: Ino,
        inode: Inode,
        is_beside: bool,
    ) -> Result<(), CatalogError> {
        let (parent, home) = (inode.parent, inode.home);
        let home = if home == NodeId::NONE {
            self.me()
        } else {
            home
        };
        for attempt in 0..=NAMES_TRIED {
            let name = match attempt {
                0 => inode.name.clone(),
                _ => conflict_name(&inode.name, &home.to_string(), attempt),
            };
            let label = format!("inode {ino}");
            let entered = self.change(&label, |_, _| {
                let record = inode.clone();
                let mut plan = namespace::create(parent, &name, ino, record, ParentTime::Stays)?;
                plan.transaction
                    .require(Check::Absent(Place::Inode(ino)), libc::EALREADY);
                Ok(plan)
            });
            match entered.await {
                Ok(_) | Err(CatalogError::Posix(libc::EALREADY)) => {
                    self.tell_own(parent);
                    return Ok(());
                }
                Err(CatalogError::Posix(libc::EEXIST)) if is_beside => {}
                Err(error) => return Err(error),
            }
        }
        Err(CatalogError::Contention(format!("inode {ino}")))
    }

    /// The tree has an older record: to where this one says, and as it says.
    async fn bring_changed(
        &self,
        ino: Ino,
        inode: &Inode,
        is_last: bool,
    ) -> Result<(), CatalogError> {
        let Some(current) = self.record(ino, false).await? else {
            return Ok(());
        };
        let (old, new) = (&current.inode, (inode.parent, inode.name.clone()));
        let is_moved = ino != ROOT && (old.parent, &old.name) != (new.0, &new.1);
        let stands = match is_moved && old.nlink > 1 {
            true => self.lookup(new.0, &new.1).await?,
            false => None,
        };
        if stands.is_some_and(|node| node.ino == ino) {
            // A further link became its own name when that was removed.
            self.bring_unlinked(old.parent, &old.name).await?;
        } else if is_moved {
            let (from, to) = ((old.parent, &old.name[..]), (new.0, &new.1[..]));
            let moved = self.change("a name", |known, now| {
                rename::rename(known, from, to, rename::NO_REPLACE, now).map(quietly)
            });
            match moved.await {
                Ok(_) => {}
                Err(CatalogError::Posix(errno)) if is_last || errno != libc::EEXIST => {}
                Err(error) => return Err(error),
            }
        }
        let me = self.me();
        self.change(&format!("inode {ino}"), |known, _| {
            let record = known.inode(ino, libc::ENOENT)?;
            let wanted = Inode {
                parent: record.inode.parent,
                name: record.inode.name.clone(),
                nlink: record.inode.nlink,
                ..inode.clone()
            };
            let mut change = Transaction::default();
            change.expect(Check::Equals(Place::Inode(ino), record.bytes.to_vec()));
            change.then(Operation::Set(Place::Inode(ino), encode(&wanted)));
            let path = match ino {
                ROOT => Vec::new(),
                _ => {
                    let above = namespace::Ancestors::of(known, wanted.parent)?.path();
                    above.join(&wanted.name).as_bytes().to_vec()
                }
            };
            change.event = Some(match record.inode.version < wanted.version {
                true => Event::Published {
                    ino,
                    path,
                    version: wanted.version,
                    home: wanted.home,
                },
                false => Event::Attributes { ino, path },
            });
            if wanted.kind == Kind::File && wanted.home == me {
                namespace::set_holding(&mut change, ino, &wanted);
            }
            Ok(Plan {
                transaction: change,
                value: (),
            })
        })
        .await?;
        Ok(())
    }

    /// It was removed, later than all that the others know of it.
    async fn bring_gone(&self, ino: Ino) -> Result<(), CatalogError> {
        while let Some(record) = self.record(ino, false).await? {
            let (parent, name) = (record.inode.parent, record.inode.name.clone());
            match record.inode.kind {
                // What others have put there stays.
                Kind::Directory => {
                    let removed = self.change("a directory", |known, now| {
                        namespace::rmdir(known, parent, &name, now).map(quietly)
                    });
                    removed.await?;
                    self.tell_own(parent);
                    return Ok(());
                }
                _ => self.bring_unlinked(parent, &name).await?,
            }
        }
        Ok(())
    }

    /// It was removed, and nobody has it: so that copies which come later go.
    async fn note_gone(&self, ino: Ino, stand: Stand) -> Result<(), CatalogError> {
        let mut command = redis::cmd("HSETNX");
        command
            .arg(RECOVERED)
            .arg(ino.to_string())
            .arg(stand.to_text());
        self.redis().run(&command).await?;
        Ok(())
    }

    /// Enters a file that only its copy here knows, under its number; no other node has it.
    pub(crate) async fn enter_found(&self, ino: Ino, inode: Inode) -> Result<(), CatalogError> {
        self.enter_numbered(ino, inode, true).await
    }

    /// A later version than the tree knows becomes its, homed here. `false`: somebody has changed the file since the tree was rebuilt.
    pub(crate) async fn put_newer(&self, ino: Ino, newer: Inode) -> Result<bool, CatalogError> {
        let mut command = redis::cmd("HGET");
        command.arg(RECOVERED).arg(ino.to_string());
        if text(self.redis().run(&command).await?).as_deref() == Some("~") {
            return Ok(false);
        }
        let me = self.me();
        let label = format!("inode {ino}");
        let put = self.change(&label, |known, _| {
            let record = known.inode(ino, libc::ENOENT)?;
            if record.inode.version >= newer.version {
                return Err(namespace::Stop::Posix(libc::ESTALE));
            }
            let wanted = Inode {
                version: newer.version,
                size: newer.size,
                mtime: newer.mtime,
                blake3: newer.blake3,
                md5: None,
                home: me,
                epoch: record.inode.epoch.saturating_add(1),
                ..(*record.inode).clone()
            };
            let above = namespace::Ancestors::of(known, wanted.parent)?.path();
            let path = above.join(&wanted.name).as_bytes().to_vec();
            let mut change = Transaction::default();
            change.expect(Check::Equals(Place::Inode(ino), record.bytes.to_vec()));
            change.then(Operation::Set(Place::Inode(ino), encode(&wanted)));
            namespace::set_holding(&mut change, ino, &wanted);
            change.event = Some(Event::Published {
                ino,
                path,
                version: wanted.version,
                home: me,
            });
            Ok(Plan {
                transaction: change,
                value: (),
            })
        });
        match put.await {
            Ok(_) => Ok(true),
            Err(CatalogError::Posix(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// This node has whole copies of these versions (`true`: put here by somebody); of files that have changed meanwhile nothing is told.
    pub(crate) async fn tell_copies(
        &self,
        held: &[(Ino, std::sync::Arc<Inode>, bool)],
    ) -> Result<(), CatalogError> {
        let mut pipeline = redis::pipe();
        // Whatever Redis forgot: the script is there before it is called.
        pipeline.cmd("SCRIPT").arg("LOAD").arg(COMMIT.source());
        for (ino, inode, is_put) in held {
            let holding = Holding {
                version: inode.version,
                bytes: inode.size,
                is_put: *is_put,
            };
            let mut change = Transaction::default();
            change.expect(Check::Equals(Place::Inode(*ino), encode(&**inode)));
            change.then(Operation::SetField(
                Place::Holdings(*ino),
                self.me().to_string().into_bytes(),
                holding.to_bytes(),
            ));
            pipeline.cmd("EVALSHA").arg(COMMIT.sha1());
            pipeline.arg(1).arg(self.cluster());
            for word in change.arguments(self.me(), self.nonce()) {
                pipeline.arg(word);
            }
        }
        if !held.is_empty() {
            self.redis().pipe(&pipeline).await?;
        }
        Ok(())
    }
}
