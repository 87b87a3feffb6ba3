using System;
using System.Runtime.InteropServices;
using System.Threading;

namespace LibSft
{
    /// <summary>
    /// What the library calls. The functions it gets are static and live for ever; what it gets as user_data is a GCHandle of the
    /// user's delegate, which is freed when the library drops it. No exception leaves a function here.
    /// </summary>
    internal static class Callbacks
    {
        internal static readonly ProgressFunction Progress = OnProgress;
        internal static readonly CheckpointFunction Checkpoint = OnCheckpoint;
        internal static readonly LogFunction Log = OnLog;
        internal static readonly DropFunction Drop = OnDrop;

        private static int live;

        /// <summary>How many delegates the library holds now.</summary>
        internal static int Live
        {
            get { return Volatile.Read(ref live); }
        }

        /// <summary>Makes the user_data of a delegate; zero for null.</summary>
        internal static IntPtr Hold(Delegate callback)
        {
            if (callback == null) return IntPtr.Zero;
            IntPtr userData = GCHandle.ToIntPtr(GCHandle.Alloc(callback));
            Interlocked.Increment(ref live);
            return userData;
        }

        /// <summary>Takes back what <see cref="Hold"/> made.</summary>
        internal static void Release(IntPtr userData)
        {
            if (userData == IntPtr.Zero) return;
            GCHandle.FromIntPtr(userData).Free();
            Interlocked.Decrement(ref live);
        }

        private static T Held<T>(IntPtr userData)
        {
            return (T)GCHandle.FromIntPtr(userData).Target;
        }

        private static int OnProgress(IntPtr userData, IntPtr report)
        {
            try
            {
                var callback = Held<Func<StepReport, RunAction>>(userData);
                return callback(new StepReport(Lent.Read<NativeStepReport>(report))) == RunAction.Stop ? 1 : 0;
            }
            catch (Exception exception)
            {
                // The update has been made. A host whose callback fails has lost its way: the run ends.
                Border.Keep(exception);
                return 1;
            }
        }

        private static void OnCheckpoint(IntPtr userData, IntPtr report)
        {
            try
            {
                var callback = Held<Action<CheckpointReport>>(userData);
                callback(new CheckpointReport(Lent.Read<NativeCheckpointReport>(report)));
            }
            catch (Exception exception)
            {
                Border.Keep(exception);
            }
        }

        private static void OnLog(IntPtr userData, int level, IntPtr message)
        {
            try
            {
                Held<Action<LogLevel, string>>(userData)((LogLevel)level, Utf8.Text(message));
            }
            catch (Exception exception)
            {
                Border.Keep(exception);
            }
        }

        private static void OnDrop(IntPtr userData)
        {
            try
            {
                Release(userData);
            }
            catch (Exception exception)
            {
                Border.Keep(exception);
            }
        }
    }
}
