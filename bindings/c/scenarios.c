/*
 * The scenarios of bindings/scenarios.md, in plain C: prints the table that every language prints.
 *
 *     scenarios           in a folder that bindings/scenarios/prepare made
 *     scenarios resume    the second process of the scenario resume
 */
#define _POSIX_C_SOURCE 200809L
#include <sft.h>

#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- What the scenarios share ---- */

static void fail(const char *what, const char *text) {
    fflush(stdout);
    fprintf(stderr, "%s: %s\n", what, text);
    exit(1);
}

/* A call that must succeed; the text of what failed is on one of the two handles. */
static void must(sft_status status, const sft_config *config, const sft_session *session) {
    if (status == SFT_OK) return;
    fail(sft_status_name(status), session ? sft_last_error(session) : sft_config_last_error(config));
}

/* A whole file with a NUL behind it; *size without that. */
static char *contents(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) fail("cannot read", path);
    long length = ftell(file);
    rewind(file);
    char *text = malloc((size_t)length + 1);
    if (!text || fread(text, 1, (size_t)length, file) != (size_t)length) fail("cannot read", path);
    fclose(file);
    text[length] = 0;
    *size = (size_t)length;
    return text;
}

static void merge_file(sft_config *config, const char *name) {
    char path[256];
    snprintf(path, sizeof path, "%s.json", name);
    must(sft_config_merge_file(config, path), config, NULL);
}

static sft_config *configured(const char *name) {
    sft_config *config = sft_config_new();
    merge_file(config, "base");
    merge_file(config, name);
    return config;
}

static sft_session *started(sft_config *config) {
    sft_session *session = NULL;
    must(sft_start(config, &session), config, NULL);
    return session;
}

static sft_step_report stepped(sft_session *session) {
    sft_step_report report = {.struct_size = sizeof report};
    must(sft_step(session, &report), NULL, session);
    return report;
}

static sft_snapshot snapshot_of(sft_session *session) {
    sft_snapshot snapshot = {.struct_size = sizeof snapshot};
    must(sft_snapshot_get(session, &snapshot), NULL, session);
    return snapshot;
}

static const char *reason_of(const sft_session *session) {
    return sft_stop_reason_name(sft_stop_reason(session));
}

static const char *yes(int truth) { return truth ? "yes" : "NO"; }

static uint64_t bits(double value) {
    uint64_t number;
    memcpy(&number, &value, sizeof number);
    return number;
}

/* FNV-1a of the weights in a model folder. */
static uint64_t weights_in(const char *folder) {
    char path[256];
    size_t size;
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    char *file = contents(path, &size);
    uint64_t hash = UINT64_C(14695981039346656037);
    for (size_t i = 0; i < size; i++) hash = (hash ^ (unsigned char)file[i]) * UINT64_C(1099511628211);
    free(file);
    return hash;
}

static uint64_t exported(sft_session *session, const char *folder) {
    must(sft_export(session, folder, SFT_EXPORT_FULL), NULL, session);
    return weights_in(folder);
}

/* ---- Batches ---- */

enum { MAX_NUMBERS = 64, MAX_BATCHES = 8 };

typedef struct {
    int32_t tokens[MAX_NUMBERS], labels[MAX_NUMBERS], starts[MAX_NUMBERS];
} numbers;

static size_t parse(const char *text, int32_t *into) {
    size_t n = 0;
    if (*text == '-' && text[1] == 0) return 0;
    for (char *end; n < MAX_NUMBERS; text = end) {
        into[n] = (int32_t)strtol(text, &end, 10);
        if (end == text) break;
        n++;
    }
    return n;
}

