// What is C#'s own: exceptions over the border, tokens, disposal, finalizers, strings, and the layout against sft.h. Compiled together
// with the sources of LibSft, whose internals it looks at.
//
//     tests HEADER        runs the tests in a folder that bindings/scenarios/prepare made
//     tests layout        prints a C program that compiles only if structs and numbers are those of sft.h
//     tests abi           expects a library of another binary interface
//     tests exit          leaves everything undisposed at the end of the process
using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Reflection;
using System.Runtime.InteropServices;
using System.Text.RegularExpressions;
using System.Threading;
using System.Threading.Tasks;
using LibSft;

internal static class Tests
{
    private static readonly Dictionary<Type, string> Structs = new Dictionary<Type, string>
    {
        { typeof(NativeStepReport), "sft_step_report" },
        { typeof(NativeCheckpointReport), "sft_checkpoint_report" },
        { typeof(NativeMemoryPlan), "sft_memory_plan" },
        { typeof(NativeBatch), "sft_batch" },
        { typeof(NativeEvalReport), "sft_eval_report" },
        { typeof(NativeSnapshot), "sft_snapshot" },
    };

    private static string header;

    private static int Main(string[] arguments)
    {
        switch (arguments[0])
        {
            case "layout":
                PrintLayout();
                return 0;
            case "abi":
                return OtherAbi();
            case "exit":
                LeaveUndisposed();
                return 0;
        }
        header = File.ReadAllText(arguments[0]);
        int failed = 0, passed = 0;
        foreach (MethodInfo test in typeof(Tests).GetMethods(BindingFlags.Static | BindingFlags.Public))
        {
            int live = SftLibrary.LiveCallbacks;
            try
            {
                test.Invoke(null, null);
                Equal(live, SftLibrary.LiveCallbacks, "callbacks that are still held");
                passed++;
            }
            catch (Exception exception)
            {
                failed++;
                Console.WriteLine("FAILED {0}: {1}", test.Name, exception.InnerException ?? exception);
            }
        }
        Console.WriteLine("{0} passed, {1} failed", passed, failed);
        return failed == 0 ? 0 : 1;
    }

    // What the tests share

    private static void True(bool truth, string what)
    {
        if (!truth) throw new Exception(what);
    }

    private static void Equal<T>(T expected, T found, string what)
    {
        if (!Equals(expected, found)) throw new Exception(string.Format("{0}: expected {1}, found {2}", what, expected, found));
    }

    private static T Throws<T>(Action call) where T : Exception
    {
        try
        {
            call();
        }
        catch (T exception)
        {
            return exception;
        }
        throw new Exception("no " + typeof(T).Name);
    }

    private static void Fails(SftStatus status, Action call)
    {
        Equal(status, Throws<SftException>(call).Status, "status");
    }

    private static SftConfig Configured(string more = "{}")
    {
        var config = new SftConfig();
        config.MergeJson(File.ReadAllText("base.json"));
        config.MergeJson("{\"output_dir\": \"out/tests\", \"max_steps\": 4}");
        config.MergeJson(more);
        return config;
    }

    private const string WithEvaluation = "{\"eval_strategy\": \"steps\", \"eval_steps\": 1, \"eval_dataset_name\": \"eval.jsonl\"}";

    private sealed class Marked : Exception
    {
    }

    private sealed class Looking : IProgress<StepReport>
    {
        internal readonly List<long> Steps = new List<long>();

        public void Report(StepReport report)
        {
            Steps.Add(report.Step);
        }
    }

    private static string Snake(string name)
    {
        return Regex.Replace(name, "(?<=[a-z])[A-Z]|(?<=^N)[A-Z]", "_$0").ToLowerInvariant();
    }

    private static string CName(SftStatus status)
    {
        return (status < SftStatus.InvalidArgument ? "SFT_" : "SFT_ERR_") + Snake(status.ToString()).ToUpperInvariant();
    }

