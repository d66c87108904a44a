/* qwen2: the dense Qwen1.5, Qwen2 and Qwen2.5 (arXiv 2412.15115), and models distilled onto them.
 * Keys qwen2.*; biases on Q, K and V, neox rotary pairs; small models tie the head to the
 * embedding. */
#include "models/arch.h"

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    enum status s = hparams_common(g, "qwen2", h, e);
    h->rope.neox = 1;
    return s;
}

static void describe(struct build *b, const struct hparams *h)
{
    static const struct block_style style = {.qk_norm = QK_NORM_NONE};
    block_model(b, h, &style);
}

const struct arch arch_qwen2 = {"qwen2", "Qwen1.5, Qwen2, Qwen2.5 (dense)", hparams, describe};
