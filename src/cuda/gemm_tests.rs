//! Choosing by measurement, on an emulated device whose clock tells what a test says.

use super::*;
use crate::cuda::{Arg, Driver, Emulated, Graph, Launch, Limits};
use crate::ops::{Linear, LinearShape};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a test sees of the device, and sets.
struct State {
    clock: Duration,
    /// What a product by own kernels takes.
    own: Duration,
    /// What the library takes; `None` refuses.
    vendor: fn(&VendorProduct) -> Option<Duration>,
    library: bool,
    /// Bytes that an allocation may have.
    room: usize,
    launches: usize,
    vendor_products: usize,
}

#[derive(Clone)]
struct Shared(Arc<Mutex<State>>);

impl Shared {
    fn new(vendor: fn(&VendorProduct) -> Option<Duration>) -> Self {
        Self(Arc::new(Mutex::new(State {
            clock: Duration::ZERO,
            own: Duration::from_micros(50),
            vendor,
            library: true,
            room: usize::MAX,
            launches: 0,
            vendor_products: 0,
        })))
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }

    fn device(&self) -> Cuda {
        let mut cuda = Cuda::new(Box::new(Priced(Emulated::new(1), self.clone())));
        cuda.set_gemm(GemmProvider::Measured).unwrap();
        cuda
    }
}

struct Priced(Emulated, Shared);

impl Driver for Priced {
    fn describe(&self) -> String {
        self.0.describe()
    }
    fn clock(&mut self) -> Duration {
        self.1.with(|state| state.clock)
    }
    fn limits(&self) -> Limits {
        self.0.limits()
    }
    fn allocate(&mut self, bytes: usize) -> Result<u64> {
        if bytes > self.1.with(|state| state.room) {
            return Err(Error::new(ErrorKind::OutOfMemory, "no room"));
        }
        self.0.allocate(bytes)
    }
    fn free(&mut self, address: u64) {
        self.0.free(address);
    }
    fn write(&mut self, to: u64, from: &[u8]) -> Result<()> {
        self.0.write(to, from)
    }
    fn read(&mut self, from: u64, to: &mut [u8]) -> Result<()> {
        self.0.read(from, to)
    }
    fn copy(&mut self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.0.copy(from, to, bytes)
    }
    fn fill32(&mut self, to: u64, bits: u32, count: usize) -> Result<()> {
        self.0.fill32(to, bits, count)
    }
    fn fill16(&mut self, to: u64, bits: u16, count: usize) -> Result<()> {
        self.0.fill16(to, bits, count)
    }
    fn launch(&mut self, kernel: &'static str, launch: Launch, arguments: &[Arg]) -> Result<()> {
        self.1.with(|state| {
            state.clock += state.own;
            state.launches += 1;
        });
        self.0.launch(kernel, launch, arguments)
    }
    fn has_vendor_products(&mut self) -> Result<bool> {
        Ok(self.1.with(|state| state.library))
    }
    fn vendor_product(&mut self, product: &VendorProduct) -> Result<bool> {
        let takes = self.1.with(|state| (state.vendor)(product));
        let Some(takes) = takes else { return Ok(false) };
        self.1.with(|state| {
            state.clock += takes;
            state.vendor_products += 1;
        });
        self.0.vendor_product(product)
    }
    fn begin_capture(&mut self) -> Result<bool> {
        self.0.begin_capture()
    }
    fn end_capture(&mut self) -> Result<Option<Graph>> {
        self.0.end_capture()
    }
    fn replay(&mut self, graph: Graph) -> Result<()> {
        self.0.replay(graph)
    }
}

const ROWS: usize = 16;
const LAYER: LinearShape = LinearShape {
    rows: ROWS,
    inputs: 24,
    outputs: 8,
};

/// The three products of a layer, without and with what the forward adds to.
fn layer(residual: bool) -> Vec<NetworkProduct> {
    let LinearShape {
        rows,
        inputs,
        outputs,
    } = LAYER;
    [
        (
            "forward",
            Layout::Nt,
            [rows, outputs, inputs],
            residual,
            residual,
        ),
        ("input", Layout::Nn, [rows, inputs, outputs], false, false),
        ("weight", Layout::Tn, [outputs, inputs, rows], true, true),
    ]
    .map(
        |(name, layout, [m, n, k], to_f32, accumulate)| NetworkProduct {
            name: name.to_owned(),
            biased: false,
            shape: GemmShape {
                layout,
                m,
                n,
                k,
                dtype: DType::BF16,
                out: if to_f32 { DType::F32 } else { DType::BF16 },
                accumulate,
            },
        },
    )
    .into()
}

