//! The guest is the machine that the other tests take it for: a stock kernel, real systemd, and services to hide behind.

use std::{fs, io::Read, net::TcpStream, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::guest::{Guest, shell, until};

/// Under emulation a program of a few milliseconds takes part of a second.
const SOON: Duration = Duration::from_secs(60);

#[test]
fn the_kernel_is_the_stock_one_asked_for() -> Result<()> {
    let Some(guest) = Guest::here() else { return Ok(()) };
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    ensure!(release.starts_with(&format!("{}.", guest.kernel)), "asked for {}, running {release}", guest.kernel);
    let version = fs::read_to_string("/proc/version")?;
    ensure!(version.contains("debian-kernel@lists.debian.org"), "not Debian's build: {version}");
    Ok(())
}

#[test]
fn systemd_is_pid_1_and_everything_started() -> Result<()> {
    let Some(_guest) = Guest::here() else { return Ok(()) };
    let first = fs::read_to_string("/proc/1/comm")?;
    ensure!(first.trim() == "systemd", "PID 1 is {first}");
    let state = shell("systemctl is-system-running --wait || systemctl --failed --no-legend")?;
    ensure!(state.trim() == "running", "{state}");
    Ok(())
}

#[test]
fn the_kernel_describes_its_types() -> Result<()> {
    let Some(_guest) = Guest::here() else { return Ok(()) };
    let mut magic = [0; 2];
    fs::File::open("/sys/kernel/btf/vmlinux")?.read_exact(&mut magic)?;
    // The first field of `struct btf_header`, little-endian: https://docs.kernel.org/bpf/btf.html
    ensure!(magic == [0x9f, 0xeb], "not BTF: {magic:02x?}");
    Ok(())
}

#[test]
fn bpf_is_an_active_lsm_in_tier_full_only() -> Result<()> {
    let Some(guest) = Guest::here() else { return Ok(()) };
    let active = fs::read_to_string("/sys/kernel/security/lsm")?;
    let has = |name: &str| active.trim().split(',').any(|module| module == name);
    ensure!(has("bpf") == guest.bpf_lsm, "active: {active}");
    ensure!(has("lockdown") && has("apparmor"), "active: {active}");
    Ok(())
}

#[test]
fn kernel_filesystems_are_mounted() -> Result<()> {
    let Some(_guest) = Guest::here() else { return Ok(()) };
    let mounts = fs::read_to_string("/proc/mounts")?;
    for (path, kind) in [("/sys/fs/bpf", "bpf"), ("/sys/kernel/tracing", "tracefs"), ("/sys/fs/cgroup", "cgroup2")] {
        let mounted = mounts.lines().any(|line| {
            let mut fields = line.split(' ').skip(1);
            fields.next() == Some(path) && fields.next() == Some(kind)
        });
        ensure!(mounted, "no {kind} at {path} in:\n{mounts}");
    }
    Ok(())
}

#[test]
fn sshd_answers() -> Result<()> {
    let Some(_guest) = Guest::here() else { return Ok(()) };
    let mut greeting = [0; 8];
    let mut stream = TcpStream::connect("127.0.0.1:22").context("cannot reach sshd")?;
    stream.set_read_timeout(Some(SOON))?;
    stream.read_exact(&mut greeting)?;
    ensure!(&greeting == b"SSH-2.0-", "sshd said {greeting:?}");
    Ok(())
}

#[test]
fn postgresql_answers() -> Result<()> {
    let Some(_guest) = Guest::here() else { return Ok(()) };
    let sum = shell("cd / && runuser -u postgres -- psql -qtAc 'select 40 + 2'")?;
    ensure!(sum.trim() == "42", "psql said {sum}");
    Ok(())
}

#[test]
fn other_daemons_take_work() -> Result<()> {
    let Some(guest) = Guest::here() else { return Ok(()) };
    shell("systemctl is-active cron atd auditd dbus systemd-logind")?;
    let proof = guest.scratch("at")?.join("proof");
    shell(&format!("echo 'touch {}' | at now 2>&1", proof.display()))?;
    until("atd to run a job", SOON, || proof.exists())?;
    let unit = guest.scratch("systemd-run")?.join("proof");
    shell(&format!("systemd-run --quiet --wait touch {}", unit.display()))?;
    ensure!(unit.exists(), "systemd-run ran nothing");
    Ok(())
}

#[test]
fn a_login_gets_an_audit_identity() -> Result<()> {
    let Some(_guest) = Guest::here() else { return Ok(()) };
    let uid =
        shell("setsid --wait script -qec 'login -f root' /dev/null <<'END'\ncat /proc/self/loginuid; exit\nEND\n")?;
    ensure!(
        uid.lines().any(|line| line.trim_matches(|char: char| !char.is_ascii_digit()) == "0"),
        "login printed {uid}"
    );
    Ok(())
}

#[test]
fn containers_run() -> Result<()> {
    let Some(_guest) = Guest::here() else { return Ok(()) };
    // The container's own PID 1 is the shell: a PID namespace of its own.
    let line = "cd /srv/container && crun spec && sed 's/\"terminal\": true/\"terminal\": false/; s/\"sh\"/\"sh\", \"-c\", \"echo pid $$\"/' \
                config.json > /tmp/config.json && crun run --config /tmp/config.json lab-boot";
    let printed = shell(line)?;
    ensure!(printed.trim() == "pid 1", "the container printed {printed}");
    Ok(())
}

#[test]
fn programs_can_be_compiled() -> Result<()> {
    let Some(guest) = Guest::here() else { return Ok(()) };
    let folder = guest.scratch("gcc")?;
    fs::write(folder.join("a.c"), "#include <stdio.h>\nint main(void) { puts(\"built here\"); }\n")?;
    let printed = shell(&format!("cd {} && gcc a.c -o a && ./a", folder.display()))?;
    ensure!(printed == "built here\n", "{printed}");
    Ok(())
}

#[test]
fn what_the_tests_use_is_installed() -> Result<()> {
    let Some(_guest) = Guest::here() else { return Ok(()) };
    let programs = "sudo tmux python3 perl gcc bpftool strace socat crun unshare nsenter capsh auditctl crontab insmod ip tlog-rec";
    shell(&format!(
        "for program in {programs}; do command -v $program >/dev/null || {{ echo no $program; exit 1; }}; done"
    ))?;
    shell("python3 -c 'import pexpect, ctypes, socket, ssl'")?;
    ensure!(Path::new("/lab/bin/breakglass-agent").exists(), "the lab disk has no agent");
    Ok(())
}
