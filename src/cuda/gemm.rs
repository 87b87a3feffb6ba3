//! What multiplies which matrices where the configuration leaves it open: own kernels or the vendor's
//! library, by the time that each takes for the products of the network, measured once on a machine.
//!
//! The times are kept on disk, beside compiled kernels, for each device, driver and build of the
//! kernels. What is there is not measured again, so that the same run takes the same kernels, and gives
//! the same bits, at each start; where it cannot be kept, nothing is measured and own kernels are used.
//! A product is measured at the largest number of tokens that is planned for, and its provider
//! multiplies the same weights for any number.

use super::driver::VendorProduct;
use super::linear::{Added, GemmProvider};
use super::linear_plan::{Layout, Product};
use super::nvidia;
use super::{Cuda, encode};
use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use crate::model::ModelSpec;
use crate::ops::{Backend, Region};
use crate::rng::Stream;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// y (m, n) = Σ over k of a·b, as a device sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GemmShape {
    /// How the factors lie in memory.
    pub layout: Layout,
    /// Rows of y.
    pub m: usize,
    /// Its columns.
    pub n: usize,
    /// Numbers in each sum.
    pub k: usize,
    /// Format of the factors.
    pub dtype: DType,
    /// Format of y.
    pub out: DType,
    /// Whether the product is added to something: to y, or to the residual stream.
    pub accumulate: bool,
}

impl GemmShape {
    /// The same without the number of tokens, which differs from one micro-batch to another.
    pub(super) fn without_tokens(self) -> Self {
        match self.layout {
            Layout::Nt | Layout::Nn => Self { m: 0, ..self },
            Layout::Tn => Self { k: 0, ..self },
        }
    }
}

impl From<&VendorProduct> for GemmShape {
    fn from(product: &VendorProduct) -> Self {
        let layout = match (product.a_transposed, product.b_transposed) {
            (true, _) => Layout::Tn,
            (false, true) => Layout::Nt,
            (false, false) => Layout::Nn,
        };
        Self {
            layout,
            m: product.m,
            n: product.n,
            k: product.k,
            dtype: product.dtype,
            out: product.out,
            accumulate: product.accumulate,
        }
    }
}

/// A matrix product of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkProduct {
    /// Its layer and pass, such as `qkv_proj forward`.
    pub name: String,
    /// Its size for the largest micro-batch.
    pub shape: GemmShape,
    /// Whether a bias is added, which only own kernels do.
    pub biased: bool,
}

/// The matrix products of an update, one for each layer, pass and size: micro-batches of `tokens`, the
/// LM head by `head_rows` rows, factors in `dtype`.
pub fn network_products(
    spec: &ModelSpec,
    tokens: usize,
    head_rows: usize,
    dtype: DType,
) -> Vec<NetworkProduct> {
    let (h, f) = (spec.hidden_size, spec.intermediate_size);
    // Rows, inputs, outputs, whether it adds to the residual stream, whether it has a bias.
    let layers = [
        ("qkv_proj", tokens, h, spec.qkv_size(), false, spec.qkv_bias),
        ("o_proj", tokens, spec.q_size(), h, true, spec.o_bias),
        ("gate_up_proj", tokens, h, 2 * f, false, spec.mlp_bias),
        ("down_proj", tokens, f, h, true, spec.mlp_bias),
        ("lm_head", head_rows, h, spec.vocab_size, false, false),
    ];
    let mut products = Vec::with_capacity(3 * layers.len());
    for (layer, rows, inputs, outputs, residual, bias) in layers {
        let mut add = |pass, biased, layout, [m, n, k]: [usize; 3], to_f32, accumulate| {
            products.push(NetworkProduct {
                name: format!("{layer} {pass}"),
                biased,
                shape: GemmShape {
                    layout,
                    m,
                    n,
                    k,
                    dtype,
                    out: if to_f32 { DType::F32 } else { dtype },
                    accumulate,
                },
            });
        };
        let forward = [rows, outputs, inputs];
        add("forward", bias, Layout::Nt, forward, residual, residual);
        let input = [rows, inputs, outputs];
        add("backward input", false, Layout::Nn, input, false, false);
        let weight = [outputs, inputs, rows];
        add("backward weight", false, Layout::Tn, weight, true, true);
    }
    products
}

/// What a product was measured to take.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GemmTimes {
    /// By own kernels.
    pub own_microseconds: f64,
    /// By cuBLASLt; `None` when it refuses the product.
    pub cublaslt_microseconds: Option<f64>,
}

impl GemmTimes {
    /// The quicker one; own kernels where there is little between them.
    pub fn provider(&self) -> GemmProvider {
        const WORTH_IT: f64 = 0.97;
        match self.cublaslt_microseconds {
            Some(time) if time < WORTH_IT * self.own_microseconds => GemmProvider::CublasLt,
            _ => GemmProvider::Portable,
        }
    }
}