/* The batches of batches.tsv whose first column is `where`. */
static size_t batches_for(const char *where, numbers *own, sft_batch *out) {
    size_t size, n = 0;
    char *text = contents("batches.tsv", &size), *rest = text, *line;
    while ((line = strtok_r(rest, "\n", &rest)) && n < MAX_BATCHES) {
        char *column = line, *name = strtok_r(column, "\t", &column);
        if (strcmp(name, where)) continue;
        numbers *at = &own[n];
        sft_batch batch = {.struct_size = sizeof batch, .tokens = at->tokens};
        batch.n_tokens = parse(strtok_r(column, "\t", &column), at->tokens);
        batch.labels = parse(strtok_r(column, "\t", &column), at->labels) ? at->labels : NULL;
        batch.n_seqs = parse(strtok_r(column, "\t", &column), at->starts);
        batch.seq_starts = batch.n_seqs ? at->starts : NULL;
        out[n++] = batch;
    }
    free(text);
    return n;
}

/* ---- The scenarios ---- */

#define NAMED(number) {number, #number}

static const struct {
    int32_t number;
    const char *name;
} statuses[] = {
    NAMED(SFT_OK), NAMED(SFT_STOPPED), NAMED(SFT_ERR_INVALID_ARGUMENT), NAMED(SFT_ERR_BUSY),
    NAMED(SFT_ERR_POISONED), NAMED(SFT_ERR_CONFIG), NAMED(SFT_ERR_UNKNOWN_KEY),
    NAMED(SFT_ERR_UNSUPPORTED), NAMED(SFT_ERR_MODEL), NAMED(SFT_ERR_UNSUPPORTED_MODEL),
    NAMED(SFT_ERR_TENSOR), NAMED(SFT_ERR_TOKENIZER), NAMED(SFT_ERR_TEMPLATE), NAMED(SFT_ERR_DATA),
    NAMED(SFT_ERR_BATCH), NAMED(SFT_ERR_IO), NAMED(SFT_ERR_EXISTS), NAMED(SFT_ERR_CHECKPOINT),
    NAMED(SFT_ERR_DEVICE), NAMED(SFT_ERR_OUT_OF_MEMORY), NAMED(SFT_ERR_CANCELLED),
    NAMED(SFT_ERR_PANIC), NAMED(SFT_ERR_INTERNAL),
}, reasons[] = {
    {SFT_STOP_NONE, "none"}, {SFT_STOP_TARGET_REACHED, "target_reached"},
    {SFT_STOP_PLATEAU, "plateau"}, {SFT_STOP_NON_FINITE, "non_finite"},
    {SFT_STOP_DIVERGED, "diverged"}, {SFT_STOP_OVERFIT, "overfit"},
    {SFT_STOP_MAX_STEPS, "max_steps"}, {SFT_STOP_MAX_EPOCHS, "max_epochs"},
    {SFT_STOP_MAX_TOKENS, "max_tokens"}, {SFT_STOP_MAX_TIME, "max_time"},
    {SFT_STOP_CANCELLED, "cancelled"}, {SFT_STOP_CALLBACK, "callback"},
};

static void library(void) {
    size_t n_statuses = 0, n_reasons = 0;
    for (size_t i = 0; i < sizeof statuses / sizeof *statuses; i++) {
        n_statuses += !strcmp(sft_status_name(statuses[i].number), statuses[i].name);
    }
    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++) {
        n_reasons += !strcmp(sft_stop_reason_name(reasons[i].number), reasons[i].name);
    }
    printf("library abi=%s version=%s build=%s statuses=%zu reasons=%zu\n",
           yes(sft_abi_version() == SFT_ABI_VERSION), yes(!strcmp(sft_version(), SFT_VERSION)),
           yes(strstr(sft_build_info(), "\"devices\"") != NULL), n_statuses, n_reasons);
}

