//! What root may not do, and that nothing hides it. In the lab, where security hooks work; elsewhere these tests say that they were
//! skipped.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use breakglass_agent::{config::Tier, kernel::Belongings, recorder::source::Observed};
use breakglass_api::v1::{self, event::Body};

use super::harness::{DEADLINE, Recording};
use crate::need_kernel;

const FTRACE: &str = "/proc/sys/kernel/ftrace_enabled";

/// Ends the calling test early, saying why, where it must not run.
macro_rules! need_lab {
    ($tier:expr) => {
        need_kernel!();
        match std::env::var("BREAKGLASS_LAB_TIER") {
            Ok(tier) if $tier.contains(&tier.as_str()) => {}
            _ => {
                eprintln!("skipped: only in the lab, in tier {:?}", $tier);
                return;
            }
        }
    };
}

/// An agent's belongings, all in one folder.
struct Home {
    folder: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        // On the root disk: guests have a memory disk at /tmp.
        let home = Self { folder: tempfile::tempdir_in("/var/lib").unwrap() };
        for folder in ["state", "state/spool", "state/keys", "run", "units"] {
            fs::create_dir(home.path(folder)).unwrap();
        }
        for file in ["state/spool/segment", "state/keys/current", "agent.toml", "run/source"] {
            fs::write(home.path(file), "as it was\n").unwrap();
        }
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn belongings(&self) -> Belongings {
        Belongings {
            trees: vec![self.path("state")],
            secrets: vec![self.path("state/keys")],
            shared: vec![self.path("run")],
            files: vec![self.path("agent.toml")],
            units: vec![self.path("units")],
        }
    }

    fn recording(&self) -> Recording {
        Recording::guarded_with(|options| options.belongings = self.belongings())
    }
}

/// Runs a script as root; as one of the session if `tagged`, by its audit login uid.
fn root(recording: &Recording, tagged: bool, home: &Home, script: &str) -> Output {
    let prepared = if tagged {
        format!("echo {} > /proc/self/loginuid || exit 99; exec /bin/sh -c \"$SCRIPT\"", recording.uid)
    } else {
        "exec /bin/sh -c \"$SCRIPT\"".to_owned()
    };
    Command::new("/bin/sh")
        .args(["-c", &prepared])
        .env("SCRIPT", script)
        .env("AGENT", std::process::id().to_string())
        .env("HOME_OF_AGENT", home.folder.path())
        .env("PINS", &recording.options.pins)
        .env("CGROUP", cgroup())
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .output()
        .unwrap()
}

fn cgroup() -> PathBuf {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap();
    let group = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
    Path::new("/sys/fs/cgroup").join(group.trim_start_matches('/'))
}

fn alerts<'a>(seen: &'a [Observed], code: &str) -> Vec<&'a v1::Alert> {
    seen.iter()
        .filter_map(|observed| match &observed.event.body {
            Some(Body::Alert(alert)) if alert.code == code => Some(alert),
            _ => None,
        })
        .collect()
}

/// Expects that each script fails and raises its alert.
fn expect_refusals(recording: &mut Recording, home: &Home, tagged: bool, table: &[(&str, &str)]) {
    let mut wrong = Vec::new();
    for (code, script) in table {
        recording.drain();
        let before = alerts(&recording.seen, code).len();
        let output = root(recording, tagged, home, script);
        recording.drain();
        let told = alerts(&recording.seen, code).len() > before;
        if output.status.success() || !told {
            wrong.push(format!(
                "{code} (tagged: {tagged}): {script:?}: {}, alert: {told}, said {:?} {:?}",
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            ));
        }
    }
    for observed in &recording.seen {
        if let Some(Body::Alert(alert)) = &observed.event.body {
            println!("{}: {}", alert.code, alert.message);
        }
    }
    assert!(wrong.is_empty(), "not refused:\n{}", wrong.join("\n"));
}

