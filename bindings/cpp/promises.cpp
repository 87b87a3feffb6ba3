// What the C++ header promises beyond the scenarios. Runs in a folder that bindings/scenarios/prepare made.

#include <sft/sft.hpp>

#include <cstdio>
#include <fstream>
#include <functional>
#include <iterator>
#include <stdexcept>

namespace {

#define EXPECT(truth)                                                            \
    do {                                                                         \
        if (!(truth)) {                                                          \
            std::fprintf(stderr, "%s:%d: %s\n", __func__, __LINE__, #truth);     \
            std::exit(1);                                                        \
        }                                                                        \
    } while (0)

static_assert(!std::is_copy_constructible_v<sft::Session> && !std::is_copy_constructible_v<sft::Config>
              && !std::is_copy_constructible_v<sft::Canceller>);
static_assert(std::is_nothrow_move_constructible_v<sft::Session>
              && std::is_nothrow_move_assignable_v<sft::Session>
              && std::is_nothrow_move_constructible_v<sft::Config>
              && std::is_nothrow_move_constructible_v<sft::Canceller>);

struct Mine : std::runtime_error {
    using std::runtime_error::runtime_error;
};

sft::Config configured(const char *folder) {
    std::ifstream file("base.json");
    const std::string json{std::istreambuf_iterator<char>(file), {}};
    sft::Config config;
    config.merge_json(json).set("output_dir", folder).set("max_steps", 5);
    return config;
}

template <class E, class F>
std::string thrown_by(F &&call) {
    try {
        call();
    } catch (const E &error) {
        return error.what();
    }
    return "nothing was thrown";
}

void an_exception_of_the_progress_callback_leaves_step_and_ends_the_run() {
    sft::Config config = configured("out/promises");
    config.on_progress([](const sft::StepReport &report) {
        if (report.step == 2) throw Mine("from the callback");
    });
    sft::Session session = config.start();
    EXPECT(session.step()->step == 1);
    EXPECT(thrown_by<Mine>([&] { session.step(); }) == "from the callback");
    EXPECT(session.stop_reason() == sft::StopReason::callback);
    EXPECT(session.snapshot().step == 2);
    EXPECT(!session.step()); /* thrown once, not again */
}

void an_exception_of_the_log_leaves_start_and_loses_no_session() {
    sft::Config config = configured("out/promises");
    config.on_log([](sft::LogLevel, std::string_view) { throw Mine("from the log"); });
    EXPECT(thrown_by<Mine>([&] { config.start(); }) == "from the log");
    EXPECT(thrown_by<Mine>([&] { (void)config.try_start(); }) == "from the log");
    config.on_log(nullptr);
    EXPECT(config.start().step()->step == 1);
}

void an_exception_of_the_checkpoint_callback_leaves_a_call_but_no_destructor() {
    sft::Config config = configured("out/promises");
    config.set("save_strategy", "steps").set("save_steps", 5);
    config.on_checkpoint([](const sft::CheckpointReport &) { throw Mine("from the checkpoint"); });
    {
        sft::Session session = config.start();
        EXPECT(thrown_by<Mine>([&] {
                   while (session.step()) {
                   }
               })
               == "from the checkpoint");
    }
    config.set("save_steps", 1);
    sft::Session session = config.start();
    (void)thrown_by<Mine>([&] { session.step(); });
}

void a_callback_that_calls_another_session_keeps_exceptions_apart() {
    sft::Config inner_config = configured("out/promises-inner");
    inner_config.on_progress([](const sft::StepReport &) { throw Mine("inner"); });
    sft::Session inner = inner_config.start();
    sft::Config config = configured("out/promises");
    std::string seen;
    config.on_progress([&](const sft::StepReport &) {
        seen = thrown_by<Mine>([&] { inner.step(); });
        throw Mine("outer");
    });
    sft::Session session = config.start();
    EXPECT(thrown_by<Mine>([&] { session.step(); }) == "outer");
    EXPECT(seen == "inner");
}

void callables_of_any_kind_are_taken() {
    sft::Config config = configured("out/promises");
    int calls = 0;
    const std::function<bool(const sft::StepReport &)> function = [&](const sft::StepReport &report) {
        return ++calls, report.step == 2;
    };
    config.on_progress(function);
    sft::Session session = config.start();
    while (session.step()) {
    }
    EXPECT(calls == 2 && session.stop_reason() == sft::StopReason::callback);
}

void errors_carry_status_and_text_both_ways() {
    sft::Config config;
    try {
        config.set("learning_rat", 1.0);
        EXPECT(false);
    } catch (const sft::Exception &error) {
        EXPECT(error.status() == sft::Status::unknown_key);
        EXPECT(std::string(error.what()).find("learning_rate") != std::string::npos);
    }
    const auto result = config.try_set("max_steps", "many");
    EXPECT(!result && result.status() == sft::Status::config);
    EXPECT(result.error().text.find("max_steps") != std::string::npos);
    EXPECT(config.try_set("max_steps", std::string("7")).ok());
    EXPECT(config.try_set("max_steps", std::string_view("7 and more").substr(0, 1)).ok());
    EXPECT(config.try_set("output_dir", std::string("a\0b", 3)).status() == sft::Status::invalid_argument);
    EXPECT(config.try_set("output_dir", static_cast<const char *>(nullptr)).status()
           == sft::Status::invalid_argument);
    EXPECT(config.try_merge_json({}).status() == sft::Status::config);
    EXPECT(thrown_by<sft::Exception>([&] { config.try_plan().value(); }) != "nothing was thrown");
}

void what_was_moved_from_is_empty_and_says_so() {
    sft::Config config = configured("out/promises"), taken = std::move(config);
    const auto result = config.try_set("max_steps", 1);
    EXPECT(result.status() == sft::Status::invalid_argument);
    EXPECT(result.error().text == "the object was closed or moved from");
    sft::Session session = taken.start(), other = std::move(session);
    EXPECT(session.try_step().status() == sft::Status::invalid_argument);
    EXPECT(session.should_stop() && session.stop_reason() == sft::StopReason::none);
    session = std::move(other);
    EXPECT(session.step()->step == 1);
}

void batches_take_what_has_data_and_size() {
    sft::Config config = configured("out/promises");
    config.set("dataset_name", "null");
    sft::Session session = config.start();
    const std::vector<std::int32_t> tokens{5, 6, 7, 8}, labels{-100, -100, 7, 8}, few{7};
    const std::int32_t plain[] = {5, 6, 7};
    EXPECT(session.step_batch({{tokens, labels, {}}, {sft::Numbers(plain, 3), {}, {}}})->supervised_tokens
           == 4);
    EXPECT(session.evaluate_batch({{tokens, {}, {}}}).supervised_tokens == 3);
    const auto wrong = session.try_step_batch({{tokens, few, {}}});
    EXPECT(wrong.status() == sft::Status::batch);
    EXPECT(wrong.error().text == "batch 0 has 4 tokens and 1 labels");
    EXPECT(session.try_step_batch({}).status() == sft::Status::batch);
}

}  // namespace

int main() {
    an_exception_of_the_progress_callback_leaves_step_and_ends_the_run();
    an_exception_of_the_log_leaves_start_and_loses_no_session();
    an_exception_of_the_checkpoint_callback_leaves_a_call_but_no_destructor();
    a_callback_that_calls_another_session_keeps_exceptions_apart();
    callables_of_any_kind_are_taken();
    errors_carry_status_and_text_both_ways();
    what_was_moved_from_is_empty_and_says_so();
    batches_take_what_has_data_and_size();
}
