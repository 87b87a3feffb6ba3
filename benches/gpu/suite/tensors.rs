//! Tensors of a check or a measurement, handed out of one arena.

use sft::Result;
use sft::dtype::{DType, bf16, f16};
use sft::ops::{Backend, Indices, Region};
use sft::rng::Stream;

/// The period of the numbers: a prime, so that no row or tile repeats another.
const PERIOD: usize = 65_537;

/// A backend whose arena is handed out tensor by tensor.
pub struct Tensors<B> {
    pub backend: B,
    capacity: usize,
    used: usize,
    count: u64,
    /// The format of operands, and the one they are kept in here: the same on a device; float32 on
    /// the CPU, which so computes with the rounded operands and rounds nothing else.
    format: DType,
    stored: DType,
}

impl<B: Backend> Tensors<B> {
    /// An arena of `capacity` bytes.
    pub fn new(mut backend: B, capacity: usize) -> Result<Self> {
        let workspace = Region {
            offset: capacity,
            len: B::WORKSPACE_BYTES / 4,
            dtype: DType::F32,
        };
        backend.allocate(capacity + B::WORKSPACE_BYTES, workspace)?;
        Ok(Self {
            backend,
            capacity,
            used: 0,
            count: 0,
            format: DType::F32,
            stored: DType::F32,
        })
    }

    /// Forgets all tensors.
    pub fn clear(&mut self, format: DType, stored: DType) {
        (self.used, self.count) = (0, 0);
        (self.format, self.stored) = (format, stored);
    }

    fn place(&mut self, len: usize, dtype: DType) -> Region {
        let offset = self.used;
        // One number beyond a multiple of 256 bytes would break the alignment that the planner gives.
        self.used = (offset + len * dtype.size()).next_multiple_of(256);
        assert!(
            self.used <= self.capacity,
            "{} bytes in an arena of {}",
            self.used,
            self.capacity
        );
        Region { offset, len, dtype }
    }

    /// Normal numbers times `size`, the same for each backend that asks for the same tensors.
    fn numbers(&mut self, len: usize, size: f32) -> Vec<f32> {
        let stream = Stream::new(self.count, 7);
        self.count += 1;
        let period = (0..len.min(PERIOD) as u64).map(|i| size * stream.normal(i) as f32);
        let period: Vec<f32> = period.collect();
        period.iter().copied().cycle().take(len).collect()
    }

    /// Values as the format of operands has them.
    pub fn rounded(&self, mut values: Vec<f32>) -> Vec<f32> {
        for x in &mut values {
            *x = match self.format {
                DType::F32 => *x,
                DType::BF16 => bf16::from_f32(*x).to_f32(),
                DType::F16 => f16::from_f32(*x).to_f32(),
            };
        }
        values
    }

    /// An operand: normal numbers times `size`.
    pub fn operand(&mut self, len: usize, size: f32) -> Region {
        let values = self.numbers(len, size);
        let values = self.rounded(values);
        let region = self.place(len, self.stored);
        self.backend.upload(region, &values);
        region
    }

    /// A float32 tensor of normal numbers times `size`.
    pub fn full(&mut self, len: usize, size: f32) -> Region {
        let values = self.numbers(len, size);
        self.full_of(&values)
    }

    /// A float32 tensor with these values.
    pub fn full_of(&mut self, values: &[f32]) -> Region {
        let region = self.place(values.len(), DType::F32);
        self.backend.upload(region, values);
        region
    }

    /// An operand that is to be overwritten.
    pub fn operand_out(&mut self, len: usize) -> Region {
        let region = self.place(len, self.stored);
        self.backend.fill(region, f32::NAN);
        region
    }

    /// A float32 tensor that is to be overwritten.
    pub fn full_out(&mut self, len: usize) -> Region {
        let region = self.place(len, DType::F32);
        self.backend.fill(region, f32::NAN);
        region
    }

    /// Whole numbers.
    pub fn indices(&mut self, values: impl IntoIterator<Item = usize>) -> Indices {
        let values: Vec<i32> = values.into_iter().map(|i| i as i32).collect();
        let Region { offset, len, .. } = self.place(values.len(), DType::F32);
        let indices = Indices { offset, len };
        self.backend.upload_indices(indices, &values);
        indices
    }

    /// Whole numbers below `end`, spread over all of them.
    pub fn scattered(&mut self, len: usize, end: usize) -> Indices {
        self.indices((0..len).map(|i| (i * 7919 + i / 3) % end))
    }

    /// The values of a tensor.
    pub fn get(&mut self, region: Region) -> Vec<f32> {
        let mut values = vec![0.0; region.len];
        self.backend.download(region, &mut values);
        values
    }
}
