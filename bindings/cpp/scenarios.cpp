// The scenarios of bindings/scenarios.md in C++: prints the table that every language prints. Compiled
// with -fno-exceptions it takes the try_ calls, else the calls that throw.
//
//     scenarios           in a folder that bindings/scenarios/prepare made
//     scenarios resume    the second process of the scenario resume

#include <sft/sft.hpp>

#include <array>
#include <cinttypes>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>
#include <mutex>
#include <sstream>
#include <thread>
#include <unistd.h>

namespace {

using sft::Status;
using sft::StepReport;
using std::string;

// ---- Both ways to call ----

[[noreturn]] void fail(const string &what, const string &text) {
    std::fflush(stdout);
    std::fprintf(stderr, "%s: %s\n", what.c_str(), text.c_str());
    std::exit(1);
}

Status went(const std::optional<StepReport> &report) { return report ? Status::ok : Status::stopped; }
template <class T>
Status went(const T &) {
    return Status::ok;
}

#if SFT_HPP_EXCEPTIONS

// DO(object, call(…)) must succeed; STATUS gives the status and, in `text`, what the library says.
#define DO(object, ...) (object).__VA_ARGS__
#define STATUS(text, object, ...) status_of(text, [&]() -> decltype(auto) { return (object).__VA_ARGS__; })

template <class F>
Status status_of(string &text, F &&call) {
    try {
        if constexpr (std::is_void_v<decltype(call())>) {
            call();
            return Status::ok;
        } else {
            return went(call());
        }
    } catch (const sft::Exception &error) {
        text = error.what();
        return error.status();
    }
}

#else

#define DO(object, ...) must((object).try_##__VA_ARGS__)
#define STATUS(text, object, ...) status_of(text, (object).try_##__VA_ARGS__)

template <class T>
T must(sft::Result<T> result) {
    if (!result) fail(sft::name(result.status()), result.error().text);
    if constexpr (!std::is_void_v<T>) return std::move(result).value();
}

template <class T>
Status status_of(string &text, const sft::Result<T> &result) {
    if (!result) return text = result.error().text, result.status();
    if constexpr (std::is_void_v<T>) {
        return Status::ok;
    } else {
        return went(*result);
    }
}

#endif

// ---- What the scenarios share ----

string contents(const string &path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    if (!file) fail("cannot read", path);
    return text.str();
}

sft::Config configured(const string &name) {
    sft::Config config;
    DO(config, merge_file("base.json"));
    DO(config, merge_file(name + ".json"));
    return config;
}

StepReport stepped(sft::Session &session) {
    auto report = DO(session, step());
    if (!report) fail("step", "the run has ended");
    return *report;
}

StepReport run(sft::Session &session) {
    StepReport last{};
    while (!session.should_stop()) last = stepped(session);
    return last;
}

const char *yes(bool truth) { return truth ? "yes" : "NO"; }

std::uint64_t bits(double value) {
    std::uint64_t number;
    static_assert(sizeof number == sizeof value);
    std::memcpy(&number, &value, sizeof number);
    return number;
}

string hex(std::uint64_t number) {
    char text[17];
    std::snprintf(text, sizeof text, "%016" PRIx64, number);
    return text;
}

string hex(double value) { return hex(bits(value)); }

bool has(const string &text, const string &part) { return text.find(part) != string::npos; }

// FNV-1a of the weights in the exported model.
string exported(sft::Session &session, const string &folder) {
    DO(session, export_model(folder));
    std::uint64_t hash = 14695981039346656037u;
    for (unsigned char byte : contents(folder + "/model.safetensors")) {
        hash = (hash ^ byte) * 1099511628211u;
    }
    return hex(hash);
}

const char *reason(const sft::Session &session) { return sft::name(session.stop_reason()); }

template <class... T>
void print(const char *format, T... arguments) {
    std::printf(format, arguments...);
}

std::vector<string> split(const string &text, char at) {
    std::vector<string> parts(1);
    for (char c : text) {
        if (c == at) {
            parts.emplace_back();
        } else {
            parts.back() += c;
        }
    }
    return parts;
}

// ---- Batches ----

struct OwnBatch {
    std::vector<std::int32_t> tokens, labels, starts;
    sft::Batch view() const { return {tokens, labels, starts}; }
};

std::vector<std::int32_t> numbers(const string &text) {
    std::vector<std::int32_t> out;
    std::istringstream stream(text);
    for (std::int32_t number; stream >> number;) out.push_back(number);
    return out;
}

std::vector<OwnBatch> batches_for(const string &where) {
    std::vector<OwnBatch> out;
    for (const string &line : split(contents("batches.tsv"), '\n')) {
        const auto columns = split(line, '\t');
        if (columns[0] != where) continue;
        out.push_back({numbers(columns[1]), numbers(columns[2]), numbers(columns[3])});
    }
    return out;
}

std::vector<sft::Batch> views(const std::vector<OwnBatch> &own) {
    std::vector<sft::Batch> out;
    for (const OwnBatch &batch : own) out.push_back(batch.view());
    return out;
}

// ---- The scenarios ----

void library() {
    const std::pair<Status, const char *> statuses[] = {
        {Status::ok, "SFT_OK"},
        {Status::stopped, "SFT_STOPPED"},
        {Status::invalid_argument, "SFT_ERR_INVALID_ARGUMENT"},
        {Status::busy, "SFT_ERR_BUSY"},
        {Status::poisoned, "SFT_ERR_POISONED"},
        {Status::config, "SFT_ERR_CONFIG"},
        {Status::unknown_key, "SFT_ERR_UNKNOWN_KEY"},
        {Status::unsupported, "SFT_ERR_UNSUPPORTED"},
        {Status::model, "SFT_ERR_MODEL"},
        {Status::unsupported_model, "SFT_ERR_UNSUPPORTED_MODEL"},
        {Status::tensor, "SFT_ERR_TENSOR"},
        {Status::tokenizer, "SFT_ERR_TOKENIZER"},
        {Status::chat_template, "SFT_ERR_TEMPLATE"},
        {Status::data, "SFT_ERR_DATA"},
        {Status::batch, "SFT_ERR_BATCH"},
        {Status::io, "SFT_ERR_IO"},
        {Status::exists, "SFT_ERR_EXISTS"},
        {Status::checkpoint, "SFT_ERR_CHECKPOINT"},
        {Status::device, "SFT_ERR_DEVICE"},
        {Status::out_of_memory, "SFT_ERR_OUT_OF_MEMORY"},
        {Status::cancelled, "SFT_ERR_CANCELLED"},
        {Status::panic, "SFT_ERR_PANIC"},
        {Status::internal, "SFT_ERR_INTERNAL"},
    };
    using sft::StopReason;
    const std::pair<StopReason, const char *> reasons[] = {
        {StopReason::none, "none"},
        {StopReason::target_reached, "target_reached"},
        {StopReason::plateau, "plateau"},
        {StopReason::non_finite, "non_finite"},
        {StopReason::diverged, "diverged"},
        {StopReason::overfit, "overfit"},
        {StopReason::max_steps, "max_steps"},
        {StopReason::max_epochs, "max_epochs"},
        {StopReason::max_tokens, "max_tokens"},
        {StopReason::max_time, "max_time"},
        {StopReason::cancelled, "cancelled"},
        {StopReason::callback, "callback"},
    };
    const auto named = [](const auto &all) {
        int n = 0;
        for (const auto &[number, text] : all) n += std::strcmp(sft::name(number), text) == 0;
        return n;
    };
    print("library abi=%s version=%s build=%s statuses=%d reasons=%d\n", yes(sft::abi_matches()),
          yes(string(sft::version()) == SFT_VERSION), yes(has(sft::build_info(), "\"devices\"")),
          named(statuses), named(reasons));
}

void config_keys() {
    sft::Config config = configured("target"), copy, of_file = configured("target");
    DO(config, set("max_steps", 5));
    DO(config, set("learning_rate", 0.25));
    DO(config, set("packing", true));
    DO(config, set("seed", "9"));
    const string json = DO(config, to_json());
    DO(copy, merge_json(json));
    DO(of_file, merge_file("file.yaml"));
    const bool set = has(json, "\"max_steps\": 5") && has(json, "\"learning_rate\": 0.25")
        && has(json, "\"packing\": true") && has(json, "\"seed\": 9");
    print("config set=%s round_trip=%s file=%s\n", yes(set), yes(json == DO(copy, to_json())),
          yes(json == DO(of_file, to_json())));
}

void plan() {
    sft::Config config = configured("target");
    const sft::MemoryPlan plan = DO(config, plan());
    const string total = "\"total_bytes\":" + std::to_string(plan.total_bytes);
    print("plan weights=%" PRIu64 " gradients=%" PRIu64 " optimizer=%" PRIu64
          " bounded=%s json=%s ~total=%" PRIu64 "\n",
          plan.weights_bytes, plan.gradients_bytes, plan.optimizer_bytes,
          yes(plan.lower_bound_bytes <= plan.total_bytes), yes(has(DO(config, plan_json()), total)),
          plan.total_bytes);
}

void target() {
    sft::Config config = configured("target");
    sft::Session session = DO(config, start());
    const StepReport report = run(session);
    string text;
    const Status after = STATUS(text, session, step());
    print("target stop=%s steps=%" PRIu64 " snapshot=%" PRIu64 " after=%s ~loss=%s ~weights=%s\n",
          reason(session), report.step, DO(session, snapshot()).step, sft::name(after),
          hex(report.loss).c_str(), exported(session, "out/target/model").c_str());
}

void plateau() {
    sft::Config config = configured("plateau");
    sft::Session session = DO(config, start());
    std::uint64_t evaluations = 0, best_step = 0, steps = 0;
    double best = std::numeric_limits<double>::infinity();
    while (!session.should_stop()) {
        const StepReport report = stepped(session);
        steps = report.step;
        if (!report.has_eval) continue;
        evaluations++;
        const sft::EvalReport some = DO(session, eval_set("some"));
        if (some.loss < best) best = some.loss, best_step = report.step;
    }
    const sft::Snapshot snapshot = DO(session, snapshot());
    const sft::EvalReport all = DO(session, evaluate());
    const sft::EvalReport some = DO(session, eval_set("some")), more = DO(session, eval_set("more"));
    const bool seen = snapshot.has_best && snapshot.best_step == best_step
        && bits(snapshot.best_value) == bits(best);
    const bool sets = some.supervised_tokens + more.supervised_tokens == all.supervised_tokens
        && bits(DO(session, eval_set()).loss) == bits(all.loss);
    print("plateau stop=%s steps=%" PRIu64 " evaluations=%" PRIu64 " best_step=%" PRIu64
          " patience_used=%" PRIu64 " best_seen=%s restored=%s best_is_back=%s sets=%s"
          " ~best=%s ~weights=%s\n",
          reason(session), steps, evaluations, snapshot.best_step, snapshot.patience_used, yes(seen),
          yes(snapshot.restored_best == 1), yes(bits(some.loss) == bits(best)), yes(sets),
          hex(best).c_str(), exported(session, "out/plateau/model").c_str());
}

void batches() {
    sft::Config config = configured("batches");
    sft::Session session = DO(config, start());
    StepReport report{};
    std::uint64_t supervised = 0;
    for (int update = 1; !session.should_stop(); update++) {
        const auto own = batches_for(std::to_string(update));
        const auto done = DO(session, step_batch(views(own)));
        if (!done) fail("batches", "the run has ended");
        report = *done;
        supervised += report.supervised_tokens;
    }
    const auto own = batches_for("eval");
    const sft::EvalReport eval = DO(session, evaluate_batch(views(own)));
    print("batches stop=%s steps=%" PRIu64 " tokens=%" PRIu64 " supervised=%" PRIu64
          " eval_tokens=%" PRIu64 " eval_supervised=%" PRIu64 " ~loss=%s ~eval_loss=%s ~weights=%s\n",
          reason(session), report.step, report.total_tokens, supervised, eval.tokens,
          eval.supervised_tokens, hex(report.loss).c_str(), hex(eval.loss).c_str(),
          exported(session, "out/batches/model").c_str());
}

void observe() {
    const double scores[] = {0.5, 0.95, 0.2, std::nan(""), 0.91, 0.97, 0.1, 0.1};
    sft::Config config = configured("observe");
    sft::Session session = DO(config, start());
    std::uint64_t steps = 0;
    while (!session.should_stop() && steps < std::size(scores)) {
        steps = stepped(session).step;
        DO(session, observe("score", scores[steps - 1]));
    }
    print("observe stop=%s steps=%" PRIu64 "\n", reason(session), steps);
}

void cancel() {
    std::mutex lock;
    std::condition_variable changed;
    std::uint64_t steps = 0;
    sft::Canceller canceller;
    sft::Config config = configured("cancel");
    DO(config, set_canceller(canceller));
    DO(config, on_progress([&](const StepReport &report) {
        const std::lock_guard<std::mutex> hold(lock);
        steps = report.step;
        changed.notify_one();
    }));
    sft::Session session = DO(config, start());
    std::thread other([&] {
        std::unique_lock<std::mutex> hold(lock);
        changed.wait(hold, [&] { return steps >= 3; });
        canceller.cancel();
    });
    while (DO(session, step())) {
    }
    other.join();
    string text;
    const Status after = STATUS(text, session, step()), again = STATUS(text, config, start());
    print("cancel stop=%s enough=%s after=%s start=%s\n", reason(session),
          yes(DO(session, snapshot()).step >= 3), sft::name(after), sft::name(again));
}

// Counts its copies' ends; the library holds one and lets go of it.
class Held {
public:
    explicit Held(int &drops) : drops_(&drops) {}
    Held(Held &&other) noexcept : drops_(std::exchange(other.drops_, nullptr)) {}
    Held(const Held &) = delete;
    ~Held() {
        if (drops_) ++*drops_;
    }

private:
    int *drops_;
};

void progress() {
    std::uint64_t calls = 0;
    double loss = 0;
    int drops = 0, logs = 0;
    std::optional<sft::Config> config = configured("progress");
    DO(*config, on_progress([&, held = Held(drops)](const StepReport &report) {
        calls++;
        loss = report.loss;
        return report.step == 4;
    }));
    DO(*config, on_log([&, held = Held(drops)](sft::LogLevel level, std::string_view line) {
        const bool known = level == sft::LogLevel::info || level == sft::LogLevel::warning;
        logs += known && !line.empty();
    }));
    std::optional<sft::Session> session = DO(*config, start());
    const StepReport report = run(*session);
    print("progress stop=%s steps=%" PRIu64 " calls=%" PRIu64 " same=%s logged=%s", reason(*session),
          report.step, calls, yes(bits(loss) == bits(report.loss)), yes(logs > 0));
    config.reset();
    const bool held = drops == 0;
    session.reset();
    print(" dropped=%s ~loss=%s\n", yes(held && drops == 2), hex(report.loss).c_str());
}

void failure() {
    bool came_out = false;
    sft::Config config = configured("progress");
#if SFT_HPP_EXCEPTIONS
    struct Mine {};
    config.on_progress([](const StepReport &report) {
        if (report.step == 3) throw Mine();
    });
    sft::Session session = config.start();
    try {
        run(session);
    } catch (const Mine &) {
        came_out = true;
    }
#else
    // There is nothing to throw: the callback notes that it failed and asks to stop.
    DO(config, on_progress([&](const StepReport &report) { return came_out = report.step == 3; }));
    sft::Session session = DO(config, start());
    run(session);
#endif
    string ignored;
    print("failure came_out=%s stop=%s last=%" PRIu64 " after=%s\n", yes(came_out), reason(session),
          DO(session, last_report()).step, sft::name(STATUS(ignored, session, step())));
}

void checkpoints() {
    string told;
    sft::Config config = configured("checkpoints");
    DO(config, on_checkpoint([&](const sft::CheckpointReport &report) {
        const string step = std::to_string(report.step), end = "checkpoint-" + step;
        const string folder = report.folder;
        const bool there = folder.size() > end.size()
            && folder.compare(folder.size() - end.size(), end.size(), end) == 0;
        told += (told.empty() ? "" : ",") + (there ? step : "elsewhere");
    }));
    std::uint64_t newest;
    {
        sft::Session session = DO(config, start());
        run(session);
        newest = DO(session, snapshot()).checkpoint_step;
    }
    DO(config, set("max_steps", 8));
    sft::Session session = DO(config, resume("out/checkpoints/checkpoint-6"));
    run(session);
    const sft::Snapshot snapshot = DO(session, snapshot());
    const char *stop = reason(session);
    session.close();
    print("checkpoints told=%s newest=%" PRIu64 " resumed=%d resumed_step=%" PRIu64 " steps=%" PRIu64
          " stop=%s\n",
          told.c_str(), newest, snapshot.resumed, snapshot.resumed_step, snapshot.step, stop);
}

struct Ending {
    string line, weights;
    StepReport report;
};

// Steps to the end: "STEPS REASON LOSS… EVAL_LOSS WEIGHTS", losses from update 4 on.
Ending to_the_end(sft::Session &session, const string &folder) {
    StepReport report{};
    string losses;
    while (!session.should_stop()) {
        report = stepped(session);
        if (report.step > 3) losses += " " + hex(report.loss);
    }
    const string weights = exported(session, folder);
    return {std::to_string(report.step) + " " + reason(session) + losses + " " + hex(report.eval_loss)
                + " " + weights,
            weights, report};
}

void resume_child() {
    sft::Config config = configured("resume");
    sft::Session session = DO(config, resume("out/resume-saved"));
    const sft::Snapshot snapshot = DO(session, snapshot());
    print("%d %" PRIu64 " %s\n", snapshot.resumed, snapshot.resumed_step,
          to_the_end(session, "out/resume-child").line.c_str());
}

void resume(const string &program) {
    sft::Config config = configured("resume");
    sft::Session whole = DO(config, start());
    const Ending ending = to_the_end(whole, "out/resume-whole");
    const char *stop = reason(whole);
    whole.close();
    sft::Session first = DO(config, start());
    for (int i = 0; i < 3; i++) stepped(first);
    DO(first, save("out/resume-saved"));
    first.close();

    std::fflush(stdout);
    std::FILE *child = ::popen(("'" + program + "' resume").c_str(), "r");
    char said[600] = "";
    if (!child || !std::fgets(said, sizeof said, child)) fail("resume", "the second process said nothing");
    const int status = ::pclose(child);
    print("resume stop=%s steps=%" PRIu64 " child=%d same=%s ~numbers=%s\n", stop, ending.report.step,
          status, yes(said == "1 3 " + ending.line + "\n"), ending.weights.c_str());
}

// Does what a line of errors.tsv asks for; `text` is what the library says to it.
Status provoke(const string &how, const string &json_or_path, string &text) {
    sft::Config fresh;
    if (how == "merge") return STATUS(text, fresh, merge_json(json_or_path));
    if (how == "file") return STATUS(text, fresh, merge_file(json_or_path));
    sft::Config config = configured("errors");
    DO(config, merge_json(json_or_path));
    sft::Canceller canceller;
    std::optional<sft::Session> session;
    Status inner = Status::ok;
    if (how == "cancelled") {
        DO(config, set_canceller(canceller));
        canceller.cancel();
    }
    if (how == "busy") {
        DO(config, on_progress([&](const StepReport &) {
            string ignored;
            inner = STATUS(ignored, *session, step());
        }));
    }
    if (how == "start" || how == "cancelled") return STATUS(text, config, start());
    if (how == "resume") return STATUS(text, config, resume("model"));
    session = DO(config, start());
    if (how == "step") return STATUS(text, *session, step());
    if (how == "export") return STATUS(text, *session, export_model("/proc/no/such"));
    if (how == "batch") {
        const std::array<std::int32_t, 3> tokens{1, 1000000, 2};
        return STATUS(text, *session, step_batch({sft::Batch{tokens, {}, {}}}));
    }
    stepped(*session);
    return inner;
}

void errors() {
    for (const string &line : split(contents("errors.tsv"), '\n')) {
        if (line.empty()) continue;
        const auto columns = split(line, '\t');
        string text;
        const Status status = provoke(columns[1], columns[2], text);
        const bool said = has(text, columns[3]);
        print("error %s got=%s text=%s\n", columns[0].c_str(), sft::name(status), yes(said));
        if (!said) std::fprintf(stderr, "no '%s' in: %s\n", columns[3].c_str(), text.c_str());
    }
}

std::vector<std::uint64_t> twelve(const char *name) {
    sft::Config config = configured(name);
    sft::Session session = DO(config, start());
    std::vector<std::uint64_t> losses;
    for (int i = 0; i < 12; i++) losses.push_back(bits(stepped(session).loss));
    return losses;
}

void two() {
    std::vector<std::uint64_t> one, other;
    std::thread first([&] { one = twelve("one"); }), second([&] { other = twelve("other"); });
    first.join();
    second.join();
    print("two same=%s different=%s ~one=%s ~other=%s\n",
          yes(one == twelve("one") && other == twelve("other")), yes(one.back() != other.back()),
          hex(one.back()).c_str(), hex(other.back()).c_str());
}

void freed() {
    sft::Canceller canceller;
    sft::Config config = configured("freed");
    DO(config, set_canceller(canceller));
    sft::Session session = DO(config, start());
    config.close();
    canceller.close();
    canceller.cancel();
    const bool outlives = stepped(session).step == 1;
    session.close();
    string text;
    const Status step = STATUS(text, session, step());
    const Status set = STATUS(text, config, set("max_steps", 1));
    session.close();
    config.close();
    canceller.close();
    print("freed outlives=%s session=%s should_stop=%s config=%s twice=ok\n", yes(outlives),
          sft::name(step), yes(session.should_stop()), sft::name(set));
}

// Resident memory in KiB.
long resident() {
    long pages = 0;
    std::ifstream file("/proc/self/statm");
    if (!(file >> pages >> pages)) fail("memory", "no /proc/self/statm");
    return pages * (::sysconf(_SC_PAGESIZE) / 1024);
}

void memory() {
    int drops = 0;
    long before = 0;
    for (int i = 0; i < 1000; i++) {
        if (i == 250) before = resident();
        sft::Canceller canceller;
        sft::Config config = configured("memory");
        DO(config, set_canceller(canceller));
        DO(config, on_progress([held = Held(drops)](const StepReport &) {}));
        DO(config, on_log([held = Held(drops)](sft::LogLevel, std::string_view) {}));
        sft::Session session = DO(config, start());
        stepped(session);
    }
    const long grown = resident() - before;
    print("memory cycles=1000 drops=%d within_8_MiB=%s\n", drops, yes(grown <= 8192));
    std::fprintf(stderr, "memory: grown by %ld KiB\n", grown);
}

}  // namespace

int main(int argc, char **argv) {
    if (argc == 2 && string(argv[1]) == "resume") {
        resume_child();
        return 0;
    }
    library();
    config_keys();
    plan();
    target();
    plateau();
    batches();
    observe();
    cancel();
    progress();
    failure();
    checkpoints();
    resume(argv[0]);
    errors();
    two();
    freed();
    memory();
}
