//! The file system's errors; each knows its errno.
use crate::catalog::CatalogError;
use crate::path::TreePath;
use crate::redis_client::RedisError;

/// What a file operation can end with. Total: every variant has an errno.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// ENOENT.
    #[error("no such file or directory")]
    NotFound,
    /// EEXIST.
    #[error("file exists")]
    Exists,
    /// ENOTDIR.
    #[error("not a directory")]
    NotADirectory,
    /// EISDIR.
    #[error("is a directory")]
    IsADirectory,
    /// ENOTEMPTY.
    #[error("directory not empty")]
    NotEmpty,
    /// EINVAL; says which argument.
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// ENAMETOOLONG.
    #[error("file name too long")]
    NameTooLong,
    /// EPERM; says what.
    #[error("operation not permitted: {0}")]
    NotPermitted(&'static str),
    /// EOPNOTSUPP.
    #[error("operation not supported")]
    Unsupported,
    /// ESTALE.
    #[error("stale file: it was replaced or removed on another node")]
    Stale,
    /// EROFS; says what is.
    #[error("read-only: {0}")]
    ReadOnly(&'static str),
    /// ENOSPC.
    #[error("no space left on the data directory's disk")]
    NoSpace,
    /// ETXTBSY.
    #[error("the program is running on this node")]
    TextBusy,
    /// ENFILE.
    #[error("too many open files (limit {0})")]
    TooManyOpen(usize),
    /// EINTR: the caller gave up.
    #[error("interrupted")]
    Interrupted,
    /// ENODATA: no such extended attribute.
    #[error("attribute not found")]
    NoAttribute,
    /// No holder can give the data: names the file, the nodes and what each said.
    #[error("{path}: no node can give it now: {tried}")]
    NoHolder {
        /// The file.
        path: TreePath,
        /// The nodes that were asked, each with what it said.
        tried: String,
    },
    /// The catalog (Redis) does not answer.
    #[error("the catalog does not answer: {0}")]
    Catalog(String),
    /// From the operating system, with its errno.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl FsError {
    /// The errno the kernel is told.
    pub fn to_errno(&self) -> i32 {
        match self {
            FsError::NotFound => libc::ENOENT,
            FsError::Exists => libc::EEXIST,
            FsError::NotADirectory => libc::ENOTDIR,
            FsError::IsADirectory => libc::EISDIR,
            FsError::NotEmpty => libc::ENOTEMPTY,
            FsError::Invalid(_) => libc::EINVAL,
            FsError::NameTooLong => libc::ENAMETOOLONG,
            FsError::NotPermitted(_) => libc::EPERM,
            FsError::Unsupported => libc::EOPNOTSUPP,
            FsError::Stale => libc::ESTALE,
            FsError::ReadOnly(_) => libc::EROFS,
            FsError::NoSpace => libc::ENOSPC,
            FsError::TextBusy => libc::ETXTBSY,
            FsError::TooManyOpen(_) => libc::ENFILE,
            FsError::Interrupted => libc::EINTR,
            FsError::NoAttribute => libc::ENODATA,
            FsError::NoHolder { .. } | FsError::Catalog(_) => libc::EIO,
            FsError::Io(e) => e.raw_os_error().unwrap_or(libc::EIO),
        }
    }
}

/// What POSIX says no to keeps its errno; everything else is the catalog's trouble.
impl From<CatalogError> for FsError {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::Posix(errno) => match errno {
                libc::ENOENT => FsError::NotFound,
                libc::EEXIST => FsError::Exists,
                libc::ENOTDIR => FsError::NotADirectory,
                libc::EISDIR => FsError::IsADirectory,
                libc::ENOTEMPTY => FsError::NotEmpty,
                libc::ENAMETOOLONG => FsError::NameTooLong,
                libc::ESTALE => FsError::Stale,
                libc::ENODATA => FsError::NoAttribute,
                other => FsError::Io(std::io::Error::from_raw_os_error(other)),
            },
            other => FsError::Catalog(other.to_string()),
        }
    }
}

impl From<RedisError> for FsError {
    fn from(error: RedisError) -> Self {
        FsError::Catalog(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errnos_survive_the_way_through() {
        for errno in [
            libc::ENOENT,
            libc::EEXIST,
            libc::ENOTDIR,
            libc::EISDIR,
            libc::ENOTEMPTY,
            libc::EINVAL,
            libc::ENAMETOOLONG,
            libc::ESTALE,
            libc::ENODATA,
            libc::EMLINK,
            libc::EPERM,
        ] {
            let error: FsError = CatalogError::Posix(errno).into();
            assert_eq!(error.to_errno(), errno);
        }
        let busy: FsError = CatalogError::Contention("/a".into()).into();
        assert_eq!(busy.to_errno(), libc::EIO);
    }
}
