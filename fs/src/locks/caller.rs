//! Which system call a lock comes from: the FUSE library does not hand on the kernel's word for it. A lock of a part of a
//! file is `fcntl`'s; for one of a whole file the caller, which waits for our answer, is looked at.
use super::{Range, Space};
use std::time::Duration;

/// The caller may not be asleep yet when its request is here.
const LOOKS_MAX: usize = 10;
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Which locks are meant. Where the caller cannot be looked at (another user's, without the right to trace it), both: what
/// excludes others then does so in either way, as on NFS.
pub(crate) async fn spaces(thread: u32, range: &Range) -> &'static [Space] {
    if *range != Range::WHOLE {
        return &[Space::Process];
    }
    for _ in 0..LOOKS_MAX {
        let Ok(line) = std::fs::read_to_string(format!("/proc/{thread}/syscall")) else {
            break;
        };
        match system_call(&line) {
            Some(libc::SYS_flock) => return &[Space::File],
            Some(libc::SYS_fcntl) => return &[Space::Process],
            Some(_) => break,
            None => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
    &[Space::File, Space::Process]
}

/// The number at the beginning of `/proc/<tid>/syscall`; `None`: it runs.
fn system_call(line: &str) -> Option<i64> {
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_call_is_read() {
        assert_eq!(system_call("73 0x3 0x2 0x0 0x7ffe\n"), Some(73));
        assert_eq!(system_call("running\n"), None);
        assert_eq!(system_call(""), None);
        assert_eq!(system_call("-1 0x7ffd 0x7f\n"), Some(-1));
    }
}
