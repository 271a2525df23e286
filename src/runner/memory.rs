//! How much memory this process may still take.

use std::fs;

/// Bytes free for this process: the system's available memory, or what is left of the control group's limit.
/// `None` where neither can be read.
pub fn available() -> Option<u64> {
    let system = fs::read_to_string("/proc/meminfo").ok().and_then(|text| meminfo(&text));
    let group = || {
        let read = |name: &str| fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse::<u64>().ok();
        Some(read("memory.max")?.saturating_sub(read("memory.current")?))
    };
    match (system, group()) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    #[test]
    fn reads_meminfo() {
        let text = "MemTotal:       24689232 kB\nMemFree:        1 kB\nMemAvailable:   2048 kB\n";
        assert_eq!(super::meminfo(text), Some(2 << 20));
        assert_eq!(super::meminfo("MemTotal: 3 kB\n"), None);
    }
}
