//! Builds the kernel programs, and keeps the built object and its sources together.
//!
//! `agent-ebpf/prebuilt/` is committed, so that nobody needs a BPF toolchain to build the agent. `SOURCES.sha256` beside the
//! object lists the hash of every source that it was built from and of the object itself, as `sha256sum -c` reads it.

mod object;
mod toolchain;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use sha2::{Digest, Sha256};

use toolchain::Toolchain;

/// Arguments of `cargo xtask ebpf`.
#[derive(Args, Debug)]
pub struct EbpfArgs {
    /// Only check that the committed object was built from these sources; needs no toolchain.
    #[arg(long)]
    check: bool,
}

/// Folder of the kernel programs, from the root of the repository.
const FOLDER: &str = "agent-ebpf";
/// The built object, from [`FOLDER`].
const OBJECT: &str = "prebuilt/breakglass.bpf.o";
/// Hashes of sources and object, from [`FOLDER`].
const HASHES: &str = "prebuilt/SOURCES.sha256";
/// What the object is built from, from [`FOLDER`]: files, and folders with all that is in them.
const SOURCES: [&str; 5] = ["Cargo.toml", "Cargo.lock", "src", "abi/Cargo.toml", "abi/src"];

/// Builds the object and writes the hashes, or checks them.
pub fn run(args: EbpfArgs) -> Result<()> {
    if args.check {
        return check();
    }
    let folder = folder()?;
    let toolchain = Toolchain::find()?;
    println!("building the kernel programs with {toolchain}");
    let built = toolchain.build(&folder)?;
    let raw = fs::read(&built).with_context(|| format!("cannot read what was built, {}", built.display()))?;
    let object = object::strip(&raw).context("cannot strip the built object")?;
    let path = folder.join(OBJECT);
    fs::create_dir_all(folder.join("prebuilt"))?;
    fs::write(&path, &object).with_context(|| format!("cannot write {}", path.display()))?;
    fs::write(folder.join(HASHES), render(&hashes(&folder)?)).context("cannot write the hashes")?;
    println!("{}: {} bytes", path.display(), object.len());
    Ok(())
}

fn folder() -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(FOLDER);
    folder.canonicalize().with_context(|| format!("cannot find {}", folder.display()))
}

/// Fails if the committed object was not built from these sources; needs no toolchain.
pub fn check() -> Result<()> {
    let folder = folder()?;
    let path = folder.join(HASHES);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let differences = compare(&parse(&text)?, &hashes(&folder)?);
    if !differences.is_empty() {
        bail!(
            "{FOLDER}/{OBJECT} was not built from these sources:\n  {}\nBuild it again: cargo xtask ebpf",
            differences.join("\n  ")
        );
    }
    println!("{FOLDER}/{OBJECT} matches its sources");
    Ok(())
}

/// Hashes by path from the folder.
type Hashes = BTreeMap<String, String>;

fn hashes(folder: &Path) -> Result<Hashes> {
    let mut files = vec![PathBuf::from(OBJECT)];
    for source in SOURCES {
        list(folder, Path::new(source), &mut files)?;
    }
    files
        .into_iter()
        .map(|file| {
            let bytes =
                fs::read(folder.join(&file)).with_context(|| format!("cannot read {FOLDER}/{}", file.display()))?;
            Ok((file.display().to_string(), hex::encode(Sha256::digest(bytes))))
        })
        .collect()
}

fn list(folder: &Path, path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let full = folder.join(path);
    if !full.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(&full).with_context(|| format!("cannot list {}", full.display()))? {
        list(folder, &path.join(entry?.file_name()), files)?;
    }
    Ok(())
}

fn render(hashes: &Hashes) -> String {
    hashes.iter().map(|(path, hash)| format!("{hash}  {path}\n")).collect()
}

fn parse(text: &str) -> Result<Hashes> {
    text.lines()
        .map(|line| {
            let (hash, path) = line.split_once("  ").with_context(|| format!("{HASHES} has an odd line: {line:?}"))?;
            ensure!(hash.len() == 64, "{HASHES} has no SHA-256 in {line:?}");
            Ok((path.to_owned(), hash.to_owned()))
        })
        .collect()
}

/// What is different, a line each.
fn compare(recorded: &Hashes, found: &Hashes) -> Vec<String> {
    let mut differences = Vec::new();
    for (path, hash) in found {
        match recorded.get(path) {
            None => differences.push(format!("{path} is new")),
            Some(known) if known != hash => differences.push(format!("{path} has changed")),
            Some(_) => {}
        }
    }
    differences.extend(recorded.keys().filter(|path| !found.contains_key(*path)).map(|path| format!("{path} is gone")));
    differences
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes_of(entries: &[(&str, u8)]) -> Hashes {
        entries.iter().map(|(path, byte)| ((*path).to_owned(), hex::encode([*byte; 32]))).collect()
    }

    #[test]
    fn every_difference_is_named() {
        let recorded = hashes_of(&[("same", 1), ("changed", 2), ("gone", 3)]);
        let found = hashes_of(&[("same", 1), ("changed", 9), ("new", 4)]);
        assert_eq!(compare(&recorded, &found), ["changed has changed", "new is new", "gone is gone"]);
        assert_eq!(compare(&recorded, &recorded), Vec::<String>::new());
    }

    #[test]
    fn the_list_is_read_as_it_was_written() {
        let hashes = hashes_of(&[("src/main.rs", 1), ("prebuilt/breakglass.bpf.o", 2)]);
        assert_eq!(parse(&render(&hashes)).unwrap(), hashes);
        assert!(parse("nonsense").is_err());
        assert!(parse("abc  src/main.rs").is_err());
    }

    #[test]
    fn the_committed_object_matches_its_sources() {
        check().unwrap();
    }
}
