using System;
using System.Collections.Generic;
using System.Threading;
using System.Threading.Tasks;

namespace LibSft
{
    /// <summary>
    /// A run: the model, the data, the optimizer and the stop rules. Made by <see cref="SftConfig.Start"/> or
    /// <see cref="SftConfig.Resume"/>. It may move between threads and does one call at a time: a second one throws an
    /// <see cref="SftException"/> with <see cref="SftStatus.Busy"/> and has done nothing, inside a callback too.
    /// <see cref="ShouldStop"/> and <see cref="StopReason"/> may be asked at any time from any thread.
    /// </summary>
    public sealed class SftSession : IDisposable
    {
        private readonly CancellerHandle canceller;
        private readonly CancellationTokenRegistration registration;
        private readonly CancellationToken ofRun;
        private readonly Calls calls;

        internal SftSession(
            SessionHandle handle, CancellerHandle canceller, CancellationTokenRegistration registration, CancellationToken ofRun)
        {
            this.canceller = canceller;
            this.registration = registration;
            this.ofRun = ofRun;
            calls = new Calls(handle, "SftSession", Native.sft_last_error);
        }

        /// <summary>
        /// Whether the run has ended; stays true once it has. Also true where there is nothing to step: for a disposed or a poisoned
        /// session, and after the device failed.
        /// </summary>
        public bool ShouldStop
        {
            get { return calls.Ask(Native.sft_should_stop); }
        }

        /// <summary>Why the run ended; <see cref="LibSft.StopReason.None"/> while it goes on and once it is disposed.</summary>
        public StopReason StopReason
        {
            get { return (StopReason)calls.Ask(Native.sft_stop_reason); }
        }

        /// <summary>
        /// One optimizer update on the next rows, with the evaluation, checkpoint and stop decision that are due after it.
        /// </summary>
        /// <param name="token">
        /// Ends the run for good: the update at work is finished and counts, an evaluation is broken off.
        /// </param>
        /// <returns>The report; null once the run has ended, when nothing is done.</returns>
        /// <exception cref="SftException">
        /// <see cref="SftStatus.InvalidArgument"/> for a run without dataset_name. <see cref="SftStatus.IO"/> if the log cannot be
        /// written or an earlier checkpoint could not: the update has taken effect all the same, the run can go on, and
        /// <see cref="GetLastReport"/> has the report.
        /// <see cref="SftStatus.Device"/> if the device failed: the session can only be disposed.
        /// </exception>
        /// <exception cref="OperationCanceledException">
        /// The token ended the run, or the configuration's token broke an evaluation off.
        /// </exception>
        public StepReport Step(CancellationToken token = default(CancellationToken))
        {
            StepReport report = Update(Native.sft_step, token);
            ThrowIfEndedBy(token);
            return report;
        }

        /// <summary>
        /// The report of the last update since the start or the resumption, as its call gave it or would have: for an update that
        /// took effect although its call threw.
        /// </summary>
        /// <returns>The report.</returns>
        /// <exception cref="SftException"><see cref="SftStatus.InvalidArgument"/> if there has been no update.</exception>
        public StepReport GetLastReport()
        {
            var native = new NativeStepReport { StructSize = SizeOf<NativeStepReport>.Value };
            calls.Call(session => Native.sft_last_report(session, ref native));
            return new StepReport(native);
        }

        /// <summary>
        /// One optimizer update on the host's own tokens. The micro-batches are one update together: the loss is the mean over the
        /// supervised positions of all of them.
        /// </summary>
        /// <param name="micro">The micro-batches.</param>
        /// <param name="token">As for <see cref="Step"/>.</param>
        /// <returns>The report; null once the run has ended, when nothing is done.</returns>
        /// <exception cref="SftException">
        /// <see cref="SftStatus.Batch"/> or <see cref="SftStatus.InvalidArgument"/> for a malformed micro-batch: nothing was done.
        /// <see cref="SftStatus.IO"/> as <see cref="Step"/>.
        /// </exception>
        /// <exception cref="OperationCanceledException">The token ended the run.</exception>
        public StepReport StepBatch(
            IReadOnlyList<TokenBatch> micro, CancellationToken token = default(CancellationToken))
        {
            using (var pinned = new PinnedBatches(micro, "micro"))
            {
                StepReport report = Update(
                    (IntPtr session, ref NativeStepReport native) =>
                        Native.sft_step_batch(session, pinned.Native, pinned.Count, ref native),
                    token);
                ThrowIfEndedBy(token);
                return report;
            }
        }

