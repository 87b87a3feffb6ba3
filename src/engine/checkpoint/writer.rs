//! Writing in the background: the run goes on while its copy is on the way to the disk.

use super::write::{Contents, Tensors, Written, write};
use crate::engine::any_network::AnyNetwork;
use crate::error::{Error, ErrorKind, Result};
use crate::io::available_memory;
use crate::model::{Param, ParamTable};
use crate::train::Moment;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;

/// A checkpoint that has become durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::engine) struct Durable {
    /// The update that it is of.
    pub step: u64,
    /// Where it stands.
    pub folder: PathBuf,
}

/// Writes checkpoints one after the other, on a thread that the first one starts. It holds a copy of
/// the weights and of both moments, allocated at the first checkpoint and used again; where the host
/// has no room for one, checkpoints are written on the calling thread.
///
/// Dropping it waits for the checkpoint on the way.
#[derive(Default)]
pub(in crate::engine) struct Writer {
    /// The newest durable checkpoint, to link from.
    earlier: Option<Arc<Written>>,
    idle: Option<Buffers>,
    thread: Option<Thread>,
    /// The update whose checkpoint is on the way.
    writing: Option<u64>,
    /// What came of earlier ones and has not been told yet.
    outcomes: Vec<Result<Durable>>,
}

impl Writer {
    /// A writer that links what it can from `earlier`, the checkpoint that a run resumed from.
    pub fn new(earlier: Option<Written>) -> Self {
        Self {
            earlier: earlier.map(Arc::new),
            ..Self::default()
        }
    }

    /// Hands over a checkpoint of `network` as it is now, to be written to `folder`. Waits first for the
    /// one before it. What becomes of it is told by [`Writer::poll`] and [`Writer::finish`].
    ///
    /// # Errors
    /// `Device` when the network cannot be read.
    pub fn save(
        &mut self,
        folder: &Path,
        contents: Contents,
        network: &mut dyn AnyNetwork,
    ) -> Result<()> {
        self.wait();
        let table = &contents.model.table;
        let Some(mut buffers) = self.idle.take().or_else(|| Buffers::new(table)) else {
            let written = write(folder, &contents, network, self.earlier.as_deref());
            self.note(written);
            return Ok(());
        };
        if let Err(error) = buffers.fill(table, network) {
            self.idle = Some(buffers);
            return Err(error);
        }
        let step = contents.state.step;
        let job = Job {
            folder: folder.to_owned(),
            contents,
            buffers,
            earlier: self.earlier.clone(),
        };
        match self.hand_over(job) {
            None => self.writing = Some(step),
            // The system gives no thread.
            Some(job) => {
                let outcome = job.run();
                self.take_in(outcome);
            }
        }
        Ok(())
    }

    /// Writes a checkpoint of `network` to `folder` on the calling thread; it is durable on return.
    /// Waits first for the one on the way.
    ///
    /// # Errors
    /// As [`write`].
    pub fn save_now(
        &mut self,
        folder: &Path,
        contents: &Contents,
        network: &mut dyn AnyNetwork,
    ) -> Result<Durable> {
        self.wait();
        let written = write(folder, contents, network, self.earlier.as_deref())?;
        let durable = durable(&written);
        self.earlier = Some(Arc::new(written));
        Ok(durable)
    }

    /// The update whose checkpoint is on the way.
    pub fn writing(&self) -> Option<u64> {
        self.writing
    }

    /// What became durable, or failed, since the last call; does not wait.
    pub fn poll(&mut self) -> Vec<Result<Durable>> {
        if self.writing.is_some()
            && let Some(thread) = &self.thread
        {
            match thread.outcomes.try_recv() {
                Ok(outcome) => self.take_in(outcome),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => self.thread_is_gone(),
            }
        }
        std::mem::take(&mut self.outcomes)
    }

    /// As [`Writer::poll`], once nothing is on the way any more.
    pub fn finish(&mut self) -> Vec<Result<Durable>> {
        self.wait();
        std::mem::take(&mut self.outcomes)
    }

    fn wait(&mut self) {
        if self.writing.is_none() {
            return;
        }
        let outcome = self.thread.as_ref().and_then(|t| t.outcomes.recv().ok());
        match outcome {
            Some(outcome) => self.take_in(outcome),
            None => self.thread_is_gone(),
        }
    }

    /// Gives the job back when there is no thread to take it.
    fn hand_over(&mut self, job: Job) -> Option<Job> {
        if self.thread.is_none() {
            self.thread = Thread::start();
        }
        match &self.thread {
            Some(thread) => thread.send(job),
            None => Some(job),
        }
    }

