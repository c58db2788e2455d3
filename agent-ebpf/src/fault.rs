//! Every helper that failed, counted where it failed and with what. Nothing fails in silence.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use breakglass_abi::settings::{FAULT_ERRNOS, SITES, Site};

/// Indexed by `site * FAULT_ERRNOS + errno`.
#[map]
static FAULTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(SITES * FAULT_ERRNOS, 0);

/// Counts one failure. `error` is a negative errno.
#[inline(always)]
pub fn count(site: Site, error: i64) {
    let errno = error.unsigned_abs();
    let column = if errno < u64::from(FAULT_ERRNOS) { errno as u32 } else { FAULT_ERRNOS - 1 };
    if let Some(counter) = FAULTS.get_ptr_mut(site as u32 * FAULT_ERRNOS + column) {
        unsafe { *counter = (*counter).wrapping_add(1) };
    }
}
