//! The file system's errors; each knows its errno.
use crate::path::TreePath;

/// What a file operation can end with. Total: every variant has an errno.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    #[error("no such file or directory")]
    NotFound,
    #[error("file exists")]
    Exists,
    #[error("not a directory")]
    NotADirectory,
    #[error("is a directory")]
    IsADirectory,
    #[error("directory not empty")]
    NotEmpty,
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    #[error("file name too long")]
    NameTooLong,
    #[error("operation not permitted: {0}")]
    NotPermitted(&'static str),
    #[error("operation not supported")]
    Unsupported,
    #[error("stale file: it was replaced or removed on another node")]
    Stale,
    #[error("read-only: {0}")]
    ReadOnly(&'static str),
    #[error("no space left on the data directory's disk")]
    NoSpace,
    #[error("too many open files (limit {0})")]
    TooManyOpen(usize),
    #[error("interrupted")]
    Interrupted,
    #[error("attribute not found")]
    NoAttribute,
    /// No holder can give the data: names the file, the nodes and what each said.
    #[error("{path}: no node can give it now: {tried}")]
    NoHolder { path: TreePath, tried: String },
    /// The catalog (Redis) does not answer.
    #[error("the catalog does not answer: {0}")]
    Catalog(String),
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
            FsError::TooManyOpen(_) => libc::ENFILE,
            FsError::Interrupted => libc::EINTR,
            FsError::NoAttribute => libc::ENODATA,
            FsError::NoHolder { .. } | FsError::Catalog(_) => libc::EIO,
            FsError::Io(e) => e.raw_os_error().unwrap_or(libc::EIO),
        }
    }
}
