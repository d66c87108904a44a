/* qwen3: the dense Qwen3 (arXiv 2505.09388).
 * Keys qwen3.*; RMS norm per head on Q and K, neox rotary pairs; small models tie the head to the
 * embedding. */
#include "models/arch.h"

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    enum status s = hparams_common(g, "qwen3", h, e);
    h->rope.neox = 1;
    return s;
}

static void describe(struct build *b, const struct hparams *h)
{
    static const struct block_style style = {.qk_norm = QK_NORM_HEAD};
    block_model(b, h, &style);
}

const struct arch arch_qwen3 = {"qwen3", "Qwen3 (dense)", hparams, describe};
