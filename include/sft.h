/*
 * libsft: supervised fine-tuning of language models as a library.
 *
 * Generated from src/capi by scripts/gen-header; not to be edited. MIT OR Apache-2.0.
 *
 * The smallest host: sft_config_new, sft_config_merge_json, sft_start, then sft_step until
 * sft_should_stop, sft_export, sft_session_free, sft_config_free. bindings/c has examples.
 *
 * Handles. sft_config, sft_session and sft_canceller are opaque. What _new (or sft_start) makes,
 * _free frees; freeing NULL does nothing. A handle is checked before it is used: NULL, a freed
 * handle, one of another type or any other pointer gives SFT_ERR_INVALID_ARGUMENT. Handles are
 * names, not memory of the host's: they must not be dereferenced or compared by order.
 *
 * Errors. Calls that can fail return an sft_status: SFT_OK, an outcome that is no error (1 to 99,
 * such as SFT_STOPPED) or an error (from 100). The text of the last error belongs to the handle:
 * sft_config_last_error (for sft_start and sft_plan too) and sft_last_error. Ask for it once the call
 * has returned, not as another argument of the same expression. Results are written only on SFT_OK.
 *
 * Structs. Structs begin with struct_size, which the host sets to the sizeof that it was compiled
 * with. Structs grow only at the end and the library writes no more than struct_size bytes, so
 * either side may be newer than the other. Bytes that an older library doesn't know stay as they
 * are: zero the struct before the call.
 *
 * Strings. Strings that come in are NUL-terminated UTF-8 and are copied. A const char * that comes
 * out is borrowed as its function says; a char * is the host's, to be freed by sft_string_free.
 *
 * Callbacks. Callbacks get their user_data first and run on the thread that called into the library.
 * They must return: no longjmp and no C++ exception may leave them. Inside a callback, calls on the
 * handle that is at work return SFT_ERR_BUSY; sft_should_stop, sft_stop_reason, the _last_error,
 * _last_error_copy, _free and canceller functions work.
 *
 * Threads. Handles may move between threads, and different handles may be used at the same time. A
 * handle does one call at a time: a call that overlaps another on the same handle returns
 * SFT_ERR_BUSY, does nothing and leaves the error text untouched. sft_should_stop, sft_stop_reason,
 * the _last_error_copy functions and those without a handle may be called from any thread at any time.
 * The text of a _last_error function is only safe to read while no other thread calls on that handle.
 * sft_canceller_cancel may be called from any thread and from signal handlers.
 *
 * Defects. The library never prints and never exits. An internal failure that unwinds (a panic) is
 * caught at the border: the call returns SFT_ERR_PANIC, the handle returns SFT_ERR_POISONED from then
 * on and can only be freed. Its text is the handle's error text; the language runtime also writes it
 * to standard error, which a library cannot turn off without changing its host's settings.
 */

#ifndef SFT_H
#define SFT_H


#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** The version of the library that this header belongs to. */
#define SFT_VERSION "0.1.0"
#define SFT_VERSION_MAJOR 0
#define SFT_VERSION_MINOR 1
#define SFT_VERSION_PATCH 0

/**
 * The number of the binary interface that this header describes. It grows only when a host must be
 * changed; new functions and new fields at the end of structs leave it as it is.
 */
#define SFT_ABI_VERSION 1

/**
 * Done.
 */
#define SFT_OK 0

/**
 * The run has ended: nothing was done. No error.
 */
#define SFT_STOPPED 1

/**
 * An argument is NULL, out of range or not UTF-8, or the handle is NULL, freed or of another type.
 */
#define SFT_ERR_INVALID_ARGUMENT 100

/**
 * Another call is inside the same handle right now. Nothing was done, the error text is untouched.
 */
#define SFT_ERR_BUSY 101

/**
 * An earlier SFT_ERR_PANIC left the handle unusable: it can only be freed.
 */
#define SFT_ERR_POISONED 102

/**
 * A configuration value is wrong or contradicts another.
 */
#define SFT_ERR_CONFIG 200

/**
 * A configuration key is not known; the error text names the nearest one.
 */