    fn take_in(&mut self, outcome: Outcome) {
        self.writing = None;
        self.idle = Some(outcome.buffers);
        self.note(outcome.written);
    }

    fn note(&mut self, written: Result<Written>) {
        self.outcomes.push(written.map(|written| {
            let durable = durable(&written);
            self.earlier = Some(Arc::new(written));
            durable
        }));
    }

    /// Cannot happen, since the thread catches what a checkpoint can throw; told all the same.
    fn thread_is_gone(&mut self) {
        self.writing = None;
        self.thread = None;
        let message = "the thread that writes checkpoints has ended";
        self.outcomes
            .push(Err(Error::new(ErrorKind::Internal, message)));
    }
}

fn durable(written: &Written) -> Durable {
    Durable {
        step: written.manifest.state.step,
        folder: written.folder.clone(),
    }
}

/// A thread that takes jobs. Dropping it waits for the one that it has.
struct Thread {
    /// Taken by the drop, which ends the thread's loop.
    jobs: Option<Sender<Job>>,
    outcomes: Receiver<Outcome>,
    handle: Option<JoinHandle<()>>,
}

impl Thread {
    fn start() -> Option<Self> {
        let (jobs, incoming) = channel::<Job>();
        let (outgoing, outcomes) = channel();
        let work = move || {
            for job in incoming {
                if outgoing.send(job.run()).is_err() {
                    break;
                }
            }
        };
        let builder = std::thread::Builder::new().name("sft-checkpoint".into());
        Some(Self {
            jobs: Some(jobs),
            outcomes,
            handle: Some(builder.spawn(work).ok()?),
        })
    }

    /// Gives the job back when the thread has ended.
    fn send(&self, job: Job) -> Option<Job> {
        match &self.jobs {
            Some(jobs) => jobs.send(job).err().map(|unsent| unsent.0),
            None => Some(job),
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(handle) = self.handle.take() {
            // Its panics are caught; there is nothing left to tell.
            let _ = handle.join();
        }
    }
}

struct Job {
    folder: PathBuf,
    contents: Contents,
    buffers: Buffers,
    earlier: Option<Arc<Written>>,
}

struct Outcome {
    written: Result<Written>,
    buffers: Buffers,
}

impl Job {
    fn run(self) -> Outcome {
        let Job {
            folder,
            contents,
            mut buffers,
            earlier,
        } = self;
        // The buffers are only read, so that they are none the worse for a panic.
        let written = catch_unwind(AssertUnwindSafe(|| {
            write(&folder, &contents, &mut buffers, earlier.as_deref())
        }));
        let written = written.unwrap_or_else(|panic| {
            let message = format!(
                "writing the checkpoint {} panicked: {}",
                folder.display(),
                panic_message(panic.as_ref())
            );
            Err(Error::new(ErrorKind::Panic, message))
        });
        Outcome { written, buffers }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

/// A copy of what changes with an update, each in the layout of the parameter table.
struct Buffers {
    weights: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
}

impl Buffers {
    /// `None` where the host has no room for it.
    fn new(table: &ParamTable) -> Option<Self> {
        let bytes = 3 * (table.len * size_of::<f32>()) as u64;
        // The system promises more than it has; who believes it is killed.
        if available_memory().is_some_and(|available| available < bytes + bytes / 8) {
            return None;
        }
        let zeros = || {
            let mut values = Vec::new();
            values.try_reserve_exact(table.len).ok()?;
            values.resize(table.len, 0.0);
            Some(values)
        };
        Some(Self {
            weights: zeros()?,
            first: zeros()?,
            second: zeros()?,
        })
    }

    fn fill(&mut self, table: &ParamTable, network: &mut dyn AnyNetwork) -> Result<()> {
        for param in &table.params {
            let range = param.offset..param.offset + param.len();
            network.read_weight(param, 0, &mut self.weights[range.clone()])?;
            network.read_moment(Moment::First, param, 0, &mut self.first[range.clone()])?;
            network.read_moment(Moment::Second, param, 0, &mut self.second[range])?;
        }
        Ok(())
    }
}

fn copy(values: &[f32], param: &Param, start: usize, to: &mut [f32]) {
    let from = param.offset + start;
    to.copy_from_slice(&values[from..from + to.len()]);
}

impl Tensors for Buffers {
    fn weights(&mut self, param: &Param, start: usize, to: &mut [f32]) -> Result<()> {
        copy(&self.weights, param, start, to);
        Ok(())
    }

    fn moment(&mut self, m: Moment, param: &Param, start: usize, to: &mut [f32]) -> Result<()> {
        let values = match m {
            Moment::First => &self.first,
            Moment::Second => &self.second,
        };
        copy(values, param, start, to);
        Ok(())
    }
}