        /// <summary>As the other one, with one micro-batch.</summary>
        /// <param name="batch">The micro-batch.</param>
        /// <param name="token">As for <see cref="Step"/>.</param>
        /// <returns>The report; null once the run has ended, when nothing is done.</returns>
        public StepReport StepBatch(TokenBatch batch, CancellationToken token = default(CancellationToken))
        {
            return StepBatch(new[] { batch }, token);
        }

        /// <summary>
        /// The updates until the run ends: each turn of <c>foreach</c> is one <see cref="Step"/>. Leaving the loop early leaves the
        /// run where it is, to be gone on with.
        /// </summary>
        /// <param name="token">Ends the run for good. The last update's report is still given before the exception.</param>
        /// <returns>The reports, one at a time.</returns>
        /// <exception cref="SftException">As <see cref="Step"/>.</exception>
        /// <exception cref="OperationCanceledException">As <see cref="Step"/>.</exception>
        public IEnumerable<StepReport> Steps(CancellationToken token = default(CancellationToken))
        {
            StepReport report;
            while ((report = Update(Native.sft_step, token)) != null) yield return report;
            ThrowIfEndedBy(token);
        }

        /// <summary>Steps until the run has ended.</summary>
        /// <param name="token">Ends the run for good.</param>
        /// <param name="progress">Receives each report; null for none.</param>
        /// <returns>The last report; null if the run had ended before.</returns>
        /// <exception cref="SftException">As <see cref="Step"/>.</exception>
        /// <exception cref="OperationCanceledException">As <see cref="Step"/>.</exception>
        public StepReport Run(
            CancellationToken token = default(CancellationToken), IProgress<StepReport> progress = null)
        {
            StepReport last = null;
            foreach (StepReport report in Steps(token))
            {
                last = report;
                if (progress != null) progress.Report(report);
            }
            return last;
        }

        /// <summary>
        /// <see cref="Run"/> on a thread of its own, which computes all the time: training waits for nothing, so this keeps a user
        /// interface or a server's threads free, and makes nothing faster. The session is busy until the task is done.
        /// </summary>
        /// <param name="token">Ends the run for good; the task is then cancelled.</param>
        /// <param name="progress">Receives each report; null for none.</param>
        /// <returns>The last report; null if the run had ended before.</returns>
        public async Task<StepReport> RunAsync(
            CancellationToken token = default(CancellationToken), IProgress<StepReport> progress = null)
        {
            // The thread starts even with a token that is cancelled already, which must end the run.
            return await Task.Factory.StartNew(
                () => Run(token, progress), CancellationToken.None, TaskCreationOptions.LongRunning, TaskScheduler.Default)
                .ConfigureAwait(false);
        }

        /// <summary>
        /// Evaluates on the evaluation rows now. The result is logged and seen by the stop rules. Also after the run has ended.
        /// </summary>
        /// <param name="token">Breaks the evaluation off and ends the run for good.</param>
        /// <returns>The numbers over all rows.</returns>
        /// <exception cref="SftException">
        /// <see cref="SftStatus.Data"/> if there are no evaluation rows, <see cref="SftStatus.IO"/> if the log cannot be written.
        /// </exception>
        /// <exception cref="OperationCanceledException">
        /// A token was cancelled: this one, one given to an earlier call, or the configuration's.
        /// </exception>
        public EvalReport Evaluate(CancellationToken token = default(CancellationToken))
        {
            return Evaluation(Native.sft_evaluate, token);
        }

        /// <summary>As <see cref="Evaluate"/>, on the host's own batches.</summary>
        /// <param name="batches">The batches.</param>
        /// <param name="token">Breaks the evaluation off and ends the run for good.</param>
        /// <returns>The numbers over all batches.</returns>
        /// <exception cref="SftException">
        /// <see cref="SftStatus.Batch"/> or <see cref="SftStatus.InvalidArgument"/> for a malformed batch,
        /// <see cref="SftStatus.Data"/> if nothing in them is supervised.
        /// </exception>
        /// <exception cref="OperationCanceledException">As <see cref="Evaluate"/>.</exception>
        public EvalReport EvaluateBatch(
            IReadOnlyList<TokenBatch> batches, CancellationToken token = default(CancellationToken))
        {
            using (var pinned = new PinnedBatches(batches, "batches"))
            {
                return Evaluation(
                    (IntPtr session, ref NativeEvalReport native) =>
                        Native.sft_evaluate_batch(session, pinned.Native, pinned.Count, ref native),
                    token);
            }
        }

