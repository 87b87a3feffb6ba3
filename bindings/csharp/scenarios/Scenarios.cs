// The scenarios of bindings/scenarios.md, in C#: prints the table that every language prints.
//
//     scenarios           in a folder that bindings/scenarios/prepare made
//     scenarios resume    the second process of the scenario resume
using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.IO;
using System.Linq;
using System.Reflection;
using System.Text;
using System.Threading;
using LibSft;

internal static class Scenarios
{
    private static int Main(string[] arguments)
    {
        if (arguments.Length == 1 && arguments[0] == "resume")
        {
            ResumeChild();
            return 0;
        }
        Library();
        Config();
        Plan();
        Target();
        Plateau();
        Batches();
        Observe();
        Cancel();
        Progress();
        Failure();
        Checkpoints();
        Resume();
        Errors();
        Two();
        Freed();
        Memory();
        return 0;
    }

    // What the scenarios share

    private static SftConfig Configured(string name)
    {
        var config = new SftConfig();
        config.MergeFile("base.json");
        config.MergeFile(name + ".json");
        return config;
    }

    private static string ReasonOf(SftSession session)
    {
        return SftLibrary.StopReasonName(session.StopReason);
    }

    private static string Yes(bool truth)
    {
        return truth ? "yes" : "NO";
    }

    private static string Bits(double value)
    {
        return BitConverter.DoubleToInt64Bits(value).ToString("x16");
    }

    private static bool Same(double one, double other)
    {
        return BitConverter.DoubleToInt64Bits(one) == BitConverter.DoubleToInt64Bits(other);
    }

    private static string Exported(SftSession session, string folder)
    {
        session.Export(folder);
        ulong hash = 14695981039346656037;
        foreach (byte part in File.ReadAllBytes(Path.Combine(folder, "model.safetensors")))
        {
            hash = unchecked((hash ^ part) * 1099511628211);
        }
        return hash.ToString("x16");
    }

    /// <summary>The status that C would return for what a call did.</summary>
    private static SftStatus StatusOf(Action call, out string text)
    {
        try
        {
            text = "";
            call();
            return SftStatus.Ok;
        }
        catch (SftException exception)
        {
            text = exception.Message;
            return exception.Status;
        }
        catch (OperationCanceledException exception)
        {
            text = exception.Message;
            return SftStatus.Cancelled;
        }
        catch (ObjectDisposedException exception)
        {
            text = exception.Message;
            return SftStatus.InvalidArgument;
        }
    }

    private static string NameOf(Action call)
    {
        string text;
        return SftLibrary.StatusName(StatusOf(call, out text));
    }

    /// <summary>The name of the status of a step that is expected to find an ended run.</summary>
    private static string StepOf(SftSession session)
    {
        return NameOf(() =>
        {
            if (session.Step() == null) throw new SftException(SftStatus.Stopped, "");
        });
    }

    private static int[] Numbers(string column)
    {
        return column == "-" ? null : column.Split(' ').Select(int.Parse).ToArray();
    }

    private static List<TokenBatch> BatchesFor(string where)
    {
        return File.ReadLines("batches.tsv")
            .Select(line => line.Split('\t'))
            .Where(columns => columns[0] == where)
            .Select(columns => new TokenBatch(Numbers(columns[1]), Numbers(columns[2]), Numbers(columns[3])))
            .ToList();
    }

    // The scenarios

    private static void Library()
    {
        // The names of C follow from those of C#: SFT_ERR_ and words in capitals.
        Func<string, string> snake = name => string.Concat(
            name.Select((letter, i) => (i > 0 && char.IsUpper(letter) && !char.IsUpper(name[i - 1]) ? "_" : "") + letter));
        int statuses = Enum.GetValues(typeof(SftStatus)).Cast<SftStatus>().Count(status =>
            SftLibrary.StatusName(status) == (status < SftStatus.InvalidArgument ? "SFT_" : "SFT_ERR_")
                + snake(status.ToString()).ToUpperInvariant());
        int reasons = Enum.GetValues(typeof(StopReason)).Cast<StopReason>().Count(reason =>
            SftLibrary.StopReasonName(reason) == snake(reason.ToString()).ToLowerInvariant());
        Console.WriteLine("library abi={0} version={1} build={2} statuses={3} reasons={4}",
            Yes(SftLibrary.AbiVersion == SftLibrary.ExpectedAbiVersion),
            Yes(SftLibrary.Version == SftLibrary.ExpectedVersion),
            Yes(SftLibrary.BuildInfo.Contains("\"devices\"")), statuses, reasons);
    }

