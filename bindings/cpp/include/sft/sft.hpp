// libsft for C++17: supervised fine-tuning of language models as a library. MIT OR Apache-2.0.
//
// One header over sft.h. Objects own their handle, move and don't copy, and free it when they go. Every
// call comes twice: `step()` throws sft::Exception, `try_step()` returns an sft::Result. Compiled with
// -fno-exceptions only the second kind is there. What the calls do, and which errors they give, is
// said beside the functions of sft.h that they are named after.
//
// An exception that leaves a callback is caught before it reaches the library and thrown on, from the
// call that the callback ran in, once that has returned; from a progress callback it also ends the run
// (StopReason::callback). That holds for the try_ functions too: it is the host's own exception.
//
// A call on an object that was closed or moved from gives Status::invalid_argument. This header starts no
// threads; an object does one call at a time (Status::busy), except where sft.h says otherwise.

#ifndef SFT_SFT_HPP
#define SFT_SFT_HPP

#include <sft.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#if defined(__cpp_exceptions) || defined(__EXCEPTIONS) || defined(_CPPUNWIND)
#define SFT_HPP_EXCEPTIONS 1
#include <exception>
#include <stdexcept>
#else
#define SFT_HPP_EXCEPTIONS 0
#endif

namespace sft {

// How a call went: the SFT_OK, SFT_STOPPED and SFT_ERR_ numbers of sft.h.
enum class Status : std::int32_t {
    ok = SFT_OK,
    stopped = SFT_STOPPED,
    invalid_argument = SFT_ERR_INVALID_ARGUMENT,
    busy = SFT_ERR_BUSY,
    poisoned = SFT_ERR_POISONED,
    config = SFT_ERR_CONFIG,
    unknown_key = SFT_ERR_UNKNOWN_KEY,
    unsupported = SFT_ERR_UNSUPPORTED,
    model = SFT_ERR_MODEL,
    unsupported_model = SFT_ERR_UNSUPPORTED_MODEL,
    tensor = SFT_ERR_TENSOR,
    tokenizer = SFT_ERR_TOKENIZER,
    chat_template = SFT_ERR_TEMPLATE,
    data = SFT_ERR_DATA,
    batch = SFT_ERR_BATCH,
    io = SFT_ERR_IO,
    exists = SFT_ERR_EXISTS,
    checkpoint = SFT_ERR_CHECKPOINT,
    device = SFT_ERR_DEVICE,
    out_of_memory = SFT_ERR_OUT_OF_MEMORY,
    cancelled = SFT_ERR_CANCELLED,
    panic = SFT_ERR_PANIC,
    internal = SFT_ERR_INTERNAL,
};

// Why a run ended: the SFT_STOP_ numbers of sft.h.
enum class StopReason : std::int32_t {
    none = SFT_STOP_NONE,
    target_reached = SFT_STOP_TARGET_REACHED,
    plateau = SFT_STOP_PLATEAU,
    non_finite = SFT_STOP_NON_FINITE,
    diverged = SFT_STOP_DIVERGED,
    overfit = SFT_STOP_OVERFIT,
    max_steps = SFT_STOP_MAX_STEPS,
    max_epochs = SFT_STOP_MAX_EPOCHS,
    max_tokens = SFT_STOP_MAX_TOKENS,
    max_time = SFT_STOP_MAX_TIME,
    cancelled = SFT_STOP_CANCELLED,
    callback = SFT_STOP_CALLBACK,
};

enum class LogLevel : std::int32_t { warning = SFT_LOG_WARNING, info = SFT_LOG_INFO };

enum class Export : std::int32_t {
    full = SFT_EXPORT_FULL,
    adapter = SFT_EXPORT_ADAPTER,
    merged = SFT_EXPORT_MERGED,
};

using StepReport = ::sft_step_report;
using EvalReport = ::sft_eval_report;
using CheckpointReport = ::sft_checkpoint_report;
using MemoryPlan = ::sft_memory_plan;
using Snapshot = ::sft_snapshot;

// "SFT_ERR_CONFIG", …
inline const char *name(Status status) noexcept {
    return ::sft_status_name(static_cast<std::int32_t>(status));
}

// "target_reached", …
inline const char *name(StopReason reason) noexcept {
    return ::sft_stop_reason_name(static_cast<std::int32_t>(reason));
}

inline const char *version() noexcept { return ::sft_version(); }
inline const char *build_info() noexcept { return ::sft_build_info(); }

// Whether the library that is running has the binary interface that this header was written for.
inline bool abi_matches() noexcept { return ::sft_abi_version() == SFT_ABI_VERSION; }

// A status that is no success, with the library's text.
struct Error {
    Status status = Status::internal;
    std::string text;
};

#if SFT_HPP_EXCEPTIONS
class Exception : public std::runtime_error {
public:
    explicit Exception(const Error &error) : std::runtime_error(error.text), status_(error.status) {}
    Status status() const noexcept { return status_; }

private:
    Status status_;
};
#endif

namespace detail {

[[noreturn]] inline void raise(const Error &error) {
#if SFT_HPP_EXCEPTIONS
    throw Exception(error);
#else
    (void)error;
    std::abort();
#endif
}

}  // namespace detail

// A value or an error. Asking for the one that isn't there throws the error as an Exception, or
// aborts where there are no exceptions.
template <class T>
class [[nodiscard]] Result {
public:
    Result(T value) : content_(std::in_place_index<0>, std::move(value)) {}
    Result(Error error) : content_(std::in_place_index<1>, std::move(error)) {}

