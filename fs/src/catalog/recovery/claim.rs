//! Who has a name that two claim, while the tree is rebuilt: plain functions, no Redis.
//!
//! What a journal says of an inode (or of a further link) held after its event: it had that name then. So of two that claim one name the
//! later is right, and the other one has left it: it was removed or moved by somebody who has not come yet. What was only heard of a
//! directory (`Stand::HEARSAY`) held when that record was made.
use crate::catalog::journal::Stand;
use crate::record::{Ino, Inode, Link};

/// What `ks:recovered` says of what was changed since the tree was whole: later than anything a journal says.
pub(super) const NOW: &str = "~";

/// Up to when a name was something's, as text in that order.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim(String);

impl Claim {
    /// Of an inode to the name in its record; `known`: what `ks:recovered` says of it.
    pub(super) fn of_inode(known: Option<&str>, inode: &Inode) -> Self {
        let heard = Stand::HEARSAY.to_text();
        match known {
            Some(known) if known > &*heard => Self(known.to_owned()),
            _ => {
                let made_ms = u64::try_from(inode.ctime / 1_000_000).unwrap_or(0);
                Self(Stand(made_ms, 0, 0).to_text())
            }
        }
    }

    /// Of a further link to its name.
    pub(super) fn of_link(known: Option<&str>) -> Self {
        Self(known.unwrap_or_default().to_owned())
    }

    /// Of what a journal says.
    pub(super) fn of_news(stand: Stand, inode: Option<&Inode>) -> Self {
        match inode {
            Some(inode) => Self::of_inode(Some(&stand.to_text()), inode),
            None => Self(stand.to_text()),
        }
    }

    /// It was given since the tree was whole.
    pub(super) fn is_now(&self) -> bool {
        self.0 == NOW
    }
}

/// The field of `ks:recovered` that speaks of a further link.
pub(super) fn link_field(ino: Ino, link: &Link) -> Vec<u8> {
    [format!("l{ino}/").as_bytes(), &link.to_bytes()].concat()
}

/// The field of `ks:recovered` that speaks of an inode.
pub(super) fn inode_field(ino: Ino) -> Vec<u8> {
    ino.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_later_claim_is_right_and_what_was_done_since_is_the_latest() {
        let made_at = |ms: i64| Inode {
            ctime: ms * 1_000_000,
            ..crate::catalog::new_root(0)
        };
        let text = |ms| Stand(ms, 0, 0).to_text();
        let claim = |ms| Claim::of_inode(Some(&text(ms)), &made_at(1));
        assert!(claim(5) < claim(6));
        assert!(claim(5) < Claim::of_inode(Some(NOW), &made_at(1)));
        let heard = Stand::HEARSAY.to_text();
        assert!(Claim::of_inode(Some(&heard), &made_at(7)) > claim(6));
        assert!(Claim::of_inode(None, &made_at(5)) < claim(6));
        assert!(Claim::of_link(None) < Claim::of_link(Some(&text(1))));
        assert_eq!(Claim::of_news(Stand(5, 0, 0), Some(&made_at(9))), claim(5));
    }
}
