//! The last evaluation, set by set.

use super::arguments::{OutStruct, text};
use super::guard::invalid;
use super::report::sft_eval_report;
use super::session::{sft_session, with_session};
use super::status::{SFT_OK, sft_status, stop_code};
use crate::error::Result;
use crate::report::{EvalReport, EvalSetReport};
use std::ffi::c_char;

/// Writes the numbers of one set of the last evaluation to *out, whatever asked for it: a step, the
/// start of the run or sft_evaluate. name is a name of eval_dataset_name where that names several
/// sets, or NULL for all sets together.
///
/// Errors: SFT_ERR_INVALID_ARGUMENT if the run has not evaluated yet, or no set of that evaluation
/// has the name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sft_eval_set(
    session: *mut sft_session,
    name: *const c_char,
    out: *mut sft_eval_report,
) -> sft_status {
    with_session(session, |session| {
        // SAFETY: the header asks for a struct of the size that it says.
        let out = unsafe { OutStruct::new(out) }?;
        let Some(all) = session.last_evaluation() else {
            return Err(invalid("this run has not evaluated yet"));
        };
        let stop_reason = stop_code(session.stop_reason());
        let report = match name.is_null() {
            true => sft_eval_report::new(all, stop_reason),
            false => {
                // SAFETY: the header asks for a NUL-terminated string.
                let set = set_of(all, unsafe { text(name, "name") }?)?;
                sft_eval_report::of_set(set, all.step, stop_reason)
            }
        };
        // SAFETY: as above.
        unsafe { out.write(report) }
        Ok(SFT_OK)
    })
}

fn set_of<'a>(report: &'a EvalReport, name: &str) -> Result<&'a EvalSetReport> {
    report.set(name).ok_or_else(|| {
        let names: Vec<&str> = report.sets.iter().map(|set| set.name.as_str()).collect();
        invalid(match names.is_empty() {
            true => format!("no set is named {name}: the rows of the last evaluation have no name"),
            false => format!(
                "no set is named {name}: the last evaluation has {}",
                names.join(", ")
            ),
        })
    })
}