    bool ok() const noexcept { return content_.index() == 0; }
    explicit operator bool() const noexcept { return ok(); }
    Status status() const noexcept { return ok() ? Status::ok : std::get_if<1>(&content_)->status; }

    T &value() & { return checked(), *std::get_if<0>(&content_); }
    const T &value() const & { return checked(), *std::get_if<0>(&content_); }
    T &&value() && { return checked(), std::move(*std::get_if<0>(&content_)); }
    T &operator*() & { return value(); }
    const T &operator*() const & { return value(); }
    T &&operator*() && { return std::move(*this).value(); }
    T *operator->() { return &value(); }
    const T *operator->() const { return &value(); }

    const Error &error() const {
        if (ok()) detail::raise({Status::internal, "the result is a value, not an error"});
        return *std::get_if<1>(&content_);
    }

private:
    void checked() const {
        if (!ok()) detail::raise(*std::get_if<1>(&content_));
    }

    std::variant<T, Error> content_;
};

template <>
class [[nodiscard]] Result<void> {
public:
    Result() = default;
    Result(Error error) : error_(std::move(error)) {}

    bool ok() const noexcept { return !error_; }
    explicit operator bool() const noexcept { return ok(); }
    Status status() const noexcept { return ok() ? Status::ok : error_->status; }
    void value() const {
        if (error_) detail::raise(*error_);
    }
    const Error &error() const {
        if (!error_) detail::raise({Status::internal, "the result is a value, not an error"});
        return *error_;
    }

private:
    std::optional<Error> error_;
};

namespace detail {

// The exception that a callback threw during the call that this thread is in.
#if SFT_HPP_EXCEPTIONS
inline std::exception_ptr &thrown() noexcept {
    static thread_local std::exception_ptr pointer;
    return pointer;
}
#endif

// Stands around every call in which callbacks may run; calls may nest, from inside a callback.
class Call {
public:
#if SFT_HPP_EXCEPTIONS
    Call() noexcept : outer_(std::exchange(thrown(), nullptr)) {}
    ~Call() { thrown() = std::move(outer_); }
    // Throws on what a callback threw.
    void over() {
        if (std::exception_ptr ours = std::exchange(thrown(), nullptr)) std::rethrow_exception(ours);
    }

private:
    std::exception_ptr outer_;
#else
    Call() noexcept {}
    ~Call() {}
    void over() {}
#endif
public:
    Call(const Call &) = delete;
    Call &operator=(const Call &) = delete;
};

// Runs a callback so that nothing is thrown into the library; whether it threw.
template <class F>
bool guarded(F &&run) noexcept {
#if SFT_HPP_EXCEPTIONS
    try {
        run();
        return false;
    } catch (...) {
        if (!thrown()) thrown() = std::current_exception();
        return true;
    }
#else
    run();
    return false;
#endif
}

template <class F>
void drop(void *function) {
    delete static_cast<F *>(function);
}

template <class F>
std::int32_t progress(void *function, const StepReport *report) {
    bool stop = false;
    const bool threw = guarded([&] {
        if constexpr (std::is_void_v<std::invoke_result_t<F &, const StepReport &>>) {
            (*static_cast<F *>(function))(*report);
        } else {
            stop = static_cast<bool>((*static_cast<F *>(function))(*report));
        }
    });
    return stop || threw;
}

template <class F>
void checkpoint(void *function, const CheckpointReport *report) {
    guarded([&] { (*static_cast<F *>(function))(*report); });
}

template <class F>
void log(void *function, std::int32_t level, const char *message) {
    guarded([&] {
        (*static_cast<F *>(function))(static_cast<LogLevel>(level), std::string_view(message));
    });
}

// A text with a NUL behind it; empty where it has one inside, which C would take for the end.
inline std::optional<std::string> terminated(std::string_view text) {
    if (text.find('\0') != std::string_view::npos) return std::nullopt;
    return std::string(text);
}

inline Error has_nul() { return {Status::invalid_argument, "the text has a NUL inside"}; }

// A string of the library's, taken over.
inline std::string taken(char *text) {
    const std::unique_ptr<char, void (*)(char *)> owner(text, ::sft_string_free);
    return std::string(text);
}

// The error of a call on `handle`. The text is taken as a copy: another thread may fail on the same object now.
template <class H>
Error failure(::sft_status status, H *handle, char *(*last_error)(const H *)) {
    // The text of a busy handle belongs to the call that is inside.
    if (status == SFT_ERR_BUSY) return {Status::busy, "another call is inside the same object"};
    if (!handle) return {static_cast<Status>(status), "the object was closed or moved from"};
    std::string text = taken(last_error(handle));
    if (text.empty()) text = ::sft_status_name(status);
    return {static_cast<Status>(status), std::move(text)};
}

template <class T>
T sized() noexcept {
    T report{};
    report.struct_size = sizeof report;
    return report;
}

}  // namespace detail

// Asks runs to stop, from any thread and from signal handlers.
class Canceller {
public:
    Canceller() : handle_(::sft_canceller_new()) {}

