//! What the backend asks of a device, whoever it is.

use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A place that runs the kernels of `kernels/` and holds their memory. Work is done in the order in
/// which it is asked for; only [`Driver::read`] waits for it.
pub trait Driver: Send {
    /// The device in words, such as `cuda:0, NVIDIA H100 80GB HBM3, sm_90`.
    fn describe(&self) -> String;

    /// Device, driver and build of the kernels, in a word that differs where times of kernels may;
    /// `None` where nothing is to be measured.
    fn identity(&self) -> Option<String> {
        None
    }

    /// The time since some moment, to measure by.
    fn clock(&mut self) -> Duration {
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed()
    }

    /// What launches may ask for.
    fn limits(&self) -> Limits;

    /// Memory of the device, zeroed, its address aligned to 256 bytes.
    ///
    /// # Errors
    /// `OutOfMemory` with the need and what is free.
    fn allocate(&mut self, bytes: usize) -> Result<u64>;

    /// Gives memory back, after all work is done.
    fn free(&mut self, address: u64);

    /// Copies from the host; `from` may be reused when the call returns.
    ///
    /// # Errors
    /// `Device` with what the driver said, as those below.
    fn write(&mut self, to: u64, from: &[u8]) -> Result<()>;

    /// Copies to the host after all earlier work is done.
    ///
    /// # Errors
    /// `Device`, also for earlier work that failed.
    fn read(&mut self, from: u64, to: &mut [u8]) -> Result<()>;

    /// Copies within the device; the ranges do not overlap.
    ///
    /// # Errors
    /// `Device`.
    fn copy(&mut self, from: u64, to: u64, bytes: usize) -> Result<()>;

    /// Sets `count` numbers of 4 bytes.
    ///
    /// # Errors
    /// `Device`.
    fn fill32(&mut self, to: u64, bits: u32, count: usize) -> Result<()>;

    /// Sets `count` numbers of 2 bytes.
    ///
    /// # Errors
    /// `Device`.
    fn fill16(&mut self, to: u64, bits: u16, count: usize) -> Result<()>;

    /// Launches a kernel by the name that `KERNEL(…)` gave it.
    ///
    /// # Errors
    /// `Device`; `Internal` when no kernel has that name or its parameters differ in number.
    fn launch(&mut self, kernel: &'static str, launch: Launch, arguments: &[Arg]) -> Result<()>;

    /// Whether [`Driver::vendor_product`] can be asked for.
    ///
    /// # Errors
    /// `Device`.
    fn has_vendor_products(&mut self) -> Result<bool> {
        Ok(false)
    }

    /// A matrix product by a library of the device's vendor; false where there is none, and for a
    /// product that the library refuses, which leaves everything as it was.
    ///
    /// # Errors
    /// `Device`.
    fn vendor_product(&mut self, product: &VendorProduct) -> Result<bool> {
        let _ = product;
        Ok(false)
    }

    /// Records the launches, copies and fills that follow instead of doing them; false where that
    /// cannot be done. Uploads, downloads and allocations are errors until [`Driver::end_capture`],
    /// and so is a kernel that was never launched before, whose code would have to be loaded.
    ///
    /// # Errors
    /// `Device`; `Internal` inside a capture.
    fn begin_capture(&mut self) -> Result<bool> {
        Ok(false)
    }

    /// What was recorded, addresses and numbers included; `None` outside of a capture, and where no
    /// graph can be made of it. Then, and after an error inside of it, the capture is over as if
    /// nothing had been asked for.
    ///
    /// # Errors
    /// `Device`.
    fn end_capture(&mut self) -> Result<Option<Graph>> {
        Ok(None)
    }

    /// Does what was recorded.
    ///
    /// # Errors
    /// `Device`; `Internal` when there is no such graph.
    fn replay(&mut self, graph: Graph) -> Result<()> {
        Err(no_graph(graph))
    }

    /// Gives back what a graph takes, once the replays asked for so far are done.
    fn forget(&mut self, graph: Graph) {
        let _ = graph;
    }
}

/// The error of a replay of nothing.
pub(super) fn no_graph(graph: Graph) -> Error {
    let message = format!("no graph has the number {}", graph.0);
    Error::new(ErrorKind::Internal, message)
}

/// Something that a driver is asked to do in its order, with all its numbers.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// [`Driver::launch`].
    Launch {
        /// Name of the kernel.
        kernel: &'static str,
        /// Its grid.
        launch: Launch,
        /// Its arguments.
        arguments: Vec<Arg>,
    },
    /// [`Driver::copy`].
    Copy {
        /// Source address.
        from: u64,
        /// Target address.
        to: u64,
        /// Length.
        bytes: usize,
    },
    /// [`Driver::fill32`].
    Fill32 {
        /// Target address.
        to: u64,
        /// The number.
        bits: u32,
        /// How often.
        count: usize,
    },
    /// [`Driver::fill16`].
    Fill16 {
        /// Target address.
        to: u64,
        /// The number.
        bits: u16,
        /// How often.
        count: usize,
    },
    /// [`Driver::vendor_product`].
    VendorProduct(VendorProduct),
}

