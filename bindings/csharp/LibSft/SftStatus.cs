using System;

namespace LibSft
{
    /// <summary>
    /// What a call of the library says about how it went. From 1 to 99 it is an outcome that is no error, from 100 an error. Numbers
    /// are never reused; a newer library may give ones that have no name here.
    /// </summary>
    public enum SftStatus
    {
        /// <summary>Done.</summary>
        Ok = 0,

        /// <summary>The run has ended: nothing was done. No error.</summary>
        Stopped = 1,

        /// <summary>An argument is out of range or not what the call needs.</summary>
        InvalidArgument = 100,

        /// <summary>Another call is inside the same object right now. Nothing was done.</summary>
        Busy = 101,

        /// <summary>An earlier <see cref="Panic"/> left the object unusable: it can only be disposed.</summary>
        Poisoned = 102,

        /// <summary>A configuration value is wrong or contradicts another.</summary>
        Config = 200,

        /// <summary>A configuration key is not known; the message names the nearest one.</summary>
        UnknownKey = 201,

        /// <summary>What was asked for is known and not supported.</summary>
        Unsupported = 202,

        /// <summary>The model folder or its config.json is wrong.</summary>
        Model = 300,

        /// <summary>The model's architecture, or one of its options, is not supported.</summary>
        UnsupportedModel = 301,

        /// <summary>A tensor is missing, has another shape or type, or holds NaN.</summary>
        Tensor = 302,

        /// <summary>The tokenizer cannot be read or lacks what the data needs.</summary>
        Tokenizer = 303,

        /// <summary>The chat template does not compile, or raised an error.</summary>
        Template = 304,

        /// <summary>A data file or a row of it is wrong, or there are no rows.</summary>
        Data = 400,

        /// <summary>A batch of the host is malformed. Nothing was done.</summary>
        Batch = 401,

        /// <summary>Reading or writing a file failed.</summary>
        IO = 500,

        /// <summary>A folder that must not be overwritten already exists.</summary>
        Exists = 501,

        /// <summary>A checkpoint is damaged, incomplete or of a format that is not known.</summary>
        Checkpoint = 502,

        /// <summary>The device cannot be used.</summary>
        Device = 600,

        /// <summary>The run does not fit into memory.</summary>
        OutOfMemory = 601,

        /// <summary>
        /// A token was cancelled while the call was loading or evaluating. Calls throw an
        /// <see cref="OperationCanceledException"/> for it.
        /// </summary>
        Cancelled = 602,

        /// <summary>A defect of the library was caught. The object is poisoned.</summary>
        Panic = 900,

        /// <summary>A defect of the library was found by itself.</summary>
        Internal = 901,
    }

    /// <summary>Why a run ended.</summary>
    public enum StopReason
    {
        /// <summary>The run goes on.</summary>
        None = 0,

        /// <summary>The metric reached the target and held it.</summary>
        TargetReached = 1,

        /// <summary>No improvement for the patience of a plateau rule.</summary>
        Plateau = 2,

        /// <summary>Loss or gradient norm was NaN or infinite.</summary>
        NonFinite = 3,

        /// <summary>The metric grew to a multiple of its best.</summary>
        Diverged = 4,

        /// <summary>Evaluation loss rose while training loss fell.</summary>
        Overfit = 5,

        /// <summary>The budget of optimizer updates is used up.</summary>
        MaxSteps = 6,

        /// <summary>The budget of epochs is used up.</summary>
        MaxEpochs = 7,

        /// <summary>The budget of training tokens is used up.</summary>
        MaxTokens = 8,

        /// <summary>The budget of seconds is used up.</summary>
        MaxTime = 9,

        /// <summary>A token was cancelled.</summary>
        Cancelled = 10,

        /// <summary>The progress callback asked to stop.</summary>
        Callback = 11,
    }

    /// <summary>How much a line of the log matters.</summary>
    public enum LogLevel
    {
        /// <summary>What a user should act on.</summary>
        Warning = 1,

        /// <summary>What a user may want to know.</summary>
        Info = 2,
    }

    /// <summary>What <see cref="SftSession.Export"/> writes.</summary>
    public enum ExportKind
    {
        /// <summary>The whole model as a Hugging Face folder.</summary>
        Full = 1,

        /// <summary>The adapter alone. Not supported in this version.</summary>
        Adapter = 2,

        /// <summary>The model with the adapter merged in. Not supported in this version.</summary>
        Merged = 3,
    }

    /// <summary>What a progress callback asks for.</summary>
    public enum RunAction
    {
        /// <summary>The run goes on.</summary>
        Continue = 0,

        /// <summary>The run ends with this update, by <see cref="StopReason.Callback"/>.</summary>
        Stop = 1,
    }

    /// <summary>
    /// A call of the library failed. The message names the thing, the place (file, line, key, tensor) and the way out;
    /// <see cref="Status"/> is for programs: <c>catch (SftException e) when (e.Status == SftStatus.Checkpoint)</c>.
    /// </summary>
    public class SftException : Exception
    {
        internal const int FirstError = 100;

        /// <summary>Makes an exception.</summary>
        /// <param name="status">What the call says about how it went.</param>
        /// <param name="message">The text of the error.</param>
        public SftException(SftStatus status, string message) : base(message)
        {
            Status = status;
        }

        /// <summary>What the call says about how it went.</summary>
        public SftStatus Status { get; private set; }
    }

    /// <summary>
    /// The native library that was found has another binary interface than this assembly was written for. Its status is
    /// <see cref="SftStatus.Unsupported"/>.
    /// </summary>
    public class SftVersionException : SftException
    {
        /// <summary>Makes an exception.</summary>
        /// <param name="message">The text of the error.</param>
        public SftVersionException(string message) : base(SftStatus.Unsupported, message)
        {
        }
    }
}