    void cancel() const noexcept { ::sft_canceller_cancel(handle_.get()); }
    // Frees it now; runs that share it keep what they need.
    void close() noexcept { handle_.reset(); }
    ::sft_canceller *get() const noexcept { return handle_.get(); }

private:
    struct Free {
        void operator()(::sft_canceller *handle) const noexcept { ::sft_canceller_free(handle); }
    };
    std::unique_ptr<::sft_canceller, Free> handle_;
};

// Numbers of the host's, borrowed: anything with data() and size(), such as a vector or an array.
class Numbers {
public:
    Numbers() noexcept = default;
    Numbers(const std::int32_t *data, std::size_t size) noexcept : data_(data), size_(size) {}
    template <class C, class = std::enable_if_t<std::is_convertible_v<
                           decltype(std::declval<const C &>().data()), const std::int32_t *>>>
    Numbers(const C &numbers) noexcept : data_(numbers.data()), size_(numbers.size()) {}

    const std::int32_t *data() const noexcept { return data_; }
    std::size_t size() const noexcept { return size_; }

private:
    const std::int32_t *data_ = nullptr;
    std::size_t size_ = 0;
};

// A micro-batch: sequences of tokens laid end to end. Without labels all tokens are trained on, without
// starts they are one sequence. Borrows what it was made of.
struct Batch {
    Numbers tokens;
    Numbers labels;
    Numbers seq_starts;
};

// A run. Made by Config::start or Config::resume.
class Session {
public:
    // One optimizer update on the next rows; nothing once the run has ended.
    Result<std::optional<StepReport>> try_step() {
        return stepped([this](StepReport *out) { return ::sft_step(get(), out); });
    }

