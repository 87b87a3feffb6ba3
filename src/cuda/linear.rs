//! Launches of `kernels/linear.cu`, `linear_f32.cu`, `linear_wgmma.cu` and `linear_sums.cu`, as
//! `linear_plan` lays them out.

use super::driver::{MatrixMap, VendorProduct};
use super::geometry::number;
use super::linear_plan::{Layout, Plan, Product, Room, Tile};
use super::{Arg, Call, Cuda, GemmShape, Launch, kernel};
use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::{Backend, Linear, LinearShape, Region};

/// Threads of `linear_sums.cu`.
const SUMS_THREADS: u32 = 256;

/// What multiplies matrices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GemmProvider {
    /// Own kernels, by the instructions that all devices since capability 8.0 have.
    #[default]
    Portable,
    /// Own kernels, and on capability 9.0, for large products of aligned matrices in half precision,
    /// its warpgroup instructions and tensor memory accelerator (`kernels/linear_wgmma.cu`). They
    /// have not run on a device yet.
    Wgmma,
    /// NVIDIA's cuBLASLt, and own kernels for products with a bias and for those that it refuses.
    CublasLt,
    /// The quicker of own kernels and cuBLASLt for each product, once [`Cuda::choose_gemm`] has
    /// measured them; until then own kernels.
    Measured,
}

fn kernel_name(dtype: DType, layout: Layout, tile: Tile) -> &'static str {
    match (layout, tile) {
        (Layout::Nt, Tile::Large) => kernel!(dtype, "linear_nt_128"),
        (Layout::Nt, Tile::Small) => kernel!(dtype, "linear_nt_64"),
        (Layout::Nt, Tile::Any) => kernel!(dtype, "linear_nt_any"),
        (Layout::Nn, Tile::Large) => kernel!(dtype, "linear_nn_128"),
        (Layout::Nn, Tile::Small) => kernel!(dtype, "linear_nn_64"),
        (Layout::Nn, Tile::Any) => kernel!(dtype, "linear_nn_any"),
        (Layout::Tn, Tile::Large) => kernel!(dtype, "linear_tn_128"),
        (Layout::Tn, Tile::Small) => kernel!(dtype, "linear_tn_64"),
        (Layout::Tn, Tile::Any) => kernel!(dtype, "linear_tn_any"),
        (Layout::Nt, Tile::Wgmma) => kernel!(dtype, "linear_nt_wgmma"),
        (Layout::Nn, Tile::Wgmma) => kernel!(dtype, "linear_nn_wgmma"),
        (Layout::Tn, Tile::Wgmma) => kernel!(dtype, "linear_tn_wgmma"),
    }
}

/// What is added to a product before it is stored.
#[derive(Clone, Copy, Default)]
pub(super) struct Added {
    /// F32 `(n)`.
    pub bias: Option<Region>,
    /// F32 `(m, n)`; may be y itself.
    pub residual: Option<Region>,
}

impl Cuda {
    /// Chooses what multiplies matrices, from now on.
    ///
    /// # Errors
    /// `Device` when it is cuBLASLt and that cannot be loaded or started.
    pub fn set_gemm(&mut self, gemm: GemmProvider) -> Result<()> {
        if gemm == GemmProvider::CublasLt && !self.driver.has_vendor_products()? {
            let message = "gemm: cublaslt cannot be loaded or started: install NVIDIA's cuBLAS 13 where the \
                           dynamic linker finds it, or use `own`";
            return Err(Error::new(ErrorKind::Device, message));
        }
        self.gemm = gemm;
        self.forget_graphs();
        Ok(())
    }

    /// y = a b, and what is added.
    pub(super) fn product(
        &mut self,
        product: Product,
        a: Region,
        b: Region,
        added: Added,
        y: Region,
    ) {
        let Product { m, n, k, .. } = product;
        let dtype = a.dtype;
        assert_eq!(b.dtype, dtype, "formats of the operands of a product");
        assert_eq!(
            (a.len, b.len, y.len),
            (m * k, n * k, m * n),
            "sizes of a product {product:?}"
        );
        assert!(
            y.dtype == DType::F32 || y.dtype == dtype,
            "a product of {dtype:?} stored as {:?}",
            y.dtype
        );
        if self.is_for_vendor(product, dtype, added, y)
            && self.vendor_product(product, a, b, added.residual, y)
        {
            return;
        }
        let whole = product.rows_are_whole() && (a.offset | b.offset).is_multiple_of(16);
        let hopper = self.gemm == GemmProvider::Wgmma
            && self.limits.capability == (9, 0)
            && self.limits.shared_memory as usize >= Tile::Wgmma.shared(dtype);
        let tiles: &[Tile] = match (dtype == DType::F32, whole) {
            (true, _) => &[Tile::Large, Tile::Small],
            (false, true) if hopper => &[Tile::Large, Tile::Small, Tile::Wgmma],
            (false, true) => &[Tile::Large, Tile::Small],
            (false, false) => &[Tile::Any],
        };
        let room = Room {
            multiprocessors: self.multiprocessors(),
            workspace: self.workspace.len,
        };
        let plan = Plan::choose(product, tiles, room);
        self.product_by(plan, product, a, b, added, y);
    }

