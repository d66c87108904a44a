/* qwen3moe: Qwen3 Mixture-of-Experts (30B-A3B, 235B-A22B) and the models trained in zoo/.
 * Keys qwen3moe.*; RMS norm per head on Q and K, neox rotary pairs, softmax over all experts, the
 * chosen weights renormalised. */
#include "models/arch.h"

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    enum status s = hparams_common(g, "qwen3moe", h, e);
    h->rope.neox = 1;
    if (!s && !h->n_expert)
        s = err_set(e, ERR_MISSING, "%s: key qwen3moe.expert_count is missing or 0",
                    gguf_path(g, 0));
    return s;
}

static void describe(struct build *b, const struct hparams *h)
{
    const struct block_style style = {
        .qk_norm = QK_NORM_HEAD,
        .route = {h->n_expert, h->n_expert_used, ROUTE_SOFTMAX, 1, 1.0f},
    };
    block_model(b, h, &style);
}

const struct arch arch_qwen3moe = {"qwen3moe", "Qwen3 Mixture-of-Experts", hparams, describe};
