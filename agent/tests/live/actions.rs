//! What tasks of a session do to files, sockets, themselves and the system, each done for real by the account, or by root
//! below it.

use std::{io::BufRead, process::Stdio};

use breakglass_api::v1::{
    CredentialsChanged, FileAction, NamespacesChanged, SocketAction, SystemAction, event::Body,
    file_action::Kind as File, socket_action::Kind as Socket, system_action::Kind as System,
};

use super::harness::Recording;
use crate::need_kernel;

/// Numbers of x86-64 calls that perl has no names for.
const PERL_CALLS: &str = "sub call { my $n = shift; return syscall($n, @_) } ";

/// A session in which one script has run to its end, and a folder that it may write to.
struct Done {
    recording: Recording,
    folder: tempfile::TempDir,
}

impl Done {
    /// Runs perl as the account in a folder of its own.
    fn perl(script: &str) -> Self {
        Self::run(script, false)
    }

    /// The same as root, below a process of the account's login.
    fn perl_as_root(script: &str) -> Self {
        Self::run(script, true)
    }

    fn run(script: &str, root: bool) -> Self {
        let mut recording = Recording::start();
        recording.kernel().begin_session(21).unwrap();
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        std::os::unix::fs::chown(folder.path(), Some(recording.uid), Some(recording.uid)).unwrap();
        let mut command = recording.command("/usr/bin/perl");
        let script = format!("{PERL_CALLS}{script}");
        if root {
            // The real uid brings it into scope; what runs has root's rights.
            let uid = recording.uid;
            command = std::process::Command::new("/usr/bin/setpriv");
            command.args([&format!("--ruid={uid}"), "--clear-groups", "/usr/bin/perl"]);
        }
        let child = command
            .args(["-e", &script])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        recording.until_exit_of(pid);
        recording.settle();
        assert!(recording.gaps().is_empty());
        recording.kernel().end_session(21).unwrap();
        Self { recording, folder }
    }

    fn bodies(&self) -> impl Iterator<Item = &Body> {
        self.recording.seen.iter().filter(|observed| observed.slot == 21).filter_map(|o| o.event.body.as_ref())
    }

    /// File actions but mappings, with paths inside the folder.
    fn files(&self) -> Vec<&FileAction> {
        self.bodies()
            .filter_map(|body| match body {
                Body::FileAction(file) if file.kind() != File::Mapped => Some(file),
                _ => None,
            })
            .collect()
    }

    fn file(&self, kind: File) -> &FileAction {
        self.files()
            .into_iter()
            .find(|file| file.kind() == kind)
            .unwrap_or_else(|| panic!("no {kind:?}: {:?}", self.files()))
    }

    fn sockets(&self) -> Vec<&SocketAction> {
        self.bodies()
            .filter_map(|body| match body {
                Body::SocketAction(socket) => Some(socket),
                _ => None,
            })
            .collect()
    }

    fn system(&self, kind: System) -> Vec<&SystemAction> {
        self.bodies()
            .filter_map(|body| match body {
                Body::SystemAction(action) if action.kind() == kind => Some(action),
                _ => None,
            })
            .collect()
    }

    fn inside(&self, name: &str) -> Vec<u8> {
        self.folder.path().join(name).into_os_string().into_encoded_bytes()
    }
}

#[test]
fn files_are_named_by_the_kernel_where_it_can() {
    need_kernel!();
    let done = Done::perl(
        "use Fcntl; open(F, '>', 'made') or die; print F 'x'; truncate(F, 3) or die; chmod 04711, *F or die; close F; \
         open(F, '<', 'made') or die; open(F, '>', '/dev/null') or die; open(F, '+<', 'made') or die; close F",
    );
    let opened: Vec<_> = done.files().into_iter().filter(|file| file.kind() == File::Opened).collect();
    assert_eq!(opened.len(), 2, "{opened:?}");
    const WRONLY_CREAT_TRUNC: u32 = 0o1101;
    for file in &opened {
        assert_eq!((file.path.clone(), file.claimed, file.euid), (done.inside("made"), false, done.recording.uid));
    }
    assert_eq!(opened[0].flags & WRONLY_CREAT_TRUNC, WRONLY_CREAT_TRUNC);
    use std::os::unix::fs::MetadataExt;
    let inode = done.folder.path().join("made").metadata().unwrap().ino();
    assert_eq!(opened[0].file.unwrap().inode, inode);
    let truncated = done.file(File::Truncated);
    assert_eq!((truncated.size, truncated.path.clone()), (3, done.inside("made")));
    let mode = done.file(File::Mode);
    assert_eq!((mode.mode, mode.path.clone(), mode.claimed), (0o4711, done.inside("made"), false));
}

