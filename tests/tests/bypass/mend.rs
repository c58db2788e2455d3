//! Putting the machine right between attacks, in the tier where nothing refuses what harms it.

use std::process::Command;

use anyhow::Result;
use breakglass_tests::machine;

/// Pins that were moved away come back: programs whose pins nobody finds again miss their agent, and kill whatever the account runs.
const MEND: &str = r#"
    findmnt -t tmpfs /sys/fs/bpf >/dev/null && umount /sys/fs/bpf
    findmnt -rn -t bpf -o TARGET | grep -vx /sys/fs/bpf | while read -r away; do
        mountpoint -q /sys/fs/bpf && umount /sys/fs/bpf
        mount --bind "$away" /sys/fs/bpf && umount "$away"
    done
    mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf
    echo 1 > /proc/sys/kernel/ftrace_enabled
"#;

/// Whether this is the lab in the tier where nothing refuses what harms the machine.
pub fn is_trace() -> bool {
    std::env::var_os("BREAKGLASS_LAB_TIER").is_some_and(|tier| tier == "trace")
}

/// Puts the machine right where an attack succeeded and its programs did not live to do so.
pub fn machine() -> Result<()> {
    match is_trace() {
        true => machine::run(Command::new("sh").args(["-c", MEND])).map(drop),
        false => Ok(()),
    }
}
