/* qwen35moe: Qwen3.5-35B-A3B, 122B-A10B, 397B-A17B.  Keys qwen35moe.*; as qwen3next, but the heads
 * of v lie in the order of `tiled` and the rotary positions have sections for pictures
 * (rope.dimension_sections), which for text are all the same position. */
#include "models/arch.h"

/* Pair i of a head turns with section i mod 3 (time, height, width) as long as that section lasts;
 * behind it lies a fourth section that text does not turn at all, which no known model reaches. */
static enum status check_sections(const struct gguf *g, const struct hparams *h, struct err *e)
{
    static const char key[] = "qwen35moe.rope.dimension_sections";
    const struct gguf_kv *kv = gguf_find(g, key);
    uint64_t n[4] = {0}, sum = 0;
    if (!kv || kv->value.type != GGUF_ARRAY || kv->value.n < 3)
        return err_set(e, ERR_MISSING, "%s: key %s is missing or too short", gguf_path(g, 0), key);
    for (uint64_t i = 0; i < kv->value.n && i < 4; i++) {
        n[i] = gguf_elem_u64(&kv->value, i);
        if (n[i] > (uint64_t)h->head_dim) n[i] = (uint64_t)h->head_dim;
        sum += n[i];
    }
    for (uint64_t i = 0; i < (uint64_t)h->rope.n_rot / 2; i++) {
        const uint64_t at = sum ? i % sum : 0;
        if (at >= 3 * n[at % 3])
            return err_set(e, ERR_UNSUPPORTED, "%s: key %s leaves rotary pair %llu without a "
                           "position", gguf_path(g, 0), key, (unsigned long long)i);
    }
    return OK;
}

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    static const char arch[] = "qwen35moe";
    int shared = 0;
    enum status s;
    if ((s = hparams_common(g, arch, h, e)) || (s = hparams_need_experts(g, arch, h, e)) ||
        (s = hparams_delta(g, arch, true, h, e)) || (s = hparams_nextn(g, arch, h, e)) ||
        (s = hparams_int(g, arch, "expert_shared_feed_forward_length", h->n_ff, &shared, e)) ||
        (s = hparams_shared(g, arch, 1, shared ? shared : h->n_ff, h, e)) ||
        (s = check_sections(g, h, e)))
        return s;
    h->rope.neox = 1;
    h->route.normalise = 1;
    return OK;
}

const struct arch arch_qwen35moe = {"qwen35moe", "Qwen3.5 Mixture-of-Experts", hparams,
                                    delta_model};
