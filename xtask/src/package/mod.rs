//! `cargo xtask package`: Debian packages of the agent, the collector and the command.
//!
//! A package is a folder laid out as the files will lie on the host, and a `DEBIAN` folder that describes it
//! (deb(5), deb-control(5)); `dpkg-deb` makes the archive. The lab installs the very same packages, made of its own builds.

mod contents;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use self::contents::{Content, PACKAGES, Package};
use crate::build;

/// Arguments of `package`.
#[derive(Args)]
pub struct PackageArgs {
    /// Folder for the packages; target/package where left out
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Package the unoptimised build, which takes less time to make
    #[arg(long)]
    debug: bool,
}

/// How the archives are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pack {
    /// Small, for the world.
    Small,
    /// At once, for a machine that is thrown away.
    Fast,
}

/// Builds the programs and packages them.
pub fn run(args: &PackageArgs) -> Result<()> {
    let programs = build::programs(!args.debug)?;
    let out = args.out.clone().unwrap_or_else(|| build::root().join("target/package"));
    for package in make(&programs, &out, Pack::Small)? {
        println!("{}", package.display());
    }
    Ok(())
}

/// Packages the programs, which are found by name, into the folder `out`.
pub fn make(programs: &BTreeMap<String, PathBuf>, out: &Path, pack: Pack) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(out).with_context(|| format!("cannot make the folder {}", out.display()))?;
    let libc = libc_version(&run_tool(Command::new("getconf").arg("GNU_LIBC_VERSION"))?)?;
    PACKAGES.iter().map(|package| make_one(package, programs, out, &libc, pack)).collect()
}

fn make_one(
    package: &Package,
    programs: &BTreeMap<String, PathBuf>,
    out: &Path,
    libc: &str,
    pack: Pack,
) -> Result<PathBuf> {
    let stage = tempfile::tempdir().context("no folder to lay the package out in")?;
    // Made for its owner alone; what is in it becomes the host's folders.
    fs::set_permissions(stage.path(), fs::Permissions::from_mode(0o755))?;
    for file in package.files {
        let target = stage.path().join(file.path);
        make_parents(stage.path(), &target)?;
        match file.content {
            Content::Program(name) => strip(programs.get(name).context(name)?, &target)?,
            Content::File(source) => copy(&build::root().join(source), &target)?,
            Content::Text(text) => write(&target, text)?,
            Content::Output(program, arguments) => {
                let printed = run_tool(Command::new(programs.get(program).context(program)?).args(arguments))?;
                write(&target, &printed)?;
            }
        }
        fs::set_permissions(&target, fs::Permissions::from_mode(file.mode))?;
    }
    let control = stage.path().join("DEBIAN");
    fs::create_dir(&control)?;
    write(&control.join("conffiles"), &conffiles(package))?;
    for name in package.scripts {
        let script = control.join(name);
        copy(&build::root().join(package.scripts_folder).join(name), &script)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    }
    write(&control.join("control"), &describe(package, libc, size_kib(stage.path())?))?;
    let archive = out.join(format!("{}_{}_amd64.deb", package.name, env!("CARGO_PKG_VERSION")));
    let compression: &[&str] = match pack {
        Pack::Small => &["-Zxz"],
        Pack::Fast => &["-Zgzip", "-z1"],
    };
    let mut dpkg = Command::new("dpkg-deb");
    dpkg.args(["--root-owner-group"]).args(compression).arg("--build").arg(stage.path()).arg(&archive);
    run_tool(&mut dpkg)?;
    Ok(archive)
}

/// The control file: what the package is, and what must be there before it.
fn describe(package: &Package, libc: &str, size_kib: u64) -> String {
    let mut depends = vec![format!("libc6 (>= {libc})"), "libgcc-s1".to_owned()];
    depends.extend(package.depends.iter().map(|name| (*name).to_owned()));
    let recommends = match package.recommends {
        [] => String::new(),
        some => format!("Recommends: {}\n", some.join(", ")),
    };
    format!(
        "Package: {}\nVersion: {}\nArchitecture: amd64\nMaintainer: The Breakglass authors <breakglass@localhost>\n\
         Section: admin\nPriority: optional\nInstalled-Size: {size_kib}\nDepends: {}\n{recommends}Description: {}\n",
        package.name,
        env!("CARGO_PKG_VERSION"),
        depends.join(", "),
        package.description
    )
}

