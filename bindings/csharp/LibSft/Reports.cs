namespace LibSft
{
    /// <summary>The result of one optimizer update.</summary>
    public sealed class StepReport
    {
        internal StepReport(NativeStepReport native)
        {
            StopReason = (StopReason)native.StopReason;
            Step = (long)native.Step;
            Epoch = native.Epoch;
            Loss = native.Loss;
            SmoothedLoss = native.HasSmoothedLoss != 0 ? native.SmoothedLoss : (double?)null;
            GradNorm = native.GradNorm;
            LearningRate = native.LearningRate;
            TokenAccuracy = native.TokenAccuracy;
            Entropy = native.Entropy;
            SupervisedTokens = (long)native.SupervisedTokens;
            Tokens = (long)native.Tokens;
            TotalTokens = (long)native.TotalTokens;
            Seconds = native.Seconds;
            LossScale = native.LossScale;
            SkippedUpdates = (long)native.SkippedUpdates;
            Evaluation = native.HasEval != 0 ? new StepEvaluation(native) : null;
        }

        /// <summary>Why the run ended with this update; <see cref="LibSft.StopReason.None"/> while it goes on.</summary>
        public StopReason StopReason { get; private set; }

        /// <summary>Number of this update, from 1.</summary>
        public long Step { get; private set; }

        /// <summary>Epochs done, as a fraction; 0 where the host feeds the batches.</summary>
        public double Epoch { get; private set; }

        /// <summary>
        /// Mean of -log p over the update's supervised positions, in nats. The true number: it may be NaN or infinite.
        /// </summary>
        public double Loss { get; private set; }

        /// <summary>The loss as the stop rules see it after smoothing; null if no rule smooths it.</summary>
        public double? SmoothedLoss { get; private set; }

        /// <summary>L2 norm of the whole gradient before clipping.</summary>
        public double GradNorm { get; private set; }

        /// <summary>The learning rate that this update used.</summary>
        public double LearningRate { get; private set; }

        /// <summary>Fraction of supervised positions whose most likely token is the label.</summary>
        public double TokenAccuracy { get; private set; }

        /// <summary>Mean entropy of the predictions at supervised positions, in nats.</summary>
        public double Entropy { get; private set; }

        /// <summary>Supervised positions of this update.</summary>
        public long SupervisedTokens { get; private set; }

        /// <summary>Input tokens of this update.</summary>
        public long Tokens { get; private set; }

        /// <summary>Input tokens of the run so far.</summary>
        public long TotalTokens { get; private set; }

        /// <summary>Wall time of this update without its evaluation, in seconds.</summary>
        public double Seconds { get; private set; }

        /// <summary>The evaluation that was due after this update; null if none was.</summary>
        public StepEvaluation Evaluation { get; private set; }

        /// <summary>
        /// What the loss was multiplied by for this update to keep small gradients in float16; 1 in the other formats. Where it
        /// is above 1 and <see cref="GradNorm"/> is not finite, the scale was too large: the update was not applied, and the stop
        /// rules do not count it as a broken gradient.
        /// </summary>
        public double LossScale { get; private set; }

        /// <summary>Updates of the run so far that were not applied, because their gradient was not finite.</summary>
        public long SkippedUpdates { get; private set; }
    }

    /// <summary>The evaluation that was due after an update, over all evaluation rows.</summary>
    public sealed class StepEvaluation
    {
        internal StepEvaluation(NativeStepReport native)
        {
            Loss = native.EvalLoss;
            TokenAccuracy = native.EvalTokenAccuracy;
            Entropy = native.EvalEntropy;
            SupervisedTokens = (long)native.EvalSupervisedTokens;
            Seconds = native.EvalSeconds;
        }

        /// <summary>Mean of -log p over the supervised positions of the evaluation rows, in nats.</summary>
        public double Loss { get; private set; }

        /// <summary>Fraction of them whose most likely token is the label.</summary>
        public double TokenAccuracy { get; private set; }

        /// <summary>Mean entropy of the predictions at them, in nats.</summary>
        public double Entropy { get; private set; }

        /// <summary>Supervised positions of the evaluation rows.</summary>
        public long SupervisedTokens { get; private set; }

        /// <summary>Wall time of the evaluation, in seconds.</summary>
        public double Seconds { get; private set; }
    }

    /// <summary>The result of an evaluation, weighted by tokens over all its rows.</summary>
    public sealed class EvalReport
    {
        internal EvalReport(NativeEvalReport native)
        {
            StopReason = (StopReason)native.StopReason;
            Step = (long)native.Step;
            Loss = native.Loss;
            TokenAccuracy = native.TokenAccuracy;
            Entropy = native.Entropy;
            SupervisedTokens = (long)native.SupervisedTokens;
            Tokens = (long)native.Tokens;
            Seconds = native.Seconds;
        }

        /// <summary>Why the run ended with this evaluation or before; <see cref="LibSft.StopReason.None"/> while it goes on.</summary>
        public StopReason StopReason { get; private set; }

        /// <summary>The update after which it was taken; 0 is before the first.</summary>
        public long Step { get; private set; }

        /// <summary>Mean of -log p over supervised positions, in nats.</summary>
        public double Loss { get; private set; }

        /// <summary>Fraction of supervised positions whose most likely token is the label.</summary>
        public double TokenAccuracy { get; private set; }

        /// <summary>Mean entropy of the predictions at supervised positions, in nats.</summary>
        public double Entropy { get; private set; }

        /// <summary>Supervised positions.</summary>
        public long SupervisedTokens { get; private set; }

        /// <summary>Input tokens.</summary>
        public long Tokens { get; private set; }

        /// <summary>Wall time, in seconds.</summary>
        public double Seconds { get; private set; }
    }

    /// <summary>Where a run stands.</summary>
    public sealed class Snapshot
    {
        internal Snapshot(NativeSnapshot native)
        {
            StopReason = (StopReason)native.StopReason;
            Step = (long)native.Step;
            TotalSteps = native.TotalSteps != 0 ? (long)native.TotalSteps : (long?)null;
            Epoch = native.Epoch;
            TotalTokens = (long)native.TotalTokens;
            BestValue = native.HasBest != 0 ? native.BestValue : (double?)null;
            BestStep = native.BestStep != 0 ? (long)native.BestStep : (long?)null;
            RestoredBest = native.RestoredBest != 0;
            PatienceUsed = (long)native.PatienceUsed;
            ElapsedSeconds = native.ElapsedSeconds;
            ResumedStep = native.Resumed != 0 ? (long)native.ResumedStep : (long?)null;
            CheckpointStep = native.HasCheckpoint != 0 ? (long)native.CheckpointStep : (long?)null;
        }

        /// <summary>Why the run ended; <see cref="LibSft.StopReason.None"/> while it goes on.</summary>
        public StopReason StopReason { get; private set; }

        /// <summary>Updates done.</summary>
        public long Step { get; private set; }

        /// <summary>Updates planned; null where that is not known.</summary>
        public long? TotalSteps { get; private set; }

        /// <summary>Epochs done, as a fraction.</summary>
        public double Epoch { get; private set; }

        /// <summary>Input tokens of the run so far.</summary>
        public long TotalTokens { get; private set; }

        /// <summary>
        /// The best value so far of the metric that metric_for_best_model names; without it, of the first plateau rule's, else of
        /// the evaluation loss, else of the training loss. Null if there is none yet.
        /// </summary>
        public double? BestValue { get; private set; }

        /// <summary>The update after which the best value was seen; null where that is not known.</summary>
        public long? BestStep { get; private set; }

        /// <summary>Whether the weights are those of the best step, put back when the run ended.</summary>
        public bool RestoredBest { get; private set; }

        /// <summary>Patience that the plateau rule has used up.</summary>
        public long PatienceUsed { get; private set; }

        /// <summary>Wall time of the run so far, over all its resumptions, in seconds.</summary>
        public double ElapsedSeconds { get; private set; }

        /// <summary>
        /// The update that the run went on from; null if it did not go on from a checkpoint. A host that feeds its own batches
        /// goes on with those of the next update.
        /// </summary>
        public long? ResumedStep { get; private set; }

        /// <summary>The update of the newest checkpoint that is known to be whole on the disk; null if there is none.</summary>
        public long? CheckpointStep { get; private set; }
    }

    /// <summary>A checkpoint that is whole on the disk.</summary>
    public sealed class CheckpointReport
    {
        internal CheckpointReport(NativeCheckpointReport native)
        {
            Step = (long)native.Step;
            Folder = Utf8.Text(native.Folder);
        }

        /// <summary>The update that it is of.</summary>
        public long Step { get; private set; }

        /// <summary>Its folder, which <see cref="SftConfig.Resume"/> takes.</summary>
        public string Folder { get; private set; }
    }

    /// <summary>What a run will take of memory, in bytes.</summary>
    public sealed class MemoryPlan
    {
        internal MemoryPlan(NativeMemoryPlan native)
        {
            TotalBytes = (long)native.TotalBytes;
            LowerBoundBytes = (long)native.LowerBoundBytes;
            WeightsBytes = (long)native.WeightsBytes;
            GradientsBytes = (long)native.GradientsBytes;
            OptimizerBytes = (long)native.OptimizerBytes;
            ActivationsBytes = (long)native.ActivationsBytes;
            ScratchBytes = (long)native.ScratchBytes;
            BatchBytes = (long)native.BatchBytes;
        }

        /// <summary>Size of the one allocation that holds everything.</summary>
        public long TotalBytes { get; private set; }

        /// <summary>The largest number of bytes that live at the same time: no plan can be smaller.</summary>
        public long LowerBoundBytes { get; private set; }

        /// <summary>Bytes of the parameters. This and the following may share bytes of the total.</summary>
        public long WeightsBytes { get; private set; }

        /// <summary>Bytes of their gradients.</summary>
        public long GradientsBytes { get; private set; }

        /// <summary>Bytes of the optimizer's moments.</summary>
        public long OptimizerBytes { get; private set; }

        /// <summary>Bytes that the forward pass keeps for the backward pass.</summary>
        public long ActivationsBytes { get; private set; }

        /// <summary>Bytes that live within a phase of an update.</summary>
        public long ScratchBytes { get; private set; }

        /// <summary>Bytes of token ids, labels, positions and tables.</summary>
        public long BatchBytes { get; private set; }
    }
}
