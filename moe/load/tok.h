/* Tokenizers: text to ids and back, from the vocabulary in a GGUF file.
 *
 * Two families: SentencePiece-style (tokenizer.ggml.model "llama": scores, byte fallback, "▁" for
 * space; "gemma4": the same with merges for scores) and byte-level BPE ("gpt2": merges, a
 * pre-tokenizer expression chosen by tokenizer.ggml.pre; PCRE2 carries the expressions).  Text is
 * bytes: invalid UTF-8 is encoded, never an error, and the pieces of the ids joined are the text
 * again, with three exceptions that lie in the vocabularies: a SentencePiece one may put a space
 * first (add_space_prefix), it reads a literal "▁" as a space, and one without byte tokens has no
 * ids for what it does not know.
 *
 * Text that is encoded without TOK_SPECIAL never yields a control id, whatever it spells.
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

/* Encodes n bytes.  flags: TOK_BOS puts the BOS id first when the vocabulary wants one (and the EOS
 * id last in the rare one that asks for that, tokenizer.ggml.add_eos_token); TOK_SPECIAL recognises
 * control tokens ("<|im_end|>") in the text, otherwise they are plain text.  User-defined tokens
 * are always recognised; the longest match at the leftmost place wins.
 * Returns the number of ids; writes at most cap of them (call with cap 0 to size).  Negative on
 * out of memory, or for 512 MiB of text and more.  O(n log n); scratch memory in proportion to the
 * longest word, freed on return. */
int64_t tok_encode(const struct tok *t, const char *text, size_t n, unsigned flags, int32_t *ids,
                   int64_t cap);

/* The bytes of one id, as they stand in text ("▁" is a space, byte tokens are their byte);
 * control, unknown and unused tokens have none unless special is set; an id that is not in the
 * vocabulary has none.  Returns the length (at most TOK_PIECE_MAX), writes at most cap. */
enum { TOK_PIECE_MAX = 4096 };
int tok_piece(const struct tok *t, int32_t id, bool special, char *buf, int cap);

int32_t tok_n_vocab(const struct tok *t);
int32_t tok_bos(const struct tok *t);   /* -1 = none */
int32_t tok_eos(const struct tok *t);   /* -1 = none */
bool tok_adds_bos(const struct tok *t);
/* Does this id end an answer (eos, eot, eom, "<|im_end|>", "<|endoftext|>" ...)? */
bool tok_is_end(const struct tok *t, int32_t id);
/* The id of a token by its exact text, -1 = none. */
int32_t tok_find(const struct tok *t, const char *text);
/* "llama", "gemma4" or "gpt2", and the pre-tokenizer's name ("-" for none). */
const char *tok_model(const struct tok *t);
const char *tok_pre(const struct tok *t);
/* The i-th known pre-tokenizer name, NULL past the end. */
const char *tok_pre_at(int i);

/* Streaming detokenisation: bytes of a split UTF-8 character are kept back until it is whole;
 * bytes that can never become valid come out as U+FFFD, one for each maximal invalid stretch of a
 * character, as soon as that is certain.  What comes out is always valid UTF-8 and never ends
 * inside a character.  Plain state, zero-initialised, no allocation. */
#define TOK_STREAM_CAP(n) (3 * (n) + 8)
struct tok_stream {
    char held[8];
    int n_held;
};

/* Appends the n bytes of one piece; writes what is ready to out, which has room for
 * TOK_STREAM_CAP(n) bytes (an invalid byte becomes three); returns its length. */
int tok_stream_push(struct tok_stream *s, const char *piece, int n, char *out);
/* The end: what is still held back comes out as U+FFFD.  Room for 8 bytes. */
int tok_stream_flush(struct tok_stream *s, char *out);

#endif