#define SFT_ERR_UNKNOWN_KEY 201

/**
 * What was asked for is known and not supported.
 */
#define SFT_ERR_UNSUPPORTED 202

/**
 * The model folder or its config.json is wrong.
 */
#define SFT_ERR_MODEL 300

/**
 * The model's architecture, or one of its options, is not supported.
 */
#define SFT_ERR_UNSUPPORTED_MODEL 301

/**
 * A tensor is missing, has another shape or type, or holds NaN.
 */
#define SFT_ERR_TENSOR 302

/**
 * The tokenizer cannot be read or lacks what the data needs.
 */
#define SFT_ERR_TOKENIZER 303

/**
 * The chat template does not compile, or raised an error.
 */
#define SFT_ERR_TEMPLATE 304

/**
 * A data file or a row of it is wrong, or there are no rows.
 */
#define SFT_ERR_DATA 400

/**
 * A batch of the host is malformed. Nothing was done.
 */
#define SFT_ERR_BATCH 401

/**
 * Reading or writing a file failed.
 */
#define SFT_ERR_IO 500

/**
 * A folder that must not be overwritten already exists.
 */
#define SFT_ERR_EXISTS 501

/**
 * A checkpoint is damaged, incomplete or of a format that is not known.
 */
#define SFT_ERR_CHECKPOINT 502

/**
 * The device cannot be used.
 */
#define SFT_ERR_DEVICE 600

/**
 * The run does not fit into memory.
 */
#define SFT_ERR_OUT_OF_MEMORY 601

/**
 * The canceller was triggered while the call was loading or evaluating.
 */
#define SFT_ERR_CANCELLED 602

/**
 * A defect of the library was caught. The handle is poisoned.
 */
#define SFT_ERR_PANIC 900

/**
 * A defect of the library was found by itself.
 */
#define SFT_ERR_INTERNAL 901

/**
 * The run goes on.
 */
#define SFT_STOP_NONE 0

/**
 * The metric reached the target and held it.
 */
#define SFT_STOP_TARGET_REACHED 1

/**
 * No improvement for the patience of a plateau rule.
 */
#define SFT_STOP_PLATEAU 2

/**
 * Loss or gradient norm was NaN or infinite.
 */
#define SFT_STOP_NON_FINITE 3

/**
 * The metric grew to a multiple of its best.
 */
#define SFT_STOP_DIVERGED 4

/**
 * Evaluation loss rose while training loss fell.
 */
#define SFT_STOP_OVERFIT 5

/**
 * The budget of optimizer updates is used up.
 */
#define SFT_STOP_MAX_STEPS 6

/**
 * The budget of epochs is used up.
 */
#define SFT_STOP_MAX_EPOCHS 7

/**
 * The budget of training tokens is used up.
 */
#define SFT_STOP_MAX_TOKENS 8

/**
 * The budget of seconds is used up.
 */
#define SFT_STOP_MAX_TIME 9

/**
 * The canceller was triggered.
 */
#define SFT_STOP_CANCELLED 10

/**
 * The progress callback asked to stop.
 */
#define SFT_STOP_CALLBACK 11

/**
 * What a user should act on.
 */
#define SFT_LOG_WARNING 1

/**
 * What a user may want to know.
 */
#define SFT_LOG_INFO 2

/**
 * The whole model as a Hugging Face folder.
 */
#define SFT_EXPORT_FULL 1

/**
 * The adapter alone. Not supported in this version.
 */
#define SFT_EXPORT_ADAPTER 2

/**
 * The model with the adapter merged in. Not supported in this version.
 */
#define SFT_EXPORT_MERGED 3

/**
 * Asks runs to stop, from any thread. Made before the run, so that loading can be cancelled too.
 */
typedef struct sft_canceller sft_canceller;

/**
 * The configuration of a run: keys with values, callbacks and a canceller.
 */
typedef struct sft_config sft_config;

/**
 * A run: the model, the data, the optimizer and the stop rules.
 */
typedef struct sft_session sft_session;

