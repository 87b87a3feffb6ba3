//! A GPU through NVIDIA's driver: [`Driver`] for the real device.
//!
//! The driver's library is loaded when a device is first asked for, so the same build runs on a
//! machine that has none. Kernels come as machine code, as PTX or as source (`modules`).
//!
//! One stream does the work, in order; a second one fetches uploads from pinned memory (`staging`),
//! so that an upload is no part of what [`Driver::begin_capture`] records. Each stream waits for the
//! other by events where one follows the other in the order of the calls.
//!
//! The device's primary context is used, which the host application and its other libraries share.
//! It is made current for the length of a call only.
//!
//! CUDA reports the failure of a kernel at some later call, and then at every one. The first failure
//! is kept, with the name of the kernel that was launched last, and returned from then on.

mod capture;
mod cublaslt;
mod error;
mod launch;
mod modules;
mod nvrtc;
mod probe;
mod staging;
mod streams;

use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUdevice_attribute, CUevent, CUgraphExec, CUresult, CUstream,
};

use super::driver::{Arg, Driver, Graph, Launch, Limits, VendorProduct};
use crate::error::{Error, ErrorKind, Result};
use cublaslt::CublasLt;
use modules::Modules;
pub(super) use nvrtc::cache_folder;
pub use probe::{DeviceInfo, available, devices};
use staging::{Ring, SLOT_BYTES, SLOTS};

/// What times of kernels depend on: the device, the driver, the build of the kernels.
///
/// # Errors
/// `Device` without such a device.
pub(super) fn identity(ordinal: usize) -> Result<String> {
    Ok(identity_of(&probe::device(ordinal)?.1))
}

fn identity_of(device: &DeviceInfo) -> String {
    let (major, minor) = device.capability;
    let mut kernels = blake3::Hasher::new();
    for (_, source) in modules::SOURCES {
        kernels.update(source.as_bytes());
    }
    format!(
        "{}, sm_{major}{minor}, driver {}, kernels {}",
        device.name,
        probe::driver_version(),
        &kernels.finalize().to_hex()[..16]
    )
}

/// An NVIDIA GPU.
pub(super) struct NvidiaDriver {
    device: CUdevice,
    info: DeviceInfo,
    limits: Limits,
    context: CUcontext,
    modules: Modules,
    /// `None` before it was asked for, `Some(None)` where it cannot be loaded.
    cublaslt: Option<Option<CublasLt>>,

    compute: CUstream,
    copy: CUstream,
    /// Recorded in one stream for the other to wait for.
    computed: CUevent,
    copied: CUevent,
    /// Whether there is work in the compute stream that an upload must wait for, and uploads that
    /// the compute stream must wait for.
    work_pending: bool,
    uploads_pending: bool,

    /// Pinned host memory, [`SLOTS`] times [`SLOT_BYTES`].
    pinned: *mut u8,
    ring: Ring,
    /// Recorded in the copy stream behind what was fetched from a slot.
    fetched: [CUevent; SLOTS],

    capturing: bool,
    /// By number; null where one was forgotten.
    graphs: Vec<CUgraphExec>,

    last_kernel: Option<&'static str>,
    failure: Option<(ErrorKind, String)>,
}

// SAFETY: the handles are valid in every thread of the process, for each call makes the context
// current first, and nothing is shared with another value.
unsafe impl Send for NvidiaDriver {}