/// What belongs to the agent, from whoever is root.
const AGENTS: &[(&str, &str)] = &[
    ("guard-signal", "kill -9 $AGENT"),
    ("guard-signal", "kill -STOP $AGENT"),
    ("guard-signal", "kill -TERM $AGENT"),
    ("guard-signal", DESCRIPTORS_SIGNAL),
    ("guard-ptrace", "head -c 1 /proc/$AGENT/mem"),
    ("guard-ptrace", "exec 3</proc/$AGENT/mem"),
    ("guard-priority", "renice -n 19 -p $AGENT"),
    ("guard-priority", "ionice -c 3 -p $AGENT"),
    ("guard-priority", "chrt --idle -p 0 $AGENT"),
    ("guard-priority", "prlimit --pid $AGENT --nofile=1:1"),
    ("guard-priority", "exec 3<>/proc/$AGENT/mem"),
    ("guard-priority", "echo 1000 > /proc/$AGENT/oom_score_adj"),
    (
        "guard-priority",
        "d=$(mktemp -d); mount -t proc proc $d; echo 1000 > $d/$AGENT/oom_score_adj; r=$?; umount $d; exit $r",
    ),
    ("guard-pins", "rm $PINS/*/link_process_exec"),
    ("guard-pins", "mv $PINS $PINS-moved"),
    ("guard-pins", "mkdir $PINS/x"),
    ("guard-pins", "chmod 777 $PINS/*/map_SETTINGS"),
    ("guard-mount", "umount -l /sys/fs/bpf"),
    ("guard-mount", "mount -t tmpfs none /sys/fs/bpf"),
    (
        "guard-mount",
        "d=$(mktemp -d); mount --make-private /sys; mount --make-private /sys/fs/bpf; mount --move /sys/fs/bpf $d; r=$?; \
         mount --make-shared /sys; mount --make-shared /sys/fs/bpf; rmdir $d; exit $r",
    ),
    ("guard-mount", "mount --bind /mnt $PINS"),
    ("guard-mount", "mount -o remount,ro /sys/fs/bpf"),
    ("guard-mount", "mount -t tmpfs none /sys"),
    ("guard-mount", "mount -t tmpfs none $HOME_OF_AGENT"),
    ("guard-mount", "mount -t tmpfs none $HOME_OF_AGENT/state/spool"),
    ("guard-mount", "mount --bind /etc/hostname $HOME_OF_AGENT/agent.toml"),
    // In another namespace, from which mounts spread into the agent's.
    ("guard-mount", "unshare -m --propagation shared mount -t tmpfs none $HOME_OF_AGENT/state/spool"),
    ("guard-mount", "mount -o remount,ro /"),
    // Copies whose unmounting takes the real ones along, as mounts spread from one to the other.
    (
        "guard-mount",
        "mount --rbind /sys /mnt; umount /mnt/fs/bpf; r=$?; mount --make-rslave /mnt; umount -R /mnt; exit $r",
    ),
    ("guard-mount", "mount --rbind /sys /mnt; umount -l /mnt; r=$?; mount --make-rslave /mnt; umount -R /mnt; exit $r"),
    // Removing what nothing is mounted on in this namespace unmounts what is mounted on it in every other.
    ("guard-file", "unshare -m --propagation private sh -c 'umount -l /sys && rmdir /sys'"),
    ("guard-file", BY_HANDLE),
    ("guard-file", "echo x >> $HOME_OF_AGENT/state/spool/segment"),
    ("guard-file", "rm $HOME_OF_AGENT/state/spool/segment"),
    ("guard-file", "truncate -s 0 $HOME_OF_AGENT/state/spool/segment"),
    ("guard-file", "touch $HOME_OF_AGENT/state/spool/new"),
    ("guard-file", "mkdir $HOME_OF_AGENT/state/new"),
    ("guard-file", "mv $HOME_OF_AGENT/state $HOME_OF_AGENT/elsewhere"),
    ("guard-file", "mv $HOME_OF_AGENT $HOME_OF_AGENT-moved"),
    ("guard-file", "chmod 777 $HOME_OF_AGENT/state"),
    ("guard-file", "chown 1 $HOME_OF_AGENT/agent.toml"),
    ("guard-file", "echo x > $HOME_OF_AGENT/agent.toml"),
    (
        "guard-file",
        "echo x > /var/lib/new; mv /var/lib/new $HOME_OF_AGENT/agent.toml; r=$?; rm -f /var/lib/new; exit $r",
    ),
    ("guard-file", "ln $HOME_OF_AGENT/state/spool/segment /var/lib/second-name"),
    ("guard-file", "chattr +i $HOME_OF_AGENT/state/spool"),
    ("guard-file", "rm $HOME_OF_AGENT/run/source"),
    ("guard-file", "echo x > $HOME_OF_AGENT/units/breakglass-agent.service"),
    ("guard-file", "mkdir $HOME_OF_AGENT/units/breakglass-agent.service.d"),
    ("guard-file", "mkdir $HOME_OF_AGENT/units/service.d"),
    ("guard-cgroup", "echo 1 > $CGROUP/cgroup.freeze"),
    ("guard-cgroup", "echo 1 > $CGROUP/cgroup.kill"),
    ("guard-cgroup", "echo 1 > $CGROUP/../cgroup.freeze"),
    (
        "guard-cgroup",
        "g=/sys/fs/cgroup/other; mkdir -p $g; echo $AGENT > $g/cgroup.procs && echo 1 > $g/cgroup.kill; r=$?; \
         echo $AGENT > $CGROUP/cgroup.procs; rmdir $g; exit $r",
    ),
];