/**
 * What a call says about how it went: one of the SFT_OK, SFT_STOPPED and SFT_ERR_ numbers. From 1
 * to 99 it is an outcome that is no error, from 100 an error. Numbers are never reused; a newer
 * library may return ones that this header does not know.
 */
typedef int32_t sft_status;

/**
 * The result of one optimizer update.
 */
typedef struct sft_step_report {
    /**
     * Set it to sizeof(sft_step_report) before the call.
     */
    uint32_t struct_size;
    /**
     * Why the run ended with this update: one of the SFT_STOP_ numbers, SFT_STOP_NONE while it
     * goes on.
     */
    int32_t stop_reason;
    /**
     * Number of this update, from 1.
     */
    uint64_t step;
    /**
     * Epochs done, as a fraction; 0 where the host feeds the batches.
     */
    double epoch;
    /**
     * Mean of -log p over the update's supervised positions, in nats. The true number: it may be
     * NaN or infinite.
     */
    double loss;
    /**
     * The loss as the stop rules see it after smoothing; NaN where has_smoothed_loss is 0.
     */
    double smoothed_loss;
    /**
     * L2 norm of the whole gradient before clipping.
     */
    double grad_norm;
    /**
     * The learning rate that this update used.
     */
    double learning_rate;
    /**
     * Fraction of supervised positions whose most likely token is the label.
     */
    double token_accuracy;
    /**
     * Mean entropy of the predictions at supervised positions, in nats.
     */
    double entropy;
    /**
     * Supervised positions of this update.
     */
    uint64_t supervised_tokens;
    /**
     * Input tokens of this update.
     */
    uint64_t tokens;
    /**
     * Input tokens of the run so far.
     */
    uint64_t total_tokens;
    /**
     * Wall time of this update without its evaluation, in seconds.
     */
    double seconds;
    /**
     * 1 if a stop rule smooths the loss, else 0.
     */
    int32_t has_smoothed_loss;
    /**
     * 1 if an evaluation was due after this update, else 0 and the eval_ fields are NaN or 0.
     */
    int32_t has_eval;
    /**
     * Mean of -log p over the supervised positions of the evaluation rows, in nats.
     */
    double eval_loss;
    /**
     * Fraction of them whose most likely token is the label.
     */
    double eval_token_accuracy;
    /**
     * Mean entropy of the predictions at them, in nats.
     */
    double eval_entropy;
    /**
     * Supervised positions of the evaluation rows.
     */
    uint64_t eval_supervised_tokens;
    /**
     * Wall time of the evaluation, in seconds.
     */
    double eval_seconds;
    /**
     * What the loss was multiplied by for this update to keep small gradients in float16; 1 in the
     * other formats. Where it is above 1 and grad_norm is not finite, the scale was too large: the
     * update was not applied, and the stop rules do not count it as a broken gradient.
     */
    double loss_scale;
    /**
     * Updates of the run so far that were not applied, because their gradient was not finite.
     */
    uint64_t skipped_updates;
} sft_step_report;

/**
 * Called after each update, on the thread that called sft_step or sft_step_batch, with a report
 * that is valid during the call. A return value other than 0 asks the run to stop.
 */
typedef int32_t (*sft_progress_fn)(void *user_data, const struct sft_step_report *report);

/**
 * Frees a callback's user_data; may be NULL. Called once, when the last configuration or session
 * that holds the callback lets go of it, on the thread whose call does so.
 */
typedef void (*sft_drop_fn)(void *user_data);

/**
 * A checkpoint that is whole on the disk.
 */
typedef struct sft_checkpoint_report {
    /**
     * sizeof(sft_checkpoint_report).
     */
    uint32_t struct_size;
    /**
     * 0.
     */
    uint32_t reserved;
    /**
     * The update that it is of.
     */
    uint64_t step;
    /**
     * Its folder, which sft_resume takes; borrowed for the call.
     */
    const char *folder;
} sft_checkpoint_report;

/**
 * Called once a checkpoint that was due is whole on the disk, with a report that is valid during the
 * call. Checkpoints are written in the background: it is called on the thread that calls into the
 * session, during a later call than the sft_step whose update the checkpoint is of, or at the end of
 * the run.
 */