#[test]
fn opens_that_only_read_are_told_where_they_made_or_emptied_something() {
    need_kernel!();
    // openat by sysopen; open, openat2 and creat by their numbers.
    let done = Done::perl(
        "use Fcntl; sub how { my $p = shift; my $how = pack('QQQ', @_, 0); call(437, -100, $p, $how, 24) >= 0 or die \"$!\" } \
         sub old { my $p = shift; call(2, $p, @_) >= 0 or die } \
         sysopen(F, 'a', O_RDONLY | O_CREAT, 0644) or die; sysopen(F, 'a', O_RDONLY | O_CREAT, 0644) or die; \
         sysopen(F, 'a', O_RDONLY) or die; sysopen(F, 'a', O_RDONLY | O_TRUNC) or die; \
         sysopen(F, 'a', 010000000 | O_TRUNC) or die; sysopen(F, '/dev/null', O_RDONLY | O_TRUNC) or die; \
         old('b', 0100, 0644); old('b', 0, 0); old('b', 01000, 0); old('b', 0100, 0644); \
         how('c', 0100, 0644); how('c', 0, 0); how('c', 01000, 0); how('c', 0100, 0644); how('c', 2, 0); \
         call(85, my $d = 'd', 0644) >= 0 or die;",
    );
    let opened: Vec<_> = done.files().into_iter().filter(|file| file.kind() == File::Opened).collect();
    const CREAT: u32 = 0o100;
    const TRUNC: u32 = 0o1000;
    const RDWR: u32 = 2;
    const WRONLY: u32 = 1;
    const ASKED: u32 = 0o3 | CREAT | TRUNC;
    let expected = [
        ("a", CREAT),
        ("a", TRUNC),
        ("b", CREAT),
        ("b", TRUNC),
        ("c", CREAT),
        ("c", TRUNC),
        ("c", RDWR),
        ("d", WRONLY | CREAT | TRUNC),
    ];
    let told: Vec<_> = opened.iter().map(|file| (file.path.clone(), file.flags & ASKED, file.claimed)).collect();
    assert_eq!(told, expected.map(|(name, flags)| (done.inside(name), flags, false)));
}

#[test]
fn an_open_is_told_even_if_its_descriptor_is_gone_again() {
    need_kernel!();
    // One thread opens for writing, the other closes whatever comes to be at that number.
    let done = Done::perl(
        "use threads; use threads::shared; my $over :shared; open(F, '>', 'made') or die; my $next = fileno(F); close F; \
         my $t = threads->create(sub { while (!$over) { syscall(3, $next) } }); my $made = 'made'; \
         for (1..10000) { my $n = call(2, $made, 1, 0); $n >= 0 or die; $n == $next or syscall(3, $n); syscall(3, $next) } \
         $over = 1; $t->join;",
    );
    let opened: Vec<_> = done.files().into_iter().filter(|file| file.kind() == File::Opened).collect();
    assert_eq!(opened.len(), 10_001);
    const WRONLY: u32 = 1;
    for file in &opened {
        assert_eq!((file.path.clone(), file.flags & 0o3), (done.inside("made"), WRONLY), "{file:?}");
    }
    println!("{} of them by their claimed names", opened.iter().filter(|file| file.claimed).count());
}

