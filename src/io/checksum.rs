//! What a file held when it was written: its length and a checksum of each of its segments, so that any
//! change since is noticed and the tensor that it hit is named.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

/// A file of a folder as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSummary {
    /// Name relative to the folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Its parts from the start on, end to end. A safetensors file has its header and each tensor, any
    /// other file is one segment.
    pub segments: Vec<Segment>,
}

/// A part of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The tensor; `None` for what belongs to none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its length.
    pub bytes: u64,
    /// BLAKE3 of its bytes, in hexadecimal digits.
    pub blake3: String,
}

/// Bytes that are read and hashed at a time.
const CHUNK: usize = 1 << 20;

/// Whether the file in `folder` is still what `summary` says. Segments are read in parallel, on the
/// calling thread's pool where it has one.
///
/// # Errors
/// [`ErrorKind::Checkpoint`] naming the file, and the tensor where it is one, when it is missing, has
/// another length or another content; [`ErrorKind::Io`] when it cannot be read.
pub fn verify(folder: impl AsRef<Path>, summary: &FileSummary) -> Result<()> {
    let path = folder.as_ref().join(&summary.name);
    let differs =
        |what: String| Error::new(ErrorKind::Checkpoint, format!("{} {what}", path.display()));
    let file = match File::open(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(differs("is missing".into()));
        }
        opened => opened.map_err(|e| Error::io(&path, e))?,
    };
    let bytes = file.metadata().map_err(|e| Error::io(&path, e))?.len();
    if bytes != summary.bytes {
        let what = match bytes < summary.bytes {
            true => "is truncated",
            false => "is too long",
        };
        return Err(differs(format!(
            "{what}: it has {bytes} bytes and was written with {}",
            summary.bytes
        )));
    }
    let mut end = 0u64;
    let segments: Vec<(u64, &Segment)> = (summary.segments.iter())
        .map(|segment| {
            let start = end;
            end = end.saturating_add(segment.bytes);
            (start, segment)
        })
        .collect();
    if end != bytes {
        return Err(differs(format!(
            "has {bytes} bytes, its segments {end}: they do not cover it"
        )));
    }
    let changed = |(i, &(start, segment)): (usize, &(u64, &Segment))| -> Result<Option<usize>> {
        let hash = hash_range(&file, start, segment.bytes).map_err(|e| Error::io(&path, e))?;
        Ok((hash.to_hex().as_str() != segment.blake3).then_some(i))
    };
    // The first of all, so that the message does not depend on the threads.
    let first = (segments.par_iter().enumerate())
        .map(changed)
        .try_reduce(|| None, |a, b| Ok(a.into_iter().chain(b).min()))?;
    match first.map(|i| &segments[i].1.name) {
        None => Ok(()),
        Some(Some(tensor)) => Err(differs(format!(
            "is damaged: tensor `{tensor}` is not what was written"
        ))),
        Some(None) => Err(differs("is damaged: it is not what was written".into())),
    }
}

fn hash_range(file: &File, start: u64, bytes: u64) -> std::io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; CHUNK.min(bytes as usize)];
    let mut done = 0;
    while done < bytes {
        let chunk = &mut buffer[..CHUNK.min((bytes - done) as usize)];
        file.read_exact_at(chunk, start + done)?;
        hasher.update(chunk);
        done += chunk.len() as u64;
    }
    Ok(hasher.finalize())
}
