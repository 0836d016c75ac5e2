//! Which nodes are known to be away, so that nobody who reads waits for them again. Pure.
//!
//! A node that has just gone may be back in a moment (a daemon that is started again, a link that is mended): readers wait a little for it. Once
//! it has been looked for in vain for `GRACE_*`, it is *away*: it is left at once, asked last, and given `LOOK` to show that it is back.
//!
//! Not for: a holder that answers and is slow, busy or wrong (`plan::holder`).
use crate::record::NodeId;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A node whose heart-beat has stopped gets so long to come back.
const GRACE_DEAD: Duration = Duration::from_secs(1);
/// A node that lives by the catalog and does not answer us gets so long.
const GRACE_SILENT: Duration = Duration::from_secs(4);
/// What was seen of a node that lives by the catalog is believed for so long after it was last seen.
const BELIEVED: Duration = Duration::from_secs(10);
/// Once it is away, so long is waited for a connection.
pub const LOOK: Duration = Duration::from_secs(1);

/// How a node was missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// The catalog has no heart-beat of it.
    Dead,
    /// It has one, and there is no connection to it.
    Silent,
}

#[derive(Debug)]
struct Absence {
    since: Instant,
    seen: Instant,
    sign: Sign,
}

impl Absence {
    fn is_believed(&self, now: Instant) -> bool {
        self.sign == Sign::Dead || now.saturating_duration_since(self.seen) < BELIEVED
    }

    fn is_away(&self, now: Instant) -> bool {
        let grace = match self.sign {
            Sign::Dead => GRACE_DEAD,
            Sign::Silent => GRACE_SILENT,
        };
        self.is_believed(now) && self.seen.saturating_duration_since(self.since) >= grace
    }
}

/// The nodes that were missed, at most as many as the cluster has.
#[derive(Debug, Default)]
pub struct Absences(HashMap<NodeId, Absence>);

impl Absences {
    /// The node was looked for from `began` until `now`, in vain.
    pub fn missed(&mut self, node: NodeId, sign: Sign, began: Instant, now: Instant) {
        let fresh = Absence {
            since: began,
            seen: now,
            sign,
        };
        let absence = self.0.entry(node).or_insert(fresh);
        if !absence.is_believed(began) {
            absence.since = began;
        }
        (absence.seen, absence.sign) = (now, sign);
    }

    /// It answered.
    pub fn answered(&mut self, node: NodeId) {
        self.0.remove(&node);
    }

    /// The catalog has a heart-beat of it again: it is looked for anew.
    pub fn lives(&mut self, node: NodeId) {
        if self.0.get(&node).is_some_and(|a| a.sign == Sign::Dead) {
            self.0.remove(&node);
        }
    }

    /// It has been looked for in vain for long enough.
    pub fn is_away(&self, node: NodeId, now: Instant) -> bool {
        self.0
            .get(&node)
            .is_some_and(|absence| absence.is_away(now))
    }

    /// How long to wait for a connection to it; `None`: as long as a connection may take.
    pub fn patience(&self, node: NodeId, now: Instant) -> Option<Duration> {
        let absence = self
            .0
            .get(&node)
            .filter(|absence| absence.is_believed(now))?;
        let left = (absence.since + GRACE_SILENT).saturating_duration_since(now);
        Some(left.max(LOOK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NODE: NodeId = NodeId(7);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn one_that_is_dead_by_the_catalog_is_away_after_a_moment() {
        let (mut absences, began) = (Absences::default(), Instant::now());
        absences.missed(NODE, Sign::Dead, began, began);
        assert!(!absences.is_away(NODE, began), "it may be starting again");
        absences.missed(NODE, Sign::Dead, began + SECOND, began + SECOND);
        assert!(absences.is_away(NODE, began + SECOND));
        let hours = began + 5000 * SECOND;
        assert!(absences.is_away(NODE, hours), "and stays so");
        absences.lives(NODE);
        assert!(!absences.is_away(NODE, hours));
    }

    #[test]
    fn one_that_does_not_answer_is_looked_for_longer() {
        let (mut absences, began) = (Absences::default(), Instant::now());
        assert_eq!(absences.patience(NODE, began), None);
        absences.missed(NODE, Sign::Silent, began, began + 3 * SECOND);
        assert!(!absences.is_away(NODE, began + 3 * SECOND));
        assert_eq!(absences.patience(NODE, began + 3 * SECOND), Some(SECOND));
        absences.missed(NODE, Sign::Silent, began + 3 * SECOND, began + 4 * SECOND);
        assert!(absences.is_away(NODE, began + 4 * SECOND));
        assert!(
            !absences.is_away(NODE, began + 60 * SECOND),
            "that was long ago"
        );
        assert_eq!(absences.patience(NODE, began + 60 * SECOND), None);
        absences.answered(NODE);
        assert!(!absences.is_away(NODE, began + 4 * SECOND));
    }

    proptest! {
        /// Whoever answered last is never away, and nobody is before its grace has gone by.
        #[test]
        fn away_means_missed_for_long(steps in prop::collection::vec((0u8..3, 0u64..3000), 1..60)) {
            let (mut absences, mut now) = (Absences::default(), Instant::now());
            let mut missed_since = None;
            for (what, pause_ms) in steps {
                let began = now;
                now += Duration::from_millis(pause_ms);
                match what {
                    0 => {
                        absences.answered(NODE);
                        missed_since = None;
                    }
                    sign => {
                        missed_since.get_or_insert(began);
                        let sign = if sign == 1 { Sign::Dead } else { Sign::Silent };
                        absences.missed(NODE, sign, began, now);
                    }
                }
                if absences.is_away(NODE, now) {
                    prop_assert!(missed_since.is_some_and(|since| now - since >= GRACE_DEAD));
                }
            }
        }
    }
}
