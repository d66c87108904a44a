/* dots1: dots.llm1 (arXiv 2506.05767).
 * Keys dots1.*; leading dense layers, then experts chosen as expert_gating_func says (sigmoid in
 * the release), with or without a bias for choosing, beside shared experts; RMS norm per head on Q
 * and K, neox rotary pairs. */
#include "models/arch.h"

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    static const char arch[] = "dots1";
    int n_shared = 0;
    enum status s;
    if ((s = hparams_common(g, arch, h, e)) || (s = hparams_need_experts(g, arch, h, e)) ||
        (s = hparams_int(g, arch, "expert_shared_count", -1, &n_shared, e)) ||
        (s = hparams_shared(g, arch, n_shared, h->n_ff_expert, h, e)) ||
        (s = hparams_router(g, arch, -1, h, e)))
        return s;
    h->rope.neox = 1;
    return OK;
}

static void describe(struct build *b, const struct hparams *h)
{
    static const struct block_style style = {.qk_norm = QK_NORM_HEAD, .must = MUST_OUTPUT};
    block_model(b, h, &style);
}

const struct arch arch_dots1 = {"dots1", "dots.llm1", hparams, describe};
