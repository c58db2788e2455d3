//! Work that is handed to somebody who is not of the session: init, daemons, the kernel, other users' processes.

use anyhow::Result;
use breakglass_tests::machine::Need;

use crate::{
    case::Case,
    record::witnessed,
    stage::{Deed, Stage},
};

pub const CASES: &[Case] = &[
    Case::root(10, "systemd_run", r#"systemd-run --quiet --wait "$attack" act "$file" "$mark""#).held(witnessed).only_in_lab(SYSTEMD).peers(),
    Case::root(10, "at", r#"
        echo "$attack act $file $mark" | at now 2>/dev/null
        appears
    "#).held(witnessed).needs(&[Need::Program("at")]).only_in_lab("it leaves a job with atd"),
    Case::root(10, "systemd_run_as_the_account", r#"
        systemd-run --quiet --wait --uid="$account" "$attack" act "$file" "$mark"
    "#).only_in_lab(SYSTEMD),
    Case::root(10, "container", CONTAINER).held(witnessed).needs(&[Need::Program("crun")]).only_in_lab("it runs a container"),
    Case::own(10, "ssh_to_itself", ssh_to_itself).held(witnessed).only_in_lab("it adds a key to root's account"),
    Case::own(10, "somebody_s_tmux", tmux).held(witnessed).needs(&[Need::Program("tmux")]),
    Case::root(46, "database_server", r#"
        setpriv --reuid postgres --regid postgres --init-groups psql -qc "copy (select 1) to program '$attack act $file $mark'" postgres
    "#).held(witnessed).needs(&[Need::Program("psql")]).only_in_lab("it needs a database server").peers(),
    Case::root(47, "kernel_s_core_pattern", CORE).held(witnessed).only_in_lab("it changes what the kernel does with crashes").peers(),
    Case::root(47, "kernel_s_module_helper", MODPROBE).held(witnessed).only_in_lab("it changes what the kernel loads modules with").peers(),
    Case::root(48, "into_another_process_by_ptrace", r#"
        "$attack" inject $bystander ptrace "$file" "$mark" && appears
    "#).held(witnessed).peers(),
    Case::own(48, "into_another_process_s_memory", into_memory).held(witnessed),
    Case::root(49, "interpreter_of_its_own", BINFMT)
        .held(witnessed)
        .by_module_loader()
        .only_in_lab("it registers an interpreter with the kernel")
        .peers(),
];

const SYSTEMD: &str = "it needs systemd as PID 1";

const CONTAINER: &str = r#"
        cd /srv/container && cp "$dir/root/tool" rootfs/tool 2>/dev/null || gcc -static -O1 -pthread -o rootfs/tool "$dir/attack.c" -ldl 2>/dev/null
        mkdir -p /tmp/bundle rootfs/marks
        cd /tmp/bundle
        rm -f config.json
        crun spec
        sed -i "s|\"terminal\": true|\"terminal\": false|
        s|\"sh\"|\"/tool\", \"act\", \"/marks/$mark\", \"$mark\"|
        s|\"rootfs\"|\"/srv/container/rootfs\"|
        s|\"readonly\": true|\"readonly\": false|" config.json
        crun run "c$mark" && mv "/srv/container/rootfs/marks/$mark" "$file"
    "#;

const CORE: &str = r#"
        old=$(cat /proc/sys/kernel/core_pattern)
        printf '#!/bin/sh\n%s act %s %s\n' "$attack" "$file" "$mark" > "$dir/dump"
        chmod 755 "$dir/dump"
        echo "|$dir/dump" > /proc/sys/kernel/core_pattern
        ulimit -c unlimited
        "$attack" fault 2>/dev/null
        grep -q "$dir/dump" /proc/sys/kernel/core_pattern && appears
        echo "$old" > /proc/sys/kernel/core_pattern
    "#;

const MODPROBE: &str = r#"
        old=$(cat /proc/sys/kernel/modprobe)
        printf '#!/bin/sh\n%s act %s %s\n' "$attack" "$file" "$mark" > "$dir/loader"
        chmod 755 "$dir/loader"
        echo "$dir/loader" > /proc/sys/kernel/modprobe
        printf '\377\377\377\377' > "$dir/odd"
        chmod 755 "$dir/odd"
        "$dir/odd" 2>/dev/null
        mount -t nosuchfs none /mnt 2>/dev/null
        echo "$old" > /proc/sys/kernel/modprobe
    "#;

const BINFMT: &str = r#"
        mountpoint -q /proc/sys/fs/binfmt_misc || mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
        printf '#!/bin/sh\n%s act %s %s\n' "$attack" "$file" "$mark" > "$dir/interpreter"
        chmod 755 "$dir/interpreter"
        printf ':odd:M::ODDMAGIC::%s:' "$dir/interpreter" > /proc/sys/fs/binfmt_misc/register
        printf ODDMAGIC > "$dir/harmless"
        chmod 755 "$dir/harmless"
        "$dir/harmless"
        echo -1 > /proc/sys/fs/binfmt_misc/odd
    "#;

/// Root's own sshd, another user, a key that root has just allowed itself.
fn ssh_to_itself(stage: &mut Stage, case: &Case) -> Result<Deed> {
    let mut deed = stage.prepare(case)?;
    let script = r#"
        ssh-keygen -q -t ed25519 -N '' -f "$dir/own" </dev/null
        mkdir -p /root/.ssh
        cat "$dir/own.pub" >> /root/.ssh/authorized_keys
        ssh -F none -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o BatchMode=yes -i "$dir/own" root@127.0.0.1 "$attack act $file $mark"
        sed -i '$d' /root/.ssh/authorized_keys
        rm -f "$dir/own" "$dir/own.pub"
    "#;
    stage.run(&mut deed, script)?;
    Ok(deed)
}

/// A terminal multiplexer that somebody else has left running.
fn tmux(stage: &mut Stage, case: &Case) -> Result<Deed> {
    let mut deed = stage.prepare(case)?;
    let socket = stage.folder.join("tmux");
    let tmux = || {
        let mut command = std::process::Command::new("tmux");
        command.arg("-S").arg(&socket);
        command
    };
    breakglass_tests::machine::run(tmux().args(["-f", "/dev/null", "new-session", "-d", "sleep 600"]))?;
    let script = format!("tmux -S {} new-window \"$attack act $file $mark\"; appears", socket.display());
    let result = stage.run(&mut deed, &script);
    breakglass_tests::machine::run(tmux().arg("kill-server"))?;
    result.map(|()| deed)
}

/// A process that wakes up into what was written over its code.
fn into_memory(stage: &mut Stage, case: &Case) -> Result<Deed> {
    let mut deed = stage.prepare(case)?;
    // Reached before it wakes, also under emulation.
    let asleep = if crate::stage::in_lab() { "15" } else { "3" };
    let mut victim = std::process::Command::new("sleep").arg(asleep).spawn()?;
    let script = format!("\"$attack\" inject {} mem \"$file\" \"$mark\"; appears", victim.id());
    let result = stage.run(&mut deed, &script);
    victim.kill()?;
    victim.wait()?;
    result.map(|()| deed)
}
