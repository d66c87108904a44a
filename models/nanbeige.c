/* nanbeige: Nanbeige 4.2, a Llama whose stack of layers runs nanbeige.num_loops times.
 * Keys nanbeige.*; rope_freqs.weight may divide the angles; rotary pairs are neighbours. */
#include "models/arch.h"

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    enum status s = hparams_common(g, "nanbeige", h, e);
    if (s) return s;
    if (gguf_find_tensor(g, "rope_freqs.weight")) h->rope_divisor = DIVISOR_ALL;
    return hparams_loop(g, "nanbeige", h, e);
}

static void describe(struct build *b, const struct hparams *h)
{
    static const struct block_style style = {.qk_norm = QK_NORM_NONE};
    loop_model(b, h, &style);
}

const struct arch arch_nanbeige = {"nanbeige", "Nanbeige 4.2: looped", hparams, describe};
