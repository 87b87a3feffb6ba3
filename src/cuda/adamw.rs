//! Launches of `kernels/adamw.cu`.

use super::{Arg, Cuda, Launch, kernel};
use crate::dtype::DType;
use crate::ops::{AdamW, AdamWStep, Region};

const THREADS: u32 = 256;

/// Parameters of one thread.
const GROUP: usize = 8;

impl AdamW for Cuda {
    fn adamw(
        &mut self,
        step: AdamWStep,
        clip: Region,
        weights: Region,
        gradients: Region,
        m: Region,
        v: Region,
        operands: Option<Region>,
    ) {
        let n = weights.len;
        assert!(
            operands.is_none_or(|operands| operands.len == n)
                && [gradients, m, v].iter().all(|region| region.len == n),
            "regions of an update"
        );
        let correction1 = 1.0 - step.beta1.powf(step.step as f64);
        let correction2 = (1.0 - step.beta2.powf(step.step as f64)).sqrt();
        let arguments = [
            self.address(clip),
            self.address(weights),
            self.address(gradients),
            self.address(m),
            self.address(v),
            self.optional_address(operands),
            Arg::U64(n as u64),
            Arg::F32((1.0 - step.learning_rate * step.weight_decay) as f32),
            Arg::F32((step.learning_rate / correction1) as f32),
            Arg::F32(step.beta1 as f32),
            Arg::F32((1.0 - step.beta1) as f32),
            Arg::F32(step.beta2 as f32),
            Arg::F32((1.0 - step.beta2) as f32),
            Arg::F32((1.0 / correction2) as f32),
            Arg::F32(step.epsilon as f32),
        ];
        let format = operands.map_or(DType::F32, |operands| operands.dtype);
        let launch = Launch::blocks(n.div_ceil(GROUP * THREADS as usize), THREADS);
        self.launch(kernel!(format, "adamw"), launch, &arguments);
    }
}