/// Does the layer's three products, `rows` rows of them; y, dx and dweight.
fn run(cuda: &mut Cuda, rows: usize) -> [Vec<f32>; 3] {
    let shape = LinearShape { rows, ..LAYER };
    let mut used = 0;
    let mut place = |len: usize, dtype: DType| {
        let offset = used;
        used = (used + len * dtype.size()).next_multiple_of(256);
        Region { offset, len, dtype }
    };
    let x = place(rows * shape.inputs, DType::BF16);
    let weight = place(shape.inputs * shape.outputs, DType::BF16);
    let y = place(rows * shape.outputs, DType::BF16);
    let dx = place(rows * shape.inputs, DType::BF16);
    let dweight = place(shape.inputs * shape.outputs, DType::F32);
    let workspace = place(Cuda::WORKSPACE_BYTES / 4, DType::F32);
    cuda.allocate(used, workspace).unwrap();
    // Small whole numbers, whose sums are exact in any order.
    let numbers = |len: usize| {
        (0..len)
            .map(|i| (i * 7 % 5) as f32 - 2.0)
            .collect::<Vec<_>>()
    };
    cuda.upload(x, &numbers(x.len));
    cuda.upload(weight, &numbers(weight.len));
    cuda.linear_forward(shape, x, weight, None, None, y);
    cuda.linear_backward_input(shape, y, weight, dx);
    cuda.linear_backward_weight(shape, y, x, dweight, None);
    cuda.status().unwrap();
    [y, dx, dweight].map(|region| {
        let mut values = vec![0.0; region.len];
        cuda.download(region, &mut values);
        values
    })
}

/// The library is quick at what is not transposed on the left, and slow at the rest.
fn quick_forward(product: &VendorProduct) -> Option<Duration> {
    Some(Duration::from_micros(match product.a_transposed {
        false => 20,
        true => 90,
    }))
}

#[test]
fn the_quicker_one_multiplies_whatever_the_number_of_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let shared = Shared::new(quick_forward);
    let mut cuda = shared.device();
    let mut table = GemmTable::read(folder.path(), "a device");
    cuda.choose_gemm_by(&layer(false), &mut table).unwrap();
    let times: Vec<_> = (layer(false).iter())
        .map(|product| table.find(product.shape).unwrap())
        .collect();
    assert_eq!(times[0].cublaslt_microseconds, Some(20.0));
    assert_eq!(times[0].own_microseconds, 50.0);
    assert_eq!(times[2].cublaslt_microseconds, Some(90.0));
    for rows in [ROWS, 5] {
        shared.with(|state| (state.launches, state.vendor_products) = (0, 0));
        let mut own = Cuda::emulated(1).unwrap();
        assert_eq!(run(&mut cuda, rows), run(&mut own, rows));
        assert_eq!(shared.with(|state| state.vendor_products), 2);
        assert!(shared.with(|state| state.launches) >= 1);
    }
}

#[test]
fn what_was_measured_once_is_read_from_then_on() {
    let folder = tempfile::tempdir().unwrap();
    let first = Shared::new(quick_forward);
    let mut table = GemmTable::read(folder.path(), "a device");
    first
        .device()
        .choose_gemm_by(&layer(false), &mut table)
        .unwrap();

    // By now the library is slow at everything; what was chosen stays.
    let second = Shared::new(|_| Some(Duration::from_secs(1)));
    let mut table = GemmTable::read(folder.path(), "a device");
    let mut cuda = second.device();
    cuda.choose_gemm_by(&layer(false), &mut table).unwrap();
    assert_eq!(
        second.with(|state| (state.launches, state.vendor_products)),
        (0, 0)
    );
    run(&mut cuda, ROWS);
    assert_eq!(second.with(|state| state.vendor_products), 2);

    // A product that the table lacks is measured and joins it.
    let mut more = layer(false);
    more.extend(layer(true));
    cuda.choose_gemm_by(&more, &mut table).unwrap();
    let table = GemmTable::read(folder.path(), "a device");
    assert!(
        more.iter()
            .all(|product| table.find(product.shape).is_some())
    );

    // Another driver or build has a table of its own.
    let other = GemmTable::read(folder.path(), "a device, newer driver");
    assert!(other.find(more[0].shape).is_none());
}