impl NvidiaDriver {
    /// Opens `cuda:<ordinal>`.
    ///
    /// # Errors
    /// `Device` without a driver or with one that is too old, without such a device, with one that is
    /// too old or that another process holds; `OutOfMemory` when there is none left for a context.
    pub(super) fn open(ordinal: usize) -> Result<Self> {
        use CUdevice_attribute::*;
        let (device, info) = probe::device(ordinal)?;
        let limits = Limits {
            capability: info.capability,
            multiprocessors: probe::attribute(device, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_memory: probe::attribute(
                device,
                CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )?,
        };
        let mode = probe::attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_MODE)? as i32;
        let mut context = std::ptr::null_mut();
        // SAFETY: the device exists; `context` outlives the call.
        let code = unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) };
        error::check(code, || format!("opening cuda:{ordinal} ({})", info.name)).map_err(
            |error| {
                let advice = error::compute_mode_advice(mode);
                Error::new(error.kind(), format!("{error}{advice}"))
            },
        )?;
        let mut driver = Self {
            device,
            info,
            limits,
            context,
            modules: Modules::new(limits.capability),
            cublaslt: None,
            compute: std::ptr::null_mut(),
            copy: std::ptr::null_mut(),
            computed: std::ptr::null_mut(),
            copied: std::ptr::null_mut(),
            work_pending: false,
            uploads_pending: false,
            pinned: std::ptr::null_mut(),
            ring: Ring::default(),
            fetched: [std::ptr::null_mut(); SLOTS],
            capturing: false,
            graphs: Vec::new(),
            last_kernel: None,
            failure: None,
        };
        // What was made of it goes with it if the rest fails.
        driver.guarded(Self::prepare)?;
        Ok(driver)
    }

    fn prepare(&mut self) -> Result<()> {
        // Not ordered against the default stream of the host application.
        let independent = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        let untimed = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        let mut codes = Vec::new();
        // SAFETY: the context is current; the handles are written to fields of `self`.
        unsafe {
            codes.push(sys::cuStreamCreate(&mut self.compute, independent));
            codes.push(sys::cuStreamCreate(&mut self.copy, independent));
            codes.push(sys::cuEventCreate(&mut self.computed, untimed));
            codes.push(sys::cuEventCreate(&mut self.copied, untimed));
            for event in &mut self.fetched {
                codes.push(sys::cuEventCreate(event, untimed));
            }
            let mut pinned = std::ptr::null_mut();
            codes.push(sys::cuMemAllocHost_v2(&mut pinned, SLOTS * SLOT_BYTES));
            self.pinned = pinned.cast();
        }
        codes
            .into_iter()
            .try_for_each(|code| self.check(code, "preparing"))
    }

    /// Does something with the context current, unless something failed before. A failure stays,
    /// except that of an allocation, after which everything is as before, and one inside a capture,
    /// which costs the graph; what a kernel did earlier is told again by the next call.
    fn guarded<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if let Some((kind, message)) = &self.failure {
            return Err(Error::new(*kind, message.clone()));
        }
        let result = Current::enter(self.context).and_then(|_current| work(self));
        if let Err(error) = &result
            && error.kind() != ErrorKind::OutOfMemory
            && !self.capturing
        {
            self.failure = Some((error.kind(), error.to_string()));
        }
        result
    }

    /// An error that says where it was seen, and for one that a kernel may have caused, which was
    /// the last.
    fn check(&self, code: CUresult, doing: &str) -> Result<()> {
        error::check(code, || {
            let mut text = format!("cuda:{}, {doing}", self.info.ordinal);
            if let Some(kernel) = self.last_kernel.filter(|_| error::is_of_a_kernel(code)) {
                text.push_str(&format!(
                    " (the kernel launched last is {kernel}; with CUDA_LAUNCH_BLOCKING=1 in the \
                     environment it is the one that failed)"
                ));
            }
            text
        })
    }

    /// The library, loaded when it is first asked for; `None` where it cannot be.
    fn cublaslt(&mut self) -> Result<Option<&mut CublasLt>> {
        if self.cublaslt.is_none() {
            self.not_while_capturing("loading cuBLASLt")?;
            self.cublaslt = Some(CublasLt::open());
        }
        Ok(self.cublaslt.as_mut().and_then(Option::as_mut))
    }

    fn not_while_capturing(&self, what: &str) -> Result<()> {
        match self.capturing {
            false => Ok(()),
            true => Err(Error::new(
                ErrorKind::Internal,
                format!("{what} inside a capture"),
            )),
        }
    }

    fn out_of_memory(&self, bytes: usize) -> Error {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the context is current; what is written outlives the call. On failure the zeros
        // stay.
        let _ = unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) };
        Error::new(
            ErrorKind::OutOfMemory,
            out_of_memory(&self.info, bytes, free, total),
        )
    }
}

fn out_of_memory(device: &DeviceInfo, need: usize, free: usize, total: usize) -> String {
    let used = total.saturating_sub(free);
    format!(
        "cuda:{} ({}): {} of memory are needed, and {} of its {} are free ({} are in use, by this \
         process or others)",
        device.ordinal,
        device.name,
        error::gib(need),
        error::gib(free),
        error::gib(total),
        error::gib(used)
    )
}

impl Driver for NvidiaDriver {
    fn describe(&self) -> String {
        let DeviceInfo {
            ordinal,
            name,
            capability: (major, minor),
            ..
        } = &self.info;
        format!("cuda:{ordinal}, {name}, sm_{major}{minor}")
    }

