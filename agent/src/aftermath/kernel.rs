//! What the running kernel was told: modules, mounts, pinned BPF, settings, firewall tables.

use breakglass_api::v1::left_behind::Category;
use rustix::fs::FileType;

use super::{
    files::Host,
    lines::plain,
    snapshot::{Item, Sink},
    text::shown,
    tree::{Read, beyond_limit, children, entry, unreadable},
};
use crate::kernel::mounts::unescaped;

/// The mount namespace that the host's users live in.
const MOUNTS: &[u8] = b"/proc/1/mountinfo";

/// Deepest folder of pins that is looked into.
const PIN_DEPTH: u32 = 8;

/// Settings that run a program as root, or whose loss makes an attack easier.
const SETTINGS: &[&[u8]] = &[
    b"/proc/sys/fs/protected_hardlinks",
    b"/proc/sys/fs/protected_symlinks",
    b"/proc/sys/fs/suid_dumpable",
    b"/proc/sys/kernel/core_pattern",
    b"/proc/sys/kernel/dmesg_restrict",
    b"/proc/sys/kernel/ftrace_enabled",
    b"/proc/sys/kernel/hotplug",
    b"/proc/sys/kernel/kptr_restrict",
    b"/proc/sys/kernel/modprobe",
    b"/proc/sys/kernel/modules_disabled",
    b"/proc/sys/kernel/perf_event_paranoid",
    b"/proc/sys/kernel/poweroff_cmd",
    b"/proc/sys/kernel/randomize_va_space",
    b"/proc/sys/kernel/sysrq",
    b"/proc/sys/kernel/unprivileged_bpf_disabled",
    b"/proc/sys/kernel/unprivileged_userns_clone",
    b"/proc/sys/kernel/yama/ptrace_scope",
    b"/proc/sys/net/ipv4/ip_forward",
    b"/proc/sys/vm/mmap_min_addr",
    b"/sys/kernel/uevent_helper",
];

/// Names of the tables that iptables has loaded.
const FIREWALL_TABLES: &[&[u8]] =
    &[b"/proc/1/net/ip_tables_names", b"/proc/1/net/ip6_tables_names", b"/proc/1/net/arp_tables_names"];

/// One line of `mountinfo` (proc_pid_mountinfo(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// Device, `major:minor`.
    pub(super) device: Vec<u8>,
    /// Which folder of the file system is mounted.
    pub(super) folder: Vec<u8>,
    pub(super) point: Vec<u8>,
    pub(super) options: Vec<u8>,
    pub(super) kind: Vec<u8>,
    pub(super) source: Vec<u8>,
}

/// The mounts of the host; what is wrong with the table is said under `category`.
pub(super) fn read_mounts(host: &Host, sink: &mut Sink, category: Category) -> Vec<Mount> {
    match host.read_path(MOUNTS) {
        Ok(Some(contents)) => {
            if !contents.whole {
                beyond_limit(sink, category, b"", contents.bytes.len());
            }
            parse_mounts(&contents.bytes)
        }
        Ok(None) => {
            sink.cut(category, b"", "/proc/1/mountinfo is not there, so the mounts are not known");
            Vec::new()
        }
        Err(error) => {
            unreadable(sink, category, b"", error);
            Vec::new()
        }
    }
}

fn parse_mounts(text: &[u8]) -> Vec<Mount> {
    text.split(|&byte| byte == b'\n').filter_map(parse_mount).collect()
}

fn parse_mount(line: &[u8]) -> Option<Mount> {
    let fields: Vec<_> = line.split(|&byte| byte == b' ').collect();
    let &[_, _, device, folder, point, options, ..] = fields.as_slice() else { return None };
    let separator = fields.iter().skip(6).position(|field| *field == b"-")? + 6;
    let (kind, source) = (fields.get(separator + 1)?, fields.get(separator + 2)?);
    Some(Mount {
        device: device.to_vec(),
        folder: unescaped(folder),
        point: unescaped(point),
        options: options.to_vec(),
        kind: kind.to_vec(),
        source: unescaped(source),
    })
}

/// Adds every mount.
pub(super) fn mounts(host: &Host, sink: &mut Sink) {
    for mount in read_mounts(host, sink, Category::Mount) {
        let mut facts = vec![format!("{} from {}", shown(&mount.kind), shown(&mount.source)), shown(&mount.options)];
        if mount.folder != b"/" {
            facts.push(format!("its folder {}", shown(&mount.folder)));
        }
        sink.add(Item::new(Category::Mount, &mount.point, facts));
    }
}

