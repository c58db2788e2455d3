//! A compiler for the BPF target, and its linker: whichever is there.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

const TARGET: &str = "bpfel-unknown-none";
const LINKER: &str = "bpf-linker";

/// How to get what is missing.
const HELP: &str = "\
Either, on Debian 12 and later, as root:
  apt-get install rustc-web cargo-web libstd-rust-web-dev-bpf llvm-22-dev
  LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --no-default-features --features llvm-22
or with rustup:
  rustup toolchain install nightly --component rust-src
  cargo install bpf-linker";

/// A compiler with a core library for BPF, or with the sources of one.
#[derive(Debug)]
pub enum Toolchain {
    /// A compiler that comes with a compiled core library for BPF: Debian's.
    Compiled {
        /// The compiler.
        rustc: PathBuf,
        /// Its cargo.
        cargo: PathBuf,
    },
    /// rustup's nightly, which compiles the core library itself.
    Nightly,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compiled { rustc, .. } => write!(f, "{}, which has a core library for {TARGET}", rustc.display()),
            Self::Nightly => write!(f, "rustup's nightly toolchain"),
        }
    }
}

impl Toolchain {
    /// Finds one; says what is missing and how to get it where there is none.
    pub fn find() -> Result<Self> {
        ensure!(on_path(LINKER).is_some(), "{LINKER} is not on PATH; it links programs for the kernel.\n{HELP}");
        for rustc in all_on_path("rustc") {
            let cargo = rustc.with_file_name("cargo");
            if cargo.exists() && has_core(&rustc) {
                return Ok(Self::Compiled { rustc, cargo });
            }
        }
        if nightly_has_sources() {
            return Ok(Self::Nightly);
        }
        bail!("no compiler has a core library for {TARGET}, and rustup has no nightly with rust-src.\n{HELP}")
    }

    /// Compiles the programs. The path of the object.
    pub fn build(&self, folder: &Path) -> Result<PathBuf> {
        let target =
            env::var_os("CARGO_TARGET_DIR").map_or_else(|| folder.join("../target"), PathBuf::from).join("ebpf");
        let mut cargo = match self {
            Self::Compiled { rustc, cargo } => {
                let mut command = Command::new(cargo);
                command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1").arg("build");
                command
            }
            Self::Nightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo", "build", "-Z", "build-std=core"]);
                command
            }
        };
        // Variables of the cargo that runs this would lead the other one astray.
        for name in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC_WRAPPER", "RUSTFLAGS"] {
            cargo.env_remove(name);
        }
        cargo
            .current_dir(folder)
            .args(["--release", "--locked", "--target", TARGET, "--target-dir"])
            .arg(&target)
            .env("CARGO_ENCODED_RUSTFLAGS", flags(folder).join("\x1f"));
        let status = cargo.status().with_context(|| format!("cannot start {cargo:?}"))?;
        ensure!(status.success(), "{cargo:?} failed ({status})");
        Ok(target.join(TARGET).join("release/breakglass"))
    }
}

fn flags(folder: &Path) -> Vec<String> {
    // The linker turns debug information into BTF. v3 has 32-bit arithmetic and atomics that fetch; every kernel from 5.12 on
    // takes it.
    let mut flags: Vec<String> = [
        "--cfg=bpf_target_arch=\"x86_64\"",
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
        "-Clink-arg=--disable-expand-memcpy-in-order",
        "-Ctarget-cpu=v3",
    ]
    .map(Into::into)
    .into();
    flags.push(format!("--remap-path-prefix={}=agent-ebpf", folder.display()));
    let home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    let registries = home.and_then(|home| home.join("registry/src").read_dir().ok());
    for registry in registries.into_iter().flatten().filter_map(Result::ok) {
        flags.push(format!("--remap-path-prefix={}=crates", registry.path().display()));
    }
    flags
}

fn has_core(rustc: &Path) -> bool {
    let output = Command::new(rustc)
        .args(["--print", "target-libdir", "--target", TARGET])
        .env_remove("RUSTUP_TOOLCHAIN")
        .stderr(Stdio::null())
        .output();
    let Ok(output) = output else { return false };
    let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    output.status.success() && holds_core(&folder)
}

fn holds_core(folder: &Path) -> bool {
    let entries = folder.read_dir().into_iter().flatten().filter_map(Result::ok);
    entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
}

fn nightly_has_sources() -> bool {
    let output =
        Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]).stderr(Stdio::null()).output();
    let Ok(output) = output else { return false };
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    output.status.success() && sysroot.join("lib/rustlib/src/rust/library/core").is_dir()
}

fn on_path(program: &str) -> Option<PathBuf> {
    all_on_path(program).next()
}

fn all_on_path(program: &str) -> impl Iterator<Item = PathBuf> + use<'_> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = env::split_paths(&path).collect();
    // Cargo may run this with rustup's folder alone in front; the system's compiler is looked at in any case.
    folders.push("/usr/bin".into());
    folders.into_iter().map(move |folder| folder.join(program)).filter(|path| path.is_file())
}
