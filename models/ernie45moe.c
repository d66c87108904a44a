/* ernie4_5-moe: ERNIE 4.5 21B-A3B and 300B-A47B.
 * Keys ernie4_5-moe.*; leading dense layers, then experts in every interleave_moe_layer_step-th
 * layer; softmax over all experts, with or without a bias for choosing, the chosen weights
 * renormalised; with or without shared experts; rotary pairs are neighbours. */
#include "models/arch.h"

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    static const char arch[] = "ernie4_5-moe";
    enum status s;
    if ((s = hparams_common(g, arch, h, e)) || (s = hparams_need_experts(g, arch, h, e)) ||
        (s = hparams_int(g, arch, "expert_shared_feed_forward_length", 0, &h->n_ff_shared, e)) ||
        (s = hparams_int(g, arch, "interleave_moe_layer_step", -1, &h->moe_step, e)))
        return s;
    if (!h->moe_step)
        return err_set(e, ERR_RANGE, "%s: key %s.interleave_moe_layer_step is 0", gguf_path(g, 0),
                       arch);
    h->route.normalise = 1;
    return OK;
}

static void describe(struct build *b, const struct hparams *h)
{
    static const struct block_style style = {.qk_norm = QK_NORM_NONE};
    block_model(b, h, &style);
}

const struct arch arch_ernie45moe = {"ernie4_5-moe", "ERNIE 4.5 (experts)", hparams, describe};