    private static Dictionary<string, int> Numbers()
    {
        var numbers = new Dictionary<string, int> { { "SFT_ABI_VERSION", SftLibrary.ExpectedAbiVersion } };
        foreach (SftStatus status in Enum.GetValues(typeof(SftStatus))) numbers[CName(status)] = (int)status;
        foreach (StopReason it in Enum.GetValues(typeof(StopReason))) numbers["SFT_STOP_" + Snake(it.ToString()).ToUpperInvariant()] = (int)it;
        foreach (LogLevel it in Enum.GetValues(typeof(LogLevel))) numbers["SFT_LOG_" + it.ToString().ToUpperInvariant()] = (int)it;
        foreach (ExportKind it in Enum.GetValues(typeof(ExportKind))) numbers["SFT_EXPORT_" + it.ToString().ToUpperInvariant()] = (int)it;
        return numbers;
    }

    private static FieldInfo[] Fields(Type type)
    {
        return type.GetFields(BindingFlags.Instance | BindingFlags.NonPublic | BindingFlags.Public);
    }

    // The other ways to run

    private static void PrintLayout()
    {
        Console.WriteLine("#include <sft.h>");
        foreach (KeyValuePair<Type, string> pair in Structs)
        {
            Console.WriteLine("_Static_assert(sizeof({0}) == {1}, \"{0}\");", pair.Value, Marshal.SizeOf(pair.Key));
            foreach (FieldInfo field in Fields(pair.Key))
            {
                string name = Snake(field.Name);
                Console.WriteLine("_Static_assert(offsetof({0}, {1}) == {2} && sizeof((({0} *)0)->{1}) == {3}, \"{0}.{1}\");",
                    pair.Value, name, Marshal.OffsetOf(pair.Key, field.Name), Marshal.SizeOf(field.FieldType));
            }
        }
        foreach (KeyValuePair<string, int> number in Numbers())
        {
            Console.WriteLine("_Static_assert({0} == {1}, \"{0}\");", number.Key, number.Value);
        }
    }

    private static int OtherAbi()
    {
        SftVersionException exception = Throws<SftVersionException>(() => new SftConfig());
        Equal(SftStatus.Unsupported, exception.Status, "status");
        foreach (string part in new[] { "9.8.7", "binary interface 77", SftLibrary.ExpectedVersion })
        {
            True(exception.Message.Contains(part), "no '" + part + "' in: " + exception.Message);
        }
        return 0;
    }

    private static void LeaveUndisposed()
    {
        SftConfig config = Configured("{\"output_dir\": \"out/tests-exit\", \"save_strategy\": \"steps\", \"save_steps\": 1}");
        config.SetProgress(report => RunAction.Continue);
        config.SetLog((level, line) => { });
        config.SetCheckpoint(report => { });
        config.CancellationToken = new CancellationTokenSource().Token;
        config.Start().Step();
        config.Start().Dispose();
    }

    // The header

    public static void EveryFunctionOfTheHeaderIsDeclared()
    {
        string[] functions = Regex.Matches(Regex.Replace(header, @"/\*.*?\*/", "", RegexOptions.Singleline), @"\b(sft_\w+)\(")
            .Cast<Match>().Select(match => match.Groups[1].Value).Distinct().OrderBy(name => name).ToArray();
        string[] declared = typeof(Native).GetMethods(BindingFlags.Static | BindingFlags.NonPublic)
            .Select(method => method.Name).Where(name => name.StartsWith("sft_")).OrderBy(name => name).ToArray();
        True(functions.Length > 30, "functions in the header");
        Equal(string.Join(" ", functions), string.Join(" ", declared), "functions");
    }

