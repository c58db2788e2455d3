//! The guest's first file system: busybox, the few modules between a stock cloud kernel and its root disk, and a script.
//!
//! Distribution tools make one that fits any machine and is ten times the size; loading and searching it takes longer under
//! emulation than everything that this one does.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::host;

/// The first program that runs.
pub const INIT: &str = include_str!("guest/init");

/// What the root disk hangs on; on some kernels built in, on others modules with dependencies of their own.
const MODULES: &[&str] = &["virtio_pci", "virtio_blk"];

/// Makes the initrd `out` for the kernel `release`, with modules and busybox of the guest's root folder. `work` is scratch space.
pub fn build(root: &Path, release: &str, work: &Path, out: &Path) -> Result<()> {
    for folder in ["bin", "modules", "dev", "proc", "sys", "root"] {
        host::make_folder(&work.join(folder))?;
    }
    host::copy(&root.join("usr/bin/busybox"), &work.join("bin/busybox"))?;
    let init = work.join("init");
    host::write(&init, INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    let tree = root.join("usr/lib/modules").join(release);
    let index_path = tree.join("modules.dep");
    let index = fs::read_to_string(&index_path).with_context(|| format!("cannot read {}", index_path.display()))?;
    for (place, module) in load_order(&index, MODULES).iter().enumerate() {
        copy_module(&tree.join(module), &work.join("modules"), place)?;
    }
    let archive = "find . | cpio --quiet --create --format=newc --owner=0:0 > \"$1\"";
    host::run(host::command("sh").current_dir(work).args(["-c", archive, "sh"]).arg(out)).map(drop)
}

/// Copies a module so that names sort in load order; busybox cannot decompress.
fn copy_module(module: &Path, folder: &Path, place: usize) -> Result<()> {
    let name = module.file_name().and_then(|name| name.to_str()).context("a module without a name")?;
    let copy = folder.join(format!("{place:02}-{name}"));
    host::copy(module, &copy)?;
    if name.ends_with(".xz") {
        host::run(host::command("xz").arg("--decompress").arg(&copy))?;
    }
    Ok(())
}

/// Paths of the named modules and all that they need, in the order in which they can be loaded. `index` is depmod's
/// `modules.dep`: a line a module, which names the modules to load before it from right to left. A module that is not
/// listed is built in.
fn load_order(index: &str, wanted: &[&str]) -> Vec<PathBuf> {
    let needs: BTreeMap<&str, &str> = index.lines().filter_map(|line| line.split_once(':')).collect();
    let mut order: Vec<PathBuf> = Vec::new();
    for name in wanted {
        let Some((path, before)) = needs.iter().find(|(path, _)| module_name(path) == *name) else { continue };
        for module in before.split_whitespace().rev().chain([*path]) {
            let module = PathBuf::from(module);
            if !order.contains(&module) {
                order.push(module);
            }
        }
    }
    order
}

fn module_name(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = "kernel/block/virtio_blk.ko: kernel/virtio/virtio.ko kernel/virtio/virtio_ring.ko\n\
        kernel/virtio/virtio_pci.ko.xz: kernel/virtio/legacy.ko kernel/virtio/virtio.ko kernel/virtio/virtio_ring.ko\n\
        kernel/virtio/virtio.ko: kernel/virtio/virtio_ring.ko\n";

    #[test]
    fn a_module_comes_after_what_it_needs_and_once() {
        let order = load_order(INDEX, MODULES);
        let names: Vec<&str> = order.iter().map(|path| module_name(path.to_str().unwrap())).collect();
        assert_eq!(names, ["virtio_ring", "virtio", "legacy", "virtio_pci", "virtio_blk"]);
    }

    #[test]
    fn what_is_built_in_needs_no_loading() {
        assert!(load_order("kernel/net/dummy.ko:\n", MODULES).is_empty());
    }
}
