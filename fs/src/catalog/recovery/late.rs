//! What a node that comes when the tree is whole again still brings: what is news of its journal, as changes that stand as late as they happened.
//!
//! Who takes part: this room reads the journal and decides what is news and in which order; [`told`] carries a change out, [`places`] finds
//! names for it, [`copies`] is for what the data directory knows beside the journal.
//!
//! The rules, which make it the same who comes first:
//! - Of an inode, and of a further link, the latest news counts, whoever brings it; what was changed since the tree was whole counts more.
//! - Of two that claim a name the later has it (`claim`). Something of the tree that has lost its name so stands beside it.
//! - A directory that was removed goes when it is empty. What was put into it since the tree was whole goes into the directory that has its
//!   name now; where there is none it stays for that. What nobody who is there knows to be gone stays in it (`ks:undead` remembers it).
//!
//! Always: done again, it changes nothing more; no bytes go but with an inode that was removed, as the latest that anybody knows.
mod copies;
mod places;
mod told;

pub(super) use told::is_told;

use super::claim::{Claim, inode_field, link_field};
use super::{read_part, text};
use crate::catalog::journal::{Folded, PARTS, Stand};
use crate::catalog::namespace::{self, Plan};
use crate::catalog::reads::array;
use crate::catalog::transaction::{Check, Operation, Place, TIME_FIELD, Transaction};
use crate::catalog::{Catalog, CatalogError};
use crate::record::*;
use std::collections::BTreeMap;
use told::{Kept, Raised, UNREAD};

/// Names that are tried for something whose own is taken.
const NAMES_TRIED: usize = 100;
/// Inodes asked about in one round trip.
const PAGE: usize = 1000;
/// Rounds in which what finds its name taken or its directory missing waits for the rest.
const ROUNDS_MAX: usize = 200;
/// Directories that were removed and are not empty (hash: inode -> after which event they were).
const UNDEAD: &str = "ks:undead";

/// One inode's news.
struct News {
    stand: Stand,
    ino: Ino,
    /// `None`: only its links are news.
    record: Option<(Stand, Option<Inode>)>,
    links: BTreeMap<Link, (Stand, bool)>,
    time: Option<Time>,
    /// What `ks:recovered` said of all that.
    known: Kept,
}

impl News {
    fn is_gone(&self) -> bool {
        matches!(self.record, Some((_, None)))
    }
}

/// How what has no place is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    /// It waits for the rest of the news.
    Waits,
    /// Whoever stands in its place with the older claim makes way.
    Claims,
    /// It gets a name beside its own.
    Last,
}

/// Without the time of now for the directory: it happened long ago.
fn untimed<T>(mut plan: Plan<T>) -> Plan<T> {
    let is_time = |operation: &Operation| matches!(operation, Operation::SetField(Place::Directory(_), field, _) if field == TIME_FIELD);
    plan.transaction
        .operations
        .retain(|operation| !is_time(operation));
    plan
}

