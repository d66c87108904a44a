/* Inside the tokenizer: what tok.c, tok_merge.c, tok_spm.c, tok_bpe.c and tok_pre.c share.
 *
 * struct tok is filled by tok_open and constant afterwards; struct enc is the state of one call,
 * on the caller's stack.  Nothing here is seen outside moe/load and its tests. */
#ifndef MOE_LOAD_TOK_INT_H
#define MOE_LOAD_TOK_INT_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "moe/load/tok.h"

/* tokenizer.ggml.token_type, as GGUF numbers them. */
enum tok_type {
    TOK_NORMAL = 1,
    TOK_UNKNOWN,
    TOK_CONTROL,
    TOK_USER,
    TOK_UNUSED,
    TOK_BYTE,
};

enum {
    PRE_EXPRS = 6,            /* expressions of a pre-tokenizer, at most */
    WORD_KEY = 16,            /* bytes of a word that the cache can hold */
    WORD_IDS = 7,             /* and its ids */
    WORD_SLOTS = 2048,        /* a power of two */
    SMALL_SYMS = 64,          /* words up to here need no allocation */
    TEXT_MAX = (1 << 29) - 1, /* bytes of one stretch of text; heap indices are int32_t */
};

/* The letters of DeepSeek's first vocabulary (Latin, Greek, Cyrillic, Armenian, Cherokee ...
 * without Lo and Lm), inside brackets. */
#define TOK_DEEPSEEK_LETTERS                                                                \
    "A-Za-z\\x{b5}\\x{c0}-\\x{d6}\\x{d8}-\\x{f6}\\x{f8}-\\x{1ba}\\x{1bc}-\\x{1bf}"          \
    "\\x{1c4}-\\x{293}\\x{295}-\\x{2af}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37b}-\\x{37d}"  \
    "\\x{37f}\\x{386}\\x{388}-\\x{38a}\\x{38c}\\x{38e}-\\x{3a1}\\x{3a3}-\\x{3f5}"           \
    "\\x{3f7}-\\x{481}\\x{48a}-\\x{52f}\\x{531}-\\x{556}\\x{10a0}-\\x{10c5}"                \
    "\\x{13a0}-\\x{13f5}\\x{13f8}-\\x{13fd}\\x{1c90}-\\x{1cba}\\x{1cbd}-\\x{1cbf}"          \
    "\\x{1d00}-\\x{1d2b}\\x{1d6b}-\\x{1d77}\\x{1d79}-\\x{1d9a}\\x{1e00}-\\x{1f15}"          \
    "\\x{1f18}-\\x{1f1d}\\x{1f20}-\\x{1f45}\\x{1f48}-\\x{1f4d}\\x{1f50}-\\x{1f57}\\x{1f59}" \
    "\\x{1f5b}\\x{1f5d}\\x{1f5f}-\\x{1f7d}\\x{1f80}-\\x{1fb4}\\x{1fb6}-\\x{1fbc}\\x{1fbe}"  \
    "\\x{1fc2}-\\x{1fc4}\\x{1fc6}-\\x{1fcc}\\x{1fd0}-\\x{1fd3}\\x{1fd6}-\\x{1fdb}"          \
    "\\x{1fe0}-\\x{1fec}\\x{1ff2}-\\x{1ff4}\\x{1ff6}-\\x{1ffc}\\x{2102}\\x{2107}"           \
    "\\x{210a}-\\x{2113}\\x{2115}\\x{2119}-\\x{211d}\\x{2124}\\x{2126}\\x{2128}"            \
    "\\x{212a}-\\x{212d}\\x{212f}-\\x{2134}\\x{2139}\\x{213c}-\\x{213f}\\x{2145}-\\x{2149}" \
    "\\x{214e}\\x{2183}\\x{2184}\\x{2c00}-\\x{2c7b}\\x{2c7e}-\\x{2ce4}\\x{2ceb}-\\x{2cee}"  \
    "\\x{2cf2}\\x{2cf3}\\x{a640}-\\x{a66d}\\x{a680}-\\x{a69b}\\x{a722}-\\x{a76f}"           \
    "\\x{a771}-\\x{a787}\\x{a78b}-\\x{a78e}\\x{ab70}-\\x{abbf}\\x{fb00}-\\x{fb06}"          \
    "\\x{fb13}-\\x{fb17}\\x{ff21}-\\x{ff3a}\\x{ff41}-\\x{ff5a}\\x{10400}-\\x{1044f}"        \
    "\\x{104b0}-\\x{104d3}\\x{104d8}-\\x{104fb}\\x{10c80}-\\x{10cb2}\\x{10cc0}-\\x{10cf2}"  \
    "\\x{118a0}-\\x{118df}\\x{1e900}-\\x{1e943}"

