//! How much of a call's output may be under way: so that a caller who reads slowly slows the call down, and nothing is lost.
//!
//! Who takes part: the executing node sends at most a window of output and then waits for credit (`Flow`); the node where the caller
//! waits gives credit for what its connection has taken (`Inflow`). Pure. What always holds: at most `WINDOW_BYTES` of a call, and
//! what a pipe gives at once, are between the two nodes; a call whose output must all arrive (`paced`) waits as long as its caller
//! is there, any other for `PATIENCE_MS`, after which its output is dropped and counted.
//! Not for how fast a call may write: that is `output`.

/// Bytes of one call's output that its caller's node has not given credit for.
pub const WINDOW_BYTES: u64 = 1024 * 1024;
/// Credit is given for so many bytes at once.
const CREDIT_BYTES: u64 = WINDOW_BYTES / 4;
/// How long a call is held up by a caller who does not read.
pub const PATIENCE_MS: u64 = 5_000;

/// On the executing node.
#[derive(Clone, Debug, Default)]
pub struct Flow {
    sent_bytes: u64,
    credited_bytes: u64,
    /// Since when there is no room.
    stalled_at_ms: Option<u64>,
}

/// What is to be done with what a call writes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is read and passed on.
    Pass,
    /// It stays in the pipe.
    Wait,
    /// It is read, so that the call goes on, and dropped.
    Drop,
}

impl Flow {
    /// What is to be done now. `has_room`: the way to the caller's node is free.
    pub fn next(&mut self, has_room: bool, is_paced: bool, now_ms: u64) -> Next {
        let under_way = self.sent_bytes.saturating_sub(self.credited_bytes);
        if has_room && under_way < WINDOW_BYTES {
            self.stalled_at_ms = None;
            return Next::Pass;
        }
        let since = *self.stalled_at_ms.get_or_insert(now_ms);
        match !is_paced && now_ms.saturating_sub(since) >= PATIENCE_MS {
            true => Next::Drop,
            false => Next::Wait,
        }
    }

    /// So many bytes went to the caller's node.
    pub fn sent(&mut self, bytes: u64) {
        self.sent_bytes = self.sent_bytes.saturating_add(bytes);
    }

    /// The caller's connection has taken so many bytes in all.
    pub fn credit(&mut self, bytes_in_all: u64) {
        self.credited_bytes = self.credited_bytes.max(bytes_in_all);
    }

    /// Whether it waits for credit.
    pub fn is_stalled(&self) -> bool {
        self.stalled_at_ms.is_some()
    }

    /// Another node waits for it now, and counts from nothing.
    pub fn restart(&mut self) {
        *self = Self::default();
    }

    /// Nobody waits for it any more, or nobody will say so.
    pub fn open(&mut self) {
        self.credited_bytes = u64::MAX;
    }
}

/// On the node where the caller waits.
#[derive(Clone, Debug, Default)]
pub struct Inflow {
    came_bytes: u64,
    credited_bytes: u64,
}

impl Inflow {
    /// So many bytes came.
    pub fn came(&mut self, bytes: u64) {
        self.came_bytes += bytes;
    }

    /// The credit to give now, in all. `has_room`: the caller's connection takes more.
    pub fn credit(&mut self, has_room: bool) -> Option<u64> {
        let is_due = has_room && self.came_bytes - self.credited_bytes >= CREDIT_BYTES;
        is_due.then(|| {
            self.credited_bytes = self.came_bytes;
            self.came_bytes
        })
    }

    /// Whether credit is due once there is room.
    pub fn owes(&self) -> bool {
        self.came_bytes - self.credited_bytes >= CREDIT_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_ordinary_call_waits_for_a_while_and_a_paced_one_for_as_long_as_it_takes() {
        for (is_paced, late) in [(false, Next::Drop), (true, Next::Wait)] {
            let mut flow = Flow::default();
            assert_eq!(flow.next(true, is_paced, 0), Next::Pass);
            flow.sent(WINDOW_BYTES);
            assert_eq!(flow.next(true, is_paced, 10), Next::Wait);
            assert!(flow.is_stalled());
            assert_eq!(flow.next(true, is_paced, 9 + PATIENCE_MS), Next::Wait);
            assert_eq!(flow.next(true, is_paced, 10 + PATIENCE_MS), late);
            flow.credit(1);
            assert_eq!(flow.next(true, is_paced, 20 + PATIENCE_MS), Next::Pass);
            assert_eq!(flow.next(false, is_paced, 30 + PATIENCE_MS), Next::Wait);
            flow.open();
            assert_eq!(flow.next(true, is_paced, 40 + PATIENCE_MS), Next::Pass);
        }
    }

    proptest! {
        /// A caller that takes its output now and then, and messages that are late: the call always comes to its end, and no more
        /// than the window and one piece is under way.
        #[test]
        fn all_of_it_arrives(
            pieces in proptest::collection::vec(1u64..65_536, 1..200),
            takes in proptest::collection::vec(any::<bool>(), 1..20),
        ) {
            let (mut flow, mut inflow) = (Flow::default(), Inflow::default());
            let (mut link, mut credits) = (Vec::new(), Vec::new());
            let mut waiting = pieces.clone();
            let (mut arrived, mut now_ms, mut turns) = (0, 0, takes.iter().cycle());
            while !waiting.is_empty() {
                now_ms += 1_000;
                prop_assert!(now_ms < 1_000_000_000, "it stands still");
                if flow.next(true, true, now_ms) == Next::Pass {
                    let piece = waiting.pop().unwrap();
                    flow.sent(piece);
                    link.push(piece);
                }
                let under_way: u64 = link.iter().sum();
                prop_assert!(under_way <= WINDOW_BYTES + 65_536);
                // The link carries what was sent before; the caller has room now and then.
                let has_room = *turns.next().unwrap() || now_ms % 50_000 == 0;
                if has_room {
                    for piece in link.drain(..) {
                        inflow.came(piece);
                        arrived += piece;
                    }
                }
                credits.extend(inflow.credit(has_room));
                if now_ms % 3_000 == 0 {
                    credits.drain(..).for_each(|credit| flow.credit(credit));
                }
            }
            arrived += link.iter().sum::<u64>();
            prop_assert_eq!(arrived, pieces.iter().sum::<u64>());
        }
    }
}
