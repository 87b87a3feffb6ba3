//! The session's door to a [`Network`] on any backend: static dispatch below, one virtual call an
//! operation of the session above.

use crate::data::Batch;
use crate::error::Result;
use crate::memory::MemoryPlan;
use crate::model::{ModelSpec, Param, ParamTable};
use crate::ops::{Backend, ClipStats};
use crate::train::{AdamWOptions, LossSums, Moment, Network};

/// Reads a part of a tensor, from an element on.
pub(super) type ReadTensor<'a> = dyn Fn(&Param, usize, &mut [f32]) -> Result<()> + Sync + 'a;

/// Reads a part of one moment of one parameter, from an element on.
pub(super) type ReadMoment<'a> =
    dyn Fn(Moment, &Param, usize, &mut [f32]) -> Result<()> + Sync + 'a;

/// A [`Network`] whose backend is not known.
pub(super) trait AnyNetwork: Send {
    fn spec(&self) -> &ModelSpec;
    fn table(&self) -> &ParamTable;
    fn plan(&self) -> &MemoryPlan;
    fn device(&self) -> String;
    fn status(&self) -> Result<()>;
    fn load_weights(&mut self, read: &ReadTensor) -> Result<()>;
    fn read_weight(&mut self, param: &Param, start: usize, to: &mut [f32]) -> Result<()>;
    fn check_batch(&self, batch: &Batch) -> Result<()>;
    fn forward_backward(&mut self, batch: &Batch, scale: f64) -> Result<()>;
    fn forward_loss(&mut self, batch: &Batch) -> Result<()>;
    fn take_sums(&mut self) -> Result<LossSums>;
    fn update(
        &mut self,
        options: &AdamWOptions,
        learning_rate: f64,
        loss_scale: f64,
    ) -> Result<ClipStats>;
    fn zero_gradients(&mut self);
    fn measure_ceiling(&mut self) -> Result<f64>;
    #[allow(dead_code)] // until the session writes it to a checkpoint
    fn updates(&self) -> u64;
    fn set_updates(&mut self, updates: u64);
    fn read_moment(
        &mut self,
        moment: Moment,
        param: &Param,
        start: usize,
        to: &mut [f32],
    ) -> Result<()>;
    fn load_moments(&mut self, read: &ReadMoment) -> Result<()>;
    fn prefill(&mut self, prompt: &[i32]) -> Result<Vec<f32>>;
    fn decode(&mut self, token: i32, position: usize) -> Result<Vec<f32>>;
}

impl<B: Backend> AnyNetwork for Network<B> {
    fn spec(&self) -> &ModelSpec {
        Network::spec(self)
    }

    fn table(&self) -> &ParamTable {
        Network::table(self)
    }

    fn plan(&self) -> &MemoryPlan {
        Network::plan(self)
    }

    fn device(&self) -> String {
        Network::device(self)
    }

    fn status(&self) -> Result<()> {
        Network::status(self)
    }

    fn load_weights(&mut self, read: &ReadTensor) -> Result<()> {
        Network::load_weights(self, read)
    }

    fn read_weight(&mut self, param: &Param, start: usize, to: &mut [f32]) -> Result<()> {
        Network::read_weight(self, param, start, to)
    }

    fn check_batch(&self, batch: &Batch) -> Result<()> {
        Network::check_batch(self, batch)
    }

    fn forward_backward(&mut self, batch: &Batch, scale: f64) -> Result<()> {
        Network::forward_backward(self, batch, scale)
    }

    fn forward_loss(&mut self, batch: &Batch) -> Result<()> {
        Network::forward_loss(self, batch)
    }

    fn take_sums(&mut self) -> Result<LossSums> {
        Network::take_sums(self)
    }

    fn update(
        &mut self,
        options: &AdamWOptions,
        learning_rate: f64,
        loss_scale: f64,
    ) -> Result<ClipStats> {
        Network::update(self, options, learning_rate, loss_scale)
    }

    fn zero_gradients(&mut self) {
        Network::zero_gradients(self);
    }

    fn measure_ceiling(&mut self) -> Result<f64> {
        Network::measure_ceiling(self)
    }

    fn updates(&self) -> u64 {
        Network::updates(self)
    }

    fn set_updates(&mut self, updates: u64) {
        Network::set_updates(self, updates);
    }

    fn read_moment(
        &mut self,
        moment: Moment,
        param: &Param,
        start: usize,
        to: &mut [f32],
    ) -> Result<()> {
        Network::read_moment(self, moment, param, start, to)
    }

    fn load_moments(&mut self, read: &ReadMoment) -> Result<()> {
        Network::load_moments(self, read)
    }

    fn prefill(&mut self, prompt: &[i32]) -> Result<Vec<f32>> {
        Network::prefill(self, prompt)
    }

    fn decode(&mut self, token: i32, position: usize) -> Result<Vec<f32>> {
        Network::decode(self, token, position)
    }
}
