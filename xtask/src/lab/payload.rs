//! What a guest is given, and what comes back: one ext4 disk that it mounts at `/lab`.
//!
//! ```text
//! /lab/run          started by the guest once it is up
//! /lab/bin          the programs under test, and this xtask, which runs the tests
//! /lab/tests        test binaries, named for their suites
//! /lab/packages     the programs as Debian packages
//! /lab/lib          only where the host's C library is newer than the guest's, see [`carry_libc`]
//! /lab/evidence     written by the guest; the host takes it from the disk after the guest is off
//! ```
//!
//! Neither side needs to mount anything for the other: the host makes the disk with `mke2fs -d` and reads it with `debugfs`.
//! (Debian's cloud kernels have no 9p.)

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::{host, image::Image};
use crate::package::{self, Pack};

/// Packages whose programs and integration tests go into the guest.
const PACKAGES: &[&str] = &["breakglass-agent", "breakglass-collector", "breakglass-cli", "breakglass-tests"];

/// This one, which runs the tests there. As cargo built it just now: the file that this process was started from may be gone.
const OWN_PACKAGE: &str = "/xtask#";

/// Size of the lab disk: evidence is records of sessions and logs. Sparse on the host.
const DISK_SIZE: &str = "2G";

/// The guest's loader and C library, when they are the host's.
const CARRIED: &str = "/lab/lib";

/// What cargo built.
pub struct Built {
    programs: Vec<PathBuf>,
    /// Suites (integration-test targets) and their binaries.
    suites: Vec<(String, PathBuf)>,
}

/// The part of cargo's messages that is used here.
#[derive(Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    package_id: String,
    profile: Option<Profile>,
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Profile {
    /// Built with a test harness, or as one.
    test: bool,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// Builds the programs and their integration tests.
pub fn build() -> Result<Built> {
    host::say("building programs and tests");
    let mut cargo = host::command(&std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    // As `cargo xtask test` builds them: another choice of packages unites other features, and compiles everything once more.
    cargo.args(["build", "--message-format=json-render-diagnostics", "--workspace", "--all-targets"]);
    let output = cargo.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    ensure!(output.status.success(), "`{}` failed ({})", host::line(&cargo), output.status);
    let built = parse_messages(&String::from_utf8_lossy(&output.stdout))?;
    ensure!(!built.suites.is_empty(), "cargo built no test suite");
    Ok(built)
}

fn parse_messages(text: &str) -> Result<Built> {
    let mut built = Built { programs: Vec::new(), suites: Vec::new() };
    for line in text.lines() {
        let message: Message = serde_json::from_str(line).with_context(|| format!("cargo said: {line}"))?;
        let (Some(target), Some(executable)) = (message.target, message.executable) else { continue };
        let ours = message.package_id.contains(OWN_PACKAGE)
            || PACKAGES.iter().any(|name| message.package_id.contains(&format!("#{name}@")));
        if message.reason != "compiler-artifact" || !ours {
            continue;
        }
        let harnessed = message.profile.is_some_and(|profile| profile.test);
        match target.kind.first().map(String::as_str) {
            Some("bin") if !harnessed => built.programs.push(executable),
            Some("test") => built.suites.push((target.name, executable)),
            _ => {}
        }
    }
    Ok(built)
}

impl Built {
    /// Names of the suites.
    pub fn suites(&self) -> impl Iterator<Item = &str> {
        self.suites.iter().map(|(name, _)| name.as_str())
    }
}

/// Makes the disk `disk` with what was built and the script `run`. `work` is scratch space, removed at the end.
pub fn make_disk(image: &Image, built: &Built, run: &str, work: &Path, disk: &Path) -> Result<()> {
    let staged = work.join("lab");
    for folder in ["bin", "tests", "lib", "evidence"] {
        host::make_folder(&staged.join(folder))?;
    }
    let mut copies: Vec<PathBuf> = Vec::new();
    for program in &built.programs {
        copies.push(staged.join("bin").join(program.file_name().context("a program without a name")?));
        strip(program, copies.last().context("just pushed")?)?;
    }
    for (name, binary) in &built.suites {
        copies.push(staged.join("tests").join(name));
        strip(binary, copies.last().context("just pushed")?)?;
    }
    if host_libc_is_newer(image)? {
        carry_libc(&copies, &staged.join("lib"))?;
    }
    package::make(&by_name(&staged.join("bin"))?, &staged.join("packages"), Pack::Fast)?;
    let script = staged.join("run");
    host::write(&script, run)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    host::run(
        host::command("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-L", "lab-disk", "-E", "lazy_itable_init=1,lazy_journal_init=1", "-d"])
            .arg(&staged)
            .arg(disk)
            .arg(DISK_SIZE),
    )?;
    host::remove_folder(work)
}

/// The programs in a folder.
fn by_name(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut programs = BTreeMap::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        programs.extend(file_name(&path).map(|name| (name.to_owned(), path.clone())));
    }
    Ok(programs)
}