    private static void Config()
    {
        using (SftConfig config = Configured("target"), copy = new SftConfig(), ofFile = Configured("target"))
        {
            config.Set("max_steps", 5);
            config.Set("learning_rate", 0.25);
            config.Set("packing", true);
            config.Set("seed", "9");
            string json = config.ToJson();
            copy.MergeJson(json);
            ofFile.MergeFile("file.yaml");
            string[] wanted = { "\"max_steps\": 5", "\"learning_rate\": 0.25", "\"packing\": true", "\"seed\": 9" };
            Console.WriteLine("config set={0} round_trip={1} file={2}", Yes(wanted.All(json.Contains)),
                Yes(copy.ToJson() == json), Yes(ofFile.ToJson() == json));
        }
    }

    private static void Plan()
    {
        using (SftConfig config = Configured("target"))
        {
            MemoryPlan plan = config.Plan();
            Console.WriteLine("plan weights={0} gradients={1} optimizer={2} bounded={3} json={4} ~total={5}",
                plan.WeightsBytes, plan.GradientsBytes, plan.OptimizerBytes,
                Yes(plan.LowerBoundBytes <= plan.TotalBytes),
                Yes(config.PlanJson().Contains("\"total_bytes\":" + plan.TotalBytes)), plan.TotalBytes);
        }
    }

    private static void Target()
    {
        using (SftConfig config = Configured("target"))
        using (SftSession session = config.Start())
        {
            StepReport last = session.Run();
            string after = StepOf(session);
            Console.WriteLine("target stop={0} steps={1} snapshot={2} after={3} ~loss={4} ~weights={5}",
                ReasonOf(session), last.Step, session.GetSnapshot().Step, after, Bits(last.Loss),
                Exported(session, "out/target/model"));
        }
    }

    private static void Plateau()
    {
        using (SftConfig config = Configured("plateau"))
        using (SftSession session = config.Start())
        {
            long steps = 0, evaluations = 0, bestStep = 0;
            double best = double.PositiveInfinity;
            foreach (StepReport report in session.Steps())
            {
                steps = report.Step;
                if (report.Evaluation == null) continue;
                evaluations++;
                double loss = session.EvalSet("some").Loss;
                if (loss >= best) continue;
                best = loss;
                bestStep = report.Step;
            }
            Snapshot snapshot = session.GetSnapshot();
            EvalReport all = session.Evaluate(), some = session.EvalSet("some"), more = session.EvalSet("more");
            bool seen = snapshot.BestStep == bestStep && snapshot.BestValue.HasValue && Same(snapshot.BestValue.Value, best);
            Console.WriteLine("plateau stop={0} steps={1} evaluations={2} best_step={3} patience_used={4} best_seen={5} "
                + "restored={6} best_is_back={7} sets={8} ~best={9} ~weights={10}",
                ReasonOf(session), steps, evaluations, snapshot.BestStep, snapshot.PatienceUsed, Yes(seen),
                Yes(snapshot.RestoredBest), Yes(Same(some.Loss, best)),
                Yes(some.SupervisedTokens + more.SupervisedTokens == all.SupervisedTokens), Bits(best),
                Exported(session, "out/plateau/model"));
        }
    }

