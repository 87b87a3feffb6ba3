//! The weights of a model folder: `model.safetensors`, or shards under
//! `model.safetensors.index.json`.
//!
//! Reading uses positioned reads straight into the destination rather than a memory map: the pages
//! of a map count as the process's own memory, and a file that shrinks under a map kills the host. A
//! part of a tensor can be read by itself, so that threads share the work in pieces that suit the memory
//! they write to.
//! Writing streams: a tensor is asked for in pieces, converted and appended, so saving needs a few
//! megabytes beyond the weights themselves.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde_json::{Map, Value, json};

use super::atomic::AtomicFolder;
use super::file_writer::FileWriter;
use crate::dtype::{DType, bf16, f16};
use crate::{Error, ErrorKind, Result};

#[cfg(target_endian = "big")]
compile_error!("tensors are little-endian on disk and moved here without conversion");

/// What the files of a model's weights begin with.
const MODEL: &str = "model";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Elements that one thread reads, or that one call of a writer's source delivers, at a time.
const CHUNK: usize = 1 << 18;

/// Elements that are read and looked at while they are in the cache.
const CACHED: usize = 1 << 15;

/// Shards are at most this long by default, as in the peer.
pub const DEFAULT_SHARD_BYTES: u64 = 50_000_000_000;

/// True for the name of a file that holds weights of a whole model or their index.
pub fn is_weight_file(name: &str) -> bool {
    let shard = name
        .strip_prefix("model-")
        .and_then(|n| n.strip_suffix(".safetensors"));
    name == SINGLE || name == INDEX || shard.is_some()
}

/// The open weight files of a model folder.
#[derive(Debug)]
pub struct WeightFiles {
    folder: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Location>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: File,
}

#[derive(Debug)]
struct Location {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// From the start of the file, in bytes.
    offset: u64,
}

