//! What a node's data directory knows of a rebuilt tree beside its journal: files that only a copy here knows, later versions, copies.
use super::super::claim::{NOW, inode_field};
use super::told::{NOTHING, UNREAD};
use crate::catalog::changes::COMMIT;
use crate::catalog::journal::Stand;
use crate::catalog::namespace::{self, Plan};
use crate::catalog::transaction::{Check, Operation, Place, Transaction};
use crate::catalog::{Catalog, CatalogError};
use crate::record::*;

/// The tree has that version already, or a later one.
const NOT_NEWER: i32 = libc::EALREADY;

impl Catalog {
    /// Enters a file that only its copy here knows, under its number. Whatever any journal says of it, and is brought later, counts more.
    pub(crate) async fn enter_found(&self, ino: Ino, inode: Inode) -> Result<(), CatalogError> {
        self.enter_numbered(ino, &inode, Stand::HEARSAY, UNREAD, true)
            .await
    }

    /// A later version than the tree knows becomes its, homed here. `false`: somebody has changed the file since the tree was rebuilt.
    pub(crate) async fn put_newer(&self, ino: Ino, newer: Inode) -> Result<bool, CatalogError> {
        let known = self.recovered_of([inode_field(ino)]).await?;
        if known.values().any(|known| known.as_deref() == Some(NOW)) {
            return Ok(false);
        }
        let me = self.me();
        let label = format!("inode {ino}");
        let put = self.told(&label, &known, NOTHING, |known, _| {
            let record = known.inode(ino, libc::ENOENT)?;
            if record.inode.version >= newer.version {
                return Err(namespace::Stop::Posix(NOT_NEWER));
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
