//! Every kind of door, planted and found, with the words that the review shows.

use super::*;
use crate::aftermath::Part;

#[test]
fn nothing_changed_is_nothing_reported() {
    let host = FakeHost::new();
    let before = host.take();
    assert!(before.len() > 10);
    let event = left_behind(&before, &host.take());
    assert_eq!(event.changes, []);
    assert!(event.complete, "{:?}", event.not_covered);
    assert!(event.not_covered.iter().all(|what| what.starts_with("never compared: ")));
}

#[test]
fn accounts() {
    let host = FakeHost::new();
    let texts = host.texts(|host| {
        host.append("/etc/passwd", "eve:x:0:0::/root:/bin/sh\n");
        host.write("/etc/group", "root:x:0:\nsudo:x:27:bob\n");
        host.write("/etc/shadow", "root:$y$j9T$s$new:19000:0:99999:7:::\nbob:$y$j9T$salt$other:19000:0:99999:7:::\n");
    });
    assert_eq!(
        texts,
        [
            "!user eve added (uid 0, gid 0, home /root, shell /bin/sh)",
            "!group sudo changed: now members bob",
            "!password entry of bob changed: the password itself or its ageing",
            "!password entry of root changed: password locked → password set",
        ]
    );
}

#[test]
fn a_second_entry_of_one_name() {
    let host = FakeHost::new();
    let texts = host.texts(|host| host.append("/etc/passwd", "bob:x:0:0::/:/bin/sh\n"));
    assert_eq!(texts, ["!user bob added (uid 0, gid 0, home /, shell /bin/sh)"]);
}

#[test]
fn a_world_writable_database() {
    let host = FakeHost::new();
    let texts = host.texts(|host| host.mode("/etc/passwd", 0o666));
    assert_eq!(texts, ["!user database /etc/passwd changed: mode 0644 → mode 0666"]);
}

#[test]
fn sudoers() {
    let host = FakeHost::new();
    let texts = host.texts(|host| {
        host.write("/etc/sudoers.d/x", "# hidden\n#1000 ALL=(ALL) NOPASSWD: ALL\n@include /opt/more\n");
        host.write("/opt/more", "eve ALL=(ALL) ALL\n");
        host.write("/etc/sudoers", "Defaults !tty_tickets\n@includedir /etc/sudoers.d\n");
    });
    assert_eq!(
        texts,
        [
            "!new sudoers line `Defaults !tty_tickets` in /etc/sudoers",
            "!sudoers /etc/sudoers.d appeared (folder, mode 0755, owner 0:0)",
            "!new sudoers line `#1000 ALL=(ALL) NOPASSWD: ALL` in /etc/sudoers.d/x",
            "!new sudoers line `@include /opt/more` in /etc/sudoers.d/x",
            "!new sudoers line `eve ALL=(ALL) ALL` in /opt/more",
            "sudoers line `root ALL=(ALL:ALL) ALL` in /etc/sudoers removed",
        ]
    );
}

#[test]
fn authorized_keys() {
    let host = FakeHost::new();
    let texts = host.texts(|host| host.write("/root/.ssh/authorized_keys", format!("{KEY} eve@laptop\n")));
    assert_eq!(
        texts,
        [format!(
            "!new authorized key {KEY_FINGERPRINT} for root in /root/.ssh/authorized_keys (ssh-ed25519, no options, comment eve@laptop)"
        )]
    );
    let texts = host.texts(|host| {
        host.write("/root/.ssh/authorized_keys", format!("command=\"/bin/sh\" {KEY} eve@laptop\nno key at all\n"));
    });
    assert_eq!(
        texts,
        [
            format!(
                "!authorized key {KEY_FINGERPRINT} for root in /root/.ssh/authorized_keys changed: no options → options command=\"/bin/sh\""
            ),
            "!new line that is no key: no key at all for root in /root/.ssh/authorized_keys".into(),
        ]
    );
    let texts = host.texts(|host| fs::remove_file(host.path("/root/.ssh/authorized_keys")).unwrap());
    assert_eq!(
        texts.last().unwrap(),
        "line that is no key: no key at all for root in /root/.ssh/authorized_keys removed"
    );
}