#[test]
fn names_are_whole_as_long_as_the_kernel_takes_them() {
    need_kernel!();
    let done = Done::perl(
        "sub long { \"$ENV{PWD}/\" . '/' x (4095 - length(\"$ENV{PWD}/$_[0]\")) . $_[0] } $ENV{PWD} = `pwd`; chomp $ENV{PWD}; \
         open(F, '>', 'made') or die; rename(long('made'), long('moved')) or die \"$!\"; unlink(long('moved')) or die;",
    );
    let long = |name: &str| {
        let folder = done.folder.path().as_os_str().as_encoded_bytes();
        [folder, &b"/".repeat(4095 - folder.len() - name.len()), name.as_bytes()].concat()
    };
    let renamed = done.file(File::Renamed);
    assert!(renamed.path == long("made") && renamed.other == long("moved"), "{renamed:?}");
    let unlinked = done.file(File::Unlinked);
    assert!(unlinked.path == long("moved"), "{unlinked:?}");
}

#[test]
fn names_are_claims_seen_from_their_folder() {
    need_kernel!();
    let done = Done::perl(
        "mkdir 'd' or die; open(F, '>', 'd/a') or die; rename('d/a', 'd/b') or die; link('d/b', 'c') or die; \
         symlink('/etc/shadow', 's') or die; chown($<, -1, 'c') or die; chmod(0600, 'c') or die; \
         chdir 'd' or die; unlink('../c') or die; opendir(D, '.') or die; \
         call(263, fileno(D), my $n = 'b', 0) == 0 or die; chdir '/'; rmdir(\"$ENV{PWD}/d\"); ",
    );
    let made = done.file(File::Made);
    assert_eq!((made.path.clone(), made.mode, made.claimed), (done.inside("d"), 0o777, true));
    let renamed = done.file(File::Renamed);
    assert_eq!((renamed.path.clone(), renamed.other.clone()), (done.inside("d/a"), done.inside("d/b")));
    let linked = done.file(File::Linked);
    assert_eq!((linked.path.clone(), linked.other.clone()), (done.inside("d/b"), done.inside("c")));
    let symlinked = done.file(File::Symlinked);
    assert_eq!((symlinked.path.clone(), &symlinked.other[..]), (done.inside("s"), &b"/etc/shadow"[..]));
    let owner = done.file(File::Owner);
    assert_eq!((owner.uid, owner.gid, owner.path.clone()), (done.recording.uid, u32::MAX, done.inside("c")));
    assert_eq!(done.file(File::Mode).mode, 0o600);
    let gone: Vec<_> =
        done.files().into_iter().filter(|f| f.kind() == File::Unlinked).map(|f| f.path.clone()).collect();
    assert_eq!(gone, [done.inside("d/../c"), done.inside("d/b")]);
}

#[test]
fn attributes_and_old_calls_are_seen() {
    need_kernel!();
    let done = Done::perl(
        "open(F, '>', 'x') or die; call(188, my $p = 'x', my $n = 'user.test', my $v = 'v', 1, 0) == 0 or exit 0;",
    );
    let attribute = done.file(File::Attribute);
    assert_eq!((attribute.path.clone(), &attribute.other[..]), (done.inside("x"), &b"user.test"[..]));
}

