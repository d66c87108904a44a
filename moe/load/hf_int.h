/* Inside the reader of Hugging Face vocabularies: what hf_vocab.c, hf_pre.c and hf_spm.c share.
 * Nothing here is seen outside moe/load and its tests. */
#ifndef MOE_LOAD_HF_INT_H
#define MOE_LOAD_HF_INT_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>

#include "moe/base/err.h"
#include "moe/load/tok_int.h"

/* ---- hf_pre.c ---- */
/* The tokenizer.ggml.pre of a byte-level tokenizer.json by its "pre_tokenizer", NULL (and *e says
 * what there is) when it is none of the known ones. */
const char *hf_pre_name(const char *path, const cJSON *pre_tokenizer, bool ignore_merges,
                        struct err *e);
/* The names that hf_pre_name can give, with commas between, cut to cap. */
void hf_pre_names(char *buf, size_t cap);

/* ---- hf_spm.c ---- */
struct hf_piece {
    const char *s; /* borrowed from the file's bytes; not terminated */
    uint32_t n;
    float score;
    uint8_t type; /* enum tok_type */
};

/* Reads the bytes of a SentencePiece tokenizer.model: *pieces is malloc'd, [*n].  ERR_FORMAT with
 * the byte, ERR_UNSUPPORTED for a model that is no BPE. */
enum status hf_spm_parse(const char *path, const char *bytes, uint64_t size,
                         struct hf_piece **pieces, uint32_t *n, bool *add_space, struct err *e);

#endif
