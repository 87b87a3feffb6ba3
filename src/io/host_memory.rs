//! How much memory the host has left.

use std::fs;
use std::path::Path;

/// Bytes that this process can still use without anyone being killed for it: what the system has free
/// or can free, and what the process's control group allows. `None` where the system does not say.
pub fn available_memory() -> Option<u64> {
    let system = of_system(&fs::read_to_string("/proc/meminfo").ok()?);
    let group = fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| of_group(&text));
    system.into_iter().chain(group).min()
}

fn of_system(meminfo: &str) -> Option<u64> {
    let kibibytes = field(meminfo, "MemAvailable:")?;
    kibibytes.checked_mul(1024)
}

/// The least that the group and the groups around it (version 2) leave.
fn of_group(membership: &str) -> Option<u64> {
    let own = membership.lines().find_map(|l| l.strip_prefix("0::/"))?;
    let root = Path::new("/sys/fs/cgroup");
    let own = root.join(own);
    let groups = own.ancestors().take_while(|group| group.starts_with(root));
    groups.filter_map(left_in).min()
}

fn left_in(group: &Path) -> Option<u64> {
    let read = |name| fs::read_to_string(group.join(name)).ok();
    let number = |name| read(name)?.trim().parse::<u64>().ok();
    // "max", which is no number, is no limit.
    let (limit, used) = (number("memory.max")?, number("memory.current")?);
    // Pages of files count as used and are given up first.
    let files = read("memory.stat").and_then(|stat| field(&stat, "inactive_file"));
    Some(limit.saturating_sub(used.saturating_sub(files.unwrap_or(0))))
}

/// The number after `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let of_line = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some(name)).then(|| words.next()?.parse().ok())?
    };
    text.lines().find_map(of_line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_counts_in_kibibytes() {
        let text = "MemTotal:       16384 kB\nMemFree:  1 kB\nMemAvailable:    2048 kB\n";
        assert_eq!(of_system(text), Some(2048 * 1024));
        assert_eq!(of_system("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn a_group_leaves_what_its_limit_allows_and_files_are_given_up() {
        let group = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| fs::write(group.path().join(name), text).unwrap();
        file("memory.max", "max\n");
        file("memory.current", "700\n");
        assert_eq!(left_in(group.path()), None);
        file("memory.max", "1000\n");
        assert_eq!(left_in(group.path()), Some(300));
        file("memory.stat", "anon 1\ninactive_file 500\n");
        assert_eq!(left_in(group.path()), Some(800));
        file("memory.max", "100\n");
        assert_eq!(left_in(group.path()), Some(0));
    }
}