#[test]
fn sockets_are_seen_with_their_addresses() {
    need_kernel!();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let done = Done::perl(&format!(
        "use Socket; socket(S, AF_INET, SOCK_STREAM, 0) or die; connect(S, sockaddr_in({port}, inet_aton('127.0.0.1'))) or die; \
         socket(T, AF_INET, SOCK_STREAM, 0) or die; connect(T, sockaddr_in(1, inet_aton('127.0.0.1'))) and die; \
         socket(U, AF_UNIX, SOCK_STREAM, 0) or die; bind(U, sockaddr_un('sock')) or die; listen(U, 1) or die; \
         socket(V, AF_UNIX, SOCK_STREAM, 0) or die; connect(V, sockaddr_un('sock')) or die; \
         socket(W, AF_INET6, SOCK_DGRAM, 0) and connect(W, pack('SnNa16N', 10, 53, 0, chr(0) x 15 . chr(1), 0))"
    ));
    let local = |s: &&SocketAction| s.family == 2 || s.path.ends_with(b"sock") || s.port == 53;
    let sockets: Vec<_> = done.sockets().into_iter().filter(local).collect();
    let [tcp, refused, bound, unix, rest @ ..] = &sockets[..] else { panic!("{sockets:?}") };
    assert_eq!((tcp.kind(), tcp.port, &tcp.address[..]), (Socket::Connected, port.into(), &[127, 0, 0, 1][..]));
    assert_eq!((tcp.claimed, tcp.errno), (false, 0));
    const ECONNREFUSED: u32 = 111;
    assert_eq!((refused.port, refused.errno, refused.claimed), (1, ECONNREFUSED, true));
    assert_eq!((bound.kind(), bound.family, &bound.path[..]), (Socket::Bound, 1, &b"sock"[..]));
    assert_eq!((unix.kind(), &unix.path[..]), (Socket::Connected, &b"sock"[..]));
    if let [datagram] = rest {
        let loopback = std::net::Ipv6Addr::LOCALHOST.octets();
        assert_eq!((datagram.family, datagram.port, &datagram.address[..]), (10, 53, &loopback[..]));
    }
}

#[test]
fn changes_of_user_and_namespaces_are_seen() {
    need_kernel!();
    let done = Done::perl_as_root(
        "call(272, 0x04000000) == 0 or die; call(272, 0x20000) == 0 or die 'mount'; call(117, -1, 12345, 12345) == 0 or die;",
    );
    let changed: Vec<&CredentialsChanged> = done
        .bodies()
        .filter_map(|body| match body {
            Body::CredentialsChanged(changed) => Some(changed),
            _ => None,
        })
        .collect();
    let last = changed.last().unwrap().credentials.unwrap();
    assert_eq!((last.uid, last.euid, last.suid), (done.recording.uid, 12345, 12345));
    assert_eq!(last.cap_effective, 0);
    let entered: Vec<&NamespacesChanged> = done
        .bodies()
        .filter_map(|body| match body {
            Body::NamespacesChanged(entered) => Some(entered),
            _ => None,
        })
        .collect();
    assert_eq!(entered.iter().map(|e| e.flags).collect::<Vec<_>>(), [0x0400_0000, 0x0002_0000]);
    let [first, second] = [entered[0].namespaces.unwrap(), entered[1].namespaces.unwrap()];
    assert_ne!(first.mount, second.mount);
}

#[test]
fn other_processes_are_watched_over() {
    need_kernel!();
    let mut outside = std::process::Command::new("/bin/sleep").arg("1000").spawn().unwrap();
    let pid = outside.id();
    let done = Done::perl_as_root(&format!(
        "call(101, 0x4206, {pid}, 0, 0) == 0 or die; call(101, 17, {pid}, 0, 0); kill('USR1', $$) if 0; \
         my $c = fork; if (!$c) {{ sleep 1000; exit }} kill('TERM', $c); waitpid($c, 0); kill('CONT', {pid}) or die;"
    ));
    outside.kill().unwrap();
    outside.wait().unwrap();
    let traced = done.system(System::Traced);
    assert_eq!(traced.iter().map(|t| (t.value, t.value2, t.errno)).collect::<Vec<_>>(), [(0x4206, u64::from(pid), 0)]);
    const SIGCONT: u64 = 18;
    let signals: Vec<_> = done.system(System::Signalled).iter().map(|s| (s.value, s.target.unwrap().pid)).collect();
    assert_eq!(signals, [(SIGCONT, pid)]);
}

