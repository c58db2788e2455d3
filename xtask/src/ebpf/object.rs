//! Takes debug information out of the object: the agent needs code, maps and BTF, not DWARF with its paths.

use anyhow::{Context, Result, ensure};
use object::{
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
};

/// The object without the sections of DWARF and their relocations.
pub fn strip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(bytes).context("it is not ELF")?;
    for section in &mut builder.sections {
        if is_debug(&section.name) {
            section.delete = true;
        }
    }
    builder.delete_orphans();
    // LLVM keeps names of sections and symbols in one table; the writer wants two.
    let names = builder.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut out = Vec::new();
    builder.write(&mut out).context("it cannot be written again")?;
    ensure!(out.len() < bytes.len(), "nothing was taken out");
    Ok(out)
}

fn is_debug(name: &[u8]) -> bool {
    let name = name.strip_prefix(b".rel").unwrap_or(name);
    name.starts_with(b".debug_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dwarf_is_debug_information() {
        for name in [".debug_info", ".rel.debug_info", ".debug_str"] {
            assert!(is_debug(name.as_bytes()), "{name}");
        }
        for name in [".BTF", ".BTF.ext", ".rel.BTF", "maps", ".text", ".rodata"] {
            assert!(!is_debug(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(strip(b"nonsense").is_err());
    }
}
