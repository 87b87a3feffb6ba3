using System;
using System.Collections.Generic;
using System.Runtime.InteropServices;

namespace LibSft
{
    /// <summary>
    /// Sequences of tokens laid end to end, as the host feeds them. Position i of a sequence predicts the label at i + 1, so labels
    /// are not shifted, and the first label of each sequence never counts. The arrays are not copied: they must not change during
    /// the call that gets the batch.
    /// </summary>
    public sealed class TokenBatch
    {
        /// <summary>Makes a batch.</summary>
        /// <param name="tokens">Token ids, each from 0 to below the size of the model's vocabulary.</param>
        /// <param name="labels">
        /// As many labels: the token ids, or -100 (<see cref="Ignored"/>) where not trained on. Null: all are trained on.
        /// </param>
        /// <param name="sequenceStarts">
        /// The positions at which a sequence starts, ascending from 0. Null: all tokens are one sequence.
        /// </param>
        /// <exception cref="ArgumentException">There are more or fewer labels than tokens.</exception>
        public TokenBatch(int[] tokens, int[] labels = null, int[] sequenceStarts = null)
        {
            if (tokens == null) throw new ArgumentNullException("tokens");
            if (labels != null && labels.Length != tokens.Length)
            {
                throw new ArgumentException(
                    string.Format("{0} labels for {1} tokens: each token has one", labels.Length, tokens.Length), "labels");
            }
            Tokens = tokens;
            Labels = labels;
            SequenceStarts = sequenceStarts;
        }

        /// <summary>The label of a position that is not trained on.</summary>
        public const int Ignored = -100;

        /// <summary>The token ids.</summary>
        public int[] Tokens { get; private set; }

        /// <summary>The labels; null where all tokens are trained on.</summary>
        public int[] Labels { get; private set; }

        /// <summary>Where sequences start; null where all tokens are one sequence.</summary>
        public int[] SequenceStarts { get; private set; }
    }

    /// <summary>Batches as the library reads them, with their arrays pinned until this is disposed.</summary>
    internal sealed class PinnedBatches : IDisposable
    {
        private readonly List<GCHandle> pinned = new List<GCHandle>();

        internal PinnedBatches(IReadOnlyList<TokenBatch> batches, string parameter)
        {
            if (batches == null) throw new ArgumentNullException(parameter);
            Native = new NativeBatch[batches.Count];
            try
            {
                for (int i = 0; i < Native.Length; i++)
                {
                    TokenBatch batch = batches[i];
                    if (batch == null) throw new ArgumentException(string.Format("batch {0} is null", i), parameter);
                    Native[i] = new NativeBatch
                    {
                        StructSize = SizeOf<NativeBatch>.Value,
                        Tokens = Pin(batch.Tokens),
                        Labels = Pin(batch.Labels),
                        SeqStarts = Pin(batch.SequenceStarts),
                        NTokens = (UIntPtr)(uint)batch.Tokens.Length,
                        NSeqs = (UIntPtr)(uint)(batch.SequenceStarts == null ? 0 : batch.SequenceStarts.Length),
                    };
                }
            }
            catch
            {
                Dispose();
                throw;
            }
        }

        internal NativeBatch[] Native { get; private set; }

        internal UIntPtr Count
        {
            get { return (UIntPtr)(uint)Native.Length; }
        }

        public void Dispose()
        {
            foreach (GCHandle handle in pinned) handle.Free();
            pinned.Clear();
        }

        private IntPtr Pin(int[] numbers)
        {
            if (numbers == null) return IntPtr.Zero;
            GCHandle handle = GCHandle.Alloc(numbers, GCHandleType.Pinned);
            pinned.Add(handle);
            return handle.AddrOfPinnedObject();
        }
    }
}
