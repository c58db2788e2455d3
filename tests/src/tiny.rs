//! The smallest program: it ends, with success, and does nothing else. For load that is to be events rather than programs' own work.

use std::{fs, io, os::unix::fs::PermissionsExt, path::Path};

/// Where it is loaded.
const BASE: u64 = 0x40_0000;

/// Lengths of an ELF header and a program header of 64 bits (elf(5)).
const EHDR: u16 = 64;
const PHDR: u16 = 56;

/// `xor edi, edi; push 60; pop rax; syscall`: exit(0) on x86-64.
const CODE: [u8; 7] = [0x31, 0xff, 0x6a, 60, 0x58, 0x0f, 0x05];

/// Writes it, to be run by everybody.
pub fn write(path: &Path) -> io::Result<()> {
    fs::write(path, program())?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

fn program() -> Vec<u8> {
    let length = u64::from(EHDR + PHDR) + CODE.len() as u64;
    let mut out = b"\x7fELF\x02\x01\x01".to_vec();
    out.resize(16, 0);
    // A program for x86-64, in the first version of the format.
    out.extend([2_u16, 62].map(u16::to_le_bytes).concat());
    out.extend(1_u32.to_le_bytes());
    // Where it begins, where its program headers are, and no sections.
    out.extend([BASE + u64::from(EHDR + PHDR), u64::from(EHDR), 0].map(u64::to_le_bytes).concat());
    out.extend(0_u32.to_le_bytes());
    out.extend([EHDR, PHDR, 1, 0, 0, 0].map(u16::to_le_bytes).concat());
    // All of it is one segment to load (1), to be read (4) and run (1).
    out.extend([1_u32, 5].map(u32::to_le_bytes).concat());
    out.extend([0, BASE, BASE, length, length, 0x1000].map(u64::to_le_bytes).concat());
    out.extend(CODE);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn it_runs_and_ends_well() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tiny");
        write(&path).unwrap();
        assert!(std::process::Command::new(path).arg("1").status().unwrap().success());
    }
}