static void config_keys(void) {
    sft_config *config = configured("target"), *copy = sft_config_new(), *of_file = configured("target");
    must(sft_config_set_i64(config, "max_steps", 5), config, NULL);
    must(sft_config_set_f64(config, "learning_rate", 0.25), config, NULL);
    must(sft_config_set_bool(config, "packing", 1), config, NULL);
    must(sft_config_set_str(config, "seed", "9"), config, NULL);
    must(sft_config_merge_file(of_file, "file.yaml"), of_file, NULL);
    char *json = NULL, *again = NULL, *filed = NULL;
    must(sft_config_to_json(config, &json), config, NULL);
    must(sft_config_merge_json(copy, json, strlen(json)), copy, NULL);
    must(sft_config_to_json(copy, &again), copy, NULL);
    must(sft_config_to_json(of_file, &filed), of_file, NULL);
    int set = strstr(json, "\"max_steps\": 5") && strstr(json, "\"learning_rate\": 0.25")
        && strstr(json, "\"packing\": true") && strstr(json, "\"seed\": 9");
    printf("config set=%s round_trip=%s file=%s\n", yes(set), yes(!strcmp(json, again)),
           yes(!strcmp(json, filed)));
    sft_string_free(json);
    sft_string_free(again);
    sft_string_free(filed);
    sft_config_free(of_file);
    sft_config_free(copy);
    sft_config_free(config);
}

static void plan(void) {
    sft_config *config = configured("target");
    sft_memory_plan plan = {.struct_size = sizeof plan};
    must(sft_plan(config, &plan), config, NULL);
    char *json = NULL, total[64];
    must(sft_plan_json(config, &json), config, NULL);
    snprintf(total, sizeof total, "\"total_bytes\":%" PRIu64, plan.total_bytes);
    printf("plan weights=%" PRIu64 " gradients=%" PRIu64 " optimizer=%" PRIu64
           " bounded=%s json=%s ~total=%" PRIu64 "\n",
           plan.weights_bytes, plan.gradients_bytes, plan.optimizer_bytes,
           yes(plan.lower_bound_bytes <= plan.total_bytes), yes(strstr(json, total) != NULL),
           plan.total_bytes);
    sft_string_free(json);
    sft_config_free(config);
}

static void target(void) {
    sft_config *config = configured("target");
    sft_session *session = started(config);
    sft_step_report report = {.struct_size = sizeof report};
    while (!sft_should_stop(session)) report = stepped(session);
    sft_status after = sft_step(session, NULL);
    printf("target stop=%s steps=%" PRIu64 " snapshot=%" PRIu64 " after=%s", reason_of(session),
           report.step, snapshot_of(session).step, sft_status_name(after));
    printf(" ~loss=%016" PRIx64 " ~weights=%016" PRIx64 "\n", bits(report.loss),
           exported(session, "out/target/model"));
    sft_session_free(session);
    sft_config_free(config);
}

static void plateau(void) {
    sft_config *config = configured("plateau");
    sft_session *session = started(config);
    uint64_t evaluations = 0, best_step = 0, steps = 0;
    double best = INFINITY;
    while (!sft_should_stop(session)) {
        sft_step_report report = stepped(session);
        steps = report.step;
        if (!report.has_eval) continue;
        evaluations++;
        sft_eval_report some = {.struct_size = sizeof some};
        must(sft_eval_set(session, "some", &some), NULL, session);
        if (some.loss < best) best = some.loss, best_step = report.step;
    }
    sft_snapshot snapshot = snapshot_of(session);
    sft_eval_report all = {.struct_size = sizeof all}, some = all, more = all;
    must(sft_evaluate(session, &all), NULL, session);
    must(sft_eval_set(session, "some", &some), NULL, session);
    must(sft_eval_set(session, "more", &more), NULL, session);
    int seen = snapshot.has_best && snapshot.best_step == best_step
        && bits(snapshot.best_value) == bits(best);
    int sets = some.supervised_tokens + more.supervised_tokens == all.supervised_tokens;
    printf("plateau stop=%s steps=%" PRIu64 " evaluations=%" PRIu64 " best_step=%" PRIu64
           " patience_used=%" PRIu64 " best_seen=%s restored=%s best_is_back=%s sets=%s",
           reason_of(session), steps, evaluations, snapshot.best_step, snapshot.patience_used,
           yes(seen), yes(snapshot.restored_best == 1), yes(bits(some.loss) == bits(best)), yes(sets));
    printf(" ~best=%016" PRIx64 " ~weights=%016" PRIx64 "\n", bits(best),
           exported(session, "out/plateau/model"));
    sft_session_free(session);
    sft_config_free(config);
}