/// The times of a machine, on disk.
#[derive(Debug)]
pub struct GemmTable {
    file: PathBuf,
    identity: String,
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    shape: GemmShape,
    #[serde(flatten)]
    times: GemmTimes,
}

/// The file: for whom it was measured, and the times.
#[derive(Serialize, Deserialize)]
struct Kept {
    device: String,
    products: Vec<Entry>,
}

impl GemmTable {
    /// The table of what `identity` names, in a folder. One that is not there or cannot be read is
    /// empty.
    pub fn read(folder: &Path, identity: &str) -> Self {
        let hash = blake3::hash(identity.as_bytes()).to_hex();
        let file = folder.join(format!("gemm-{}.json", &hash[..16]));
        let mut table = Self {
            file,
            identity: identity.to_owned(),
            entries: Vec::new(),
        };
        table.entries = table.kept();
        table
    }

    /// The table of the GPU `cuda:<ordinal>`, without opening it; `None` where there is no such device,
    /// or no folder for its table.
    pub fn of_device(ordinal: usize) -> Option<Self> {
        Self::of_machine(&nvidia::identity(ordinal).ok()?)
    }

    fn of_machine(identity: &str) -> Option<Self> {
        Some(Self::read(&nvidia::cache_folder()?, identity))
    }

    /// The times of a product.
    pub fn find(&self, shape: GemmShape) -> Option<GemmTimes> {
        let entry = self.entries.iter().find(|entry| entry.shape == shape)?;
        Some(entry.times)
    }

    /// Keeps times on disk. Of a product that another process has measured meanwhile, its times stay.
    fn add(&mut self, measured: Vec<Entry>) -> Result<()> {
        let mut products = self.kept();
        for entry in measured {
            if !products.iter().any(|known| known.shape == entry.shape) {
                products.push(entry);
            }
        }
        let kept = Kept {
            device: self.identity.clone(),
            products,
        };
        let json = serde_json::to_vec_pretty(&kept).map_err(|error| {
            Error::new(ErrorKind::Internal, "table of matrix products").with_source(error)
        })?;
        if let Some(folder) = self.file.parent() {
            std::fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
        }
        crate::io::write_file(&self.file, |to| to.write(&json))?;
        self.entries = kept.products;
        Ok(())
    }

    fn kept(&self) -> Vec<Entry> {
        let text = std::fs::read(&self.file).unwrap_or_default();
        let kept = serde_json::from_slice::<Kept>(&text).ok();
        kept.filter(|kept| kept.device == self.identity)
            .map_or_else(Vec::new, |kept| kept.products)
    }
}

impl Cuda {
    /// Where [`GemmProvider::Measured`] was asked for: chooses a provider for each product from the
    /// table of the machine, and first measures those that it lacks. Before the network is allocated,
    /// as it takes memory for the largest product meanwhile. The emulated device has no table, and
    /// computes by own kernels.
    ///
    /// # Errors
    /// `Device`.
    pub fn choose_gemm(&mut self, products: &[NetworkProduct]) -> Result<()> {
        if self.gemm != GemmProvider::Measured {
            return Ok(());
        }
        let identity = self.driver.identity();
        match identity.and_then(|identity| GemmTable::of_machine(&identity)) {
            Some(mut table) => self.choose_gemm_by(products, &mut table),
            None => Ok(()),
        }
    }

    /// As [`Cuda::choose_gemm`], by a table.
    ///
    /// # Errors
    /// `Device`.
    pub fn choose_gemm_by(
        &mut self,
        products: &[NetworkProduct],
        table: &mut GemmTable,
    ) -> Result<()> {
        self.by_vendor.clear();
        if !self.driver.has_vendor_products()? {
            return Ok(());
        }
        let products = products.iter().filter(|product| !product.biased);
        let mut missing: Vec<GemmShape> = Vec::new();
        for product in products.clone() {
            if table.find(product.shape).is_none() && !missing.contains(&product.shape) {
                missing.push(product.shape);
            }
        }
        if !missing.is_empty() {
            match self.measure_all(&missing) {
                // Times that cannot be kept may be others at the next start: they choose nothing.
                Ok(measured) => drop(table.add(measured)),
                // With so little room it is not the time to measure.
                Err(error) if error.kind() == ErrorKind::OutOfMemory => {}
                Err(error) => return Err(error),
            }
        }
        for product in products {
            let times = table.find(product.shape);
            if times.is_some_and(|times| times.provider() == GemmProvider::CublasLt) {
                self.by_vendor.insert(product.shape.without_tokens());
            }
        }
        self.forget_graphs();
        Ok(())
    }

