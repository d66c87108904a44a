/* olmoe: OLMoE-1B-7B.  Keys olmoe.*; RMS norm over the whole Q and K rows, neox rotary pairs,
 * softmax over all experts, the chosen weights used as they are. */
#include "models/arch.h"

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    enum status s = hparams_common(g, "olmoe", h, e);
    h->rope.neox = 1;
    if (!s && !h->n_expert)
        s = err_set(e, ERR_MISSING, "%s: key olmoe.expert_count is missing or 0", gguf_path(g, 0));
    return s;
}

static void describe(struct build *b, const struct hparams *h)
{
    const struct block_style style = {
        .qk_norm = QK_NORM_ROW,
        .route = {h->n_expert, h->n_expert_used, ROUTE_SOFTMAX, 0, 1.0f},
    };
    block_model(b, h, &style);
}

const struct arch arch_olmoe = {"olmoe", "OLMoE", hparams, describe};
