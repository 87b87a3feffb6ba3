/* What the header promises beyond the examples, each promise a function. */
#define _POSIX_C_SOURCE 200809L
#include <sft.h>

#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char **arguments; /* program, model, rows, output folder */

#define EXPECT(truth)                                                     \
    do {                                                                  \
        if (!(truth)) {                                                   \
            fprintf(stderr, "%s:%d: %s\n", __func__, __LINE__, #truth);   \
            exit(1);                                                      \
        }                                                                 \
    } while (0)

#define IS(expected, call)                                                              \
    do {                                                                                \
        sft_status status_ = call;                                                      \
        if (status_ != expected) {                                                      \
            fprintf(stderr, "%s:%d: %s is %s\n", __func__, __LINE__, #call,             \
                    sft_status_name(status_));                                          \
            exit(1);                                                                    \
        }                                                                               \
    } while (0)

static sft_config *configured(const char *json) {
    sft_config *config = sft_config_new();
    EXPECT(config);
    IS(SFT_OK, sft_config_set_str(config, "model_name_or_path", arguments[1]));
    IS(SFT_OK, sft_config_set_str(config, "dataset_name", arguments[2]));
    IS(SFT_OK, sft_config_set_str(config, "output_dir", arguments[3]));
    IS(SFT_OK, sft_config_set_bool(config, "overwrite_output_dir", 1));
    IS(SFT_OK, sft_config_set_str(config, "save_strategy", "no"));
    IS(SFT_OK, sft_config_set_i64(config, "max_length", 256));
    IS(SFT_OK, sft_config_merge_json(config, json, strlen(json)));
    return config;
}

static sft_session *started(sft_config *config) {
    sft_session *session = NULL;
    sft_status status = sft_start(config, &session);
    if (status != SFT_OK) fprintf(stderr, "%s\n", sft_config_last_error(config));
    IS(SFT_OK, status);
    EXPECT(session);
    return session;
}

static void versions_agree(void) {
    EXPECT(sft_abi_version() == SFT_ABI_VERSION);
    EXPECT(!strcmp(sft_version(), SFT_VERSION));
    char parts[64];
    snprintf(parts, sizeof parts, "%d.%d.%d", SFT_VERSION_MAJOR, SFT_VERSION_MINOR,
             SFT_VERSION_PATCH);
    EXPECT(!strcmp(sft_version(), parts));
    EXPECT(strstr(sft_build_info(), "\"devices\":[\"cpu\"]"));
    EXPECT(!strcmp(sft_status_name(SFT_ERR_BUSY), "SFT_ERR_BUSY"));
    EXPECT(!strcmp(sft_stop_reason_name(SFT_STOP_PLATEAU), "plateau"));
}

static void errors_name_the_key_and_change_nothing(void) {
    sft_config *config = sft_config_new();
    EXPECT(!strcmp(sft_config_last_error(config), ""));
    IS(SFT_ERR_UNKNOWN_KEY, sft_config_set_f64(config, "learning_rat", 0.1));
    EXPECT(strstr(sft_config_last_error(config), "learning_rate"));
    IS(SFT_ERR_CONFIG, sft_config_set_f64(config, "learning_rate", NAN));
    IS(SFT_ERR_CONFIG, sft_config_set_str(config, "max_steps", "many"));
    EXPECT(strstr(sft_config_last_error(config), "max_steps"));
    /* A document is taken whole or not at all, and its length counts, not a NUL. */
    const char bad[] = "{\"max_steps\": 7, \"nonsense\": 1}";
    IS(SFT_ERR_UNKNOWN_KEY, sft_config_merge_json(config, bad, strlen(bad)));
    const char good[] = "{\"max_steps\": 5}garbage";
    IS(SFT_OK, sft_config_merge_json(config, good, strlen("{\"max_steps\": 5}")));
    IS(SFT_ERR_CONFIG, sft_config_merge_json(config, good, strlen(good)));
    IS(SFT_ERR_CONFIG, sft_config_merge_json(config, "", 0));
    IS(SFT_OK, sft_config_set_bool(config, "packing", 2));
    IS(SFT_OK, sft_config_set_str(config, "lr_scheduler_kwargs.num_cycles", "2"));
    char *json = NULL;
    IS(SFT_OK, sft_config_to_json(config, &json));
    EXPECT(strstr(json, "\"max_steps\": 5"));
    EXPECT(strstr(json, "\"packing\": true"));
    sft_config *copy = sft_config_new();
    IS(SFT_OK, sft_config_merge_json(copy, json, strlen(json)));
    char *again = NULL;
    IS(SFT_OK, sft_config_to_json(copy, &again));
    EXPECT(!strcmp(json, again));
    sft_string_free(json);
    sft_string_free(json);
    sft_string_free(again);
    sft_config_free(copy);
    sft_config_free(config);
}

static void write_file(const char *path, const char *text) {
    FILE *file = fopen(path, "w");
    EXPECT(file && fputs(text, file) >= 0 && fclose(file) == 0);
}

static void a_file_is_merged_whole_and_its_errors_name_the_line(void) {
    char path[4096], place[4200];
    snprintf(path, sizeof path, "%s.yaml", arguments[3]);
    sft_config *config = sft_config_new();
    write_file(path, "# a run\nmax_steps: 7\nstop:\n  - {rule: target, metric: train_loss, at_most: 1.5}\n");
    IS(SFT_OK, sft_config_merge_file(config, path));
    write_file(path, "max_steps: 8\n\nlearning_rat: 0.1\n");
    IS(SFT_ERR_UNKNOWN_KEY, sft_config_merge_file(config, path));
    snprintf(place, sizeof place, "%s:3", path);
    EXPECT(strstr(sft_config_last_error(config), place));
    EXPECT(strstr(sft_config_last_error(config), "learning_rate"));
    write_file(path, "{\"max_steps\": [}");
    IS(SFT_ERR_CONFIG, sft_config_merge_file(config, path));
    EXPECT(strstr(sft_config_last_error(config), path));
    IS(SFT_ERR_IO, sft_config_merge_file(config, "/no/such/run.yaml"));
    EXPECT(strstr(sft_config_last_error(config), "/no/such/run.yaml"));
    char *json = NULL;
    IS(SFT_OK, sft_config_to_json(config, &json));
    EXPECT(strstr(json, "\"max_steps\": 7") && strstr(json, "\"at_most\": 1.5"));
    sft_string_free(json);
    sft_config_free(config);
}

static void a_copied_error_text_outlives_its_handle(void) {
    sft_config *config = sft_config_new();
    char *none = sft_config_last_error_copy(config);
    IS(SFT_ERR_UNKNOWN_KEY, sft_config_set_bool(config, "pakking", 1));
    char *text = sft_config_last_error_copy(config);
    EXPECT(!strcmp(text, sft_config_last_error(config)));
    IS(SFT_ERR_CONFIG, sft_config_set_str(config, "max_steps", "many"));
    sft_config_free(config);
    EXPECT(strstr(text, "packing") && !strcmp(none, ""));
    char *freed = sft_config_last_error_copy(config), *null = sft_last_error_copy(NULL);
    EXPECT(strstr(freed, "freed") && !strcmp(freed, null));
    char *all[] = {none, text, freed, null};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) sft_string_free(all[i]);
}