static void batches(void) {
    sft_config *config = configured("batches");
    sft_session *session = started(config);
    numbers own[MAX_BATCHES];
    sft_batch micro[MAX_BATCHES];
    sft_step_report report = {.struct_size = sizeof report};
    uint64_t supervised = 0;
    for (int update = 1; !sft_should_stop(session); update++) {
        char where[16];
        snprintf(where, sizeof where, "%d", update);
        size_t n = batches_for(where, own, micro);
        must(sft_step_batch(session, micro, n, &report), NULL, session);
        supervised += report.supervised_tokens;
    }
    sft_eval_report eval = {.struct_size = sizeof eval};
    must(sft_evaluate_batch(session, micro, batches_for("eval", own, micro), &eval), NULL, session);
    printf("batches stop=%s steps=%" PRIu64 " tokens=%" PRIu64 " supervised=%" PRIu64
           " eval_tokens=%" PRIu64 " eval_supervised=%" PRIu64,
           reason_of(session), report.step, report.total_tokens, supervised, eval.tokens,
           eval.supervised_tokens);
    printf(" ~loss=%016" PRIx64 " ~eval_loss=%016" PRIx64 " ~weights=%016" PRIx64 "\n",
           bits(report.loss), bits(eval.loss), exported(session, "out/batches/model"));
    sft_session_free(session);
    sft_config_free(config);
}

static void observe(void) {
    const double scores[] = {0.5, 0.95, 0.2, NAN, 0.91, 0.97, 0.1, 0.1};
    sft_config *config = configured("observe");
    sft_session *session = started(config);
    uint64_t steps = 0;
    while (!sft_should_stop(session) && steps < 8) {
        steps = stepped(session).step;
        must(sft_observe(session, "score", scores[steps - 1]), NULL, session);
    }
    printf("observe stop=%s steps=%" PRIu64 "\n", reason_of(session), steps);
    sft_session_free(session);
    sft_config_free(config);
}

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint64_t steps;
    sft_canceller *canceller;
} cancelling;

static int32_t tell_the_other_thread(void *user_data, const sft_step_report *report) {
    cancelling *at = user_data;
    pthread_mutex_lock(&at->lock);
    at->steps = report->step;
    pthread_cond_signal(&at->changed);
    pthread_mutex_unlock(&at->lock);
    return 0;
}

static void *cancel_after_three(void *user_data) {
    cancelling *at = user_data;
    pthread_mutex_lock(&at->lock);
    while (at->steps < 3) pthread_cond_wait(&at->changed, &at->lock);
    pthread_mutex_unlock(&at->lock);
    sft_canceller_cancel(at->canceller);
    return NULL;
}

static void cancel(void) {
    cancelling at = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, sft_canceller_new()};
    sft_config *config = configured("cancel");
    must(sft_config_set_canceller(config, at.canceller), config, NULL);
    must(sft_config_set_progress(config, tell_the_other_thread, &at, NULL), config, NULL);
    sft_session *session = started(config), *second = NULL;
    pthread_t thread;
    if (pthread_create(&thread, NULL, cancel_after_three, &at)) fail("cancel", "no thread");
    while (!sft_should_stop(session)) {
        sft_status status = sft_step(session, NULL);
        if (status != SFT_OK && status != SFT_STOPPED) must(status, NULL, session);
    }
    pthread_join(thread, NULL);
    sft_status after = sft_step(session, NULL);
    sft_status again = sft_start(config, &second);
    printf("cancel stop=%s enough=%s after=%s start=%s\n", reason_of(session),
           yes(snapshot_of(session).step >= 3), sft_status_name(after), sft_status_name(again));
    sft_session_free(session);
    sft_config_free(config);
    sft_canceller_free(at.canceller);
}

typedef struct {
    uint64_t calls;
    double loss;
    int logs, drops;
} host;

