//! Small private text files: read only when nobody else can, written whole or not at all.
use super::KeyError;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// How every key file begins.
const HEADER_START: &[u8] = b"kitchensink-";

/// Fills `bytes` from the system's random generator.
pub(super) fn random(bytes: &mut [u8]) {
    rustls::crypto::ring::default_provider()
        .secure_random
        .fill(bytes)
        .expect("the system's random generator works");
}

/// Reads a text file of at most `limit` bytes that only its owner may read.
pub(super) fn read_private(path: &Path, limit: u64) -> Result<String, KeyError> {
    let io = |source| KeyError::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() || metadata.len() > limit {
        return Err(KeyError::Malformed(path.to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).map_err(io)?;
    // First whether it can be a key at all: nobody is told to change the mode of something else.
    if !bytes.starts_with(HEADER_START) {
        return Err(KeyError::Malformed(path.to_owned()));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(KeyError::TooOpen(path.to_owned()));
    }
    String::from_utf8(bytes).map_err(|_| KeyError::Malformed(path.to_owned()))
}

/// Makes the file (0600, missing directories 0700) unless it exists; `false`: it did.
///
/// The text is written to a file of another name first and then linked, so nobody reads half a key.
pub(super) fn create_private(path: &Path, text: &str) -> Result<bool, KeyError> {
    place_private(path, text, |temporary, path| {
        std::fs::hard_link(temporary, path)
    })
}

/// Writes the file (0600, missing directories 0700), over an older one if there is one.
pub(super) fn replace_private(path: &Path, text: &str) -> Result<(), KeyError> {
    place_private(path, text, |temporary, path| {
        std::fs::rename(temporary, path)
    })
    .map(|_| ())
}

fn place_private(
    path: &Path,
    text: &str,
    place: impl FnOnce(&Path, &Path) -> std::io::Result<()>,
) -> Result<bool, KeyError> {
    let io = |source| KeyError::Io {
        path: path.to_owned(),
        source,
    };
    let directory = match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(io)?;
    let mut suffix = [0; 8];
    random(&mut suffix);
    let temporary = directory.join(format!(".key-{}", hex::encode(suffix)));
    let written = write_new(&temporary, text).and_then(|()| place(&temporary, path));
    // After a rename there is nothing to remove, and that is well.
    let _ = std::fs::remove_file(&temporary);
    match written {
        Ok(()) => {
            File::open(directory)
                .and_then(|d| d.sync_all())
                .map_err(io)?;
            Ok(true)
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(io(error)),
    }
}

fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
