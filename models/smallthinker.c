/* smallthinker: SmallThinker 4B-A0.6B and 21B-A3B (arXiv 2507.20984).
 * Keys smallthinker.*; the router looks at a layer's input, before attention and before any norm,
 * so that experts can be fetched while attention runs; experts gated by ReLU; routing as
 * expert_gating_func says, the chosen weights renormalised.
 *
 * Where attention.sliding_window is set, the first of every four layers sees everything and is not
 * rotated, the others see 4096 positions (whatever number the key holds: that is how the format's
 * reference implementation reads it) and turn neox pairs. */
#include "models/arch.h"

enum { WINDOW = 4096, PERIOD = 4 };

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    static const char arch[] = "smallthinker";
    enum status s;
    if ((s = hparams_common(g, arch, h, e)) || (s = hparams_need_experts(g, arch, h, e)) ||
        (s = hparams_window(g, arch, PERIOD, h, e)) || (s = hparams_router(g, arch, -1, h, e)))
        return s;
    if (h->window) h->window = WINDOW;
    h->rope.neox = h->route.normalise = 1;
    h->route.scale = 1;
    return OK;
}

static void describe(struct build *b, const struct hparams *h)
{
    const struct block_style style = {
        .full_first = true, .no_rope_every = h->window ? PERIOD : 0, .router_first = true,
        .act = GLU_RELU,
    };
    block_model(b, h, &style);
}

const struct arch arch_smallthinker = {"smallthinker", "SmallThinker", hparams, describe};