static int32_t stop_at_four(void *user_data, const sft_step_report *report) {
    host *self = user_data;
    self->calls++;
    self->loss = report->loss;
    return report->step == 4;
}

static void count_log(void *user_data, int32_t level, const char *message) {
    if ((level == SFT_LOG_INFO || level == SFT_LOG_WARNING) && *message) ((host *)user_data)->logs++;
}

static void count_drop(void *user_data) { ((host *)user_data)->drops++; }

static void progress(void) {
    host self = {0};
    sft_config *config = configured("progress");
    must(sft_config_set_progress(config, stop_at_four, &self, count_drop), config, NULL);
    must(sft_config_set_log(config, count_log, &self, count_drop), config, NULL);
    sft_session *session = started(config);
    sft_step_report report = {.struct_size = sizeof report};
    while (!sft_should_stop(session)) report = stepped(session);
    printf("progress stop=%s steps=%" PRIu64 " calls=%" PRIu64 " same=%s logged=%s",
           reason_of(session), report.step, self.calls, yes(bits(self.loss) == bits(report.loss)),
           yes(self.logs > 0));
    sft_config_free(config);
    int held = self.drops == 0;
    sft_session_free(session);
    printf(" dropped=%s ~loss=%016" PRIx64 "\n", yes(held && self.drops == 2), bits(report.loss));
}

/* C has nothing to raise: the callback notes that it failed and asks to stop. */
static int32_t fail_at_three(void *failed, const sft_step_report *report) {
    return *(int *)failed = report->step == 3;
}

static void failure(void) {
    int failed = 0;
    sft_config *config = configured("progress");
    must(sft_config_set_progress(config, fail_at_three, &failed, NULL), config, NULL);
    sft_session *session = started(config);
    while (!sft_should_stop(session)) stepped(session);
    sft_step_report last = {.struct_size = sizeof last};
    must(sft_last_report(session, &last), NULL, session);
    printf("failure came_out=%s stop=%s last=%" PRIu64 " after=%s\n", yes(failed), reason_of(session),
           last.step, sft_status_name(sft_step(session, NULL)));
    sft_session_free(session);
    sft_config_free(config);
}

static char told[64];

static void tell_checkpoint(void *user_data, const sft_checkpoint_report *report) {
    char expected[64];
    (void)user_data;
    size_t used = strlen(told);
    snprintf(expected, sizeof expected, "checkpoint-%" PRIu64, report->step);
    snprintf(told + used, sizeof told - used, "%s%" PRIu64, used ? "," : "", report->step);
    if (!strstr(report->folder, expected)) strcpy(told, "elsewhere");
}

static void checkpoints(void) {
    sft_config *config = configured("checkpoints");
    must(sft_config_set_checkpoint(config, tell_checkpoint, NULL, NULL), config, NULL);
    sft_session *session = started(config);
    while (!sft_should_stop(session)) stepped(session);
    sft_snapshot first = snapshot_of(session);
    sft_session_free(session);
    must(sft_config_set_i64(config, "max_steps", 8), config, NULL);
    must(sft_resume(config, "out/checkpoints/checkpoint-6", &session), config, NULL);
    while (!sft_should_stop(session)) stepped(session);
    sft_snapshot second = snapshot_of(session);
    printf("checkpoints told=%s newest=%" PRIu64 " resumed=%d resumed_step=%" PRIu64
           " steps=%" PRIu64 " stop=%s\n",
           told, first.checkpoint_step, second.resumed, second.resumed_step, second.step,
           reason_of(session));
    sft_session_free(session);
    sft_config_free(config);
}

/* Steps to the end and writes "RESUMED STEPS REASON LOSS… EVAL_LOSS WEIGHTS", from update 4 on. */
static void line_to_the_end(sft_session *session, const char *folder, char *line, size_t size) {
    char losses[256] = "";
    sft_step_report report = {.struct_size = sizeof report};
    while (!sft_should_stop(session)) {
        report = stepped(session);
        size_t used = strlen(losses);
        if (report.step > 3) {
            snprintf(losses + used, sizeof losses - used, " %016" PRIx64, bits(report.loss));
        }
    }
    snprintf(line, size, "%" PRIu64 " %s%s %016" PRIx64 " %016" PRIx64, report.step,
             reason_of(session), losses, bits(report.eval_loss), exported(session, folder));
}

