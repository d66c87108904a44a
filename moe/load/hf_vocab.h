/* The vocabulary of a Hugging Face folder, as the tokenizer.* keys of a GGUF file.
 *
 * Reads tokenizer.json (byte-level BPE, or SentencePiece-style BPE with byte fallback), or else
 * tokenizer.model; with tokenizer_config.json, added_tokens.json, generation_config.json and
 * chat_template.jinja or .json where they are there.  The keys are those that llama.cpp's converter
 * writes, with these differences:
 *   - tokenizer.ggml.pre follows from the expressions in tokenizer.json (moe/load/hf_pre.c);
 *   - the scores of a SentencePiece-style tokenizer.json follow from the order of its merges;
 *   - further tokens that end an answer (generation_config.json) become eot and eom tokens, if
 *     readers would not know them by their text;
 *   - add_bos_token is written whenever readers would assume something else.
 *
 * Immutable after open; borrows nothing.  One thread. */
#ifndef MOE_LOAD_HF_VOCAB_H
#define MOE_LOAD_HF_VOCAB_H

#include "moe/load/gguf.h"
#include "moe/load/jsonfile.h"

struct hf_vocab;

/* config is the parsed config.json (only read now); pre names the pre-tokenizer, NULL finds it out.
 * *out NULL on failure: ERR_MISSING when the folder has no tokenizer, ERR_UNSUPPORTED for one of
 * another kind, ERR_FORMAT for contradictions, ERR_IO, ERR_MEMORY. */
enum status hf_vocab_open(const char *dir, const struct osfile_ops *ops, const cJSON *config,
                          const char *pre, struct hf_vocab **out, struct err *e);
void hf_vocab_close(struct hf_vocab *v);

/* Puts the keys; failures stick to the writer.  add_bos: whatever the folder says. */
void hf_vocab_put(const struct hf_vocab *v, struct gguf_writer *w, bool add_bos);

/* Tokens and special ids behind the model's vocab_size, which were left out. */
uint32_t hf_vocab_n_dropped(const struct hf_vocab *v);

#endif
