#include "bridge.h"
#include "_cgo_export.h"

#include <stdlib.h>
#include <string.h>

static int live_slots;

sft_go_slot *sft_go_slot_new(void) {
    sft_go_slot *slot = calloc(1, sizeof *slot);
    if (!slot) return NULL;
    slot->references = 1;
    __atomic_add_fetch(&live_slots, 1, __ATOMIC_RELAXED);
    return slot;
}

void sft_go_slot_retain(sft_go_slot *slot) { __atomic_add_fetch(&slot->references, 1, __ATOMIC_RELAXED); }

void sft_go_slot_release(void *data) {
    sft_go_slot *slot = data;
    if (__atomic_sub_fetch(&slot->references, 1, __ATOMIC_ACQ_REL) > 0) return;
    free(slot);
    __atomic_sub_fetch(&live_slots, 1, __ATOMIC_RELAXED);
}

int sft_go_live_slots(void) { return __atomic_load_n(&live_slots, __ATOMIC_RELAXED); }

/* ---- Callbacks: no call is noted while a finalizer frees a session, and then Go is not called ---- */

static int32_t progress(void *data, const sft_step_report *report) {
    sft_go_slot *slot = data;
    if (!slot->call) return 0;
    /* An older library's report is shorter than the header's. */
    sft_step_report own = {0};
    memcpy(&own, report, report->struct_size < sizeof own ? report->struct_size : sizeof own);
    return sftGoProgress(slot->call, &own);
}

static void checkpoint(void *data, const sft_checkpoint_report *report) {
    sft_go_slot *slot = data;
    if (slot->call) sftGoCheckpoint(slot->call, report->step, (char *)report->folder);
}

static void log_line(void *data, int32_t level, const char *message) {
    sft_go_slot *slot = data;
    if (slot->call) sftGoLog(slot->call, level, (char *)message);
}

/* A reference for a callback that was taken over, none for one that was refused. */
#define ATTACH(set, function)                                               \
    do {                                                                    \
        sft_go_slot_retain(slot);                                           \
        sft_status status = set(config, function, slot, sft_go_slot_release); \
        if (status != SFT_OK) {                                             \
            sft_go_slot_release(slot);                                      \
            return status;                                                  \
        }                                                                   \
    } while (0)

sft_status sft_go_attach(sft_config *config, sft_go_slot *slot, int chosen) {
    if (chosen & SFT_GO_PROGRESS) ATTACH(sft_config_set_progress, progress);
    if (chosen & SFT_GO_CHECKPOINT) ATTACH(sft_config_set_checkpoint, checkpoint);
    if (chosen & SFT_GO_LOG) ATTACH(sft_config_set_log, log_line);
    return SFT_OK;
}

void sft_go_detach(sft_config *config) {
    sft_config_set_progress(config, NULL, NULL, NULL);
    sft_config_set_checkpoint(config, NULL, NULL, NULL);
    sft_config_set_log(config, NULL, NULL, NULL);
    sft_config_set_canceller(config, NULL);
}

/* ---- One batch, whose numbers stay where Go has them ---- */

static sft_batch batch_of(const int32_t *tokens, size_t n_tokens, const int32_t *labels,
                          const int32_t *seq_starts, size_t n_seqs) {
    sft_batch batch = {.struct_size = sizeof batch, .tokens = tokens, .labels = labels};
    batch.seq_starts = seq_starts;
    batch.n_tokens = n_tokens;
    batch.n_seqs = n_seqs;
    return batch;
}

sft_status sft_go_step_one(sft_session *session, const int32_t *tokens, size_t n_tokens, const int32_t *labels,
                           const int32_t *seq_starts, size_t n_seqs, sft_step_report *out) {
    sft_batch batch = batch_of(tokens, n_tokens, labels, seq_starts, n_seqs);
    return sft_step_batch(session, &batch, 1, out);
}

sft_status sft_go_evaluate_one(sft_session *session, const int32_t *tokens, size_t n_tokens,
                               const int32_t *labels, const int32_t *seq_starts, size_t n_seqs,
                               sft_eval_report *out) {
    sft_batch batch = batch_of(tokens, n_tokens, labels, seq_starts, n_seqs);
    return sft_evaluate_batch(session, &batch, 1, out);
}