static void a_failed_start_writes_nothing(void) {
    sft_config *config = configured("{\"max_steps\": 1}");
    sft_session *session = (sft_session *)arguments;
    IS(SFT_OK, sft_config_set_str(config, "model_name_or_path", "/no/such/model"));
    sft_status status = sft_start(config, &session);
    EXPECT(status >= 300 && status < 600);
    EXPECT(strstr(sft_config_last_error(config), "/no/such/model"));
    EXPECT(session == (sft_session *)arguments);
    sft_memory_plan plan = {.struct_size = sizeof plan, .total_bytes = 1};
    EXPECT(sft_plan(config, &plan) == status);
    EXPECT(plan.total_bytes == 1);
    sft_config_free(config);
}

static void the_plan_adds_up(void) {
    sft_config *config = configured("{\"max_steps\": 1}");
    sft_memory_plan plan = {.struct_size = sizeof plan};
    IS(SFT_OK, sft_plan(config, &plan));
    EXPECT(plan.weights_bytes > 0 && plan.gradients_bytes >= plan.weights_bytes);
    EXPECT(plan.optimizer_bytes >= 2 * plan.weights_bytes);
    EXPECT(plan.lower_bound_bytes <= plan.total_bytes);
    char *json = NULL;
    IS(SFT_OK, sft_plan_json(config, &json));
    char total[64];
    snprintf(total, sizeof total, "\"total_bytes\":%llu", (unsigned long long)plan.total_bytes);
    EXPECT(strstr(json, total) && strstr(json, "\"segments\":[{"));
    sft_string_free(json);
    sft_config_free(config);
}