    private static void Batches()
    {
        using (SftConfig config = Configured("batches"))
        using (SftSession session = config.Start())
        {
            StepReport last = null;
            long supervised = 0;
            for (int update = 1; !session.ShouldStop; update++)
            {
                last = session.StepBatch(BatchesFor(update.ToString()));
                supervised += last.SupervisedTokens;
            }
            EvalReport eval = session.EvaluateBatch(BatchesFor("eval"));
            Console.WriteLine("batches stop={0} steps={1} tokens={2} supervised={3} eval_tokens={4} eval_supervised={5} "
                + "~loss={6} ~eval_loss={7} ~weights={8}",
                ReasonOf(session), last.Step, last.TotalTokens, supervised, eval.Tokens, eval.SupervisedTokens,
                Bits(last.Loss), Bits(eval.Loss), Exported(session, "out/batches/model"));
        }
    }

    private static void Observe()
    {
        double[] scores = { 0.5, 0.95, 0.2, double.NaN, 0.91, 0.97, 0.1, 0.1 };
        using (SftConfig config = Configured("observe"))
        using (SftSession session = config.Start())
        {
            long steps = 0;
            foreach (StepReport report in session.Steps().Take(scores.Length))
            {
                steps = report.Step;
                session.Observe("score", scores[steps - 1]);
            }
            Console.WriteLine("observe stop={0} steps={1}", ReasonOf(session), steps);
        }
    }

    private static void Cancel()
    {
        using (var source = new CancellationTokenSource())
        using (var three = new ManualResetEventSlim())
        using (SftConfig config = Configured("cancel"))
        {
            config.CancellationToken = source.Token;
            config.SetProgress(report =>
            {
                if (report.Step == 3) three.Set();
                return RunAction.Continue;
            });
            using (SftSession session = config.Start())
            {
                var second = new Thread(() =>
                {
                    three.Wait();
                    source.Cancel();
                });
                second.Start();
                session.Run();
                second.Join();
                string after = StepOf(session);
                Console.WriteLine("cancel stop={0} enough={1} after={2} start={3}", ReasonOf(session),
                    Yes(session.GetSnapshot().Step >= 3), after, NameOf(() => config.Start().Dispose()));
            }
        }
    }

    private static void Progress()
    {
        long calls = 0;
        double loss = 0;
        int lines = 0, before = SftLibrary.LiveCallbacks;
        SftConfig config = Configured("progress");
        config.SetProgress(seen =>
        {
            calls++;
            loss = seen.Loss;
            return seen.Step == 4 ? RunAction.Stop : RunAction.Continue;
        });
        config.SetLog((level, line) =>
        {
            if ((level == LogLevel.Info || level == LogLevel.Warning) && line.Length > 0) lines++;
        });
        SftSession session = config.Start();
        StepReport last = session.Run();
        Console.Write("progress stop={0} steps={1} calls={2} same={3} logged={4}", ReasonOf(session), last.Step, calls,
            Yes(Same(loss, last.Loss)), Yes(lines > 0));
        config.Dispose();
        bool held = SftLibrary.LiveCallbacks == before + 2;
        session.Dispose();
        Console.WriteLine(" dropped={0} ~loss={1}", Yes(held && SftLibrary.LiveCallbacks == before), Bits(last.Loss));
    }

    private static void Failure()
    {
        var mine = new InvalidOperationException("mine");
        bool cameOut = false;
        using (SftConfig config = Configured("progress"))
        {
            config.SetProgress(report =>
            {
                if (report.Step == 3) throw mine;
                return RunAction.Continue;
            });
            using (SftSession session = config.Start())
            {
                try
                {
                    session.Run();
                }
                catch (InvalidOperationException thrown)
                {
                    cameOut = ReferenceEquals(thrown, mine);
                }
                long last = session.GetLastReport().Step;
                string after = session.Step() == null ? "SFT_STOPPED" : "SFT_OK";
                Console.WriteLine("failure came_out={0} stop={1} last={2} after={3}", Yes(cameOut), ReasonOf(session), last, after);
            }
        }
    }

