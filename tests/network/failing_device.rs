//! A device that fails late, as GPUs do: the operation returns, and a later copy to the host says what
//! became of it.

use crate::{TRAIN, fixtures};
use sft::cuda::{Arg, Cuda, Driver, Launch, Limits};
use sft::data::Batch;
use sft::dtype::DType;
use sft::memory::Workload;
use sft::model::{ModelSpec, ParamTable};
use sft::ops::Backend;
use sft::train::{AdamWOptions, Network};
use sft::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A driver that computes nothing and whose copies to the host fail once told so.
struct Failing(Arc<AtomicBool>);

impl Driver for Failing {
    fn describe(&self) -> String {
        "a device of a test".to_owned()
    }

    fn limits(&self) -> Limits {
        Limits {
            capability: (8, 0),
            multiprocessors: 1,
            shared_memory: 48 << 10,
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
        match self.0.load(Ordering::Relaxed) {
            true => Err(Error::new(ErrorKind::Device, "an illegal address")),
            false => Ok(()),
        }
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

    fn launch(&mut self, _: &'static str, _: Launch, _: &[Arg]) -> Result<()> {
        Ok(())
    }
}

#[test]
fn every_number_that_comes_back_says_whether_the_device_failed() {
    let spec = ModelSpec::from_dir(fixtures().join("models/llama-tiny")).unwrap();
    let table = ParamTable::new(&spec);
    let params = table.params.clone();
    let work = Workload {
        purpose: TRAIN,
        tokens: 8,
        sequence_length: 8,
        stats: 8,
        head_rows: 8,
        precision: DType::BF16,
        workspace: Cuda::WORKSPACE_BYTES,
    };
    let broken = Arc::new(AtomicBool::new(false));
    let backend = Cuda::new(Box::new(Failing(broken.clone())));
    let mut network = Network::new(backend, spec, table, work).unwrap();
    let mut batch = Batch::default();
    batch.push(&[1, 2, 3], &[1, 2, 3]);
    let options = AdamWOptions {
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.0,
        max_grad_norm: 1.0,
    };
    let mut number = [0.0];
    network.forward_backward(&batch, 1.0).unwrap();
    network.take_sums().unwrap();
    network.read_weight(&params[0], 0, &mut number).unwrap();

    broken.store(true, Ordering::Relaxed);
    network.forward_backward(&batch, 1.0).unwrap(); // not known yet
    let error = network.update(&options, 1e-3, 1.0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Device);
    assert!(error.to_string().contains("an illegal address"), "{error}");

    // Once failed, always failed.
    broken.store(false, Ordering::Relaxed);
    assert!(network.take_sums().is_err());
    assert!(network.update(&options, 1e-3, 1.0).is_err());
    assert!(network.read_weight(&params[0], 0, &mut number).is_err());
    assert!(
        network
            .read_gradient(&params[0], &mut vec![0.0; params[0].len()])
            .is_err()
    );
    assert!(network.load_weights(|_, _, _| Ok(())).is_err());
    assert!(
        network
            .logits(&batch, |_, _| panic!("numbers of a failed device"))
            .is_err()
    );
    assert!(network.status().is_err());
}