static void structs_of_another_size_are_met(void) {
    sft_config *config = configured("{\"max_steps\": 10}");
    sft_session *session = started(config);
    sft_snapshot snapshot = {.struct_size = sizeof snapshot};
    IS(SFT_OK, sft_snapshot_get(session, &snapshot));
    EXPECT(snapshot.step == 0 && snapshot.has_best == 0 && isnan(snapshot.best_value));
    union {
        sft_step_report report;
        unsigned char bytes[2 * sizeof(sft_step_report)];
    } place;
    /* An older host: no byte beyond what it knows is touched. */
    memset(&place, 0xee, sizeof place);
    place.report.struct_size = offsetof(sft_step_report, loss);
    IS(SFT_OK, sft_step(session, &place.report));
    EXPECT(place.report.step == 1);
    EXPECT(place.report.struct_size == offsetof(sft_step_report, loss));
    for (size_t i = offsetof(sft_step_report, loss); i < sizeof place; i++) {
        EXPECT(place.bytes[i] == 0xee);
    }
    /* A newer host: what the library does not know stays. */
    place.report.struct_size = sizeof place;
    IS(SFT_OK, sft_step(session, &place.report));
    EXPECT(place.report.step == 2 && isfinite(place.report.loss));
    EXPECT(place.report.has_eval == 0 && isnan(place.report.eval_loss));
    for (size_t i = sizeof place.report; i < sizeof place; i++) EXPECT(place.bytes[i] == 0xee);
    /* A host that forgot it: refused before anything is done. */
    place.report.struct_size = 0;
    IS(SFT_ERR_INVALID_ARGUMENT, sft_step(session, &place.report));
    EXPECT(strstr(sft_last_error(session), "sizeof(sft_step_report)"));
    IS(SFT_OK, sft_snapshot_get(session, &snapshot));
    EXPECT(snapshot.step == 2 && snapshot.total_steps == 10);
    EXPECT(snapshot.stop_reason == SFT_STOP_NONE && snapshot.restored_best == 0);
    EXPECT(snapshot.has_best == 1 && isfinite(snapshot.best_value)); /* the least training loss */
    sft_session_free(session);
    sft_config_free(config);
}

static void an_ended_run_stays_ended(void) {
    sft_config *config = configured("{\"max_steps\": 2, \"eval_strategy\": \"steps\","
                                    "\"eval_steps\": 1, \"val_size\": 2}");
    sft_session *session = started(config);
    sft_step_report report = {.struct_size = sizeof report};
    IS(SFT_OK, sft_step(session, &report));
    EXPECT(report.stop_reason == SFT_STOP_NONE && !sft_should_stop(session));
    EXPECT(report.has_eval == 1 && isfinite(report.eval_loss) && report.eval_supervised_tokens > 0);
    IS(SFT_OK, sft_step(session, &report));
    EXPECT(report.stop_reason == SFT_STOP_MAX_STEPS);
    EXPECT(sft_should_stop(session) && sft_stop_reason(session) == SFT_STOP_MAX_STEPS);
    sft_step_report untouched = {.struct_size = sizeof untouched, .step = 77};
    IS(SFT_STOPPED, sft_step(session, &untouched));
    EXPECT(untouched.step == 77);
    sft_eval_report eval = {.struct_size = sizeof eval};
    IS(SFT_OK, sft_evaluate(session, &eval));
    EXPECT(eval.step == 2 && eval.stop_reason == SFT_STOP_MAX_STEPS);
    EXPECT(fabs(eval.loss - report.eval_loss) < 1e-12);
    EXPECT(!strcmp(sft_last_error(session), ""));
    sft_session_free(session);
    sft_config_free(config);
}

static void an_update_whose_checkpoint_failed_has_a_report_all_the_same(void) {
    sft_config *config = configured("{\"max_steps\": 4, \"save_strategy\": \"steps\", \"save_steps\": 1}");
    sft_session *session = started(config);
    sft_step_report last = {.struct_size = sizeof last};
    IS(SFT_ERR_INVALID_ARGUMENT, sft_last_report(session, &last));
    EXPECT(strstr(sft_last_error(session), "no update"));
    /* The log is open; checkpoints find a file where their folder was. */
    char away[4096];
    snprintf(away, sizeof away, "%s-away", arguments[3]);
    EXPECT(rename(arguments[3], away) == 0);
    write_file(arguments[3], "");
    int failed = 0;
    for (uint64_t step = 1; !sft_should_stop(session); step++) {
        sft_step_report report = {.struct_size = sizeof report};
        sft_status status = sft_step(session, &report);
        IS(SFT_OK, sft_last_report(session, &last));
        EXPECT(last.step == step && isfinite(last.loss) && last.grad_norm > 0);
        EXPECT(last.stop_reason == (step == 4 ? SFT_STOP_MAX_STEPS : SFT_STOP_NONE));
        if (status == SFT_OK) {
            EXPECT(!memcmp(&last, &report, sizeof last));
        } else {
            IS(SFT_ERR_IO, status);
            EXPECT(report.step == 0);
            failed++;
        }
    }
    EXPECT(failed > 0 && last.step == 4);
    sft_session_free(session);
    EXPECT(remove(arguments[3]) == 0);
    sft_config_free(config);
}

