/* qwen2moe: Qwen1.5-MoE-A2.7B and Qwen2-57B-A14B (arXiv 2407.10671).
 * Keys qwen2moe.*; biases on Q, K and V, neox rotary pairs, softmax over all experts with the
 * chosen weights used as they are, and a shared expert scaled by a sigmoid gate of its own.  Files
 * from before the keys for widths: an expert is feed_forward_length / expert_used_count wide, the
 * shared one feed_forward_length. */
#include "models/arch.h"

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    static const char arch[] = "qwen2moe";
    int shared = 0;
    enum status s;
    if ((s = hparams_common(g, arch, h, e)) || (s = hparams_need_experts(g, arch, h, e)) ||
        (s = hparams_int(g, arch, "expert_shared_feed_forward_length", h->n_ff, &shared, e)) ||
        (s = hparams_shared(g, arch, 1, shared ? shared : h->n_ff, h, e)))
        return s;
    h->rope.neox = 1;
    if (!hparams_has(g, arch, "expert_feed_forward_length"))
        h->n_ff_expert = h->n_ff / h->n_expert_used;
    return OK;
}

static void describe(struct build *b, const struct hparams *h)
{
    static const struct block_style style = {.shared_gate = true, .must = MUST_OUTPUT};
    block_model(b, h, &style);
}

const struct arch arch_qwen2moe = {"qwen2moe", "Qwen1.5-MoE and Qwen2-MoE", hparams, describe};