/// A caller may say of a signal that a timer, a message or the kernel's own input and output sent it.
#[test]
fn a_signal_is_told_whatever_it_says_where_it_comes_from() {
    need_kernel!();
    let mut outside = std::process::Command::new("/bin/sleep").arg("1000").spawn().unwrap();
    let pid = outside.id();
    // rt_sigqueueinfo, rt_tgsigqueueinfo, pidfd_send_signal; SIGCONT, and SIGKILL at last.
    let done = Done::perl_as_root(&format!(
        "sub info {{ pack('l3x116', @_) }} my $i; \
         for my $code (-1, -2, -4, -7, -60) {{ $i = info(18, 0, $code); call(129, {pid}, 18, $i) == 0 or die; }} \
         $i = info(18, 0, -2); call(297, {pid}, {pid}, 18, $i) == 0 or die; \
         my $fd = call(434, {pid}, 0); $i = info(18, 0, -3); call(424, $fd, 18, $i, 0) == 0 or die; \
         call(424, $fd, 18, 0, 0) == 0 or die; $i = info(9, 0, -2); call(129, {pid}, 9, $i) == 0 or die;"
    ));
    outside.wait().unwrap();
    let signals: Vec<_> = done.system(System::Signalled).iter().map(|s| (s.value, s.target.unwrap().pid)).collect();
    let expected: Vec<_> = [[18; 8].as_slice(), &[9]].concat().into_iter().map(|signal| (signal, pid)).collect();
    assert_eq!(signals, expected);
}

#[test]
fn the_system_is_watched_over_and_refusals_too() {
    need_kernel!();
    // In namespaces of its own, so that nothing outside changes.
    let done = Done::perl_as_root(
        "call(272, 0x24020000) == 0 or die; \
         call(165, my $s = 'none', my $r = '/', 0, 0x44000, 0) == 0 or die; mkdir 'm'; \
         call(165, $s = 'tmpfs', my $t = 'm', my $f = 'tmpfs', 6, 0) == 0 or die; call(166, $t, 2) == 0 or die; \
         call(176, my $m = 'no_such_module', 0) == -1 or die; call(313, 0, my $o = 'opts', 0) == -1 or die; \
         call(321, 99, 0, 0) == -1 or die; call(298, 0, 0, 0, -1, 0) == -1 or die; call(425, 0, 0) == -1 or die; \
         call(246, 0, 99, 0, 0) == -1 or die; call(170, my $h = 'renamed', 7) == 0 or die; \
         call(169, 1, 2, 3, 0) == -1 or die; call(227, 77, 0) == -1 or die; call(167, my $w = '/no/swap', 0); \
         call(16, 0, 0x5412, 0) == -1 or die; call(159, 0); \
         call(161, my $c = '.') == 0 or die;",
    );
    let mounted = done.system(System::Mounted);
    let [private, tmpfs] = &mounted[..] else { panic!("{mounted:?}") };
    assert_eq!((&private.name[..], private.value), (&b"/"[..], 0x44000));
    assert_eq!((tmpfs.name.clone(), &tmpfs.other[..], tmpfs.value), (done.inside("m"), &b"tmpfs"[..], 6));
    assert_eq!(done.system(System::Unmounted)[0].name, done.inside("m"));
    assert_eq!(done.system(System::ModuleRemoved)[0].name, b"no_such_module");
    assert_ne!(done.system(System::ModuleRemoved)[0].errno, 0);
    let loaded = done.system(System::ModuleLoaded);
    assert_eq!((&loaded[0].other[..], loaded[0].errno != 0), (&b"opts"[..], true));
    assert_eq!(done.system(System::Bpf)[0].value, 99);
    for kind in [System::PerfOpened, System::IoUring, System::Kexec, System::ClockSet, System::Swap] {
        assert_ne!(done.system(kind)[0].errno, 0, "{kind:?}");
    }
    assert_eq!(done.system(System::ClockSet).len(), 1);
    assert_eq!(done.system(System::HostNamed)[0].name, b"renamed");
    assert_eq!(done.system(System::Reboot)[0].value, 3);
    assert_eq!(done.system(System::TerminalInjected)[0].value, 0x5412);
    assert_eq!(done.system(System::RootChanged)[0].name, done.inside("."));
    assert!(done.system(System::Mounted).iter().all(|action| action.euid == 0));
}