/// Whether the rest of the news may help.
fn may_wait(error: &CatalogError) -> bool {
    let errnos = [libc::EEXIST, libc::ENOENT, libc::ENOTEMPTY, libc::EINVAL];
    matches!(error, CatalogError::Posix(errno) if errnos.contains(errno))
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
        news.sort_by_key(|one| (one.stand, !one.is_gone(), one.ino));
        let count = news.len();
        self.bring_all(news).await?;
        self.bury().await?;
        if count > 0 {
            tracing::info!(inodes = count, "what this node alone knew is in the tree");
        }
        Ok(())
    }

    /// Brings what has a place until nothing more has; then whoever has the better claim to a place gets it; the rest gets others.
    async fn bring_all(&self, mut news: Vec<News>) -> Result<(), CatalogError> {
        let mut round = Round::Waits;
        for _ in 0..ROUNDS_MAX {
            let before = news.len();
            news = self.bring_round(news, round).await?;
            round = match (round, news.len() < before) {
                _ if news.is_empty() => return Ok(()),
                (_, true) => Round::Waits,
                (Round::Waits, false) => Round::Claims,
                (_, false) => break,
            };
        }
        self.bring_round(news, Round::Last).await.map(drop)
    }

    /// Returns what waits.
    async fn bring_round(&self, news: Vec<News>, round: Round) -> Result<Vec<News>, CatalogError> {
        let mut waiting = Vec::new();
        for one in news {
            match self.bring_one(&one, round).await {
                Ok(()) => {}
                Err(error) if may_wait(&error) && round != Round::Last => waiting.push(one),
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
        let mut fields = Vec::new();
        for (ino, of) in page {
            fields.extend([inode_field(*ino), format!("t{ino}").into_bytes()]);
            for link in of.links.keys() {
                fields.push(link_field(*ino, link));
            }
        }
        let known = self.recovered_of(fields).await?;
        let is_later = |field: &[u8], stand: Stand| {
            let known = known.get(field).and_then(Option::as_ref);
            known.is_none_or(|known| stand.to_text() > *known)
        };
        let mut all = Vec::new();
        for (ino, of) in page {
            let mut news = News {
                stand: Stand::default(),
                ino: *ino,
                record: None,
                links: BTreeMap::new(),
                time: None,
                known: Kept::new(),
            };
            let own = inode_field(*ino);
            if let Some((stand, record)) = &of.record
                && is_later(&own, *stand)
            {
                let inode = record.as_ref().map(|bytes| decode(bytes)).transpose()?;
                news.record = Some((*stand, inode));
            }
            for (link, (stand, is_there)) in &of.links {
                if is_later(&link_field(*ino, link), *stand) {
                    news.links.insert(link.clone(), (*stand, *is_there));
                }
            }
            let since = of
                .time
                .filter(|(stand, _)| is_later(format!("t{ino}").as_bytes(), *stand));
            news.time = since.map(|(_, time)| time);
            if news.record.is_none() && news.links.is_empty() && news.time.is_none() {
                continue;
            }
            let last = of.record.as_ref().map(|(stand, _)| *stand);
            let linked = of.links.values().map(|(stand, _)| *stand).max();
            news.stand = last.or(linked).unwrap_or_default();
            let said = known.get(&own).cloned().flatten();
            news.known.insert(own, said);
            all.push(news);
        }
        Ok(all)
    }

    async fn bring_one(&self, one: &News, round: Round) -> Result<(), CatalogError> {
        let current = self.record(one.ino, false).await?;
        match (&one.record, current) {
            (Some((stand, None)), Some(_)) => return self.bring_gone(one.ino, *stand, round).await,
            (Some((stand, None)), None) => return self.note(inode_field(one.ino), *stand).await,
            (Some((stand, Some(inode))), None) => {
                self.bring_new(one, *stand, inode, round).await?;
            }
            (Some((stand, Some(inode))), Some(_)) => {
                self.bring_changed(one, *stand, inode, round).await?;
            }
            (None, Some(_)) => {}
            (None, None) => return Ok(()),
        }
        for (link, (stand, is_there)) in &one.links {
            match self
                .bring_link(one.ino, link, *stand, *is_there, round)
                .await
            {
                Err(error) if may_wait(&error) && round != Round::Last => return Err(error),
                Ok(()) | Err(CatalogError::Posix(_)) => {}
                Err(error) => return Err(error),
            }
        }
        match one.time {
            Some(time) => self.bring_time(one.ino, time).await,
            None => Ok(()),
        }
    }

    async fn bring_link(
        &self,
        ino: Ino,
        link: &Link,
        stand: Stand,
        is_there: bool,
        round: Round,
    ) -> Result<(), CatalogError> {
        let field = link_field(ino, link);
        let raised = Raised::from([(field.clone(), stand)]);
        let stands = self.lookup(link.parent, &link.name).await?;
        let its = stands.as_ref().filter(|node| node.ino == ino);
        let is_own = its
            .is_some_and(|node| (node.inode.parent, &node.inode.name) == (link.parent, &link.name));
        match (is_there, its) {
            // No further link any more: removed, or its own name since another was removed.
            (false, Some(_)) if !is_own => self.unlink_told(link, &raised).await,
            (false, _) | (true, Some(_)) => self.note(field, stand).await,
            (true, None) => {
                if round == Round::Claims {
                    let claim = Claim::of_news(stand, None);
                    self.make_way(link, &claim, Kind::File).await?;
                }
                let linked = self.told("a link", UNREAD, &raised, |known, now| {
                    namespace::link(known, ino, link.parent, &link.name, now).map(untimed)
                });
                linked.await?;
                self.tell_own(link.parent);
                Ok(())
            }
        }
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
    async fn bring_new(
        &self,
        one: &News,
        stand: Stand,
        inode: &Inode,
        round: Round,
    ) -> Result<(), CatalogError> {
        if one.ino == ROOT {
            return Ok(());
        }
        if self.record(inode.parent, false).await?.is_none() {
            if round != Round::Last {
                return Err(CatalogError::Posix(libc::ENOENT));
            }
            let above = super::found_directory(inode.parent);
            let stand = Stand::HEARSAY;
            self.enter_numbered(inode.parent, &above, stand, UNREAD, true)
                .await?;
        }
        let evicted = self.claim_place(stand, inode, round).await?;
        let is_last = round == Round::Last;
        self.enter_numbered(one.ino, inode, stand, &one.known, is_last)
            .await?;
        match evicted {
            Some(evicted) => self.empty_into(evicted, one.ino).await,
            None => Ok(()),
        }
    }

    async fn claim_place(
        &self,
        stand: Stand,
        inode: &Inode,
        round: Round,
    ) -> Result<Option<places::Evicted>, CatalogError> {
        if round != Round::Claims {
            return Ok(None);
        }
        let link = Link {
            parent: inode.parent,
            name: inode.name.clone(),
        };
        let claim = Claim::of_news(stand, Some(inode));
        self.make_way(&link, &claim, inode.kind).await
    }

    /// The tree has an older record: to where this one says, and as it says.
    async fn bring_changed(
        &self,
        one: &News,
        stand: Stand,
        inode: &Inode,
        round: Round,
    ) -> Result<(), CatalogError> {
        let ino = one.ino;
        let Some(current) = self.record(ino, false).await? else {
            return Err(CatalogError::Posix(libc::ENOENT));
        };
        let old = &current.inode;
        if ino != ROOT && (old.parent, &old.name) != (inode.parent, &inode.name) {
            let stands = self.lookup(inode.parent, &inode.name).await?;
            let is_link = stands.is_some_and(|node| node.ino == ino);
            let evicted = match is_link {
                true => None,
                false => self.claim_place(stand, inode, round).await?,
            };
            self.move_own(ino, inode, round == Round::Last).await?;
            if let Some(evicted) = evicted {
                self.empty_into(evicted, ino).await?;
            }
        }
        let raised = Raised::from([(inode_field(ino), stand)]);
        let label = format!("inode {ino}");
        let changed = self.told(&label, &one.known, &raised, |known, _| {
            self.as_told(known, ino, inode)
        });
        changed.await.map(drop)
    }

    /// Everything of a record but where it stands.
    fn as_told(
        &self,
        known: &namespace::Known,
        ino: Ino,
        inode: &Inode,
    ) -> Result<Plan<()>, namespace::Stop> {
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
        if wanted.kind == Kind::File && wanted.home == self.me() {
            namespace::set_holding(&mut change, ino, &wanted);
        }
        Ok(Plan {
            transaction: change,
            value: (),
        })
    }

    /// It was removed, later than all that the others know of it.
    async fn bring_gone(&self, ino: Ino, stand: Stand, round: Round) -> Result<(), CatalogError> {
        let raised = Raised::from([(inode_field(ino), stand)]);
        while let Some(record) = self.record(ino, false).await? {
            let (parent, name) = (record.inode.parent, record.inode.name.clone());
            if record.inode.kind != Kind::Directory {
                self.unlink_told(&Link { parent, name }, &raised).await?;
                if !self.is_older(ino, stand).await? {
                    return Ok(());
                }
                continue;
            }
            let removed = self.told("a directory", UNREAD, &raised, |known, now| {
                namespace::rmdir(known, parent, &name, now).map(untimed)
            });
            return match removed.await {
                Err(CatalogError::Posix(libc::ENOTEMPTY)) if round == Round::Last => {
                    self.remember_undead(ino, stand).await
                }
                removed => {
                    self.tell_own(parent);
                    removed.map(drop)
                }
            };
        }
        Ok(())
    }

    /// Whether nothing later than `stand` is known of an inode.
    async fn is_older(&self, ino: Ino, stand: Stand) -> Result<bool, CatalogError> {
        let known = self.recovered_of([inode_field(ino)]).await?;
        let known = known.values().next().cloned().flatten();
        Ok(known.is_none_or(|known| known <= stand.to_text()))
    }

    async fn remember_undead(&self, ino: Ino, stand: Stand) -> Result<(), CatalogError> {
        let mut command = redis::cmd("HSET");
        command.arg(UNDEAD).arg(ino.to_string());
        command.arg(format!("{} {} {}", stand.0, stand.1, stand.2));
        self.redis().run(&command).await?;
        Ok(())
    }

    /// Removes directories that were removed long ago and that are empty by now.
    async fn bury(&self) -> Result<(), CatalogError> {
        let mut command = redis::cmd("HGETALL");
        command.arg(UNDEAD);
        let all = array(self.redis().run(&command).await?).unwrap_or_default();
        let mut all: Vec<String> = all.into_iter().filter_map(text).collect();
        loop {
            let mut left = Vec::new();
            for pair in all.chunks_exact(2) {
                if !self.bury_one(&pair[0], &pair[1]).await? {
                    left.extend_from_slice(pair);
                }
            }
            if left.len() == all.len() {
                return Ok(());
            }
            all = left;
        }
    }

    /// `false`: it is not empty yet.
    async fn bury_one(&self, ino: &str, stand: &str) -> Result<bool, CatalogError> {
        let parts: Vec<u64> = stand
            .split(' ')
            .filter_map(|part| part.parse().ok())
            .collect();
        if let (Ok(ino), [ms, sequence, untold]) = (ino.parse(), &parts[..]) {
            let stand = Stand(*ms, *sequence, *untold);
            match self.bring_gone(ino, stand, Round::Waits).await {
                Ok(()) => {}
                Err(CatalogError::Posix(_)) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        let mut command = redis::cmd("HDEL");
        command.arg(UNDEAD).arg(ino);
        self.redis().run(&command).await?;
        Ok(true)
    }
}
