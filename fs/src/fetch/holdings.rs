//! Tells the catalog what this node holds, many files at a time: what became whole a moment ago waits for those that come
//! right after it, and for the answer to those before, and then goes with them in one round trip.
//!
//! What always holds: every `tell` ends, with the catalog's answer; notes of one file are told in the order in which they came.
use crate::catalog::Catalog;
use crate::error::FsError;
use crate::record::{Holding, Ino};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Notes in one round trip.
const BATCH_MAX: usize = 256;
/// Notes that wait; whoever brings more waits, too.
const WAITING_MAX: usize = 1024;
/// How long the first note waits for others.
const GATHER: Duration = Duration::from_millis(2);

struct Note {
    ino: Ino,
    holding: Holding,
    told: oneshot::Sender<Result<(), String>>,
}

/// The way to the catalog; the task behind it ends with it.
pub(super) struct Holdings {
    notes: mpsc::Sender<Note>,
}

impl Holdings {
    /// Call inside the runtime.
    pub(super) fn new(catalog: Catalog) -> Self {
        let (notes, arriving) = mpsc::channel(WAITING_MAX);
        tokio::spawn(pass_on(catalog, arriving));
        Self { notes }
    }

    /// What this node holds of a file now; returns when the catalog knows. No-op when the file is gone.
    pub(super) async fn tell(&self, ino: Ino, holding: Holding) -> Result<(), FsError> {
        let (told, answer) = oneshot::channel();
        let note = Note { ino, holding, told };
        let ended = || FsError::Catalog("this node is ending".into());
        self.notes.send(note).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?.map_err(FsError::Catalog)
    }
}

async fn pass_on(catalog: Catalog, mut arriving: mpsc::Receiver<Note>) {
    let mut notes = Vec::new();
    while arriving.recv_many(&mut notes, BATCH_MAX).await > 0 {
        tokio::time::sleep(GATHER).await;
        while notes.len() < BATCH_MAX
            && let Ok(note) = arriving.try_recv()
        {
            notes.push(note);
        }
        let held: Vec<(Ino, Holding)> = notes.iter().map(|n| (n.ino, n.holding)).collect();
        let answer = catalog.set_holdings(&held).await;
        let answer = answer.map_err(|error| error.to_string());
        for note in notes.drain(..) {
            // Whoever has gone does not want to know.
            let _ = note.told.send(answer.clone());
        }
    }
}