static void resume_child(void) {
    sft_config *config = configured("resume");
    sft_session *session = NULL;
    must(sft_resume(config, "out/resume-saved", &session), config, NULL);
    sft_snapshot snapshot = snapshot_of(session);
    char line[512];
    line_to_the_end(session, "out/resume-child", line, sizeof line);
    printf("%d %" PRIu64 " %s\n", snapshot.resumed, snapshot.resumed_step, line);
    sft_session_free(session);
    sft_config_free(config);
}

static void resume(const char *program) {
    sft_config *config = configured("resume");
    sft_session *session = started(config);
    char whole[512], expected[600], said[600] = "", command[512];
    line_to_the_end(session, "out/resume-whole", whole, sizeof whole);
    sft_session_free(session);
    snprintf(expected, sizeof expected, "1 3 %s\n", whole);

    session = started(config);
    for (int i = 0; i < 3; i++) stepped(session);
    must(sft_save(session, "out/resume-saved"), NULL, session);
    sft_session_free(session);
    sft_config_free(config);

    fflush(stdout);
    snprintf(command, sizeof command, "'%s' resume", program);
    FILE *child = popen(command, "r");
    if (!child || !fgets(said, sizeof said, child)) fail("resume", "the second process said nothing");
    int status = pclose(child);
    const char *steps = whole, *reason = strchr(whole, ' ') + 1;
    printf("resume stop=%.*s steps=%.*s child=%d same=%s ~numbers=%s\n", (int)strcspn(reason, " "), reason,
           (int)strcspn(steps, " "), steps, status, yes(!strcmp(said, expected)),
           strrchr(whole, ' ') + 1);
}

static sft_session *at_work;
static sft_status inner;

static int32_t call_in(void *user_data, const sft_step_report *report) {
    (void)user_data;
    (void)report;
    inner = sft_step(at_work, NULL);
    return 0;
}

/* Does what a line of errors.tsv asks for; *text is what the library says to it. */
static sft_status provoke(const char *how, const char *json_or_path, char *text, size_t size) {
    int file = !strcmp(how, "file"), merge_only = file || !strcmp(how, "merge");
    sft_config *config = merge_only ? sft_config_new() : configured("errors");
    sft_canceller *canceller = sft_canceller_new();
    sft_session *session = NULL;
    sft_status status = file ? sft_config_merge_file(config, json_or_path)
                             : sft_config_merge_json(config, json_or_path, strlen(json_or_path));
    if (!merge_only) {
        must(status, config, NULL);
        if (!strcmp(how, "busy")) must(sft_config_set_progress(config, call_in, NULL, NULL), config, NULL);
        if (!strcmp(how, "cancelled")) {
            must(sft_config_set_canceller(config, canceller), config, NULL);
            sft_canceller_cancel(canceller);
        }
        status = strcmp(how, "resume") ? sft_start(config, &session)
                                       : sft_resume(config, "model", &session);
    }
    if (!session) {
        snprintf(text, size, "%s", sft_config_last_error(config));
    } else {
        at_work = session;
        if (!strcmp(how, "step")) status = sft_step(session, NULL);
        if (!strcmp(how, "export")) status = sft_export(session, "/proc/no/such", SFT_EXPORT_FULL);
        if (!strcmp(how, "batch")) {
            const int32_t tokens[] = {1, 1000000, 2};
            sft_batch batch = {.struct_size = sizeof batch, .tokens = tokens, .n_tokens = 3};
            status = sft_step_batch(session, &batch, 1, NULL);
        }
        if (!strcmp(how, "busy")) must(sft_step(session, NULL), NULL, session), status = inner;
        snprintf(text, size, "%s", sft_last_error(session));
    }
    sft_session_free(session);
    sft_canceller_free(canceller);
    sft_config_free(config);
    return status;
}

