using System;
using System.Threading;

namespace LibSft
{
    /// <summary>
    /// The configuration of a run: keys with values, callbacks and a token that cancels. Keys are those of the command line's
    /// configuration files. A session has its own copy, so a configuration can be changed, used again or disposed while its sessions
    /// run. It may move between threads and does one call at a time: a second one throws an <see cref="SftException"/> with
    /// <see cref="SftStatus.Busy"/>.
    /// </summary>
    public sealed class SftConfig : IDisposable
    {
        private readonly Calls calls;

        /// <summary>Makes a configuration with every key at its default.</summary>
        /// <exception cref="SftVersionException">The native library has another binary interface.</exception>
        /// <exception cref="DllNotFoundException">There is no native library where the runtime looks for it.</exception>
        public SftConfig()
        {
            SftLibrary.EnsureCompatible();
            var handle = new ConfigHandle();
            handle.Hold(Native.sft_config_new());
            if (handle.IsInvalid) throw new OutOfMemoryException("sft_config_new");
            calls = new Calls(handle, "SftConfig", Native.sft_config_last_error);
        }

        /// <summary>
        /// Stops the sessions that are started from now on, and <see cref="Start"/>, <see cref="Resume"/> and <see cref="Plan"/>
        /// themselves. It is a stop rule of the run: the update at work is finished, then the run ends by
        /// <see cref="StopReason.Cancelled"/>, and no exception is thrown, unless a call could not give its result. Where an
        /// <see cref="OperationCanceledException"/> is wanted, give the token to the call.
        /// </summary>
        public CancellationToken CancellationToken { get; set; }

        /// <summary>Sets the keys of a JSON object: all of them or, on an error, none.</summary>
        /// <param name="json">A JSON object.</param>
        /// <exception cref="SftException">
        /// <see cref="SftStatus.Config"/> for malformed JSON or a value of the wrong type, <see cref="SftStatus.UnknownKey"/>,
        /// <see cref="SftStatus.Unsupported"/>.
        /// </exception>
        public void MergeJson(string json)
        {
            byte[] bytes = Utf8.Bytes(json, "json");
            // The library wants an address for no bytes too.
            byte[] passed = bytes.Length == 0 ? new byte[1] : bytes;
            calls.Call(config => Native.sft_config_merge_json(config, passed, (UIntPtr)(uint)bytes.Length));
        }

        /// <summary>
        /// Sets the keys of a YAML or JSON file: all of them or, on an error, none. The text of an error names the file and, where
        /// it is about a key or the syntax, the line.
        /// </summary>
        /// <param name="path">The file.</param>
        /// <exception cref="SftException">
        /// <see cref="SftStatus.IO"/> if the file cannot be read, else as <see cref="MergeJson"/>.
        /// </exception>
        public void MergeFile(string path)
        {
            byte[] file = Utf8.Terminated(path, "path");
            calls.Call(config => Native.sft_config_merge_file(config, file));
        }

        /// <summary>
        /// Sets one key to a text, which is read as the key needs it: "5" sets a number, "null" clears an optional key, JSON sets a
        /// nested one such as "stop". A key with dots reaches inside a nested one: "lr_scheduler_kwargs.num_cycles".
        /// </summary>
        /// <param name="key">The key.</param>
        /// <param name="value">The text.</param>
        /// <exception cref="SftException">
        /// <see cref="SftStatus.Config"/> for a value of the wrong type, <see cref="SftStatus.UnknownKey"/>,
        /// <see cref="SftStatus.Unsupported"/>.
        /// </exception>
        public void Set(string key, string value)
        {
            byte[] name = Utf8.Terminated(key, "key");
            byte[] text = Utf8.Terminated(value, "value");
            calls.Call(config => Native.sft_config_set_str(config, name, text));
        }

        /// <summary>Sets one key to a whole number.</summary>
        /// <param name="key">The key.</param>
        /// <param name="value">The number.</param>
        /// <exception cref="SftException">As the setter of texts.</exception>
        public void Set(string key, long value)
        {
            byte[] name = Utf8.Terminated(key, "key");
            calls.Call(config => Native.sft_config_set_i64(config, name, value));
        }

        /// <summary>Sets one key to a number, which must be finite.</summary>
        /// <param name="key">The key.</param>
        /// <param name="value">The number.</param>
        /// <exception cref="SftException">As the setter of texts.</exception>
        public void Set(string key, double value)
        {
            byte[] name = Utf8.Terminated(key, "key");
            calls.Call(config => Native.sft_config_set_f64(config, name, value));
        }

