//! What this process holds in memory, where the system says so.

use std::fs;

/// Bytes that it holds now.
pub(crate) fn now() -> Option<u64> {
    status("VmRSS:")
}

/// The most bytes that it has held.
pub(crate) fn peak() -> Option<u64> {
    status("VmHWM:")
}

/// A line of Linux's `/proc/self/status`, in bytes.
fn status(name: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