#[test]
fn times_of_another_process_stay() {
    let folder = tempfile::tempdir().unwrap();
    let products = layer(false);
    let mut late = GemmTable::read(folder.path(), "a device");
    let mut table = GemmTable::read(folder.path(), "a device");
    (Shared::new(quick_forward).device())
        .choose_gemm_by(&products, &mut table)
        .unwrap();
    (Shared::new(|_| Some(Duration::from_micros(1))).device())
        .choose_gemm_by(&products, &mut late)
        .unwrap();
    for product in &products {
        assert_eq!(late.find(product.shape), table.find(product.shape));
    }
}

#[test]
fn what_the_library_refuses_is_done_by_own_kernels() {
    let folder = tempfile::tempdir().unwrap();
    let refuses: fn(&VendorProduct) -> Option<Duration> =
        |product| (!product.b_transposed).then_some(Duration::from_micros(1));
    let shared = Shared::new(refuses);
    let expected = run(&mut Cuda::emulated(1).unwrap(), ROWS);
    let mut table = GemmTable::read(folder.path(), "a device");
    let mut cuda = shared.device();
    cuda.choose_gemm_by(&layer(false), &mut table).unwrap();
    let times = table.find(layer(false)[0].shape).unwrap();
    assert_eq!(times.cublaslt_microseconds, None);
    assert_eq!(run(&mut cuda, ROWS), expected);

    // Also where the library is asked for by name.
    shared.with(|state| (state.launches, state.vendor_products) = (0, 0));
    let mut cuda = shared.device();
    cuda.set_gemm(GemmProvider::CublasLt).unwrap();
    assert_eq!(run(&mut cuda, ROWS), expected);
    assert_eq!(shared.with(|state| state.vendor_products), 2);
    assert!(shared.with(|state| state.launches) > 0);
}

#[test]
fn without_the_library_or_room_or_a_folder_own_kernels_multiply() {
    let quick: fn(&VendorProduct) -> Option<Duration> = |_| Some(Duration::from_micros(1));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let absent = Shared::new(quick);
    absent.with(|state| state.library = false);
    let crowded = Shared::new(quick);
    crowded.with(|state| state.room = 1 << 20);
    let read_only = Shared::new(quick);
    for (shared, folder) in [
        (absent, folder.path()),
        (crowded, folder.path()),
        (read_only, file.as_path()),
    ] {
        let mut table = GemmTable::read(folder, "a device");
        let mut cuda = shared.device();
        cuda.choose_gemm_by(&layer(false), &mut table).unwrap();
        shared.with(|state| (state.room, state.vendor_products) = (usize::MAX, 0));
        run(&mut cuda, ROWS);
        assert_eq!(shared.with(|state| state.vendor_products), 0);
        assert!(table.find(layer(false)[0].shape).is_none());
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_torn_table_is_measured_again() {
    let folder = tempfile::tempdir().unwrap();
    let shared = Shared::new(quick_forward);
    let mut table = GemmTable::read(folder.path(), "a device");
    shared
        .device()
        .choose_gemm_by(&layer(false), &mut table)
        .unwrap();
    let file = std::fs::read_dir(folder.path()).unwrap().next().unwrap();
    let file = file.unwrap().path();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, &text[..text.len() / 2]).unwrap();
    let mut table = GemmTable::read(folder.path(), "a device");
    assert!(table.find(layer(false)[0].shape).is_none());
    shared
        .device()
        .choose_gemm_by(&layer(false), &mut table)
        .unwrap();
    assert!(table.find(layer(false)[0].shape).is_some());
}

#[test]
fn little_between_them_leaves_own_kernels() {
    let provider = |vendor| {
        GemmTimes {
            own_microseconds: 100.0,
            cublaslt_microseconds: vendor,
        }
        .provider()
    };
    assert_eq!(provider(Some(98.0)), GemmProvider::Portable);
    assert_eq!(provider(Some(90.0)), GemmProvider::CublasLt);
    assert_eq!(provider(Some(f64::NAN)), GemmProvider::Portable);
    assert_eq!(provider(None), GemmProvider::Portable);
}