    private static void Checkpoints()
    {
        var told = new List<string>();
        using (SftConfig config = Configured("checkpoints"))
        {
            config.SetCheckpoint(report => told.Add(
                report.Folder.EndsWith("checkpoint-" + report.Step) ? report.Step.ToString() : "elsewhere"));
            Snapshot first, second;
            using (SftSession session = config.Start())
            {
                session.Run();
                first = session.GetSnapshot();
            }
            config.Set("max_steps", 8);
            using (SftSession session = config.Resume("out/checkpoints/checkpoint-6"))
            {
                session.Run();
                second = session.GetSnapshot();
            }
            Console.WriteLine("checkpoints told={0} newest={1} resumed={2} resumed_step={3} steps={4} stop={5}",
                string.Join(",", told), first.CheckpointStep, second.ResumedStep.HasValue ? 1 : 0, second.ResumedStep,
                second.Step, SftLibrary.StopReasonName(second.StopReason));
        }
    }

    /// <summary>Steps to the end: the last step, the reason, the losses from update 4 on, the evaluation's, the weights.</summary>
    private static string[] ToTheEnd(SftSession session, string folder)
    {
        var losses = new List<string>();
        StepReport last = null;
        foreach (StepReport report in session.Steps())
        {
            last = report;
            if (report.Step > 3) losses.Add(Bits(report.Loss));
        }
        return new[] { last.Step.ToString(), ReasonOf(session) }.Concat(losses)
            .Concat(new[] { Bits(last.Evaluation.Loss), Exported(session, folder) }).ToArray();
    }

    private static void ResumeChild()
    {
        using (SftConfig config = Configured("resume"))
        using (SftSession session = config.Resume("out/resume-saved"))
        {
            Snapshot snapshot = session.GetSnapshot();
            Console.WriteLine("{0} {1} {2}", snapshot.ResumedStep.HasValue ? 1 : 0, snapshot.ResumedStep,
                string.Join(" ", ToTheEnd(session, "out/resume-child")));
        }
    }

    private static void Resume()
    {
        string[] whole;
        using (SftConfig config = Configured("resume"))
        {
            using (SftSession session = config.Start()) whole = ToTheEnd(session, "out/resume-whole");
            using (SftSession session = config.Start())
            {
                for (int i = 0; i < 3; i++) session.Step();
                session.Save("out/resume-saved");
            }
        }
        // The same program on the same runtime.
        var start = new ProcessStartInfo(
            Process.GetCurrentProcess().MainModule.FileName, "\"" + Assembly.GetExecutingAssembly().Location + "\" resume")
        {
            RedirectStandardOutput = true,
            UseShellExecute = false,
        };
        using (Process child = Process.Start(start))
        {
            string said = child.StandardOutput.ReadToEnd();
            child.WaitForExit();
            Console.WriteLine("resume stop={0} steps={1} child={2} same={3} ~numbers={4}", whole[1], whole[0], child.ExitCode,
                Yes(said == "1 3 " + string.Join(" ", whole) + "\n"), whole.Last());
        }
    }

    /// <summary>Does what a line of errors.tsv asks for; text is what the library says to it.</summary>
    private static SftStatus Provoke(string how, string jsonOrPath, out string text)
    {
        SftSession session = null;
        using (var source = new CancellationTokenSource())
        using (SftConfig config = how == "merge" || how == "file" ? new SftConfig() : Configured("errors"))
        {
            try
            {
                if (how == "merge") return StatusOf(() => config.MergeJson(jsonOrPath), out text);
                if (how == "file") return StatusOf(() => config.MergeFile(jsonOrPath), out text);
                config.MergeJson(jsonOrPath);
                if (how == "resume") return StatusOf(() => session = config.Resume("model"), out text);
                if (how == "start") return StatusOf(() => session = config.Start(), out text);
                if (how == "cancelled")
                {
                    config.CancellationToken = source.Token;
                    source.Cancel();
                    return StatusOf(() => session = config.Start(), out text);
                }
                var inner = SftStatus.Ok;
                string inside = "";
                if (how == "busy")
                {
                    config.SetProgress(report =>
                    {
                        inner = StatusOf(() => session.Step(), out inside);
                        return RunAction.Continue;
                    });
                }
                session = config.Start();
                switch (how)
                {
                    case "step":
                        return StatusOf(() => session.Step(), out text);
                    case "batch":
                        return StatusOf(() => session.StepBatch(new TokenBatch(new[] { 1, 1000000, 2 })), out text);
                    case "export":
                        return StatusOf(() => session.Export("/proc/no/such"), out text);
                    case "busy":
                        session.Step();
                        text = inside;
                        return inner;
                    default:
                        throw new InvalidDataException("errors.tsv: " + how);
                }
            }
            finally
            {
                if (session != null) session.Dispose();
            }
        }
    }

