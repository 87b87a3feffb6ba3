//! Cancelling from another thread.

use super::guard::catch;
use super::handle::Slot;

/// Asks runs to stop, from any thread. Made before the run, so that loading can be cancelled too.
pub struct sft_canceller {
    _opaque: [u8; 0],
}

/// Makes a canceller. Never NULL, unless there is no memory. Free it by sft_canceller_free.
#[unsafe(no_mangle)]
pub extern "C" fn sft_canceller_new() -> *mut sft_canceller {
    catch(std::ptr::null(), Slot::new_canceller)
        .cast_mut()
        .cast()
}

/// Asks every run that shares this canceller to stop, for good: a running update is finished first,
/// then the run ends with SFT_STOP_CANCELLED; a call that loads or evaluates ends with
/// SFT_ERR_CANCELLED. May be called from any thread and from a signal handler, at any time, more
/// than once. NULL or a freed canceller does nothing.
#[unsafe(no_mangle)]
pub extern "C" fn sft_canceller_cancel(canceller: *const sft_canceller) {
    // No guard: this takes no lock, allocates nothing and cannot panic, as a signal handler needs.
    if let Some(slot) = Slot::canceller(canceller) {
        slot.cancel();
    }
}

/// Frees a canceller. Configurations and runs that share it keep what they need of it, so it may be
/// freed before or after them. NULL or a freed canceller does nothing.
#[unsafe(no_mangle)]
pub extern "C" fn sft_canceller_free(canceller: *mut sft_canceller) {
    if let Some(slot) = Slot::canceller(canceller.cast_const()) {
        slot.free_canceller();
    }
}
