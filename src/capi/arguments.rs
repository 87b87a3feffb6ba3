//! What comes in and goes out by pointer.

use super::guard::invalid;
use super::report::sft_batch;
use crate::data::Batch;
use crate::error::{Result, ResultExt};
use std::ffi::{CStr, c_char};

/// A NUL-terminated UTF-8 string of the host.
///
/// # Safety
/// `pointer` is NULL or a NUL-terminated string that outlives the result.
pub(super) unsafe fn text<'a>(pointer: *const c_char, name: &str) -> Result<&'a str> {
    if pointer.is_null() {
        return Err(invalid(format!("{name} is NULL")));
    }
    // SAFETY: not NULL, and the caller vouches for the rest.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str()
        .map_err(|e| invalid(format!("{name} is not UTF-8")).with_source(e))
}

/// `count` values of the host. NULL is allowed where there are none.
///
/// # Safety
/// `pointer` is NULL or points to `count` values that outlive the result and don't change meanwhile.
pub(super) unsafe fn values<'a, T>(pointer: *const T, count: usize, name: &str) -> Result<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    if pointer.is_null() {
        return Err(invalid(format!("{name} is NULL")));
    }
    if !pointer.is_aligned() {
        return Err(invalid(format!("{name} is not aligned")));
    }
    if count > isize::MAX as usize / size_of::<T>() {
        let message = format!("the count of {name} is {count}: more than memory can hold");
        return Err(invalid(message));
    }
    // SAFETY: not NULL, aligned, of a possible size, and the caller vouches for the rest.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count) })
}

/// A place for a result, written only on success.
pub(super) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Checks the place.
    pub fn new(pointer: *mut T, name: &str) -> Result<Self> {
        if pointer.is_null() {
            return Err(invalid(format!("{name} is NULL")));
        }
        match pointer.is_aligned() {
            true => Ok(Self(pointer)),
            false => Err(invalid(format!("{name} is not aligned"))),
        }
    }

    /// Writes the result.
    ///
    /// # Safety
    /// The pointer given to [`Out::new`] may be written to.
    pub unsafe fn write(self, value: T) {
        // SAFETY: not NULL and aligned, and the caller vouches for the rest.
        unsafe { self.0.write(value) }
    }
}

/// A struct whose first field is its size, so that it can grow at the end.
///
/// # Safety
/// `repr(C)`, begins with a `u32` named `struct_size`, and has no padding.
pub(super) unsafe trait GrowingStruct: Copy {
    const NAME: &str;
}

/// A place for a struct of the host, of the size that its header knows.
pub(super) struct OutStruct<T> {
    place: *mut T,
    size: usize,
}

impl<T: GrowingStruct> OutStruct<T> {
    /// Reads and checks the size that the host has set.
    ///
    /// # Safety
    /// `pointer` is NULL or points to as many writable bytes as its first four bytes say.
    pub unsafe fn new(pointer: *mut T) -> Result<Self> {
        let out = Out::new(pointer, T::NAME)?;
        // SAFETY: not NULL and aligned, and the caller vouches that the size can be read.
        let size = unsafe { out.0.cast::<u32>().read() } as usize;
        if size < 2 * size_of::<u32>() {
            let name = T::NAME;
            return Err(invalid(format!(
                "struct_size of {name} is {size}: set it to sizeof({name}) before the call"
            )));
        }
        Ok(Self {
            place: out.0,
            size: size.min(size_of::<T>()),
        })
    }

    /// As [`OutStruct::new`], with NULL where the host does not want the struct.
    ///
    /// # Safety
    /// As [`OutStruct::new`].
    pub unsafe fn optional(pointer: *mut T) -> Result<Option<Self>> {
        match pointer.is_null() {
            true => Ok(None),
            // SAFETY: as the caller's.
            false => unsafe { Self::new(pointer) }.map(Some),
        }
    }

    /// Writes as much of the struct as the host knows, and leaves `struct_size` as the host set it.
    ///
    /// # Safety
    /// As [`OutStruct::new`], for the same pointer.
    pub unsafe fn write(self, value: T) {
        let skip = size_of::<u32>();
        let from = std::ptr::from_ref(&value).cast::<u8>();
        // SAFETY: `size` is at most the size of either side, and the two cannot overlap.
        unsafe {
            let to = self.place.cast::<u8>();
            to.add(skip)
                .copy_from_nonoverlapping(from.add(skip), self.size - skip);
        }
    }
}

/// The micro-batches of the host, copied.
///
/// # Safety
/// `first` is NULL or an array of `count` structs of the size that they say, whose pointers hold as
/// many values as their counts say.
pub(super) unsafe fn batches(first: *const sft_batch, count: usize) -> Result<Vec<Batch>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    if first.is_null() || !first.is_aligned() {
        return Err(invalid("the array of batches is NULL or not aligned"));
    }
    // The array's stride is the size of the struct in the host's header, which may be newer.
    // SAFETY: not NULL and aligned; the caller vouches that the array holds at least one.
    let stride = unsafe { first.cast::<u32>().read() } as usize;
    if stride < size_of::<sft_batch>() || !stride.is_multiple_of(align_of::<sft_batch>()) {
        return Err(invalid(format!(
            "struct_size of batch 0 is {stride}: set it to sizeof(sft_batch) in every batch"
        )));
    }
    if count > isize::MAX as usize / stride {
        let message = format!("n is {count}: more batches than memory can hold");
        return Err(invalid(message));
    }
    let read = |i: usize| {
        // SAFETY: the caller vouches for `count` structs that lie `stride` bytes apart.
        let batch = unsafe { first.byte_add(i * stride).read() };
        if batch.struct_size as usize != stride {
            return Err(invalid(format!(
                "struct_size is {}, but {stride} in batch 0",
                batch.struct_size
            )));
        }
        // SAFETY: the caller vouches for the pointers and counts of each.
        unsafe { to_batch(&batch) }
    };
    (0..count)
        .map(|i| read(i).context(|| format!("batch {i}")))
        .collect()
}

/// # Safety
/// The pointers of `batch` hold as many values as its counts say.
unsafe fn to_batch(batch: &sft_batch) -> Result<Batch> {
    if batch.reserved != 0 {
        return Err(invalid(
            "reserved is not 0: zero the struct before filling it in",
        ));
    }
    if batch.n_tokens > i32::MAX as usize {
        let message = format!("n_tokens is {}, more than {}", batch.n_tokens, i32::MAX);
        return Err(invalid(message));
    }
    // SAFETY: as the caller's.
    let tokens = unsafe { values(batch.tokens, batch.n_tokens, "tokens") }?.to_vec();
    let labels = match batch.labels.is_null() {
        true => tokens.clone(),
        // SAFETY: as the caller's.
        false => unsafe { values(batch.labels, batch.n_tokens, "labels") }?.to_vec(),
    };
    let seq_starts = match batch.seq_starts.is_null() {
        true if batch.n_seqs > 1 => {
            let message = format!("seq_starts is NULL, but n_seqs is {}", batch.n_seqs);
            return Err(invalid(message));
        }
        true if tokens.is_empty() => Vec::new(),
        true => vec![0],
        // SAFETY: as the caller's.
        false => unsafe { values(batch.seq_starts, batch.n_seqs, "seq_starts") }?.to_vec(),
    };
    Ok(Batch {
        tokens,
        labels,
        seq_starts,
    })
}
