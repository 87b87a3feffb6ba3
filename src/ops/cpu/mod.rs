//! The CPU backend: an arena of zeroed pages, a thread pool, number formats, and the shared arithmetic.

mod arena;
mod attention;
// Parts of it are for kernels that only x86-64 has.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(super) mod element;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // as above
pub(super) mod matrix;
pub(super) mod product;
pub(super) mod vector;

use crate::error::{Error, ErrorKind, Result};
use crate::io::read_in_pieces;
use crate::ops::{Backend, Indices, ReadPiece, Region};
use arena::Arena;
use element::{Element, by_format};
use product::Bf16Kernel;
use rayon::prelude::*;
use vector::vectorised;

/// Rows of an elementwise or reducing op that one task handles. Fixed, so that partial sums do not
/// depend on the number of threads.
pub(super) const ROWS_PER_TASK: usize = 32;

/// The CPU as a device.
pub struct Cpu {
    pub(super) arena: Arena,
    pub(super) pool: rayon::ThreadPool,
}

impl Cpu {
    /// A CPU device of `threads` threads; 0 is one for each core that the process may use.
    ///
    /// # Errors
    /// `Config` if `SFT_BF16_KERNEL` names a kernel that this CPU lacks, `Device` if threads cannot be
    /// started.
    pub fn new(threads: usize) -> Result<Self> {
        Bf16Kernel::chosen()?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("sft-{i}"))
            .build()
            .map_err(|e| {
                Error::new(ErrorKind::Device, format!("cannot start {threads} threads"))
                    .with_source(e)
            })?;
        Ok(Self {
            arena: Arena::empty(),
            pool,
        })
    }

    /// Threads of the pool.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }
}

impl Backend for Cpu {
    const WORKSPACE_BYTES: usize = 0;

    fn describe(&self) -> String {
        let bf16 = match Bf16Kernel::chosen_or_widened().name() {
            "widened" => "widened to float32".to_owned(),
            name => format!("by {name}"),
        };
        format!(
            "cpu, {} threads, float32 by {}, bf16 matrices {bf16}",
            self.threads(),
            vector::instruction_set()
        )
    }

    fn allocate(&mut self, bytes: usize, _workspace: Region) -> Result<()> {
        self.arena = Arena::zeroed(bytes)?;
        Ok(())
    }

    fn status(&self) -> Result<()> {
        Ok(())
    }

    fn upload(&mut self, to: Region, from: &[f32]) {
        let ([], [], [to]) = self.arena.views([], [], [to]);
        by_format!(to.dtype, T => self.pool.install(|| narrow(from, to.of::<T>())));
    }

    fn upload_from(&mut self, to: Region, read: &ReadPiece) -> Result<()> {
        let ([], [], [to]) = self.arena.views([], [], [to]);
        self.pool.install(|| {
            by_format!(
                to.dtype,
                f32 => {
                    let to = to.f32();
                    // No large page is touched for the first time by two threads at once, each of which
                    // would have it zeroed.
                    let to_page = to.as_ptr().align_offset(LARGE_PAGE).min(to.len());
                    let (before, pages) = to.split_at_mut(to_page);
                    read(0, before)?;
                    read_in_pieces(pages, LARGE_PAGE / size_of::<f32>(), &|start, piece| {
                        read(to_page + start, piece)
                    })
                },
                T => {
                    let pieces = to.of::<T>().par_chunks_mut(ELEMENTS_PER_TASK).enumerate();
                    let narrowed = pieces.map_init(Vec::new, |values, (i, to)| {
                        values.resize(to.len(), 0.0);
                        read(i * ELEMENTS_PER_TASK, values)?;
                        narrow(values, to);
                        Ok(())
                    });
                    narrowed.reduce(|| Ok(()), Result::and)
                }
            )
        })
    }

    fn upload_indices(&mut self, to: Indices, from: &[i32]) {
        self.arena.indices_mut(to).copy_from_slice(from);
    }

    fn download(&mut self, from: Region, to: &mut [f32]) {
        let from = self.arena.get(from);
        by_format!(from.dtype, T => self.pool.install(|| widen(from.of::<T>(), to)));
    }

    fn copy(&mut self, from: Region, to: Region) {
        let ([from], [], [to]) = self.arena.views([from], [], [to]);
        by_format!(to.dtype, T => self.pool.install(|| copy(from.of::<T>(), to.of::<T>())));
    }

    fn fill(&mut self, to: Region, value: f32) {
        let ([], [], [to]) = self.arena.views([], [], [to]);
        by_format!(to.dtype, T => {
            let mut rounded = [<T as bytemuck::Zeroable>::zeroed()];
            T::narrow(&[value], &mut rounded);
            to.of::<T>().fill(rounded[0]);
        });
    }
}

/// Bytes of a large page of memory; where pages are smaller, their multiple.
const LARGE_PAGE: usize = 2 << 20;

/// Elements that one task copies or converts.
const ELEMENTS_PER_TASK: usize = 1 << 16;

fn copy<T: Element>(from: &[T], to: &mut [T]) {
    assert_eq!(from.len(), to.len(), "lengths of a copy");
    to.par_chunks_mut(ELEMENTS_PER_TASK)
        .zip(from.par_chunks(ELEMENTS_PER_TASK))
        .for_each(|(to, from)| to.copy_from_slice(from));
}

/// Float32 to another format, on the threads of the current pool.
pub(super) fn narrow<T: Element>(from: &[f32], to: &mut [T]) {
    assert_eq!(from.len(), to.len(), "lengths of a conversion");
    to.par_chunks_mut(ELEMENTS_PER_TASK)
        .zip(from.par_chunks(ELEMENTS_PER_TASK))
        .for_each(|(to, from)| {
            vectorised(
                #[inline(always)]
                || T::narrow(from, to),
            );
        });
}

/// Another format to float32, on the threads of the current pool.
pub(super) fn widen<T: Element>(from: &[T], to: &mut [f32]) {
    assert_eq!(from.len(), to.len(), "lengths of a conversion");
    to.par_chunks_mut(ELEMENTS_PER_TASK)
        .zip(from.par_chunks(ELEMENTS_PER_TASK))
        .for_each(|(to, from)| {
            vectorised(
                #[inline(always)]
                || T::widen(from, to),
            );
        });
}
