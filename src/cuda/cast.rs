//! Launches of `kernels/cast.cu`.

use super::geometry::is_grouped;
use super::{Arg, Cuda, Launch, kernel};
use crate::dtype::DType;
use crate::ops::{Backend, Cast, Region};

const THREADS: usize = 256;

/// Threads of a multiprocessor that are at work at a time.
const RESIDENT_THREADS: usize = 1024;

/// Neighbours that move at once, and how many such groups a thread moves.
const COLUMNS: usize = 4;
const GROUPS: usize = 4;

impl Cast for Cuda {
    fn cast(&mut self, from: Region, to: Region) {
        assert_eq!(from.len, to.len, "lengths of a conversion");
        let name = match (from.dtype, to.dtype) {
            (from_dtype, to_dtype) if from_dtype == to_dtype => return self.copy(from, to),
            (DType::F32, half) => kernel!(half, "cast_from_f32"),
            (half, DType::F32) => kernel!(half, "cast_to_f32"),
            _ => panic!("a conversion has float32 on one side"),
        };
        let aligned = match is_grouped(COLUMNS, COLUMNS, &[from, to]) {
            true => from.len / COLUMNS * COLUMNS,
            false => 0,
        };
        let columns = if aligned > 0 { COLUMNS } else { 1 };
        let pieces = from.len.div_ceil(THREADS * GROUPS * columns);
        let blocks = pieces.min(self.resident_blocks(THREADS, RESIDENT_THREADS));
        let arguments = [
            self.address(from),
            self.address(to),
            Arg::U64(from.len as u64),
            Arg::U64(aligned as u64),
        ];
        self.launch(name, Launch::blocks(blocks, THREADS as u32), &arguments);
    }
}