static void every_evaluation_set_has_its_own_numbers(void) {
    sft_config *config = configured("{\"max_steps\": 1, \"eval_strategy\": \"no\"}");
    char sets[4096];
    snprintf(sets, sizeof sets, "{\"eval_dataset_name\": {\"one\": \"%s\", \"two\": \"%s\"}}", arguments[2],
             arguments[2]);
    IS(SFT_OK, sft_config_merge_json(config, sets, strlen(sets)));
    sft_session *session = started(config);
    sft_eval_report all = {.struct_size = sizeof all}, one = all, two = all, last = all;
    IS(SFT_ERR_INVALID_ARGUMENT, sft_eval_set(session, NULL, &last));
    EXPECT(strstr(sft_last_error(session), "not evaluated"));
    IS(SFT_OK, sft_evaluate(session, &all));
    IS(SFT_OK, sft_eval_set(session, "one", &one));
    IS(SFT_OK, sft_eval_set(session, "two", &two));
    IS(SFT_OK, sft_eval_set(session, NULL, &last));
    EXPECT(one.loss == two.loss && one.step == 0 && one.tokens > 0);
    EXPECT(one.supervised_tokens + two.supervised_tokens == all.supervised_tokens);
    EXPECT(fabs(all.loss - one.loss) < 1e-12 && last.loss == all.loss);
    IS(SFT_ERR_INVALID_ARGUMENT, sft_eval_set(session, "three", &one));
    EXPECT(strstr(sft_last_error(session), "one, two"));
    IS(SFT_ERR_INVALID_ARGUMENT, sft_eval_set(session, "one", NULL));
    sft_session_free(session);
    sft_config_free(config);
}

static void batches_are_checked(void) {
    sft_config *config = configured("{\"max_steps\": 100, \"dataset_name\": null}");
    sft_session *session = started(config);
    sft_step_report report = {.struct_size = sizeof report};
    IS(SFT_ERR_INVALID_ARGUMENT, sft_step(session, &report));
    EXPECT(strstr(sft_last_error(session), "step_batch"));
    int32_t tokens[] = {5, 6, 7, 8, 9, 10}, starts[] = {0, 3};
    sft_batch batch = {.struct_size = sizeof batch, .tokens = tokens, .n_tokens = 6};
    IS(SFT_OK, sft_step_batch(session, &batch, 1, &report)); /* one sequence, all supervised */
    EXPECT(report.supervised_tokens == 5 && report.tokens == 6);
    batch.seq_starts = starts;
    batch.n_seqs = 2;
    sft_eval_report eval = {.struct_size = sizeof eval};
    IS(SFT_OK, sft_evaluate_batch(session, &batch, 1, &eval));
    EXPECT(eval.supervised_tokens == 4 && eval.tokens == 6);

    IS(SFT_ERR_BATCH, sft_step_batch(session, &batch, 0, &report));
    IS(SFT_ERR_INVALID_ARGUMENT, sft_step_batch(session, NULL, 1, &report));
    tokens[4] = 2048; /* the size of the vocabulary */
    sft_batch two[] = {batch, batch};
    IS(SFT_ERR_BATCH, sft_step_batch(session, two, 2, &report));
    EXPECT(strstr(sft_last_error(session), "tokens[4]"));
    tokens[4] = 9;
    two[1].struct_size = 0;
    IS(SFT_ERR_INVALID_ARGUMENT, sft_step_batch(session, two, 2, &report));
    EXPECT(strstr(sft_last_error(session), "batch 1"));
    two[1] = batch;
    two[1].seq_starts = NULL;
    IS(SFT_ERR_INVALID_ARGUMENT, sft_step_batch(session, two, 2, &report));
    two[1] = batch;
    two[1].n_tokens = SIZE_MAX;
    IS(SFT_ERR_INVALID_ARGUMENT, sft_step_batch(session, two, 2, &report));
    two[1] = batch;
    two[1].tokens = NULL;
    IS(SFT_ERR_INVALID_ARGUMENT, sft_step_batch(session, two, 2, &report));
    two[1] = batch;
    two[1].reserved = 1;
    IS(SFT_ERR_INVALID_ARGUMENT, sft_step_batch(session, two, 2, &report));
    IS(SFT_ERR_INVALID_ARGUMENT, sft_step_batch(session, &batch, SIZE_MAX, &report));
    starts[1] = 0;
    IS(SFT_ERR_BATCH, sft_step_batch(session, &batch, 1, &report));
    starts[1] = 3;

    /* A newer host's batches lie further apart. */
    struct {
        sft_batch known;
        double new_field;
    } newer[2] = {{batch, 1.0}, {batch, 2.0}};
    newer[0].known.struct_size = newer[1].known.struct_size = sizeof newer[0];
    IS(SFT_OK, sft_step_batch(session, &newer[0].known, 2, &report));
    EXPECT(report.step == 2 && report.supervised_tokens == 8);
    IS(SFT_ERR_INVALID_ARGUMENT, sft_observe(session, "", 1.0));
    sft_session_free(session);
    sft_config_free(config);
}