/* One known value of tokenizer.ggml.pre. */
struct pre {
    const char *name;
    bool ignore_merges; /* a word that is a token stays whole, whatever the merges say */
    bool add_bos;       /* default of tokenizer.ggml.add_bos_token */
    const char *expr[PRE_EXPRS + 1]; /* NULL-terminated; each cuts what the ones before left */
};

/* One merge: the pair, its place in the list and what it makes.  left < 0: empty slot. */
struct pair {
    int32_t left, right;
    uint32_t rank;
    int32_t id;
};

struct tok {
    bool spm;
    int32_t n;        /* ids are 0 .. n-1 */
    char *blob;       /* the texts, one after the other, as they stand in the file */
    uint32_t *off;    /* [n+1] text of id i: blob[off[i] .. off[i+1]) */
    uint8_t *type;    /* [n] enum tok_type */
    bool *end;        /* [n] ends an answer */
    int32_t *slot;    /* [n_slot] text -> id, -1 = empty; linear probing */
    uint32_t n_slot;

    int32_t bos, eos, unk;
    bool add_bos, add_eos;
    int32_t byte_id[256]; /* -1 = the vocabulary has none */

    int32_t *special;     /* [n_special] control, unknown and user-defined ids, sorted by text */
    int32_t n_special;
    bool first_any[256];  /* does a special text begin with this byte? */
    bool first_user[256]; /* and a user-defined one? */

    /* SentencePiece */
    bool ranked;          /* gemma4: merged by `pair`, as byte-level BPE, not by `order` */
    uint32_t *order;      /* [n] merge order from the score: smaller merges first */
    bool add_space;
    bool word_split;      /* no token has a space behind another character: see tok_spm.c */

    struct pair *pair;    /* [n_pair] the merges, where texts are merged by rank */
    uint32_t n_pair;

    /* byte-level BPE */
    const struct pre *pre;
    bool ignore_merges;
    pcre2_code *code[PRE_EXPRS];
    int n_code;
};

/* A symbol of the word that is being merged; len 0 = swallowed by its left neighbour. */
struct sym {
    int32_t prev, next; /* -1 = none */
    int32_t pos, len;   /* bytes in the word */
    int32_t id;         /* -1 = no token spells it */
};

/* A possible merge of symbol `left` with its right neighbour. */
struct cand {
    uint32_t order; /* rank of the merge, or order of the score: smallest first, then leftmost */
    int32_t left;
    int32_t len;    /* of both, when the candidate was found: tells a stale one */
    int32_t id;     /* what they become */
};

struct word {
    char key[WORD_KEY];
    int32_t id[WORD_IDS];
    uint8_t len, n_ids; /* len 0 = empty */
};

/* A part of the text, up to `end`: do special tokens count in it? */
struct enc_span {
    size_t end;
    bool special;
};

struct enc {
    const struct tok *t;
    const uint8_t *type; /* [t->n] t's, unless the caller knows better */
    int32_t *ids;
    int64_t cap, n;      /* n counts on beyond cap */
    bool oom;            /* out of memory, or text of a length that indices do not reach */
    bool after_special;  /* SentencePiece: the next stretch of text gets its leading space */

    int32_t last[WORD_IDS]; /* the first ids put since word_begin, also those beyond cap */
    int n_last;             /* how many were put */

    struct word *words;  /* [WORD_SLOTS] or NULL: results of short words seen in this call */

    struct sym *sym;     /* [n_sym] the word; small or on the heap */
    struct cand *heap;   /* [2 * n_sym] */
    int32_t cap_sym;
    char *text;          /* SentencePiece: the word with its spaces escaped */
    size_t cap_text;
    pcre2_match_data *md;

    struct sym small_sym[SMALL_SYMS];
    struct cand small_heap[2 * SMALL_SYMS];
};

