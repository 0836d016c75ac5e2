//! Logs refused handshakes: who and why, once per peer and minute.
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How often one peer's refusals are logged.
const PERIOD: Duration = Duration::from_secs(60);
/// Peers that are remembered; when more come at once, one line a period stands for the rest.
const PEERS_MAX: usize = 1024;

/// The log of refused handshakes.
#[derive(Default)]
pub(super) struct Refusals(Mutex<Recent>);

impl Refusals {
    /// Logs, unless this peer was logged within the last minute.
    pub(super) fn log(&self, peer: SocketAddr, reason: &str) {
        let mut recent = self.0.lock().expect("no panic while held");
        match recent.note(peer.ip(), Instant::now()) {
            Verdict::Log { unlogged: 0 } => {
                tracing::warn!(%peer, reason, "refused a connection");
            }
            Verdict::Log { unlogged } => {
                tracing::warn!(%peer, reason, unlogged, "refused a connection");
            }
            Verdict::Quiet => {}
        }
    }
}

/// Who was logged when: pure.
#[derive(Default)]
struct Recent {
    logged: HashMap<IpAddr, Entry>,
}

struct Entry {
    at: Instant,
    unlogged: u64,
}

#[derive(Debug, PartialEq)]
enum Verdict {
    /// With how many refusals since the last line.
    Log {
        unlogged: u64,
    },
    Quiet,
}

impl Recent {
    fn note(&mut self, peer: IpAddr, now: Instant) -> Verdict {
        if let Some(entry) = self.logged.get_mut(&peer) {
            if now.duration_since(entry.at) < PERIOD {
                entry.unlogged += 1;
                return Verdict::Quiet;
            }
            let unlogged = std::mem::take(&mut entry.unlogged);
            entry.at = now;
            return Verdict::Log { unlogged };
        }
        if self.logged.len() >= PEERS_MAX {
            self.logged
                .retain(|_, entry| now.duration_since(entry.at) < PERIOD);
            if self.logged.len() >= PEERS_MAX {
                return Verdict::Quiet;
            }
        }
        let entry = Entry {
            at: now,
            unlogged: 0,
        };
        self.logged.insert(peer, entry);
        Verdict::Log { unlogged: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_a_minute_and_bounded() {
        let mut recent = Recent::default();
        let start = Instant::now();
        let peer = |n: u32| IpAddr::from(n.to_be_bytes());
        assert_eq!(recent.note(peer(1), start), Verdict::Log { unlogged: 0 });
        assert_eq!(recent.note(peer(1), start), Verdict::Quiet);
        assert_eq!(recent.note(peer(1), start + PERIOD / 2), Verdict::Quiet);
        assert_eq!(recent.note(peer(2), start), Verdict::Log { unlogged: 0 });
        let verdict = recent.note(peer(1), start + PERIOD);
        assert_eq!(verdict, Verdict::Log { unlogged: 2 });
        for n in 0..5000 {
            recent.note(peer(n), start + PERIOD);
        }
        assert!(recent.logged.len() <= PEERS_MAX);
        let verdict = recent.note(peer(9999), start + PERIOD * 2);
        assert_eq!(verdict, Verdict::Log { unlogged: 0 });
    }
}