/// Copies a program without its debugging information, most of its size.
fn strip(program: &Path, copy: &Path) -> Result<()> {
    host::run(host::command("strip").arg("--strip-debug").arg("-o").arg(copy).arg(program)).map(drop)
}

/// Takes the guest's evidence from its disk into the folder `out`, as far as it had been written when the guest ended.
pub fn take_evidence(disk: &Path, out: &Path) -> Result<()> {
    host::make_folder(out)?;
    // A guest that died leaves its journal unplayed. 1 means "repaired"; worse shows at the next step.
    let _ = host::run(host::command("e2fsck").arg("-fy").arg(disk));
    let target = out.display().to_string();
    ensure!(!target.contains('"'), "the folder {target} has a quotation mark in its name");
    host::run(host::command("debugfs").arg("-R").arg(format!("rdump /evidence \"{target}\"")).arg(disk))?;
    // debugfs copies the folder, not what is in it, and succeeds when it could not.
    let copied = out.join("evidence");
    ensure!(copied.exists(), "the lab disk {} has no readable evidence folder", disk.display());
    Ok(())
}

/// Whether programs linked here may ask for a C library that the guest does not have.
fn host_libc_is_newer(image: &Image) -> Result<bool> {
    let here = host::run(host::command("getconf").arg("GNU_LIBC_VERSION"))
        .context("programs for the guest can only be built on a host with the GNU C library")?;
    let there = image.package_version("libc6")?;
    match (version(here.trim_start_matches("glibc").trim()), version(&there)) {
        (Some(here), Some(there)) => Ok(here > there),
        _ => bail!("cannot compare the C libraries {} (here) and {there} (guest)", here.trim()),
    }
}

/// Major and minor number at the start of a version.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|char: char| !char.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Gives programs the host's own loader and libraries, at a path of the guest that nothing else uses. They then run in a
/// guest with an older C library without being built twice; the guest's own programs are left alone.
fn carry_libc(programs: &[PathBuf], folder: &Path) -> Result<()> {
    host::install_missing(host::LIBC_TOOLS)?;
    let mut libraries = BTreeSet::new();
    for program in programs {
        libraries.extend(parse_ldd(&host::run(host::command("ldd").arg(program))?));
    }
    let loader = libraries.iter().find(|path| file_name(path).is_some_and(|name| name.starts_with("ld-linux")));
    let loader = loader.and_then(|path| file_name(path)).context("ldd named no loader")?.to_owned();
    for library in &libraries {
        host::copy(library, &folder.join(file_name(library).context("a library without a name")?))?;
    }
    for program in programs {
        let interpreter = format!("{CARRIED}/{loader}");
        host::run(
            host::command("patchelf").args(["--set-interpreter", &interpreter, "--set-rpath", CARRIED]).arg(program),
        )?;
    }
    Ok(())
}

fn file_name(path: &Path) -> Option<&str> {
    path.file_name().and_then(OsStr::to_str)
}

/// Paths in lines such as `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)` and `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn parse_ldd(text: &str) -> impl Iterator<Item = PathBuf> {
    text.lines().filter_map(|line| {
        let path = line.rsplit("=>").next()?.split_whitespace().next()?;
        path.starts_with('/').then(|| PathBuf::from(path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_suites_are_told_apart() {
        let line = |package: &str, kind: &str, name: &str, test: bool, file: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","package_id":"path+file:///r/x#{package}@0.1.0","profile":{{"test":{test}}},"target":{{"name":"{name}","kind":["{kind}"]}},"executable":{file}}}"#
            )
        };
        let text = [
            line("anyhow", "lib", "anyhow", false, "null"),
            line("breakglass-cli", "bin", "breakglass", false, r#""/t/breakglass""#),
            line("breakglass-cli", "bin", "breakglass", true, r#""/t/deps/breakglass-1""#),
            line("breakglass-agent", "lib", "breakglass_agent", true, r#""/t/deps/breakglass_agent-1""#),
            line("breakglass-tests", "test", "lab", true, r#""/t/deps/lab-1""#),
            line("somebody-else", "bin", "tool", false, r#""/t/tool""#),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
        ];
        let text = text.join("\n");
        let built = parse_messages(&text).unwrap();
        assert_eq!(built.programs, [PathBuf::from("/t/breakglass")]);
        assert_eq!(built.suites().collect::<Vec<_>>(), ["lab"]);
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert!(version("2.36-9+deb12u14") < version("2.41"));
        assert!(version("2.9") < version("2.36"));
        assert_eq!(version("musl"), None);
    }

    #[test]
    fn ldd_names_the_libraries_and_the_loader() {
        let text =
            "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/libc.so.6 (0x2)\n\t/lib64/ld-linux-x86-64.so.2 (0x3)\n";
        let found: Vec<PathBuf> = parse_ldd(text).collect();
        assert_eq!(found, [PathBuf::from("/lib/libc.so.6"), PathBuf::from("/lib64/ld-linux-x86-64.so.2")]);
    }
}
