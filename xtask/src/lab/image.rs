//! The guest's root disk and kernels: found in the cache, or built.
//!
//! One disk serves every kernel, since it has the modules of all. It is only ever opened through QEMU's `snapshot=on`, so a run
//! cannot change it.

use std::{
    fs::{self, File},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    host, initrd,
    recipe::{self, Apt, Kernel, Resolved},
};

/// Another place for images, kernels and package lists.
const CACHE_VARIABLE: &str = "BREAKGLASS_LAB_CACHE";

/// Size of the root disk: room for what the tests write, sparse on the host.
const ROOT_DISK_SIZE: &str = "4G";

/// An image that is ready to boot.
pub struct Image {
    folder: PathBuf,
    /// Held so that nobody builds, and with that removes old images, while a guest runs from this one.
    _lock: File,
}

impl Image {
    /// Gives the image of the current recipe from below `target/lab`; builds it if it is not there. With `update`, package lists
    /// are fetched anew first.
    pub fn prepare(lab: &Path, update: bool) -> Result<Self> {
        let cache = std::env::var_os(CACHE_VARIABLE).map_or_else(|| lab.join("cache"), PathBuf::from);
        host::make_folder(&cache)?;
        let lock_path = cache.join("lock");
        let lock = File::create(&lock_path).with_context(|| format!("cannot make {}", lock_path.display()))?;
        // Runs share the cache; only fetching lists and building change it. Building waits for every run to end.
        let exclusive = || lock.lock().with_context(|| format!("cannot lock {}", lock_path.display()));
        let shared = || lock.lock_shared().with_context(|| format!("cannot share {}", lock_path.display()));
        if update || !Apt::has_lists(&cache) {
            exclusive()?;
        } else {
            shared()?;
        }
        let apt = Apt::open(&cache, update)?;
        let resolved = apt.resolve()?;
        let folder = cache.join(format!("image-{}", resolved.key));
        if !folder.exists() {
            exclusive()?;
            if !folder.exists() {
                build(&cache, &apt, &resolved, &folder)?;
            }
        }
        shared()?;
        ensure!(folder.exists(), "{} was removed by another build just now; run this again", folder.display());
        Ok(Self { folder, _lock: lock })
    }

    /// Where it lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The root disk, an ext4 file system without a partition table.
    pub fn root_disk(&self) -> PathBuf {
        self.folder.join("root.ext4")
    }

    /// A kernel as Debian ships it.
    pub fn kernel(&self, kernel: Kernel) -> PathBuf {
        self.folder.join(format!("{}.vmlinuz", kernel.name))
    }

    /// The initrd for a kernel.
    pub fn initrd(&self, kernel: Kernel) -> PathBuf {
        self.folder.join(format!("{}.initrd", kernel.name))
    }

    /// Version of a package in the guest.
    pub fn package_version(&self, package: &str) -> Result<String> {
        let path = self.folder.join("packages.txt");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut pairs = text.lines().filter_map(|line| line.split_once(' '));
        let (_, version) = pairs
            .find(|(name, _)| *name == package)
            .with_context(|| format!("{} does not list {package}", path.display()))?;
        Ok(version.to_owned())
    }
}

fn build(cache: &Path, apt: &Apt, resolved: &Resolved, folder: &Path) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "building the guest's image sets owners of files and needs root");
    host::install_missing(host::BUILD_TOOLS)?;
    ensure!(Path::new(recipe::KEYRING).exists(), "missing: {}, install debian-archive-keyring", recipe::KEYRING);
    let start = Instant::now();
    // Never renamed before it is whole, so an interrupted build is simply done again.
    let work = cache.join("partial");
    host::remove_folder(&work)?;
    host::make_folder(&work.join("done"))?;
    let (root, done) = (work.join("root"), work.join("done"));
    host::say("installing Debian packages for the guest (about a minute)");
    install_packages(apt, &root)?;
    for (kernel, package) in &resolved.kernel_packages {
        host::say(&format!("adding {package}"));
        add_kernel(apt, *kernel, package, &root, &work)?;
    }
    configure(&root)?;
    let packages =
        host::run(host::command("chroot").arg(&root).args(["dpkg-query", "-W", "-f", "${Package} ${Version}\n"]))?;
    host::write(&done.join("packages.txt"), &packages)?;
    host::say("writing the root disk");
    host::run(
        host::command("mke2fs")
            .args(["-q", "-t", "ext4", "-L", "lab-root", "-E", "lazy_itable_init=1,lazy_journal_init=1", "-d"])
            .arg(&root)
            .arg(done.join("root.ext4"))
            .arg(ROOT_DISK_SIZE),
    )?;
    remove_old(cache)?;
    fs::rename(&done, folder).with_context(|| format!("cannot move the image to {}", folder.display()))?;
    host::remove_folder(&work)?;
    host::say(&format!("image {} built in {} s", resolved.key, start.elapsed().as_secs()));
    Ok(())
}

