//! How much memory there is for this process.

use std::path::Path;

/// What the cgroups of this process leave it, in bytes: the least limit on the way to the root of the hierarchy, in
/// either version of cgroups. `read` gives the text of a file.
pub fn limit(read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let cgroups = read(Path::new("/proc/self/cgroup"))?;
    let mounts = read(Path::new("/proc/self/mountinfo"))?;
    let limits = cgroups.lines().filter_map(|line| {
        // cgroups(7): hierarchy, controllers, path.
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let is_memory = |list: &str| list.split(',').any(|name| name == "memory");
        let (file, is_mount): (_, &dyn Fn(&str) -> bool) = match controllers {
            "" => ("memory.max", &|end| end.starts_with("cgroup2 ")),
            _ if is_memory(controllers) => ("memory.limit_in_bytes", &|end| {
                end.starts_with("cgroup ") && end.rsplit(' ').next().is_some_and(is_memory)
            }),
            _ => return None,
        };
        // proc(5): the mount's root and place are the fields 3 and 4; the type comes after " - ".
        let (root, place) = mounts.lines().find_map(|mount| {
            let (fields, end) = mount.split_once(" - ")?;
            let mut fields = is_mount(end).then(|| fields.split(' ').skip(3))?;
            Some((fields.next()?, Path::new(fields.next()?)))
        })?;
        // In a container the mount may show no more than its own part of the hierarchy.
        let inside = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
        let own = place.join(inside);
        let on_the_way = own.ancestors().take_while(|dir| dir.starts_with(place));
        // A file that is not there, or that says "max", is no limit.
        on_the_way
            .filter_map(|dir| read(&dir.join(file))?.trim().parse::<u64>().ok())
            .min()
    });
    limits.min()
}

/// The memory of the machine in bytes. `read` gives the text of a file.
pub fn total(read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let text = read(Path::new("/proc/meminfo"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit_of(files: &[(&str, &str)]) -> Option<u64> {
        limit(|path| {
            let found = files.iter().find(|(name, _)| Path::new(name) == path);
            found.map(|(_, text)| (*text).to_owned())
        })
    }

    const UNIFIED: (&str, &str) = (
        "/proc/self/mountinfo",
        "30 1 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n",
    );

    #[test]
    fn the_least_limit_on_the_way_up_counts() {
        let own = ("/proc/self/cgroup", "0::/pods/one/ztunnel.7\n");
        let middle = ("/sys/fs/cgroup/pods/one/memory.max", "536870912\n");
        let upper = ("/sys/fs/cgroup/pods/memory.max", "8589934592\n");
        let max = ("/sys/fs/cgroup/pods/one/ztunnel.7/memory.max", "max\n");
        assert_eq!(
            limit_of(&[UNIFIED, own, max, middle, upper]),
            Some(512 << 20)
        );
        assert_eq!(limit_of(&[UNIFIED, own, max, upper]), Some(8 << 30));
        assert_eq!(limit_of(&[UNIFIED, own, max]), None);
        assert_eq!(limit_of(&[]), None);
    }

    #[test]
    fn a_container_sees_its_own_part_only() {
        let mounts = (
            "/proc/self/mountinfo",
            "30 1 0:26 /pods/one /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n",
        );
        let own = ("/proc/self/cgroup", "0::/pods/one\n");
        let max = ("/sys/fs/cgroup/memory.max", "1000\n");
        assert_eq!(limit_of(&[mounts, own, max]), Some(1000));
    }

    #[test]
    fn the_first_version_counts_where_it_has_the_memory() {
        let mounts = (
            "/proc/self/mountinfo",
            "31 1 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
             32 1 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
             33 1 0:29 / /sys/fs/cgroup/unified rw - cgroup2 none rw\n",
        );
        let own = ("/proc/self/cgroup", "4:memory:/a\n1:cpu:/b\n0::/\n");
        let max = ("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "4096\n");
        assert_eq!(limit_of(&[mounts, own, max]), Some(4096));
    }

    #[test]
    fn this_machine_has_memory() {
        let total = total(|path| std::fs::read_to_string(path).ok());
        assert!(total.is_some_and(|total| total > 64 << 20), "{total:?}");
    }
}
