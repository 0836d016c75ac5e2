//! Moving and exchanging names: one transaction, however much is below.
use super::*;

/// `RENAME_NOREPLACE`: fails with EEXIST where the new name exists.
pub const NO_REPLACE: u32 = 1;
/// `RENAME_EXCHANGE`: the two names change places.
pub const EXCHANGE: u32 = 2;

/// One end of a rename.
#[derive(Clone, Copy)]
struct End<'a> {
    parent: Ino,
    name: &'a [u8],
}

impl End<'_> {
    fn link(&self) -> Link {
        Link {
            parent: self.parent,
            name: self.name.to_vec(),
        }
    }
}

/// An end and what stands there.
struct Standing<'a> {
    end: End<'a>,
    entry: Entry,
    record: &'a Record,
}

/// Moves a name, or exchanges two. `flags`: `NO_REPLACE` or `EXCHANGE`.
pub fn rename(
    known: &Known,
    from: (Ino, &[u8]),
    to: (Ino, &[u8]),
    flags: u32,
    now: Time,
) -> Result<Plan<()>, Stop> {
    let (from, to) = (
        End {
            parent: from.0,
            name: from.1,
        },
        End {
            parent: to.0,
            name: to.1,
        },
    );
    if flags & !(NO_REPLACE | EXCHANGE) != 0 || flags == NO_REPLACE | EXCHANGE {
        return Err(Stop::Posix(libc::EINVAL));
    }
    check_name(from.name).map_err(Stop::Posix)?;
    check_new_name(to.parent, to.name).map_err(Stop::Posix)?;
    let moved = known
        .entry(from.parent, from.name)?
        .ok_or(Stop::Posix(libc::ENOENT))?;
    let target = known.entry(to.parent, to.name)?;
    match target {
        Some(_) if flags == NO_REPLACE => return Err(Stop::Posix(libc::EEXIST)),
        None if flags == EXCHANGE => return Err(Stop::Posix(libc::ENOENT)),
        // Two links of one inode, or a name onto itself: nothing happens, says POSIX.
        Some(target) if target.ino == moved.ino => {
            return Ok(Plan {
                transaction: Transaction::default(),
                value: (),
            });
        }
        _ => {}
    }
    let moved = Standing {
        end: from,
        entry: moved,
        record: known.inode(moved.ino, libc::ENOENT)?,
    };
    let above_from = Ancestors::of(known, from.parent)?;
    let above_to = Ancestors::of(known, to.parent)?;
    if above_to.contains(moved.entry.ino) {
        return Err(Stop::Posix(libc::EINVAL));
    }
    let mut change = Transaction::default();
    expect_entry(&mut change, from.parent, from.name, moved.entry);
    above_from.expect(&mut change);
    above_to.expect(&mut change);
    expect_record(&mut change, moved.entry.ino, moved.record);
    let paths = (
        above_from.path().join(from.name).as_bytes().to_vec(),
        above_to.path().join(to.name).as_bytes().to_vec(),
    );
    match target {
        Some(target) if flags == EXCHANGE => {
            if above_from.contains(target.ino) {
                return Err(Stop::Posix(libc::EINVAL));
            }
            let other = Standing {
                end: to,
                entry: target,
                record: known.inode(target.ino, libc::ENOENT)?,
            };
            exchange(&mut change, &moved, &other, paths, now);
        }
        target => replace(known, &mut change, &moved, to, target, flags, paths, now)?,
    }
    Ok(Plan {
        transaction: change,
        value: (),
    })
}

/// The inode's record after its link `from` became `to`.
fn relink(change: &mut Transaction, moved: &Standing<'_>, to: End<'_>, now: Time) {
    let mut inode = (*moved.record.inode).clone();
    let ino = moved.entry.ino;
    inode.ctime = now;
    if inode.parent == moved.end.parent && inode.name == moved.end.name {
        inode.parent = to.parent;
        inode.name = to.name.to_vec();
    } else {
        let (old, new) = (moved.end.link().to_bytes(), to.link().to_bytes());
        change.expect(Check::Member(Place::Links(ino), old.clone()));
        change.then(Operation::RemoveMember(Place::Links(ino), old));
        change.then(Operation::AddMember(Place::Links(ino), new));
    }
    set_inode(change, ino, &inode);
}