impl WeightFiles {
    /// Opens the weight files of `folder` and reads their headers.
    ///
    /// # Errors
    /// [`ErrorKind::Tensor`] for a missing, truncated or malformed file, or a tensor that two shards
    /// hold; the file and the tensor are named.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        if let Some(weights) = Self::open_stem(folder, MODEL)? {
            return Ok(weights);
        }
        let pickle = folder.join("pytorch_model.bin").is_file()
            || folder.join("pytorch_model.bin.index.json").is_file();
        let hint = match pickle {
            true => {
                "; pytorch_model.bin is a pickle, which is not read: save the model in the \
                 safetensors format"
            }
            false => "",
        };
        Err(Error::new(
            ErrorKind::Tensor,
            format!(
                "{} holds neither {SINGLE} nor {INDEX}{hint}",
                folder.display()
            ),
        ))
    }

    /// Opens `<stem>.safetensors` of `folder`, or its shards under `<stem>.safetensors.index.json`, as
    /// [`write_safetensors`] leaves them. `None` when neither is there.
    ///
    /// # Errors
    /// As [`WeightFiles::open`].
    pub fn open_stem(folder: impl AsRef<Path>, stem: &str) -> Result<Option<Self>> {
        let folder = folder.as_ref();
        let mut weights = Self {
            folder: folder.to_owned(),
            shards: Vec::new(),
            tensors: BTreeMap::new(),
        };
        let single = folder.join(format!("{stem}.safetensors"));
        let index = folder.join(format!("{stem}.safetensors.index.json"));
        if single.is_file() {
            weights.add(&single)?;
        } else if index.is_file() {
            weights.add_indexed(&index)?;
        } else {
            return Ok(None);
        }
        Ok(Some(weights))
    }

    /// Opens one safetensors file.
    ///
    /// # Errors
    /// As [`WeightFiles::open`].
    pub fn open_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut weights = Self {
            folder: path.to_owned(),
            shards: Vec::new(),
            tensors: BTreeMap::new(),
        };
        weights.add(path)?;
        Ok(weights)
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Shape of the tensor `name`, if there is one.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|t| t.shape.as_slice())
    }

    /// Number format of the tensor `name`, if there is one in a format that can be read.
    pub fn dtype(&self, name: &str) -> Option<DType> {
        self.tensors.get(name).and_then(|t| readable(t.dtype))
    }

    /// Reads the tensor `name` as float32 into `out`, whose length is the product of
    /// `expected_shape`.
    ///
    /// # Errors
    /// [`ErrorKind::Tensor`] for a missing tensor, another shape, a format other than float32, float16
    /// or bfloat16, and NaN or infinite values (with the index of the first); [`ErrorKind::Io`] when
    /// reading fails.
    pub fn read_f32(&self, name: &str, expected_shape: &[usize], out: &mut [f32]) -> Result<()> {
        self.read_whole(name, expected_shape, out, true)
    }

    /// As [`WeightFiles::read_f32`], of the elements of the flat tensor from `start` on, as many as
    /// `out` has, on the calling thread.
    ///
    /// # Errors
    /// As [`WeightFiles::read_f32`].
    pub fn read_f32_from(
        &self,
        name: &str,
        expected_shape: &[usize],
        start: usize,
        out: &mut [f32],
    ) -> Result<()> {
        self.read(name, expected_shape, start, out, true)
    }

    /// As [`WeightFiles::read_f32`], but NaN and infinite values are read like any others: for numbers
    /// that were written on purpose, such as the state of an optimizer.
    ///
    /// # Errors
    /// As [`WeightFiles::read_f32`].
    pub fn read_any_f32(&self, name: &str, shape: &[usize], out: &mut [f32]) -> Result<()> {
        self.read_whole(name, shape, out, false)
    }

    /// As [`WeightFiles::read_any_f32`], of the elements from `start` on, on the calling thread.
    ///
    /// # Errors
    /// As [`WeightFiles::read_f32`].
    pub fn read_any_f32_from(
        &self,
        name: &str,
        shape: &[usize],
        start: usize,
        out: &mut [f32],
    ) -> Result<()> {
        self.read(name, shape, start, out, false)
    }

    fn read_whole(&self, name: &str, shape: &[usize], out: &mut [f32], finite: bool) -> Result<()> {
        let len: usize = shape.iter().product();
        if out.len() != len {
            let message = format!(
                "tensor `{name}` of {len} elements does not fit a buffer of {}",
                out.len()
            );
            return Err(Error::new(ErrorKind::Internal, message));
        }
        if out.is_empty() {
            return self.read(name, shape, 0, out, finite);
        }
        read_in_pieces(out, CHUNK, &|start, piece| {
            self.read(name, shape, start, piece, finite)
        })
    }

    fn read(
        &self,
        name: &str,
        expected_shape: &[usize],
        start: usize,
        out: &mut [f32],
        finite: bool,
    ) -> Result<()> {
        let Some(tensor) = self.tensors.get(name) else {
            return Err(Error::new(
                ErrorKind::Tensor,
                format!(
                    "tensor `{name}` is missing from {}, which holds {} tensors",
                    self.folder.display(),
                    self.tensors.len()
                ),
            ));
        };
        let shard = &self.shards[tensor.shard];
        let place = || format!("tensor `{name}` in {}", shard.path.display());
        let wrong = |what: String| Error::new(ErrorKind::Tensor, format!("{} {what}", place()));
        if tensor.shape != expected_shape {
            return Err(wrong(format!(
                "has shape {:?}, expected {expected_shape:?} from config.json",
                tensor.shape
            )));
        }
        let len: usize = expected_shape.iter().product();
        if start + out.len() > len {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("{} has no elements {start}+{}", place(), out.len()),
            ));
        }
        let dtype = readable(tensor.dtype).ok_or_else(|| {
            wrong(format!(
                "has dtype {:?}; float32, float16 and bfloat16 are supported",
                tensor.dtype
            ))
        })?;
        for (i, chunk) in out.chunks_mut(CACHED).enumerate() {
            let first = start + i * CACHED;
            let offset = tensor.offset + (first * dtype.size()) as u64;
            read_chunk(&shard.file, offset, dtype, chunk).map_err(|e| Error::io(&shard.path, e))?;
            // Counted first, which takes many at a time; looked for only when there is one.
            let bad: u32 = chunk.iter().map(|x| u32::from(!x.is_finite())).sum();
            if finite && bad > 0 {
                let at = chunk.iter().position(|x| !x.is_finite()).unwrap_or(0);
                return Err(wrong(format!(
                    "holds {} at {:?}; the weights are damaged",
                    chunk[at],
                    unravel(first + at, expected_shape)
                )));
            }
        }
        Ok(())
    }

    fn add_indexed(&mut self, index_path: &Path) -> Result<()> {
        let broken = |what: &str| {
            Error::new(
                ErrorKind::Tensor,
                format!("{}: {what}", index_path.display()),
            )
        };
        let text = std::fs::read_to_string(index_path).map_err(|e| Error::io(index_path, e))?;
        let index: Value =
            serde_json::from_str(&text).map_err(|e| broken("not valid JSON").with_source(e))?;
        let map = index
            .get("weight_map")
            .and_then(Value::as_object)
            .ok_or_else(|| broken("expected an object under the key `weight_map`"))?;
        let mut tensors_of_file = BTreeMap::<&str, Vec<&str>>::new();
        for (tensor, file) in map {
            let file = file
                .as_str()
                .filter(|f| !f.contains(['/', '\\']))
                .ok_or_else(|| {
                    broken(&format!(
                        "`weight_map.{tensor}` is {file}, expected a file name"
                    ))
                })?;
            tensors_of_file.entry(file).or_default().push(tensor);
        }
        for (file, tensors) in tensors_of_file {
            let path = self.folder.join(file);
            if !path.is_file() {
                return Err(broken(&format!(
                    "shard {file} with tensor `{}` and {} more is missing",
                    tensors[0],
                    tensors.len() - 1
                )));
            }
            self.add(&path)?;
            let shard = self.shards.len() - 1;
            let absent = tensors.iter().find(|&&t| {
                self.tensors
                    .get(t)
                    .is_none_or(|location| location.shard != shard)
            });
            if let Some(tensor) = absent {
                return Err(broken(&format!("tensor `{tensor}` is not in {file}")));
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let (data_start, metadata) = read_header(path, &file)?;
        for (name, info) in metadata.tensors() {
            let location = Location {
                shard: self.shards.len(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                offset: data_start + info.data_offsets.0 as u64,
            };
            if let Some(other) = self.tensors.insert(name.clone(), location) {
                return Err(Error::new(
                    ErrorKind::Tensor,
                    format!(
                        "tensor `{name}` is in both {} and {}",
                        self.shards[other.shard].path.display(),
                        path.display()
                    ),
                ));
            }
        }
        self.shards.push(Shard {
            path: path.to_owned(),
            file,
        });
        Ok(())
    }
}

/// Returns where the data begins and what the header says.
fn read_header(path: &Path, file: &File) -> Result<(u64, Metadata)> {
    let broken =
        |what: String| Error::new(ErrorKind::Tensor, format!("{}: {what}", path.display()));
    let io = |e| Error::io(path, e);
    let file_len = file.metadata().map_err(io)?.len();
    let mut length = [0; 8];
    if file_len < 8 {
        return Err(broken(format!(
            "truncated: {file_len} bytes are no safetensors file"
        )));
    }
    file.read_exact_at(&mut length, 0).map_err(io)?;
    if &length == b"version " {
        return Err(broken(
            "is a Git LFS pointer, not the weights: run `git lfs pull`".into(),
        ));
    }
    let header_len = u64::from_le_bytes(length);
    if header_len > 100_000_000 {
        return Err(broken("not a safetensors file".into()));
    }
    if header_len > file_len - 8 {
        return Err(broken(format!(
            "truncated: the header has {header_len} bytes, the file {file_len}"
        )));
    }
    let mut header = vec![0; header_len as usize];
    file.read_exact_at(&mut header, 8).map_err(io)?;
    let metadata: Metadata = serde_json::from_slice(&header)
        .map_err(|e| broken("the safetensors header is malformed".into()).with_source(e))?;
    let data_start = 8 + header_len;
    let expected = data_start + metadata.data_len() as u64;
    if file_len != expected {
        let what = if file_len < expected {
            "truncated"
        } else {
            "has trailing bytes"
        };
        return Err(broken(format!(
            "{what}: the header describes {expected} bytes, the file has {file_len}"
        )));
    }
    Ok((data_start, metadata))
}

/// Reads `values` in pieces of `len`, `read(start, piece)` each, on the threads of the current pool. The
/// error is that of the first piece that has one, whatever the threads do.
pub(crate) fn read_in_pieces(
    values: &mut [f32],
    len: usize,
    read: &(dyn Fn(usize, &mut [f32]) -> Result<()> + Sync),
) -> Result<()> {
    values
        .par_chunks_mut(len)
        .enumerate()
        .map(|(i, piece)| read(i * len, piece))
        .reduce(|| Ok(()), Result::and)
}

fn readable(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        _ => None,
    }
}

/// Reads at most [`CACHED`] elements.
fn read_chunk(file: &File, offset: u64, dtype: DType, out: &mut [f32]) -> std::io::Result<()> {
    if dtype == DType::F32 {
        return file.read_exact_at(bytemuck::cast_slice_mut(out), offset);
    }
    let mut halves = [0u16; CACHED];
    let halves = &mut halves[..out.len()];
    file.read_exact_at(bytemuck::cast_slice_mut(halves), offset)?;
    match dtype {
        DType::F16 => halves.reinterpret_cast::<f16>().convert_to_f32_slice(out),
        _ => {
            let widened = halves
                .iter()
                .map(|&half| f32::from_bits(u32::from(half) << 16));
            out.iter_mut()
                .zip(widened)
                .for_each(|(to, wide)| *to = wide);
        }
    }
    Ok(())
}

/// The coordinates of a flat index.
fn unravel(mut index: usize, shape: &[usize]) -> Vec<usize> {
    let mut coordinates: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&n| {
            let i = index % n;
            index /= n;
            i
        })
        .collect();
    coordinates.reverse();
    coordinates
}