typedef void (*sft_checkpoint_fn)(void *user_data, const struct sft_checkpoint_report *report);

/**
 * Receives what the library has to say, on the thread that called into it: level is one of the
 * SFT_LOG_ numbers, message is one line without a newline, valid during the call.
 */
typedef void (*sft_log_fn)(void *user_data, int32_t level, const char *message);

/**
 * What a run will take of memory.
 */
typedef struct sft_memory_plan {
    /**
     * Set it to sizeof(sft_memory_plan) before the call.
     */
    uint32_t struct_size;
    /**
     * 0.
     */
    uint32_t reserved;
    /**
     * Size of the one allocation that holds everything, in bytes.
     */
    uint64_t total_bytes;
    /**
     * The largest number of bytes that live at the same time: no plan can be smaller.
     */
    uint64_t lower_bound_bytes;
    /**
     * Bytes of the parameters. This and the following may share bytes of the total.
     */
    uint64_t weights_bytes;
    /**
     * Bytes of their gradients.
     */
    uint64_t gradients_bytes;
    /**
     * Bytes of the optimizer's moments.
     */
    uint64_t optimizer_bytes;
    /**
     * Bytes that the forward pass keeps for the backward pass.
     */
    uint64_t activations_bytes;
    /**
     * Bytes that live within a phase of an update.
     */
    uint64_t scratch_bytes;
    /**
     * Bytes of token ids, labels, positions and tables.
     */
    uint64_t batch_bytes;
} sft_memory_plan;

/**
 * Sequences of tokens laid end to end, as the host feeds them. All pointers are borrowed for the
 * call. Position i of a sequence predicts the label at i + 1, so labels are not shifted, and the
 * first label of each sequence never counts.
 */
typedef struct sft_batch {
    /**
     * sizeof(sft_batch), the same in every batch of an array.
     */
    uint32_t struct_size;
    /**
     * Must be 0.
     */
    uint32_t reserved;
    /**
     * n_tokens token ids, each from 0 to below the size of the model's vocabulary.
     */
    const int32_t *tokens;
    /**
     * n_tokens labels: the token ids, or -100 where not trained on. NULL: all are trained on.
     */
    const int32_t *labels;
    /**
     * n_seqs positions at which a sequence starts, ascending from 0. NULL: all tokens are one
     * sequence.
     */
    const int32_t *seq_starts;
    /**
     * Number of tokens and labels.
     */
    size_t n_tokens;
    /**
     * Number of sequence starts; not looked at where seq_starts is NULL, unless above 1.
     */
    size_t n_seqs;
} sft_batch;

/**
 * The result of an evaluation, weighted by tokens over all its rows.
 */
typedef struct sft_eval_report {
    /**
     * Set it to sizeof(sft_eval_report) before the call.
     */
    uint32_t struct_size;
    /**
     * Why the run ended with this evaluation or before: one of the SFT_STOP_ numbers, SFT_STOP_NONE
     * while it goes on.
     */
    int32_t stop_reason;
    /**
     * The update after which it was taken; 0 is before the first.
     */
    uint64_t step;
    /**
     * Mean of -log p over supervised positions, in nats.
     */
    double loss;
    /**
     * Fraction of supervised positions whose most likely token is the label.
     */
    double token_accuracy;
    /**
     * Mean entropy of the predictions at supervised positions, in nats.
     */
    double entropy;
    /**
     * Supervised positions.
     */
    uint64_t supervised_tokens;
    /**
     * Input tokens.
     */
    uint64_t tokens;
    /**
     * Wall time, in seconds.
     */
    double seconds;
} sft_eval_report;

/**
 * Where a run stands.
 */
