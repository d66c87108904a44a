/* llama: the dense Llama family and Mixtral, which differs by its experts alone.
 * Keys llama.*; rope_freqs.weight (Llama 3.1) divides the angles; rotary pairs are neighbours (the
 * converter permutes Q and K). */
#include "models/arch.h"

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    enum status s = hparams_common(g, "llama", h, e);
    if (s) return s;
    if (gguf_find_tensor(g, "rope_freqs.weight")) h->rope_divisor = DIVISOR_ALL;
    h->route.normalise = 1;
    return OK;
}

static void describe(struct build *b, const struct hparams *h)
{
    static const struct block_style style = {.qk_norm = QK_NORM_NONE};
    block_model(b, h, &style);
}

const struct arch arch_llama = {"llama", "Llama (dense) and Mixtral", hparams, describe};