    public static void EveryNumberOfTheHeaderHasAName()
    {
        Dictionary<string, int> ours = Numbers();
        int seen = 0;
        foreach (Match match in Regex.Matches(header, @"#define (SFT_\w+) (-?\d+)"))
        {
            string name = match.Groups[1].Value;
            if (name.StartsWith("SFT_VERSION_")) continue;
            seen++;
            True(ours.ContainsKey(name), name + " has no counterpart");
            Equal(int.Parse(match.Groups[2].Value), ours[name], name);
        }
        Equal(ours.Count, seen, "numbers");
        True(header.Contains("#define SFT_VERSION \"" + SftLibrary.ExpectedVersion + "\""), "version");
    }

    public static void EveryFieldOfTheHeaderIsDeclared()
    {
        string code = Regex.Replace(header, @"/\*.*?\*/", "", RegexOptions.Singleline);
        foreach (KeyValuePair<Type, string> pair in Structs)
        {
            string body = Regex.Match(code, "typedef struct " + pair.Value + @" \{(.*?)\}", RegexOptions.Singleline).Groups[1].Value;
            string[] theirs = Regex.Matches(body, @"(\w+);").Cast<Match>().Select(match => match.Groups[1].Value).ToArray();
            Equal(string.Join(" ", theirs), string.Join(" ", Fields(pair.Key).Select(field => Snake(field.Name))), pair.Value);
        }
    }

    public static void AShorterStructOfAnOlderLibraryIsReadAsFarAsItGoes()
    {
        IntPtr memory = Marshal.AllocHGlobal(4096);
        try
        {
            for (int i = 0; i < 4096; i++) Marshal.WriteByte(memory, i, 0xff);
            Marshal.WriteInt32(memory, 16);
            NativeStepReport old = Lent.Read<NativeStepReport>(memory);
            Equal(ulong.MaxValue, old.Step, "step");
            Equal(0UL, old.SupervisedTokens, "what is not there");
            Marshal.WriteInt32(memory, 4000);
            Equal(ulong.MaxValue, Lent.Read<NativeStepReport>(memory).SkippedUpdates, "of a newer library");
        }
        finally
        {
            Marshal.FreeHGlobal(memory);
        }
    }

    public static void NumbersWithoutANameAreUnknown()
    {
        Equal("unknown", SftLibrary.StatusName((SftStatus)12345), "status");
        Equal("unknown", SftLibrary.StopReasonName((StopReason)12345), "reason");
        Equal("none", SftLibrary.StopReasonName(StopReason.None), "none");
    }

    // Strings

    public static void StringsAreUtf8BothWays()
    {
        const string Name = "größe-日本-🦀";
        using (SftConfig config = Configured("{\"output_dir\": \"out/tests-" + Name + "\"}"))
        {
            True(config.ToJson().Contains(Name), "merged and written");
            config.Set("output_dir", "out/" + Name);
            True(config.ToJson().Contains("out/" + Name), "set and written");
            using (SftSession session = config.Start())
            {
                session.Export("out/" + Name + "/model");
                True(File.Exists("out/" + Name + "/model/model.safetensors"), "exported");
            }
            SftException exception = Throws<SftException>(() => config.Set(Name, 1));
            True(exception.Message.Contains(Name), exception.Message);
        }
    }

    public static void TextsThatAreNoneAreRefused()
    {
        using (SftConfig config = Configured())
        {
            Throws<ArgumentException>(() => config.Set("output_dir", "a\0b"));
            Throws<ArgumentException>(() => config.Set("output_dir", "\ud83e"));
            Throws<ArgumentNullException>(() => config.Set("output_dir", null));
            Throws<ArgumentNullException>(() => config.Set(null, 1));
            Throws<ArgumentNullException>(() => config.MergeJson(null));
            Throws<ArgumentNullException>(() => config.Resume(null));
            Fails(SftStatus.Config, () => config.MergeJson(""));
            Fails(SftStatus.Config, () => config.MergeJson("{\"seed\": 1}\0"));
            using (SftSession session = config.Start())
            {
                Throws<ArgumentNullException>(() => session.Export(null));
                Throws<ArgumentNullException>(() => session.Save(null));
                Throws<ArgumentNullException>(() => session.Observe(null, 1));
                Fails(SftStatus.InvalidArgument, () => session.Observe("", 1));
            }
        }
    }

