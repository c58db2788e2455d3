//! Which security modules judge on this kernel. Programs at security hooks load and attach whether BPF is among them or not; where
//! it is not, they never run.

use std::{fs, io, path::Path};

use nix::mount::{MsFlags, mount};

/// Where the kernel lists them.
const LIST: &str = "/sys/kernel/security/lsm";
/// Where that file system belongs.
const FOLDER: &str = "/sys/kernel/security";

/// Whether BPF is among the active modules; else what is.
pub fn has_bpf() -> io::Result<Result<(), String>> {
    let list = match fs::read_to_string(LIST) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            mount(Some("securityfs"), Path::new(FOLDER), Some("securityfs"), MsFlags::empty(), None::<&str>)?;
            fs::read_to_string(LIST)?
        }
        read => read?,
    };
    Ok(judge(&list))
}

fn judge(list: &str) -> Result<(), String> {
    let list = list.trim();
    if list.split(',').any(|name| name == "bpf") { Ok(()) } else { Err(list.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_name_counts() {
        assert_eq!(judge("lockdown,capability,bpf\n"), Ok(()));
        for list in ["", "lockdown,capability", "bpfx,xbpf", "landlock"] {
            assert_eq!(judge(list), Err(list.to_owned()));
        }
    }
}
