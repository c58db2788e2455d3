//! Every helper that failed, counted where it failed and with what. Nothing fails in silence.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use breakglass_abi::settings::{FAULT_ERRNOS, SITES, Site};

/// Indexed by `site * FAULT_ERRNOS + errno`.
#[map]
static FAULTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(SITES * FAULT_ERRNOS, 0);

/// Counts one failure. `error` is a negative errno.
#[inline(always)]
pub fn count(site: Site, error: i64) {
    count_fault(site as u32, error);
}

/// A global function, as those of [`crate::guard`]: behind it the paths of what failed and what did not meet again.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn count_fault(site: u32, error: i64) -> u32 {
    let errno = error.unsigned_abs();
    let column = if errno < u64::from(FAULT_ERRNOS) { errno as u32 } else { FAULT_ERRNOS - 1 };
    if let Some(counter) = FAULTS.get_ptr_mut(site * FAULT_ERRNOS + column) {
        unsafe { *counter = (*counter).wrapping_add(1) };
    }
    0
}
