/* Shared by the tests of budgets: a model wide enough that matrices stream in several pieces, and that the
 * smallest budget holds some experts of many.  Owns nothing; never used by the library. */
#ifndef TESTS_GEN_SMALL_H
#define TESTS_GEN_SMALL_H

#include "bench/gen.h"

/* Three layers of 16 experts, of which a token uses 3. */
static inline struct gen_spec gen_small(const char *arch, unsigned type)
{
    struct gen_spec g = gen_tiny(arch, QTYPE_Q8_0);
    g.type = type;
    g.n_layer = 3;
    g.n_embd = 512;
    g.n_head = 16;
    g.n_head_kv = 4;
    g.head_dim = 64;
    g.n_ff = 256;
    g.n_expert = 16;
    g.n_expert_used = 3;
    g.n_ctx = 512;
    return g;
}

#endif