/// A tensor to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMeta {
    /// Its name in the file.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl TensorMeta {
    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    fn bytes(&self, dtype: DType) -> u64 {
        (self.len() * dtype.size()) as u64
    }
}

/// Writes `tensors` into `folder` as `<stem>.safetensors`, or, above `max_shard_bytes`, as
/// `<stem>-00001-of-0000N.safetensors` with `<stem>.safetensors.index.json`.
///
/// `read(tensor, start, chunk)` delivers the elements of `tensors[tensor]` from `start` on; it is
/// called in file order, for chunks of at most a megabyte.
///
/// # Errors
/// Those of `read`; [`ErrorKind::Tensor`] for a value beyond the range of `dtype`;
/// [`ErrorKind::Io`] naming the file.
pub fn write_safetensors(
    folder: &mut AtomicFolder,
    stem: &str,
    tensors: &[TensorMeta],
    dtype: DType,
    max_shard_bytes: u64,
    mut read: impl FnMut(usize, usize, &mut [f32]) -> Result<()>,
) -> Result<()> {
    let shards = split_into_shards(tensors, dtype, max_shard_bytes);
    let count = shards.len();
    let file_name = |shard: usize| match count {
        1 => format!("{stem}.safetensors"),
        _ => format!("{stem}-{:05}-of-{count:05}.safetensors", shard + 1),
    };
    for (i, shard) in shards.iter().enumerate() {
        let mut file = folder.file(&file_name(i))?;
        file.write(&header(&tensors[shard.clone()], dtype)?)?;
        for tensor in shard.clone() {
            file.begin_segment(&tensors[tensor].name);
            write_tensor(&mut file, &tensors[tensor], dtype, |start, chunk| {
                read(tensor, start, chunk)
            })?;
        }
        file.finish()?;
    }
    if count > 1 {
        let map: Map<String, Value> = (shards.iter().enumerate())
            .flat_map(|(i, shard)| tensors[shard.clone()].iter().map(move |t| (i, t)))
            .map(|(i, tensor)| (tensor.name.clone(), Value::from(file_name(i))))
            .collect();
        let index = json!({
            "metadata": {
                "total_parameters": tensors.iter().map(TensorMeta::len).sum::<usize>(),
                "total_size": tensors.iter().map(|t| t.bytes(dtype)).sum::<u64>(),
            },
            "weight_map": map,
        });
        let text = format!("{index:#}\n");
        folder.write(&format!("{stem}.safetensors.index.json"), text.as_bytes())?;
    }
    Ok(())
}

