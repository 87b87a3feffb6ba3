using System;
using System.Runtime.ExceptionServices;
using System.Runtime.InteropServices;
using System.Threading;

namespace LibSft
{
    /// <summary>A handle of the library: freed once, by Dispose or by the finalizer, and not before the calls on it are back.</summary>
    internal abstract class LibraryHandle : SafeHandle
    {
        protected LibraryHandle() : base(IntPtr.Zero, true)
        {
        }

        public override bool IsInvalid
        {
            get { return handle == IntPtr.Zero; }
        }

        internal void Hold(IntPtr made)
        {
            SetHandle(made);
        }

        protected abstract void Free(IntPtr freed);

        protected override bool ReleaseHandle()
        {
            // What is freed may hold callbacks that are called or dropped now. There is no caller to throw to.
            ExceptionDispatchInfo outer = Border.Enter();
            Free(handle);
            Border.Leave(outer);
            return true;
        }
    }

    internal sealed class ConfigHandle : LibraryHandle
    {
        protected override void Free(IntPtr freed)
        {
            Native.sft_config_free(freed);
        }
    }

    internal sealed class SessionHandle : LibraryHandle
    {
        protected override void Free(IntPtr freed)
        {
            Native.sft_session_free(freed);
        }
    }

    internal sealed class CancellerHandle : LibraryHandle
    {
        internal CancellerHandle()
        {
            Hold(Native.sft_canceller_new());
            if (IsInvalid) throw new OutOfMemoryException("sft_canceller_new");
        }

        protected override void Free(IntPtr freed)
        {
            Native.sft_canceller_free(freed);
        }

        /// <summary>Cancels once the token is cancelled, at once if it is already, until the registration is disposed.</summary>
        internal CancellationTokenRegistration CancelledBy(CancellationToken token)
        {
            // The state is the canceller alone, so that a token that lives long keeps no session alive.
            return token.Register(canceller => ((CancellerHandle)canceller).Cancel(), this, false);
        }

        private void Cancel()
        {
            bool held = false;
            try
            {
                DangerousAddRef(ref held);
                Native.sft_canceller_cancel(handle);
            }
            catch (ObjectDisposedException)
            {
                // The run is gone: there is nothing to stop.
            }
            finally
            {
                if (held) DangerousRelease();
            }
        }
    }

    /// <summary>
    /// Carries exceptions of callbacks over the library, which no exception may pass: a trampoline keeps what a callback threw,
    /// and the call that the callback ran in throws it again once the library has returned. Callbacks run on the thread of the
    /// call, so each thread has its own.
    /// </summary>
    internal static class Border
    {
        [ThreadStatic]
        private static ExceptionDispatchInfo kept;

        /// <summary>Before a call: sets aside what is kept for a call that this one is nested in.</summary>
        internal static ExceptionDispatchInfo Enter()
        {
            ExceptionDispatchInfo outer = kept;
            kept = null;
            return outer;
        }

        /// <summary>After a call: what its callbacks threw first, or null.</summary>
        internal static ExceptionDispatchInfo Leave(ExceptionDispatchInfo outer)
        {
            ExceptionDispatchInfo own = kept;
            kept = outer;
            return own;
        }

        /// <summary>In a callback: keeps the first exception of the call.</summary>
        internal static void Keep(Exception exception)
        {
            if (kept == null) kept = ExceptionDispatchInfo.Capture(exception);
        }
    }

    /// <summary>
    /// How every call on a configuration or a session goes: one at a time, with the handle held, the exceptions of callbacks
    /// thrown again, and a status that is an error turned into an exception with the handle's text.
    /// </summary>
    internal sealed class Calls
    {
        private readonly object gate = new object();
        private readonly LibraryHandle handle;
        private readonly string owner;
        private readonly Func<IntPtr, IntPtr> lastError;

        // A SafeHandle that is disposed while a call holds it takes further calls until that one is back; this ends them at once.
        private volatile bool closed;

        internal Calls(LibraryHandle handle, string owner, Func<IntPtr, IntPtr> lastError)
        {
            this.handle = handle;
            this.owner = owner;
            this.lastError = lastError;
        }

        /// <summary>Takes no more calls, and frees the handle once the call that is inside is back.</summary>
        internal void Close()
        {
            closed = true;
            handle.Dispose();
        }

        /// <summary>A call that returns a status. The tokens are those that may have cancelled it, the call's own first.</summary>
        internal SftStatus Call(
            Func<IntPtr, int> call,
            CancellationToken token = default(CancellationToken),
            CancellationToken ofRun = default(CancellationToken))
        {
            // The library refuses a second call by itself. The gate is for the text of the error, which must not be read while
            // another thread fails on the same handle. It lets callbacks in, which are on this thread: the library tells them.
            bool entered = false;
            bool held = false;
            try
            {
                Monitor.TryEnter(gate, ref entered);
                Hold(ref held);
                if (!entered) throw new SftException(SftStatus.Busy, "another call is inside the " + owner + " right now");
                ExceptionDispatchInfo outer = Border.Enter();
                ExceptionDispatchInfo thrown = null;
                int status;
                try
                {
                    status = call(handle.DangerousGetHandle());
                }
                finally
                {
                    thrown = Border.Leave(outer);
                }
                if (thrown != null) thrown.Throw();
                if (status >= SftException.FirstError) throw Failure((SftStatus)status, token, ofRun);
                return (SftStatus)status;
            }
            finally
            {
                if (held) handle.DangerousRelease();
                if (entered) Monitor.Exit(gate);
            }
        }

        /// <summary>A question that may be asked while a call is inside the handle; a closed handle is asked as NULL.</summary>
        internal T Ask<T>(Func<IntPtr, T> question)
        {
            bool held = false;
            try
            {
                Hold(ref held);
            }
            catch (ObjectDisposedException)
            {
                // The library answers for NULL as for a freed handle.
            }
            try
            {
                return question(held ? handle.DangerousGetHandle() : IntPtr.Zero);
            }
            finally
            {
                if (held) handle.DangerousRelease();
            }
        }

        private void Hold(ref bool held)
        {
            if (closed) throw new ObjectDisposedException(owner);
            try
            {
                handle.DangerousAddRef(ref held);
            }
            catch (ObjectDisposedException)
            {
                throw new ObjectDisposedException(owner);
            }
        }

        private Exception Failure(SftStatus status, CancellationToken token, CancellationToken ofRun)
        {
            // The library leaves the text untouched where a call found another one inside.
            string text = status == SftStatus.Busy
                ? "another call is inside the " + owner + " right now"
                : Utf8.Text(lastError(handle.DangerousGetHandle()));
            if (status != SftStatus.Cancelled) return new SftException(status, text);
            return new OperationCanceledException(text, token.IsCancellationRequested ? token : ofRun);
        }
    }
}