        /// <summary>
        /// The numbers of one set of the last evaluation, whatever asked for it: a step, the start of the run or
        /// <see cref="Evaluate"/>.
        /// </summary>
        /// <param name="name">A name of eval_dataset_name where that names several sets; null for all sets together.</param>
        /// <returns>The numbers.</returns>
        /// <exception cref="SftException">
        /// <see cref="SftStatus.InvalidArgument"/> if the run has not evaluated yet, or no set of that evaluation has the name.
        /// </exception>
        public EvalReport EvalSet(string name = null)
        {
            byte[] set = name == null ? null : Utf8.Terminated(name, "name");
            return Evaluation(
                (IntPtr session, ref NativeEvalReport native) => Native.sft_eval_set(session, set, ref native),
                default(CancellationToken));
        }

        /// <summary>
        /// Feeds a number of the host's own to the stop rules, as known after the last update. A rule names it by its metric; a
        /// built-in name such as "eval_loss" stands for that metric, so a host may evaluate by itself.
        /// </summary>
        /// <param name="metric">The name.</param>
        /// <param name="value">The number. NaN is allowed and never counts as progress.</param>
        /// <exception cref="SftException">
        /// <see cref="SftStatus.InvalidArgument"/> for an empty name, <see cref="SftStatus.IO"/> if what is due at the end of the run
        /// cannot be written.
        /// </exception>
        public void Observe(string metric, double value)
        {
            byte[] name = Utf8.Terminated(metric, "metric");
            calls.Call(session => Native.sft_observe(session, name, value), default(CancellationToken), ofRun);
        }

        /// <summary>Where the run stands.</summary>
        /// <returns>A copy.</returns>
        public Snapshot GetSnapshot()
        {
            var native = new NativeSnapshot { StructSize = SizeOf<NativeSnapshot>.Value };
            calls.Call(session => Native.sft_snapshot_get(session, ref native));
            return new Snapshot(native);
        }

        /// <summary>
        /// Writes a checkpoint, whole or not at all, durable on return: all that a run needs to go on by
        /// <see cref="SftConfig.Resume"/>. It is a Hugging Face model folder too, with the weights of the last update. Once the run has
        /// ended and the best weights are back (<see cref="Snapshot.RestoredBest"/>), those are in the checkpoint beside the last
        /// ones, and <see cref="Export"/> is what writes them as a model.
        /// </summary>
        /// <param name="folder">The folder to write.</param>
        /// <exception cref="SftException">
        /// <see cref="SftStatus.IO"/> naming the file; what stood in the folder stays as it was.
        /// </exception>
        public void Save(string folder)
        {
            byte[] path = Utf8.Terminated(folder, "folder");
            calls.Call(session => Native.sft_save(session, path), default(CancellationToken), ofRun);
        }

        /// <summary>Writes what the run has made, whole or not at all.</summary>
        /// <param name="folder">The folder to write.</param>
        /// <param name="what">What to write.</param>
        /// <exception cref="SftException">
        /// <see cref="SftStatus.IO"/> naming the file; an earlier model in the folder stays as it was.
        /// <see cref="SftStatus.Unsupported"/> for an adapter, <see cref="SftStatus.InvalidArgument"/> for a number that is none.
        /// </exception>
        public void Export(string folder, ExportKind what = ExportKind.Full)
        {
            byte[] path = Utf8.Terminated(folder, "folder");
            calls.Call(session => Native.sft_export(session, path, (int)what), default(CancellationToken), ofRun);
        }

        /// <summary>
        /// Frees the session with all its memory, once the checkpoint on the way is written. If a call is inside (one on another
        /// thread, or the one whose callback calls this), that call ends as usual and the memory goes then.
        /// </summary>
        public void Dispose()
        {
            registration.Dispose();
            calls.Close();
            canceller.Dispose();
        }

        private delegate int Updating(IntPtr session, ref NativeStepReport report);

        private delegate int Evaluating(IntPtr session, ref NativeEvalReport report);

        private StepReport Update(Updating update, CancellationToken token)
        {
            var native = new NativeStepReport { StructSize = SizeOf<NativeStepReport>.Value };
            SftStatus status = Cancellable(session => update(session, ref native), token);
            return status == SftStatus.Ok ? new StepReport(native) : null;
        }

        private EvalReport Evaluation(Evaluating evaluate, CancellationToken token)
        {
            var native = new NativeEvalReport { StructSize = SizeOf<NativeEvalReport>.Value };
            Cancellable(session => evaluate(session, ref native), token);
            return new EvalReport(native);
        }

        private SftStatus Cancellable(Func<IntPtr, int> call, CancellationToken token)
        {
            using (canceller.CancelledBy(token))
            {
                return calls.Call(call, token, ofRun);
            }
        }

        private void ThrowIfEndedBy(CancellationToken token)
        {
            if (token.IsCancellationRequested && StopReason == StopReason.Cancelled)
            {
                throw new OperationCanceledException("the run was cancelled", token);
            }
        }
    }
}