    fn is_for_vendor(&self, product: Product, dtype: DType, added: Added, y: Region) -> bool {
        let Product { layout, m, n, k } = product;
        let shape = GemmShape {
            layout,
            m,
            n,
            k,
            dtype,
            out: y.dtype,
            accumulate: added.residual.is_some(),
        };
        let chosen = match self.gemm {
            GemmProvider::CublasLt => true,
            GemmProvider::Measured => self.by_vendor.contains(&shape.without_tokens()),
            GemmProvider::Portable | GemmProvider::Wgmma => false,
        };
        chosen && added.bias.is_none() && !self.refused.contains(&shape)
    }

    /// y = a b, or `residual` + a b; false when the library refuses such a product.
    fn vendor_product(
        &mut self,
        product: Product,
        a: Region,
        b: Region,
        residual: Option<Region>,
        y: Region,
    ) -> bool {
        if let Some(residual) = residual.filter(|&residual| residual != y) {
            self.copy(residual, y);
        }
        let Product { layout, m, n, k } = product;
        let product = VendorProduct {
            m,
            n,
            k,
            dtype: a.dtype,
            out: y.dtype,
            a: self.pointer(a),
            a_transposed: layout == Layout::Tn,
            b: self.pointer(b),
            b_transposed: layout == Layout::Nt,
            y: self.pointer(y),
            accumulate: residual.is_some(),
            workspace: self.pointer(self.workspace),
            workspace_bytes: self.workspace.len * self.workspace.dtype.size(),
        };
        let done = self.ask(Call::VendorProduct(product));
        if !done {
            self.refused.insert(GemmShape::from(&product));
        }
        done
    }

    fn product_by(
        &mut self,
        plan: Plan,
        product: Product,
        a: Region,
        b: Region,
        added: Added,
        y: Region,
    ) {
        let Product { layout, m, n, k } = product;
        let Plan {
            tile,
            cuts,
            k_per_cut,
        } = plan;
        let dtype = a.dtype;
        let sums = self
            .workspace
            .first(if cuts > 1 { cuts * m * n } else { 0 });
        let (stored, now) = match cuts {
            1 => (y, added),
            _ => (sums, Added::default()),
        };
        let mut arguments = Vec::with_capacity(16);
        match tile {
            Tile::Wgmma => arguments.extend(self.maps(product, a, b)),
            _ => arguments.extend([self.address(a), self.address(b)]),
        }
        arguments.push(self.optional_address(now.bias));
        arguments.push(self.optional_address(now.residual));
        match dtype {
            DType::F32 => arguments.push(self.address(stored)),
            _ => arguments.extend(self.by_format(stored)),
        }
        arguments.extend([m, n, k, k_per_cut].map(number));
        let tiles = tile.count(product);
        let grid = match tile {
            // Each block walks over tiles and cuts, as many blocks as run at once.
            Tile::Wgmma => {
                arguments.extend([tiles, tiles * cuts].map(number));
                [(tiles * cuts).min(self.multiprocessors()), 1, 1]
            }
            _ => [tiles, cuts, 1],
        };
        let launch = Launch {
            grid: grid.map(|blocks| blocks as u32),
            threads: tile.threads(dtype),
            shared_bytes: tile.shared(dtype) as u32,
        };
        self.launch(kernel_name(dtype, layout, tile), launch, &arguments);
        if cuts > 1 {
            self.finish(sums, cuts, added, y, n);
        }
    }

    /// The operands as `linear_wgmma.cu` fetches them: lines of 64 numbers, a slice of the tile's rows
    /// or columns at once where they lie along the summed index, else 64 of them.
    fn maps(&self, product: Product, a: Region, b: Region) -> [Arg; 2] {
        const LINE: usize = 64;
        let Product { layout, m, n, k } = product;
        let (tile_m, tile_n) = Tile::Wgmma.size();
        let map = |operand: Region, along_k: bool, size: usize, tile: usize| {
            let (rows, columns) = if along_k { (size, k) } else { (k, size) };
            Arg::Map(MatrixMap {
                address: self.pointer(operand),
                dtype: operand.dtype,
                rows: rows as u64,
                columns: columns as u64,
                box_rows: if along_k { tile } else { Tile::Wgmma.slice() } as u32,
                box_columns: LINE as u32,
            })
        };
        let (a_along_k, b_along_k) = match layout {
            Layout::Nt => (true, true),
            Layout::Nn => (true, false),
            Layout::Tn => (false, false),
        };
        [map(a, a_along_k, m, tile_m), map(b, b_along_k, n, tile_n)]
    }