typedef struct sft_snapshot {
    /**
     * Set it to sizeof(sft_snapshot) before the call.
     */
    uint32_t struct_size;
    /**
     * Why the run ended: one of the SFT_STOP_ numbers, SFT_STOP_NONE while it goes on.
     */
    int32_t stop_reason;
    /**
     * Updates done.
     */
    uint64_t step;
    /**
     * Updates planned; 0 where that is not known.
     */
    uint64_t total_steps;
    /**
     * Epochs done, as a fraction.
     */
    double epoch;
    /**
     * Input tokens of the run so far.
     */
    uint64_t total_tokens;
    /**
     * 1 if there is a best value, else 0 and best_value is NaN.
     */
    int32_t has_best;
    /**
     * 1 if the weights are those of the best step, put back when the run ended, else 0.
     */
    int32_t restored_best;
    /**
     * The update after which the best value was seen; 0 where that is not known.
     */
    uint64_t best_step;
    /**
     * The best value so far of the metric that metric_for_best_model names; without it, of the first
     * plateau rule's, else of the evaluation loss, else of the training loss.
     */
    double best_value;
    /**
     * Patience that the plateau rule has used up.
     */
    uint64_t patience_used;
    /**
     * Wall time of the run so far, over all its resumptions, in seconds.
     */
    double elapsed_seconds;
    /**
     * 1 if the run went on from a checkpoint, else 0.
     */
    int32_t resumed;
    /**
     * 1 if a checkpoint of the run is known to be whole on the disk, else 0.
     */
    int32_t has_checkpoint;
    /**
     * The update that it went on from; 0 where resumed is 0. A host that feeds its own batches goes on
     * with those of the next update.
     */
    uint64_t resumed_step;
    /**
     * The update of the newest such checkpoint; 0 where has_checkpoint is 0.
     */
    uint64_t checkpoint_step;
} sft_snapshot;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The SFT_ABI_VERSION of the library that is running. A host that finds another number than its
 * header's should not go on.
 */
uint32_t sft_abi_version(void);

/**
 * The version of the library that is running, such as "0.1.0". The text lives for ever.
 */
const char *sft_version(void);

/**
 * How the library was built, as a JSON object: "version", "abi_version", "arch", "os", "debug"
 * (whether it was built without optimisation) and "devices", the kinds that this build can use.
 * Later versions may add keys. The text lives for ever.
 */
const char *sft_build_info(void);

/**
 * The name of a status, such as "SFT_ERR_CONFIG"; "unknown" for a number that is none. The text
 * lives for ever.
 */
const char *sft_status_name(int32_t status);

/**
 * The name of a stop reason as logs print it, such as "target_reached"; "none" for SFT_STOP_NONE,
 * "unknown" for a number that is none. The text lives for ever.
 */
const char *sft_stop_reason_name(int32_t stop_reason);

/**
 * Frees a string that a call of this library gave away. NULL, a string freed before or any other
 * pointer does nothing.
 */
void sft_string_free(char *string);

/**
 * Makes a canceller. Never NULL, unless there is no memory. Free it by sft_canceller_free.
 */
struct sft_canceller *sft_canceller_new(void);

/**
 * Asks every run that shares this canceller to stop, for good: a running update is finished first,
 * then the run ends with SFT_STOP_CANCELLED; a call that loads or evaluates ends with
 * SFT_ERR_CANCELLED. May be called from any thread and from a signal handler, at any time, more
 * than once. NULL or a freed canceller does nothing.
 */
void sft_canceller_cancel(const struct sft_canceller *canceller);

/**
 * Frees a canceller. Configurations and runs that share it keep what they need of it, so it may be
 * freed before or after them. NULL or a freed canceller does nothing.
 */
void sft_canceller_free(struct sft_canceller *canceller);

/**
 * Makes a configuration with every key at its default. Never NULL, unless there is no memory. Free
 * it by sft_config_free.
 */
struct sft_config *sft_config_new(void);

/**
 * Frees a configuration. Sessions that were started from it go on. NULL or a freed configuration
 * does nothing.
 */
void sft_config_free(struct sft_config *config);

/**
 * The text of the last call on this configuration that failed, sft_start included; empty if none
 * has. Never NULL. Borrowed until the next call on this configuration fails or it is freed.
 */
const char *sft_config_last_error(const struct sft_config *config);

/**
 * A copy of what sft_config_last_error gives, which may be asked for while other threads call on this
 * configuration. Never NULL, unless there is no memory. Free it by sft_string_free.
 */
char *sft_config_last_error_copy(const struct sft_config *config);