#[test]
fn keys_where_sshd_is_told_to_look() {
    let host = FakeHost::new();
    host.write("/etc/ssh/sshd_config.d/keys.conf", "AuthorizedKeysFile /etc/keys/%u /opt/all\n");
    let texts = host.texts(|host| {
        host.write("/etc/keys/bob", KEY);
        host.write("/opt/all", KEY);
    });
    assert_eq!(
        texts,
        [
            format!("!new authorized key {KEY_FINGERPRINT} for bob in /etc/keys/bob (ssh-ed25519, no options)"),
            format!("!new authorized key {KEY_FINGERPRINT} for bob and root in /opt/all (ssh-ed25519, no options)"),
        ]
    );
}

#[test]
fn keys_of_users_that_only_a_directory_knows() {
    let host = FakeHost::new();
    host.write("/home/carol/x", "");
    let texts = host.texts(|host| host.write("/home/carol/.ssh/authorized_keys", KEY));
    assert_eq!(
        texts,
        [format!(
            "!new authorized key {KEY_FINGERPRINT} for carol in /home/carol/.ssh/authorized_keys (ssh-ed25519, no options)"
        )]
    );
}

#[test]
fn ssh_and_pam_configuration() {
    let host = FakeHost::new();
    host.write("/opt/ca.pub", "old");
    host.append("/etc/ssh/sshd_config", "TrustedUserCAKeys /opt/ca.pub\n");
    let texts = host.texts(|host| {
        host.write("/opt/ca.pub", "new");
        host.write("/etc/pam.d/sshd", "auth sufficient pam_permit.so\n");
        host.write("/etc/ssh/sshd_config.d/x.conf", "PermitRootLogin yes\n");
    });
    assert_eq!(
        texts,
        [
            "!ssh configuration /etc/ssh/sshd_config.d appeared (folder, mode 0755, owner 0:0)",
            "!ssh configuration /etc/ssh/sshd_config.d/x.conf appeared (20 bytes, mode 0644, owner 0:0, sha256 e7be8a5b18055021)",
            "!ssh configuration /opt/ca.pub changed: sha256 cba06b5736faf67e → sha256 11507a0e2f5e69d5",
            "!PAM configuration /etc/pam.d/sshd changed: 26 bytes, sha256 ee0523acaff207e3 → 30 bytes, sha256 1f27183945437829",
        ]
    );
    let texts = host.texts(|host| fs::remove_file(host.path("/etc/pam.d/sshd")).unwrap());
    assert_eq!(texts.len(), 1);
    assert!(texts[0].starts_with("!PAM configuration /etc/pam.d/sshd is gone ("), "{texts:?}");
}

#[test]
fn systemd_units_timers_and_links() {
    let host = FakeHost::new();
    host.write("/etc/systemd/system/a.service", "[Service]\n");
    fs::create_dir_all(host.path("/run/systemd/transient")).unwrap();
    fs::create_dir_all(host.path("/etc/systemd/system/timers.target.wants")).unwrap();
    fs::create_dir_all(host.path("/root/.config/systemd/user")).unwrap();
    let texts = host.texts(|host| {
        host.write("/run/systemd/transient/run-1.timer", "[Timer]\n");
        host.write("/run/systemd/transient/session-7.scope", "[Scope]\n");
        host.link("/etc/systemd/system/timers.target.wants/x.timer", "/run/systemd/transient/run-1.timer");
        host.link("/etc/systemd/system/b.service", "/nowhere");
        host.write("/root/.config/systemd/user/y.service", "");
        host.mode("/etc/systemd/system/a.service", 0o666);
    });
    assert_eq!(
        texts,
        [
            "!systemd unit or setting /etc/systemd/system/a.service changed: mode 0644 → mode 0666",
            "!systemd unit or setting /etc/systemd/system/b.service appeared (link to /nowhere, to nothing)",
            "!systemd unit or setting /etc/systemd/system/timers.target.wants/x.timer appeared \
             (link to /run/systemd/transient/run-1.timer, 8 bytes, mode 0644, owner 0:0, sha256 fdb1f03d5f34bb72)",
            "!systemd unit or setting /root/.config/systemd/user/y.service appeared (0 bytes, mode 0644, owner 0:0, sha256 e3b0c44298fc1c14)",
            "!systemd unit or setting /run/systemd/transient/run-1.timer appeared (8 bytes, mode 0644, owner 0:0, sha256 fdb1f03d5f34bb72)",
        ]
    );
}

