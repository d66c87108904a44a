/* granitemoe: IBM Granite 3.x MoE (1B-A400M, 3B-A800M), with or without a shared expert.
 * Keys granitemoe.*; the embedding, what each sub-block adds, the scores and the logits are scaled
 * by keys (the logits divided); rotary pairs are neighbours, and none are turned where
 * rope.scaling.finetuned says false; softmax over all experts, the chosen weights renormalised.  An
 * expert is feed_forward_length wide. */
#include "models/arch.h"

/* 0 means that nothing is scaled. */
static enum status scale(const struct gguf *g, const char *key, float *out, struct err *e)
{
    float v = 0;
    enum status s = hparams_f32(g, "granitemoe", key, 0.0f, &v, e);
    if (!s && (v < 0 || v > 0)) *out = v;
    return s;
}

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    static const char arch[] = "granitemoe";
    bool rotated = true;
    enum status s;
    if ((s = hparams_common(g, arch, h, e)) ||
        (s = hparams_int(g, arch, "expert_shared_feed_forward_length", 0, &h->n_ff_shared, e)) ||
        (s = hparams_f32(g, arch, "logit_scale", -1, &h->logit_scale, e)) ||
        (s = scale(g, "residual_scale", &h->residual_scale, e)) ||
        (s = scale(g, "embedding_scale", &h->embed_scale, e)) ||
        (s = scale(g, "attention.scale", &h->attn_scale, e)) ||
        (s = hparams_bool(g, arch, "rope.scaling.finetuned", true, &rotated, e)))
        return s;
    if (!(h->logit_scale > 0))
        return err_set(e, ERR_RANGE, "%s: key granitemoe.logit_scale is not positive",
                       gguf_path(g, 0));
    if (gguf_find_tensor(g, "rope_freqs.weight")) h->rope_divisor = DIVISOR_ALL;
    if (!rotated) h->rope.n_rot = 0;
    h->route.normalise = 1;
    h->n_ff_expert = h->n_ff;
    return OK;
}

static void describe(struct build *b, const struct hparams *h)
{
    static const struct block_style style = {.qk_norm = QK_NORM_NONE};
    block_model(b, h, &style);
}

const struct arch arch_granitemoe = {"granitemoe", "Granite 3 (experts)", hparams, describe};
