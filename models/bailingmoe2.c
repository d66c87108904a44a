/* bailingmoe2: Ling 2.0 and Ring 2.0 (mini, flash, 1T; arXiv 2510.22115).
 * Keys bailingmoe2.*; Q, K and V in one tensor, RMS norm per head on Q and K, partial neox rotary
 * pairs; leading dense layers, then sigmoid routing in groups with a bias for choosing beside
 * shared experts; layers that predict further tokens stand at the end and do not run. */
#include "models/arch.h"

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    static const char arch[] = "bailingmoe2";
    int n_shared = 0, width = 0;
    enum status s;
    if ((s = hparams_common(g, arch, h, e)) || (s = hparams_need_experts(g, arch, h, e)) ||
        (s = hparams_int(g, arch, "expert_shared_count", -1, &n_shared, e)) ||
        (s = hparams_int(g, arch, "expert_shared_feed_forward_length", 0, &width, e)) ||
        (s = hparams_shared(g, arch, n_shared, width ? width : h->n_ff_expert, h, e)) ||
        (s = hparams_router(g, arch, -1, h, e)) || (s = hparams_nextn(g, arch, h, e)))
        return s;
    h->rope.neox = 1;
    return OK;
}

static void describe(struct build *b, const struct hparams *h)
{
    static const struct block_style style = {.qk_norm = QK_NORM_HEAD, .must = MUST_OUTPUT};
    block_model(b, h, &style);
}

const struct arch arch_bailingmoe2 = {"bailingmoe2", "Ling 2.0 and Ring 2.0", hparams, describe};
