/* llada: LLaDA-8B and 1.5 (arXiv 2502.09992), masked diffusion with dense layers.
 * Keys llada.*; the block of llama, whose rotary pairs are neighbours (the converter permutes Q and K);
 * attention sees both sides. */
#include "models/arch.h"

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    enum status s = hparams_common(g, "llada", h, e);
    if (s) return s;
    return hparams_denoise(g, "llada", h, e);
}

static void describe(struct build *b, const struct hparams *h)
{
    static const struct block_style style = {.qk_norm = QK_NORM_NONE};
    block_model(b, h, &style);
}

const struct arch arch_llada = {"llada", "LLaDA (dense, masked diffusion)", hparams, describe};