    // One optimizer update on the host's own tokens; nothing once the run has ended.
    Result<std::optional<StepReport>> try_step_batch(const Batch *micro, std::size_t n) {
        auto batches = translated(micro, n);
        if (!batches) return batches.error();
        return stepped([&](StepReport *out) {
            return ::sft_step_batch(get(), batches->data(), batches->size(), out);
        });
    }
    Result<std::optional<StepReport>> try_step_batch(const std::vector<Batch> &micro) {
        return try_step_batch(micro.data(), micro.size());
    }
    Result<std::optional<StepReport>> try_step_batch(std::initializer_list<Batch> micro) {
        return try_step_batch(micro.begin(), micro.size());
    }

    Result<EvalReport> try_evaluate() {
        return filled<EvalReport>([this](EvalReport *out) { return ::sft_evaluate(get(), out); });
    }
    Result<EvalReport> try_evaluate_batch(const Batch *batch, std::size_t n) {
        auto batches = translated(batch, n);
        if (!batches) return batches.error();
        return filled<EvalReport>([&](EvalReport *out) {
            return ::sft_evaluate_batch(get(), batches->data(), batches->size(), out);
        });
    }
    Result<EvalReport> try_evaluate_batch(const std::vector<Batch> &batch) {
        return try_evaluate_batch(batch.data(), batch.size());
    }
    Result<EvalReport> try_evaluate_batch(std::initializer_list<Batch> batch) {
        return try_evaluate_batch(batch.begin(), batch.size());
    }
    // The last evaluation's numbers of the set `name`.
    Result<EvalReport> try_eval_set(std::string_view name) {
        const auto text = detail::terminated(name);
        if (!text) return detail::has_nul();
        return filled<EvalReport>(
            [&](EvalReport *out) { return ::sft_eval_set(get(), text->c_str(), out); });
    }
    // The last evaluation's numbers of all sets together.
    Result<EvalReport> try_eval_set() {
        return filled<EvalReport>(
            [this](EvalReport *out) { return ::sft_eval_set(get(), nullptr, out); });
    }
    // The last update's report, as its call gave it or would have, had it not given an error or thrown on what
    // a callback threw.
    Result<StepReport> try_last_report() {
        return filled<StepReport>([this](StepReport *out) { return ::sft_last_report(get(), out); });
    }
    Result<void> try_observe(std::string_view metric, double value) {
        const auto text = detail::terminated(metric);
        if (!text) return detail::has_nul();
        return done([&] { return ::sft_observe(get(), text->c_str(), value); });
    }
    Result<Snapshot> try_snapshot() {
        return filled<Snapshot>([this](Snapshot *out) { return ::sft_snapshot_get(get(), out); });
    }
    Result<void> try_save(std::string_view folder) {
        const auto text = detail::terminated(folder);
        if (!text) return detail::has_nul();
        return done([&] { return ::sft_save(get(), text->c_str()); });
    }
    Result<void> try_export_model(std::string_view folder, Export what = Export::full) {
        const auto text = detail::terminated(folder);
        if (!text) return detail::has_nul();
        return done(
            [&] { return ::sft_export(get(), text->c_str(), static_cast<std::int32_t>(what)); });
    }

