using System;
using System.Runtime.InteropServices;

namespace LibSft
{
    /// <summary>
    /// The functions and structs of sft.h as they are: the names of the functions are those of the header, the names of the
    /// fields are those of the header in the spelling of C#. Nothing here is seen by a user.
    /// </summary>
    internal static class Native
    {
        // "libsft.so" on Linux: the runtimes put "lib" and ".so" around it.
        private const string Library = "sft";
        private const CallingConvention C = CallingConvention.Cdecl;

        // The library

        [DllImport(Library, CallingConvention = C)]
        internal static extern uint sft_abi_version();

        [DllImport(Library, CallingConvention = C)]
        internal static extern IntPtr sft_version();

        [DllImport(Library, CallingConvention = C)]
        internal static extern IntPtr sft_build_info();

        [DllImport(Library, CallingConvention = C)]
        internal static extern IntPtr sft_status_name(int status);

        [DllImport(Library, CallingConvention = C)]
        internal static extern IntPtr sft_stop_reason_name(int stopReason);

        [DllImport(Library, CallingConvention = C)]
        internal static extern void sft_string_free(IntPtr text);

        // Cancellers

        [DllImport(Library, CallingConvention = C)]
        internal static extern IntPtr sft_canceller_new();

        [DllImport(Library, CallingConvention = C)]
        internal static extern void sft_canceller_cancel(IntPtr canceller);

        [DllImport(Library, CallingConvention = C)]
        internal static extern void sft_canceller_free(IntPtr canceller);

        // Configurations

        [DllImport(Library, CallingConvention = C)]
        internal static extern IntPtr sft_config_new();

        [DllImport(Library, CallingConvention = C)]
        internal static extern void sft_config_free(IntPtr config);

        [DllImport(Library, CallingConvention = C)]
        internal static extern IntPtr sft_config_last_error(IntPtr config);

        [DllImport(Library, CallingConvention = C)]
        internal static extern IntPtr sft_config_last_error_copy(IntPtr config);

        [DllImport(Library, CallingConvention = C)]
        internal static extern int sft_config_merge_file(IntPtr config, [In] byte[] path);

        [DllImport(Library, CallingConvention = C)]
        internal static extern int sft_config_merge_json(IntPtr config, [In] byte[] json, UIntPtr length);

        [DllImport(Library, CallingConvention = C)]
        internal static extern int sft_config_set_str(IntPtr config, [In] byte[] key, [In] byte[] value);

        [DllImport(Library, CallingConvention = C)]
        internal static extern int sft_config_set_i64(IntPtr config, [In] byte[] key, long value);

        [DllImport(Library, CallingConvention = C)]
        internal static extern int sft_config_set_f64(IntPtr config, [In] byte[] key, double value);

        [DllImport(Library, CallingConvention = C)]
        internal static extern int sft_config_set_bool(IntPtr config, [In] byte[] key, int value);

        [DllImport(Library, CallingConvention = C)]
        internal static extern int sft_config_to_json(IntPtr config, out IntPtr json);

        [DllImport(Library, CallingConvention = C)]
        internal static extern int sft_config_set_progress(
            IntPtr config, ProgressFunction progress, IntPtr userData, DropFunction drop);

        [DllImport(Library, CallingConvention = C)]
        internal static extern int sft_config_set_checkpoint(
            IntPtr config, CheckpointFunction checkpoint, IntPtr userData, DropFunction drop);

        [DllImport(Library, CallingConvention = C)]
        internal static extern int sft_config_set_log(
            IntPtr config, LogFunction log, IntPtr userData, DropFunction drop);

        [DllImport(Library, CallingConvention = C)]
        internal static extern int sft_config_set_canceller(IntPtr config, IntPtr canceller);

        [DllImport(Library, CallingConvention = C)]
        internal static extern int sft_plan(IntPtr config, ref NativeMemoryPlan plan);

        [DllImport(Library, CallingConvention = C)]
        internal static extern int sft_plan_json(IntPtr config, out IntPtr json);

        // Sessions

        [DllImport(Library, CallingConvention = C)]
        internal static extern int sft_start(IntPtr config, out IntPtr session);

        [DllImport(Library, CallingConvention = C)]
        internal static extern int sft_resume(IntPtr config, [In] byte[] folder, out IntPtr session);

        [DllImport(Library, CallingConvention = C)]
        internal static extern int sft_step(IntPtr session, ref NativeStepReport report);

        [DllImport(Library, CallingConvention = C)]
        internal static extern int sft_step_batch(
            IntPtr session, [In] NativeBatch[] micro, UIntPtr count, ref NativeStepReport report);

        [DllImport(Library, CallingConvention = C)]
        internal static extern int sft_last_report(IntPtr session, ref NativeStepReport report);

        [DllImport(Library, CallingConvention = C)]
        internal static extern int sft_evaluate(IntPtr session, ref NativeEvalReport report);

        [DllImport(Library, CallingConvention = C)]
        internal static extern int sft_evaluate_batch(
            IntPtr session, [In] NativeBatch[] batches, UIntPtr count, ref NativeEvalReport report);

        [DllImport(Library, CallingConvention = C)]
        internal static extern int sft_eval_set(IntPtr session, [In] byte[] name, ref NativeEvalReport report);

        [DllImport(Library, CallingConvention = C)]
        internal static extern int sft_observe(IntPtr session, [In] byte[] metric, double value);

