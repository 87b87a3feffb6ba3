//! The order of the two streams: work follows the uploads that were asked for before it, and an upload
//! follows the work that may still read what it overwrites.

use super::NvidiaDriver;
use crate::error::Result;
use cudarc::driver::sys;

impl NvidiaDriver {
    /// Before work in the compute stream: it follows the uploads so far.
    pub(super) fn follow_uploads(&mut self) -> Result<()> {
        if self.uploads_pending {
            // SAFETY: event and streams are alive while `self` is; the context is current.
            let codes = unsafe {
                [
                    sys::cuEventRecord(self.copied, self.copy),
                    sys::cuStreamWaitEvent(self.compute, self.copied, 0),
                ]
            };
            for code in codes {
                self.check(code, "ordering uploads before work")?;
            }
            self.uploads_pending = false;
        }
        self.work_pending = true;
        Ok(())
    }

    /// Before an upload: it follows the work so far, which may read what it overwrites.
    pub(super) fn follow_work(&mut self) -> Result<()> {
        if self.work_pending {
            // SAFETY: as above.
            let codes = unsafe {
                [
                    sys::cuEventRecord(self.computed, self.compute),
                    sys::cuStreamWaitEvent(self.copy, self.computed, 0),
                ]
            };
            for code in codes {
                self.check(code, "ordering an upload after work")?;
            }
            self.work_pending = false;
        }
        self.uploads_pending = true;
        Ok(())
    }

    /// Copies `from` to the device by way of the ring.
    pub(super) fn upload(&mut self, to: u64, from: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < from.len() {
            let piece = self.ring.take(from.len() - done);
            if let Some(slot) = piece.leaves {
                // SAFETY: event and stream are alive while `self` is; the context is current.
                let code = unsafe { sys::cuEventRecord(self.fetched[slot], self.copy) };
                self.check(code, "an upload")?;
            }
            if let Some(slot) = piece.waits {
                // SAFETY: as above; the event was recorded, as the ring's test shows.
                let code = unsafe { sys::cuEventSynchronize(self.fetched[slot]) };
                self.check(code, "waiting for earlier uploads")?;
            }
            let part = &from[done..done + piece.len];
            // SAFETY: the piece lies within the pinned memory, and the device has fetched what was
            // there before; see `staging`. The target is the caller's to name.
            let code = unsafe {
                let pinned = self.pinned.add(piece.offset);
                pinned.copy_from_nonoverlapping(part.as_ptr(), part.len());
                sys::cuMemcpyHtoDAsync_v2(to + done as u64, pinned.cast(), part.len(), self.copy)
            };
            self.check(code, "an upload")?;
            done += piece.len;
        }
        Ok(())
    }

    /// Waits for everything that was asked for.
    pub(super) fn synchronize(&mut self, doing: &str) -> Result<()> {
        for stream in [self.copy, self.compute] {
            // SAFETY: the stream is alive while `self` is; the context is current.
            let code = unsafe { sys::cuStreamSynchronize(stream) };
            self.check(code, doing)?;
        }
        Ok(())
    }
}