        /// <summary>Sets one key to a truth.</summary>
        /// <param name="key">The key.</param>
        /// <param name="value">The truth.</param>
        /// <exception cref="SftException">As the setter of texts.</exception>
        public void Set(string key, bool value)
        {
            byte[] name = Utf8.Terminated(key, "key");
            calls.Call(config => Native.sft_config_set_bool(config, name, value ? 1 : 0));
        }

        /// <summary>All keys with their values, defaults included.</summary>
        /// <returns>A JSON object that <see cref="MergeJson"/> takes.</returns>
        public string ToJson()
        {
            IntPtr json = IntPtr.Zero;
            calls.Call(config => Native.sft_config_to_json(config, out json));
            return Utf8.Taken(json);
        }

        /// <summary>
        /// Sets the function that is called after each update of the sessions that are started from now on, on the thread that
        /// steps. It may end the run. Sessions on several threads may call it at the same time. What it throws ends the run too, by
        /// <see cref="StopReason.Callback"/>, and is thrown again by the call that it ran in; the update counts all the same
        /// (<see cref="SftSession.GetLastReport"/>).
        /// </summary>
        /// <param name="progress">The function; null for none.</param>
        public void SetProgress(Func<StepReport, RunAction> progress)
        {
            SetCallback(progress, (config, userData) => Native.sft_config_set_progress(
                config, userData == IntPtr.Zero ? null : Callbacks.Progress, userData, Callbacks.Drop));
        }

        /// <summary>
        /// As the other one, for a receiver that only looks. A <see cref="Progress{T}"/> gets the reports where it was made, after
        /// the update that they are of, and cannot end the run, not even by what it throws there.
        /// </summary>
        /// <param name="progress">The receiver; null for none.</param>
        public void SetProgress(IProgress<StepReport> progress)
        {
            Func<StepReport, RunAction> function = null;
            if (progress != null)
            {
                function = report =>
                {
                    progress.Report(report);
                    return RunAction.Continue;
                };
            }
            SetProgress(function);
        }

        /// <summary>
        /// Sets the function that is called once a checkpoint of the sessions that are started from now on is whole on the disk.
        /// Checkpoints are written in the background: it is called on the thread that calls into the session, during a later call
        /// than the step whose update the checkpoint is of, or at the end of the run.
        /// </summary>
        /// <param name="checkpoint">The function; null for none.</param>
        public void SetCheckpoint(Action<CheckpointReport> checkpoint)
        {
            SetCallback(checkpoint, (config, userData) => Native.sft_config_set_checkpoint(
                config, userData == IntPtr.Zero ? null : Callbacks.Checkpoint, userData, Callbacks.Drop));
        }

        /// <summary>
        /// Sets the function that receives, line by line, the log of <see cref="Start"/> and <see cref="Plan"/> on this
        /// configuration and of the sessions that are started from now on, on the thread that called into the library.
        /// </summary>
        /// <param name="log">The function; null for none.</param>
        public void SetLog(Action<LogLevel, string> log)
        {
            SetCallback(log, (config, userData) => Native.sft_config_set_log(
                config, userData == IntPtr.Zero ? null : Callbacks.Log, userData, Callbacks.Drop));
        }

        /// <summary>
        /// Plans the memory of a run, without allocating it: reads the model's config.json and, where the configuration names data,
        /// tokenises the rows (or finds them in the cache).
        /// </summary>
        /// <param name="token">Cancels the call.</param>
        /// <returns>The plan.</returns>
        /// <exception cref="SftException">
        /// As those of <see cref="Start"/> about the configuration, the model's config.json and the data.
        /// </exception>
        /// <exception cref="OperationCanceledException">The token, or the configuration's, was cancelled.</exception>
        public MemoryPlan Plan(CancellationToken token = default(CancellationToken))
        {
            var plan = new NativeMemoryPlan { StructSize = SizeOf<NativeMemoryPlan>.Value };
            Cancellable(config => Native.sft_plan(config, ref plan), token);
            return new MemoryPlan(plan);
        }

        /// <summary>
        /// As <see cref="Plan"/>, with every tensor: a JSON object whose "total_bytes" is the size and whose "segments" are objects
        /// with "name", "kind", "bytes", "offset" and the first and last phase of the update in which the tensor lives, "birth" and
        /// "death".
        /// </summary>
        /// <param name="token">Cancels the call.</param>
        /// <returns>A JSON object.</returns>
        /// <exception cref="SftException">As <see cref="Plan"/>.</exception>
        /// <exception cref="OperationCanceledException">The token, or the configuration's, was cancelled.</exception>
        public string PlanJson(CancellationToken token = default(CancellationToken))
        {
            IntPtr json = IntPtr.Zero;
            try
            {
                Cancellable(config => Native.sft_plan_json(config, out json), token);
                return Utf8.Text(json);
            }
            finally
            {
                Native.sft_string_free(json);
            }
        }

