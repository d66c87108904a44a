/* ecdlm: masked diffusion with experts that choose their tokens (EC-DLM, arXiv 2604.01622), or that
 * tokens choose: the models of zoo/.  No released weights; the format is ours.
 *
 * Keys ecdlm.*; RMS norm per head on Q and K, neox rotary pairs; attention sees both sides, or with
 * ecdlm.attention.block_length n to the end of a position's block of n.  ecdlm.expert_routing is
 * "token_choice" (softmax, the chosen weights renormalised) or "expert_choice", with
 * ecdlm.expert_choice.scope "sequence" or "batch", .activation "softmax", "sigmoid" or "pre_softmax",
 * .k, or .k_min, .k_max and .schedule, and .scale.  Shared experts as one unit of
 * ecdlm.expert_shared_feed_forward_length, added as they are.
 *
 * Experts compare all rows of a text, so every row goes through the last layer. */
#include "models/arch.h"

static const char arch[] = "ecdlm";

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    int shared, block;
    enum status s;
    if ((s = hparams_common(g, arch, h, e)) || (s = hparams_need_experts(g, arch, h, e)) ||
        (s = hparams_denoise(g, arch, h, e)) || (s = hparams_choice(g, arch, h, e)) ||
        (s = hparams_int(g, arch, "expert_shared_feed_forward_length", 0, &shared, e)) ||
        (s = hparams_int(g, arch, "attention.block_length", 0, &block, e)) ||
        (s = hparams_shared(g, arch, 1, shared, h, e)))
        return s;
    if (block) h->denoise.sees = block;
    h->rope.neox = h->route.normalise = 1;
    return OK;
}

static void describe(struct build *b, const struct hparams *h)
{
    static const struct block_style style = {.qk_norm = QK_NORM_HEAD};
    struct block k;
    if (!h->route.choice.k_max) {
        block_model(b, h, &style);
        return;
    }
    int x = block_begin(&k, b, h, &style);
    k.more = true;
    for (int l = 0; l < h->n_layer && !b->err->code; l++) block_layer(&k, l, &x);
    b->at_layer = -1;
    b->rows = ROWS_OUT;
    block_end(&k, build_select(b, "x_out", x));
}

const struct arch arch_ecdlm = {"ecdlm", "masked diffusion whose experts choose tokens", hparams,
                                describe};