fn exchange(
    change: &mut Transaction,
    first: &Standing<'_>,
    second: &Standing<'_>,
    paths: (Vec<u8>, Vec<u8>),
    now: Time,
) {
    let (from, to) = (first.end, second.end);
    expect_entry(change, to.parent, to.name, second.entry);
    expect_record(change, second.entry.ino, second.record);
    set_entry(change, from.parent, from.name, second.entry);
    set_entry(change, to.parent, to.name, first.entry);
    relink(change, first, to, now);
    relink(change, second, from, now);
    let more = is_directory(second.entry.kind) - is_directory(first.entry.kind);
    touch_both(change, from.parent, more, to.parent, -more, now);
    change.event = Some(Event::Exchanged {
        first_parent: from.parent,
        first_name: from.name.to_vec(),
        second_parent: to.parent,
        second_name: to.name.to_vec(),
        first_ino: first.entry.ino,
        second_ino: second.entry.ino,
        first_path: paths.0,
        second_path: paths.1,
    });
}

/// Both directories' entries changed; they may be the same.
fn touch_both(
    change: &mut Transaction,
    from: Ino,
    more_in_from: i64,
    to: Ino,
    more_in_to: i64,
    now: Time,
) {
    if from == to {
        touch_directory(change, from, now, more_in_from + more_in_to);
    } else {
        touch_directory(change, from, now, more_in_from);
        touch_directory(change, to, now, more_in_to);
    }
}

#[allow(clippy::too_many_arguments)]
fn replace(
    known: &Known,
    change: &mut Transaction,
    moved: &Standing<'_>,
    to: End<'_>,
    target: Option<Entry>,
    flags: u32,
    paths: (Vec<u8>, Vec<u8>),
    now: Time,
) -> Result<(), Stop> {
    let from = moved.end;
    change.require(
        Check::Field(Place::Directory(to.parent), TIME_FIELD.to_vec()),
        libc::ENOENT,
    );
    match target {
        Some(entry) => {
            expect_entry(change, to.parent, to.name, entry);
            make_way(known, change, moved.entry.kind, entry, to, now)?;
        }
        None => {
            let free = Check::NoField(Place::Directory(to.parent), to.name.to_vec());
            if flags == NO_REPLACE {
                change.require(free, libc::EEXIST);
            } else {
                change.expect(free);
            }
        }
    }
    delete_entry(change, from.parent, from.name);
    set_entry(change, to.parent, to.name, moved.entry);
    relink(change, moved, to, now);
    let directory = is_directory(moved.entry.kind);
    let replaced = target.map_or(0, |entry| is_directory(entry.kind));
    touch_both(
        change,
        from.parent,
        -directory,
        to.parent,
        directory - replaced,
        now,
    );
    change.event = Some(Event::Renamed {
        from_parent: from.parent,
        from_name: from.name.to_vec(),
        to_parent: to.parent,
        to_name: to.name.to_vec(),
        ino: moved.entry.ino,
        from_path: paths.0,
        to_path: paths.1,
        replaced: target.map(|entry| entry.ino),
    });
    Ok(())
}

/// What stands at the new name loses it.
fn make_way(
    known: &Known,
    change: &mut Transaction,
    moved: Kind,
    replaced: Entry,
    to: End<'_>,
    now: Time,
) -> Result<(), Stop> {
    match (moved, replaced.kind) {
        (Kind::Directory, Kind::Directory) => drop_directory(change, replaced.ino),
        (Kind::Directory, _) => return Err(Stop::Posix(libc::ENOTDIR)),
        (_, Kind::Directory) => return Err(Stop::Posix(libc::EISDIR)),
        _ => {
            let record = known.inode(replaced.ino, libc::ENOENT)?;
            drop_link(known, change, replaced.ino, record, &to.link(), now)?;
        }
    }
    Ok(())
}