    public static void WholeNumbersStayWhole()
    {
        using (SftConfig config = Configured())
        {
            config.Set("seed", 1L << 40);
            True(config.ToJson().Contains("\"seed\": 1099511627776"), "seed");
            Fails(SftStatus.Config, () => config.Set("learning_rate", double.NaN));
            Fails(SftStatus.UnknownKey, () => config.Set("learning_rat", 0.5));
        }
    }

    // Callbacks

    public static void WhatAProgressCallbackThrowsIsThrownByTheStepAndEndsTheRun()
    {
        using (SftConfig config = Configured())
        {
            var mine = new Marked();
            config.SetProgress(report =>
            {
                if (report.Step == 2) throw mine;
                return RunAction.Continue;
            });
            using (SftSession session = config.Start())
            {
                session.Step();
                Marked thrown = Throws<Marked>(() => session.Step());
                True(ReferenceEquals(mine, thrown), "the same exception");
                True(thrown.StackTrace.Contains("WhatAProgressCallbackThrows"), "its stack");
                Equal(2L, session.GetSnapshot().Step, "the update counts");
                Equal(2L, session.GetLastReport().Step, "and has a report");
                Equal(StopReason.Callback, session.StopReason, "the run ends");
                True(session.Step() == null, "nothing more is done");
            }
        }
    }

    public static void WhatALogCallbackThrowsIsThrownByTheStart()
    {
        using (SftConfig config = Configured())
        {
            int lines = 0;
            config.SetLog((level, line) =>
            {
                lines++;
                throw new Marked();
            });
            Throws<Marked>(() => config.Start());
            True(lines > 0, "lines");
            config.SetLog(null);
            config.Start().Dispose();
        }
    }

    public static void WhatACheckpointCallbackThrowsIsThrownByALaterCall()
    {
        using (SftConfig config = Configured("{\"save_strategy\": \"steps\", \"save_steps\": 2, \"output_dir\": \"out/tests-saved\"}"))
        {
            config.SetCheckpoint(report => { throw new Marked(); });
            using (SftSession session = config.Start())
            {
                Throws<Marked>(() =>
                {
                    session.Run();
                    session.GetSnapshot();
                });
            }
        }
    }

    public static void ExceptionsOfNestedCallsKeepToTheirCalls()
    {
        using (SftConfig outer = Configured(), inner = Configured("{\"output_dir\": \"out/tests-inner\"}"))
        {
            inner.SetProgress(report => { throw new Marked(); });
            int caught = 0;
            outer.SetProgress(report =>
            {
                using (SftSession second = inner.Start())
                {
                    try
                    {
                        second.Step();
                    }
                    catch (Marked)
                    {
                        caught++;
                        if (report.Step == 2) throw;
                    }
                }
                return RunAction.Continue;
            });
            using (SftSession first = outer.Start())
            {
                Equal(1L, first.Step().Step, "caught inside");
                Throws<Marked>(() => first.Step());
                Equal(2, caught, "thrown inside");
            }
        }
    }

    public static void CallbacksOutliveTheCollector()
    {
        using (SftConfig config = Configured())
        {
            int calls = 0;
            SetForgotten(config, () => calls++);
            using (SftSession session = config.Start())
            {
                foreach (StepReport report in session.Steps())
                {
                    GC.Collect();
                    GC.WaitForPendingFinalizers();
                }
            }
            Equal(4, calls, "calls");
        }
    }

    private static void SetForgotten(SftConfig config, Action call)
    {
        config.SetProgress(report =>
        {
            GC.Collect();
            call();
            return RunAction.Continue;
        });
    }

