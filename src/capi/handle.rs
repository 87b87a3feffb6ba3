//! Handles as the host holds them: addresses that are handed out once and never again.
//!
//! A handle is looked up by its address and never dereferenced. A freed handle, a handle of another
//! type or any other pointer is therefore found out for certain, and freeing twice can never hit a
//! newer handle. The price is two bytes for each handle that was ever made.

use crate::engine::Canceller;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, RwLock};

/// The bytes behind a handle's address. Only a canceller uses them: its flag must be reachable from
/// a signal handler, without a lock.
pub(super) struct Slot {
    live_canceller: AtomicBool,
    cancelled: AtomicBool,
}

const SLOTS_PER_PAGE: usize = 2048;

struct Page {
    slots: [Slot; SLOTS_PER_PAGE],
    next: OnceLock<Box<Page>>,
}

static FIRST_PAGE: Page = Page::new();
static SLOTS_TAKEN: AtomicUsize = AtomicUsize::new(0);

impl Page {
    const fn new() -> Self {
        Self {
            slots: [const { Slot::new() }; SLOTS_PER_PAGE],
            next: OnceLock::new(),
        }
    }

    fn position_of(&self, address: usize) -> Option<usize> {
        let offset = address.checked_sub(self.slots.as_ptr().addr())?;
        let position = offset / size_of::<Slot>();
        (offset % size_of::<Slot>() == 0 && position < SLOTS_PER_PAGE).then_some(position)
    }
}

impl Slot {
    const fn new() -> Self {
        Self {
            live_canceller: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
        }
    }

    /// A slot that nobody has had before.
    fn take() -> &'static Slot {
        let number = SLOTS_TAKEN.fetch_add(1, Ordering::Relaxed);
        let mut page = &FIRST_PAGE;
        for _ in 0..number / SLOTS_PER_PAGE {
            page = page.next.get_or_init(|| Box::new(Page::new()));
        }
        &page.slots[number % SLOTS_PER_PAGE]
    }

    /// The slot at `address`, if it is one. Takes no lock: async-signal-safe.
    fn at(address: usize) -> Option<&'static Slot> {
        let mut page = &FIRST_PAGE;
        loop {
            if let Some(position) = page.position_of(address) {
                return Some(&page.slots[position]);
            }
            page = page.next.get()?;
        }
    }

    fn address(&'static self) -> *const Slot {
        self
    }

    /// Makes a canceller's handle.
    pub fn new_canceller() -> *const Slot {
        let slot = Slot::take();
        slot.live_canceller.store(true, Ordering::Release);
        slot.address()
    }

    /// The slot of a canceller that is not freed. Takes no lock: async-signal-safe.
    pub fn canceller<H>(handle: *const H) -> Option<&'static Slot> {
        Slot::at(handle.addr()).filter(|slot| slot.live_canceller.load(Ordering::Acquire))
    }

    /// Ends the handle; the flag stays for the runs that share it.
    pub fn free_canceller(&self) {
        self.live_canceller.store(false, Ordering::Release);
    }

    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// The engine's view of the flag.
    pub fn flag(&'static self) -> Canceller {
        Canceller::of_static(&self.cancelled)
    }
}

/// The live handles of one type.
pub(super) struct Registry<T>(RwLock<BTreeMap<usize, Arc<T>>>);

impl<T> Registry<T> {
    pub const fn new() -> Self {
        Self(RwLock::new(BTreeMap::new()))
    }

    /// Makes a handle of `object`.
    pub fn insert<H>(&self, object: T) -> *mut H {
        let address = Slot::take().address();
        let mut live = self.0.write().unwrap_or_else(|e| e.into_inner());
        live.insert(address.addr(), Arc::new(object));
        address.cast_mut().cast()
    }

    /// The object of a live handle of this type. It stays whole until the caller lets go, even if
    /// another thread frees the handle meanwhile.
    pub fn get<H>(&self, handle: *const H) -> Option<Arc<T>> {
        let live = self.0.read().unwrap_or_else(|e| e.into_inner());
        live.get(&handle.addr()).cloned()
    }

    /// Ends a handle. The object is returned, to be dropped outside the lock: its drop may call the
    /// host, which may call back.
    pub fn remove<H>(&self, handle: *const H) -> Option<Arc<T>> {
        let mut live = self.0.write().unwrap_or_else(|e| e.into_inner());
        live.remove(&handle.addr())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_never_handed_out_twice() {
        let registry = Registry::new();
        let mut seen = std::collections::HashSet::new();
        for i in 0..2 * SLOTS_PER_PAGE {
            let handle: *mut u8 = registry.insert(i);
            assert!(seen.insert(handle.addr()));
            assert_eq!(registry.get(handle).as_deref(), Some(&i));
            assert!(registry.remove(handle).is_some());
            assert!(registry.remove(handle).is_none());
            assert!(registry.get(handle).is_none());
        }
    }

    #[test]
    fn a_canceller_is_told_from_any_other_address() {
        let canceller = Slot::new_canceller();
        let inside = canceller.wrapping_byte_add(1);
        let other: *mut Slot = Registry::new().insert(());
        assert!(Slot::canceller(canceller).is_some());
        for stranger in [inside, other.cast_const(), std::ptr::null()] {
            assert!(Slot::canceller(stranger).is_none());
        }
        assert!(Slot::canceller(usize::MAX as *const Slot).is_none());
        Slot::canceller(canceller).unwrap().free_canceller();
        assert!(Slot::canceller(canceller).is_none());
    }
}