#[test]
fn executable_memory_and_mapped_files_are_named_once() {
    need_kernel!();
    let done = Done::perl(
        "call(9, 0, 4096, 7, 0x22, -1, 0); call(9, 0, 4096, 7, 0x22, -1, 0); my $c = fork; if (!$c) { \
         my $a = call(9, 0, 4096, 3, 0x22, -1, 0); call(10, $a, 4096, 5); call(9, 0, 4096, 3, 0x22, -1, 0); exit } waitpid($c, 0);",
    );
    let made = done.system(System::MemoryExecutable);
    assert_eq!(made.iter().map(|m| m.value).collect::<Vec<_>>(), [7, 5]);
    assert_eq!(made[0].value2, 4096);
    let mapped: Vec<Vec<u8>> = done
        .bodies()
        .filter_map(|body| match body {
            Body::FileAction(file) if file.kind() == File::Mapped => Some(file.path.clone()),
            _ => None,
        })
        .collect();
    let libc: Vec<_> = mapped.iter().filter(|path| String::from_utf8_lossy(path).contains("/libc.so")).collect();
    assert_eq!(libc.len(), 1, "{mapped:?}");
}

#[test]
fn a_rewritten_login_uid_is_seen() {
    need_kernel!();
    if !std::path::Path::new("/proc/self/loginuid").exists() {
        eprintln!("skipped: this kernel keeps no login uid");
        return;
    }
    // write, then pwrite64.
    let done = Done::perl_as_root(
        "open(F, '>', '/proc/self/loginuid') or die; syswrite(F, '1234') or exit 0; my $x = '1235'; \
         syscall(18, fileno(F), $x, 4, 0);",
    );
    let set = done.system(System::LoginUidSet);
    assert_eq!(set.iter().map(|s| s.value).collect::<Vec<_>>(), [1234, 1235]);
}

#[test]
fn a_flood_of_files_leaves_room_for_programs() {
    need_kernel!();
    let mut recording = Recording::with(|options| options.audit_ring = 64 << 10);
    recording.kernel().begin_session(22).unwrap();
    // Nothing is read meanwhile. Under the policy to deny, a program that could not be recorded would be killed.
    let script = "for (1..2000) { open(F, '>', '/nonexistent/x'); mkdir('/'); open(F, '+<', '/dev/shm') ; \
                  socket(S, 1, 1, 0); connect(S, pack('Sa*', 1, '/nobody')); } exec '/bin/echo', 'ran'";
    let script = format!("use Socket; {script}");
    let output = recording.command("/usr/bin/perl").args(["-e", &script]).output().unwrap();
    assert_eq!(output.stdout, b"ran\n");
    recording.settle();
    let [audit, ..] = recording.kernel().counters().unwrap().rings;
    assert!(audit.dropped > 0);
    assert_eq!(recording.gaps().iter().map(|gap| gap.records).sum::<u64>(), audit.dropped);
    let echo = super::harness::execs(&recording.seen).into_iter().find(|exec| exec.argv[0] == b"/bin/echo");
    assert!(echo.is_some());
    recording.kernel().end_session(22).unwrap();
}

#[test]
fn executable_memory_that_found_no_room_is_told_the_next_time() {
    need_kernel!();
    let mut recording = Recording::with(|options| options.audit_ring = 64 << 10);
    recording.kernel().begin_session(23).unwrap();
    let script = "use Socket; $| = 1; sub map_it { syscall(9, 0, 4096, 7, 0x22, -1, 0) } \
                  for (1..2000) { socket(S, 1, 1, 0); connect(S, pack('Sa*', 1, '/nobody')) } \
                  map_it(); print \"full\\n\"; <STDIN>; map_it(); map_it();";
    let mut child = recording
        .command("/usr/bin/perl")
        .args(["-e", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "full\n");
    recording.drain();
    let told = |recording: &Recording| {
        let made = |body: &Body| matches!(body, Body::SystemAction(a) if a.kind() == System::MemoryExecutable);
        recording.seen.iter().filter_map(|observed| observed.event.body.as_ref()).filter(|body| made(body)).count()
    };
    assert_eq!(told(&recording), 0);
    drop(child.stdin.take());
    let pid = child.id();
    child.wait().unwrap();
    recording.until_exit_of(pid);
    assert_eq!(told(&recording), 1);
    recording.kernel().end_session(23).unwrap();
}