/// Adds every pin of every BPF file system but the agent's own.
pub(super) fn pins(host: &Host, sink: &mut Sink) {
    let mounts = read_mounts(host, sink, Category::Bpf);
    for mount in mounts.iter().filter(|mount| mount.kind == b"bpf") {
        pins_below(host, sink, &mount.point, PIN_DEPTH);
    }
}

fn pins_below(host: &Host, sink: &mut Sink, path: &[u8], depth: u32) {
    use std::os::unix::ffi::OsStrExt as _;
    if host.limits.own_pins.iter().any(|own| own.as_os_str().as_bytes() == path) {
        return;
    }
    // Opened as a place only: reading an iterator's pin would run its program.
    let Some(place) = entry(host, sink, Category::Bpf, path, Read::Stat) else { return };
    if place.kind() != FileType::Directory {
        return;
    }
    if depth == 0 {
        return sink.cut(Category::Bpf, path, format!("deeper than {PIN_DEPTH} folders; not looked into"));
    }
    children(host, sink, Category::Bpf, path, &place, &mut |host, sink, path| pins_below(host, sink, path, depth - 1));
}

/// Adds every loaded module.
pub(super) fn modules(host: &Host, sink: &mut Sink) {
    match host.read_path(b"/proc/modules") {
        Ok(Some(contents)) => {
            if !contents.whole {
                beyond_limit(sink, Category::KernelModule, b"", contents.bytes.len());
            }
            for (name, facts) in parse_modules(&contents.bytes) {
                sink.add(Item::new(Category::KernelModule, &name, facts));
            }
        }
        // A kernel without loadable modules.
        Ok(None) => {}
        Err(error) => unreadable(sink, Category::KernelModule, b"", error),
    }
}

/// Name, size, references, users, state, address, taints (proc_modules(5)); only what does not change with use.
fn parse_modules(text: &[u8]) -> Vec<(Vec<u8>, Vec<String>)> {
    text.split(|&byte| byte == b'\n')
        .filter_map(|line| {
            let fields: Vec<_> = line.split(|&byte| byte == b' ').collect();
            let (name, size) = (fields.first().filter(|name| !name.is_empty())?, fields.get(1)?);
            let mut facts = vec![format!("{} bytes", shown(size))];
            facts.extend(
                fields.get(6).filter(|t| !t.is_empty()).map(|taints| format!("taints the kernel {}", shown(taints))),
            );
            Some((name.to_vec(), facts))
        })
        .collect()
}

/// Adds the kernel's own settings.
pub(super) fn settings(host: &Host, sink: &mut Sink) {
    for path in SETTINGS {
        match host.read_path(path) {
            Ok(Some(contents)) => {
                let value = format!("value {}", shown(contents.bytes.trim_ascii()));
                sink.add(Item::new(Category::Sysctl, path, vec![value]));
            }
            // Not every kernel has every setting.
            Ok(None) => {}
            Err(error) => unreadable(sink, Category::Sysctl, path, error),
        }
    }
}

/// Adds the firewall's tables by name.
pub(super) fn firewall(host: &Host, sink: &mut Sink) {
    for path in FIREWALL_TABLES {
        match host.read_path(path) {
            Ok(Some(contents)) => {
                for table in plain(&contents.bytes) {
                    sink.add(Item::new(Category::Firewall, path, Vec::new()).part(shown(&table)));
                }
            }
            Ok(None) => {}
            Err(error) => unreadable(sink, Category::Firewall, path, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_mount_with_blanks() {
        let line = br"36 35 98:0 /mnt1 /mnt\040two rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        let mount = parse_mount(line).unwrap();
        assert_eq!(mount.point, b"/mnt two");
        assert_eq!((mount.folder.as_slice(), mount.kind.as_slice()), (&b"/mnt1"[..], &b"ext3"[..]));
        assert_eq!((mount.device.as_slice(), mount.source.as_slice()), (&b"98:0"[..], &b"/dev/root"[..]));
        assert_eq!(parse_mount(b"36 35 98:0 / /x rw"), None);
    }

    #[test]
    fn modules_without_what_changes_with_use() {
        let text = b"evil 16384 0 - Live 0x0000000000000000 (OE)\nnf_tables 1 3 nft_ct, Live 0x0\n";
        let modules = parse_modules(text);
        assert_eq!(modules[0], (b"evil".to_vec(), vec!["16384 bytes".into(), "taints the kernel (OE)".into()]));
        assert_eq!(modules[1], (b"nf_tables".to_vec(), vec!["1 bytes".into()]));
    }

    proptest! {
        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (parse_mounts(&noise), parse_modules(&noise), unescaped(&noise));
        }

        #[test]
        fn what_has_no_backslash_is_left_alone(text in "[^\\\\]{0,50}") {
            prop_assert_eq!(unescaped(text.as_bytes()), text.as_bytes());
        }
    }
}
