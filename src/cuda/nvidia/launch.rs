//! Launches: arguments to parameters, shared memory, the call.

use super::NvidiaDriver;
use crate::cuda::driver::{Arg, Launch, MatrixMap};
use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use cudarc::driver::sys::{self, CUfunction_attribute, CUresult, CUtensorMap};

/// Parameters that a kernel may have.
const MAX_PARAMETERS: usize = 32;

impl NvidiaDriver {
    /// As [`Driver::launch`](crate::cuda::Driver::launch), in the current context.
    pub(super) fn launch_kernel(
        &mut self,
        kernel: &'static str,
        launch: Launch,
        arguments: &[Arg],
    ) -> Result<()> {
        self.follow_uploads()?;
        let function = self.modules.function(kernel)?;
        check_arguments(kernel, &function.parameters, arguments)?;
        let handle = function.handle;
        if launch.shared_bytes > function.shared {
            // SAFETY: the function is loaded; the context is current.
            let code = unsafe {
                sys::cuFuncSetAttribute(
                    handle,
                    CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    launch.shared_bytes as i32,
                )
            };
            if code == CUresult::CUDA_SUCCESS {
                function.shared = launch.shared_bytes;
            }
            self.check(code, &format!("{kernel} with {launch:?}"))?;
        }
        let mut values = [0u64; MAX_PARAMETERS];
        let mut pointers = [std::ptr::null_mut(); MAX_PARAMETERS];
        let places = values.iter_mut().zip(&mut pointers);
        let mut maps = Vec::new();
        for (argument, (value, pointer)) in arguments.iter().zip(places) {
            if let Arg::Map(map) = argument {
                // In a box, as the vector moves when it grows.
                maps.push(Box::new(self.tensor_map(kernel, map)?));
                *pointer = maps.last_mut().map_or(std::ptr::null_mut(), |map| {
                    std::ptr::from_mut::<CUtensorMap>(map).cast()
                });
                continue;
            }
            // Low bytes first, as the device reads them: 4 of them for the narrow ones.
            *value = argument.bits().to_le();
            *pointer = std::ptr::from_mut(value).cast();
        }
        self.last_kernel = Some(kernel);
        let [x, y, z] = launch.grid;
        // SAFETY: the function is loaded and takes parameters of these sizes, as was checked;
        // they are copied by the call. What their addresses mean is the caller's.
        let code = unsafe {
            sys::cuLaunchKernel(
                handle,
                x,
                y,
                z,
                launch.threads,
                1,
                1,
                launch.shared_bytes,
                self.compute,
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        match code {
            CUresult::CUDA_SUCCESS => Ok(()),
            code => self.check(code, &format!("launching {kernel} with {launch:?}")),
        }
    }

    /// The parameter that a map stands for.
    fn tensor_map(&self, kernel: &str, map: &MatrixMap) -> Result<CUtensorMap> {
        use sys::CUtensorMapDataType::*;
        let mut encoded = CUtensorMap { opaque: [0; 16] };
        let sizes = [map.columns, map.rows];
        let row_bytes = [map.columns * map.dtype.size() as u64];
        let boxed = [map.box_columns, map.box_rows];
        // SAFETY: the arrays are of the rank, less one for the strides, and outlive the call, which
        // reads none of the matrix.
        let code = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut encoded,
                match map.dtype {
                    DType::F32 => CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                    DType::BF16 => CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                    DType::F16 => CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                },
                sizes.len() as u32,
                map.address as *mut std::ffi::c_void,
                sizes.as_ptr(),
                row_bytes.as_ptr(),
                boxed.as_ptr(),
                [1u32; 2].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        self.check(code, &format!("a tensor map for {kernel}: {map:?}"))?;
        Ok(encoded)
    }
}

/// Whether a kernel takes these arguments.
fn check_arguments(kernel: &str, parameters: &[usize], arguments: &[Arg]) -> Result<()> {
    let given = arguments.iter().map(|argument| argument.size());
    if arguments.len() <= MAX_PARAMETERS && given.clone().eq(parameters.iter().copied()) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Internal,
        format!(
            "{kernel} takes parameters of {parameters:?} bytes (at most {MAX_PARAMETERS}) and was \
             given {:?}",
            given.collect::<Vec<_>>()
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_must_agree_with_the_parameters_in_number_and_size() {
        let parameters = [8, 8, 4];
        let right = [Arg::Address(1), Arg::U64(2), Arg::F32(3.0)];
        check_arguments("k", &parameters, &right).unwrap();
        for wrong in [
            &right[..2],
            &[Arg::Address(1), Arg::U32(2), Arg::F32(3.0)],
            &[],
        ] {
            let error = check_arguments("k", &parameters, wrong).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Internal);
            assert!(error.to_string().starts_with("k takes"), "{error}");
        }
        let many = [Arg::U32(0); MAX_PARAMETERS + 1];
        assert!(check_arguments("k", &[4; MAX_PARAMETERS + 1], &many).is_err());
    }
}
