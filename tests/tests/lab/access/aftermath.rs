//! What opens a door later: each is made by the root of a session, and each is in the comparison after it, or was refused.

use std::{io::Write as _, path::Path, process::Stdio};

use anyhow::{Context, Result, ensure};
use breakglass_api::v1::{
    LeftBehind,
    event::Body,
    left_behind::{Category, Severity},
};
use breakglass_tests::{machine, poll};

use super::{
    cases::Cases,
    host::{Host, PAM, SOON, said},
};
use crate::guest::{Guest, shell};

/// One door.
struct Door {
    name: &'static str,
    /// How root makes it. It prints nothing where it is refused.
    make: &'static str,
    category: Category,
    /// What its key or item contains.
    names: &'static str,
    undo: &'static str,
}

const DOORS: &[Door] = &[
    Door {
        name: "a service",
        make: "printf '[Service]\\nExecStart=/bin/true\\n[Install]\\nWantedBy=multi-user.target\\n' > /etc/systemd/system/door.service && systemctl enable door",
        category: Category::Systemd,
        names: "door.service",
        undo: "systemctl disable door; rm /etc/systemd/system/door.service",
    },
    Door {
        name: "a timer",
        make: "printf '[Timer]\\nOnCalendar=daily\\n' > /etc/systemd/system/door2.timer",
        category: Category::Systemd,
        names: "door2.timer",
        undo: "rm /etc/systemd/system/door2.timer",
    },
    Door {
        name: "a job of cron's",
        make: "echo '@daily root true' > /etc/cron.d/door",
        category: Category::Cron,
        names: "cron.d/door",
        undo: "rm /etc/cron.d/door",
    },
    Door {
        name: "a crontab",
        make: "echo '@daily true' | crontab -u nobody -",
        category: Category::Cron,
        names: "crontabs/nobody",
        undo: "crontab -u nobody -r",
    },
    Door {
        name: "a job of at's",
        make: "echo true | at now + 3 days 2>/dev/null",
        category: Category::AtJob,
        names: "atjobs",
        undo: "atrm $(atq | cut -f1)",
    },
    Door {
        name: "a sudoers line",
        make: "echo 'nobody ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/door",
        category: Category::Sudoers,
        names: "sudoers.d/door",
        undo: "rm /etc/sudoers.d/door",
    },
    Door {
        name: "a key of root's",
        make: "mkdir -p /root/.ssh && ssh-keygen -q -t ed25519 -N '' -f /tmp/door-key && cat /tmp/door-key.pub >> /root/.ssh/authorized_keys",
        category: Category::AuthorizedKey,
        names: "/root/.ssh/authorized_keys",
        undo: "rm -f /root/.ssh/authorized_keys /tmp/door-key*",
    },
    Door {
        name: "a user with uid 0",
        make: "useradd --non-unique --uid 0 --no-create-home door0",
        category: Category::User,
        names: "door0",
        undo: "sed -i /^door0:/d /etc/passwd /etc/shadow /etc/group /etc/gshadow",
    },
    Door {
        name: "somebody in a group",
        make: "gpasswd --add nobody sudo",
        category: Category::Group,
        names: "sudo",
        undo: "gpasswd --delete nobody sudo",
    },
    Door {
        name: "another password",
        make: "usermod -p '$6$door$door' nobody",
        category: Category::Password,
        names: "nobody",
        undo: "usermod -p '*' nobody",
    },
    Door {
        name: "sshd's configuration",
        make: "echo 'PermitRootLogin yes' > /etc/ssh/sshd_config.d/door.conf",
        category: Category::Ssh,
        names: "door.conf",
        undo: "rm /etc/ssh/sshd_config.d/door.conf",
    },
    Door {
        name: "PAM's configuration",
        make: "echo 'auth sufficient pam_permit.so' > /etc/pam.d/door",
        category: Category::Pam,
        names: "pam.d/door",
        undo: "rm /etc/pam.d/door",
    },
    Door {
        name: "a library for every program",
        make: "echo /lib/x86_64-linux-gnu/libm.so.6 > /etc/ld.so.preload",
        category: Category::Loader,
        names: "ld.so.preload",
        undo: "rm /etc/ld.so.preload",
    },
    Door {
        name: "what shells read",
        make: "echo true > /etc/profile.d/door.sh",
        category: Category::Profile,
        names: "profile.d/door.sh",
        undo: "rm /etc/profile.d/door.sh",
    },
    Door {
        name: "a setuid copy of a shell",
        make: "cp /bin/dash /usr/local/bin/door && chmod 4755 /usr/local/bin/door",
        category: Category::PrivilegedFile,
        names: "/usr/local/bin/door",
        undo: "rm /usr/local/bin/door",
    },
    Door {
        name: "a file with capabilities",
        make: "cp /bin/dash /usr/local/bin/door-cap && setcap cap_setuid+ep /usr/local/bin/door-cap",
        category: Category::PrivilegedFile,
        names: "/usr/local/bin/door-cap",
        undo: "rm /usr/local/bin/door-cap",
    },
    Door {
        name: "a listening socket",
        make: "printf '[Socket]\\nListenStream=127.0.0.1:4445\\nAccept=yes\\n' > /etc/systemd/system/door3.socket; \
               printf '[Service]\\nExecStart=/bin/true\\n' > /etc/systemd/system/door3@.service; systemctl daemon-reload; systemctl start door3.socket",
        category: Category::Socket,
        names: "4445",
        undo: "systemctl stop door3.socket; rm /etc/systemd/system/door3*",
    },
    Door {
        name: "a kernel module",
        make: "modprobe dummy",
        category: Category::KernelModule,
        names: "dummy",
        undo: "rmmod dummy 2>/dev/null || true",
    },
    Door {
        name: "something pinned in bpffs",
        make: "bpftool map create /sys/fs/bpf/door type array key 4 value 4 entries 1 name door",
        category: Category::Bpf,
        names: "/sys/fs/bpf/door",
        undo: "rm -f /sys/fs/bpf/door",
    },
    Door {
        name: "a mount",
        make: "mkdir -p /mnt/door && mount -t tmpfs door /mnt/door",
        category: Category::Mount,
        names: "/mnt/door",
        undo: "umount /mnt/door",
    },
    Door {
        name: "the firewall's configuration",
        make: "echo 'flush ruleset' > /etc/nftables.conf",
        category: Category::Firewall,
        names: "nftables.conf",
        undo: "rm /etc/nftables.conf",
    },
];

