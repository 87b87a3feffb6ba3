//! The planner counting in elements of a number format, and regions instead of bytes coming back.

use super::plan::{MemoryPlan, Planner, SegmentKind, TensorId};
use crate::dtype::DType;
use crate::ops::{Indices, Region};
use std::ops::RangeInclusive;

/// A requested tensor.
#[derive(Clone, Copy)]
pub(super) struct Tensor {
    id: TensorId,
    len: usize,
    dtype: DType,
}

/// The planner, counting in elements.
#[derive(Default)]
pub(super) struct Requests {
    planner: Planner,
}

pub(super) struct Placed {
    pub plan: MemoryPlan,
}

impl Requests {
    pub fn of(
        &mut self,
        dtype: DType,
        name: impl Into<String>,
        kind: SegmentKind,
        len: usize,
        life: RangeInclusive<usize>,
    ) -> Tensor {
        let id = self.planner.tensor(name, kind, len * dtype.size(), life);
        Tensor { id, len, dtype }
    }

    pub fn f32(
        &mut self,
        name: impl Into<String>,
        kind: SegmentKind,
        len: usize,
        life: RangeInclusive<usize>,
    ) -> Tensor {
        self.of(DType::F32, name, kind, len, life)
    }

    pub fn i32(
        &mut self,
        name: &str,
        len: usize,
        life: RangeInclusive<usize>,
    ) -> (TensorId, usize) {
        let bytes = len * size_of::<i32>();
        (
            self.planner.tensor(name, SegmentKind::Batch, bytes, life),
            len,
        )
    }

    pub fn solve(self) -> Placed {
        Placed {
            plan: self.planner.solve(),
        }
    }
}

impl Placed {
    pub fn region(&self, tensor: Tensor) -> Region {
        Region {
            offset: self.plan.segment(tensor.id).offset,
            len: tensor.len,
            dtype: tensor.dtype,
        }
    }

    pub fn i32(&self, (id, len): (TensorId, usize)) -> Indices {
        Indices {
            offset: self.plan.segment(id).offset,
            len,
        }
    }
}
