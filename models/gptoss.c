/* gpt-oss: gpt-oss-20b and 120b (arXiv 2508.10925).
 * Keys gpt-oss.*; every second layer, the first among them, sees a sliding window; each head has a
 * sink, a learned score without a value; neox rotary pairs with YaRN and its magnitude; biases
 * everywhere, on the router and the experts too; the router's logits choose, and the weights are a
 * softmax over the chosen ones; the experts' unit is clamped (GLU_SILU_OAI).  The norm before the
 * feed-forward is called post_attention_norm. */
#include "models/arch.h"

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    static const char arch[] = "gpt-oss";
    enum status s;
    if ((s = hparams_common(g, arch, h, e)) || (s = hparams_need_experts(g, arch, h, e)) ||
        (s = hparams_window(g, arch, 2, h, e)))
        return s;
    if (!h->window)
        return err_set(e, ERR_MISSING, "%s: key gpt-oss.attention.sliding_window is missing or 0",
                       gguf_path(g, 0));
    h->rope.neox = 1;
    h->route.score = ROUTE_SOFTMAX_CHOSEN;
    return OK;
}

static void describe(struct build *b, const struct hparams *h)
{
    static const struct block_style style = {
        .sinks = true, .ffn_norm = "post_attention_norm", .act = GLU_SILU_OAI,
        .must = MUST_OUTPUT | MUST_ATTN_BIAS | MUST_ROUTER_BIAS | MUST_EXPERT_BIAS,
    };
    block_model(b, h, &style);
}

const struct arch arch_gptoss = {"gpt-oss", "gpt-oss 20b and 120b", hparams, describe};
