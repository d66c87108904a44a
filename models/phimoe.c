/* phimoe: Phi-3.5-MoE (arXiv 2404.14219).
 * Keys phimoe.*; norms with a bias, biases on Q, K, V, the attention's output and the logits; neox
 * rotary pairs with LongRoPE's two lists of divisors; softmax over all experts, the chosen weights
 * renormalised.  An expert is feed_forward_length wide.
 *
 * The original takes the mean out in its norms and chooses by a sparse mixer; the format's
 * reference implementation does neither, and this follows it. */
#include "models/arch.h"

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    enum status s = hparams_common(g, "phimoe", h, e);
    if (s || (s = hparams_need_experts(g, "phimoe", h, e))) return s;
    /* Files may have the lists of divisors without saying "longrope". */
    if (gguf_find_tensor(g, "rope_factors_long.weight")) h->rope_divisor = DIVISOR_BY_CTX;
    h->rope.neox = h->route.normalise = 1;
    h->n_ff_expert = h->n_ff;
    return OK;
}

static void describe(struct build *b, const struct hparams *h)
{
    static const struct block_style style = {
        .must = MUST_OUTPUT | MUST_OUTPUT_BIAS | MUST_ATTN_BIAS | MUST_NORM_BIAS,
    };
    block_model(b, h, &style);
}

const struct arch arch_phimoe = {"phimoe", "Phi-3.5-MoE", hparams, describe};
