//! What a session makes of a device that fails.

use super::Session;
use crate::config::Config;
use crate::data::Batch;
use crate::engine::Hooks;
use crate::engine::any_network::{AnyNetwork, ReadMoment, ReadTensor};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::MemoryPlan;
use crate::model::{ModelSpec, Param, ParamTable};
use crate::ops::ClipStats;
use crate::train::{AdamWOptions, LossSums, Moment};

/// A network whose device fails at the first update.
struct Failing {
    network: Box<dyn AnyNetwork>,
    failed: bool,
}

impl AnyNetwork for Failing {
    fn spec(&self) -> &ModelSpec {
        self.network.spec()
    }

    fn table(&self) -> &ParamTable {
        self.network.table()
    }

    fn plan(&self) -> &MemoryPlan {
        self.network.plan()
    }

    fn device(&self) -> String {
        self.network.device()
    }

    fn status(&self) -> Result<()> {
        match self.failed {
            true => Err(Error::new(ErrorKind::Device, "an illegal address")),
            false => Ok(()),
        }
    }

    fn load_weights(&mut self, read: &ReadTensor) -> Result<()> {
        self.status()?;
        self.network.load_weights(read)
    }

    fn read_weight(&mut self, param: &Param, start: usize, to: &mut [f32]) -> Result<()> {
        self.status()?;
        self.network.read_weight(param, start, to)
    }

    fn check_batch(&self, batch: &Batch) -> Result<()> {
        self.network.check_batch(batch)
    }

    fn forward_backward(&mut self, batch: &Batch, scale: f64) -> Result<()> {
        self.network.forward_backward(batch, scale)
    }

    fn forward_loss(&mut self, batch: &Batch) -> Result<()> {
        self.network.forward_loss(batch)
    }

    fn take_sums(&mut self) -> Result<LossSums> {
        self.status()?;
        self.network.take_sums()
    }

    fn update(&mut self, _: &AdamWOptions, _: f64, _: f64) -> Result<ClipStats> {
        self.failed = true;
        self.status().map(|()| ClipStats::default())
    }

    fn zero_gradients(&mut self) {
        self.network.zero_gradients();
    }

    fn measure_ceiling(&mut self) -> Result<f64> {
        self.network.measure_ceiling()
    }

    fn updates(&self) -> u64 {
        self.network.updates()
    }

    fn set_updates(&mut self, updates: u64) {
        self.network.set_updates(updates);
    }

    fn read_moment(
        &mut self,
        moment: Moment,
        param: &Param,
        start: usize,
        to: &mut [f32],
    ) -> Result<()> {
        self.status()?;
        self.network.read_moment(moment, param, start, to)
    }

    fn load_moments(&mut self, read: &ReadMoment) -> Result<()> {
        self.status()?;
        self.network.load_moments(read)
    }

    fn prefill(&mut self, prompt: &[i32]) -> Result<Vec<f32>> {
        self.network.prefill(prompt)
    }

    fn decode(&mut self, token: i32, position: usize) -> Result<Vec<f32>> {
        self.network.decode(token, position)
    }
}

#[test]
fn a_failed_device_ends_the_run_and_every_later_call_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let model = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/models/llama-tiny"
    );
    let mut config = Config::default();
    let keys = serde_json::json!({"model_name_or_path": model, "max_steps": 5, "max_length": 8,
        "output_dir": folder.path().join("out"), "device": "cpu"});
    config.merge_json(&keys.to_string()).unwrap();
    let mut session = Session::start(config, Hooks::default()).unwrap();
    let mut batch = Batch::default();
    batch.push(&[1, 2, 3], &[1, 2, 3]);
    session.step_batch(std::slice::from_ref(&batch)).unwrap();

    let (network, failed) = (session.network, false);
    session.network = Box::new(Failing { network, failed });
    assert!(!session.should_stop());
    let is_device = |error: Error| assert_eq!(error.kind(), ErrorKind::Device, "{error}");
    is_device(
        session
            .step_batch(std::slice::from_ref(&batch))
            .unwrap_err(),
    );
    assert!(session.should_stop() && session.has_failed());
    assert_eq!(session.stop_reason(), None, "no rule decided it");
    assert_eq!(session.snapshot().step, 1, "the update did not take effect");
    is_device(
        session
            .step_batch(std::slice::from_ref(&batch))
            .unwrap_err(),
    );
    is_device(
        session
            .evaluate_batch(std::slice::from_ref(&batch))
            .unwrap_err(),
    );
    is_device(session.save(folder.path().join("saved")).unwrap_err());
    assert!(!folder.path().join("saved").exists());
}
