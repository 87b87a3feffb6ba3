//! Tokenised rows on disk: written once, mapped afterwards, so that memory does not grow with the
//! data set and a second run starts at once.
//!
//! One file: header, token section (ids and labels of each row), row index. It is written under
//! another name and renamed, and carries a checksum over everything, so a torn or damaged file is
//! noticed and built anew. Length limits and packing are applied when reading: they do not change
//! the file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytemuck::{Pod, Zeroable};
use memmap2::Mmap;

use super::batch::IGNORE;
use crate::error::{Error, ErrorKind, Result};

/// Identifies the content that rows were made from.
pub(super) type Key = [u8; 32];

const MAGIC: [u8; 8] = *b"SFTROWS\x02";

/// Integers are in the byte order of the machine; a file from another kind fails the checksum of
/// its magic and is built anew.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    rows: u64,
    /// `i32`s in the token section.
    tokens: u64,
    key: Key,
    /// blake3 of everything after the header: the same for the same rows, wherever they came from.
    content: [u8; 32],
    /// blake3 of the fields above.
    checksum: [u8; 32],
}

/// Where a row lies and what is known of it without reading its tokens.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct RowIndex {
    /// Start in the token section.
    ids: u64,
    /// Start in the token section; equal to `ids` when every token is supervised.
    labels: u64,
    /// Line in the file, from 1.
    pub line: u64,
    /// Tokens.
    pub len: u32,
    /// First position whose label is not [`IGNORE`]; `len` when there is none.
    pub first_supervised: u32,
    /// Labels other than [`IGNORE`].
    pub supervised: u32,
    /// Number of the file.
    pub file: u32,
    /// [`RowFlags`] as bits.
    flags: u32,
    reserved: u32,
}

/// What was noticed when a row was tokenised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RowFlags {
    /// The tokens of the prompt alone are not how the whole row begins.
    pub prompt_diverges: bool,
    /// The end-of-sequence token is not among the supervised labels.
    pub eos_untrained: bool,
}

impl RowIndex {
    pub fn flags(&self) -> RowFlags {
        RowFlags {
            prompt_diverges: self.flags & 1 != 0,
            eos_untrained: self.flags & 2 != 0,
        }
    }
}

const HEADER: usize = size_of::<Header>();
const ROW: usize = size_of::<RowIndex>();

/// A finished, mapped file of rows.
#[derive(Debug)]
pub(super) struct RowStore {
    map: Mmap,
    rows: usize,
    tokens: usize,
    content: [u8; 32],
}

impl RowStore {
    /// Maps the file at `path` if it is whole and was made from the content of `key`; `None` when
    /// it does not exist or has to be built anew.
    pub fn open(path: &Path, key: &Key) -> Result<Option<Self>> {
        match File::open(path) {
            Ok(file) => Self::map(&file, key).map_err(|e| Error::io(path, e)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(path, e)),
        }
    }

    fn map(file: &File, key: &Key) -> io::Result<Option<Self>> {
        if file.metadata()?.len() < HEADER as u64 {
            return Ok(None);
        }
        // SAFETY: the file is ours: either it has no name any more, or it is only ever replaced by
        // renaming another over it, which leaves this mapping on the old content. Someone who
        // truncates files in the cache folder by hand while a run reads them stops that run.
        let map = unsafe { Mmap::map(file)? };
        let header: Header = bytemuck::pod_read_unaligned(&map[..HEADER]);
        let sizes = (header.tokens as usize)
            .checked_mul(4)
            .zip((header.rows as usize).checked_mul(ROW));
        let whole = sizes
            .and_then(|(tokens, rows)| tokens.checked_next_multiple_of(8)?.checked_add(rows))
            .and_then(|body| body.checked_add(HEADER));
        if header.magic != MAGIC || header.key != *key || whole != Some(map.len()) {
            return Ok(None);
        }
        if blake3::hash(&map[..HEADER - 32]) != header.checksum
            || blake3::hash(&map[HEADER..]) != header.content
        {
            return Ok(None);
        }
        let store = Self {
            rows: header.rows as usize,
            tokens: header.tokens as usize,
            content: header.content,
            map,
        };
        let in_bounds = |start: u64, len: u32| {
            start
                .checked_add(len.into())
                .is_some_and(|end| end <= header.tokens)
        };
        let sound = store
            .index()
            .iter()
            .all(|r| in_bounds(r.ids, r.len) && in_bounds(r.labels, r.len));
        Ok(sound.then_some(store))
    }

    /// One entry for each row.
    pub fn index(&self) -> &[RowIndex] {
        let start = HEADER + (self.tokens * 4).next_multiple_of(8);
        bytemuck::cast_slice(&self.map[start..start + self.rows * ROW])
    }

    /// A hash of all rows: ids, labels and where they were read.
    pub fn content(&self) -> [u8; 32] {
        self.content
    }

    /// Ids and labels of row `index`.
    pub fn row(&self, index: usize) -> (&[i32], &[i32]) {
        let tokens: &[i32] = bytemuck::cast_slice(&self.map[HEADER..HEADER + self.tokens * 4]);
        let row = self.index()[index];
        let slice = |start: u64| &tokens[start as usize..start as usize + row.len as usize];
        (slice(row.ids), slice(row.labels))
    }
}

