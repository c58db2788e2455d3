//! A record of a call while it is put together, in scratch memory.

use breakglass_abi::Action;

use crate::scratch::{self, Slot, masked};

/// Arguments of a call, and its result in the place that `RESULT` of the list of calls counts to.
pub(super) const PLACES: usize = 8;

/// A call under way of becoming a record. In the scratch slots, which only the call's own CPU touches.
#[derive(Clone, Copy)]
pub(super) struct Draft {
    /// Holds record and notes.
    pub(super) slot: Slot,
    /// The record's fixed part.
    pub(super) action: *mut Action,
    /// By place; the first is unused.
    pub(super) places: *mut [u64; PLACES],
}

impl Draft {
    /// In the slots of the call list.
    #[inline(always)]
    pub(super) fn new() -> Option<Self> {
        let slot = Slot::get(scratch::EXEC)?;
        let places = Slot::get(scratch::TRACE)?.state();
        Some(Self { slot, action: slot.record(), places })
    }

    /// In a slot of the caller's choice, for what is no call of the list.
    #[inline(always)]
    pub(super) fn in_slot(index: u32) -> Option<Self> {
        let slot = Slot::get(index)?;
        Some(Self { slot, action: slot.record(), places: slot.state() })
    }

    /// The tail, empty yet.
    #[inline(always)]
    pub(super) fn tail(self) -> *mut u8 {
        unsafe { self.slot.record::<u8>().add(Action::SIZE) }
    }

    /// The argument in a place of the shape; 0 where the shape has none there.
    #[inline(always)]
    pub(super) fn place(self, shape: u64, at: u32) -> u64 {
        let place = (shape >> at) & (PLACES as u64 - 1);
        unsafe { *self.places.cast::<u64>().add(masked::<{ PLACES as u64 - 1 }>(place) as usize) }
    }

    /// End of the tail; see [`Slot::notes`].
    #[inline(always)]
    pub(super) fn pos(self) -> u64 {
        unsafe { core::ptr::read_volatile(self.slot.notes::<u64>()) }
    }

    /// Moves it.
    #[inline(always)]
    pub(super) fn set_pos(self, pos: u64) {
        unsafe { core::ptr::write_volatile(self.slot.notes::<u64>(), pos) };
    }

    /// The value, of which the verifier knows nothing any more. `place` is one of the notes beside the first.
    #[inline(always)]
    pub(super) fn forget<const PLACE: usize>(self, value: u64) -> u64 {
        unsafe {
            let at = self.slot.notes::<[u64; 8]>().cast::<u64>().add(PLACE);
            core::ptr::write_volatile(at, value);
            core::ptr::read_volatile(at)
        }
    }

    /// What the call was given in a place.
    #[inline(always)]
    pub(super) fn argument(self, place: usize) -> u64 {
        unsafe { (*self.places)[place] }
    }

    /// Whether the shape names a place there.
    #[inline(always)]
    pub(super) fn has(self, shape: u64, at: u32) -> bool {
        (shape >> at) & 0xf != 0
    }
}
