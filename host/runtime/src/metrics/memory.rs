//! How much memory there is, for us: the machine's, or less where a control group allows less.

use std::fs;
use std::path::Path;

/// Memory in bytes. What cannot be found out counts as unlimited, so that only the operating system refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Memory {
    total: u64,
    available: u64,
}

/// Bytes that can still be taken without swapping.
pub fn available_bytes() -> u64 {
    read(Path::new("/")).available
}

/// Bytes that this process may use at most.
pub fn total_bytes() -> u64 {
    read(Path::new("/")).total
}

/// Bytes of this process that are in memory now; 0 where that cannot be found out.
pub fn resident_bytes() -> u64 {
    field(&text(Path::new("/proc/self/status")), "VmRSS:").unwrap_or(0)
}

/// Reads below `root`, which is `/` but in tests.
fn read(root: &Path) -> Memory {
    let info = text(&root.join("proc/meminfo"));
    let mut memory = Memory {
        total: field(&info, "MemTotal:").unwrap_or(u64::MAX),
        available: field(&info, "MemAvailable:").unwrap_or(u64::MAX),
    };
    let groups = text(&root.join("proc/self/cgroup"));
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let bound = match controllers {
            "" => bound(&root.join("sys/fs/cgroup"), path, &V2),
            _ if controllers.split(',').any(|one| one == "memory") => {
                bound(&root.join("sys/fs/cgroup/memory"), path, &V1)
            }
            _ => continue,
        };
        memory.total = memory.total.min(bound.total);
        memory.available = memory.available.min(bound.available);
    }
    memory
}

/// Names of the files of a control group.
struct Files {
    limit: &'static str,
    usage: &'static str,
    /// In `memory.stat`: file pages that are given up first, so they are as good as free.
    reclaimable: &'static str,
}

const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file ",
};
const V2: Files = Files { limit: "memory.max", usage: "memory.current", reclaimable: "inactive_file " };

/// The narrowest of a group and those it is in. In a container the path may be the host's: then the mount's root is
/// what binds us, and it is among the ancestors.
fn bound(mount: &Path, group: &str, files: &Files) -> Memory {
    let own = mount.join(group.trim_start_matches('/'));
    let mut narrowest = Memory { total: u64::MAX, available: u64::MAX };
    for dir in own.ancestors().take_while(|dir| dir.starts_with(mount)) {
        let number = |file: &str| text(&dir.join(file)).trim().parse::<u64>().ok();
        // No limit is `max` in version 2 and a number near 2^63 in version 1.
        let Some(limit) = number(files.limit).filter(|limit| *limit < 1 << 62) else { continue };
        let stat = text(&dir.join("memory.stat"));
        let reclaimable =
            stat.lines().find_map(|line| line.strip_prefix(files.reclaimable)?.trim().parse::<u64>().ok());
        let used = number(files.usage).unwrap_or(0).saturating_sub(reclaimable.unwrap_or(0));
        narrowest.total = narrowest.total.min(limit);
        narrowest.available = narrowest.available.min(limit.saturating_sub(used));
    }
    narrowest
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// A line such as `MemTotal:  16384 kB`, in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let kib: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix(name))?
        .trim()
        .strip_suffix("kB")?
        .trim()
        .parse()
        .ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       16000 kB\nMemFree:  10 kB\nMemAvailable:   12000 kB\n";

    fn with(files: &[(&str, &str)]) -> Memory {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        read(root.path())
    }

    #[test]
    fn without_a_group_the_machine_is_the_bound() {
        let memory = with(&[("proc/meminfo", MEMINFO), ("proc/self/cgroup", "0::/\n")]);
        assert_eq!(memory, Memory { total: 16_000 << 10, available: 12_000 << 10 });
    }

    #[test]
    fn a_group_of_version_2_and_those_above_it_bind() {
        let memory = with(&[
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "0::/pod/box\n"),
            ("sys/fs/cgroup/pod/box/memory.max", "max\n"),
            ("sys/fs/cgroup/pod/memory.max", "4096000\n"),
            ("sys/fs/cgroup/pod/memory.current", "3000000\n"),
            ("sys/fs/cgroup/pod/memory.stat", "anon 1\ninactive_file 1000000\n"),
        ]);
        assert_eq!(memory, Memory { total: 4_096_000, available: 2_096_000 });
    }

    #[test]
    fn a_group_of_version_1_binds_even_where_its_path_is_the_hosts() {
        let memory = with(&[
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "5:cpu:/x\n4:memory:/docker/abc\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "5000000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1000000\n"),
        ]);
        assert_eq!(memory, Memory { total: 5_000_000, available: 4_000_000 });
        let unlimited = with(&[
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "4:memory:/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        assert_eq!(unlimited.total, 16_000 << 10);
    }

    #[test]
    fn what_cannot_be_read_does_not_bind() {
        assert_eq!(with(&[]), Memory { total: u64::MAX, available: u64::MAX });
    }

    #[test]
    fn this_process_uses_memory_of_this_machine() {
        let resident = resident_bytes();
        assert!(resident > 100 << 10, "{resident}");
        assert!(resident < total_bytes() && available_bytes() <= total_bytes());
    }
}
