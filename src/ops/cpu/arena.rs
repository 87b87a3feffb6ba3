//! The memory of the CPU backend: one zeroed mapping, handed out as slices by [`Region`].
//!
//! The mapping is anonymous, so pages that a run never touches cost nothing.

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
    pub fn get(&self, region: Region) -> &[f32] {
        assert_eq!(
            region.dtype,
            DType::F32,
            "the CPU backend computes in float32"
        );
        bytemuck::cast_slice(&self.bytes()[byte_range(region)])
    }

    /// The numbers of an index region, writable.
    pub fn indices_mut(&mut self, region: Indices) -> &mut [i32] {
        let memory = self.memory.as_deref_mut().unwrap_or_default();
        bytemuck::cast_slice_mut(&mut memory[region.offset..region.offset + region.len * 4])
    }

    /// Regions to read and regions to write at the same time. A written region must overlap neither
    /// another written one nor a read one: checked, because that is what makes the slices sound.
    pub fn split<const R: usize, const W: usize>(
        &mut self,
        reads: [Region; R],
        writes: [Region; W],
    ) -> ([&[f32]; R], [&mut [f32]; W]) {
        let (reads, [], writes) = self.split_with_indices(reads, [], writes);
        (reads, writes)
    }

    /// [`Arena::split`] with index regions to read.
    #[allow(clippy::type_complexity)]
    pub fn split_with_indices<const R: usize, const I: usize, const W: usize>(
        &mut self,
        reads: [Region; R],
        indices: [Indices; I],
        writes: [Region; W],
    ) -> ([&[f32]; R], [&[i32]; I], [&mut [f32]; W]) {
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
            assert_eq!(range.start % 4, 0, "region {range:?} is not aligned");
        }
        let base = memory.as_mut_ptr();
        // SAFETY (all three): the ranges lie in the mapping and are aligned for 4-byte numbers, any
        // bits are a valid f32 or i32, no written range overlaps another range (all checked above),
        // and the slices borrow the arena mutably.
        let read = |r: Region| unsafe {
            std::slice::from_raw_parts(base.add(r.offset).cast::<f32>().cast_const(), r.len)
        };
        let index = |i: Indices| unsafe {
            std::slice::from_raw_parts(base.add(i.offset).cast::<i32>().cast_const(), i.len)
        };
        let write = |r: Region| unsafe {
            std::slice::from_raw_parts_mut(base.add(r.offset).cast::<f32>(), r.len)
        };
        (reads.map(read), indices.map(index), writes.map(write))
    }

    fn bytes(&self) -> &[u8] {
        self.memory.as_deref().unwrap_or_default()
    }
}

fn byte_range(region: Region) -> Range<usize> {
    assert_eq!(
        region.dtype,
        DType::F32,
        "the CPU backend computes in float32"
    );
    region.offset..region.offset + region.len * 4
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(arena.get(region(12, 3)), [0.0, 1.0, 1.0]);
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
}
