"""The scenarios of bindings/scenarios.md: prints the table that every language prints.

python3 scenarios.py           in a folder that bindings/scenarios/prepare made
python3 scenarios.py resume    the second process of the scenario resume
"""

import gc
import math
import os
import struct
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Callable, Optional

import libsft
from libsft import Batch, Canceller, Config, Session, SftError, Status, StepReport, StopReason

# ---- What the scenarios share ----


def configured(name: str) -> Config:
    config = Config("base.json")
    config.merge(f"{name}.json")
    return config


def yes(truth: bool) -> str:
    return "yes" if truth else "NO"


def bits(value: float) -> str:
    return struct.pack(">d", value).hex()


def exported(session: Session, folder: str) -> str:
    """FNV-1a of the weights in the folder exported to."""
    session.export(folder)
    number = 14695981039346656037
    for byte in Path(folder, "model.safetensors").read_bytes():
        number = (number ^ byte) * 1099511628211 % 2**64
    return f"{number:016x}"


def stepped(session: Session) -> StepReport:
    report = session.step()
    assert report is not None, "the run has ended"
    return report


def outcome(call: Callable[[], object]) -> Status:
    """The status of a call, as C would return it."""
    try:
        return Status.STOPPED if call() is None else Status.OK
    except SftError as error:
        return error.status


def batches_for(where: str) -> list[Batch]:
    """The batches of batches.tsv whose first column is ``where``."""

    def numbers(text: str) -> Optional[list[int]]:
        return None if text == "-" else [int(number) for number in text.split()]

    rows = [line.split("\t") for line in Path("batches.tsv").read_text().splitlines()]
    return [Batch(*map(numbers, columns)) for name, *columns in rows if name == where]


# ---- The scenarios ----


def library() -> None:
    statuses = sum(libsft.status_name(status) == status.label for status in Status)
    reasons = sum(libsft.stop_reason_name(reason) == reason.label for reason in StopReason)
    print(
        f"library abi={yes(libsft.abi_version() == libsft.ABI_VERSION)}"
        f" version={yes(libsft.version() == libsft.__version__)}"
        f" build={yes('devices' in libsft.build_info())} statuses={statuses} reasons={reasons}"
    )


def config_keys() -> None:
    with configured("target") as config, Config() as copy, configured("target") as of_file:
        config["max_steps"] = 5
        config["learning_rate"] = 0.25
        config["packing"] = True
        config["seed"] = "9"
        text = config.to_json()
        copy.merge_json(text)
        of_file.merge("file.yaml")
        wanted = ('"max_steps": 5', '"learning_rate": 0.25', '"packing": true', '"seed": 9')
        print(
            f"config set={yes(all(line in text for line in wanted))}"
            f" round_trip={yes(text == copy.to_json())} file={yes(text == of_file.to_json())}"
        )


def plan() -> None:
    with configured("target") as config:
        plan = config.plan()
        json = f'"total_bytes":{plan.total_bytes}' in config.plan_json()
        print(
            f"plan weights={plan.weights_bytes} gradients={plan.gradients_bytes}"
            f" optimizer={plan.optimizer_bytes}"
            f" bounded={yes(plan.lower_bound_bytes <= plan.total_bytes)} json={yes(json)}"
            f" ~total={plan.total_bytes}"
        )


def target() -> None:
    with configured("target") as config, config.start() as session:
        *_, report = session
        after = outcome(session.step)
        print(
            f"target stop={session.stop_reason} steps={report.step}"
            f" snapshot={session.snapshot().step} after={after.label} ~loss={bits(report.loss)}"
            f" ~weights={exported(session, 'out/target/model')}"
        )


def plateau() -> None:
    evaluations = best_step = steps = 0
    best = math.inf
    with configured("plateau") as config, config.start() as session:
        for report in session:
            steps = report.step
            if report.evaluation is None:
                continue
            evaluations += 1
            loss = session.eval_set("some").loss
            if loss < best:
                best, best_step = loss, report.step
        at_end = session.snapshot()
        together = session.evaluate()
        some, more = session.eval_set("some"), session.eval_set("more")
        seen = (
            at_end.best_value is not None
            and bits(at_end.best_value) == bits(best)
            and at_end.best_step == best_step
        )
        sets = some.supervised_tokens + more.supervised_tokens == together.supervised_tokens
        print(
            f"plateau stop={session.stop_reason} steps={steps} evaluations={evaluations}"
            f" best_step={at_end.best_step} patience_used={at_end.patience_used}"
            f" best_seen={yes(seen)} restored={yes(at_end.restored_best)}"
            f" best_is_back={yes(bits(some.loss) == bits(best))} sets={yes(sets)}"
            f" ~best={bits(best)} ~weights={exported(session, 'out/plateau/model')}"
        )


