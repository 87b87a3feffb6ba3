/*
 * Cancels a run from another thread and from Ctrl-C.
 *
 *     cancel MODEL_FOLDER ROWS.jsonl OUTPUT_FOLDER
 *
 * A second thread waits until the progress callback has seen three updates, then cancels. The update
 * that is running is finished; then sft_should_stop is true and the reason is "cancelled".
 */
#include <sft.h>

#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

static sft_canceller *canceller; /* global for the signal handler */

static void on_interrupt(int signal_number) {
    (void)signal_number;
    sft_canceller_cancel(canceller);
}

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint64_t step;
    int ended;
} progress;

/* Called on the thread that trains. */
static int32_t on_progress(void *user_data, const sft_step_report *report) {
    progress *seen = user_data;
    pthread_mutex_lock(&seen->lock);
    seen->step = report->step;
    pthread_cond_signal(&seen->changed);
    pthread_mutex_unlock(&seen->lock);
    printf("step %" PRIu64 "  loss %.4f\n", report->step, report->loss);
    return 0; /* another number would ask to stop, with the reason "callback" */
}

static void *cancel_after_three(void *user_data) {
    progress *seen = user_data;
    pthread_mutex_lock(&seen->lock);
    while (seen->step < 3 && !seen->ended) pthread_cond_wait(&seen->changed, &seen->lock);
    pthread_mutex_unlock(&seen->lock);
    sft_canceller_cancel(canceller);
    return NULL;
}

static void end(progress *seen) {
    pthread_mutex_lock(&seen->lock);
    seen->ended = 1;
    pthread_cond_signal(&seen->changed);
    pthread_mutex_unlock(&seen->lock);
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: %s MODEL_FOLDER ROWS.jsonl OUTPUT_FOLDER\n", argv[0]);
        return 2;
    }
    progress seen = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0};
    canceller = sft_canceller_new();
    signal(SIGINT, on_interrupt);

    sft_config *config = sft_config_new();
    sft_status status = sft_config_set_str(config, "model_name_or_path", argv[1]);
    if (status == SFT_OK) status = sft_config_set_str(config, "dataset_name", argv[2]);
    if (status == SFT_OK) status = sft_config_set_str(config, "output_dir", argv[3]);
    if (status == SFT_OK) status = sft_config_set_str(config, "save_strategy", "no");
    if (status == SFT_OK) status = sft_config_set_i64(config, "max_steps", 1000000);
    if (status == SFT_OK) status = sft_config_set_progress(config, on_progress, &seen, NULL);
    if (status == SFT_OK) status = sft_config_set_canceller(config, canceller);

    /* Loading can be cancelled too, so the other thread may start first. */
    pthread_t thread;
    pthread_create(&thread, NULL, cancel_after_three, &seen);
    sft_session *session = NULL;
    if (status == SFT_OK) status = sft_start(config, &session);
    if (status == SFT_OK) {
        while (status == SFT_OK && !sft_should_stop(session)) status = sft_step(session, NULL);
        if (status != SFT_OK) fprintf(stderr, "%s\n", sft_last_error(session));
        printf("stopped: %s\n", sft_stop_reason_name(sft_stop_reason(session)));
    } else {
        fprintf(stderr, "%s: %s\n", sft_status_name(status), sft_config_last_error(config));
    }

    end(&seen);
    pthread_join(thread, NULL);
    signal(SIGINT, SIG_DFL);
    sft_session_free(session);
    sft_config_free(config);
    sft_canceller_free(canceller);
    return status == SFT_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}