/// Consecutive tensors up to the limit; a longer tensor has a shard of its own.
fn split_into_shards(
    tensors: &[TensorMeta],
    dtype: DType,
    max_bytes: u64,
) -> Vec<std::ops::Range<usize>> {
    let mut shards = Vec::new();
    let (mut start, mut filled) = (0, 0);
    for (i, tensor) in tensors.iter().enumerate() {
        let bytes = tensor.bytes(dtype);
        if i > start && filled + bytes > max_bytes {
            shards.push(start..i);
            (start, filled) = (i, 0);
        }
        filled += bytes;
    }
    shards.push(start..tensors.len());
    shards
}

/// Length, then the header, padded so that the data begins at a multiple of eight bytes.
fn header(tensors: &[TensorMeta], dtype: DType) -> Result<Vec<u8>> {
    let stored = match dtype {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
    };
    let mut end = 0;
    let infos = tensors.iter().map(|tensor| {
        let start = end;
        end += tensor.len() * dtype.size();
        let info = TensorInfo {
            dtype: stored,
            shape: tensor.shape.clone(),
            data_offsets: (start, end),
        };
        (tensor.name.clone(), info)
    });
    let format = [("format".to_owned(), "pt".to_owned())].into();
    let internal = |e: &dyn std::fmt::Display| {
        Error::new(ErrorKind::Internal, format!("safetensors header: {e}"))
    };
    let metadata = Metadata::new(Some(format), infos.collect()).map_err(|e| internal(&e))?;
    let mut text = serde_json::to_vec(&metadata).map_err(|e| internal(&e))?;
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut text);
    Ok(bytes)
}

