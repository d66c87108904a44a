/* qwen3next: Qwen3-Next-80B-A3B.  Keys qwen3next.*; three gated DeltaNet layers, then one of
 * attention with a gate on its output, RMS norm per head on Q and K (the one that is added to the
 * weights of norms is folded in by the converter) and neox rotary pairs on a part of each head;
 * softmax over all experts, the chosen weights renormalised, and a shared expert scaled by a
 * sigmoid gate of its own.  Heads of v that share a head of k are neighbours. */
#include "models/arch.h"

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    static const char arch[] = "qwen3next";
    int shared = 0;
    enum status s;
    if ((s = hparams_common(g, arch, h, e)) || (s = hparams_need_experts(g, arch, h, e)) ||
        (s = hparams_delta(g, arch, false, h, e)) || (s = hparams_nextn(g, arch, h, e)) ||
        (s = hparams_int(g, arch, "expert_shared_feed_forward_length", h->n_ff, &shared, e)) ||
        (s = hparams_shared(g, arch, 1, shared ? shared : h->n_ff, h, e)))
        return s;
    h->rope.neox = 1;
    h->route.normalise = 1;
    return OK;
}

const struct arch arch_qwen3next = {"qwen3next", "Qwen3-Next", hparams, delta_model};
