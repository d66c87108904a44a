/* ouro: Ouro 1.4B, 2.6B and -Thinking (arXiv 2510.25741), a stack that runs ouro.num_loops times,
 * with norms before and after attention and feed-forward, and a gate that can end the loops.
 * Keys ouro.*, the two of nanbeige and early_exit_threshold (1 = never); tensors exit_gate.weight
 * and .bias, blk.N.post_attention_norm, blk.N.post_ffw_norm; neox rotary pairs. */
#include "models/arch.h"

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    enum status s = hparams_common(g, "ouro", h, e);
    if (s || (s = hparams_loop(g, "ouro", h, e)) ||
        (s = hparams_f32(g, "ouro", "early_exit_threshold", 1.0f, &h->loop.exit_at, e)))
        return s;
    h->rope.neox = 1;
    h->loop.has_gate = true;
    if (h->loop.skip_norm)
        return err_set(e, ERR_UNSUPPORTED, "%s: key ouro.skip_loop_final_norm is true; Ouro norms "
                       "after every loop", gguf_path(g, 0));
    if (h->loop.exit_at <= 0)
        return err_set(e, ERR_RANGE, "%s: key ouro.early_exit_threshold is not positive",
                       gguf_path(g, 0));
    return OK;
}

static void describe(struct build *b, const struct hparams *h)
{
    static const struct block_style style = {.attn_post_norm = true, .ffn_post_norm = true};
    loop_model(b, h, &style);
}

const struct arch arch_ouro = {"ouro", "Ouro: looped, with an exit gate", hparams, describe};