    /// Times products in memory of their own.
    fn measure_all(&mut self, shapes: &[GemmShape]) -> Result<Vec<Entry>> {
        let bytes = |shape: &GemmShape| Operands::of(*shape, 0).end;
        let largest = shapes.iter().map(bytes).max().unwrap_or(0);
        let workspace = Region {
            offset: 0,
            len: Self::WORKSPACE_BYTES / 4,
            dtype: DType::F32,
        };
        self.allocate(Self::WORKSPACE_BYTES + largest, workspace)?;
        let measured = self.measure_in_place(shapes);
        self.driver.free(self.arena);
        (self.arena, self.arena_bytes, self.workspace) = (0, 0, Region::EMPTY);
        measured
    }

    fn measure_in_place(&mut self, shapes: &[GemmShape]) -> Result<Vec<Entry>> {
        let mut measured = Vec::with_capacity(shapes.len());
        for &shape in shapes {
            let operands = Operands::of(shape, Self::WORKSPACE_BYTES);
            self.fill_with_noise(operands.a);
            self.fill_with_noise(operands.b);
            let own = self.time(GemmProvider::Portable, shape, operands)?;
            let vendor = self.time(GemmProvider::CublasLt, shape, operands)?;
            measured.push(Entry {
                shape,
                times: GemmTimes {
                    own_microseconds: own,
                    cublaslt_microseconds: (!self.refused.contains(&shape)).then_some(vendor),
                },
            });
        }
        Ok(measured)
    }

    /// Microseconds of a product: the best of a few rounds, after one to load and warm up.
    fn time(&mut self, gemm: GemmProvider, shape: GemmShape, operands: Operands) -> Result<f64> {
        const ROUNDS: usize = 3;
        const LAUNCHES: usize = 4;
        let chosen = std::mem::replace(&mut self.gemm, gemm);
        let mut best = f64::INFINITY;
        for round in 0..=ROUNDS {
            let before = self.driver.clock();
            for _ in 0..LAUNCHES {
                operands.multiply(self, shape);
            }
            // An empty copy waits for what was asked for.
            let waited = self.driver.read(self.arena, &mut []);
            self.note(waited);
            let took = self.driver.clock().saturating_sub(before);
            if round > 0 {
                best = best.min(took.as_secs_f64() * 1e6 / LAUNCHES as f64);
            }
        }
        self.gemm = chosen;
        self.status()?;
        Ok(best)
    }

    /// Normal numbers, a piece of them again and again: products of zeros are quicker than others.
    fn fill_with_noise(&mut self, region: Region) {
        const PIECE: usize = 1 << 16;
        let stream = Stream::new(1, 0);
        let count = region.len.min(PIECE);
        let noise: Vec<f32> = (0..count as u64).map(|i| stream.normal(i) as f32).collect();
        let address = self.pointer(region);
        let written = self.driver.write(address, &encode(&noise, region.dtype));
        self.note(written);
        let mut done = count;
        while done < region.len {
            let next = done.min(region.len - done);
            self.copy(region.first(next), region.slice(done, next));
            done += next;
        }
    }
}

/// Where a product is measured.
#[derive(Clone, Copy)]
struct Operands {
    a: Region,
    b: Region,
    /// What the product is added to: y, or something else.
    added: Region,
    y: Region,
    /// The byte behind them.
    end: usize,
}

impl Operands {
    /// One behind the other, from `start` on.
    fn of(shape: GemmShape, start: usize) -> Self {
        let mut end = start;
        let mut place = |len: usize, dtype: DType| {
            let offset = end.next_multiple_of(256);
            end = offset + len * dtype.size();
            Region { offset, len, dtype }
        };
        let GemmShape { m, n, k, .. } = shape;
        let (a, b) = (place(m * k, shape.dtype), place(n * k, shape.dtype));
        let y = place(m * n, shape.out);
        // A layer of the forward reads the residual stream in one place and leaves it in another.
        let added = match shape.layout == Layout::Nt && shape.accumulate {
            true => place(m * n, shape.out),
            false => y,
        };
        Self {
            a,
            b,
            added,
            y,
            end,
        }
    }

    fn multiply(self, cuda: &mut Cuda, shape: GemmShape) {
        let GemmShape {
            layout, m, n, k, ..
        } = shape;
        let added = Added {
            bias: None,
            residual: shape.accumulate.then_some(self.added),
        };
        let product = Product { layout, m, n, k };
        cuda.product(product, self.a, self.b, added, self.y);
    }
}

#[cfg(all(test, feature = "emulate"))]
#[path = "gemm_tests.rs"]
mod tests;
