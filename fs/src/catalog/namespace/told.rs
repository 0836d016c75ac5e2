//! Changes that a journal tells of later: the name that an inode has, and on what such a change rests beside the tree.
use super::*;

/// The inode's own name becomes this one, which is free (else EEXIST) or one of its further links'. The name it had goes.
pub fn own_name(
    known: &Known,
    ino: Ino,
    (parent, name): (Ino, &[u8]),
    now: Time,
) -> Result<Plan<()>, Stop> {
    let record = known.inode(ino, libc::ENOENT)?;
    let (old_parent, old_name) = (record.inode.parent, &record.inode.name[..]);
    match known.entry(parent, name)? {
        Some(entry) if entry.ino == ino && (old_parent, old_name) != (parent, name) => {
            link_becomes_own(known, entry, record, (parent, name), now)
        }
        _ => {
            let (from, to) = ((old_parent, old_name), (parent, name));
            rename::rename(known, from, to, rename::NO_REPLACE, now)
        }
    }
}

fn link_becomes_own(
    known: &Known,
    entry: Entry,
    record: &Record,
    (parent, name): (Ino, &[u8]),
    now: Time,
) -> Result<Plan<()>, Stop> {
    let ino = entry.ino;
    let (old_parent, old_name) = (record.inode.parent, &record.inode.name[..]);
    let above = Ancestors::of(known, old_parent)?;
    let link = Link {
        parent,
        name: name.to_vec(),
    };
    let mut change = Transaction::default();
    expect_entry(&mut change, parent, name, entry);
    expect_entry(&mut change, old_parent, old_name, entry);
    expect_record(&mut change, ino, record);
    above.expect(&mut change);
    change.expect(Check::Member(Place::Links(ino), link.to_bytes()));
    delete_entry(&mut change, old_parent, old_name);
    touch_directory(&mut change, old_parent, now, 0);
    change.then(Operation::RemoveMember(Place::Links(ino), link.to_bytes()));
    let mut inode = (*record.inode).clone();
    inode.nlink = inode.nlink.saturating_sub(1).max(1);
    (inode.parent, inode.name) = (parent, name.to_vec());
    set_inode(&mut change, ino, &inode);
    change.event = Some(Event::Unlinked {
        parent: old_parent,
        name: old_name.to_vec(),
        ino,
        path: above.path().join(old_name).as_bytes().to_vec(),
        gone: false,
    });
    Ok(Plan {
        transaction: change,
        value: (),
    })
}