#[test]
fn cron_at_and_the_loader_by_line() {
    let host = FakeHost::new();
    for folder in ["/etc/cron.d", "/etc/cron.hourly", "/var/spool/cron/crontabs", "/var/spool/cron/atjobs"] {
        fs::create_dir_all(host.path(folder)).unwrap();
    }
    let texts = host.texts(|host| {
        host.append("/etc/crontab", "* * * * * root /tmp/x\n");
        host.write("/etc/cron.d/y", "# harmless\n@reboot root /tmp/y\n");
        host.write("/etc/cron.hourly/z", "");
        host.write("/var/spool/cron/crontabs/bob", "0 5 * * * /tmp/b\n");
        host.write("/var/spool/cron/atjobs/a1", "");
        host.write("/etc/ld.so.preload", "/tmp/evil.so\n");
    });
    assert_eq!(
        texts,
        [
            "!new cron line `@reboot root /tmp/y` in /etc/cron.d/y",
            "!cron /etc/cron.hourly/z appeared (0 bytes, mode 0644, owner 0:0, sha256 e3b0c44298fc1c14)",
            "!new cron line `* * * * * root /tmp/x` in /etc/crontab",
            "!new cron line `0 5 * * * /tmp/b` in /var/spool/cron/crontabs/bob",
            "!at job /var/spool/cron/atjobs/a1 appeared (0 bytes, mode 0644, owner 0:0, sha256 e3b0c44298fc1c14)",
            "!new loader line `/tmp/evil.so` in /etc/ld.so.preload",
        ]
    );
}

/// A file with nothing in it at a place of each kind that is compared by content.
#[test]
fn every_other_place() {
    let places = [
        ("/etc/profile.d/x.sh", "shell profile"),
        ("/root/.zshenv", "shell profile"),
        ("/etc/rc.local", "startup script or setting"),
        ("/etc/network/if-up.d/x", "startup script or setting"),
        ("/etc/modules-load.d/x.conf", "module configuration"),
        ("/etc/modprobe.d/x.conf", "module configuration"),
        ("/etc/sysctl.d/x.conf", "kernel setting"),
        ("/etc/udev/rules.d/x.rules", "udev rule"),
        ("/etc/apt/apt.conf.d/x", "package manager configuration"),
        ("/etc/dpkg/dpkg.cfg.d/x", "package manager configuration"),
        ("/etc/xdg/autostart/x.desktop", "autostart entry"),
        ("/home/bob/.config/autostart/x.desktop", "autostart entry"),
        ("/etc/polkit-1/rules.d/x.rules", "polkit rule"),
        ("/etc/nsswitch.conf", "name service configuration"),
        ("/etc/hosts.allow", "remote access list"),
        ("/home/bob/.rhosts", "remote access list"),
        ("/etc/nftables.conf", "firewall configuration"),
        ("/var/lib/systemd/linger/bob", "linger mark"),
        ("/etc/grub.d/x", "boot configuration"),
        ("/usr/local/share/ca-certificates/x.crt", "trusted certificate authority"),
    ];
    let host = FakeHost::new();
    for (path, _) in places {
        fs::create_dir_all(host.path(path).parent().unwrap()).unwrap();
    }
    let mut texts = host.texts(|host| places.iter().for_each(|(path, _)| host.write(path, "")));
    let mut expected: Vec<_> = places
        .iter()
        .map(|(path, noun)| format!("!{noun} {path} appeared (0 bytes, mode 0644, owner 0:0, sha256 e3b0c44298fc1c14)"))
        .collect();
    texts.sort();
    expected.sort();
    assert_eq!(texts, expected);
}

#[test]
fn vendor_files_by_their_times() {
    let host = FakeHost::new();
    let path = "/usr/lib/x86_64-linux-gnu/security/pam_unix.so";
    host.write(path, "good");
    let texts = host.texts(|host| host.write(path, "evil"));
    assert_eq!(texts, [format!("!PAM configuration {path} changed: it was written, replaced or touched")]);
}