    public static void AReplacedCallbackIsLetGoOf()
    {
        int before = SftLibrary.LiveCallbacks;
        using (SftConfig config = Configured())
        {
            config.SetProgress(report => RunAction.Continue);
            config.SetProgress(report => RunAction.Stop);
            Equal(before + 1, SftLibrary.LiveCallbacks, "the second");
            config.SetProgress((IProgress<StepReport>)null);
            Equal(before, SftLibrary.LiveCallbacks, "none");
        }
        var gone = new SftConfig();
        gone.Dispose();
        Throws<ObjectDisposedException>(() => gone.SetLog((level, line) => { }));
    }

    public static void ReceiversOfProgressLook()
    {
        Looking ofConfig = new Looking(), ofRun = new Looking();
        using (SftConfig config = Configured())
        {
            config.SetProgress(ofConfig);
            using (SftSession session = config.Start())
            {
                Equal(4L, session.Run(progress: ofRun).Step, "last");
                Equal(null, session.Run(), "a run that has ended");
            }
        }
        Equal("1 2 3 4", string.Join(" ", ofConfig.Steps), "configuration's");
        Equal("1 2 3 4", string.Join(" ", ofRun.Steps), "run's");
    }

    // Tokens

    public static void ACancelledTokenEndsTheRunBeforeAStep()
    {
        using (var source = new CancellationTokenSource())
        using (SftConfig config = Configured())
        using (SftSession session = config.Start())
        {
            session.Step();
            source.Cancel();
            var thrown = Throws<OperationCanceledException>(() => session.Step(source.Token));
            Equal(source.Token, thrown.CancellationToken, "token");
            Equal(StopReason.Cancelled, session.StopReason, "reason");
            True(session.ShouldStop, "should stop");
            Equal(1L, session.GetSnapshot().Step, "step");
            Equal(null, session.Step(), "a step without the token");
            session.Export("out/tests-cancelled");
        }
    }

    public static void ATokenThatIsCancelledDuringAnUpdateLetsItFinish()
    {
        using (var source = new CancellationTokenSource())
        using (SftConfig config = Configured())
        {
            config.SetProgress(report =>
            {
                if (report.Step == 2) source.Cancel();
                return RunAction.Continue;
            });
            using (SftSession session = config.Start())
            {
                var steps = new List<long>();
                var thrown = Throws<OperationCanceledException>(() =>
                {
                    foreach (StepReport report in session.Steps(source.Token)) steps.Add(report.Step);
                });
                Equal(source.Token, thrown.CancellationToken, "token");
                Equal("1 2", string.Join(" ", steps), "reports");
                Equal(2L, session.GetSnapshot().Step, "step");
            }
        }
    }

    public static void ATokenOfACallEndsThatSessionAlone()
    {
        using (var source = new CancellationTokenSource())
        using (SftConfig config = Configured())
        using (SftSession first = config.Start(source.Token))
        {
            config.Set("output_dir", "out/tests-second");
            using (SftSession second = config.Start())
            {
                first.Step(source.Token);
                source.Cancel();
                Equal(2L, first.Step().Step, "a token that was given to earlier calls");
                Throws<OperationCanceledException>(() => first.Run(source.Token));
                Equal(4L, second.Run().Step, "the other session");
            }
        }
    }

    public static void ARunThatHadEndedIsNotCancelled()
    {
        using (var source = new CancellationTokenSource())
        using (SftConfig config = Configured())
        using (SftSession session = config.Start())
        {
            session.Run();
            source.Cancel();
            Equal(null, session.Step(source.Token), "step");
            Equal(StopReason.MaxSteps, session.StopReason, "reason");
        }
    }

    public static void LoadingIsCancelledByEitherToken()
    {
        using (var source = new CancellationTokenSource())
        using (SftConfig config = Configured())
        {
            source.Cancel();
            foreach (Action call in new Action[]
            {
                () => config.Start(source.Token), () => config.Resume("model", source.Token),
                () => config.Plan(source.Token), () => config.PlanJson(source.Token),
            })
            {
                Equal(source.Token, Throws<OperationCanceledException>(call).CancellationToken, "token of the call");
            }
            config.Plan();
            config.CancellationToken = source.Token;
            Equal(source.Token, Throws<OperationCanceledException>(() => config.Start()).CancellationToken, "configuration's");
            Throws<OperationCanceledException>(() => config.Plan());
            config.CancellationToken = CancellationToken.None;
            config.Start().Dispose();
        }
    }