static void the_metric_of_the_host_ends_the_run(void) {
    sft_config *config = configured("{\"max_steps\": 100, \"stop\": [{\"rule\": \"target\","
                                    "\"metric\": \"mine\", \"at_least\": 2.0}]}");
    sft_session *session = started(config);
    IS(SFT_OK, sft_step(session, NULL));
    IS(SFT_OK, sft_observe(session, "mine", NAN));
    IS(SFT_OK, sft_observe(session, "mine", 1.0));
    EXPECT(!sft_should_stop(session));
    IS(SFT_OK, sft_observe(session, "mine", 2.0));
    EXPECT(sft_should_stop(session) && sft_stop_reason(session) == SFT_STOP_TARGET_REACHED);
    sft_session_free(session);
    sft_config_free(config);
}

static void export_refuses_what_it_cannot_do(void) {
    sft_config *config = configured("{\"max_steps\": 1}");
    sft_session *session = started(config);
    char folder[4096];
    snprintf(folder, sizeof folder, "%s/model", arguments[3]);
    IS(SFT_ERR_UNSUPPORTED, sft_export(session, folder, SFT_EXPORT_ADAPTER));
    IS(SFT_ERR_UNSUPPORTED, sft_export(session, folder, SFT_EXPORT_MERGED));
    IS(SFT_ERR_INVALID_ARGUMENT, sft_export(session, folder, 0));
    IS(SFT_ERR_INVALID_ARGUMENT, sft_save(session, ""));
    IS(SFT_ERR_IO, sft_save(session, "/proc/no/such/folder"));
    IS(SFT_OK, sft_save(session, folder));
    IS(SFT_OK, sft_export(session, folder, SFT_EXPORT_FULL)); /* over the earlier one */
    sft_session_free(session);
    sft_config_free(config);
}

typedef struct {
    sft_config *config;
    sft_session *session;
    int calls, drops, logs, stop_at;
} host;

static int32_t call_back_in(void *user_data, const sft_step_report *report) {
    host *self = user_data;
    self->calls++;
    EXPECT(report->struct_size == sizeof *report && report->step == (uint64_t)self->calls);
    IS(SFT_ERR_BUSY, sft_step(self->session, NULL));
    sft_snapshot snapshot = {.struct_size = sizeof snapshot};
    IS(SFT_ERR_BUSY, sft_snapshot_get(self->session, &snapshot));
    EXPECT(!strcmp(sft_last_error(self->session), ""));
    EXPECT(!sft_should_stop(self->session));
    IS(SFT_OK, sft_config_set_i64(self->config, "max_steps", 99)); /* another handle */
    return self->calls == self->stop_at;
}

static void take_log(void *user_data, int32_t level, const char *message) {
    host *self = user_data;
    EXPECT(level == SFT_LOG_INFO || level == SFT_LOG_WARNING);
    EXPECT(strlen(message) > 0);
    if (!self->session) IS(SFT_ERR_BUSY, sft_config_set_i64(self->config, "max_steps", 98));
    self->logs++;
}

static void count_drop(void *user_data) {
    ((host *)user_data)->drops++;
}