/**
 * Sets the keys of a JSON object, which is len bytes of UTF-8 and needs no NUL at its end: all of
 * them or, on an error, none.
 *
 * Errors: SFT_ERR_CONFIG for malformed JSON or a value of the wrong type, SFT_ERR_UNKNOWN_KEY,
 * SFT_ERR_UNSUPPORTED, SFT_ERR_INVALID_ARGUMENT.
 */
sft_status sft_config_merge_json(struct sft_config *config, const char *json, size_t len);

/**
 * Sets the keys of the YAML or JSON file at path: all of them or, on an error, none. The text of an
 * error names the file and, where it is about a key or the syntax, the line.
 *
 * Errors: SFT_ERR_IO if the file cannot be read, else as sft_config_merge_json.
 */
sft_status sft_config_merge_file(struct sft_config *config, const char *path);

/**
 * Sets one key to a text, which is read as the key needs it: "5" sets a number, "null" clears an
 * optional key, JSON sets a nested one such as "stop". A key with dots reaches inside a nested one:
 * "lr_scheduler_kwargs.num_cycles". Both strings are copied.
 *
 * Errors: SFT_ERR_CONFIG for a value of the wrong type, SFT_ERR_UNKNOWN_KEY, SFT_ERR_UNSUPPORTED,
 * SFT_ERR_INVALID_ARGUMENT.
 */
sft_status sft_config_set_str(struct sft_config *config, const char *key, const char *value);

/**
 * Sets one key to a whole number. Errors: as sft_config_set_str.
 */
sft_status sft_config_set_i64(struct sft_config *config, const char *key, int64_t value);

/**
 * Sets one key to a number, which must be finite. Errors: as sft_config_set_str.
 */
sft_status sft_config_set_f64(struct sft_config *config, const char *key, double value);

/**
 * Sets one key to false (0) or true (any other value). Errors: as sft_config_set_str.
 */
sft_status sft_config_set_bool(struct sft_config *config, const char *key, int32_t value);

/**
 * Writes all keys with their values, defaults included, to *out as a JSON object that
 * sft_config_merge_json takes. Free it by sft_string_free.
 *
 * Errors: SFT_ERR_INVALID_ARGUMENT if out is NULL.
 */
sft_status sft_config_to_json(struct sft_config *config, char **out);

/**
 * Sets the function that is called after each update of the sessions that are started from now on;
 * NULL for none. On SFT_OK the library owns user_data and calls drop for it once, as sft_drop_fn
 * says; on an error it stays the caller's. Sessions on several threads that share a callback may
 * call it at the same time.
 *
 * Errors: SFT_ERR_INVALID_ARGUMENT for the handle.
 */
sft_status sft_config_set_progress(struct sft_config *config,
                                   sft_progress_fn progress,
                                   void *user_data,
                                   sft_drop_fn drop);

/**
 * Sets the function that is called once a checkpoint of the sessions that are started from now on is
 * whole on the disk; NULL for none. Ownership and errors: as sft_config_set_progress.
 */
sft_status sft_config_set_checkpoint(struct sft_config *config,
                                     sft_checkpoint_fn checkpoint,
                                     void *user_data,
                                     sft_drop_fn drop);

/**
 * Sets the function that receives the log of sft_start and sft_plan on this configuration and of the
 * sessions that are started from now on; NULL for none. Ownership and errors: as
 * sft_config_set_progress.
 */
sft_status sft_config_set_log(struct sft_config *config,
                              sft_log_fn log,
                              void *user_data,
                              sft_drop_fn drop);

/**
 * Lets canceller stop the sessions that are started from now on, and sft_start and sft_plan
 * themselves; NULL for none. The canceller is shared: it may be freed at any time, and may serve several
 * configurations.
 *
 * Errors: SFT_ERR_INVALID_ARGUMENT if canceller is freed or of another type.
 */
sft_status sft_config_set_canceller(struct sft_config *config,
                                    const struct sft_canceller *canceller);

/**
 * Plans the memory of a run, without allocating it: reads the model's config.json and, where the
 * configuration names data, tokenises the rows (or finds them in the cache).
 *
 * Errors: those of sft_start about the configuration, the model's config.json and the data; the
 * text is on the configuration. SFT_ERR_CANCELLED if the canceller was triggered.
 */
