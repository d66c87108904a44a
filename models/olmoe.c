/* olmoe: OLMoE-1B-7B.  Keys olmoe.*; RMS norm over the whole Q and K rows, neox rotary pairs,
 * softmax over all experts, the chosen weights used as they are. */
#include "models/arch.h"

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    enum status s = hparams_common(g, "olmoe", h, e);
    h->rope.neox = 1;
    return s ? s : hparams_need_experts(g, "olmoe", h, e);
}

static void describe(struct build *b, const struct hparams *h)
{
    static const struct block_style style = {.qk_norm = QK_NORM_ROW};
    block_model(b, h, &style);
}

const struct arch arch_olmoe = {"olmoe", "OLMoE", hparams, describe};
