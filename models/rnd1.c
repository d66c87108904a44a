/* rnd1: RND1-Base, Qwen3-30B-A3B turned into a masked diffusion model.
 * Keys rnd1.*; RMS norm per head on Q and K, neox rotary pairs, softmax over all experts, the chosen
 * weights renormalised; attention sees both sides. */
#include "models/arch.h"

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    enum status s = hparams_common(g, "rnd1", h, e);
    if (s) return s;
    h->rope.neox = h->route.normalise = 1;
    h->denoise.by_entropy = true;
    s = hparams_denoise(g, "rnd1", h, e);
    return s ? s : hparams_need_experts(g, "rnd1", h, e);
}

static void describe(struct build *b, const struct hparams *h)
{
    static const struct block_style style = {.qk_norm = QK_NORM_HEAD};
    block_model(b, h, &style);
}

const struct arch arch_rnd1 = {"rnd1", "RND1 (masked diffusion)", hparams, describe};
