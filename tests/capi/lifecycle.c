/* Makes and frees all handles again and again, and looks at the memory of the process. */
#include <sft.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int drops;

static void count_drop(void *user_data) {
    (void)user_data;
    drops++;
}

static int32_t on_progress(void *user_data, const sft_step_report *report) {
    (void)user_data;
    (void)report;
    return 0;
}

static void on_log(void *user_data, int32_t level, const char *message) {
    (void)user_data;
    (void)level;
    (void)message;
}

static sft_config *config;
static sft_session *session;

static void must(sft_status status) {
    if (status == SFT_OK) return;
    fprintf(stderr, "%s: %s, %s\n", sft_status_name(status), sft_config_last_error(config),
            sft_last_error(session));
    exit(1);
}

static void life(char **argv) {
    sft_canceller *canceller = sft_canceller_new();
    config = sft_config_new();
    must(sft_config_set_str(config, "model_name_or_path", argv[1]));
    must(sft_config_set_str(config, "dataset_name", argv[2]));
    must(sft_config_set_str(config, "output_dir", argv[3]));
    must(sft_config_set_str(config, "save_strategy", "no"));
    must(sft_config_set_i64(config, "max_length", 256));
    must(sft_config_set_i64(config, "per_device_train_batch_size", 1));
    must(sft_config_set_bool(config, "overwrite_output_dir", 1));
    must(sft_config_set_canceller(config, canceller));
    must(sft_config_set_progress(config, on_progress, NULL, count_drop));
    must(sft_config_set_log(config, on_log, NULL, count_drop));
    char *json = NULL;
    must(sft_config_to_json(config, &json));
    sft_string_free(json);
    must(sft_start(config, &session));
    must(sft_step(session, NULL));
    if (sft_evaluate(session, NULL) != SFT_ERR_DATA) exit(1); /* an error text has to go too */
    sft_config_free(config);
    sft_canceller_free(canceller);
    sft_session_free(session);
}

/* Resident memory in KiB. */
static long resident(void) {
    long pages = 0, ignored = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file || fscanf(file, "%ld %ld", &ignored, &pages) != 2) exit(1);
    fclose(file);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

int main(int argc, char **argv) {
    if (argc != 6) return 2;
    int lives = atoi(argv[4]);
    long allowed = atol(argv[5]);
    for (int i = 0; i < lives / 4; i++) life(argv);
    long before = resident();
    for (int i = lives / 4; i < lives; i++) life(argv);
    long growth = resident() - before;
    printf("grown by %ld KiB\n", growth);
    if (drops != 2 * lives) {
        fprintf(stderr, "%d drops in %d lives\n", drops, lives);
        return 1;
    }
    if (growth > allowed) {
        fprintf(stderr, "grown by %ld KiB\n", growth);
        return 1;
    }
    return 0;
}
