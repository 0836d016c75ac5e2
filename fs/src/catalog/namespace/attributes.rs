//! Changes of an inode that leave its names alone: attributes, extended attributes, published contents, hashes.
use super::*;
use crate::catalog::{AttributeChange, Publication};

/// Longest value of an extended attribute, and most bytes of all of an inode's names and values together.
pub const XATTR_BYTES_MAX: usize = 64 * 1024;
/// `XATTR_CREATE`: fails with EEXIST where the attribute exists.
pub const XATTR_CREATE: i32 = 1;
/// `XATTR_REPLACE`: fails with ENODATA where it does not.
pub const XATTR_REPLACE: i32 = 2;
/// Longest name of an extended attribute, bytes.
const XATTR_NAME_BYTES_MAX: usize = 255;

/// The tree path of an inode's first link, its directories made conditions.
fn exact_path(known: &Known, change: &mut Transaction, inode: &Inode) -> Result<Vec<u8>, Stop> {
    let above = Ancestors::of(known, inode.parent)?;
    above.expect(change);
    Ok(above.path().join(&inode.name).as_bytes().to_vec())
}

/// One inode's record changes and all nodes are told.
fn changed(known: &Known, ino: Ino, record: &Record, inode: &Inode) -> Result<Transaction, Stop> {
    let mut change = Transaction::default();
    expect_record(&mut change, ino, record);
    let path = match ino {
        ROOT => Vec::new(),
        _ => exact_path(known, &mut change, inode)?,
    };
    set_inode(&mut change, ino, inode);
    change.event = Some(Event::Attributes { ino, path });
    Ok(change)
}

/// chmod, chown, utimens.
pub fn set_attributes(
    known: &Known,
    ino: Ino,
    wanted: &AttributeChange,
    now: Time,
) -> Result<Plan<Inode>, Stop> {
    let record = known.inode(ino, libc::ENOENT)?;
    let mut inode = (*record.inode).clone();
    if let Some(mode) = wanted.mode {
        inode.mode = mode & 0o7777;
    }
    inode.uid = wanted.uid.unwrap_or(inode.uid);
    inode.gid = wanted.gid.unwrap_or(inode.gid);
    inode.atime = wanted.atime.unwrap_or(inode.atime);
    inode.mtime = wanted.mtime.unwrap_or(inode.mtime);
    inode.ctime = wanted.ctime.unwrap_or(now);
    let mut change = changed(known, ino, record, &inode)?;
    if let (Kind::Directory, Some(mtime)) = (inode.kind, wanted.mtime) {
        change.then(Operation::SetField(
            Place::Directory(ino),
            TIME_FIELD.to_vec(),
            mtime.to_string().into_bytes(),
        ));
    }
    Ok(Plan {
        transaction: change,
        value: inode,
    })
}

/// Sets (`Some`) or removes an extended attribute.
pub fn set_xattr(
    known: &Known,
    ino: Ino,
    name: &[u8],
    value: Option<&[u8]>,
    flags: i32,
    now: Time,
) -> Result<Plan<()>, Stop> {
    if name.is_empty() || name.len() > XATTR_NAME_BYTES_MAX {
        return Err(Stop::Posix(libc::ERANGE));
    }
    let record = known.inode(ino, libc::ENOENT)?;
    let mut inode = (*record.inode).clone();
    let exists = inode.xattrs.contains_key(name);
    match value {
        None if !exists => return Err(Stop::Posix(libc::ENODATA)),
        None => {
            inode.xattrs.remove(name);
        }
        Some(_) if flags & XATTR_CREATE != 0 && exists => return Err(Stop::Posix(libc::EEXIST)),
        Some(_) if flags & XATTR_REPLACE != 0 && !exists => {
            return Err(Stop::Posix(libc::ENODATA));
        }
        Some(value) => {
            inode.xattrs.insert(name.to_vec(), value.to_vec());
        }
    }
    let bytes: usize = inode.xattrs.iter().map(|(n, v)| n.len() + v.len()).sum();
    if value.is_some() && bytes > XATTR_BYTES_MAX {
        return Err(Stop::Posix(libc::ENOSPC));
    }
    inode.ctime = now;
    Ok(Plan {
        transaction: changed(known, ino, record, &inode)?,
        value: (),
    })
}

/// A new version by the home of this epoch; ESTALE when that is not `me` any more or the file is gone.
pub fn publish(
    known: &Known,
    ino: Ino,
    me: NodeId,
    epoch: u32,
    publication: &Publication,
) -> Result<Plan<Inode>, Stop> {
    let record = known.inode(ino, libc::ESTALE)?;
    let mut inode = (*record.inode).clone();
    if inode.kind != Kind::File || inode.home != me || inode.epoch != epoch {
        return Err(Stop::Posix(libc::ESTALE));
    }
    inode.version += 1;
    inode.size = publication.size;
    inode.mtime = publication.mtime;
    inode.ctime = publication.ctime;
    inode.blake3 = publication.blake3;
    inode.md5 = None;
    let path = Ancestors::of(known, inode.parent)?.path().join(&inode.name);
    let mut change = Transaction::default();
    expect_record(&mut change, ino, record);
    set_inode(&mut change, ino, &inode);
    set_holding(&mut change, ino, &inode);
    change.event = Some(Event::Published {
        ino,
        path: path.as_bytes().to_vec(),
        version: inode.version,
        home: me,
    });
    Ok(Plan {
        transaction: change,
        value: inode,
    })
}

/// The MD5 of a version, in its record; nothing where it has another version by now.
pub fn set_md5(known: &Known, ino: Ino, version: u64, md5: Md5) -> Result<Plan<()>, Stop> {
    let mut change = Transaction::default();
    if let Some(record) = known.record(ino)?
        && record.inode.version == version
        && record.inode.md5 != Some(md5)
    {
        let mut inode = (*record.inode).clone();
        inode.md5 = Some(md5);
        expect_record(&mut change, ino, record);
        set_inode(&mut change, ino, &inode);
        change.quietly();
    }
    Ok(Plan {
        transaction: change,
        value: (),
    })
}

/// The hash of a version, computed after it was published; nothing where another version is current by now.
pub fn set_hash(known: &Known, ino: Ino, version: u64, hash: Hash) -> Result<Plan<()>, Stop> {
    let mut change = Transaction::default();
    if let Some(record) = known.record(ino)?
        && record.inode.version == version
        && record.inode.blake3 != Some(hash)
    {
        let mut inode = (*record.inode).clone();
        inode.blake3 = Some(hash);
        expect_record(&mut change, ino, record);
        set_inode(&mut change, ino, &inode);
        change.quietly();
    }
    Ok(Plan {
        transaction: change,
        value: (),
    })
}