#[test]
fn setuid_and_setgid_files() {
    if !is_root() {
        return;
    }
    let host = FakeHost::new();
    fs::create_dir_all(host.path("/usr/local/bin")).unwrap();
    let texts = host.texts(|host| {
        host.write("/usr/local/bin/x", "shell");
        host.mode("/usr/local/bin/x", 0o4755);
        host.write("/usr/local/bin/y", "");
        host.mode("/usr/local/bin/y", 0o2755);
        host.write("/usr/local/bin/not", "");
        host.mode("/usr/local/bin/not", 0o2745);
        host.write("/usr/bin/su", "backdoor");
        host.mode("/usr/bin/su", 0o4755);
    });
    assert_eq!(
        texts,
        [
            "!setuid root file /usr/bin/su changed: 6 bytes → 8 bytes",
            "!setuid root file /usr/local/bin/x appeared (5 bytes, mode 4755, owner 0:0)",
            "!setgid root file /usr/local/bin/y appeared (0 bytes, mode 2755, owner 0:0)",
        ]
    );
    let texts = host.texts(|host| host.mode("/usr/local/bin/x", 0o755));
    assert_eq!(texts, ["setuid root file /usr/local/bin/x is gone (5 bytes, mode 4755, owner 0:0)"]);
}

#[test]
fn file_capabilities_also_without_execute() {
    if !is_root() {
        return;
    }
    let host = FakeHost::new();
    let texts = host.texts(|host| {
        host.write("/usr/bin/python", "");
        let capability = [0x0200_0001u32, 1 << 7, 0, 0, 0].map(u32::to_le_bytes).concat();
        let path = host.path("/usr/bin/python");
        rustix::fs::setxattr(path, c"security.capability", &capability, rustix::fs::XattrFlags::empty()).unwrap();
    });
    assert_eq!(texts, ["!capability (cap_setuid) file /usr/bin/python appeared (0 bytes, mode 0644, owner 0:0)"]);
}

#[test]
fn sockets_modules_mounts_settings_and_firewall_tables() {
    let host = FakeHost::new();
    host.write("/proc/sys/kernel/core_pattern", "core\n");
    let texts = host.texts(|host| {
        host.append(
            "/proc/1/net/tcp",
            " 0: 00000000:115C 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1 1\n",
        );
        host.write("/proc/1/net/unix", "Num\nf: 2 0 00010000 0001 01 9 /tmp/door\n");
        host.write("/proc/modules", "evil 16384 0 - Live 0x0 (OE)\n");
        host.append("/proc/1/mountinfo", "23 22 0:30 / /mnt/x\\040y rw - tmpfs none rw\n");
        host.write("/proc/sys/kernel/core_pattern", "|/tmp/x\n");
        host.write("/proc/1/net/ip_tables_names", "nat\n");
    });
    assert_eq!(
        texts,
        [
            "!kernel setting /proc/sys/kernel/core_pattern changed: value core → value |/tmp/x",
            "!listening socket tcp 0.0.0.0:4444 appeared (uid 0)",
            "!kernel module evil appeared (16384 bytes, taints the kernel (OE))",
            "!new firewall table nat",
            "listening socket unix /tmp/door appeared (takes connections)",
            "mount on /mnt/x y appeared (tmpfs from none, rw)",
        ]
    );
}

#[test]
fn bpf_pins_but_not_our_own() {
    let host = FakeHost::new();
    host.append("/proc/1/mountinfo", "24 22 0:31 / /sys/fs/bpf rw - bpf bpf rw\n");
    fs::create_dir_all(host.path("/sys/fs/bpf/breakglass")).unwrap();
    let limits = || Limits { own_pins: vec!["/sys/fs/bpf/breakglass".into()], ..Limits::default() };
    let before = host.take_with(limits());
    host.write("/sys/fs/bpf/breakglass/ours", "");
    host.write("/sys/fs/bpf/theirs", "");
    let (changes, _) = diff(&before, &host.take_with(limits()));
    let keys: Vec<_> = changes.iter().map(|change| (change.key.as_slice(), change.severity())).collect();
    assert_eq!(keys, [(&b"/sys/fs/bpf/theirs"[..], Severity::Notable)]);
}

#[test]
fn the_walk_made_at_rest_joins_the_settings_read_later() {
    let host = FakeHost::new();
    let part = |part| Limits { part, ..Limits::default() };
    let joined = host.take_with(part(Part::Settings)).join(host.take_with(part(Part::Walk)));
    let stored = Snapshot::from_bytes(&joined.to_bytes().unwrap()).unwrap();
    assert_eq!(diff(&stored, &host.take()), (vec![], vec![]));
}
