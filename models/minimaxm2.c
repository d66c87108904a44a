/* minimax-m2: MiniMax-M2.
 * Keys minimax-m2.*; RMS norm over the whole Q and K rows, partial neox rotary pairs; routing as
 * expert_gating_func says (sigmoid in the release) with a bias for choosing, the chosen weights
 * renormalised.  An expert is feed_forward_length wide. */
#include "models/arch.h"

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    static const char arch[] = "minimax-m2";
    enum status s;
    if ((s = hparams_common(g, arch, h, e)) || (s = hparams_need_experts(g, arch, h, e)) ||
        (s = hparams_router(g, arch, -1, h, e)))
        return s;
    h->rope.neox = h->route.normalise = 1;
    h->route.scale = 1;
    h->n_ff_expert = h->n_ff;
    return OK;
}

static void describe(struct build *b, const struct hparams *h)
{
    static const struct block_style style = {
        .qk_norm = QK_NORM_ROW, .must = MUST_OUTPUT | MUST_CHOOSE_BIAS,
    };
    block_model(b, h, &style);
}

const struct arch arch_minimaxm2 = {"minimax-m2", "MiniMax-M2", hparams, describe};
