/*
 * Trains a model until a target loss is held, then writes the result as a Hugging Face folder.
 *
 *     train MODEL_FOLDER ROWS.jsonl OUTPUT_FOLDER [TARGET_LOSS [MAX_STEPS]]
 *
 * OUTPUT_FOLDER receives the log of the run and, under final/, the trained model.
 */
#include <sft.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What is the same for every run, as the command line's configuration files spell it. */
static const char settings[] =
    "{\"max_length\": 256, \"per_device_train_batch_size\": 4, \"packing\": true,"
    " \"learning_rate\": 0.003, \"lr_scheduler_type\": \"constant\", \"save_strategy\": \"no\"}";

static void print_log(void *user_data, int32_t level, const char *message) {
    (void)user_data;
    fprintf(stderr, "%s%s\n", level == SFT_LOG_WARNING ? "warning: " : "", message);
}

static int failed(const char *doing, sft_status status, const char *why) {
    fprintf(stderr, "%s: %s: %s\n", doing, sft_status_name(status), why);
    return EXIT_FAILURE;
}

static sft_status configure(sft_config *config, char **argv, double target, int64_t max_steps) {
    char stop[128];
    snprintf(stop, sizeof stop, "[{\"rule\": \"target\", \"metric\": \"train_loss\", \"at_most\": %f}]",
             target);
    sft_status status = sft_config_merge_json(config, settings, strlen(settings));
    if (status == SFT_OK) status = sft_config_set_str(config, "model_name_or_path", argv[1]);
    if (status == SFT_OK) status = sft_config_set_str(config, "dataset_name", argv[2]);
    if (status == SFT_OK) status = sft_config_set_str(config, "output_dir", argv[3]);
    if (status == SFT_OK) status = sft_config_set_str(config, "stop", stop);
    if (status == SFT_OK) status = sft_config_set_i64(config, "max_steps", max_steps);
    if (status == SFT_OK) status = sft_config_set_log(config, print_log, NULL, NULL);
    return status;
}

int main(int argc, char **argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: %s MODEL_FOLDER ROWS.jsonl OUTPUT_FOLDER [TARGET_LOSS [MAX_STEPS]]\n",
                argv[0]);
        return 2;
    }
    if (sft_abi_version() != SFT_ABI_VERSION) {
        fprintf(stderr, "libsft %s does not fit this program\n", sft_version());
        return EXIT_FAILURE;
    }
    double target = argc > 4 ? atof(argv[4]) : 1.0;
    int64_t max_steps = argc > 5 ? atoll(argv[5]) : 1000;

    sft_config *config = sft_config_new();
    sft_status status = configure(config, argv, target, max_steps);
    if (status != SFT_OK) {
        int code = failed("configuring", status, sft_config_last_error(config));
        sft_config_free(config);
        return code;
    }

    sft_memory_plan plan = {.struct_size = sizeof plan};
    sft_session *session = NULL;
    status = sft_plan(config, &plan);
    if (status == SFT_OK) {
        printf("memory: %.1f MiB, of it weights %.1f MiB\n", (double)plan.total_bytes / (1 << 20),
               (double)plan.weights_bytes / (1 << 20));
        status = sft_start(config, &session);
    }
    if (status != SFT_OK) {
        int code = failed("starting", status, sft_config_last_error(config));
        sft_config_free(config);
        return code;
    }
    sft_config_free(config); /* the session has its own copy */

    sft_step_report report = {.struct_size = sizeof report};
    while (!sft_should_stop(session)) {
        status = sft_step(session, &report);
        if (status >= 100) break;
        printf("step %" PRIu64 "  loss %.4f  lr %.2e  grad norm %.3f  %.0f tokens/s\n", report.step,
               report.loss, report.learning_rate, report.grad_norm,
               (double)report.tokens / report.seconds);
    }
    if (status >= 100) {
        int code = failed("training", status, sft_last_error(session));
        sft_session_free(session);
        return code;
    }

    char folder[4096];
    snprintf(folder, sizeof folder, "%s/final", argv[3]);
    status = sft_export(session, folder, SFT_EXPORT_FULL);
    if (status != SFT_OK) {
        int code = failed("saving", status, sft_last_error(session));
        sft_session_free(session);
        return code;
    }
    printf("stopped: %s\nmodel: %s\n", sft_stop_reason_name(sft_stop_reason(session)), folder);
    sft_session_free(session);
    return EXIT_SUCCESS;
}
