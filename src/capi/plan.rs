//! The memory that a run will take.

use super::arguments::{Out, OutStruct};
use super::config::{sft_config, with_config};
use super::report::sft_memory_plan;
use super::status::*;
use super::string::give_string;
use crate::engine;
use crate::error::{Error, ErrorKind};
use std::ffi::c_char;
use std::sync::Arc;

/// Plans the memory of a run, without allocating it: reads the model's config.json and, where the
/// configuration names data, tokenises the rows (or finds them in the cache).
///
/// Errors: those of sft_start about the configuration, the model's config.json and the data; the
/// text is on the configuration. SFT_ERR_CANCELLED if the canceller was triggered.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sft_plan(
    config: *mut sft_config,
    out: *mut sft_memory_plan,
) -> sft_status {
    with_config(config, |state| {
        // SAFETY: the header asks for a struct of the size that it says.
        let out = unsafe { OutStruct::new(out) }?;
        let plan = engine::plan_with(&state.config, state.hooks(Arc::default()))?;
        // SAFETY: as above.
        unsafe { out.write((&plan).into()) }
        Ok(SFT_OK)
    })
}

/// As sft_plan, with every tensor: writes a JSON object to *out, whose "total_bytes" is the size and
/// whose "segments" are objects with "name", "kind", "bytes", "offset" and the first and last phase
/// of the update in which the tensor lives, "birth" and "death". Free it by sft_string_free.
///
/// Errors: as sft_plan.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sft_plan_json(
    config: *mut sft_config,
    out: *mut *mut c_char,
) -> sft_status {
    with_config(config, |state| {
        let out = Out::new(out, "out")?;
        let plan = engine::plan_with(&state.config, state.hooks(Arc::default()))?;
        let json = serde_json::to_string(&plan)
            .map_err(|e| Error::new(ErrorKind::Internal, "the plan is no JSON").with_source(e))?;
        // SAFETY: the header asks for a place that can be written to.
        unsafe { out.write(give_string(&json)) }
        Ok(SFT_OK)
    })
}
