//! Power cuts under the spool and the collector's store: at a random moment the disk takes no write any more, both daemons are
//! killed, and what had reached the disk by then is all that the next start finds.
//!
//! Both folders lie on one ext4 on device-mapper. `flakey` with `error_writes` cuts; going back to `linear` and mounting anew,
//! which replays the file system's journal, is the power coming back. What the agent said was durable, and what the collector
//! acknowledged, must be there; what was under way is still in the kernel's rings, so that in the end not one program is missing.

use std::{
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use breakglass_api::v1::{Command, Ring, event::Body};
use breakglass_tests::{
    poll,
    stack::{Options, Stack},
};

use crate::guest::{Guest, shell};

/// How often the power is cut.
const CUTS: u64 = 3;
/// Programs a second meanwhile; emulation is slow.
const RATE: u64 = 20;
/// Name of the device, and its size in sectors of 512 bytes: 256 MiB.
const DEVICE: &str = "lab-power";
const SECTORS: u64 = 524_288;
/// It makes the file in `/dev/mapper` itself: the guest's udev has no rules for these devices, and nobody waits for it.
const DMSETUP: &str = "DM_DISABLE_UDEV=1 dmsetup";

/// A disk whose power can be cut.
struct Disk {
    backing: String,
    mount: String,
}

impl Disk {
    fn make(guest: &Guest) -> Result<Self> {
        let folder = guest.scratch("power")?;
        let (image, mount) = (folder.join("disk.img"), folder.join("disk").display().to_string());
        shell("modprobe dm-mod; modprobe dm-flakey; modprobe loop")?;
        let image = image.display();
        let backing = shell(&format!("truncate -s {} {image}; losetup --find --show {image}", SECTORS * 512))?;
        let disk = Self { backing: backing.trim().to_owned(), mount };
        shell(&format!("{DMSETUP} create {DEVICE} --table '{}'", disk.linear()))?;
        shell(&format!("mkfs.ext4 -q /dev/mapper/{DEVICE}; mkdir -p {0}; mount /dev/mapper/{DEVICE} {0}", disk.mount))?;
        Ok(disk)
    }

    fn linear(&self) -> String {
        format!("0 {SECTORS} linear {} 0", self.backing)
    }

    /// From now on every write fails. Nothing is flushed first: that is the point.
    fn cut(&self) -> Result<()> {
        let dead = format!("0 {SECTORS} flakey {} 0 0 3600 1 error_writes", self.backing);
        self.load(&dead)
    }

    /// What did not reach the disk is forgotten, what did is mounted again.
    fn restore(&self) -> Result<()> {
        poll::until_true("the dead disk to be unmounted", poll::EVENTUALLY, || {
            Ok(shell(&format!("umount {}", self.mount)).is_ok())
        })?;
        self.load(&self.linear())?;
        shell(&format!("mount /dev/mapper/{DEVICE} {}", self.mount)).map(drop)
    }

    fn load(&self, table: &str) -> Result<()> {
        shell(&format!(
            "{DMSETUP} suspend --noflush --nolockfs {DEVICE}; {DMSETUP} load {DEVICE} --table '{table}'; {DMSETUP} resume {DEVICE}"
        ))
        .map(drop)
    }

    /// Moves a folder of a stopped daemon onto the disk.
    fn take(&self, folder: &Path) -> Result<()> {
        let name = folder.file_name().and_then(|name| name.to_str()).context("a folder without a name")?;
        let (from, to) = (folder.display(), format!("{}/{name}", self.mount));
        shell(&format!("cp -a {from} {to}; rm -r {from}; ln -s {to} {from}; sync")).map(drop)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The guest goes away with all of it; the tests after this one should not see it.
        let _ =
            shell(&format!("umount -l {}; {DMSETUP} remove --retry {DEVICE}; losetup -d {}", self.mount, self.backing));
    }
}

#[test]
fn power_cuts_lose_only_what_nobody_was_told() -> Result<()> {
    let Some(guest) = Guest::on("6.1") else { return Ok(()) };
    let disk = Disk::make(&guest)?;
    // What is to be recorded must run on while the disk is dead and the agent with it; in tier `full` nobody could kill the agent.
    let options = Options { unrecorded: "record", maximum_tier: Some("trace"), ..Options::default() };
    Stack::with(options, |stack| {
        stack.agent.stop()?;
        stack.collector.kill()?;
        disk.take(&stack.path("state"))?;
        disk.take(&stack.path("collector/data"))?;
        stack.start_collector()?;
        stack.start_agent()?;
        let result = cuts(stack, &disk);
        if let (Err(_), Some(folder)) = (&result, std::env::var_os("BREAKGLASS_EVIDENCE")) {
            // What the collector made of the disk.
            let kept =
                shell(&format!("cp -aL {} {}", stack.path("collector/data").display(), Path::new(&folder).display()));
            kept.context("cannot keep the collector's files")?;
        }
        result
    })
}

fn cuts(stack: &mut Stack, disk: &Disk) -> Result<()> {
    let mut seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let opened = stack.open("power cuts", "1h")?;
    let line = format!("{} execs 1000000 --rate {RATE}", stack.probe().display());
    let mut load = stack.ssh(&opened).arg(line).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    for cut in 0..CUTS {
        let mut query = stack.query()?;
        poll::until_true("more programs to be acknowledged", poll::EVENTUALLY, || {
            Ok(query.commands(&opened.session)?.len() as u64 > (cut + 1) * 10)
        })?;
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        thread::sleep(Duration::from_millis((seed >> 33) % 1000));
        let told = numbers(&stack.query()?.commands(&opened.session)?)?;
        let before = stack.status()?;
        disk.cut()?;
        // A moment in which both go on working against the dead disk.
        thread::sleep(Duration::from_millis(300));
        stack.kill_agent()?;
        stack.collector.kill()?;
        disk.restore()?;
        stack.start_collector()?;
        stack.start_agent()?;
        let after = stack.status()?;
        ensure!(after.last_seq >= before.last_seq, "durable: {} before, {} after", before.last_seq, after.last_seq);
        is_held(stack, &opened.session, &told)?;
        ensure!(load.try_wait()?.is_none(), "the load ended meanwhile");
    }
    stack.control()?.close()?;
    poll::until("the load to end", poll::EVENTUALLY, || Ok(load.try_wait()?))?;
    stack.wait_until_acknowledged()?;
    stack.collected(&opened.session)?;
    whole(stack, &opened.session)?;
    // Everything on the disk is let go before the disk is.
    stack.agent.stop()?;
    stack.collector.kill()
}

/// What was acknowledged is there. The index is not durable at once, and is behind until it has read again what the power cut took from it.
fn is_held(stack: &Stack, session: &str, told: &[u64]) -> Result<()> {
    let mut query = stack.query()?;
    poll::until_true("what was acknowledged to be found", poll::EVENTUALLY, || {
        let session = match query.session(session) {
            Err(error) if error.to_string().contains("the index is behind") => return Ok(false),
            session => session?,
        };
        let held = numbers(&query.commands(&session.id)?)?;
        let is_held = held.len() >= told.len() && held.iter().zip(told).all(|(a, b)| a == b);
        ensure!(is_held || session.behind, "acknowledged programs are gone: {} of {}", held.len(), told.len());
        Ok(is_held)
    })
}

fn numbers(commands: &[Command]) -> Result<Vec<u64>> {
    let execs = commands.iter().filter_map(|command| command.exec.as_ref());
    let counted = execs.filter(|exec| exec.argv.first().is_some_and(|name| name == b"/bin/true"));
    counted.map(|exec| Ok(String::from_utf8(exec.argv.get(1).context("no number")?.clone())?.parse()?)).collect()
}

/// Every program once, in order; nothing reported missing, nothing reported damaged, and no stream begun anew.
fn whole(stack: &Stack, session: &str) -> Result<()> {
    let mut query = stack.query()?;
    let found = numbers(&query.commands(session)?)?;
    let last = *found.last().context("no program is on record")?;
    ensure!(found.iter().copied().eq(0..=last), "{} programs are on record, the last is number {last}", found.len());
    let events = query.host_events(stack.host())?;
    ensure!(events.iter().map(|e| (e.frame, e.index)).is_sorted_by(|a, b| a < b), "events come twice or out of order");
    for body in events.into_iter().filter_map(|recorded| recorded.event?.body) {
        match body {
            Body::Gap(gap) if gap.ring == Ring::Audit as i32 => anyhow::bail!("missing: {gap:?}"),
            Body::Alert(alert) if alert.code == "spool-damaged" || alert.code == "spool-rolled-back" => {
                anyhow::bail!("{alert:?}")
            }
            _ => {}
        }
    }
    Ok(())
}