    public static void TheConfigurationsTokenIsAStopRule()
    {
        using (var source = new CancellationTokenSource())
        using (SftConfig config = Configured(WithEvaluation))
        {
            config.CancellationToken = source.Token;
            using (SftSession session = config.Start())
            {
                config.CancellationToken = CancellationToken.None;
                session.Step();
                source.Cancel();
                Equal(null, session.Run(), "run");
                Equal(StopReason.Cancelled, session.StopReason, "reason");
                Equal(source.Token, Throws<OperationCanceledException>(() => session.Evaluate()).CancellationToken, "token");
            }
        }
    }

    public static void AnEvaluationIsCancelled()
    {
        using (var source = new CancellationTokenSource())
        using (SftConfig config = Configured(WithEvaluation))
        using (SftSession session = config.Start())
        {
            Fails(SftStatus.InvalidArgument, () => session.EvalSet());
            EvalReport before = session.Evaluate();
            Equal(before.Loss, session.EvalSet().Loss, "all sets");
            source.Cancel();
            Equal(source.Token, Throws<OperationCanceledException>(() => session.Evaluate(source.Token)).CancellationToken, "token");
        }
    }

    public static void ATaskRunsOnAThreadOfItsOwn()
    {
        using (SftConfig config = Configured())
        {
            int thread = 0;
            config.SetProgress(report =>
            {
                thread = Thread.CurrentThread.ManagedThreadId;
                return RunAction.Continue;
            });
            var looking = new Looking();
            using (SftSession session = config.Start())
            {
                Equal(4L, session.RunAsync(progress: looking).Result.Step, "last");
            }
            Equal(4, looking.Steps.Count, "reports");
            True(thread != 0 && thread != Thread.CurrentThread.ManagedThreadId, "thread");
        }
    }

    public static void ATaskIsCancelledOrFaulted()
    {
        using (var source = new CancellationTokenSource())
        using (SftConfig config = Configured())
        using (SftSession session = config.Start())
        {
            source.Cancel();
            Task<StepReport> task = session.RunAsync(source.Token);
            Throws<AggregateException>(task.Wait);
            Equal(TaskStatus.Canceled, task.Status, "cancelled");
            Equal(StopReason.Cancelled, session.StopReason, "reason");
        }
        using (SftConfig config = Configured("{\"dataset_name\": null}"))
        using (SftSession session = config.Start())
        {
            Task<StepReport> task = session.RunAsync();
            Throws<AggregateException>(task.Wait);
            Equal(TaskStatus.Faulted, task.Status, "faulted");
            Equal(SftStatus.InvalidArgument, ((SftException)task.Exception.InnerException).Status, "status");
        }
    }

    // Threads and disposal

    public static void ASecondCallIsToldBusy()
    {
        using (ManualResetEventSlim inside = new ManualResetEventSlim(), goOn = new ManualResetEventSlim())
        using (SftConfig config = Configured())
        {
            config.SetProgress(report =>
            {
                inside.Set();
                goOn.Wait();
                return RunAction.Continue;
            });
            using (SftSession session = config.Start())
            {
                Task<StepReport> step = Task.Run(() => session.Step());
                inside.Wait();
                try
                {
                    Fails(SftStatus.Busy, () => session.Step());
                    Fails(SftStatus.Busy, () => session.GetSnapshot());
                    True(!session.ShouldStop, "should stop");
                    Equal(StopReason.None, session.StopReason, "reason");
                }
                finally
                {
                    goOn.Set();
                }
                Equal(1L, step.Result.Step, "step");
                Equal(1L, session.GetSnapshot().Step, "afterwards");
            }
        }
    }