static void errors(void) {
    size_t size;
    char *file = contents("errors.tsv", &size), *rest = file, *line;
    while ((line = strtok_r(rest, "\n", &rest))) {
        char *columns[4] = {line}, text[1024];
        for (int i = 1; i < 4; i++) {
            columns[i] = strchr(columns[i - 1], '\t');
            if (!columns[i]) fail("errors.tsv", columns[0]);
            *columns[i]++ = 0;
        }
        sft_status status = provoke(columns[1], columns[2], text, sizeof text);
        const char *name = sft_status_name(status);
        int said = strstr(text, columns[3]) != NULL;
        printf("error %s got=%s text=%s\n", columns[0], name, yes(said));
        if (!said) fprintf(stderr, "no '%s' in: %s\n", columns[3], text);
    }
    free(file);
}

typedef struct {
    const char *name;
    uint64_t bits[12];
} runner;

static void *run_alone(void *user_data) {
    runner *self = user_data;
    sft_config *config = configured(self->name);
    sft_session *session = started(config);
    for (int i = 0; i < 12; i++) self->bits[i] = bits(stepped(session).loss);
    sft_session_free(session);
    sft_config_free(config);
    return NULL;
}

static void two(void) {
    runner together[2] = {{.name = "one"}, {.name = "other"}}, alone[2] = {{.name = "one"}, {.name = "other"}};
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        if (pthread_create(&threads[i], NULL, run_alone, &together[i])) fail("two", "no thread");
    }
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < 2; i++) run_alone(&alone[i]);
    int same = 1;
    for (int i = 0; i < 2; i++) same = same && !memcmp(together[i].bits, alone[i].bits, sizeof alone[i].bits);
    printf("two same=%s different=%s ~one=%016" PRIx64 " ~other=%016" PRIx64 "\n", yes(same),
           yes(alone[0].bits[11] != alone[1].bits[11]), alone[0].bits[11], alone[1].bits[11]);
}

static void freed(void) {
    sft_canceller *canceller = sft_canceller_new();
    sft_config *config = configured("freed");
    must(sft_config_set_canceller(config, canceller), config, NULL);
    sft_session *session = started(config);
    sft_config_free(config);
    sft_canceller_free(canceller);
    sft_canceller_cancel(canceller);
    int outlives = stepped(session).step == 1;
    sft_session_free(session);
    sft_status step = sft_step(session, NULL), set = sft_config_set_i64(config, "max_steps", 1);
    sft_session_free(session);
    sft_config_free(config);
    sft_canceller_free(canceller);
    printf("freed outlives=%s session=%s should_stop=%s config=%s twice=ok\n", yes(outlives),
           sft_status_name(step), yes(sft_should_stop(session)), sft_status_name(set));
}

/* Resident memory in KiB. */
static long resident(void) {
    long pages = 0, ignored = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file || fscanf(file, "%ld %ld", &ignored, &pages) != 2) fail("memory", "no /proc/self/statm");
    fclose(file);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

static void memory(void) {
    host self = {0};
    long before = 0;
    for (int i = 0; i < 1000; i++) {
        if (i == 250) before = resident();
        sft_canceller *canceller = sft_canceller_new();
        sft_config *config = configured("memory");
        must(sft_config_set_canceller(config, canceller), config, NULL);
        must(sft_config_set_progress(config, stop_at_four, &self, count_drop), config, NULL);
        must(sft_config_set_log(config, count_log, &self, count_drop), config, NULL);
        sft_session *session = started(config);
        stepped(session);
        sft_session_free(session);
        sft_config_free(config);
        sft_canceller_free(canceller);
    }
    long grown = resident() - before;
    printf("memory cycles=1000 drops=%d within_8_MiB=%s\n", self.drops, yes(grown <= 8192));
    fprintf(stderr, "memory: grown by %ld KiB\n", grown);
}

int main(int argc, char **argv) {
    if (argc == 2 && !strcmp(argv[1], "resume")) {
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
    return 0;
}