/// Writes rows one after the other. What is unfinished is removed when dropped.
pub(super) struct RowWriter {
    body: BufWriter<File>,
    /// The index grows beside the tokens and is appended at the end.
    index: BufWriter<File>,
    key: Key,
    rows: u64,
    tokens: u64,
    /// Where the body is being written, and where it goes; `None`: it has no name.
    names: Option<(PathBuf, PathBuf)>,
}

impl RowWriter {
    /// A writer whose file will lie at `path`; with `None` it has no name and goes with the process.
    pub fn new(path: Option<&Path>, key: Key) -> Result<Self> {
        let folder = match path.and_then(Path::parent) {
            Some(folder) => {
                fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
                folder.to_path_buf()
            }
            None => std::env::temp_dir(),
        };
        let index = nameless(&folder)?;
        let (body, names) = match path {
            Some(path) => {
                let (file, temporary) = create(&folder)?;
                (file, Some((temporary, path.to_path_buf())))
            }
            None => (nameless(&folder)?, None),
        };
        let mut writer = Self {
            body: BufWriter::with_capacity(1 << 20, body),
            index: BufWriter::new(index),
            key,
            rows: 0,
            tokens: 0,
            names,
        };
        let empty = writer.header([0; 32]);
        let written = writer.body.write_all(bytemuck::bytes_of(&empty));
        written.map_err(|e| writer.failed(e))?;
        Ok(writer)
    }

    /// Adds a row that came from `line` of file number `file`.
    pub fn push(
        &mut self,
        ids: &[i32],
        labels: &[i32],
        file: u32,
        line: u64,
        flags: RowFlags,
    ) -> Result<()> {
        let len = u32::try_from(ids.len())
            .map_err(|_| Error::new(ErrorKind::Data, "a row has more than 4294967295 tokens"))?;
        let first = labels.iter().position(|&l| l != IGNORE);
        let start = self.tokens;
        let row = RowIndex {
            ids: start,
            labels: match ids == labels {
                true => start,
                false => start + u64::from(len),
            },
            line,
            len,
            first_supervised: first.map_or(len, |i| i as u32),
            supervised: labels.iter().filter(|&&l| l != IGNORE).count() as u32,
            file,
            flags: u32::from(flags.prompt_diverges) | u32::from(flags.eos_untrained) << 1,
            reserved: 0,
        };
        self.write_tokens(ids)?;
        if row.labels != row.ids {
            self.write_tokens(labels)?;
        }
        let written = self.index.write_all(bytemuck::bytes_of(&row));
        written.map_err(|e| self.failed(e))?;
        self.rows += 1;
        Ok(())
    }

    /// Completes the file, gives it its name and maps it.
    pub fn finish(mut self) -> Result<RowStore> {
        self.complete().map_err(|e| self.failed(e))
    }

    fn complete(&mut self) -> io::Result<RowStore> {
        if self.tokens % 2 == 1 {
            self.body.write_all(&[0; 4])?; // the index begins at a multiple of 8
        }
        self.index.flush()?;
        self.index.get_mut().seek(SeekFrom::Start(0))?;
        io::copy(self.index.get_mut(), &mut self.body)?;

        self.body.flush()?;
        let file = self.body.get_mut();
        file.seek(SeekFrom::Start(HEADER as u64))?;
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(&*file)?;
        let header = self.header(*hasher.finalize().as_bytes());
        let file = self.body.get_mut();
        file.seek(SeekFrom::Start(0))?;
        file.write_all(bytemuck::bytes_of(&header))?;
        if let Some((temporary, path)) = &self.names {
            file.sync_all()?;
            fs::rename(temporary, path)?;
        }
        let store = RowStore::map(file, &self.key)?;
        self.names = None;
        store.ok_or_else(|| io::Error::other("the rows just written do not read back the same"))
    }

    fn header(&self, content: [u8; 32]) -> Header {
        let mut header = Header {
            magic: MAGIC,
            rows: self.rows,
            tokens: self.tokens,
            key: self.key,
            content,
            checksum: [0; 32],
        };
        header.checksum = blake3::hash(&bytemuck::bytes_of(&header)[..HEADER - 32]).into();
        header
    }

    fn write_tokens(&mut self, tokens: &[i32]) -> Result<()> {
        self.tokens += tokens.len() as u64;
        let written = self.body.write_all(bytemuck::cast_slice(tokens));
        written.map_err(|e| self.failed(e))
    }

    fn failed(&self, e: io::Error) -> Error {
        let place = match &self.names {
            Some((_, path)) => path.clone(),
            None => std::env::temp_dir(),
        };
        Error::io(place, e).context("writing the tokenised rows")
    }
}

impl Drop for RowWriter {
    fn drop(&mut self) {
        if let Some((temporary, _)) = &self.names {
            let _ = fs::remove_file(temporary);
        }
    }
}

/// A new file in `folder` under a name that no other process or thread uses.
fn create(folder: &Path) -> Result<(File, PathBuf)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let name = format!(
            ".sft-rows-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = folder.join(name);
        let mut options = OpenOptions::new();
        match options.read(true).write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((file, path)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Error::io(path, e)),
        }
    }
}

/// A new file in `folder` that is gone when closed.
fn nameless(folder: &Path) -> Result<File> {
    let (file, path) = create(folder)?;
    fs::remove_file(&path).map_err(|e| Error::io(path, e))?;
    Ok(file)
}