/// Opens a file of the agent's for writing by its handle, when the kernel has forgotten where it lies.
const BY_HANDLE: &str = r#"
python3 - $HOME_OF_AGENT/state/spool/segment <<'END'
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
handle, number = ctypes.create_string_buffer(136), ctypes.c_int()
handle[0] = 128
assert libc.syscall(303, -100, sys.argv[1].encode(), handle, ctypes.byref(number), 0) == 0
open('/proc/sys/vm/drop_caches', 'w').write('2')
sys.exit(libc.syscall(304, os.open('/', os.O_RDONLY), handle, os.O_WRONLY) < 0)
END
"#;

/// The kernel is to send the agent SIGTRAP when it has used the processor for long enough.
const EVENT_WITH_A_SIGNAL: &str = r#"
python3 - $AGENT <<'END'
import ctypes, sys
event = ctypes.create_string_buffer(128)
event[0], event[4], event[44] = 1, 128, 0x30
sys.exit(ctypes.CDLL(None).syscall(298, event, int(sys.argv[1]), -1, -1, 0) < 0)
END
"#;

/// The kernel is to kill the agent as the owner of a pipe.
const DESCRIPTORS_SIGNAL: &str = "python3 -c 'import fcntl, os, sys; r, w = os.pipe(); fcntl.fcntl(r, fcntl.F_SETOWN, int(sys.argv[1])); \
     fcntl.fcntl(r, 10, 9); fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC); os.write(w, b\"x\"); sys.exit(1)' $AGENT";

/// With what no kernel takes as an order to end: it is refused before that is looked at.
const REBOOT: &str = "python3 -c 'import ctypes, sys; libc = ctypes.CDLL(None, use_errno=True); \
     sys.exit(libc.syscall(169, 0, 0, 0, 0) == -1 and ctypes.get_errno() == 1)'";

