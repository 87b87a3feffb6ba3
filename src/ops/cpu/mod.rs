//! The CPU backend: an arena of zeroed pages, a thread pool, and the shared arithmetic.

mod arena;
pub(super) mod matrix;
pub(super) mod vector;

use crate::error::{Error, ErrorKind, Result};
use crate::ops::{Backend, Indices, Region};
use arena::Arena;

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
    pub fn new(threads: usize) -> Result<Self> {
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
        format!(
            "cpu, {} threads, {}",
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
        let ([], [to]) = self.arena.split([], [to]);
        to.copy_from_slice(from);
    }

    fn upload_indices(&mut self, to: Indices, from: &[i32]) {
        self.arena.indices_mut(to).copy_from_slice(from);
    }

    fn download(&mut self, from: Region, to: &mut [f32]) {
        to.copy_from_slice(self.arena.get(from));
    }

    fn copy(&mut self, from: Region, to: Region) {
        let ([from], [to]) = self.arena.split([from], [to]);
        let piece = 1 << 16;
        self.pool.install(|| {
            use rayon::prelude::*;
            to.par_chunks_mut(piece)
                .zip(from.par_chunks(piece))
                .for_each(|(to, from)| to.copy_from_slice(from));
        });
    }

    fn fill(&mut self, to: Region, value: f32) {
        let ([], [to]) = self.arena.split([], [to]);
        to.fill(value);
    }
}