    public static void ACallbackThatCallsItsOwnSessionIsToldBusy()
    {
        using (SftConfig config = Configured())
        {
            SftSession session = null;
            config.SetProgress(report =>
            {
                Fails(SftStatus.Busy, () => session.Step());
                True(!session.ShouldStop, "should stop");
                return RunAction.Continue;
            });
            using (session = config.Start()) session.Step();
            Exception inner = null;
            config.SetLog((level, line) => inner = Throws<SftException>(() => config.Start()));
            config.Start().Dispose();
            Equal(SftStatus.Busy, ((SftException)inner).Status, "a start inside a start");
        }
    }

    public static void DisposedInsideItsCallback()
    {
        SftSession session = null;
        using (SftConfig config = Configured())
        {
            config.SetProgress(report =>
            {
                session.Dispose();
                Throws<ObjectDisposedException>(() => session.Step());
                return RunAction.Continue;
            });
            session = config.Start();
        }
        Equal(1L, session.Step().Step, "the call ends as usual");
        True(session.ShouldStop, "should stop");
        Throws<ObjectDisposedException>(() => session.Step());
    }

    public static void ThrownAfterDisposingInsideTheCallback()
    {
        SftSession session = null;
        using (SftConfig config = Configured())
        {
            config.SetProgress(report =>
            {
                session.Dispose();
                throw new Marked();
            });
            session = config.Start();
        }
        Throws<Marked>(() => session.Step());
    }

    public static void DisposedWhileAnotherThreadIsInside()
    {
        using (ManualResetEventSlim inside = new ManualResetEventSlim(), goOn = new ManualResetEventSlim())
        {
            SftSession session;
            using (SftConfig config = Configured())
            {
                config.SetProgress(report =>
                {
                    inside.Set();
                    goOn.Wait();
                    return RunAction.Continue;
                });
                session = config.Start();
            }
            Task<StepReport> step = Task.Run(() => session.Step());
            inside.Wait();
            session.Dispose();
            goOn.Set();
            Equal(1L, step.Result.Step, "the call ends as usual");
        }
    }

    public static void EveryCallOnWhatIsDisposedThrows()
    {
        SftConfig config = Configured();
        SftSession session = config.Start();
        session.Dispose();
        config.Dispose();
        var batch = new TokenBatch(new[] { 1, 2 });
        foreach (Action call in new Action[]
        {
            () => config.Set("seed", 1), () => config.Set("seed", "1"), () => config.Set("seed", 1.0), () => config.Set("packing", true),
            () => config.MergeJson("{}"), () => config.ToJson(), () => config.Plan(), () => config.PlanJson(), () => config.Start(),
            () => config.Resume("model"), () => config.SetProgress(new Looking()), () => config.SetCheckpoint(null),
            () => session.Step(), () => session.Steps().First(), () => session.Run(), () => session.StepBatch(batch),
            () => session.Evaluate(), () => session.EvaluateBatch(new[] { batch }), () => session.EvalSet(),
            () => session.Observe("a", 1), () => session.GetSnapshot(), () => session.Save("out/no"), () => session.Export("out/no"),
            () => session.Step(new CancellationToken(true)), () => config.Start(new CancellationToken(true)),
        })
        {
            string name = Throws<ObjectDisposedException>(call).ObjectName;
            True(name == "SftConfig" || name == "SftSession", "name: " + name);
        }
        True(session.ShouldStop, "should stop");
        Equal(StopReason.None, session.StopReason, "reason");
        True(!Directory.Exists("out/no"), "nothing was written");
    }