/// What stops or blinds the kernel's programs, from whoever is root.
const SWITCHES: &[(&str, &str)] = &[
    ("guard-tracing", "echo 0 > /proc/sys/kernel/ftrace_enabled"),
    ("guard-tracing", "sysctl -w kernel.ftrace_enabled=0"),
    (
        "guard-tracing",
        "d=$(mktemp -d); mount -t proc proc $d; echo 0 > $d/sys/kernel/ftrace_enabled; r=$?; umount $d; exit $r",
    ),
    ("guard-tracing", "unshare -mpf --mount-proc sh -c 'echo 0 > /proc/sys/kernel/ftrace_enabled'"),
    (
        "guard-tracing",
        "mountpoint -q /sys/kernel/tracing || mount -t tracefs none /sys/kernel/tracing; echo 0 > /sys/kernel/tracing/tracing_on",
    ),
    (
        "guard-tracing",
        "mountpoint -q /sys/kernel/debug || mount -t debugfs none /sys/kernel/debug; echo 0 > /sys/kernel/debug/kprobes/enabled",
    ),
    ("guard-sysctl", "echo '|/bin/true' > /proc/sys/kernel/core_pattern"),
    ("guard-sysctl", "echo /tmp/x > /proc/sys/kernel/modprobe"),
    ("guard-sysctl", "echo f > /proc/sysrq-trigger"),
    ("guard-sysctl", "echo -1 > /proc/sys/kernel/sched_rt_runtime_us"),
    ("guard-sysctl", "exec 3>/sys/module/kernel/parameters/panic_on_warn"),
    (
        "guard-sysctl",
        "d=$(mktemp -d); mount -t cgroup -o none,name=x none $d && (exec 3>$d/release_agent); r=$?; umount $d; exit $r",
    ),
    ("guard-sysctl", "d=$(mktemp -d); mount -t cgroup -o none,name=y,release_agent=/bin/true none $d"),
    ("guard-device", "exec 3>/sys/fs/ext4/$(basename $(findmnt -no SOURCE /))/trigger_fs_error"),
    ("guard-device", "mount -o remount,abort /"),
    ("guard-device", "mount -o remount,errors=panic /"),
    ("guard-memory", "m=$(mktemp -u); mknod $m c 10 231; exec 3<>$m"),
    ("guard-memory", "exec 3<>/dev/mem"),
    ("guard-device", "exec 3<>$(findmnt -no SOURCE /)"),
    (
        "guard-device",
        "m=$(mktemp -u); mknod $m b $(lsblk -nrdo MAJ:MIN $(findmnt -no SOURCE /) | tr : ' '); exec 3<>$m",
    ),
    ("guard-memory", "python3 -c 'import ctypes, sys; sys.exit(ctypes.CDLL(None).syscall(172, 3) != 0)'"),
    (
        "guard-device",
        "python3 -c 'import fcntl, os, sys; d = os.open(sys.argv[1], os.O_RDONLY); fcntl.ioctl(d, 0xc0045877, 0); fcntl.ioctl(d, 0xc0045878, 0)' \
         $HOME_OF_AGENT/state",
    ),
    // With a flag that ext4 does not know, which it says only after it was allowed.
    (
        "guard-device",
        "python3 -c 'import ctypes, os, sys; libc = ctypes.CDLL(None, use_errno=True); d = os.open(\"/\", os.O_RDONLY); \
         libc.ioctl(d, 0x8004587d, ctypes.byref(ctypes.c_uint(9))); sys.exit(ctypes.get_errno() == 1)'",
    ),
    // Nobody reads the rings meanwhile.
    ("guard-boot", REBOOT),
    ("guard-lockdown", "echo integrity > /sys/kernel/security/lockdown"),
    ("guard-module", "modprobe dummy"),
    ("guard-kexec", "python3 -c 'import ctypes,sys; sys.exit(ctypes.CDLL(None).syscall(246,0,0,0,0) != 0)'"),
];

/// What only a session is refused.
const OF_SESSIONS: &[(&str, &str)] = &[
    ("guard-bpf", "bpftool prog list"),
    ("guard-secret", "cat $HOME_OF_AGENT/state/keys/current"),
    (
        "guard-perf",
        "python3 -c 'import ctypes,sys; a=ctypes.create_string_buffer(128); a[0]=1; a[4]=112; sys.exit(ctypes.CDLL(None,use_errno=True).syscall(298,a,0,-1,-1,0) < 0)'",
    ),
];

#[test]
fn the_tier_is_the_one_that_the_kernel_was_booted_for() {
    need_kernel!();
    let Ok(tier) = std::env::var("BREAKGLASS_LAB_TIER") else {
        eprintln!("skipped: only in the lab");
        return;
    };
    let started = Instant::now();
    let mut recording = Recording::guarded();
    println!("loaded in {:?}", started.elapsed());
    let info = recording.kernel().info().clone();
    println!("{:#?}", info.programs);
    let folder = fs::read_dir(&recording.options.pins).unwrap().next().unwrap().unwrap().path();
    for (program, hook) in &info.programs {
        if !folder.join(format!("prog_{program}")).exists() {
            println!("this kernel has no {hook}");
        }
    }
    assert_eq!(info.tier.as_str(), tier, "{}", info.tier_reason);
}

#[test]
fn root_of_a_session_is_refused_everything() {
    need_lab!(["full"]);
    let home = Home::new();
    let mut recording = home.recording();
    recording.kernel().begin_session(5).unwrap();
    for table in [AGENTS, SWITCHES, OF_SESSIONS] {
        expect_refusals(&mut recording, &home, true, table);
    }
    unharmed(&home);
    assert!(recording.seen.iter().all(|observed| observed.slot == 5 || observed.slot == 0));
    recording.kernel().end_session(5).unwrap();
}