    // Both may be called from any thread, also while another call is inside.
    bool should_stop() const noexcept { return ::sft_should_stop(get()); }
    StopReason stop_reason() const noexcept {
        return static_cast<StopReason>(::sft_stop_reason(get()));
    }

    // Frees it now, with all its memory.
    void close() noexcept { handle_.reset(); }
    ::sft_session *get() const noexcept { return handle_.get(); }

#if SFT_HPP_EXCEPTIONS
    std::optional<StepReport> step() { return try_step().value(); }
    std::optional<StepReport> step_batch(const Batch *micro, std::size_t n) {
        return try_step_batch(micro, n).value();
    }
    std::optional<StepReport> step_batch(const std::vector<Batch> &micro) {
        return try_step_batch(micro).value();
    }
    std::optional<StepReport> step_batch(std::initializer_list<Batch> micro) {
        return try_step_batch(micro).value();
    }
    StepReport last_report() { return try_last_report().value(); }
    EvalReport evaluate() { return try_evaluate().value(); }
    EvalReport evaluate_batch(const Batch *batch, std::size_t n) {
        return try_evaluate_batch(batch, n).value();
    }
    EvalReport evaluate_batch(const std::vector<Batch> &batch) {
        return try_evaluate_batch(batch).value();
    }
    EvalReport evaluate_batch(std::initializer_list<Batch> batch) {
        return try_evaluate_batch(batch).value();
    }
    EvalReport eval_set(std::string_view name) { return try_eval_set(name).value(); }
    EvalReport eval_set() { return try_eval_set().value(); }
    void observe(std::string_view metric, double value) { try_observe(metric, value).value(); }
    Snapshot snapshot() { return try_snapshot().value(); }
    void save(std::string_view folder) { try_save(folder).value(); }
    void export_model(std::string_view folder, Export what = Export::full) {
        try_export_model(folder, what).value();
    }
#endif

private:
    friend class Config;
    explicit Session(::sft_session *handle) noexcept : handle_(handle) {}

    Error failure(::sft_status status) const {
        return detail::failure(status, get(), ::sft_last_error_copy);
    }

    template <class F>
    Result<void> done(F &&call) {
        detail::Call around;
        const ::sft_status status = call();
        around.over();
        if (status != SFT_OK) return failure(status);
        return {};
    }

    template <class T, class F>
    Result<T> filled(F &&call) {
        T out = detail::sized<T>();
        auto result = done([&] { return call(&out); });
        if (!result) return result.error();
        return out;
    }

    template <class F>
    Result<std::optional<StepReport>> stepped(F &&call) {
        auto result = filled<StepReport>(std::forward<F>(call));
        if (result.status() == Status::stopped) return std::optional<StepReport>();
        if (!result) return result.error();
        return std::optional<StepReport>(*result);
    }

    static Result<std::vector<::sft_batch>> translated(const Batch *batch, std::size_t n) {
        std::vector<::sft_batch> out;
        out.reserve(n);
        for (std::size_t i = 0; i < n; i++) {
            const Batch &from = batch[i];
            if (from.labels.size() != 0 && from.labels.size() != from.tokens.size()) {
                return Error{Status::batch, "batch " + std::to_string(i) + " has "
                                                + std::to_string(from.tokens.size()) + " tokens and "
                                                + std::to_string(from.labels.size()) + " labels"};
            }
            auto to = detail::sized<::sft_batch>();
            to.tokens = from.tokens.data();
            to.labels = from.labels.size() ? from.labels.data() : nullptr;
            to.seq_starts = from.seq_starts.size() ? from.seq_starts.data() : nullptr;
            to.n_tokens = from.tokens.size();
            to.n_seqs = from.seq_starts.size();
            out.push_back(to);
        }
        return Result<std::vector<::sft_batch>>(std::move(out));
    }

