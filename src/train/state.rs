//! What an optimizer remembers, in and out: with the weights it is all that a network's next update
//! depends on besides its batch.

use super::network::{Network, Parts};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::NetworkLayout;
use crate::model::Param;
use crate::ops::{Backend, Region};

/// A moment of AdamW, float32 and laid out as the parameter table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Moment {
    /// m, the running mean of the gradients; PyTorch's `exp_avg`.
    First,
    /// v, the running mean of their squares; PyTorch's `exp_avg_sq`.
    Second,
}

impl Moment {
    /// Both, in the order of a checkpoint.
    pub const ALL: [Moment; 2] = [Moment::First, Moment::Second];

    /// PyTorch's name.
    pub fn name(self) -> &'static str {
        match self {
            Moment::First => "exp_avg",
            Moment::Second => "exp_avg_sq",
        }
    }
}

impl<B: Backend> Network<B> {
    /// Optimizer updates that took effect: AdamW's t.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Goes on counting from `updates`, the count that belongs to the moments.
    pub fn set_updates(&mut self, updates: u64) {
        self.updates = updates;
    }

    /// Copies elements of a parameter's moment, from `start` on, to the host.
    ///
    /// # Errors
    /// `Device`; `Internal` for a network without an optimizer.
    pub fn read_moment(
        &mut self,
        moment: Moment,
        param: &Param,
        start: usize,
        to: &mut [f32],
    ) -> Result<()> {
        let tensor = self.moment(moment, param)?;
        self.backend.download(tensor.slice(start, to.len()), to);
        self.backend.status()
    }

    /// Fills both moments of every parameter from a reader that gets the moment, the parameter's entry,
    /// a first element and the numbers to write from there on; called as that of
    /// [`Network::load_weights`].
    ///
    /// # Errors
    /// Those of `read`, `Device`; `Internal` for a network without an optimizer.
    pub fn load_moments(
        &mut self,
        read: impl Fn(Moment, &Param, usize, &mut [f32]) -> Result<()> + Sync,
    ) -> Result<()> {
        let parts = Parts::of(&self.table);
        for moment in Moment::ALL {
            let read = |param: &Param, start, to: &mut [f32]| read(moment, param, start, to);
            let all = moments(&self.layout, moment)?;
            self.backend
                .upload_from(all, &|start, values| parts.read(start, values, &read))?;
        }
        self.backend.status()
    }

    fn moment(&self, moment: Moment, param: &Param) -> Result<Region> {
        Ok(moments(&self.layout, moment)?.slice(param.offset, param.len()))
    }
}

/// One moment of all parameters.
fn moments(layout: &NetworkLayout, moment: Moment) -> Result<Region> {
    let all = match moment {
        Moment::First => layout.m,
        Moment::Second => layout.v,
    };
    if all.len == 0 {
        return Err(Error::new(
            ErrorKind::Internal,
            "the network was not planned for training and has no moments",
        ));
    }
    Ok(all)
}