static void a_callback_sees_busy_handles_and_can_stop_the_run(void) {
    host self = {.stop_at = 3};
    self.config = configured("{\"max_steps\": 100}");
    IS(SFT_OK, sft_config_set_progress(self.config, call_back_in, &self, count_drop));
    IS(SFT_OK, sft_config_set_log(self.config, take_log, &self, count_drop));
    self.session = started(self.config);
    EXPECT(self.logs > 0);
    while (!sft_should_stop(self.session)) IS(SFT_OK, sft_step(self.session, NULL));
    EXPECT(self.calls == 3 && sft_stop_reason(self.session) == SFT_STOP_CALLBACK);
    /* Dropped once, by whoever lets go last. */
    host other = {0};
    IS(SFT_OK, sft_config_set_progress(self.config, NULL, &other, count_drop));
    EXPECT(self.drops == 0 && other.drops == 1);
    IS(SFT_ERR_INVALID_ARGUMENT, sft_config_set_log(NULL, take_log, &other, count_drop));
    EXPECT(other.drops == 1); /* refused: still the caller's */
    sft_session_free(self.session);
    EXPECT(self.drops == 1);
    sft_config_free(self.config);
    EXPECT(self.drops == 2);
    sft_config_free(self.config);
    sft_session_free(self.session);
    EXPECT(self.drops == 2);
}

static void take_checkpoint(void *user_data, const sft_checkpoint_report *report) {
    host *self = user_data;
    EXPECT(report->struct_size == sizeof *report && report->reserved == 0);
    self->calls++;
    EXPECT(report->step == 2 * (uint64_t)self->calls);
    char file[4096];
    snprintf(file, sizeof file, "%s/checkpoint.json", report->folder);
    EXPECT(access(file, R_OK) == 0);
    IS(SFT_ERR_BUSY, sft_step(self->session, NULL));
}

static void a_run_goes_on_from_what_was_saved(void) {
    host self = {0};
    self.config = configured("{\"max_steps\": 6, \"save_strategy\": \"steps\", \"save_steps\": 2}");
    sft_config *config = self.config;
    IS(SFT_OK, sft_config_set_checkpoint(config, take_checkpoint, &self, count_drop));
    self.session = started(config);
    char saved[4096];
    snprintf(saved, sizeof saved, "%s/saved", arguments[3]);
    double losses[7] = {0};
    for (uint64_t step = 1; step <= 6; step++) {
        sft_step_report report = {.struct_size = sizeof report};
        IS(SFT_OK, sft_step(self.session, &report));
        losses[step] = report.loss;
        if (step == 3) IS(SFT_OK, sft_save(self.session, saved));
    }
    EXPECT(self.calls == 3); /* at 2, 4 and 6, the last before the end was told */
    sft_snapshot snapshot = {.struct_size = sizeof snapshot};
    IS(SFT_OK, sft_snapshot_get(self.session, &snapshot));
    EXPECT(snapshot.has_checkpoint == 1 && snapshot.checkpoint_step == 6);
    EXPECT(snapshot.resumed == 0 && snapshot.elapsed_seconds > 0);
    sft_session_free(self.session);
    IS(SFT_OK, sft_config_set_checkpoint(config, NULL, NULL, NULL));
    EXPECT(self.drops == 1);

    sft_session *session = NULL;
    IS(SFT_ERR_CHECKPOINT, sft_resume(config, arguments[1], &session)); /* a model is none */
    IS(SFT_ERR_INVALID_ARGUMENT, sft_resume(config, "", &session));
    IS(SFT_ERR_INVALID_ARGUMENT, sft_resume(config, saved, NULL));
    IS(SFT_OK, sft_config_set_f64(config, "learning_rate", 0.5));
    IS(SFT_ERR_CONFIG, sft_resume(config, saved, &session));
    EXPECT(strstr(sft_config_last_error(config), "resume_allow_changes: [learning_rate]"));
    IS(SFT_OK, sft_config_set_f64(config, "learning_rate", 2e-5));
    IS(SFT_OK, sft_config_set_bool(config, "overwrite_output_dir", 0));
    IS(SFT_ERR_EXISTS, sft_resume(config, saved, &session)); /* those of 4 and 6 are newer */
    EXPECT(strstr(sft_config_last_error(config), "checkpoint-4, checkpoint-6"));
    IS(SFT_OK, sft_config_set_bool(config, "overwrite_output_dir", 1));
    EXPECT(session == NULL);
    IS(SFT_OK, sft_resume(config, saved, &session));
    IS(SFT_OK, sft_snapshot_get(session, &snapshot));
    EXPECT(snapshot.resumed == 1 && snapshot.resumed_step == 3 && snapshot.step == 3);
    for (uint64_t step = 4; step <= 6; step++) {
        sft_step_report report = {.struct_size = sizeof report};
        IS(SFT_OK, sft_step(session, &report));
        EXPECT(report.step == step && report.loss == losses[step]);
    }
    IS(SFT_STOPPED, sft_step(session, NULL));
    sft_session_free(session);
    sft_config_free(config);
}