    fn multiprocessors(&self) -> usize {
        self.limits.multiprocessors.max(1) as usize
    }

    /// y = the sum of the cuts, and what is added, in rows of n.
    fn finish(&mut self, sums: Region, cuts: usize, added: Added, y: Region, n: usize) {
        let mut arguments = vec![
            self.address(sums),
            self.optional_address(added.bias),
            self.optional_address(added.residual),
        ];
        arguments.extend(self.by_format(y));
        arguments.extend([y.len, n, cuts].map(number));
        let most = 16 * self.multiprocessors();
        let blocks = y.len.div_ceil(SUMS_THREADS as usize).min(most);
        let launch = Launch::blocks(blocks, SUMS_THREADS);
        self.launch(kernel!(y.dtype, "linear_finish"), launch, &arguments);
    }

    /// The address as half-precision numbers, and as float32; one of them null.
    fn by_format(&self, y: Region) -> [Arg; 2] {
        match y.dtype {
            DType::F32 => [Arg::Address(0), self.address(y)],
            _ => [self.address(y), Arg::Address(0)],
        }
    }

    /// dbias += Σ over rows of dy.
    fn bias_gradient(&mut self, rows: usize, columns: usize, dy: Region, dbias: Region) {
        // A part is worth a block from 8 rows for each of its 8 warps.
        const ROWS_PER_PART: usize = 64;
        let width = 16 / dy.dtype.size();
        let whole = columns.is_multiple_of(width) && dy.offset.is_multiple_of(16);
        let (kernel, width) = match whole {
            true => (kernel!(dy.dtype, "linear_column_sums"), width),
            false => (kernel!(dy.dtype, "linear_column_sums_any"), 1),
        };
        let blocks = columns.div_ceil(32 * width);
        let fill = (4 * self.multiprocessors()).div_ceil(blocks);
        let parts = rows
            .div_ceil(ROWS_PER_PART)
            .min(fill)
            .min(self.workspace.len / columns)
            .max(1);
        let rows_per_part = rows.div_ceil(parts);
        let parts = rows.div_ceil(rows_per_part);
        let sums = self.workspace.first(parts * columns);
        let launch = Launch {
            grid: [blocks as u32, parts as u32, 1],
            threads: SUMS_THREADS,
            shared_bytes: 0,
        };
        let mut arguments = vec![self.address(dy), self.address(sums)];
        arguments.extend([rows, columns, rows_per_part].map(number));
        self.launch(kernel, launch, &arguments);
        let added = Added {
            bias: None,
            residual: Some(dbias),
        };
        self.finish(sums, parts, added, dbias, columns);
    }
}

impl Linear for Cuda {
    fn linear_forward(
        &mut self,
        shape: LinearShape,
        x: Region,
        weight: Region,
        bias: Option<Region>,
        residual: Option<Region>,
        y: Region,
    ) {
        let LinearShape {
            rows,
            inputs,
            outputs,
        } = shape;
        if rows > 0 {
            let product = Product {
                layout: Layout::Nt,
                m: rows,
                n: outputs,
                k: inputs,
            };
            self.product(product, x, weight, Added { bias, residual }, y);
        }
    }

    fn linear_backward_input(
        &mut self,
        shape: LinearShape,
        dy: Region,
        weight: Region,
        dx: Region,
    ) {
        let LinearShape {
            rows,
            inputs,
            outputs,
        } = shape;
        if rows > 0 {
            let product = Product {
                layout: Layout::Nn,
                m: rows,
                n: inputs,
                k: outputs,
            };
            self.product(product, dy, weight, Added::default(), dx);
        }
    }

    fn linear_backward_weight(
        &mut self,
        shape: LinearShape,
        dy: Region,
        x: Region,
        dweight: Region,
        dbias: Option<Region>,
    ) {
        let LinearShape {
            rows,
            inputs,
            outputs,
        } = shape;
        if rows > 0 {
            let product = Product {
                layout: Layout::Tn,
                m: outputs,
                n: inputs,
                k: rows,
            };
            let added = Added {
                bias: None,
                residual: Some(dweight),
            };
            self.product(product, dy, x, added, dweight);
            if let Some(dbias) = dbias {
                self.bias_gradient(rows, outputs, dy, dbias);
            }
        }
    }
}