sft_status sft_plan(struct sft_config *config, struct sft_memory_plan *out);

/**
 * As sft_plan, with every tensor: writes a JSON object to *out, whose "total_bytes" is the size and
 * whose "segments" are objects with "name", "kind", "bytes", "offset" and the first and last phase
 * of the update in which the tensor lives, "birth" and "death". Free it by sft_string_free.
 *
 * Errors: as sft_plan.
 */
sft_status sft_plan_json(struct sft_config *config, char **out);

/**
 * Starts a run: loads the model and the data that the configuration names, allocates all memory,
 * and opens the log in output_dir; or goes on from a checkpoint where resume_from_checkpoint says so. Writes the session to *out; free it by sft_session_free. The
 * configuration is copied and can be changed, used again or freed. Without dataset_name the host
 * feeds its own batches by sft_step_batch.
 *
 * Errors: any, each naming what is wrong and where; the text is on the configuration.
 * SFT_ERR_CANCELLED if the canceller was triggered. A failed start leaves output_dir as it was.
 */
sft_status sft_start(struct sft_config *config,
                     struct sft_session **out);

/**
 * As sft_start, going on from the checkpoint in the folder dir whatever resume_from_checkpoint says.
 * With the same configuration and rows the run gives the numbers that it would have given without the
 * interruption, bit for bit. A host that feeds its own batches goes on with those after the snapshot's
 * step. The log in output_dir is cut to where the checkpoint was made, and goes on there.
 *
 * Errors: as sft_start. SFT_ERR_CHECKPOINT if dir holds no whole checkpoint. SFT_ERR_CONFIG if the
 * configuration or the rows have changed in what changes the numbers; the text lists every key, and
 * resume_allow_changes allows them. SFT_ERR_EXISTS if output_dir has newer checkpoints of the run:
 * overwrite_output_dir removes them.
 */
sft_status sft_resume(struct sft_config *config,
                      const char *dir,
                      struct sft_session **out);

/**
 * One optimizer update on the next rows, with the evaluation, checkpoint and stop decision that are
 * due after it. Writes the report to *out; out may be NULL. SFT_STOPPED once the run has ended.
 *
 * Errors: SFT_ERR_INVALID_ARGUMENT, also for a run without dataset_name. SFT_ERR_IO if the log
 * cannot be written or an earlier checkpoint could not: the update has taken effect all the same, the
 * run can go on, and sft_last_report has the report. SFT_ERR_CANCELLED if the canceller interrupted an
 * evaluation before the first update. SFT_ERR_DEVICE if the device failed: every later call that needs
 * it fails alike, and the session can only be freed.
 */
sft_status sft_step(struct sft_session *session,
                    struct sft_step_report *out);

/**
 * One optimizer update on the host's own tokens. The n micro-batches at micro are one update
 * together: the loss is the mean over the supervised positions of all of them. Everything is
 * borrowed for the call. Writes the report to *out; out may be NULL. SFT_STOPPED once the run has
 * ended. Where no position of them is supervised the update counts and changes nothing, its loss is 0
 * with 0 supervised_tokens, and no stop rule sees it.
 *
 * Errors: SFT_ERR_BATCH or SFT_ERR_INVALID_ARGUMENT for a malformed micro-batch: nothing was done.
 * SFT_ERR_IO as sft_step.
 */
sft_status sft_step_batch(struct sft_session *session,
                          const struct sft_batch *micro,
                          size_t n,
                          struct sft_step_report *out);

/**
 * Writes the report of the last update since sft_start or sft_resume to *out, as its call would have
 * written it: for an update whose call returned an error although it took effect, or was given no
 * report to write.
 *
 * Errors: SFT_ERR_INVALID_ARGUMENT for out, or if there has been no update.
 */
sft_status sft_last_report(struct sft_session *session,
                           struct sft_step_report *out);