        /// <summary>
        /// Starts a run: loads the model and the data that the configuration names, allocates all memory, and opens the log in
        /// output_dir; or goes on from a checkpoint where resume_from_checkpoint says so. Without dataset_name the host feeds its own
        /// batches by <see cref="SftSession.StepBatch(System.Collections.Generic.IReadOnlyList{TokenBatch}, CancellationToken)"/>.
        /// </summary>
        /// <param name="token">Cancels the call, not the session; for that there is <see cref="CancellationToken"/>.</param>
        /// <returns>The session, which is the caller's to dispose.</returns>
        /// <exception cref="SftException">
        /// Any status, each message naming what is wrong and where. A failed start leaves output_dir as it was.
        /// </exception>
        /// <exception cref="OperationCanceledException">The token, or the configuration's, was cancelled.</exception>
        public SftSession Start(CancellationToken token = default(CancellationToken))
        {
            return Begin(Native.sft_start, token);
        }

        /// <summary>
        /// As <see cref="Start"/>, going on from a checkpoint, whatever resume_from_checkpoint says. With the same configuration and
        /// rows the run gives the numbers that it would have given without the interruption, bit for bit. A host that feeds its own
        /// batches goes on with those after <see cref="Snapshot.ResumedStep"/>. The log in output_dir is cut to where the checkpoint
        /// was made, and goes on there.
        /// </summary>
        /// <param name="folder">The folder of the checkpoint.</param>
        /// <param name="token">Cancels the call, not the session.</param>
        /// <returns>The session, which is the caller's to dispose.</returns>
        /// <exception cref="SftException">
        /// As <see cref="Start"/>. <see cref="SftStatus.Checkpoint"/> if the folder holds no whole checkpoint.
        /// <see cref="SftStatus.Config"/> if the configuration or the rows have changed in what changes the numbers; the message lists
        /// every key, and resume_allow_changes allows them. <see cref="SftStatus.Exists"/> if output_dir has newer checkpoints of the
        /// run: overwrite_output_dir removes them.
        /// </exception>
        /// <exception cref="OperationCanceledException">The token, or the configuration's, was cancelled.</exception>
        public SftSession Resume(string folder, CancellationToken token = default(CancellationToken))
        {
            byte[] path = Utf8.Terminated(folder, "folder");
            return Begin((IntPtr config, out IntPtr session) => Native.sft_resume(config, path, out session), token);
        }

        /// <summary>Frees the configuration. Sessions that were started from it go on.</summary>
        public void Dispose()
        {
            calls.Close();
        }

        private delegate int Beginning(IntPtr config, out IntPtr session);

        private SftSession Begin(Beginning beginning, CancellationToken token)
        {
            // Each session has a canceller of its own, so that a token that is given to a call ends that session alone.
            CancellationToken ofRun = CancellationToken;
            var canceller = new CancellerHandle();
            var session = new SessionHandle();
            var registration = default(CancellationTokenRegistration);
            try
            {
                registration = canceller.CancelledBy(ofRun);
                With(canceller, config =>
                {
                    IntPtr made;
                    int status = beginning(config, out made);
                    session.Hold(made);
                    return status;
                }, token, ofRun);
                return new SftSession(session, canceller, registration, ofRun);
            }
            catch
            {
                registration.Dispose();
                session.Dispose();
                canceller.Dispose();
                throw;
            }
        }

        private void Cancellable(Func<IntPtr, int> call, CancellationToken token)
        {
            CancellationToken ofRun = CancellationToken;
            using (var canceller = new CancellerHandle())
            using (canceller.CancelledBy(ofRun))
            {
                With(canceller, call, token, ofRun);
            }
        }

        /// <summary>Makes a call with a canceller that is the configuration's during the call.</summary>
        private void With(CancellerHandle canceller, Func<IntPtr, int> call, CancellationToken token, CancellationToken ofRun)
        {
            using (canceller.CancelledBy(token))
            {
                calls.Call(config =>
                {
                    int status = Native.sft_config_set_canceller(config, canceller.DangerousGetHandle());
                    if (status != (int)SftStatus.Ok) return status;
                    status = call(config);
                    Native.sft_config_set_canceller(config, IntPtr.Zero);
                    return status;
                }, token, ofRun);
            }
        }

        private void SetCallback(Delegate callback, Func<IntPtr, IntPtr, int> set)
        {
            IntPtr userData = Callbacks.Hold(callback);
            bool taken = false;
            try
            {
                calls.Call(config =>
                {
                    int status = set(config, userData);
                    taken = status == (int)SftStatus.Ok;
                    return status;
                });
            }
            finally
            {
                if (!taken) Callbacks.Release(userData);
            }
        }
    }
}
