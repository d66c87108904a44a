/* Recipes: which weight type every tensor of a model gets when it is quantised as "Q4_K_M".
 *
 * The names, and what they do to each tensor, are llama-quantize's (facts of llama.cpp's
 * src/llama-quant.cpp, written down here as one table), so that a file of that name holds what
 * people expect of it.  Decides from the header alone; reads no weights.  Pure functions on the
 * caller's memory; any thread. */
#ifndef QUANT_BUILD_RECIPE_H
#define QUANT_BUILD_RECIPE_H

#include <stdbool.h>

#include "moe/load/gguf.h"
#include "quant/qtype.h"

struct recipe {
    const char *name;
    uint32_t file_type; /* what general.file_type says of such a file */
    enum qtype base;    /* what most matrices get */
    const char *help;   /* a few words */
};

/* The recipe of that name (case is ignored; Q3_K, Q4_K, Q5_K mean their _M), NULL when none is. */
const struct recipe *recipe_by_name(const char *name);
/* The i-th recipe, NULL past the end. */
const struct recipe *recipe_at(int i);

/* --tensor-type PATTERN=TYPE: tensors in whose name the regular expression (PCRE2) finds
 * something.  The first one that does decides. */
struct recipe_override {
    const char *pattern;
    enum qtype type;
};

enum { RECIPE_TYPE_OPEN = -1 };

struct recipe_options {
    const struct recipe *recipe;
    bool pure;          /* no mixture: the base type everywhere */
    bool leave_output;  /* output.weight stays as it is */
    bool importance;    /* an importance matrix will be used: some rules ask */
    int embedding, output; /* enum qtype of token_embd and output, or RECIPE_TYPE_OPEN */
    const struct recipe_override *override;
    int n_override;
};

struct recipe_choice {
    enum qtype type;
    bool kept;     /* no matrix to quantise: stays as it is */
    bool fallback; /* another type than the rules say, because blocks do not divide the columns */
};

/* ERR_USAGE for a pattern that is no regular expression, before any file is opened. */
enum status recipe_check(const struct recipe_options *o, struct err *e);

/* Fills choice[gguf_n_tensors(in)], in file order.  As recipe_check; ERR_FORMAT for keys that make
 * no sense, ERR_MEMORY. */
enum status recipe_choose(const struct recipe_options *o, const struct gguf *in,
                          struct recipe_choice *choice, struct err *e);

#endif
