//! A file that is written in large blocks past the page cache.
//!
//! A checkpoint is written while training has every core, and the cache's copy of it would take more of
//! their time than all else together (1.6 GB for 135M parameters), besides pushing out what is of more
//! use. Blocks go to the device from where they stand (`O_DIRECT`, where the file system has it); the end
//! of the file, which fills none, goes through the cache.

use std::fs::File;
use std::io::{Error, ErrorKind, Result, Write};

use bytemuck::{Pod, Zeroable};

/// What a device asks of addresses, lengths and offsets at most.
const PAGE: usize = 4096;
/// Pages of a block: a mebibyte.
const PAGES: usize = 256;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// A new file and the block that is being filled. Dropped without [`BlockFile::finish`], that block is
/// lost.
pub(super) struct BlockFile {
    file: File,
    block: Vec<Page>,
    /// Bytes of the block that are filled.
    filled: usize,
    mode: Mode,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// No block has been written yet.
    New,
    /// Past the cache.
    Direct,
    Cached,
}

impl BlockFile {
    /// Of an empty file.
    pub fn new(file: File) -> Self {
        Self {
            file,
            block: vec![Page::zeroed(); PAGES],
            filled: 0,
            mode: Mode::New,
        }
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let free: &mut [u8] = &mut bytemuck::cast_slice_mut(&mut self.block)[self.filled..];
            let (now, later) = bytes.split_at(bytes.len().min(free.len()));
            free[..now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
            if self.filled == PAGES * PAGE {
                if self.mode == Mode::New {
                    self.set_direct(true);
                }
                self.write_block()?;
            }
        }
        Ok(())
    }

    /// Writes what is left and waits until all of it is on the device.
    pub fn finish(&mut self) -> Result<()> {
        if self.filled > 0 {
            self.set_direct(false);
            self.write_block()?;
        }
        self.file.sync_all()
    }

    fn write_block(&mut self) -> Result<()> {
        let mut done = 0;
        while done < self.filled {
            let rest: &[u8] = &bytemuck::cast_slice(&self.block)[done..self.filled];
            match self.file.write(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => done += written,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if self.mode == Mode::Direct && is_refused(&e) => self.set_direct(false),
                Err(e) => return Err(e),
            }
            if !done.is_multiple_of(PAGE) {
                // What is left no longer lies where the device wants it.
                self.set_direct(false);
            }
        }
        self.filled = 0;
        Ok(())
    }

    fn set_direct(&mut self, direct: bool) {
        self.mode = match pass_the_cache(&self.file, direct) && direct {
            true => Mode::Direct,
            false => Mode::Cached,
        };
    }
}

/// Whether the system does as told.
#[cfg(target_os = "linux")]
fn pass_the_cache(file: &File, yes: bool) -> bool {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    let changed = fcntl_getfl(file).and_then(|mut flags| {
        flags.set(OFlags::DIRECT, yes);
        fcntl_setfl(file, flags)
    });
    changed.is_ok()
}

#[cfg(not(target_os = "linux"))]
fn pass_the_cache(_: &File, _: bool) -> bool {
    false
}

/// Some file systems take the flag and refuse the write.
fn is_refused(error: &Error) -> bool {
    error.kind() == ErrorKind::InvalidInput
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_appended_is_in_the_file_whatever_the_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..3_500_017u32).map(|i| (i % 251) as u8).collect();
        for (i, size) in [1 << 20, 4096, 1_000_003, 3_500_017]
            .into_iter()
            .enumerate()
        {
            for len in [0, 1, PAGES * PAGE, content.len()] {
                let path = dir.path().join(format!("{i}-{len}"));
                let mut file = BlockFile::new(File::create_new(&path).unwrap());
                for piece in content[..len].chunks(size) {
                    file.append(piece).unwrap();
                }
                file.finish().unwrap();
                assert!(
                    std::fs::read(&path).unwrap() == content[..len],
                    "{size} {len}"
                );
            }
        }
    }
}