/// What a walk for special files costs is paid by this test alone.
const WALK: (&str, &str) = ("walk = false", "walk = true");

#[test]
fn each_door_that_a_session_leaves_open_is_listed() -> Result<()> {
    let Some(_guest) = Guest::on("6.12") else { return Ok(()) };
    let host = Host::up()?;
    let _ = std::fs::remove_file("/var/lib/breakglass/looks/rest");
    host.restart_with(&[WALK])?;
    poll::until_true("the look at rest", SOON * 2, || Ok(Path::new("/var/lib/breakglass/looks/rest").exists()))?;
    let opened = host.open("leave doors open", SOON * 10)?;
    let made = make_all(&host)?;
    host.close()?;
    let left = left_behind(&host, &opened.session);
    for door in DOORS {
        // Those that were refused have nothing to undo.
        let _ = shell(door.undo);
    }
    host.restart_with(&[(WALK.1, WALK.0)])?;
    let left = left?;
    let mut cases = Cases::default();
    for (door, made) in DOORS.iter().zip(made) {
        cases.case(&format!("{}{}", door.name, if made { "" } else { " (refused)" }), || listed(&left, door, made));
    }
    cases.case("everything was compared", || {
        ensure!(left.complete, "not complete: {:?}", left.not_covered);
        Ok(())
    });
    cases.verdict()
}

/// Makes every door in one login of the session's root, which is what costs time here; says of each whether root was let.
fn make_all(host: &Host) -> Result<Vec<bool>> {
    let line =
        |(number, door): (usize, &Door)| format!("sh -c {} </dev/null >&2 && echo made {number}.\n", quoted(door.make));
    let script: String = DOORS.iter().enumerate().map(line).collect();
    let mut ssh = host.ssh(PAM, &host.key());
    ssh.args(["127.0.0.1", "sudo sh -s"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = ssh.spawn().with_context(|| format!("cannot run {ssh:?}"))?;
    child.stdin.take().context("no pipe")?.write_all(script.as_bytes())?;
    let output = child.wait_with_output()?;
    println!("the doors: {}", said(&output));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok((0..DOORS.len()).map(|number| text.contains(&format!("made {number}.\n"))).collect())
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn listed(left: &LeftBehind, door: &Door, made: bool) -> Result<()> {
    // The guard lets no session load modules or make maps; those alone may be refused.
    let may_be_refused = matches!(door.category, Category::KernelModule | Category::Bpf);
    ensure!(made || may_be_refused, "it could not be made");
    let fits = |change: &&breakglass_api::v1::left_behind::Change| {
        change.category() == door.category
            && (String::from_utf8_lossy(&change.key).contains(door.names) || change.item.contains(door.names))
    };
    let change = left.changes.iter().find(fits);
    if !made {
        ensure!(change.is_none(), "refused and there all the same: {change:?}");
        return Ok(());
    }
    let change = change.with_context(|| {
        let of = left.changes.iter().filter(|change| change.category() == door.category);
        format!("not listed; of its category: {:?}", of.collect::<Vec<_>>())
    })?;
    let notable = matches!(door.category, Category::Mount | Category::Firewall | Category::Bpf);
    let door_like = change.severity() == Severity::OpensDoor || notable;
    ensure!(door_like, "listed as no door: {change:?}");
    Ok(())
}

fn left_behind(host: &Host, session: &str) -> Result<LeftBehind> {
    let started = machine::boot_ns()?;
    let mut query = host.query()?;
    let left = poll::until("the comparison", SOON * 2, || {
        let events = query.events(session)?;
        Ok(events.into_iter().find_map(|recorded| match recorded.event?.body? {
            Body::LeftBehind(left) => Some(left),
            _ => None,
        }))
    });
    println!("the comparison came {} ms after closing", (machine::boot_ns()? - started) / 1_000_000);
    left
}
