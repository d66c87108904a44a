/* Tokenizers: text to ids and back, from the vocabulary in a GGUF file.
 *
 * Two families: SentencePiece-style (tokenizer.ggml.model "llama": scores, byte fallback, "▁" for
 * space) and byte-level BPE ("gpt2": merges, a pre-tokenizer expression chosen by
 * tokenizer.ggml.pre; PCRE2 carries the expressions).  Text is bytes: invalid UTF-8 is encoded,
 * never an error.
 *
 * A struct tok is immutable after open: any thread.  It copies what it needs from the file. */
#ifndef MOE_LOAD_TOK_H
#define MOE_LOAD_TOK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moe/base/err.h"
#include "moe/load/gguf.h"

struct tok;

/* ERR_MISSING when the file has no tokenizer (ids still work), ERR_UNSUPPORTED for a model or
 * pre-tokenizer that is not known (says which are), ERR_FORMAT for contradictions. */
enum status tok_open(const struct gguf *g, struct tok **out, struct err *e);
void tok_close(struct tok *t);

enum { TOK_BOS = 1, TOK_SPECIAL = 2 };

/* Encodes n bytes.  flags: TOK_BOS puts the BOS id first when the vocabulary wants one;
 * TOK_SPECIAL recognises special tokens ("<|im_end|>") in the text, otherwise they are plain text.
 * Returns the number of ids; writes at most cap of them (call with cap 0 to size).  Negative on
 * out of memory. */
int64_t tok_encode(const struct tok *t, const char *text, size_t n, unsigned flags, int32_t *ids,
                   int64_t cap);

/* The bytes of one id, as they stand in text ("▁" is a space, byte tokens are their byte);
 * control tokens have none unless special is set.  Returns the length, writes at most cap. */
int tok_piece(const struct tok *t, int32_t id, bool special, char *buf, int cap);

int32_t tok_n_vocab(const struct tok *t);
int32_t tok_bos(const struct tok *t);   /* -1 = none */
int32_t tok_eos(const struct tok *t);   /* -1 = none */
bool tok_adds_bos(const struct tok *t);
/* Does this id end an answer (eos, eot, "<|im_end|>", "<|endoftext|>" ...)? */
bool tok_is_end(const struct tok *t, int32_t id);
/* The id of a token by its exact text, -1 = none. */
int32_t tok_find(const struct tok *t, const char *text);
/* "llama" or "gpt2", and the pre-tokenizer's name ("-" for none). */
const char *tok_model(const struct tok *t);
const char *tok_pre(const struct tok *t);
/* The i-th known pre-tokenizer name, NULL past the end. */
const char *tok_pre_at(int i);

/* Streaming detokenisation: bytes of a split UTF-8 character are kept back until it is whole;
 * bytes that can never become valid come out as U+FFFD at flush. Plain state, no allocation. */
struct tok_stream {
    char held[8];
    int n_held;
};

/* Appends the bytes of one piece; writes what is ready to out (cap >= n + 8); returns its length. */
int tok_stream_push(struct tok_stream *s, const char *piece, int n, char *out);
int tok_stream_flush(struct tok_stream *s, char *out);

/* ---- chat template (moe/load/chat.c) ---- */
struct chat_msg {
    const char *role;    /* "system", "user", "assistant" */
    const char *content;
};

/* Renders messages in ChatML, the template of the bundled model and of many others; add_prompt
 * opens the assistant's turn.  Returns the length; writes at most cap bytes, not terminated. */
size_t chat_render(const struct chat_msg *msgs, int n, bool add_prompt, char *buf, size_t cap);

/* Does the file's tokenizer.chat_template look like ChatML? ERR_UNSUPPORTED says what to do. */
enum status chat_check(const struct gguf *g, struct err *e);

#endif
