//! A file under construction, with checksums of its segments on the way.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

#[cfg(test)]
use super::atomic::test_disk;
use super::block_file::BlockFile;
use super::checksum::{FileSummary, Segment};
use crate::{Error, ErrorKind, Result};

/// A buffered file whose errors name the destination.
pub struct FileWriter<'a> {
    file: BlockFile,
    shown: PathBuf,
    checksums: Option<Checksums<'a>>,
}

/// The summary so far, and the list that it joins once the file is whole.
struct Checksums<'a> {
    summary: FileSummary,
    open: OpenSegment,
    all: &'a mut Vec<FileSummary>,
}

#[derive(Default)]
struct OpenSegment {
    name: Option<String>,
    bytes: u64,
    hasher: blake3::Hasher,
}

impl<'a> FileWriter<'a> {
    /// A new file `at`, which will stand where `shown` says. `summary` asks for checksums: the file's
    /// name in it, and the list that it joins.
    pub(super) fn create(
        at: &Path,
        shown: &Path,
        summary: Option<(&str, &'a mut Vec<FileSummary>)>,
    ) -> Result<Self> {
        let file = File::create_new(at).map_err(|e| Error::io(shown, e))?;
        let checksums = summary.map(|(name, all)| Checksums {
            summary: FileSummary {
                name: name.to_owned(),
                bytes: 0,
                segments: Vec::new(),
            },
            open: OpenSegment::default(),
            all,
        });
        Ok(Self {
            file: BlockFile::new(file),
            shown: shown.to_owned(),
            checksums,
        })
    }

    /// Tells other writers, as long as what it returns lives, that the file is in use. Not every file
    /// system can lock; the price is a leftover that stays.
    pub(super) fn lock(&self) -> Option<File> {
        let file = self.file.file().try_clone().ok()?;
        let _ = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        Some(file)
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] naming the destination.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        #[cfg(test)]
        test_disk::take(bytes.len()).map_err(|e| self.error(e))?;
        if let Some(checksums) = &mut self.checksums {
            checksums.open.bytes += bytes.len() as u64;
            checksums.open.hasher.update(bytes);
        }
        self.file.append(bytes).map_err(|e| self.error(e))
    }

    /// What follows is a segment of its own in the file's summary: the tensor `name`. What was written
    /// before the first call is a segment without a name.
    pub fn begin_segment(&mut self, name: &str) {
        if let Some(checksums) = &mut self.checksums {
            checksums.close_segment();
            checksums.open.name = Some(name.to_owned());
        }
    }

    /// Where the content will stand.
    pub fn destination(&self) -> &Path {
        &self.shown
    }

    /// Flushes to the device. Without it the content may be lost.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] naming the destination.
    pub fn finish(mut self) -> Result<()> {
        self.file.finish().map_err(|e| self.error(e))?;
        if let Some(mut checksums) = self.checksums {
            checksums.close_segment();
            checksums.all.push(checksums.summary);
        }
        Ok(())
    }

    fn error(&self, source: std::io::Error) -> Error {
        Error::new(
            ErrorKind::Io,
            format!("cannot write {}", self.shown.display()),
        )
        .with_source(source)
    }
}

impl Checksums<'_> {
    fn close_segment(&mut self) {
        let segment = std::mem::take(&mut self.open);
        self.summary.bytes += segment.bytes;
        self.summary.segments.push(Segment {
            name: segment.name,
            bytes: segment.bytes,
            blake3: segment.hasher.finalize().to_hex().to_string(),
        });
    }
}
