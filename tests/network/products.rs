//! The list of a network's matrix products, by which providers are measured and chosen, against what a
//! network asks its device for.

use crate::{TRAIN, fixtures};
use sft::Result;
use sft::cuda::{
    Arg, Cuda, Driver, GemmProvider, GemmShape, GemmTable, Launch, Limits, VendorProduct,
    network_products,
};
use sft::data::Batch;
use sft::dtype::DType;
use sft::memory::Workload;
use sft::model::{ModelSpec, ParamTable};
use sft::train::Network;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a device was asked for since it was last looked at.
#[derive(Default)]
struct Asked {
    vendor: Vec<GemmShape>,
    own: Vec<&'static str>,
    clock: Duration,
}

/// A device that computes nothing, and whose library is quick.
struct Listening(Arc<Mutex<Asked>>);

impl Driver for Listening {
    fn describe(&self) -> String {
        "a device of a test".to_owned()
    }
    fn clock(&mut self) -> Duration {
        self.0.lock().unwrap().clock
    }
    fn limits(&self) -> Limits {
        Limits {
            capability: (8, 0),
            multiprocessors: 8,
            shared_memory: 99 << 10,
        }
    }
    fn allocate(&mut self, _: usize) -> Result<u64> {
        Ok(4096)
    }
    fn free(&mut self, _: u64) {}
    fn write(&mut self, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn read(&mut self, _: u64, to: &mut [u8]) -> Result<()> {
        to.fill(0);
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
    fn launch(&mut self, kernel: &'static str, _: Launch, _: &[Arg]) -> Result<()> {
        let mut asked = self.0.lock().unwrap();
        asked.clock += Duration::from_micros(10);
        if ["linear_nt", "linear_nn", "linear_tn"]
            .iter()
            .any(|name| kernel.starts_with(name))
        {
            asked.own.push(kernel);
        }
        Ok(())
    }
    fn has_vendor_products(&mut self) -> Result<bool> {
        Ok(true)
    }
    fn vendor_product(&mut self, product: &VendorProduct) -> Result<bool> {
        let mut asked = self.0.lock().unwrap();
        asked.clock += Duration::from_micros(1);
        asked.vendor.push(product.into());
        Ok(true)
    }
}

#[test]
fn the_list_of_products_is_what_a_network_multiplies() {
    const TOKENS: usize = 12;
    for model in ["llama-tiny", "qwen2-tiny", "qwen3-tiny"] {
        let spec = ModelSpec::from_dir(fixtures().join("models").join(model)).unwrap();
        let layers = spec.num_layers;
        let work = Workload {
            purpose: TRAIN,
            tokens: TOKENS,
            sequence_length: TOKENS,
            stats: TOKENS,
            head_rows: TOKENS - 1,
            precision: DType::BF16,
            workspace: 32 << 20,
        };
        let products = network_products(&spec, TOKENS, work.head_rows, DType::BF16);
        let asked = Arc::new(Mutex::new(Asked::default()));
        let mut backend = Cuda::new(Box::new(Listening(asked.clone())));
        backend.set_gemm(GemmProvider::Measured).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut table = GemmTable::read(folder.path(), "a device of a test");
        backend.choose_gemm_by(&products, &mut table).unwrap();
        let table = ParamTable::new(&spec);
        let mut network = Network::new(backend, spec, table, work).unwrap();
        *asked.lock().unwrap() = Asked::default();

        let mut batch = Batch::default();
        let ids: Vec<i32> = (1..=TOKENS as i32).collect();
        batch.push(&ids, &ids);
        network.forward_backward(&batch, 1.0).unwrap();
        network.status().unwrap();

        // Each product of a block once a layer, those of the head once; the biased ones by own kernels.
        let mut expected = Vec::new();
        for product in products.iter().filter(|product| !product.biased) {
            let head = product.name.starts_with("lm_head");
            expected.extend(vec![product.shape; if head { 1 } else { layers }]);
        }
        let biased = products.iter().filter(|product| product.biased).count();
        let asked = asked.lock().unwrap();
        let sorted = |shapes: &[GemmShape]| {
            let mut texts: Vec<String> = shapes.iter().map(|shape| format!("{shape:?}")).collect();
            texts.sort();
            texts
        };
        assert_eq!(sorted(&asked.vendor), sorted(&expected), "{model}");
        assert_eq!(asked.own.len(), biased * layers, "{model}: {:?}", asked.own);
        assert_eq!(biased > 0, model == "qwen2-tiny");
    }
}