    fn identity(&self) -> Option<String> {
        Some(identity_of(&self.info))
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn allocate(&mut self, bytes: usize) -> Result<u64> {
        self.guarded(|driver| {
            driver.not_while_capturing("an allocation")?;
            let mut address = 0;
            // CUDA refuses to allocate nothing.
            // SAFETY: the context is current; `address` outlives the call.
            match unsafe { sys::cuMemAlloc_v2(&mut address, bytes.max(1)) } {
                CUresult::CUDA_ERROR_OUT_OF_MEMORY => return Err(driver.out_of_memory(bytes)),
                code => driver.check(code, "an allocation")?,
            }
            driver.follow_uploads()?;
            // SAFETY: the memory was just allocated and has `bytes` bytes.
            let code = unsafe { sys::cuMemsetD8Async(address, 0, bytes, driver.compute) };
            driver.check(code, "clearing an allocation")?;
            Ok(address)
        })
    }

    fn free(&mut self, address: u64) {
        // Also after a failure, which may have left the device able to.
        if let Ok(_current) = Current::enter(self.context) {
            let _ = self.synchronize("the end of a run");
            // SAFETY: allocated by `allocate`; no work is left that uses it. A failure leaves
            // nothing to do.
            let _ = unsafe { sys::cuMemFree_v2(address) };
        }
    }

    fn write(&mut self, to: u64, from: &[u8]) -> Result<()> {
        if from.is_empty() {
            return Ok(());
        }
        self.guarded(|driver| {
            driver.not_while_capturing("an upload")?;
            driver.follow_work()?;
            driver.upload(to, from)
        })
    }

    fn read(&mut self, from: u64, to: &mut [u8]) -> Result<()> {
        self.guarded(|driver| {
            driver.not_while_capturing("a download")?;
            driver.follow_uploads()?;
            if !to.is_empty() {
                // SAFETY: `to` is not touched before the stream is waited for, below; the source is
                // the caller's to name.
                let code = unsafe {
                    sys::cuMemcpyDtoHAsync_v2(
                        to.as_mut_ptr().cast(),
                        from,
                        to.len(),
                        driver.compute,
                    )
                };
                // Waited for in any case: the copy must not outlive the borrow of `to`.
                let waited = driver.synchronize("a download");
                driver.check(code, "a download")?;
                waited?;
            } else {
                driver.synchronize("a download")?;
            }
            driver.work_pending = false;
            Ok(())
        })
    }

    fn copy(&mut self, from: u64, to: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.guarded(|driver| {
            driver.follow_uploads()?;
            // SAFETY: stream alive, context current; the ranges are the caller's to name.
            let code = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, driver.compute) };
            driver.check(code, "a copy")
        })
    }

    fn fill32(&mut self, to: u64, bits: u32, count: usize) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        self.guarded(|driver| {
            driver.follow_uploads()?;
            // SAFETY: as in `copy`.
            let code = unsafe { sys::cuMemsetD32Async(to, bits, count, driver.compute) };
            driver.check(code, "a fill")
        })
    }

    fn fill16(&mut self, to: u64, bits: u16, count: usize) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        self.guarded(|driver| {
            driver.follow_uploads()?;
            // SAFETY: as in `copy`.
            let code = unsafe { sys::cuMemsetD16Async(to, bits, count, driver.compute) };
            driver.check(code, "a fill")
        })
    }

    fn launch(&mut self, kernel: &'static str, launch: Launch, arguments: &[Arg]) -> Result<()> {
        self.guarded(|driver| driver.launch_kernel(kernel, launch, arguments))
    }

    fn has_vendor_products(&mut self) -> Result<bool> {
        self.guarded(|driver| Ok(driver.cublaslt()?.is_some()))
    }

    fn vendor_product(&mut self, product: &VendorProduct) -> Result<bool> {
        if product.m == 0 || product.n == 0 || product.k == 0 {
            return Ok(false);
        }
        self.guarded(|driver| {
            driver.follow_uploads()?;
            let stream = driver.compute;
            match driver.cublaslt()? {
                Some(library) => library.product(product, stream),
                None => Ok(false),
            }
        })
    }

    fn begin_capture(&mut self) -> Result<bool> {
        self.guarded(Self::begin)
    }

    fn end_capture(&mut self) -> Result<Option<Graph>> {
        self.guarded(Self::end)
    }

    fn replay(&mut self, graph: Graph) -> Result<()> {
        self.guarded(|driver| driver.replay_graph(graph))
    }

    fn forget(&mut self, graph: Graph) {
        // Also after a failure, as in `free`.
        if let Ok(_current) = Current::enter(self.context) {
            self.destroy_graph(graph);
        }
    }
}

