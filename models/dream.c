/* dream: Dream 7B and Dream-Coder (arXiv 2508.15487), masked diffusion on the layers of Qwen2.5.
 * Keys dream.*; biases on Q, K and V, neox rotary pairs; attention sees both sides, and what is hidden
 * at a position is read at the one before it. */
#include "models/arch.h"

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    enum status s = hparams_common(g, "dream", h, e);
    if (s) return s;
    h->rope.neox = 1;
    h->denoise.by_entropy = true;
    h->denoise.temp = 0.2f;
    h->denoise.top_p = 0.95f;
    return hparams_denoise(g, "dream", h, e);
}

static void describe(struct build *b, const struct hparams *h)
{
    static const struct block_style style = {.qk_norm = QK_NORM_NONE};
    block_model(b, h, &style);
}

const struct arch arch_dream = {"dream", "Dream (dense, masked diffusion)", hparams, describe};