    struct Free {
        void operator()(::sft_session *handle) const noexcept {
            detail::Call around;  // what a callback throws now has nowhere to go
            ::sft_session_free(handle);
#if SFT_HPP_EXCEPTIONS
            detail::thrown() = nullptr;
#endif
        }
    };
    std::unique_ptr<::sft_session, Free> handle_;
};

// The configuration of a run: keys with values, callbacks and a canceller. Every setter of the throwing
// kind returns the configuration, so that they chain.
class Config {
public:
    Config() : handle_(::sft_config_new()) {}

    Result<void> try_merge_json(std::string_view json) {
        return done([&] {
            return ::sft_config_merge_json(get(), json.empty() ? "" : json.data(), json.size());
        });
    }
    // A YAML or JSON file; errors name it and the line.
    Result<void> try_merge_file(std::string_view path) {
        const auto text = detail::terminated(path);
        if (!text) return detail::has_nul();
        return done([&] { return ::sft_config_merge_file(get(), text->c_str()); });
    }
    Result<void> try_set(std::string_view key, std::string_view value) {
        const auto text = detail::terminated(value);
        if (!text) return detail::has_nul();
        return set_by(key, [&](const char *k) {
            return ::sft_config_set_str(get(), k, text->c_str());
        });
    }
    Result<void> try_set(std::string_view key, const char *value) {
        if (!value) return Error{Status::invalid_argument, "the value is NULL"};
        return try_set(key, std::string_view(value));
    }
    Result<void> try_set(std::string_view key, const std::string &value) {
        return try_set(key, std::string_view(value));
    }
    // A truth, a whole number or a number, by the type of `value`.
    template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
    Result<void> try_set(std::string_view key, T value) {
        return set_by(key, [&](const char *k) {
            if constexpr (std::is_same_v<T, bool>) {
                return ::sft_config_set_bool(get(), k, value);
            } else if constexpr (std::is_integral_v<T>) {
                static_assert(sizeof(T) < sizeof(std::int64_t) || std::is_signed_v<T>,
                              "whole numbers are 64 bits with a sign");
                return ::sft_config_set_i64(get(), k, static_cast<std::int64_t>(value));
            } else {
                return ::sft_config_set_f64(get(), k, static_cast<double>(value));
            }
        });
    }
    Result<std::string> try_to_json() {
        return text_of([this](char **out) { return ::sft_config_to_json(get(), out); });
    }

    // A callable that takes a const StepReport &, after each update; true (of one that returns
    // something) asks the run to stop.
    template <class F>
    Result<void> try_on_progress(F &&function) {
        using Own = std::decay_t<F>;
        return give(std::make_unique<Own>(std::forward<F>(function)), [this](Own *own) {
            return ::sft_config_set_progress(get(), detail::progress<Own>, own, detail::drop<Own>);
        });
    }
    // A callable that takes a const CheckpointReport &, once a checkpoint is whole on the disk.
    template <class F>
    Result<void> try_on_checkpoint(F &&function) {
        using Own = std::decay_t<F>;
        return give(std::make_unique<Own>(std::forward<F>(function)), [this](Own *own) {
            return ::sft_config_set_checkpoint(get(), detail::checkpoint<Own>, own,
                                               detail::drop<Own>);
        });
    }
    // A callable that takes a LogLevel and a std::string_view.
    template <class F>
    Result<void> try_on_log(F &&function) {
        using Own = std::decay_t<F>;
        return give(std::make_unique<Own>(std::forward<F>(function)), [this](Own *own) {
            return ::sft_config_set_log(get(), detail::log<Own>, own, detail::drop<Own>);
        });
    }
    // No function from now on.
    Result<void> try_on_progress(std::nullptr_t) {
        return done([this] { return ::sft_config_set_progress(get(), nullptr, nullptr, nullptr); });
    }
    Result<void> try_on_checkpoint(std::nullptr_t) {
        return done([this] { return ::sft_config_set_checkpoint(get(), nullptr, nullptr, nullptr); });
    }
    Result<void> try_on_log(std::nullptr_t) {
        return done([this] { return ::sft_config_set_log(get(), nullptr, nullptr, nullptr); });
    }
    Result<void> try_set_canceller(const Canceller &canceller) {
        return done([&] { return ::sft_config_set_canceller(get(), canceller.get()); });
    }