impl Drop for NvidiaDriver {
    fn drop(&mut self) {
        if let Ok(_current) = Current::enter(self.context) {
            // SAFETY: each handle was made by `prepare`, or is null where that failed, and is used
            // nowhere else; the work that uses them is waited for first. A failure leaves nothing
            // to do: after an error of a kernel, every one of these calls reports it again.
            unsafe {
                for stream in [self.copy, self.compute] {
                    if !stream.is_null() {
                        let _ = sys::cuStreamSynchronize(stream);
                    }
                }
                for graph in self.graphs.drain(..).filter(|graph| !graph.is_null()) {
                    let _ = sys::cuGraphExecDestroy(graph);
                }
                self.cublaslt = None;
                self.modules.unload();
                for event in [self.computed, self.copied].into_iter().chain(self.fetched) {
                    if !event.is_null() {
                        let _ = sys::cuEventDestroy_v2(event);
                    }
                }
                for stream in [self.copy, self.compute] {
                    if !stream.is_null() {
                        let _ = sys::cuStreamDestroy_v2(stream);
                    }
                }
                if !self.pinned.is_null() {
                    let _ = sys::cuMemFreeHost(self.pinned.cast());
                }
            }
        }
        // SAFETY: retained once by `open`.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// A context that is current until this is dropped; then the earlier one is again.
struct Current;

impl Current {
    fn enter(context: CUcontext) -> Result<Self> {
        // SAFETY: the context is retained by the driver that calls.
        let code = unsafe { sys::cuCtxPushCurrent_v2(context) };
        error::check(code, || "making the context current".to_owned())?;
        Ok(Self)
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        let mut context = std::ptr::null_mut();
        // SAFETY: pops what `enter` pushed; `context` outlives the call.
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&mut context) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exhausted_memory_names_the_need_what_is_free_and_the_total() {
        let device = DeviceInfo {
            ordinal: 1,
            name: "NVIDIA L4".to_owned(),
            capability: (8, 9),
            memory: 24 << 30,
        };
        let text = out_of_memory(&device, 30 << 30, 20 << 30, 24 << 30);
        for part in ["cuda:1", "NVIDIA L4", "30.00", "20.00", "24.00", "4.00"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_device_number_out_of_range_is_an_error_and_no_panic() {
        let error = match NvidiaDriver::open(1000) {
            Err(error) => error,
            Ok(_) => panic!("opened cuda:1000"),
        };
        assert_eq!(error.kind(), ErrorKind::Device);
        if available().is_ok() {
            assert!(error.to_string().contains("cuda:1000"), "{error}");
        }
    }

    /// Only on a machine with a GPU: bytes come back as they went, in order with copies and fills,
    /// and a source may be reused at once.
    #[test]
    fn memory_keeps_the_order_of_the_calls() {
        if let Err(why) = available() {
            eprintln!("skipped: {why}");
            return;
        }
        let mut driver = NvidiaDriver::open(0).unwrap();
        let bytes = 3 * SLOT_BYTES + 4;
        let address = driver.allocate(2 * bytes).unwrap();
        let (first, second) = (address, address + bytes as u64);
        let mut back = vec![1u8; bytes];
        driver.read(second, &mut back).unwrap();
        assert!(
            back.iter().all(|&byte| byte == 0),
            "allocated memory is zero"
        );
        let mut source = vec![0u8; bytes];
        for round in 1..=20u8 {
            source.fill(round);
            driver.write(first, &source).unwrap();
            source.fill(0xff);
            driver.copy(first, second, bytes).unwrap();
            driver.fill32(first, 0, bytes / 4).unwrap();
            driver.write(first + 8, &[7; 8]).unwrap();
        }
        driver.read(second, &mut back).unwrap();
        assert!(back.iter().all(|&byte| byte == 20));
        driver.read(first, &mut back).unwrap();
        assert_eq!(
            back[..20],
            [[0; 8], [7; 8]]
                .concat()
                .into_iter()
                .chain([0; 4])
                .collect::<Vec<_>>()
        );
        driver.free(address);

        let error = driver.allocate(1 << 50).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        let again = driver.allocate(16).expect("as before");
        driver.free(again);
        let error = driver
            .launch("absent", Launch::blocks(1, 32), &[])
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
        let later = driver.fill32(0, 0, 1).unwrap_err();
        assert_eq!(
            later.to_string(),
            error.to_string(),
            "the first failure stays"
        );
    }
}
