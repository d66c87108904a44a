/* hunyuan-moe: Hunyuan-A13B.
 * Keys hunyuan-moe.*; neox rotary pairs, and RMS norm per head on Q and K after the rotation;
 * softmax over all experts, the chosen weights renormalised, beside a shared expert in every layer.
 * An expert is feed_forward_length wide. */
#include "models/arch.h"

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    static const char arch[] = "hunyuan-moe";
    int shared = 0;
    enum status s;
    if ((s = hparams_common(g, arch, h, e)) || (s = hparams_need_experts(g, arch, h, e)) ||
        (s = hparams_int(g, arch, "expert_shared_feed_forward_length", h->n_ff, &shared, e)) ||
        (s = hparams_shared(g, arch, 1, shared ? shared : h->n_ff, h, e)))
        return s;
    h->rope.neox = h->route.normalise = 1;
    h->n_ff_expert = h->n_ff;
    return OK;
}

static void describe(struct build *b, const struct hparams *h)
{
    static const struct block_style style = {.qk_norm = QK_NORM_HEAD, .qk_norm_late = true};
    block_model(b, h, &style);
}

const struct arch arch_hunyuanmoe = {"hunyuan-moe", "Hunyuan-A13B", hparams, describe};
