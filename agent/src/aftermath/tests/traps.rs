//! Hosts prepared by somebody who wants the second look to hang, to fall over, or to see nothing.

use std::time::{Duration, Instant};

use super::*;
use crate::aftermath::Kind;

/// No trap may take longer than this; the smallest of the limits that guard against them is far above what the rest takes.
const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn things_that_are_no_files_are_named_and_not_opened() {
    let host = FakeHost::new();
    let started = Instant::now();
    let texts = host.texts(|host| {
        for path in ["/root/.bashrc", "/etc/sudoers.d/fifo", "/etc/ld.so.preload"] {
            let _ = fs::remove_file(host.path(path));
            fs::create_dir_all(host.path(path).parent().unwrap()).unwrap();
            nix::unistd::mkfifo(&host.path(path), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        }
        fs::create_dir_all(host.path("/root/.ssh")).unwrap();
        std::os::unix::net::UnixListener::bind(host.path("/root/.ssh/authorized_keys")).unwrap();
        host.mode("/root/.ssh/authorized_keys", 0o600);
    });
    assert!(started.elapsed() < PATIENCE);
    assert_eq!(
        texts,
        [
            "!sudoers /etc/sudoers.d appeared (folder, mode 0755, owner 0:0)",
            "!sudoers /etc/sudoers.d/fifo appeared (FIFO, mode 0600, owner 0:0)",
            "!authorized keys file /root/.ssh/authorized_keys appeared (socket, mode 0600, owner 0:0)",
            "!loader /etc/ld.so.preload appeared (FIFO, mode 0600, owner 0:0)",
            "!shell profile /root/.bashrc changed: 10 bytes, mode 0644, sha256 ebab0e9256b0a405 → FIFO, mode 0600",
        ]
    );
}

#[test]
fn a_device_is_not_opened() {
    if !is_root() {
        return;
    }
    let host = FakeHost::new();
    let texts = host.texts(|host| {
        use nix::sys::stat::{Mode, SFlag, makedev, mknod};
        fs::remove_file(host.path("/root/.bashrc")).unwrap();
        // /dev/zero: reading it would never end.
        mknod(&host.path("/root/.bashrc"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), makedev(1, 5)).unwrap();
    });
    assert_eq!(
        texts,
        [
            "!shell profile /root/.bashrc changed: 10 bytes, mode 0644, sha256 ebab0e9256b0a405 → character device, mode 0600"
        ]
    );
}

#[test]
fn links_stay_inside_the_root_and_lead_into_no_loop() {
    let host = FakeHost::new();
    host.write("/opt/rc", "x");
    let texts = host.texts(|host| {
        host.link("/home/bob/.profile", "/home/bob/.profile");
        host.link("/home/bob/.zshrc", "../../../../../../../../opt/rc");
        host.link("/home/bob/.login", "/proc/self/fd/0");
        host.link("/home/bob/.vimrc", "/opt");
        host.link("/home/bob/.config", "/home/bob");
    });
    assert_eq!(
        texts,
        [
            "!shell profile /home/bob/.login appeared (link to /proc/self/fd/0, to nothing)",
            "!shell profile /home/bob/.profile appeared (link to /home/bob/.profile, to nothing)",
            "!shell profile /home/bob/.vimrc appeared (link to /opt, to a folder)",
            "!shell profile /home/bob/.zshrc appeared (link to ../../../../../../../../opt/rc, 1 bytes, mode 0644, owner 0:0, sha256 2d711642b726b044)",
        ]
    );
}

#[test]
fn a_large_key_helper_is_compared_like_a_program_and_is_no_gap() {
    let host = FakeHost::new();
    host.write("/etc/ssh/sshd_config", "AuthorizedKeysCommand /usr/sbin/helper keys\n");
    host.write("/usr/sbin/helper", "x");
    let helper = fs::File::options().write(true).open(host.path("/usr/sbin/helper")).unwrap();
    helper.set_len(2 << 20).unwrap();
    fs::set_permissions(host.path("/usr/sbin/helper"), fs::Permissions::from_mode(0o755)).unwrap();
    let before = host.take();
    assert_eq!(cuts(&before), Vec::<String>::new());
    std::os::unix::fs::FileExt::write_at(&helper, b"evil", 1 << 20).unwrap();
    let event = left_behind(&before, &host.take());
    assert!(event.changes.iter().any(|change| change.key == b"/usr/sbin/helper"), "{:?}", event.changes);
}

#[test]
fn a_huge_file_is_read_in_part_and_its_end_is_still_compared() {
    let host = FakeHost::new();
    let huge = fs::File::create(host.path("/root/.bashrc")).unwrap();
    huge.set_len(1 << 40).unwrap();
    let started = Instant::now();
    let before = host.take();
    assert!(started.elapsed() < PATIENCE);
    assert_eq!(
        cuts(&before),
        ["/root/.bashrc: only the first 1048576 bytes were read; of the rest, size and times are compared"]
    );
    std::os::unix::fs::FileExt::write_at(&huge, b"evil", 1 << 39).unwrap();
    let event = left_behind(&before, &host.take());
    assert_eq!(event.changes[0].text, "shell profile /root/.bashrc changed: it was written, replaced or touched");
    assert!(!event.complete);
}

#[test]
fn all_files_together_are_bounded() {
    let host = FakeHost::new();
    for number in 0..50 {
        host.write(format!("/etc/profile.d/{number:02}.sh"), [b'x'; 10_000]);
    }
    let snapshot = host.take_with(Limits { total_bytes: 100_000, ..Limits::default() });
    assert!(cuts(&snapshot).iter().any(|cut| cut.contains("/etc/profile.d/4")), "{:?}", cuts(&snapshot));
}

#[test]
fn a_flood_of_files_hides_nothing_that_was_there_and_is_said() {
    let host = FakeHost::new();
    host.write("/etc/cron.d/zz", "@daily root /bin/true\n");
    let limits = || Limits { folder_names: 100, ..Limits::default() };
    let before = host.take_with(limits());
    for number in 0..500 {
        host.write(format!("/etc/cron.d/{number:03}"), "@reboot root /tmp/x\n");
    }
    let event = left_behind(&before, &host.take_with(limits()));
    assert!(event.changes.iter().all(|change| change.kind() == Kind::Added), "{:?}", event.changes);
    assert!(!event.changes.is_empty() && !event.complete);
    let cut = "after the session: /etc/cron.d: more than 100 entries; the rest was not looked at";
    assert!(event.not_covered.iter().any(|what| what == cut), "{:?}", event.not_covered);
}

#[test]
fn a_flood_of_changes_in_one_category_hides_none_of_another() {
    let host = FakeHost::new();
    fs::create_dir_all(host.path("/etc/cron.d")).unwrap();
    let before = host.take();
    for number in 0..500 {
        host.write(format!("/etc/cron.d/{number:03}"), "@reboot root /tmp/x\n");
    }
    host.append("/etc/passwd", "zoe:x:0:0::/:/bin/sh\n");
    let event = left_behind(&before, &host.take());
    assert_eq!(event.changes.len(), 129);
    assert!(event.changes.iter().any(|change| change.item == "zoe"));
    assert!(!event.complete);
    assert_eq!(event.not_covered[0], "cron: 372 more changes than the 128 listed");
}

#[test]
fn a_flood_of_lines_is_bounded() {
    let host = FakeHost::new();
    host.write("/etc/sudoers.d/x", "a\n".repeat(400_000));
    let snapshot = host.take();
    assert!(snapshot.len() < 20_000, "{}", snapshot.len());
    assert_eq!(cuts(&snapshot), ["more than 16384 things to compare; the rest was left out"]);
}

#[test]
fn names_and_lines_cannot_disturb_a_terminal() {
    let host = FakeHost::new();
    let texts = host.texts(|host| {
        host.write(name(b"/etc/profile.d/\x1b[2J\n\xff"), "");
        host.append("/etc/passwd", "e\x1b]0;x\x07:x:0:0::/:/bin/sh\n");
        host.write(format!("/etc/profile.d/{}", "n".repeat(255)), "");
    });
    assert!(texts.iter().all(|text| text.chars().all(|c| !c.is_control())), "{texts:?}");
    assert!(texts[0].contains(r"user e\x1b]0;x\x07 added"), "{texts:?}");
    assert!(texts.iter().any(|text| text.contains(r"/etc/profile.d/\x1b[2J\x0a\xff appeared")), "{texts:?}");
}

#[test]
fn a_nest_deeper_than_a_path_can_name_is_searched() {
    if !is_root() {
        return;
    }
    let host = FakeHost::new();
    let long = "d".repeat(200);
    let nest = |depth: usize| {
        let mut folder =
            rustix::fs::open(host.root.path(), rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        for _ in 0..depth {
            // There already on the second call.
            let _ = rustix::fs::mkdirat(&folder, &long, rustix::fs::Mode::RWXU);
            folder = rustix::fs::openat(&folder, &long, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        }
        folder
    };
    // 40 names of 200 bytes: twice PATH_MAX.
    let deep = nest(40);
    let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
    let file = rustix::fs::openat(&deep, "x", flags, rustix::fs::Mode::RWXU).unwrap();
    rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o4755)).unwrap();
    let snapshot = host.take();
    assert_eq!(cuts(&snapshot), [""; 0]);
    let found = snapshot.items.iter().any(|item| item.key.starts_with(b"/ddd") && item.facts[0] == "setuid root");
    assert!(found, "{:?}", snapshot.items);

    nest(300);
    let snapshot = host.take();
    assert!(cuts(&snapshot)[0].ends_with("deeper than 256 folders; not searched"), "{:?}", cuts(&snapshot));
    remove_deep(host.root.path(), &long);
}

/// Removes a nest that is too deep for a path, from the inside out.
fn remove_deep(root: &Path, name: &str) {
    use rustix::fs::{AtFlags, Mode, OFlags, open, openat, unlinkat};
    let mut folders = vec![open(root, OFlags::PATH, Mode::empty()).unwrap()];
    while let Ok(next) = openat(folders.last().unwrap(), name, OFlags::PATH, Mode::empty()) {
        folders.push(next);
    }
    folders.pop();
    while let Some(folder) = folders.pop() {
        let inner = openat(&folder, name, OFlags::PATH, Mode::empty()).unwrap();
        let _ = unlinkat(&inner, "x", AtFlags::empty());
        unlinkat(&folder, name, AtFlags::REMOVEDIR).unwrap();
    }
}

#[test]
fn a_walk_that_is_cut_short_reports_nothing_as_gone() {
    let host = FakeHost::new();
    let before = host.take();
    let after = host.take_with(Limits { walk_entries: 3, ..Limits::default() });
    let (changes, _) = diff(&before, &after);
    assert_eq!(changes, []);
    assert!(cuts(&after)[0].starts_with("the search for files with special rights stopped after 3 entries"));
    // The other way round, what was found is shown with a doubt.
    let (changes, _) = diff(&after, &before);
    assert!(
        changes[0].text.ends_with("; it may have been there before, where the first look was cut short"),
        "{changes:?}"
    );
}

#[test]
fn decoys_do_not_turn_the_eye_from_where_keys_usually_are() {
    let host = FakeHost::new();
    let decoys: String = (0..100).map(|number| format!(" /decoy/{number:03}")).collect();
    host.write("/etc/ssh/sshd_config.d/a.conf", format!("AuthorizedKeysFile{decoys}\n"));
    let before = host.take();
    assert_eq!(cuts(&before), ["sshd looks for keys in more than 16 places; the rest was not looked at"]);
    host.write("/root/.ssh/authorized_keys", KEY);
    let (changes, _) = diff(&before, &host.take());
    assert!(changes.iter().any(|change| change.item == KEY_FINGERPRINT), "{changes:?}");
}

#[test]
fn files_that_include_each_other_come_to_an_end() {
    let host = FakeHost::new();
    for number in 0..100 {
        host.write(format!("/opt/s/{number}"), format!("@include {}\n@include 0\n", number + 1));
    }
    host.write("/etc/sudoers", "@include /opt/s/0\n");
    host.write("/etc/ssh/sshd_config", "Include /etc/ssh/sshd_config\nInclude /opt/s/*\n");
    assert_eq!(cuts(&host.take()), ["more than 64 sudoers files include each other"]);
}

#[test]
fn a_host_without_its_tables_is_said() {
    let host = FakeHost::new();
    fs::remove_file(host.path("/proc/1/mountinfo")).unwrap();
    let snapshot = host.take();
    assert!(cuts(&snapshot).iter().all(|cut| cut.contains("/proc/1/mountinfo is not there")));
    assert_eq!(snapshot.cuts().len(), 3);
    let nothing = Snapshot::take(Path::new("/nonexistent/root"), Limits::default());
    assert!(nothing.is_empty());
    assert!(cuts(&nothing)[0].starts_with("nothing was looked at: /nonexistent/root cannot be opened"));
}
