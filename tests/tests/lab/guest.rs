//! The virtual machine that the tests run on.

use std::{
    path::PathBuf,
    process::{Command, Output},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

/// Set by `cargo xtask lab` and nothing else.
const KERNEL_VARIABLE: &str = "BREAKGLASS_LAB_KERNEL";
const TIER_VARIABLE: &str = "BREAKGLASS_LAB_TIER";
const EVERYWHERE_VARIABLE: &str = "BREAKGLASS_LAB_EVERYWHERE";

/// Between two looks at what is waited for.
const PAUSE: Duration = Duration::from_millis(50);

/// What the lab says about this machine.
pub struct Guest {
    /// Kernel series that was to be booted, such as `6.1`.
    pub kernel: String,
    /// Whether BPF was to be an active LSM.
    pub bpf_lsm: bool,
}

impl Guest {
    /// Nothing, and a line that says "skipped", if this is not a guest of the lab.
    pub fn here() -> Option<Self> {
        let kernel = std::env::var(KERNEL_VARIABLE).ok();
        if kernel.is_none() {
            println!("skipped: not in the lab guest");
        }
        let bpf_lsm = std::env::var(TIER_VARIABLE).is_ok_and(|tier| tier == "full");
        kernel.map(|kernel| Self { kernel, bpf_lsm })
    }

    /// As [`Guest::here`], on one kernel only: for what rests on the guest's own programs, which are the same on every kernel, and takes
    /// minutes under emulation. On all of them with `cargo xtask lab --everywhere`.
    pub fn on(kernel: &str) -> Option<Self> {
        let guest = Self::here()?;
        if guest.kernel != kernel && std::env::var_os(EVERYWHERE_VARIABLE).is_none() {
            println!("skipped: what it tests is the same on every kernel; it runs on {kernel}, or with --everywhere");
            return None;
        }
        Some(guest)
    }

    /// A folder for scratch files that goes away with the guest.
    pub fn scratch(&self, name: &str) -> Result<PathBuf> {
        let folder = std::env::temp_dir().join(format!("lab-{name}"));
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder)
    }
}

/// Runs a command line and gives what it printed; fails with all that it printed.
pub fn shell(line: &str) -> Result<String> {
    let Output { status, stdout, stderr } = Command::new("sh").args(["-ec", line]).output()?;
    let printed = String::from_utf8_lossy(&stdout).into_owned();
    ensure!(status.success(), "`{line}` failed ({status}): {printed}{}", String::from_utf8_lossy(&stderr));
    Ok(printed)
}

/// Waits until `look` says yes.
pub fn until(what: &str, limit: Duration, mut look: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !look() {
        if Instant::now() >= deadline {
            bail!("waited {} s in vain for {what}", limit.as_secs());
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}