def batches() -> None:
    reports: list[StepReport] = []
    with configured("batches") as config, config.start() as session:
        while not session.should_stop:
            report = session.step_batch(*batches_for(str(len(reports) + 1)))
            assert report is not None
            reports.append(report)
        evaluation = session.evaluate_batch(*batches_for("eval"))
        last = reports[-1]
        print(
            f"batches stop={session.stop_reason} steps={last.step} tokens={last.total_tokens}"
            f" supervised={sum(report.supervised_tokens for report in reports)}"
            f" eval_tokens={evaluation.tokens} eval_supervised={evaluation.supervised_tokens}"
            f" ~loss={bits(last.loss)} ~eval_loss={bits(evaluation.loss)}"
            f" ~weights={exported(session, 'out/batches/model')}"
        )


def observe() -> None:
    steps = 0
    with configured("observe") as config, config.start() as session:
        for score in (0.5, 0.95, 0.2, math.nan, 0.91, 0.97, 0.1, 0.1):
            steps = stepped(session).step
            session.observe("score", score)
            if session.should_stop:
                break
        print(f"observe stop={session.stop_reason} steps={steps}")


def cancel() -> None:
    three = threading.Event()
    with Canceller() as canceller, configured("cancel") as config:

        def cancel_after_three() -> None:
            three.wait()
            canceller.cancel()

        def tell(report: StepReport) -> None:
            if report.step >= 3:
                three.set()

        config.set_canceller(canceller)
        config.set_progress(tell)
        with config.start() as session:
            thread = threading.Thread(target=cancel_after_three)
            thread.start()
            session.run()
            thread.join()
            after = outcome(session.step)
            again = outcome(config.start)
            print(
                f"cancel stop={session.stop_reason} enough={yes(session.snapshot().step >= 3)}"
                f" after={after.label} start={again.label}"
            )


def progress() -> None:
    losses: list[float] = []
    lines: list[libsft.LogLevel] = []
    dropped: list[str] = []

    def callbacks(config: Config) -> None:
        def stop_at_four(report: StepReport) -> bool:
            losses.append(report.loss)
            return report.step == 4

        def log(level: libsft.LogLevel, line: str) -> None:
            if level in (libsft.LogLevel.INFO, libsft.LogLevel.WARNING) and line:
                lines.append(level)

        weakref.finalize(stop_at_four, dropped.append, "progress")
        weakref.finalize(log, dropped.append, "log")
        config.set_progress(stop_at_four)
        config.set_log(log)

    config = configured("progress")
    callbacks(config)
    session = config.start()
    report = session.run()
    assert report is not None
    line = (
        f"progress stop={session.stop_reason} steps={report.step} calls={len(losses)}"
        f" same={yes(bits(losses[-1]) == bits(report.loss))} logged={yes(len(lines) > 0)}"
    )
    config.close()
    held = not dropped
    session.close()
    print(f"{line} dropped={yes(held and len(dropped) == 2)} ~loss={bits(report.loss)}")


def failure() -> None:
    class Mine(Exception):
        pass

    def fail_at_three(report: StepReport) -> None:
        if report.step == 3:
            raise Mine

    came_out = False
    with configured("progress") as config:
        config.set_progress(fail_at_three)
        with config.start() as session:
            try:
                session.run()
            except Mine:
                came_out = True
            last = session.last_report
            print(
                f"failure came_out={yes(came_out)} stop={session.stop_reason} last={last.step if last else 0}"
                f" after={outcome(session.step).label}"
            )


def checkpoints() -> None:
    told: list[str] = []

    def tell(checkpoint: libsft.Checkpoint) -> None:
        found = checkpoint.folder.endswith(f"checkpoint-{checkpoint.step}")
        told.append(str(checkpoint.step) if found else "elsewhere")

    with configured("checkpoints") as config:
        config.set_checkpoint(tell)
        with config.start() as session:
            session.run()
            first = session.snapshot()
        config["max_steps"] = 8
        with config.resume("out/checkpoints/checkpoint-6") as session:
            session.run()
            second = session.snapshot()
            print(
                f"checkpoints told={','.join(told)} newest={first.checkpoint_step}"
                f" resumed={int(second.resumed)} resumed_step={second.resumed_step}"
                f" steps={second.step} stop={session.stop_reason}"
            )


def line_to_the_end(session: Session, folder: str) -> str:
    """Steps to the end: ``STEPS REASON LOSS… EVAL_LOSS WEIGHTS``, from update 4 on."""
    reports = list(session)
    losses = [bits(report.loss) for report in reports if report.step > 3]
    last = reports[-1]
    assert last.eval_loss is not None
    fields = [str(last.step), str(session.stop_reason), *losses, bits(last.eval_loss)]
    return " ".join([*fields, exported(session, folder)])