#[test]
fn root_outside_of_the_session_is_refused_while_it_is_open() {
    need_lab!(["full"]);
    let home = Home::new();
    let mut recording = home.recording();
    recording.kernel().begin_session(5).unwrap();
    for table in [AGENTS, SWITCHES] {
        expect_refusals(&mut recording, &home, false, table);
    }
    expect_refusals(&mut recording, &home, false, &[("guard-ptrace", EVENT_WITH_A_SIGNAL)]);
    unharmed(&home);
    // What is none of the agent's goes on.
    let fine = "cat $HOME_OF_AGENT/agent.toml && d=$(mktemp -d) && mount -t tmpfs none $d && touch $d/x && umount $d && rmdir $d \
                && unshare -m sh -c 'mount -t tmpfs none /mnt && touch /mnt/x && umount /mnt' && mount -o remount,rw / && \
                unshare -m --propagation private sh -c 'mount -t tmpfs none /var/lib && umount -l /sys/fs/bpf'";
    let output = root(&recording, false, &home, fine);
    assert!(output.status.success(), "{output:?}");
    recording.kernel().end_session(5).unwrap();
}

#[test]
fn at_rest_only_programs_pins_and_process_are_guarded() {
    need_lab!(["full"]);
    let home = Home::new();
    let mut recording = home.recording();
    let always: Vec<(&str, &str)> = AGENTS
        .iter()
        .copied()
        .filter(|(code, script)| {
            matches!(*code, "guard-ptrace" | "guard-pins")
                || (*code == "guard-signal" && !script.contains("TERM"))
                || (*code == "guard-priority" && !script.contains("$AGENT/"))
                || (*code == "guard-mount"
                    && !script.contains("--move")
                    && (script.contains("bpf") || script.contains("PINS")))
        })
        .collect();
    assert!(always.len() > 12);
    expect_refusals(&mut recording, &home, false, &always);
    let fine = "echo new > $HOME_OF_AGENT/agent.toml && touch $HOME_OF_AGENT/state/spool/x && sysctl -qw kernel.ftrace_enabled=1 && modprobe dummy && modprobe -r dummy";
    let output = root(&recording, false, &home, fine);
    assert!(output.status.success(), "{output:?}");
}

/// What operators do to repair a host from outside of it, and its end.
const ANOTHER_ROOT: &str = "set -e; mount -t tmpfs none /mnt; cd /mnt; mkdir dev proc sys run var all; \
     for d in dev proc sys run var; do mount --bind /$d /mnt/$d; done; mount --rbind /sys all; mount --make-rslave all; \
     cd /; umount -R /mnt; test -d $PINS";

#[test]
fn another_root_is_taken_down_again() {
    need_lab!(["full"]);
    let home = Home::new();
    let mut recording = home.recording();
    for session in [None, Some(false), Some(true)] {
        if session == Some(false) {
            recording.kernel().begin_session(5).unwrap();
        }
        let output = root(&recording, session == Some(true), &home, ANOTHER_ROOT);
        recording.drain();
        assert!(output.status.success(), "{session:?}: {output:?}");
        assert!(alerts(&recording.seen, "guard-mount").is_empty());
    }
    recording.kernel().end_session(5).unwrap();
}

/// As the C library does with a library of somebody's choice.
fn run_code_of(path: &Path) -> nix::Result<()> {
    let length = std::num::NonZeroUsize::new(4096).unwrap();
    let flags = nix::sys::mman::ProtFlags::PROT_READ | nix::sys::mman::ProtFlags::PROT_EXEC;
    let file = fs::File::open(path).unwrap();
    // SAFETY: nobody uses the memory, and it is let go at once.
    unsafe {
        let mapped = nix::sys::mman::mmap(None, length, flags, nix::sys::mman::MapFlags::MAP_PRIVATE, &file, 0)?;
        nix::sys::mman::munmap(mapped, length.get())
    }
}

#[test]
fn the_agent_runs_no_code_that_it_did_not_before_the_session() {
    need_lab!(["full"]);
    let home = Home::new();
    let library = home.path("libnss_evil.so.2");
    fs::copy("/bin/true", &library).unwrap();
    let mut recording = home.recording();
    run_code_of(&library).unwrap();
    recording.kernel().begin_session(5).unwrap();
    run_code_of(&std::env::current_exe().unwrap()).unwrap();
    // What it starts is not the agent.
    assert!(Command::new("/bin/true").status().unwrap().success());
    recording.drain();
    assert!(alerts(&recording.seen, "guard-code").is_empty());
    assert_eq!(run_code_of(&library), Err(nix::errno::Errno::EPERM));
    recording.drain();
    let told = alerts(&recording.seen, "guard-code");
    assert!(told.len() == 1 && told[0].message.contains("libnss_evil.so.2"), "{told:?}");
    recording.kernel().end_session(5).unwrap();
    run_code_of(&library).unwrap();
}