static int32_t free_the_session(void *user_data, const sft_step_report *report) {
    host *self = user_data;
    (void)report;
    sft_session_free(self->session);
    EXPECT(self->drops == 0); /* it is at work */
    IS(SFT_ERR_INVALID_ARGUMENT, sft_step(self->session, NULL));
    return 0;
}

static void a_session_freed_by_its_callback_ends_its_call_first(void) {
    host self = {0};
    self.config = configured("{\"max_steps\": 100}");
    IS(SFT_OK, sft_config_set_progress(self.config, free_the_session, &self, count_drop));
    self.session = started(self.config);
    sft_config_free(self.config);
    IS(SFT_OK, sft_step(self.session, NULL));
    EXPECT(self.drops == 1);
    IS(SFT_ERR_INVALID_ARGUMENT, sft_step(self.session, NULL));
}

static void a_canceller_works_before_after_and_without_its_run(void) {
    sft_canceller *canceller = sft_canceller_new();
    sft_config *config = configured("{\"max_steps\": 100}");
    IS(SFT_OK, sft_config_set_canceller(config, canceller));
    sft_session *session = started(config);
    /* Freed first: the run goes on and nobody can cancel it any more. */
    sft_canceller_free(canceller);
    sft_canceller_cancel(canceller);
    IS(SFT_OK, sft_step(session, NULL));
    EXPECT(!sft_should_stop(session));
    IS(SFT_ERR_INVALID_ARGUMENT, sft_config_set_canceller(config, canceller));
    sft_session_free(session);

    canceller = sft_canceller_new();
    IS(SFT_OK, sft_config_set_canceller(config, canceller));
    session = started(config);
    sft_canceller_cancel(canceller);
    EXPECT(sft_should_stop(session) && sft_stop_reason(session) == SFT_STOP_CANCELLED);
    IS(SFT_STOPPED, sft_step(session, NULL));
    sft_session_free(session);
    sft_canceller_cancel(canceller);

    /* Already cancelled: nothing is loaded. */
    IS(SFT_ERR_CANCELLED, sft_start(config, &session));
    IS(SFT_OK, sft_config_set_canceller(config, NULL));
    session = started(config);
    sft_session_free(session);
    sft_canceller_free(canceller);
    sft_canceller_free(canceller);
    sft_config_free(config);
}

static sft_canceller *of_signal;

static void on_signal(int number) {
    (void)number;
    sft_canceller_cancel(of_signal);
}

static int32_t raise_signal(void *user_data, const sft_step_report *report) {
    (void)user_data;
    if (report->step == 2) raise(SIGUSR1);
    return 0;
}

static void a_signal_handler_may_cancel(void) {
    of_signal = sft_canceller_new();
    signal(SIGUSR1, on_signal);
    sft_config *config = configured("{\"max_steps\": 100}");
    IS(SFT_OK, sft_config_set_progress(config, raise_signal, NULL, NULL));
    IS(SFT_OK, sft_config_set_canceller(config, of_signal));
    sft_session *session = started(config);
    while (!sft_should_stop(session)) IS(SFT_OK, sft_step(session, NULL));
    sft_snapshot snapshot = {.struct_size = sizeof snapshot};
    IS(SFT_OK, sft_snapshot_get(session, &snapshot));
    EXPECT(snapshot.step == 2 && snapshot.stop_reason == SFT_STOP_CANCELLED);
    signal(SIGUSR1, SIG_DFL);
    sft_session_free(session);
    sft_config_free(config);
    sft_canceller_free(of_signal);
}

static void cancel_from_log(void *user_data, int32_t level, const char *message) {
    (void)level;
    (void)message;
    sft_canceller_cancel(user_data);
}

static void loading_can_be_cancelled(void) {
    sft_canceller *canceller = sft_canceller_new();
    sft_config *config = configured("{\"max_steps\": 1, \"device\": \"cpu\"}");
    char folder[4096];
    snprintf(folder, sizeof folder, "%s-cancelled", arguments[3]);
    IS(SFT_OK, sft_config_set_str(config, "output_dir", folder));
    IS(SFT_OK, sft_config_set_canceller(config, canceller));
    /* The first line is about the rows, before the model is read. */
    IS(SFT_OK, sft_config_set_log(config, cancel_from_log, canceller, NULL));
    sft_session *session = NULL;
    IS(SFT_ERR_CANCELLED, sft_start(config, &session));
    EXPECT(!session && strstr(sft_config_last_error(config), "loading the model"));
    EXPECT(access(folder, F_OK) != 0);
    sft_config_free(config);
    sft_canceller_free(canceller);
}

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int inside, leave;
    sft_session *session;
    sft_status status;
} meeting;

