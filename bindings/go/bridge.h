/* What stands between sft.h and Go: callbacks that find their Go call, and batches built on C's stack. */
#ifndef SFT_GO_BRIDGE_H
#define SFT_GO_BRIDGE_H

#include <sft.h>

#if SFT_ABI_VERSION != 1
#error "this version of the Go binding is written for SFT_ABI_VERSION 1: use the one that came with sft.h"
#endif

enum { SFT_GO_PROGRESS = 1, SFT_GO_CHECKPOINT = 2, SFT_GO_LOG = 4 };

/*
 * The user_data of all callbacks of one session. It holds no Go pointer: only, while a call is inside the
 * library, the number by which Go finds that call. The references are Go's own and one of each callback.
 */
typedef struct sft_go_slot {
    uintptr_t call;
    int references;
} sft_go_slot;

sft_go_slot *sft_go_slot_new(void);
void sft_go_slot_retain(sft_go_slot *slot);
void sft_go_slot_release(void *slot);
int sft_go_live_slots(void);

/* Sets the chosen callbacks of a configuration, and takes all of them away again with its canceller. */
sft_status sft_go_attach(sft_config *config, sft_go_slot *slot, int chosen);
void sft_go_detach(sft_config *config);

sft_status sft_go_step_one(sft_session *session, const int32_t *tokens, size_t n_tokens, const int32_t *labels,
                           const int32_t *seq_starts, size_t n_seqs, sft_step_report *out);
sft_status sft_go_evaluate_one(sft_session *session, const int32_t *tokens, size_t n_tokens,
                               const int32_t *labels, const int32_t *seq_starts, size_t n_seqs,
                               sft_eval_report *out);

#endif