fn install_packages(apt: &Apt, root: &Path) -> Result<()> {
    let mut command = host::command("mmdebstrap");
    command.args([
        "--quiet",
        "--variant=minbase",
        "--architectures=amd64",
        "--aptopt=APT::Install-Recommends \"false\"",
    ]);
    for folder in ["doc", "man", "locale", "info", "bash-completion"] {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{folder}/*"));
    }
    command.arg(format!("--include={}", recipe::PACKAGES.join(","))).arg(recipe::RELEASE).arg(root).arg(&apt.sources);
    host::run(&mut command).map(drop)
}

/// Unpacks a kernel's package instead of installing it: its maintainer scripts would make an initrd that nobody boots.
fn add_kernel(apt: &Apt, kernel: Kernel, package: &str, root: &Path, work: &Path) -> Result<()> {
    let unpacked = work.join(format!("kernel-{}", kernel.name));
    let archive = apt.download(package, &work.join(format!("archive-{}", kernel.name)))?;
    host::run(host::command("dpkg-deb").arg("--extract").arg(&archive).arg(&unpacked))?;
    let release = package.trim_start_matches("linux-image-");
    let places = ["usr/lib/modules", "lib/modules"].map(|place| unpacked.join(place).join(release));
    let Some(modules) = places.iter().find(|place| place.exists()) else {
        bail!("{package} has no modules of {release}");
    };
    let target = root.join("usr/lib/modules");
    host::make_folder(&target)?;
    host::run(host::command("cp").arg("-a").arg(modules).arg(&target))?;
    host::run(host::command("chroot").arg(root).args(["depmod", release]))?;
    let done = work.join("done");
    host::copy(&unpacked.join(format!("boot/vmlinuz-{release}")), &done.join(format!("{}.vmlinuz", kernel.name)))?;
    host::copy(&unpacked.join(format!("boot/config-{release}")), &root.join(format!("boot/config-{release}")))?;
    let out = done.join(format!("{}.initrd", kernel.name));
    initrd::build(root, release, &work.join(format!("initrd-{}", kernel.name)), &out)
}

fn configure(root: &Path) -> Result<()> {
    for file in recipe::FILES {
        let path = root.join(file.path);
        if let Some(folder) = path.parent() {
            host::make_folder(folder)?;
        }
        host::write(&path, file.text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))?;
    }
    host::make_folder(&root.join("lab"))?;
    for unit in recipe::MASKED {
        let path = root.join("etc/systemd/system").join(unit);
        symlink("/dev/null", &path).with_context(|| format!("cannot mask {unit}"))?;
    }
    // The root of a container; `crun spec` makes the rest of the bundle in the guest, for it asks the running kernel.
    let script = "mkdir -p /srv/container/rootfs/bin && cd /srv/container/rootfs && cp /usr/bin/busybox bin && \
                  chroot . /bin/busybox --install -s /bin";
    host::run(host::command("chroot").arg(root).args(["sh", "-ec", script])).map(drop)
}

/// Removes images of other recipes: they are large, and asking for an old recipe again is rare.
fn remove_old(cache: &Path) -> Result<()> {
    for entry in fs::read_dir(cache).with_context(|| format!("cannot list {}", cache.display()))? {
        let path = entry?.path();
        if path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("image-")) {
            host::say(&format!("removing the old image {}", path.display()));
            host::remove_folder(&path)?;
        }
    }
    Ok(())
}
