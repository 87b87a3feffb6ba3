//! Writing in the background: the run goes on while its copy is on the way to the disk.

use super::write::{Contents, Tensors, Written, write};
use crate::engine::any_network::AnyNetwork;
use crate::error::{Error, ErrorKind, Result};
use crate::io::available_memory;
use crate::model::{Param, ParamTable};
use crate::train::Moment;
use memmap2::MmapMut;
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
/// has no room for one, checkpoints are written on the calling thread. It also deletes old ones, which
/// for gigabytes takes a while too.
///
/// Dropping it waits for what is on the way.
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
    /// Folders that are still to be deleted.
    removing: usize,
    /// Why some could not be.
    not_removed: Vec<Error>,
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
        match self.hand_over(Task::Write(Box::new(job))) {
            None => self.writing = Some(step),
            // The system gives no thread.
            Some(task) => {
                let outcome = task.run();
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
        while self.is_busy()
            && let Some(thread) = &self.thread
        {
            match thread.outcomes.try_recv() {
                Ok(outcome) => self.take_in(outcome),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => self.thread_is_gone(),
            }
        }
        std::mem::take(&mut self.outcomes)
    }

    /// As [`Writer::poll`], once no checkpoint is on the way any more.
    pub fn finish(&mut self) -> Vec<Result<Durable>> {
        self.wait();
        std::mem::take(&mut self.outcomes)
    }

    /// Deletes an old checkpoint, after what is on the way. Whether that failed is told by
    /// [`Writer::not_removed`].
    pub fn remove(&mut self, folder: PathBuf) {
        self.removing += 1;
        if let Some(task) = self.hand_over(Task::Remove(folder)) {
            let outcome = task.run();
            self.take_in(outcome);
        }
    }

    /// Waits for all deletions.
    pub fn finish_removals(&mut self) {
        while self.removing > 0 {
            self.take_next();
        }
    }

    /// Why folders could not be deleted since the last call.
    pub fn not_removed(&mut self) -> Vec<Error> {
        std::mem::take(&mut self.not_removed)
    }

    fn wait(&mut self) {
        while self.writing.is_some() {
            self.take_next();
        }
    }

    fn is_busy(&self) -> bool {
        self.writing.is_some() || self.removing > 0
    }

    /// Waits for the thread's next outcome.
    fn take_next(&mut self) {
        let outcome = self.thread.as_ref().and_then(|t| t.outcomes.recv().ok());
        match outcome {
            Some(outcome) => self.take_in(outcome),
            None => self.thread_is_gone(),
        }
    }

    /// Gives the task back when there is no thread to take it.
    fn hand_over(&mut self, task: Task) -> Option<Task> {
        if self.thread.is_none() {
            self.thread = Thread::start();
        }
        match &self.thread {
            Some(thread) => thread.send(task),
            None => Some(task),
        }
    }

    fn take_in(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Written(done) => {
                self.writing = None;
                self.idle = Some(done.buffers);
                self.note(done.written);
            }
            Outcome::Removed(removed) => {
                self.removing -= 1;
                self.not_removed.extend(removed.err());
            }
        }
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
        self.removing = 0;
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

/// A thread that takes tasks. Dropping it waits for those that it has.
struct Thread {
    /// Taken by the drop, which ends the thread's loop.
    tasks: Option<Sender<Task>>,
    outcomes: Receiver<Outcome>,
    handle: Option<JoinHandle<()>>,
}

impl Thread {
    fn start() -> Option<Self> {
        let (tasks, incoming) = channel::<Task>();
        let (outgoing, outcomes) = channel();
        let work = move || {
            stand_back();
            for task in incoming {
                if outgoing.send(task.run()).is_err() {
                    break;
                }
            }
        };
        let builder = std::thread::Builder::new().name("sft-checkpoint".into());
        Some(Self {
            tasks: Some(tasks),
            outcomes,
            handle: Some(builder.spawn(work).ok()?),
        })
    }

    /// Gives the task back when the thread has ended.
    fn send(&self, task: Task) -> Option<Task> {
        match &self.tasks {
            Some(tasks) => tasks.send(task).err().map(|unsent| unsent.0),
            None => Some(task),
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.tasks = None;
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

enum Task {
    Write(Box<Job>),
    Remove(PathBuf),
}

enum Outcome {
    Written(Box<JobDone>),
    Removed(Result<()>),
}

struct JobDone {
    written: Result<Written>,
    buffers: Buffers,
}

impl Task {
    fn run(self) -> Outcome {
        match self {
            Self::Write(job) => job.run(),
            Self::Remove(folder) => {
                let removed = std::fs::remove_dir_all(&folder);
                Outcome::Removed(removed.map_err(|e| Error::io(&folder, e)))
            }
        }
    }
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
        Outcome::Written(Box::new(JobDone { written, buffers }))
    }
}

/// Lets the threads that train go first: what takes their time here and there holds up all of them, since
/// they wait for each other.
#[cfg(target_os = "linux")]
fn stand_back() {
    // On Linux the number of a thread stands for that thread alone. Who must not has the usual priority.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 15);
}

#[cfg(not(target_os = "linux"))]
fn stand_back() {}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

/// A copy of what changes with an update, each in the layout of the parameter table.
struct Buffers {
    weights: HostCopy,
    first: HostCopy,
    second: HostCopy,
}

/// Numbers in memory whose pages are made by the threads that first fill them: made by one thread, those
/// of a gigabyte hold up an update.
struct HostCopy(MmapMut);

impl HostCopy {
    fn new(len: usize) -> Option<Self> {
        MmapMut::map_anon(len.max(1) * size_of::<f32>())
            .ok()
            .map(Self)
    }

    fn values(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }

    fn values_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

impl Buffers {
    /// `None` where the host has no room for it.
    fn new(table: &ParamTable) -> Option<Self> {
        let bytes = 3 * (table.len * size_of::<f32>()) as u64;
        // The system promises more than it has; who believes it is killed.
        if available_memory().is_some_and(|available| available < bytes + bytes / 8) {
            return None;
        }
        Some(Self {
            weights: HostCopy::new(table.len)?,
            first: HostCopy::new(table.len)?,
            second: HostCopy::new(table.len)?,
        })
    }

    fn fill(&mut self, table: &ParamTable, network: &mut dyn AnyNetwork) -> Result<()> {
        for param in &table.params {
            let range = param.offset..param.offset + param.len();
            network.read_weight(param, 0, &mut self.weights.values_mut()[range.clone()])?;
            for (moment, copy) in [
                (Moment::First, &mut self.first),
                (Moment::Second, &mut self.second),
            ] {
                network.read_moment(moment, param, 0, &mut copy.values_mut()[range.clone()])?;
            }
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
        copy(self.weights.values(), param, start, to);
        Ok(())
    }

    fn moment(&mut self, m: Moment, param: &Param, start: usize, to: &mut [f32]) -> Result<()> {
        let values = match m {
            Moment::First => &self.first,
            Moment::Second => &self.second,
        };
        copy(values.values(), param, start, to);
        Ok(())
    }
}