/**
 * Evaluates on the evaluation rows now. The result is logged and seen by the stop rules. Writes the
 * report to *out; out may be NULL. Also after the run has ended.
 *
 * Errors: SFT_ERR_DATA if there are no evaluation rows; SFT_ERR_CANCELLED; SFT_ERR_IO if the log
 * cannot be written.
 */
sft_status sft_evaluate(struct sft_session *session, struct sft_eval_report *out);

/**
 * As sft_evaluate, on the host's n batches, which are borrowed for the call.
 *
 * Errors: SFT_ERR_BATCH or SFT_ERR_INVALID_ARGUMENT for a malformed batch, SFT_ERR_DATA if nothing
 * in them is supervised.
 */
sft_status sft_evaluate_batch(struct sft_session *session,
                              const struct sft_batch *batch,
                              size_t n,
                              struct sft_eval_report *out);

/**
 * Feeds a number of the host's own to the stop rules, as known after the last update. A rule names
 * it by its metric; a built-in name such as "eval_loss" stands for that metric, so a host may
 * evaluate by itself. NaN is allowed and never counts as progress.
 *
 * Errors: SFT_ERR_INVALID_ARGUMENT if metric is NULL, empty or not UTF-8; SFT_ERR_IO if what is due
 * at the end of the run cannot be written.
 */
sft_status sft_observe(struct sft_session *session, const char *metric, double value);

/**
 * Whether the run has ended; stays true once it has. Also true where there is nothing to step: for
 * NULL, a freed or a poisoned session, and after the device failed. May be called while another call is inside the session.
 */
bool sft_should_stop(const struct sft_session *session);

/**
 * Why the run ended: one of the SFT_STOP_ numbers, SFT_STOP_NONE while it goes on and for a handle
 * that is none. May be called while another call is inside the session.
 */
int32_t sft_stop_reason(const struct sft_session *session);

/**
 * Writes where the run stands to *out.
 *
 * Errors: SFT_ERR_INVALID_ARGUMENT for out.
 */
sft_status sft_snapshot_get(struct sft_session *session, struct sft_snapshot *out);

/**
 * Writes a checkpoint to the folder dir, whole or not at all, durable on return: all that a run needs
 * to go on by sft_resume. It is a Hugging Face model folder too, with the weights of the last update.
 * Once the run has ended and the best weights are back (restored_best of sft_snapshot), those are in
 * the checkpoint beside the last ones, and sft_export is what writes them as a model.
 *
 * Errors: SFT_ERR_IO naming the file; what stood in dir stays as it was.
 */
sft_status sft_save(struct sft_session *session,
                    const char *dir);

/**
 * Writes what the run has made to the folder dir, whole or not at all; what is one of the
 * SFT_EXPORT_ numbers.
 *
 * Errors: SFT_ERR_IO naming the file; an earlier model in dir stays as it was. SFT_ERR_UNSUPPORTED
 * for an adapter, SFT_ERR_INVALID_ARGUMENT for a number that is none.
 */
sft_status sft_export(struct sft_session *session, const char *dir, int32_t what);

/**
 * Frees a session with all its memory, once the checkpoint on the way is written. If another call is inside (one on another thread, or the
 * one whose callback calls this), that call ends as usual and the memory goes then. NULL or a freed
 * session does nothing.
 */
void sft_session_free(struct sft_session *session);

/**
 * The text of the last call on this session that failed; empty if none has. Never NULL. Borrowed
 * until the next call on this session fails or it is freed.
 */
const char *sft_last_error(const struct sft_session *session);

/**
 * A copy of what sft_last_error gives, which may be asked for while other threads call on this session.
 * Never NULL, unless there is no memory. Free it by sft_string_free.
 */
char *sft_last_error_copy(const struct sft_session *session);

/**
 * Writes the numbers of one set of the last evaluation to *out, whatever asked for it: a step, the
 * start of the run or sft_evaluate. name is a name of eval_dataset_name where that names several
 * sets, or NULL for all sets together.
 *
 * Errors: SFT_ERR_INVALID_ARGUMENT if the run has not evaluated yet, or no set of that evaluation
 * has the name.
 */
sft_status sft_eval_set(struct sft_session *session, const char *name, struct sft_eval_report *out);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* SFT_H */