/// What an administrator may change and an upgrade must not overwrite: everything in `/etc`.
fn conffiles(package: &Package) -> String {
    let paths = package.files.iter().map(|file| file.path).filter(|path| path.starts_with("etc/"));
    paths.map(|path| format!("/{path}\n")).collect()
}

/// The version's two numbers in `glibc 2.36`.
fn libc_version(getconf: &str) -> Result<String> {
    let version = getconf.trim().strip_prefix("glibc ").unwrap_or_default();
    let plain =
        version.starts_with(|c: char| c.is_ascii_digit()) && version.chars().all(|c| c.is_ascii_digit() || c == '.');
    ensure!(plain, "the packages are for systems with the GNU C library, and getconf says {getconf:?}");
    Ok(version.to_owned())
}

fn size_kib(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let entry = entry?;
        bytes += match entry.file_type()?.is_dir() {
            true => size_kib(&entry.path())? * 1024,
            false => entry.metadata()?.len(),
        };
    }
    Ok(bytes.div_ceil(1024))
}

/// Makes the folders above `target` with the mode that folders of a system have, whatever our umask is.
fn make_parents(root: &Path, target: &Path) -> Result<()> {
    let parents: Vec<&Path> = target.ancestors().skip(1).take_while(|folder| *folder != root).collect();
    for folder in parents.into_iter().rev().filter(|folder| !folder.exists()) {
        fs::create_dir(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Copies a program without its debugging information, most of its size.
fn strip(program: &Path, copy: &Path) -> Result<()> {
    run_tool(Command::new("strip").arg("--strip-debug").arg("-o").arg(copy).arg(program)).map(drop)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn run_tool(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed ({}): {}", output.status, complaint.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_packages_name_is_there() {
        for package in PACKAGES {
            for file in package.files {
                if let Content::File(source) = file.content {
                    assert!(build::root().join(source).exists(), "{}: {source}", package.name);
                }
                assert!(!file.path.starts_with('/') && file.mode & 0o022 == 0, "{}: {}", package.name, file.path);
            }
            for script in package.scripts {
                let path = build::root().join(package.scripts_folder).join(script);
                let text = fs::read_to_string(&path).unwrap();
                assert!(text.starts_with("#!/bin/sh\n") && text.contains("\nset -e\n"), "{}", path.display());
            }
        }
    }

    #[test]
    fn packages_install_as_they_are_described() {
        // Any program will do for the layout.
        let own = std::env::current_exe().unwrap();
        let names = ["breakglass-agent", "breakglass-collector"];
        let programs: BTreeMap<String, PathBuf> = names.iter().map(|name| ((*name).to_owned(), own.clone())).collect();
        let out = tempfile::tempdir().unwrap();
        let agent = PACKAGES.iter().find(|package| package.name == "breakglass-agent").unwrap();
        let archive = make_one(agent, &programs, out.path(), "2.36", Pack::Fast).unwrap();
        let listed = run_tool(Command::new("dpkg-deb").arg("--contents").arg(&archive)).unwrap();
        let line = |path: &str| listed.lines().find(|line| line.ends_with(path)).unwrap_or_default().to_owned();
        assert!(line(" ./usr/sbin/breakglass-agent").starts_with("-rwxr-xr-x root/root"), "{listed}");
        assert!(line(" ./etc/sudoers.d/breakglass").starts_with("-r--r----- root/root"), "{listed}");
        assert!(line(" ./etc/ssh/").starts_with("drwxr-xr-x root/root"), "{listed}");
        let fields = run_tool(Command::new("dpkg-deb").arg("--field").arg(&archive)).unwrap();
        assert!(fields.contains("Depends: libc6 (>= 2.36), libgcc-s1, openssh-server"), "{fields}");
    }

    #[test]
    fn the_library_is_the_one_linked_against() {
        assert_eq!(libc_version("glibc 2.36\n").unwrap(), "2.36");
        assert!(libc_version("musl").is_err() && libc_version("glibc x").is_err());
    }
}