#[test]
fn the_machine_may_be_ended_once_all_is_durable() {
    need_lab!(["full"]);
    let home = Home::new();
    let mut recording = home.recording();
    recording.kernel().begin_session(5).unwrap();
    let uid = recording.uid;
    let asked = std::thread::spawn(move || {
        Command::new("/bin/sh").args(["-c", &format!("echo {uid} > /proc/self/loginuid && {REBOOT}")]).output()
    });
    recording.until("leave to end the machine", |_| asked.is_finished());
    let output = asked.join().unwrap().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(alerts(&recording.seen, "guard-boot").is_empty());
    recording.kernel().end_session(5).unwrap();
}

#[test]
fn the_agents_maps_are_nobody_elses() {
    need_lab!(["full"]);
    let home = Home::new();
    let mut recording = home.recording();
    let table = [
        (
            "guard-bpf",
            "bpftool map update pinned $PINS/*/map_SETTINGS key 0 0 0 0 value 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
        ),
        ("guard-bpf", "bpftool prog show pinned $PINS/*/prog_process_exec"),
        ("guard-bpf", "bpftool map dump name SETTINGS"),
        ("guard-bpf", "bpftool prog dump xlated name process_exec"),
    ];
    expect_refusals(&mut recording, &home, false, &table);
    assert!(recording.command("/bin/true").status().unwrap().success());
}

fn unharmed(home: &Home) {
    assert_eq!(fs::read_to_string(FTRACE).unwrap().trim(), "1");
    for file in ["state/spool/segment", "state/keys/current", "agent.toml", "run/source"] {
        assert_eq!(fs::read_to_string(home.path(file)).unwrap(), "as it was\n", "{file}");
    }
    assert_eq!(fs::read_dir(home.path("state")).unwrap().count(), 2);
    assert_eq!(fs::read_dir(home.path("units")).unwrap().count(), 0);
}

/// Waits until there was a notice of each of these codes, in whatever order they come.
fn notices(recording: &mut Recording, codes: &[&str]) {
    let health = std::sync::Arc::clone(recording.kernel().health());
    let limit = Instant::now() + DEADLINE;
    let mut missing = codes.to_vec();
    while !missing.is_empty() {
        match health.take_notice() {
            Some(notice) => {
                println!("{}: {}", notice.code, notice.message);
                missing.retain(|code| *code != notice.code);
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
        assert!(Instant::now() < limit, "no notice {missing:?}");
    }
}

#[test]
fn programs_that_are_switched_off_are_missed() {
    need_lab!(["full", "trace"]);
    let home = Home::new();
    let mut recording = home.recording();
    let tier = recording.kernel().info().tier;
    recording.kernel().begin_session(5).unwrap();
    assert!(recording.command("/bin/true").status().unwrap().success());
    // The agent itself may; in tier trace everybody may.
    fs::write(FTRACE, "0").unwrap();
    let codes: &[&str] =
        if tier == Tier::Full { &["blinded-functions", "blinded-hooks"] } else { &["blinded-functions"] };
    notices(&mut recording, codes);
    assert_eq!(recording.kernel().health().tier(tier), Tier::Basic);
    // Refused is not possible any more; killed is.
    let limit = Instant::now() + DEADLINE;
    loop {
        let status = recording.command("/bin/true").status().unwrap();
        if std::os::unix::process::ExitStatusExt::signal(&status) == Some(9) {
            break;
        }
        assert!(Instant::now() < limit, "{status}");
        std::thread::sleep(Duration::from_millis(50));
    }
    recording.until("the kill", |seen| !alerts(seen, "exec-refused").is_empty());
    let message = &alerts(&recording.seen, "exec-refused")[0].message;
    assert!(message.contains("was killed") && message.contains("switched off"), "{message}");
    fs::write(FTRACE, "1").unwrap();
    notices(&mut recording, &["restored-functions"]);
    let limit = Instant::now() + DEADLINE;
    while recording.command("/bin/true").status().is_ok_and(|status| !status.success()) {
        assert!(Instant::now() < limit);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(recording.kernel().health().tier(tier), tier);
    recording.kernel().end_session(5).unwrap();
}