/* ---- tok.c ---- */
static inline const char *tok_text(const struct tok *t, int32_t id, uint32_t *len)
{
    *len = t->off[id + 1] - t->off[id];
    return t->blob + t->off[id];
}

uint64_t tok_hash(const char *s, size_t n);
/* The id of a text, -1 = none. */
int32_t tok_lookup(const struct tok *t, const char *s, size_t n);

/* A call that encodes several stretches one after the other: begin, then spans and put in any
 * order, then end, which returns the count or -1. */
void enc_begin(struct enc *e, const struct tok *t, size_t n_hint, int32_t *ids, int64_t cap);
/* One stretch; its spans follow each other and the last one ends with it. */
void enc_spans(struct enc *e, const char *s, size_t n, const struct enc_span *span);
int64_t enc_end(struct enc *e);

static inline void enc_put(struct enc *e, int32_t id)
{
    if (e->n < e->cap) e->ids[e->n] = id;
    e->n++;
    if (e->n_last < WORD_IDS) e->last[e->n_last] = id;
    e->n_last += e->n_last <= WORD_IDS;
}

/* ---- tok_merge.c ---- */
/* Room for n symbols (and as much text for SentencePiece); false sets e->oom. */
bool merge_room(struct enc *e, size_t n);
/* Merges the n symbols of e->sym until nothing merges.  word: their bytes. */
void merge_run(struct enc *e, const char *word, int32_t n);

/* Looks a short word up and puts its ids: true when it was there. */
bool word_known(struct enc *e, const char *s, size_t n);
/* Remembers the ids that were put since word_known said no. */
void word_learn(struct enc *e, const char *s, size_t n);

/* ---- tok_spm.c ---- */
enum status spm_open(struct tok *t, const struct gguf *g, struct err *e);
/* lead: the space that the vocabulary wants in front. */
void spm_encode(struct enc *e, const char *s, size_t n, bool lead);
bool spm_pair(const struct tok *t, const char *word, const struct sym *a, const struct sym *b,
              struct cand *c);
/* Puts the bytes of a symbol that no token spells. */
void spm_put_bytes(struct enc *e, const char *s, size_t n);
/* "<0x41>" -> 0x41, anything else -1. */
int spm_byte_text(const char *s, size_t n);
int spm_piece(const struct tok *t, int32_t id, char *buf, int cap);

/* ---- tok_bpe.c ---- */
enum status bpe_open(struct tok *t, const struct gguf *g, struct err *e);
enum status bpe_read_merges(struct tok *t, const struct gguf *g, struct err *e);
void bpe_close(struct tok *t);
void bpe_encode(struct enc *e, const char *s, size_t n);
const struct pair *bpe_pair(const struct tok *t, int32_t left, int32_t right);
/* Does a merge make this id? */
/* The words of a text that is valid UTF-8, in order, as the pre-tokenizer cuts them. */
struct cut {
    size_t base, end, pos; /* an expression's text, and how far it has got */
    size_t from, to;       /* its next match, when one is known that lies ahead */
};
struct cutter {
    struct enc *e;
    const char *s;
    int level;             /* the expression at work, -1 at the end */
    struct cut cut[PRE_EXPRS];
};
void cutter_begin(struct cutter *k, struct enc *e, const char *s, size_t n);
/* False at the end, or when e->oom. */
bool cutter_next(struct cutter *k, size_t *from, size_t *to);
bool bpe_is_merged(const struct tok *t, int32_t id);
int bpe_piece(const struct tok *t, int32_t id, char *buf, int cap);

/* ---- tok_pre.c ---- */
const struct pre *pre_find(const char *name, size_t n);

/* ---- tok.c ---- */
/* Does this text end an answer wherever it is a token of its own? */
bool tok_is_end_text(const char *s, size_t n);

/* ---- tok_stream.c ---- */
enum utf8_kind {
    UTF8_CHAR, /* a whole character */
    UTF8_BAD,  /* never valid, whatever follows */
    UTF8_PART, /* the beginning of a character, cut off by the end of the text */
};
/* Looks at the character at s (n >= 1); *len is its length, or that of the longest stretch that
 * could have begun one. */
enum utf8_kind utf8_look(const char *s, size_t n, int *len);

#endif
