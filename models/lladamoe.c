/* llada-moe: LLaDA-MoE-7B-A1B, masked diffusion with experts.
 * Keys llada-moe.*; RMS norm per head on Q and K, neox rotary pairs, softmax over all experts, the
 * chosen weights used as they are; attention sees both sides. */
#include "models/arch.h"

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    enum status s = hparams_common(g, "llada-moe", h, e);
    if (s) return s;
    h->rope.neox = 1;
    s = hparams_denoise(g, "llada-moe", h, e);
    return s ? s : hparams_need_experts(g, "llada-moe", h, e);
}

static void describe(struct build *b, const struct hparams *h)
{
    static const struct block_style style = {.qk_norm = QK_NORM_HEAD};
    block_model(b, h, &style);
}

const struct arch arch_lladamoe = {"llada-moe", "LLaDA-MoE (masked diffusion)", hparams, describe};
