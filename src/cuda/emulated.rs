//! The CPU as a CUDA device, for tests: runs the kernels compiled as C++ (`kernels/host/`).

use super::driver::{VendorProduct, no_graph};
use super::{Arg, Call, Cuda, Driver, Graph, Launch, Limits, decode, encode};
use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use rayon::prelude::*;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, c_char, c_int};

/// A launch with fewer threads stays on the calling thread, which others could not help in time.
const THREADS_TO_SHARE: u64 = 2048;

/// Alignment that [`Driver::allocate`] promises.
const ALIGNMENT: usize = 256;

/// Memory of the host that kernels may be given addresses of.
pub struct Emulated {
    seed: u64,
    allocations: Vec<Allocation>,
    /// What was asked for since the capture began.
    capture: Option<Vec<Call>>,
    graphs: HashMap<usize, Vec<Call>>,
    next_graph: usize,
    /// Kernels that ran, whose code a device would have loaded.
    loaded: HashSet<&'static str>,
}

struct Allocation {
    address: u64,
    start: *mut u8,
    layout: Layout,
}

// SAFETY: the memory belongs to the allocation alone; no thread is tied to it.
unsafe impl Send for Allocation {}

impl Cuda {
    /// The CPU as a CUDA device. The seed chooses the order in which the threads of a block run:
    /// 1 ascending, 2 descending, others random; results must not depend on it.
    ///
    /// # Errors
    /// None at present.
    pub fn emulated(seed: u64) -> Result<Self> {
        Ok(Self::new(Box::new(Emulated::new(seed))))
    }
}

impl Emulated {
    /// The driver of [`Cuda::emulated`].
    pub fn new(seed: u64) -> Self {
        // SAFETY: does nothing; the call makes the linker keep every kernel.
        unsafe { sft_emulator_link() };
        Self {
            seed,
            allocations: Vec::new(),
            capture: None,
            graphs: HashMap::new(),
            next_graph: 0,
            loaded: HashSet::new(),
        }
    }

    /// Whether a call is recorded instead of done.
    fn captures(&mut self, call: impl FnOnce() -> Call) -> bool {
        let capture = self.capture.as_mut();
        capture.map(|calls| calls.push(call())).is_some()
    }

    fn not_while_capturing(&self, what: &str) -> Result<()> {
        match self.capture {
            None => Ok(()),
            Some(_) => Err(Error::new(
                ErrorKind::Internal,
                format!("{what} inside a capture"),
            )),
        }
    }

    /// The host memory at a device address.
    fn at(&self, address: u64, bytes: usize) -> Result<*mut u8> {
        let holds = |allocation: &&Allocation| {
            let end = allocation.start as u64 + allocation.layout.size() as u64;
            address >= allocation.address && address + bytes as u64 <= end
        };
        match self.allocations.iter().find(holds) {
            Some(_) => Ok(address as *mut u8),
            None => Err(Error::new(
                ErrorKind::Device,
                format!("{bytes} bytes at {address:#x} are not memory of the emulated device"),
            )),
        }
    }
}

impl Driver for Emulated {
    fn describe(&self) -> String {
        "cuda emulated on the cpu".to_owned()
    }

    /// Those of the devices of capability 8.6 and 8.9, which have the least shared memory.
    fn limits(&self) -> Limits {
        Limits {
            capability: (8, 0),
            multiprocessors: 4,
            shared_memory: 99 * 1024,
        }
    }