    public static void WhatWasForgottenIsFinalised()
    {
        int before = SftLibrary.LiveCallbacks;
        var source = new CancellationTokenSource();
        var thread = new Thread(() =>
        {
            // A token that lives on keeps nothing of the session.
            SftConfig config = Configured();
            config.CancellationToken = source.Token;
            config.SetProgress(report => RunAction.Continue);
            config.Start().Step();
        });
        thread.Start();
        thread.Join();
        Equal(before + 1, SftLibrary.LiveCallbacks, "held");
        for (int i = 0; i < 50 && SftLibrary.LiveCallbacks != before; i++)
        {
            GC.Collect();
            GC.WaitForPendingFinalizers();
            Thread.Sleep(10);
        }
        Equal(before, SftLibrary.LiveCallbacks, "after the collector");
        source.Cancel();
        source.Dispose();
    }

    // Runs

    public static void LeavingTheLoopPauses()
    {
        using (SftConfig config = Configured())
        using (SftSession session = config.Start())
        {
            Equal(2, session.Steps().Take(2).Count(), "first");
            Equal("3 4", string.Join(" ", session.Steps().Select(report => report.Step)), "then");
        }
    }

    public static void WhatIsNotThereIsNull()
    {
        using (SftConfig config = Configured())
        using (SftSession session = config.Start())
        {
            Snapshot snapshot = session.GetSnapshot();
            Equal(null, snapshot.BestValue, "best");
            Equal(null, snapshot.BestStep, "best step");
            Equal(null, snapshot.ResumedStep, "resumed");
            Equal(null, snapshot.CheckpointStep, "checkpoint");
            Equal(4L, snapshot.TotalSteps, "total");
            StepReport report = session.Step();
            Equal(null, report.Evaluation, "evaluation");
            Equal(null, report.SmoothedLoss, "smoothed");
            True(report.Loss > 0 && report.Tokens > 0 && report.LearningRate == 0.003, "numbers");
        }
        using (SftConfig config = Configured(WithEvaluation))
        using (SftSession session = config.Start())
        {
            StepReport report = session.Step();
            Equal(session.EvalSet().Loss, report.Evaluation.Loss, "evaluation");
        }
    }

    public static void BatchesAreChecked()
    {
        Throws<ArgumentNullException>(() => new TokenBatch(null));
        Throws<ArgumentException>(() => new TokenBatch(new[] { 1, 2 }, new[] { 1 }));
        using (SftConfig config = Configured("{\"dataset_name\": null}"))
        using (SftSession session = config.Start())
        {
            Throws<ArgumentNullException>(() => session.StepBatch((IReadOnlyList<TokenBatch>)null));
            Throws<ArgumentException>(() => session.StepBatch((TokenBatch)null));
            Fails(SftStatus.Batch, () => session.StepBatch(new TokenBatch[0]));
            Fails(SftStatus.Batch, () => session.StepBatch(new TokenBatch(new[] { 1, 2, 3 }, null, new[] { 0, 2, 1 })));
            Fails(SftStatus.Batch, () => session.StepBatch(new TokenBatch(new[] { 1, 2, 3 }, new[] { 1, 2, -5 })));
            Fails(SftStatus.Data, () => session.EvaluateBatch(new[] { new TokenBatch(new int[0]) }));
            Equal(1L, session.StepBatch(new TokenBatch(new[] { 1, 2, 3 }, new[] { 1, TokenBatch.Ignored, 3 })).SupervisedTokens, "one");
            Equal(3L, session.EvaluateBatch(new[] { new TokenBatch(new[] { 1, 2, 3, 4, 5 }, null, new[] { 0, 3 }) }).SupervisedTokens,
                "two sequences");
        }
    }

    public static void ExportsThatAreNotThereAreRefused()
    {
        using (SftConfig config = Configured())
        using (SftSession session = config.Start())
        {
            Fails(SftStatus.Unsupported, () => session.Export("out/no", ExportKind.Adapter));
            Fails(SftStatus.InvalidArgument, () => session.Export("out/no", (ExportKind)99));
            Fails(SftStatus.Checkpoint, () => config.Resume("out/no"));
        }
    }
}