        // C's bool is one byte, which is not what a bool is by default here.
        [DllImport(Library, CallingConvention = C)]
        [return: MarshalAs(UnmanagedType.I1)]
        internal static extern bool sft_should_stop(IntPtr session);

        [DllImport(Library, CallingConvention = C)]
        internal static extern int sft_stop_reason(IntPtr session);

        [DllImport(Library, CallingConvention = C)]
        internal static extern int sft_snapshot_get(IntPtr session, ref NativeSnapshot snapshot);

        [DllImport(Library, CallingConvention = C)]
        internal static extern int sft_save(IntPtr session, [In] byte[] folder);

        [DllImport(Library, CallingConvention = C)]
        internal static extern int sft_export(IntPtr session, [In] byte[] folder, int what);

        [DllImport(Library, CallingConvention = C)]
        internal static extern IntPtr sft_last_error(IntPtr session);

        [DllImport(Library, CallingConvention = C)]
        internal static extern IntPtr sft_last_error_copy(IntPtr session);

        [DllImport(Library, CallingConvention = C)]
        internal static extern void sft_session_free(IntPtr session);
    }

    [UnmanagedFunctionPointer(CallingConvention.Cdecl)]
    internal delegate int ProgressFunction(IntPtr userData, IntPtr report);

    [UnmanagedFunctionPointer(CallingConvention.Cdecl)]
    internal delegate void CheckpointFunction(IntPtr userData, IntPtr report);

    [UnmanagedFunctionPointer(CallingConvention.Cdecl)]
    internal delegate void LogFunction(IntPtr userData, int level, IntPtr message);

    [UnmanagedFunctionPointer(CallingConvention.Cdecl)]
    internal delegate void DropFunction(IntPtr userData);

    // Structs begin with the size that this binding knows; the library writes no more than that, and what an older library
    // does not know stays zero. All fields are blittable.

    [StructLayout(LayoutKind.Sequential)]
    internal struct NativeStepReport
    {
        internal uint StructSize;
        internal int StopReason;
        internal ulong Step;
        internal double Epoch;
        internal double Loss;
        internal double SmoothedLoss;
        internal double GradNorm;
        internal double LearningRate;
        internal double TokenAccuracy;
        internal double Entropy;
        internal ulong SupervisedTokens;
        internal ulong Tokens;
        internal ulong TotalTokens;
        internal double Seconds;
        internal int HasSmoothedLoss;
        internal int HasEval;
        internal double EvalLoss;
        internal double EvalTokenAccuracy;
        internal double EvalEntropy;
        internal ulong EvalSupervisedTokens;
        internal double EvalSeconds;
        internal double LossScale;
        internal ulong SkippedUpdates;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal struct NativeCheckpointReport
    {
        internal uint StructSize;
        internal uint Reserved;
        internal ulong Step;
        internal IntPtr Folder;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal struct NativeMemoryPlan
    {
        internal uint StructSize;
        internal uint Reserved;
        internal ulong TotalBytes;
        internal ulong LowerBoundBytes;
        internal ulong WeightsBytes;
        internal ulong GradientsBytes;
        internal ulong OptimizerBytes;
        internal ulong ActivationsBytes;
        internal ulong ScratchBytes;
        internal ulong BatchBytes;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal struct NativeBatch
    {
        internal uint StructSize;
        internal uint Reserved;
        internal IntPtr Tokens;
        internal IntPtr Labels;
        internal IntPtr SeqStarts;
        internal UIntPtr NTokens;
        internal UIntPtr NSeqs;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal struct NativeEvalReport
    {
        internal uint StructSize;
        internal int StopReason;
        internal ulong Step;
        internal double Loss;
        internal double TokenAccuracy;
        internal double Entropy;
        internal ulong SupervisedTokens;
        internal ulong Tokens;
        internal double Seconds;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal struct NativeSnapshot
    {
        internal uint StructSize;
        internal int StopReason;
        internal ulong Step;
        internal ulong TotalSteps;
        internal double Epoch;
        internal ulong TotalTokens;
        internal int HasBest;
        internal int RestoredBest;
        internal ulong BestStep;
        internal double BestValue;
        internal ulong PatienceUsed;
        internal double ElapsedSeconds;
        internal int Resumed;
        internal int HasCheckpoint;
        internal ulong ResumedStep;
        internal ulong CheckpointStep;
    }

    /// <summary>What struct_size is to be: the size of a struct as this binding knows it.</summary>
    internal static class SizeOf<T> where T : struct
    {
        internal static readonly uint Value = (uint)Marshal.SizeOf(typeof(T));
    }

    /// <summary>Reads a struct that the library lends to a callback.</summary>
    internal static class Lent
    {
        internal static T Read<T>(IntPtr at) where T : struct
        {
            // The first field of every struct is its size; an older library may have written a shorter one.
            int theirs = Marshal.ReadInt32(at);
            int ours = (int)SizeOf<T>.Value;
            if (theirs >= ours) return (T)Marshal.PtrToStructure(at, typeof(T));
            var bytes = new byte[ours];
            Marshal.Copy(at, bytes, 0, Math.Max(theirs, 0));
            GCHandle pinned = GCHandle.Alloc(bytes, GCHandleType.Pinned);
            try
            {
                return (T)Marshal.PtrToStructure(pinned.AddrOfPinnedObject(), typeof(T));
            }
            finally
            {
                pinned.Free();
            }
        }
    }
}