fn write_tensor(
    file: &mut FileWriter,
    tensor: &TensorMeta,
    dtype: DType,
    mut read: impl FnMut(usize, &mut [f32]) -> Result<()>,
) -> Result<()> {
    let mut values = vec![0f32; tensor.len().min(CHUNK)];
    let mut f16s = vec![f16::ZERO; if dtype == DType::F16 { values.len() } else { 0 }];
    let mut bf16s = vec![
        bf16::ZERO;
        if dtype == DType::BF16 {
            values.len()
        } else {
            0
        }
    ];
    for start in (0..tensor.len()).step_by(CHUNK) {
        let chunk = &mut values[..CHUNK.min(tensor.len() - start)];
        read(start, chunk)?;
        let (bytes, overflow): (&[u8], _) = match dtype {
            DType::F32 => (bytemuck::cast_slice(chunk), None),
            DType::F16 => {
                let halves = &mut f16s[..chunk.len()];
                halves.convert_from_f32_slice(chunk);
                (
                    bytemuck::cast_slice(halves),
                    first_overflow(chunk, |i| halves[i].is_infinite()),
                )
            }
            DType::BF16 => {
                let halves = &mut bf16s[..chunk.len()];
                halves.convert_from_f32_slice(chunk);
                (
                    bytemuck::cast_slice(halves),
                    first_overflow(chunk, |i| halves[i].is_infinite()),
                )
            }
        };
        if let Some(i) = overflow {
            return Err(Error::new(
                ErrorKind::Tensor,
                format!(
                    "tensor `{}` holds {} at {:?}, beyond the range of {dtype}; save as float32",
                    tensor.name,
                    chunk[i],
                    unravel(start + i, &tensor.shape)
                ),
            ));
        }
        file.write(bytes)?;
    }
    Ok(())
}

fn first_overflow(values: &[f32], is_infinite: impl Fn(usize) -> bool) -> Option<usize> {
    (0..values.len()).find(|&i| is_infinite(i) && values[i].is_finite())
}
