//! Work recorded once and done again: CUDA graphs.

use super::{NvidiaDriver, error};
use crate::cuda::driver::{Graph, no_graph};
use crate::error::Result;
use cudarc::driver::sys;

impl NvidiaDriver {
    /// As [`Driver::begin_capture`](crate::cuda::Driver::begin_capture), in the current context.
    pub(super) fn begin(&mut self) -> Result<bool> {
        self.not_while_capturing("a capture")?;
        self.follow_uploads()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive while `self` is; the context is current.
        let code = unsafe { sys::cuStreamBeginCapture_v2(self.compute, mode) };
        if error::is_of_a_capture(code) {
            return Ok(false);
        }
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
        if error::is_of_a_capture(code) {
            return Ok(None);
        }
        self.check(code, "ending a capture")?;
        let mut executable = std::ptr::null_mut();
        // SAFETY: the graph was just made, and is not used after it is destroyed.
        let code = unsafe {
            let code = sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0);
            let _ = sys::cuGraphDestroy(graph);
            code
        };
        if error::is_of_a_capture(code) {
            return Ok(None);
        }
        self.check(code, "making a graph of a capture")?;
        let free = self.graphs.iter().position(|graph| graph.is_null());
        let number = free.unwrap_or(self.graphs.len());
        match free {
            Some(number) => self.graphs[number] = executable,
            None => self.graphs.push(executable),
        }
        Ok(Some(Graph(number)))
    }

    /// As [`Driver::replay`](crate::cuda::Driver::replay), in the current context.
    pub(super) fn replay_graph(&mut self, graph: Graph) -> Result<()> {
        self.not_while_capturing("a replay")?;
        let executable = self.graphs.get(graph.0).copied();
        let Some(executable) = executable.filter(|graph| !graph.is_null()) else {
            return Err(no_graph(graph));
        };
        self.follow_uploads()?;
        // SAFETY: graph and stream are alive while `self` is; the context is current.
        let code = unsafe { sys::cuGraphLaunch(executable, self.compute) };
        self.check(code, "replaying a graph")
    }

    /// As [`Driver::forget`](crate::cuda::Driver::forget), in the current context.
    pub(super) fn destroy_graph(&mut self, graph: Graph) {
        if let Some(executable) = self.graphs.get_mut(graph.0)
            && !executable.is_null()
        {
            // SAFETY: made by `end`, destroyed once. CUDA keeps what a replay under way needs until
            // it is done. A failure leaves nothing to do.
            let _ = unsafe { sys::cuGraphExecDestroy(*executable) };
            *executable = std::ptr::null_mut();
        }
    }
}