def resume_child() -> None:
    with configured("resume") as config, config.resume("out/resume-saved") as session:
        at_start = session.snapshot()
        whole = line_to_the_end(session, "out/resume-child")
        print(int(at_start.resumed), at_start.resumed_step, whole)


def resume() -> None:
    with configured("resume") as config:
        with config.start() as session:
            whole = line_to_the_end(session, "out/resume-whole")
        with config.start() as session:
            for _ in range(3):
                stepped(session)
            session.save("out/resume-saved")
    child = subprocess.run([sys.executable, __file__, "resume"], stdout=subprocess.PIPE, text=True)
    steps, reason, *_, weights = whole.split()
    print(
        f"resume stop={reason} steps={steps} child={child.returncode}"
        f" same={yes(child.stdout == f'1 3 {whole}' + chr(10))} ~numbers={weights}"
    )


def provoke(how: str, keys: str) -> tuple[Status, str]:
    """Does what a line of errors.tsv asks for: the status, and what the library says to it."""
    calls: dict[str, Callable[[Session], object]] = {
        "step": lambda session: session.step(),
        "batch": lambda session: session.step_batch([1, 1000000, 2]),
        "export": lambda session: session.export("/proc/no/such"),
    }
    sessions: list[Session] = []
    inner: list[Status] = []
    fresh = how in ("merge", "file")
    with Config() if fresh else configured("errors") as config, Canceller() as canceller:
        try:
            if how == "file":
                config.merge(keys)
            else:
                config.merge_json(keys)
            if how == "busy":
                config.set_progress(lambda report: inner.append(outcome(sessions[0].step)))
            if how == "cancelled":
                config.set_canceller(canceller)
                canceller.cancel()
            with config.resume("model") if how == "resume" else config.start() as session:
                if how == "busy":
                    sessions.append(session)
                    stepped(session)
                    return inner[0], ""
                calls[how](session)
        except SftError as error:
            return error.status, str(error)
    return Status.OK, ""


def errors() -> None:
    for line in Path("errors.tsv").read_text().splitlines():
        status, how, keys, word = line.split("\t")
        got, text = provoke(how, keys)
        print(f"error {status} got={got.label} text={yes(word in text)}")
        if word not in text:
            print(f"no {word!r} in: {text}", file=sys.stderr)


def losses_of(name: str) -> list[str]:
    with configured(name) as config, config.start() as session:
        return [bits(stepped(session).loss) for _ in range(12)]


def two() -> None:
    together: dict[str, list[str]] = {}

    def run(name: str) -> None:
        together[name] = losses_of(name)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = {name: losses_of(name) for name in ("one", "other")}
    one, other = alone["one"][-1], alone["other"][-1]
    print(f"two same={yes(together == alone)} different={yes(one != other)} ~one={one} ~other={other}")


def freed() -> None:
    canceller = Canceller()
    config = configured("freed")
    config.set_canceller(canceller)
    session = config.start()
    config.close()
    canceller.close()
    canceller.cancel()
    outlives = stepped(session).step == 1
    session.close()
    step = outcome(session.step)
    setting = outcome(lambda: config.set("max_steps", 1))
    session.close()
    config.close()
    canceller.close()
    print(
        f"freed outlives={yes(outlives)} session={step.label}"
        f" should_stop={yes(session.should_stop)} config={setting.label} twice=ok"
    )


def resident() -> int:
    """Resident memory in KiB."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * (os.sysconf("SC_PAGESIZE") // 1024)


def memory() -> None:
    drops = 0
    before = 0

    def dropped() -> None:
        nonlocal drops
        drops += 1

    for cycle in range(1000):
        if cycle == 250:
            before = resident()
        with Canceller() as canceller, configured("memory") as config:

            def on_progress(report: StepReport) -> bool:
                return report.step == 4

            def on_log(level: libsft.LogLevel, line: str) -> None:
                pass

            weakref.finalize(on_progress, dropped)
            weakref.finalize(on_log, dropped)
            config.set_canceller(canceller)
            config.set_progress(on_progress)
            config.set_log(on_log)
            del on_progress, on_log
            with config.start() as session:
                stepped(session)
    grown = resident() - before
    print(f"memory cycles=1000 drops={drops} within_8_MiB={yes(grown <= 8192)}")
    print(f"memory: grown by {grown} KiB", file=sys.stderr)


def main() -> None:
    if sys.argv[1:] == ["resume"]:
        resume_child()
        return
    for scenario in (
        library,
        config_keys,
        plan,
        target,
        plateau,
        batches,
        observe,
        cancel,
        progress,
        failure,
        checkpoints,
        resume,
        errors,
        two,
        freed,
        memory,
    ):
        scenario()
        sys.stdout.flush()


if __name__ == "__main__":
    main()
