/* glm4moe: GLM-4.5, GLM-4.5-Air, GLM-4.6 (arXiv 2508.06471).
 * Keys glm4moe.*; leading dense layers, then sigmoid routing with a bias for choosing beside shared
 * experts; partial neox rotary pairs; biases on Q, K and V; Q and K normed per head in the large
 * model only.  The norm before the feed-forward is called post_attention_norm; the last layer
 * predicts further tokens and does not run.
 *
 * rope.dimension_sections (the vision models): text has the same position in the first three
 * sections and none in the fourth, so that as long as no rotated pair lies in the fourth they
 * change nothing. */
#include "models/arch.h"

static enum status check_sections(const struct gguf *g, const struct hparams *h, struct err *e)
{
    const struct gguf_kv *kv = gguf_find(g, "glm4moe.rope.dimension_sections");
    if (!kv) return OK;
    uint64_t text = 0, all = 0;
    for (uint64_t i = 0; i < kv->value.n && i < 4; i++) {
        all += gguf_elem_u64(&kv->value, i) & 0xffff;
        if (i < 3) text = all;
    }
    if (all == text || text >= (uint64_t)h->rope.n_rot / 2) return OK;
    return err_set(e, ERR_UNSUPPORTED, "%s: key glm4moe.rope.dimension_sections leaves some of %d "
                   "rotated pairs without a position", gguf_path(g, 0), h->rope.n_rot / 2);
}

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    static const char arch[] = "glm4moe";
    int n_shared = 0;
    enum status s;
    if ((s = hparams_common(g, arch, h, e)) || (s = hparams_need_experts(g, arch, h, e)) ||
        (s = hparams_int(g, arch, "expert_shared_count", -1, &n_shared, e)) ||
        (s = hparams_shared(g, arch, n_shared, h->n_ff_expert, h, e)) ||
        (s = hparams_router(g, arch, 2, h, e)) || (s = hparams_nextn(g, arch, h, e)))
        return s;
    h->rope.neox = 1;
    return check_sections(g, h, e);
}

static void describe(struct build *b, const struct hparams *h)
{
    static const struct block_style style = {
        .qk_norm = QK_NORM_HEAD, .qk_norm_optional = true, .ffn_norm = "post_attention_norm",
        .must = MUST_CHOOSE_BIAS,
    };
    block_model(b, h, &style);
}

const struct arch arch_glm4moe = {"glm4moe", "GLM-4.5, GLM-4.5-Air, GLM-4.6", hparams, describe};