impl Call {
    /// Asks a driver; false when it does not do such things.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn perform(&self, driver: &mut dyn Driver) -> Result<bool> {
        match self {
            Call::Launch {
                kernel,
                launch,
                arguments,
            } => driver.launch(kernel, *launch, arguments)?,
            &Call::Copy { from, to, bytes } => driver.copy(from, to, bytes)?,
            &Call::Fill32 { to, bits, count } => driver.fill32(to, bits, count)?,
            &Call::Fill16 { to, bits, count } => driver.fill16(to, bits, count)?,
            Call::VendorProduct(product) => return driver.vendor_product(product),
        }
        Ok(true)
    }
}

/// y (m, n) = a (m, k) · b (k, n), in row-major order without gaps, summed in float32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VendorProduct {
    /// Rows of the product.
    pub m: usize,
    /// Its columns.
    pub n: usize,
    /// Numbers in each sum.
    pub k: usize,
    /// Format of a and b.
    pub dtype: crate::dtype::DType,
    /// Format of y: that of a and b, or float32.
    pub out: crate::dtype::DType,
    /// Address of a.
    pub a: u64,
    /// Whether memory holds aᵀ (k, m).
    pub a_transposed: bool,
    /// Address of b.
    pub b: u64,
    /// Whether memory holds bᵀ (n, k).
    pub b_transposed: bool,
    /// Address of y.
    pub y: u64,
    /// Whether the product is added to y.
    pub accumulate: bool,
    /// Address of scratch memory.
    pub workspace: u64,
    /// Its bytes.
    pub workspace_bytes: usize,
}

/// The number of a recorded sequence of operations, in the driver that recorded it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Graph(pub(super) usize);

/// Facts about a device that launches depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Compute capability, such as `(9, 0)`.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory that one block may have.
    pub shared_memory: u32,
}

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
}

impl Launch {
    /// A row of blocks without dynamic shared memory.
    pub fn blocks(blocks: usize, threads: u32) -> Self {
        Self {
            grid: [blocks as u32, 1, 1],
            threads,
            shared_bytes: 0,
        }
    }

    /// The same with dynamic shared memory.
    pub fn shared(mut self, bytes: usize) -> Self {
        self.shared_bytes = bytes as u32;
        self
    }
}

/// An argument of a kernel; its width is that of the parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// A device pointer, 8 bytes.
    Address(u64),
    /// `u32` or `i32`, 4 bytes.
    U32(u32),
    /// `float`, 4 bytes.
    F32(f32),
    /// `u64`, 8 bytes.
    U64(u64),
    /// `CUtensorMap`, 128 bytes, by which blocks fetch parts of a matrix. For devices of capability
    /// 9.0 and later; the emulation has no kernel that takes one.
    Map(MatrixMap),
}

/// A matrix of half-precision numbers in memory, in rows without gaps, and the boxes in which it is
/// fetched: lines of 128 bytes, whose 16-byte chunk c lies at c ^ (line % 8) in shared memory. Numbers
/// outside of the matrix are fetched as zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixMap {
    /// Of the device, a multiple of 16 bytes.
    pub address: u64,
    /// Format of the numbers.
    pub dtype: DType,
    /// Rows of the matrix.
    pub rows: u64,
    /// Columns, a multiple of 8.
    pub columns: u64,
    /// Rows of a box, at most 256.
    pub box_rows: u32,
    /// Columns of a box, 64.
    pub box_columns: u32,
}

impl Arg {
    /// Bytes of the parameter.
    pub fn size(self) -> usize {
        match self {
            Arg::Address(_) | Arg::U64(_) => 8,
            Arg::U32(_) | Arg::F32(_) => 4,
            Arg::Map(_) => 128,
        }
    }

    /// The parameter's bytes, low ones first; of a map, which is made by the driver, its address.
    pub fn bits(self) -> u64 {
        match self {
            Arg::Address(value) | Arg::U64(value) => value,
            Arg::U32(value) => u64::from(value),
            Arg::F32(value) => u64::from(value.to_bits()),
            Arg::Map(map) => map.address,
        }
    }
}