    private static void Errors()
    {
        foreach (string line in File.ReadLines("errors.tsv"))
        {
            string[] columns = line.Split('\t');
            string text;
            SftStatus status = Provoke(columns[1], columns[2], out text);
            bool said = text.Contains(columns[3]);
            Console.WriteLine("error {0} got={1} text={2}", columns[0], SftLibrary.StatusName(status), Yes(said));
            if (!said) Console.Error.WriteLine("no '{0}' in: {1}", columns[3], text);
        }
    }

    private static string[] RunAlone(string name)
    {
        using (SftConfig config = Configured(name))
        using (SftSession session = config.Start())
        {
            return Enumerable.Range(0, 12).Select(i => Bits(session.Step().Loss)).ToArray();
        }
    }

    private static void Two()
    {
        string[] names = { "one", "other" };
        var together = new string[2][];
        Thread[] threads = names.Select((name, i) => new Thread(() => together[i] = RunAlone(name))).ToArray();
        foreach (Thread thread in threads) thread.Start();
        foreach (Thread thread in threads) thread.Join();
        string[][] alone = names.Select(RunAlone).ToArray();
        Console.WriteLine("two same={0} different={1} ~one={2} ~other={3}",
            Yes(alone.Zip(together, (a, b) => a.SequenceEqual(b)).All(same => same)), Yes(alone[0][11] != alone[1][11]),
            alone[0][11], alone[1][11]);
    }

    private static void Freed()
    {
        var source = new CancellationTokenSource();
        SftConfig config = Configured("freed");
        config.CancellationToken = source.Token;
        SftSession session = config.Start();
        config.Dispose();
        source.Dispose();
        string text;
        StatusOf(source.Cancel, out text);
        bool outlives = session.Step().Step == 1;
        session.Dispose();
        string step = NameOf(() => session.Step()), set = NameOf(() => config.Set("max_steps", 1));
        session.Dispose();
        config.Dispose();
        source.Dispose();
        Console.WriteLine("freed outlives={0} session={1} should_stop={2} config={3} twice=ok", Yes(outlives), step,
            Yes(session.ShouldStop), set);
    }

    /// <summary>Resident memory in KiB, without garbage.</summary>
    private static long Resident()
    {
        GC.Collect();
        GC.WaitForPendingFinalizers();
        GC.Collect();
        return long.Parse(File.ReadAllText("/proc/self/statm").Split(' ')[1]) * (Environment.SystemPageSize / 1024);
    }

    private static void Memory()
    {
        const int Cycles = 1000;
        int drops = 0;
        long before = 0;
        for (int i = 0; i < Cycles; i++)
        {
            if (i == 250) before = Resident();
            int held;
            using (var source = new CancellationTokenSource())
            using (SftConfig config = Configured("memory"))
            {
                config.CancellationToken = source.Token;
                config.SetProgress(report => RunAction.Continue);
                config.SetLog((level, line) => { });
                using (SftSession session = config.Start()) session.Step();
                held = SftLibrary.LiveCallbacks;
            }
            drops += held - SftLibrary.LiveCallbacks;
        }
        long grown = Resident() - before;
        Console.WriteLine("memory cycles={0} drops={1} within_8_MiB={2}", Cycles, drops, Yes(grown <= 8192));
        Console.Error.WriteLine("memory: grown by {0} KiB", grown);
    }
}
