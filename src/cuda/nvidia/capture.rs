//! Work recorded once and done again: CUDA graphs.

use super::NvidiaDriver;
use crate::cuda::driver::Graph;
use crate::error::{Error, ErrorKind, Result};
use cudarc::driver::sys;

impl NvidiaDriver {
    /// As [`Driver::begin_capture`](crate::cuda::Driver::begin_capture), in the current context.
    pub(super) fn begin(&mut self) -> Result<bool> {
        self.not_while_capturing("a capture")?;
        self.follow_uploads()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive while `self` is; the context is current.
        let code = unsafe { sys::cuStreamBeginCapture_v2(self.compute, mode) };
        self.check(code, "starting a capture")?;
        self.capturing = true;
        Ok(true)
    }

    /// As [`Driver::end_capture`](crate::cuda::Driver::end_capture), in the current context.
    pub(super) fn end(&mut self) -> Result<Option<Graph>> {
        if !self.capturing {
            return Ok(None);
        }
        self.capturing = false;
        let mut graph = std::ptr::null_mut();
        // SAFETY: the stream is alive and capturing; `graph` outlives the call.
        let code = unsafe { sys::cuStreamEndCapture(self.compute, &mut graph) };
        self.check(code, "ending a capture")?;
        let mut executable = std::ptr::null_mut();
        // SAFETY: the graph was just made, and is not used after it is destroyed.
        let code = unsafe {
            let code = sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0);
            let _ = sys::cuGraphDestroy(graph);
            code
        };
        self.check(code, "making a graph of a capture")?;
        self.graphs.push(executable);
        Ok(Some(Graph(self.graphs.len() - 1)))
    }

    /// As [`Driver::replay`](crate::cuda::Driver::replay), in the current context.
    pub(super) fn replay_graph(&mut self, graph: Graph) -> Result<()> {
        self.not_while_capturing("a replay")?;
        let Some(&executable) = self.graphs.get(graph.0) else {
            let message = format!("no graph has the number {}", graph.0);
            return Err(Error::new(ErrorKind::Internal, message));
        };
        self.follow_uploads()?;
        // SAFETY: graph and stream are alive while `self` is; the context is current.
        let code = unsafe { sys::cuGraphLaunch(executable, self.compute) };
        self.check(code, "replaying a graph")
    }
}