    fn allocate(&mut self, bytes: usize) -> Result<u64> {
        self.not_while_capturing("an allocation")?;
        let error = || {
            let message = format!("no {bytes} bytes of memory for the emulated device");
            Error::new(ErrorKind::OutOfMemory, message)
        };
        // With an alignment of 16 the allocator takes pages that are zero already and does not
        // touch them.
        let padded = bytes.checked_add(ALIGNMENT).ok_or_else(error)?;
        let layout = Layout::from_size_align(padded, 16).map_err(|_| error())?;
        // SAFETY: the size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        if start.is_null() {
            return Err(error());
        }
        let address = (start as u64).next_multiple_of(ALIGNMENT as u64);
        self.allocations.push(Allocation {
            address,
            start,
            layout,
        });
        Ok(address)
    }

    fn free(&mut self, address: u64) {
        let is_it = |allocation: &Allocation| allocation.address == address;
        if let Some(index) = self.allocations.iter().position(is_it) {
            let allocation = self.allocations.swap_remove(index);
            // SAFETY: made by `alloc_zeroed` with this layout, and forgotten just now.
            unsafe { dealloc(allocation.start, allocation.layout) };
        }
    }

    fn write(&mut self, to: u64, from: &[u8]) -> Result<()> {
        self.not_while_capturing("an upload")?;
        let to = self.at(to, from.len())?;
        // SAFETY: `at` checked that the bytes are ours; a slice of the caller's is not among them.
        unsafe { to.copy_from_nonoverlapping(from.as_ptr(), from.len()) };
        Ok(())
    }

    fn read(&mut self, from: u64, to: &mut [u8]) -> Result<()> {
        self.not_while_capturing("a download")?;
        let from = self.at(from, to.len())?;
        // SAFETY: as in `write`.
        unsafe { from.copy_to_nonoverlapping(to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn copy(&mut self, from: u64, to: u64, bytes: usize) -> Result<()> {
        if self.captures(|| Call::Copy { from, to, bytes }) {
            return Ok(());
        }
        let (from, to) = (self.at(from, bytes)?, self.at(to, bytes)?);
        // SAFETY: `at` checked that the bytes are ours.
        unsafe { from.copy_to(to, bytes) };
        Ok(())
    }

    fn has_vendor_products(&mut self) -> Result<bool> {
        Ok(true)
    }

    /// The definition, term by term.
    fn vendor_product(&mut self, product: &VendorProduct) -> Result<bool> {
        if self.captures(|| Call::VendorProduct(*product)) {
            return Ok(true);
        }
        let &VendorProduct { m, n, k, .. } = product;
        let mut numbers = |address: u64, len: usize, dtype: DType| {
            let mut bytes = vec![0; len * dtype.size()];
            self.read(address, &mut bytes)?;
            let mut numbers = vec![0.0; len];
            decode(&bytes, dtype, &mut numbers);
            Ok::<_, Error>(numbers)
        };
        let a = numbers(product.a, m * k, product.dtype)?;
        let b = numbers(product.b, k * n, product.dtype)?;
        let mut y = match product.accumulate {
            true => numbers(product.y, m * n, product.out)?,
            false => vec![0.0; m * n],
        };
        let at = |transposed, row, column, rows, columns| match transposed {
            false => row * columns + column,
            true => column * rows + row,
        };
        for i in 0..m {
            for j in 0..n {
                y[i * n + j] += (0..k)
                    .map(|l| {
                        a[at(product.a_transposed, i, l, m, k)]
                            * b[at(product.b_transposed, l, j, k, n)]
                    })
                    .sum::<f32>();
            }
        }
        self.write(product.y, &encode(&y, product.out))?;
        Ok(true)
    }

    fn fill32(&mut self, to: u64, bits: u32, count: usize) -> Result<()> {
        if self.captures(|| Call::Fill32 { to, bits, count }) {
            return Ok(());
        }
        let to = self.at(to, 4 * count)?.cast::<u32>();
        for i in 0..count {
            // SAFETY: `at` checked that the bytes are ours.
            unsafe { to.add(i).write_unaligned(bits) };
        }
        Ok(())
    }

    fn fill16(&mut self, to: u64, bits: u16, count: usize) -> Result<()> {
        if self.captures(|| Call::Fill16 { to, bits, count }) {
            return Ok(());
        }
        let to = self.at(to, 2 * count)?.cast::<u16>();
        for i in 0..count {
            // SAFETY: `at` checked that the bytes are ours.
            unsafe { to.add(i).write_unaligned(bits) };
        }
        Ok(())
    }

    fn launch(&mut self, kernel: &'static str, launch: Launch, arguments: &[Arg]) -> Result<()> {
        let found = Kernel::find(kernel)?;
        found.check(kernel, launch, arguments, self.limits())?;
        let call = || Call::Launch {
            kernel,
            launch,
            arguments: arguments.to_vec(),
        };
        if self.captures(call) {
            return match self.loaded.contains(kernel) {
                true => Ok(()),
                false => Err(Error::new(
                    ErrorKind::Internal,
                    format!("loading the code of {kernel} inside a capture"),
                )),
            };
        }
        self.loaded.insert(kernel);
        let arguments: Vec<u64> = arguments.iter().map(|argument| argument.bits()).collect();
        let blocks: u64 = launch.grid.map(u64::from).iter().product();
        let launch = EmulatedLaunch {
            grid: launch.grid,
            threads: launch.threads,
            shared_bytes: launch.shared_bytes,
            seed: self.seed,
        };
        let share = match blocks * u64::from(launch.threads) {
            0..THREADS_TO_SHARE => blocks.max(1),
            _ => blocks.div_ceil(4 * rayon::current_num_threads() as u64),
        };
        let run = |part: u64| {
            let range = part * share..blocks.min((part + 1) * share);
            found.run(&launch, &arguments, range).err()
        };
        let parts = blocks.div_ceil(share);
        let failed = match parts {
            0 | 1 => (0..parts).find_map(run),
            _ => (0..parts).into_par_iter().find_map_first(run),
        };
        match failed {
            None => Ok(()),
            Some(message) => Err(Error::new(ErrorKind::Device, message)),
        }
    }

    fn begin_capture(&mut self) -> Result<bool> {
        self.not_while_capturing("a capture")?;
        self.capture = Some(Vec::new());
        Ok(true)
    }

    fn end_capture(&mut self) -> Result<Option<Graph>> {
        let Some(calls) = self.capture.take() else {
            return Ok(None);
        };
        let number = self.next_graph;
        self.next_graph += 1;
        self.graphs.insert(number, calls);
        Ok(Some(Graph(number)))
    }

    fn replay(&mut self, graph: Graph) -> Result<()> {
        self.not_while_capturing("a replay")?;
        let calls = self
            .graphs
            .remove(&graph.0)
            .ok_or_else(|| no_graph(graph))?;
        let done = calls
            .iter()
            .try_for_each(|call| call.perform(self).map(|_| ()));
        self.graphs.insert(graph.0, calls);
        done
    }

    fn forget(&mut self, graph: Graph) {
        self.graphs.remove(&graph.0);
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        while let Some(allocation) = self.allocations.last() {
            self.free(allocation.address);
        }
    }
}

/// A registered kernel.
#[derive(Clone, Copy)]
struct Kernel(&'static RawKernel);

impl Kernel {
    fn find(name: &str) -> Result<Self> {
        // SAFETY: the name is `len` bytes; kernels are registered before main and live for ever.
        let kernel = unsafe { sft_emulator_find(name.as_ptr(), name.len()).as_ref() };
        kernel.map(Kernel).ok_or_else(|| {
            Error::new(
                ErrorKind::Internal,
                format!("there is no kernel named {name}"),
            )
        })
    }

    fn parameters(self) -> &'static [u32] {
        let mut kinds = std::ptr::null();
        // SAFETY: writes the address of a table that lives for ever, and returns its length.
        unsafe {
            let count = sft_emulator_parameters(self.0, &mut kinds);
            std::slice::from_raw_parts(kinds, count as usize)
        }
    }

    fn check(self, name: &str, launch: Launch, arguments: &[Arg], limits: Limits) -> Result<()> {
        let error = |message| Error::new(ErrorKind::Internal, format!("kernel {name}: {message}"));
        let kinds = self.parameters();
        if kinds.len() != arguments.len() {
            let (takes, given) = (kinds.len(), arguments.len());
            let message = format!("takes {takes} parameters, was given {given}");
            return Err(error(message));
        }
        for (index, (&kind, argument)) in kinds.iter().zip(arguments).enumerate() {
            let expected = match argument {
                Arg::Address(_) => 0,
                Arg::U32(_) => 1,
                Arg::U64(_) => 2,
                Arg::F32(_) => 3,
                // No kernel that runs here takes one.
                Arg::Map(_) => u32::MAX,
            };
            if kind != expected {
                let parameter = ["a pointer", "a u32", "a u64", "a float"][kind as usize];
                let message = format!("parameter {index} is {parameter}, was given {argument:?}");
                return Err(error(message));
            }
        }
        // SAFETY: reads a number of the kernel.
        let most = unsafe { sft_emulator_threads(self.0) };
        if launch.threads == 0 || launch.threads > most {
            let threads = launch.threads;
            return Err(error(format!(
                "{threads} threads in a block, at most {most}"
            )));
        }
        if launch.shared_bytes > limits.shared_memory {
            let (asked, most) = (launch.shared_bytes, limits.shared_memory);
            let message = format!("{asked} bytes of dynamic shared memory, at most {most}");
            return Err(error(message));
        }
        if launch.grid[1] > 65_535 || launch.grid[2] > 65_535 || launch.grid[0] > i32::MAX as u32 {
            return Err(error(format!("a grid of {:?} blocks", launch.grid)));
        }
        Ok(())
    }

    /// Runs some of the blocks, counted along x, then y, then z.
    ///
    /// # Errors
    /// What a thread did wrong.
    fn run(
        self,
        launch: &EmulatedLaunch,
        arguments: &[u64],
        blocks: std::ops::Range<u64>,
    ) -> std::result::Result<(), String> {
        let mut error = [0; 512];
        // SAFETY: `check` compared the arguments with the parameters. What the kernel does with the
        // addresses is the kernel's matter, as on a device.
        let status = unsafe {
            sft_emulator_run(
                self.0,
                launch,
                arguments.as_ptr(),
                blocks.start,
                blocks.end,
                error.as_mut_ptr(),
                error.len(),
            )
        };
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the emulator ends the text with a zero byte.
        let text = unsafe { CStr::from_ptr(error.as_ptr()) };
        Err(text.to_string_lossy().into_owned())
    }
}

/// `emulator::Kernel` of `kernels/host/emulator.hpp`.
#[repr(C)]
struct RawKernel {
    _private: [u8; 0],
}

/// `emulator::Launch` of `kernels/host/scheduler.cpp`.
#[repr(C)]
struct EmulatedLaunch {
    grid: [u32; 3],
    threads: u32,
    shared_bytes: u32,
    seed: u64,
}

unsafe extern "C" {
    fn sft_emulator_link();
    fn sft_emulator_find(name: *const u8, length: usize) -> *const RawKernel;
    fn sft_emulator_parameters(kernel: *const RawKernel, kinds: *mut *const u32) -> u32;
    fn sft_emulator_threads(kernel: *const RawKernel) -> u32;
    fn sft_emulator_run(
        kernel: *const RawKernel,
        launch: *const EmulatedLaunch,
        arguments: *const u64,
        first: u64,
        end: u64,
        error: *mut c_char,
        error_capacity: usize,
    ) -> c_int;
}
