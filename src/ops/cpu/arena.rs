//! The memory of the CPU backend: one zeroed mapping, handed out as slices by [`Region`].
//!
//! The mapping is anonymous, so pages that a run never touches cost nothing.

use super::element::Element;
use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::{Indices, Region};
use memmap2::{MmapMut, MmapOptions};
use std::ops::Range;

pub(in crate::ops) struct Arena {
    memory: Option<MmapMut>,
}

impl Arena {
    pub fn empty() -> Self {
        Self { memory: None }
    }

    pub fn zeroed(bytes: usize) -> Result<Self> {
        let memory = MmapOptions::new()
            .len(bytes.max(1))
            .map_anon()
            .map_err(|e| {
                Error::new(
                    ErrorKind::OutOfMemory,
                    format!("cannot map {bytes} bytes of memory"),
                )
                .with_source(e)
            })?;
        // Large pages save address translation in the matrix products; a refusal changes nothing.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        Ok(Self {
            memory: Some(memory),
        })
    }

    /// The numbers of a region.
    pub fn get(&self, region: Region) -> View<'_> {
        View {
            bytes: &self.bytes()[byte_range(region)],
            dtype: region.dtype,
        }
    }

    /// The numbers of an index region, writable.
    pub fn indices_mut(&mut self, region: Indices) -> &mut [i32] {
        let memory = self.memory.as_deref_mut().unwrap_or_default();
        bytemuck::cast_slice_mut(&mut memory[region.offset..region.offset + region.len * 4])
    }

    /// [`Arena::views`] of float32 regions.
    #[track_caller]
    pub fn split<const R: usize, const W: usize>(
        &mut self,
        reads: [Region; R],
        writes: [Region; W],
    ) -> ([&[f32]; R], [&mut [f32]; W]) {
        let (reads, [], writes) = self.split_with_indices(reads, [], writes);
        (reads, writes)
    }

    /// [`Arena::split`] with index regions to read.
    #[track_caller]
    #[allow(clippy::type_complexity)]
    pub fn split_with_indices<const R: usize, const I: usize, const W: usize>(
        &mut self,
        reads: [Region; R],
        indices: [Indices; I],
        writes: [Region; W],
    ) -> ([&[f32]; R], [&[i32]; I], [&mut [f32]; W]) {
        for region in reads.iter().chain(&writes) {
            expect_format(region.dtype, DType::F32);
        }
        let (reads, indices, writes) = self.views(reads, indices, writes);
        (reads.map(View::f32), indices, writes.map(ViewMut::f32))
    }

    /// Regions to read and regions to write at the same time. A written region must overlap neither
    /// another written one nor a read one: checked, because that is what makes the slices sound.
    #[allow(clippy::type_complexity)]
    pub fn views<const R: usize, const I: usize, const W: usize>(
        &mut self,
        reads: [Region; R],
        indices: [Indices; I],
        writes: [Region; W],
    ) -> ([View<'_>; R], [&[i32]; I], [ViewMut<'_>; W]) {
        let memory = self.memory.as_deref_mut().unwrap_or_default();
        let index_range = |i: Indices| i.offset..i.offset + i.len * 4;
        for (n, &write) in writes.iter().enumerate() {
            let range = byte_range(write);
            let others = reads.iter().chain(&writes[..n]).map(|&r| byte_range(r));
            for other in others.chain(indices.iter().map(|&i| index_range(i))) {
                assert!(
                    range.is_empty()
                        || other.is_empty()
                        || range.end <= other.start
                        || other.end <= range.start,
                    "a written region {range:?} overlaps {other:?}"
                );
            }
        }
        let all = reads.iter().chain(&writes);
        for range in all
            .map(|&r| byte_range(r))
            .chain(indices.iter().map(|&i| index_range(i)))
        {
            assert!(
                range.end <= memory.len(),
                "region {range:?} outside the arena"
            );
        }
        let base = memory.as_mut_ptr();
        // SAFETY (both): the range lies in the mapping, no written range overlaps another range (both
        // checked above), and the slices borrow the arena mutably.
        let read = |range: Range<usize>| unsafe {
            std::slice::from_raw_parts(base.add(range.start).cast_const(), range.len())
        };
        let write = |range: Range<usize>| unsafe {
            std::slice::from_raw_parts_mut(base.add(range.start), range.len())
        };
        (
            reads.map(|r| View {
                bytes: read(byte_range(r)),
                dtype: r.dtype,
            }),
            indices.map(|i| bytemuck::cast_slice(read(index_range(i)))),
            writes.map(|w| ViewMut {
                bytes: write(byte_range(w)),
                dtype: w.dtype,
            }),
        )
    }

    fn bytes(&self) -> &[u8] {
        self.memory.as_deref().unwrap_or_default()
    }
}

