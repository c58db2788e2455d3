//! Attacks on the recorder itself: its process, its kernel programs, its files, and the machine below it.
//!
//! Each acts only if the attack succeeded, so that a refusal shows as one. Afterwards the agent is started again where it died, as
//! systemd would.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use breakglass_api::v1::{CloseCause, event::Body, file_action::Kind as File, system_action::Kind as System};
use breakglass_tests::machine::Need;
use nix::sys::signal::Signal;

use crate::{
    case::{Case, Held},
    record::{Record, acted, whole, witnessed},
    stage::{Deed, Stage},
};

pub const CASES: &[Case] = &[
    Case::root(5, "kill", "kill -9 $agent && act").rough(),
    Case::root(5, "stop", "kill -STOP $agent && act").rough(),
    Case::root(5, "terminate", "kill -TERM $agent && sleep 0.5; act").done(terminable).held(terminated).rough(),
    Case::root(
        5,
        "become_the_agent",
        r#"
        "$attack" inject $agent ptrace "$file" "$mark" && appears
    "#,
    )
    .held(traced)
    .rough(),
    Case::root(5, "least_of_priorities", "renice 19 -p $agent >/dev/null && chrt -i -p 0 $agent && act").rough(),
    Case {
        helper: Some("python3 (pid "),
        ..Case::root(5, "killed_by_an_event_s_signal", EVENT_WITH_A_SIGNAL)
            .rough()
            .only_in_lab("it asks the machine's init process")
    },
    Case::root(
        6,
        "freeze_cgroup",
        r#"
        g=/sys/fs/cgroup$(cut -d: -f3 /proc/$agent/cgroup)
        echo 1 > $g/cgroup.freeze && act
    "#,
    )
    .rough()
    .only_in_lab(CGROUPS),
    Case::root(
        6,
        "kill_cgroup",
        r#"
        g=/sys/fs/cgroup$(cut -d: -f3 /proc/$agent/cgroup)
        echo 1 > $g/cgroup.kill && act
    "#,
    )
    .rough()
    .only_in_lab(CGROUPS),
    Case::root(
        6,
        "into_a_cgroup_that_is_killed",
        r#"
        g=/sys/fs/cgroup/pyre
        mkdir -p $g
        echo $agent > $g/cgroup.procs; echo 1 > $g/cgroup.kill && gone && act
    "#,
    )
    .rough()
    .only_in_lab(CGROUPS),
    Case::root(
        6,
        "into_a_cgroup_that_is_frozen",
        r#"
        g=/sys/fs/cgroup/ice
        mkdir -p $g
        echo $agent > $g/cgroup.procs && echo 1 > $g/cgroup.freeze && act
        echo 0 > $g/cgroup.freeze
    "#,
    )
    .rough()
    .only_in_lab(CGROUPS),
    Case::root(
        6,
        "starve_cgroup",
        r#"
        g=/sys/fs/cgroup$(cut -d: -f3 /proc/$agent/cgroup)
        echo 1 > $g/memory.high && act
        echo max > $g/memory.high
    "#,
    )
    .rough()
    .only_in_lab(CGROUPS),
    Case::root(7, "forget_the_session_s_processes", TAGS).needs(&[Need::Program("bpftool")]),
    Case::root(7, "change_settings", SETTINGS).needs(&[Need::Program("bpftool")]).rough(),
    Case::root(
        8,
        "remove_pins_and_kill",
        r#"
        rm -r "$pins" && kill -9 $agent || exit
        # Programs are killed until the last of the agent's descriptors is closed, and nobody is left to tell of it.
        i=0
        until sleep 0.3 2>/dev/null || [ $i -gt 100 ]; do i=$((i + 1)); done
        echo 4294967295 > /proc/self/loginuid
        act
    "#,
    )
    .rough(),
    Case::root(
        8,
        "unmount_pins_and_kill",
        r#"
        umount -l /sys/fs/bpf && kill -9 $agent && sleep 0.3 && act
        mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf
    "#,
    )
    .rough()
    .only_in_lab("it unmounts the machine's bpffs"),
    Case::root(
        8,
        "move_pins_away",
        r#"
        mkdir -p "$dir/away"
        mount --make-private /sys && mount --make-private /sys/fs/bpf && mount --move /sys/fs/bpf "$dir/away" && act
        mountpoint -q /sys/fs/bpf || mount --move "$dir/away" /sys/fs/bpf
        mount --make-shared /sys
        mount --make-shared /sys/fs/bpf
    "#,
    )
    .rough()
    .only_in_lab("it moves the machine's bpffs"),
    Case::root(
        8,
        "cover_pins",
        r#"
        mount -t tmpfs none /sys/fs/bpf && act
        findmnt -t tmpfs /sys/fs/bpf >/dev/null && umount /sys/fs/bpf
    "#,
    )
    .only_in_lab("it covers the machine's bpffs"),
    Case::terminal(
        9,
        "tracing_off",
        r#"
        echo 0 > /proc/sys/kernel/ftrace_enabled && printf 'printed-%s\n' $mark && act
        echo 1 > /proc/sys/kernel/ftrace_enabled
    "#,
    )
    .held(act_and_screen)
    .only_in_lab("it switches tracing off"),
    Case::terminal(
        9,
        "tracing_off_through_another_mount",
        r#"
        mkdir -p "$dir/proc"
        mount -t proc none "$dir/proc"
        echo 0 > "$dir/proc/sys/kernel/ftrace_enabled" && printf 'printed-%s\n' $mark && act
        echo 1 > /proc/sys/kernel/ftrace_enabled
        umount "$dir/proc"
    "#,
    )
    .held(act_and_screen)
    .only_in_lab("it switches tracing off"),
    Case::own(23, "deaf_collector", deaf_collector),
    Case::root(
        23,
        "full_disk",
        r#"
        dd if=/dev/zero of="$state/fill" bs=1M 2>/dev/null
        [ -s "$state/fill" ] && act
        rm -f "$state/fill"
    "#,
    )
    .rough(),
    Case::own(24, "edited_before_it_is_sent", edited).held(edit_shows).rough(),
    Case::own(24, "deleted_before_it_is_sent", deleted).held(deletion_shows).rough(),
    Case::root(25, "another_kernel", r#""$attack" kexec && : > "$file""#)
        .held(kexec)
        .only_in_lab("it asks for another kernel"),
    Case::own(34, "list_of_modules", tier_is_honest).held(honest),
    Case::root(
        50,
        "kernel_module",
        r#"
        insmod $(find /lib/modules/$(uname -r) -name 'dummy.ko*' | head -n 1) && : > "$file"
        rmmod dummy
    "#,
    )
    .held(module)
    .only_in_lab("it loads a module"),
    Case::root(51, "limits_of_the_agent", "prlimit --pid $agent --fsize=1:1 --nofile=5:5 && act").rough(),
    Case::root(
        52,
        "covered_spool",
        r#"
        mount -t tmpfs none "$state/spool" && act
        mountpoint -q "$state/spool" && umount "$state/spool"
    "#,
    )
    .rough(),
    Case::root(
        52,
        "covered_parent",
        r#"
        d=$(dirname "$state")
        cp "$attack" /tmp/covered
        mount -t tmpfs none "$d" && /tmp/covered act "/tmp/$mark" "$mark"
        mountpoint -q "$d" && umount "$d"
        mv "/tmp/$mark" "$file"
        rm /tmp/covered
    "#,
    )
    .rough()
    .only_in_lab("it covers the folder that everything lies in"),
    Case::root(
        52,
        "moved_parent",
        r#"
        d=$(dirname "$state")
        cp "$attack" /tmp/moved
        mv "$d" "$d.away" && /tmp/moved act "/tmp/$mark" "$mark"
        mv "$d.away" "$d"
        mv "/tmp/$mark" "$file"
        rm /tmp/moved
    "#,
    )
    .rough()
    .only_in_lab("it moves the folder that everything lies in"),
    Case::root(
        53,
        "starved_by_systemd",
        r#"
        u=$(basename $(cut -d: -f3 /proc/$agent/cgroup))
        systemctl set-property --runtime $u MemoryMax=1M CPUQuota=1% && act
        systemctl set-property --runtime $u MemoryMax= CPUQuota=
    "#,
    )
    .by_init()
    .rough()
    .only_in_lab(CGROUPS),
    Case::root(
        53,
        "frozen_by_systemd",
        r#"
        u=$(basename $(cut -d: -f3 /proc/$agent/cgroup))
        systemctl freeze $u && act
        systemctl thaw $u
    "#,
    )
    .by_init()
    .rough()
    .only_in_lab(CGROUPS),
    // The last of these: afterwards systemd takes the unit for one that is about to end.
    Case::root(
        53,
        "stopped_by_systemd",
        r#"
        u=$(basename $(cut -d: -f3 /proc/$agent/cgroup))
        systemctl stop $u && gone && act
    "#,
    )
    .by_init()
    .rough()
    .only_in_lab(CGROUPS),
    Case::root(
        54,
        "killed_for_memory",
        r#"
        echo 1000 > /proc/$agent/oom_score_adj && echo f > /proc/sysrq-trigger && sleep 1 && gone && act
    "#,
    )
    .rough()
    .only_in_lab("it makes the kernel kill something for its memory"),
    Case::root(55, "descriptors_of_the_agent", r#""$attack" steal $agent && act"#).held(stolen),
    Case::root(
        56,
        "settings_for_the_next_start",
        r#"
        cp "$config" "$dir/config" && echo '# changed' >> "$config" && : > "$file"
        cp "$dir/config" "$config"
    "#,
    )
    .held(config_written),
    Case::root(
        58,
        "nobody_may_open_files",
        r#"
        "$attack" hold "$state" "$file" "$mark"
    "#,
    )
    .rough(),
    Case::root(
        59,
        "library_of_the_agent",
        r#"
        library=$(sed -n 's/.* \(\/.*libc\.so\.6\)$/\1/p' /proc/$agent/maps | head -n 1)
        "$attack" writable "$library" && : > "$file"
    "#,
    )
    .held(library_opened),
    Case::root(
        60,
        "processor_registers",
        r#"
        modprobe msr && "$attack" writable /dev/cpu/0/msr && : > "$file"
        rmmod msr
    "#,
    )
    .held(registers_opened)
    .only_in_lab("it opens the processor's registers for writing"),
    Case::root(61, "killed_by_a_descriptor_s_signal", r#""$attack" owner $agent 9 && gone && act"#).rough(),
    Case::root(
        61,
        "stopped_by_a_descriptor_s_signal",
        r#""$attack" owner $agent 19 && grep -q '^State:.T' /proc/$agent/status && act"#,
    )
    .rough(),
    Case::root(
        62,
        "frozen_file_system",
        r#"
        "$attack" freeze "$state" /dev/shm/$mark "$mark" && mv /dev/shm/$mark "$file"
    "#,
    )
    .rough()
    .only_in_lab("it freezes the machine's root file system"),
    Case::root(62, "aborted_file_system", "mount -o remount,abort / && act")
        .rough()
        .only_in_lab("it stops the machine's root file system"),
    // What a reset leaves of the record is looked at by `access::reboot` in the lab.
    Case::root(63, "leave_to_end_the_machine", r#"act; "$attack" boot"#).held(reboot_waited),
    Case::root(64, "io_ports", r#""$attack" ports && : > "$file""#)
        .held(ports_taken)
        .only_in_lab("a kernel need not have the call"),
];

/// Somebody who is not of the session has the kernel send the agent SIGTRAP, by an event that counts the time that it runs.
const EVENT_WITH_A_SIGNAL: &str = r#"
cat > "$dir/event.py" <<'END'
import ctypes, os, struct, sys, time
event = struct.pack('<IIQQQQQ', 1, 128, 0, 100000, 0, 0, 3 << 36).ljust(128, b'\0')
opened = [ctypes.CDLL(None).syscall(298, event, int(thread), -1, -1, 0) for thread in os.listdir(f'/proc/{sys.argv[1]}/task')]
time.sleep(5)
sys.exit(max(opened) < 0)
END
systemd-run --quiet --wait python3 "$dir/event.py" $agent && gone && act
"#;

const CGROUPS: &str = "the agent has a unit of its own there";

/// Sheds what the scope goes by, then takes the tag away.
const TAGS: &str = r#"
echo 4294967295 > /proc/self/loginuid
python3 - <<'END' && act
import json, subprocess, sys
maps = json.loads(subprocess.run(['bpftool', '-j', 'map', 'list'], capture_output=True, check=True).stdout)
taken = 0
for found in maps:
    if found.get('name') != 'TAGS': continue
    number = str(found['id'])
    for entry in json.loads(subprocess.run(['bpftool', '-j', 'map', 'dump', 'id', number], capture_output=True, check=True).stdout):
        key = entry['key']
        done = subprocess.run(['bpftool', 'map', 'delete', 'id', number, 'key'] + [str(int(byte, 16)) for byte in key], capture_output=True)
        taken += done.returncode == 0
sys.exit(taken == 0)
END
"#;

/// Makes the kernel programs look for another account.
const SETTINGS: &str = r#"
python3 - <<'END' && act
import json, subprocess, sys
maps = json.loads(subprocess.run(['bpftool', '-j', 'map', 'list'], capture_output=True, check=True).stdout)
changed = 0
for found in maps:
    if found.get('name') != 'SETTINGS': continue
    number, size = str(found['id']), found['bytes_value']
    done = subprocess.run(['bpftool', 'map', 'update', 'id', number, 'key', '0', '0', '0', '0', 'value'] + ['255'] * size, capture_output=True)
    changed += done.returncode == 0
sys.exit(changed == 0)
END
"#;

/// A polite end of the agent ends the session and with it the attacker, or it is refused.
fn terminable(_: &Deed) -> bool {
    true
}

/// The session was closed for it, and what was done until then is there; or nothing was closed, for it was refused.
fn terminated(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    if record.refused() {
        return Some(Held::Refused);
    }
    let cause = CloseCause::AgentStop;
    let closed = record.bodies().any(|body| matches!(body, Body::SessionClosed(closed) if closed.cause() == cause));
    whole(closed && (!deed.acted() || acted(record, deed).is_some()))
}

fn traced(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    whole(record.system(System::Traced).next().is_some() && witnessed(record, deed).is_some())
}

fn stolen(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    whole(record.system(System::DescriptorTaken).next().is_some() && acted(record, deed).is_some())
}

fn act_and_screen(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    whole(acted(record, deed).is_some() && record.showed(&format!("printed-{}", deed.mark)))
}

fn kexec(record: &Record<'_>, _: &Deed) -> Option<Held> {
    whole(record.system(System::Kexec).next().is_some())
}

fn module(record: &Record<'_>, _: &Deed) -> Option<Held> {
    whole(record.system(System::ModuleLoaded).any(|action| action.errno == 0))
}

fn config_written(record: &Record<'_>, _: &Deed) -> Option<Held> {
    whole(record.file(File::Opened, "/agent.toml"))
}

/// A collector that takes nothing while things are done.
fn deaf_collector(stage: &mut Stage, case: &Case) -> Result<Deed> {
    let mut deed = stage.prepare(case)?;
    stage.stack.collector.signal(Signal::SIGSTOP)?;
    let result = stage.run(&mut deed, "act");
    stage.stack.collector.signal(Signal::SIGCONT)?;
    result.map(|()| deed)
}

/// While the collector is deaf, what the agent has written down is changed.
fn edited(stage: &mut Stage, case: &Case) -> Result<Deed> {
    let mut deed = stage.prepare(case)?;
    stage.stack.collector.signal(Signal::SIGSTOP)?;
    let script = r#"
"$attack" act "$file.before" "$mark"; sleep 1
python3 - "$state/spool" <<'END' && act
import os, sys
changed = 0
for folder, _, names in os.walk(sys.argv[1]):
    for name in names:
        path = os.path.join(folder, name)
        size = os.path.getsize(path)
        if size < 200: continue
        with open(path, 'r+b') as file:
            file.seek(size - 100)
            old = file.read(20)
            file.seek(size - 100)
            file.write(bytes(byte ^ 0x55 for byte in old))
        changed += 1
sys.exit(changed == 0)
END
"#;
    let result = stage.run(&mut deed, script);
    stage.stack.collector.signal(Signal::SIGCONT)?;
    result.map(|()| deed)
}

/// While the collector is deaf, what the agent has written down is removed, and the agent is killed.
fn deleted(stage: &mut Stage, case: &Case) -> Result<Deed> {
    let mut deed = stage.prepare(case)?;
    stage.stack.collector.signal(Signal::SIGSTOP)?;
    let script = r#"
        act
        sleep 1
        rm -r "$state"/spool/* && kill -9 $agent || rm -f "$file"
    "#;
    let result = stage.run(&mut deed, script);
    stage.stack.collector.signal(Signal::SIGCONT)?;
    result.map(|()| deed)
}

/// Nothing was lost, or the loss is told.
fn deletion_shows(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    let told = record.alerts().any(|alert| alert.code.starts_with("spool"))
        || record
            .events
            .iter()
            .any(|recorded| recorded.event.as_ref().is_some_and(|event| matches!(event.body, Some(Body::Gap(_)))));
    match (acted(record, deed).is_some(), told) {
        (true, _) => Some(Held::Whole),
        (false, true) => Some(Held::Less),
        (false, false) => None,
    }
}

fn library_opened(record: &Record<'_>, _: &Deed) -> Option<Held> {
    whole(record.file(File::Opened, "/libc.so.6"))
}

fn registers_opened(record: &Record<'_>, _: &Deed) -> Option<Held> {
    whole(record.file(File::Opened, "/dev/cpu/0/msr"))
}

fn reboot_waited(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    whole(record.system(System::Reboot).next().is_some() && acted(record, deed).is_some())
}

fn ports_taken(record: &Record<'_>, _: &Deed) -> Option<Held> {
    whole(record.system(System::PortAccess).any(|action| action.errno == 0))
}

/// Either nothing was lost by it, or the loss is told.
fn edit_shows(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    let both =
        record.execs().filter(|exec| exec.argv.last().is_some_and(|last| last == deed.mark.as_bytes())).count() >= 2;
    let told = record.alerts().any(|alert| alert.code.starts_with("spool"))
        || record.bodies().any(|body| matches!(body, Body::Gap(_)));
    match (both, told) {
        (true, _) => Some(Held::Whole),
        (false, true) => Some(Held::Less),
        (false, false) => None,
    }
}

/// What the machine was booted with, and what the agent makes of it.
fn tier_is_honest(stage: &mut Stage, case: &Case) -> Result<Deed> {
    let mut deed = stage.prepare(case)?;
    let list = fs::read_to_string(PathBuf::from("/sys/kernel/security/lsm")).context("the list of security modules")?;
    let active = list.trim().split(',').any(|module| module == "bpf");
    let tier = stage.stack.status()?.tier;
    fs::write(&deed.file, "")?;
    deed.value = u64::from(tier == "full" && !active);
    Ok(deed)
}

fn honest(_: &Record<'_>, deed: &Deed) -> Option<Held> {
    whole(deed.value == 0)
}
