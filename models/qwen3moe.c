/* qwen3moe: Qwen3 Mixture-of-Experts (30B-A3B, 235B-A22B) and the models trained in zoo/.
 * Keys qwen3moe.*; RMS norm per head on Q and K, neox rotary pairs, softmax over all experts, the
 * chosen weights renormalised. */
#include "models/arch.h"

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    enum status s = hparams_common(g, "qwen3moe", h, e);
    h->rope.neox = h->route.normalise = 1;
    return s ? s : hparams_need_experts(g, "qwen3moe", h, e);
}

static void describe(struct build *b, const struct hparams *h)
{
    static const struct block_style style = {.qk_norm = QK_NORM_HEAD};
    block_model(b, h, &style);
}

const struct arch arch_qwen3moe = {"qwen3moe", "Qwen3 Mixture-of-Experts", hparams, describe};
