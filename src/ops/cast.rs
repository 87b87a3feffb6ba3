//! Conversion between float32 and a half-precision format, rounding to nearest, ties to even.

use super::cpu::element::by_format;
use super::cpu::{narrow, widen};
use super::{Backend, Cpu, Region};
use crate::dtype::DType;

/// Converts number formats.
pub trait Cast {
    /// `to[i] = from[i]` in the format of `to`. One side is float32, or both have the same format.
    fn cast(&mut self, from: Region, to: Region);
}

impl Cast for Cpu {
    fn cast(&mut self, from: Region, to: Region) {
        if from.dtype == to.dtype {
            return self.copy(from, to);
        }
        let ([from], [], [to]) = self.arena.views([from], [], [to]);
        let pool = &self.pool;
        match from.dtype {
            DType::F32 => by_format!(to.dtype, T => {
                pool.install(|| narrow(from.f32(), to.of::<T>()))
            }),
            half => by_format!(half, T => pool.install(|| widen(from.of::<T>(), to.f32()))),
        }
    }
}
