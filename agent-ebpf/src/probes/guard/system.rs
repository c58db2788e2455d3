//! Code for the kernel, another kernel, and performance events.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use breakglass_abi::Rule;

use crate::guard::{ALLOW, Actor};

/// `enum kernel_load_data_id`, `enum kernel_read_file_id` (include/linux/kernel_read_file.h): the same numbers. Firmware is 1,
/// policies and certificates are 5 and 6; what came later is a form of a module.
const FIRMWARE: u32 = 1;
const MODULE: u32 = 2;
const KEXEC_IMAGE: u32 = 3;
const KEXEC_INITRAMFS: u32 = 4;
const NEWER: u32 = 7;

/// `int kernel_load_data(enum kernel_load_data_id id, bool contents)`: from memory.
#[lsm(hook = "kernel_load_data")]
pub fn guard_load_data(context: LsmContext) -> i32 {
    loads(context.arg::<u32>(0)).unwrap_or(ALLOW)
}

/// `int kernel_read_file(struct file *file, enum kernel_read_file_id id, bool contents)`: from a file.
#[lsm(hook = "kernel_read_file")]
pub fn guard_read_file(context: LsmContext) -> i32 {
    loads(context.arg::<u32>(1)).unwrap_or(ALLOW)
}

#[inline(always)]
fn loads(what: u32) -> Option<i32> {
    if what <= FIRMWARE {
        return None;
    }
    let rule = if what == KEXEC_IMAGE || what == KEXEC_INITRAMFS {
        Rule::Kexec
    } else if what == MODULE || what >= NEWER {
        Rule::Module
    } else {
        return None;
    };
    let actor = Actor::current()?;
    if !actor.open {
        return None;
    }
    Some(actor.refused(rule, u64::from(what), 0, 0))
}

/// `int perf_event_open(struct perf_event_attr *attr, int type)`; from 6.16 on `type` alone.
#[lsm(hook = "perf_event_open")]
pub fn guard_perf(_context: LsmContext) -> i32 {
    match Actor::current() {
        Some(actor) if actor.tagged => actor.refused(Rule::Perf, 0, 0, 0),
        _ => ALLOW,
    }
}
