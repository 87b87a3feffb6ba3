/*
 * Feeds tokens that the host makes itself, and lets the stop rules watch the host's own metric.
 *
 *     feed_tokens MODEL_FOLDER OUTPUT_FOLDER
 *
 * The task is to count: a sequence is a start token and the seven that follow it. Two sequences are
 * packed into a micro-batch, two micro-batches are one update. After each fifth update the host
 * measures the accuracy on sequences of its own and reports it as "count_accuracy"; the run stops
 * when that has reached 0.9 twice in a row.
 */
#include <sft.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LENGTH = 8, SEQUENCES = 2, MICRO_BATCHES = 2, FIRST_TOKEN = 100, RANGE = 12 };

static const char settings[] =
    "{\"max_length\": 8, \"per_device_train_batch_size\": 2, \"max_steps\": 500,"
    " \"learning_rate\": 0.01, \"lr_scheduler_type\": \"constant\", \"save_strategy\": \"no\","
    " \"stop\": [{\"rule\": \"target\", \"metric\": \"count_accuracy\", \"at_least\": 0.9,"
    " \"patience\": 2}]}";

/* The memory of one micro-batch; a batch only points to it. */
typedef struct {
    int32_t tokens[SEQUENCES * LENGTH];
    int32_t labels[SEQUENCES * LENGTH];
    int32_t seq_starts[SEQUENCES];
} micro_batch;

static void fill(micro_batch *micro, unsigned *seed) {
    for (int s = 0; s < SEQUENCES; s++) {
        *seed = *seed * 1103515245u + 12345u;
        int32_t start = FIRST_TOKEN + (int32_t)((*seed >> 16) % RANGE);
        micro->seq_starts[s] = s * LENGTH;
        for (int i = 0; i < LENGTH; i++) {
            int32_t token = FIRST_TOKEN + (start - FIRST_TOKEN + i) % RANGE;
            micro->tokens[s * LENGTH + i] = token;
            micro->labels[s * LENGTH + i] = i < 2 ? -100 : token; /* the first two are the prompt */
        }
    }
}

static sft_batch as_batch(const micro_batch *micro) {
    sft_batch batch = {
        .struct_size = sizeof batch,
        .tokens = micro->tokens,
        .labels = micro->labels,
        .seq_starts = micro->seq_starts,
        .n_tokens = SEQUENCES * LENGTH,
        .n_seqs = SEQUENCES,
    };
    return batch;
}

/* Here a metric that the engine could compute too; a host would call its own scorer. */
static sft_status measure(sft_session *session, double *accuracy) {
    micro_batch held_out;
    unsigned seed = 99;
    fill(&held_out, &seed);
    sft_batch batch = as_batch(&held_out);
    sft_eval_report report = {.struct_size = sizeof report};
    sft_status status = sft_evaluate_batch(session, &batch, 1, &report);
    *accuracy = report.token_accuracy;
    return status;
}

static sft_status train(sft_session *session) {
    unsigned seed = 1;
    sft_step_report report = {.struct_size = sizeof report};
    while (!sft_should_stop(session)) {
        micro_batch memory[MICRO_BATCHES];
        sft_batch micro[MICRO_BATCHES];
        for (int m = 0; m < MICRO_BATCHES; m++) {
            fill(&memory[m], &seed);
            micro[m] = as_batch(&memory[m]);
        }
        sft_status status = sft_step_batch(session, micro, MICRO_BATCHES, &report);
        if (status != SFT_OK) return status;
        if (report.step % 5 != 0) continue;

        double accuracy = 0;
        status = measure(session, &accuracy);
        if (status == SFT_OK) status = sft_observe(session, "count_accuracy", accuracy);
        if (status != SFT_OK) return status;
        printf("step %" PRIu64 "  loss %.4f  over %" PRIu64 " tokens  accuracy %.2f\n", report.step,
               report.loss, report.supervised_tokens, accuracy);
    }
    return SFT_OK;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: %s MODEL_FOLDER OUTPUT_FOLDER\n", argv[0]);
        return 2;
    }
    sft_config *config = sft_config_new();
    sft_session *session = NULL;
    sft_status status = sft_config_merge_json(config, settings, strlen(settings));
    if (status == SFT_OK) status = sft_config_set_str(config, "model_name_or_path", argv[1]);
    if (status == SFT_OK) status = sft_config_set_str(config, "output_dir", argv[2]);
    if (status == SFT_OK) status = sft_start(config, &session);
    if (status != SFT_OK) {
        fprintf(stderr, "%s: %s\n", sft_status_name(status), sft_config_last_error(config));
        sft_config_free(config);
        return EXIT_FAILURE;
    }
    status = train(session);
    if (status != SFT_OK) {
        fprintf(stderr, "%s: %s\n", sft_status_name(status), sft_last_error(session));
    } else {
        printf("stopped: %s\n", sft_stop_reason_name(sft_stop_reason(session)));
    }
    sft_session_free(session);
    sft_config_free(config);
    return status == SFT_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}