fn byte_range(region: Region) -> Range<usize> {
    region.offset..region.offset + region.len * region.dtype.size()
}

/// An op was handed the formats that its trait names; the network's plan sees to that.
#[track_caller]
fn expect_format(found: DType, expected: DType) {
    assert_eq!(found, expected, "format of a tensor (found, expected)");
}

/// The numbers of a region to read, in the region's format.
#[derive(Clone, Copy)]
pub(in crate::ops) struct View<'a> {
    bytes: &'a [u8],
    pub dtype: DType,
}

/// The numbers of a region to write, in the region's format.
pub(in crate::ops) struct ViewMut<'a> {
    bytes: &'a mut [u8],
    pub dtype: DType,
}

impl<'a> View<'a> {
    /// The numbers of a tensor that an op has in format T.
    #[track_caller]
    pub fn of<T: Element>(self) -> &'a [T] {
        expect_format(self.dtype, T::DTYPE);
        bytemuck::cast_slice(self.bytes)
    }

    /// The numbers of a tensor that an op has in float32 always.
    #[track_caller]
    pub fn f32(self) -> &'a [f32] {
        self.of()
    }
}

impl<'a> ViewMut<'a> {
    /// The numbers of a tensor that an op has in format T.
    #[track_caller]
    pub fn of<T: Element>(self) -> &'a mut [T] {
        expect_format(self.dtype, T::DTYPE);
        bytemuck::cast_slice_mut(self.bytes)
    }

    /// The numbers of a tensor that an op has in float32 always.
    #[track_caller]
    pub fn f32(self) -> &'a mut [f32] {
        self.of()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::bf16;

    fn region(offset: usize, len: usize) -> Region {
        Region {
            offset,
            len,
            dtype: DType::F32,
        }
    }

    #[test]
    fn split_gives_disjoint_slices() {
        let mut arena = Arena::zeroed(64).unwrap();
        let ([read], [write]) = arena.split([region(0, 4)], [region(16, 4)]);
        write.fill(1.0);
        assert_eq!(read, [0.0; 4]);
        assert_eq!(arena.get(region(12, 3)).f32(), [0.0, 1.0, 1.0]);
    }

    #[test]
    #[should_panic(expected = "overlaps")]
    fn split_refuses_an_overlap() {
        Arena::zeroed(64)
            .unwrap()
            .split([region(0, 5)], [region(16, 4)]);
    }

    #[test]
    #[should_panic(expected = "outside the arena")]
    fn split_refuses_a_region_outside() {
        Arena::zeroed(64).unwrap().split([], [region(60, 2)]);
    }

    #[test]
    fn half_precision_takes_half_the_room() {
        let mut arena = Arena::zeroed(64).unwrap();
        let half = Region {
            dtype: DType::BF16,
            ..region(16, 8)
        };
        let ([read], [], [write]) = arena.views([region(0, 4)], [], [half]);
        write.of::<bf16>().fill(bf16::ONE);
        assert_eq!(read.f32(), [0.0; 4]);
        assert_eq!(arena.get(region(32, 1)).f32(), [0.0]);
    }

    #[test]
    #[should_panic(expected = "format of a tensor")]
    fn another_format_is_refused() {
        let mut arena = Arena::zeroed(64).unwrap();
        let half = Region {
            dtype: DType::F16,
            ..region(0, 4)
        };
        arena.split([half], []);
    }
}