#[cfg(all(test, feature = "emulate"))]
#[path = "linear_tests.rs"]
mod emulated;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::{Driver, Limits};
    use std::sync::{Arc, Mutex};

    type Launches = Arc<Mutex<Vec<(&'static str, Launch, Vec<Arg>)>>>;

    /// A device of this capability that writes down what it is asked to launch.
    struct Recorder((u32, u32), Launches);

    impl Driver for Recorder {
        fn describe(&self) -> String {
            "a recorder".to_owned()
        }
        fn limits(&self) -> Limits {
            Limits {
                capability: self.0,
                multiprocessors: 132,
                shared_memory: 227 * 1024,
            }
        }
        fn allocate(&mut self, _: usize) -> Result<u64> {
            Ok(1 << 40)
        }
        fn free(&mut self, _: u64) {}
        fn write(&mut self, _: u64, _: &[u8]) -> Result<()> {
            Ok(())
        }
        fn read(&mut self, _: u64, _: &mut [u8]) -> Result<()> {
            Ok(())
        }
        fn copy(&mut self, _: u64, _: u64, _: usize) -> Result<()> {
            Ok(())
        }
        fn fill32(&mut self, _: u64, _: u32, _: usize) -> Result<()> {
            Ok(())
        }
        fn fill16(&mut self, _: u64, _: u16, _: usize) -> Result<()> {
            Ok(())
        }
        fn launch(&mut self, kernel: &'static str, launch: Launch, given: &[Arg]) -> Result<()> {
            self.1
                .lock()
                .unwrap()
                .push((kernel, launch, given.to_vec()));
            Ok(())
        }
    }

    const ROWS: usize = 8192;
    const INPUTS: usize = 1024;
    const OUTPUTS: usize = 4096;

    /// What a linear layer launches, forward and backward.
    fn launches(
        capability: (u32, u32),
        gemm: GemmProvider,
    ) -> Vec<(&'static str, Launch, Vec<Arg>)> {
        let recorded = Launches::default();
        let mut cuda = Cuda::new(Box::new(Recorder(capability, recorded.clone())));
        cuda.set_gemm(gemm).unwrap();
        let mut used = 0;
        let mut place = |len: usize, dtype: DType| {
            let offset = used;
            used += len * dtype.size();
            Region { offset, len, dtype }
        };
        let x = place(ROWS * INPUTS, DType::BF16);
        let y = place(ROWS * OUTPUTS, DType::BF16);
        let weight = place(OUTPUTS * INPUTS, DType::BF16);
        let dweight = place(OUTPUTS * INPUTS, DType::F32);
        let workspace = place(Cuda::WORKSPACE_BYTES / 4, DType::F32);
        cuda.allocate(used, workspace).unwrap();
        let shape = LinearShape {
            rows: ROWS,
            inputs: INPUTS,
            outputs: OUTPUTS,
        };
        cuda.linear_forward(shape, x, weight, None, None, y);
        cuda.linear_backward_input(shape, y, weight, x);
        cuda.linear_backward_weight(shape, y, x, dweight, None);
        drop(cuda);
        Arc::into_inner(recorded).unwrap().into_inner().unwrap()
    }

    fn names(launches: &[(&'static str, Launch, Vec<Arg>)]) -> Vec<&'static str> {
        launches.iter().map(|launch| launch.0).collect()
    }

    #[test]
    fn warpgroup_instructions_run_only_where_asked_for_and_known() {
        let portable = [
            "linear_nt_128_bf16",
            "linear_nn_128_bf16",
            "linear_tn_128_bf16",
        ];
        assert_eq!(names(&launches((9, 0), GemmProvider::default())), portable);
        assert_eq!(names(&launches((8, 0), GemmProvider::Wgmma)), portable);
        assert_eq!(names(&launches((10, 0), GemmProvider::Wgmma)), portable);
        assert_eq!(
            names(&launches((9, 0), GemmProvider::Wgmma)),
            [
                "linear_nt_wgmma_bf16",
                "linear_nn_wgmma_bf16",
                "linear_tn_wgmma_bf16"
            ]
        );
    }

    /// Columns are those of memory; boxes are whole tiles along the summed index, else blocks of 64.
    #[test]
    fn maps_describe_the_operands_as_they_lie() {
        let expected = [
            [(ROWS, INPUTS, 128), (OUTPUTS, INPUTS, 256)],
            [(ROWS, OUTPUTS, 128), (OUTPUTS, INPUTS, 64)],
            [(ROWS, OUTPUTS, 64), (ROWS, INPUTS, 64)],
        ];
        for ((_, launch, arguments), expected) in
            launches((9, 0), GemmProvider::Wgmma).iter().zip(expected)
        {
            for (argument, (rows, columns, box_rows)) in arguments.iter().zip(expected) {
                let Arg::Map(map) = argument else {
                    panic!("{argument:?}")
                };
                assert_eq!((map.rows, map.columns), (rows as u64, columns as u64));
                assert_eq!((map.box_rows, map.box_columns), (box_rows, 64));
            }
            assert!(launch.grid[0] <= 132 && launch.grid[1..] == [1, 1]);
            assert_eq!(arguments.len(), 12);
        }
    }
}