    Result<MemoryPlan> try_plan() {
        auto plan = detail::sized<MemoryPlan>();
        auto result = done([&] { return ::sft_plan(get(), &plan); });
        if (!result) return result.error();
        return plan;
    }
    Result<std::string> try_plan_json() {
        return text_of([this](char **out) { return ::sft_plan_json(get(), out); });
    }
    Result<Session> try_start() {
        return session_of([this](::sft_session **out) { return ::sft_start(get(), out); });
    }
    Result<Session> try_resume(std::string_view folder) {
        const auto text = detail::terminated(folder);
        if (!text) return detail::has_nul();
        return session_of(
            [&](::sft_session **out) { return ::sft_resume(get(), text->c_str(), out); });
    }

    // Frees it now; sessions that were started from it go on.
    void close() noexcept { handle_.reset(); }
    ::sft_config *get() const noexcept { return handle_.get(); }

#if SFT_HPP_EXCEPTIONS
    Config &merge_json(std::string_view json) { return try_merge_json(json).value(), *this; }
    Config &merge_file(std::string_view path) { return try_merge_file(path).value(), *this; }
    template <class T>
    Config &set(std::string_view key, const T &value) {
        return try_set(key, value).value(), *this;
    }
    std::string to_json() { return try_to_json().value(); }
    template <class F>
    Config &on_progress(F &&function) {
        return try_on_progress(std::forward<F>(function)).value(), *this;
    }
    template <class F>
    Config &on_checkpoint(F &&function) {
        return try_on_checkpoint(std::forward<F>(function)).value(), *this;
    }
    template <class F>
    Config &on_log(F &&function) {
        return try_on_log(std::forward<F>(function)).value(), *this;
    }
    Config &set_canceller(const Canceller &canceller) {
        return try_set_canceller(canceller).value(), *this;
    }
    MemoryPlan plan() { return try_plan().value(); }
    std::string plan_json() { return try_plan_json().value(); }
    Session start() { return try_start().value(); }
    Session resume(std::string_view folder) { return try_resume(folder).value(); }
#endif

private:
    template <class F>
    Result<void> done(F &&call) {
        detail::Call around;
        const ::sft_status status = call();
        around.over();
        if (status == SFT_OK) return {};
        return detail::failure(status, get(), ::sft_config_last_error_copy);
    }

    template <class F>
    Result<void> set_by(std::string_view key, F &&call) {
        const auto text = detail::terminated(key);
        if (!text) return detail::has_nul();
        return done([&] { return call(text->c_str()); });
    }

    // The library owns the function once it has taken it.
    template <class Own, class F>
    Result<void> give(std::unique_ptr<Own> function, F &&call) {
        auto result = done([&] { return call(function.get()); });
        if (result) (void)function.release();
        return result;
    }

    template <class F>
    Result<std::string> text_of(F &&call) {
        char *text = nullptr;
        auto result = done([&] { return call(&text); });
        if (!result) return result.error();
        return detail::taken(text);
    }

    template <class F>
    Result<Session> session_of(F &&call) {
        Session session(nullptr);  // an exception of a callback must not lose it
        auto result = done([&] {
            ::sft_session *made = nullptr;
            const ::sft_status status = call(&made);
            session = Session(made);
            return status;
        });
        if (!result) return result.error();
        return Result<Session>(std::move(session));
    }

    struct Free {
        void operator()(::sft_config *handle) const noexcept { ::sft_config_free(handle); }
    };
    std::unique_ptr<::sft_config, Free> handle_;
};

}  // namespace sft

#endif  // SFT_SFT_HPP