static int32_t wait_inside(void *user_data, const sft_step_report *report) {
    meeting *at = user_data;
    (void)report;
    pthread_mutex_lock(&at->lock);
    at->inside = 1;
    pthread_cond_broadcast(&at->changed);
    while (!at->leave) pthread_cond_wait(&at->changed, &at->lock);
    pthread_mutex_unlock(&at->lock);
    return 0;
}

static void *step_elsewhere(void *user_data) {
    meeting *at = user_data;
    at->status = sft_step(at->session, NULL);
    return NULL;
}

static void a_call_that_overlaps_is_refused_and_looking_is_allowed(void) {
    meeting at = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0, NULL, -1};
    sft_canceller *canceller = sft_canceller_new();
    sft_config *config = configured("{\"max_steps\": 100}");
    IS(SFT_OK, sft_config_set_progress(config, wait_inside, &at, NULL));
    IS(SFT_OK, sft_config_set_canceller(config, canceller));
    at.session = started(config);
    pthread_t thread;
    EXPECT(pthread_create(&thread, NULL, step_elsewhere, &at) == 0);
    pthread_mutex_lock(&at.lock);
    while (!at.inside) pthread_cond_wait(&at.changed, &at.lock);
    pthread_mutex_unlock(&at.lock);

    IS(SFT_ERR_BUSY, sft_step(at.session, NULL));
    IS(SFT_ERR_BUSY, sft_observe(at.session, "mine", 1.0));
    EXPECT(!sft_should_stop(at.session));
    sft_canceller_cancel(canceller);
    EXPECT(sft_should_stop(at.session));
    /* Freed while a call is inside: the handle is gone at once, the memory when the call ends. */
    sft_session *gone = at.session;
    sft_session_free(gone);
    IS(SFT_ERR_INVALID_ARGUMENT, sft_step(gone, NULL));

    pthread_mutex_lock(&at.lock);
    at.leave = 1;
    pthread_cond_broadcast(&at.changed);
    pthread_mutex_unlock(&at.lock);
    pthread_join(thread, NULL);
    IS(SFT_OK, at.status);
    sft_config_free(config);
    sft_canceller_free(canceller);
}

typedef struct {
    int number;
    double losses[3];
} runner;

static void *run_alone(void *user_data) {
    runner *self = user_data;
    sft_config *config = configured("{\"max_steps\": 3}");
    char folder[4096];
    snprintf(folder, sizeof folder, "%s-%d", arguments[3], self->number);
    IS(SFT_OK, sft_config_set_str(config, "output_dir", folder));
    sft_session *session = started(config);
    sft_step_report report = {.struct_size = sizeof report};
    for (int i = 0; i < 3; i++) {
        IS(SFT_OK, sft_step(session, &report));
        self->losses[i] = report.loss;
    }
    sft_session_free(session);
    sft_config_free(config);
    return NULL;
}

static void runs_on_two_threads_do_not_disturb_each_other(void) {
    runner runners[2] = {{.number = 0}, {.number = 1}};
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        EXPECT(pthread_create(&threads[i], NULL, run_alone, &runners[i]) == 0);
    }
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    runner alone = {.number = 2};
    run_alone(&alone);
    for (int i = 0; i < 2; i++) {
        EXPECT(!memcmp(runners[i].losses, alone.losses, sizeof alone.losses));
    }
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    arguments = argv;
    versions_agree();
    errors_name_the_key_and_change_nothing();
    a_file_is_merged_whole_and_its_errors_name_the_line();
    a_copied_error_text_outlives_its_handle();
    a_failed_start_writes_nothing();
    the_plan_adds_up();
    structs_of_another_size_are_met();
    an_ended_run_stays_ended();
    an_update_whose_checkpoint_failed_has_a_report_all_the_same();
    every_evaluation_set_has_its_own_numbers();
    batches_are_checked();
    the_metric_of_the_host_ends_the_run();
    export_refuses_what_it_cannot_do();
    a_callback_sees_busy_handles_and_can_stop_the_run();
    a_run_goes_on_from_what_was_saved();
    a_session_freed_by_its_callback_ends_its_call_first();
    a_canceller_works_before_after_and_without_its_run();
    a_signal_handler_may_cancel();
    loading_can_be_cancelled();
    a_call_that_overlaps_is_refused_and_looking_is_allowed();
    runs_on_two_threads_do_not_disturb_each_other();
    return 0;
}
