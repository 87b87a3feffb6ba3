//! Pinned host memory through which uploads go, used again in a ring.
//!
//! The host copies into the ring and returns; the device fetches later, in order. A slot is filled
//! again only after the device has fetched all that was put into it, which an event marks. Small
//! uploads share a slot, so the host can run many of them ahead.

/// Bytes of a slot.
pub(super) const SLOT_BYTES: usize = 4 << 20;
pub(super) const SLOTS: usize = 4;
/// Where pieces start.
const ALIGNMENT: usize = 256;

/// Which bytes of the ring come next. Plain numbers: the memory and the events are the driver's.
#[derive(Debug, Default)]
pub(super) struct Ring {
    slot: usize,
    used: usize,
    /// Slots that were left with an event behind their last piece.
    marked: [bool; SLOTS],
}

/// A part of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// A slot that is full: record its event now, after the pieces before this one.
    pub leaves: Option<usize>,
    /// A slot to be filled again: wait for its event first.
    pub waits: Option<usize>,
    /// First byte in the ring.
    pub offset: usize,
    pub len: usize,
}

impl Ring {
    /// A place for the first part of `wanted` > 0 bytes.
    pub(super) fn take(&mut self, wanted: usize) -> Piece {
        let mut piece = Piece {
            leaves: None,
            waits: None,
            offset: 0,
            len: 0,
        };
        let start = self.used.next_multiple_of(ALIGNMENT);
        // What would fit into a slot is not cut for the sake of the rest of this one.
        let whole = wanted.min(SLOT_BYTES);
        if start + whole > SLOT_BYTES {
            piece.leaves = Some(self.slot);
            self.marked[self.slot] = true;
            self.slot = (self.slot + 1) % SLOTS;
            if self.marked[self.slot] {
                piece.waits = Some(self.slot);
            }
            self.used = 0;
        } else {
            self.used = start;
        }
        piece.offset = self.slot * SLOT_BYTES + self.used;
        piece.len = whole;
        self.used += whole;
        piece
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_uploads_share_a_slot_and_do_not_overlap() {
        let mut ring = Ring::default();
        let mut end = 0;
        for len in [1, 256, 3, 1000] {
            let piece = ring.take(len);
            assert_eq!((piece.leaves, piece.waits, piece.len), (None, None, len));
            assert!(piece.offset >= end && piece.offset % ALIGNMENT == 0);
            end = piece.offset + len;
        }
    }

    #[test]
    fn a_large_upload_goes_slot_by_slot() {
        let mut ring = Ring::default();
        let mut left = 2 * SLOT_BYTES + 5;
        let mut lengths = Vec::new();
        while left > 0 {
            let piece = ring.take(left);
            assert_eq!(piece.offset % SLOT_BYTES, 0);
            lengths.push(piece.len);
            left -= piece.len;
        }
        assert_eq!(lengths, [SLOT_BYTES, SLOT_BYTES, 5]);
    }

    /// Follows the ring as the device would: bytes put into a slot are on their way until the slot's
    /// event, recorded after them, was waited for.
    #[test]
    fn no_slot_is_filled_again_before_its_event() {
        let mut ring = Ring::default();
        // For each slot: pieces on their way, and whether an event was recorded after them.
        let mut pending = [(0usize, false); SLOTS];
        let mut waits = 0;
        for round in 0..1000usize {
            let wanted = 1 + round * 977_773 % (3 * SLOT_BYTES / 2);
            let piece = ring.take(wanted);
            assert!(piece.len <= wanted && piece.len > 0);
            if let Some(slot) = piece.leaves {
                pending[slot].1 = true;
            }
            if let Some(slot) = piece.waits {
                assert!(pending[slot].1, "waits for an event that was not recorded");
                pending[slot] = (0, false);
                waits += 1;
            }
            let slot = piece.offset / SLOT_BYTES;
            assert!(piece.offset % SLOT_BYTES + piece.len <= SLOT_BYTES);
            assert!(!pending[slot].1, "filled again while on its way");
            if piece.offset % SLOT_BYTES == 0 {
                assert_eq!(
                    pending[slot].0, 0,
                    "its start is filled again while on its way"
                );
            }
            pending[slot].0 += 1;
        }
        assert!(waits > 100, "the ring went round: {waits}");
    }
}
