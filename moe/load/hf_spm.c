/* tokenizer.model: the pieces of a SentencePiece model, out of its protocol buffer.
 *
 * Fields are read in any order and unknown ones are stepped over, as the format demands:
 *   ModelProto          1 repeated SentencePiece | 2 TrainerSpec | 3 NormalizerSpec
 *   SentencePiece       1 text | 2 score (float) | 3 type (1 normal, 2 unknown, 3 control, 4 user
 *                       defined, 5 unused, 6 byte)
 *   TrainerSpec         3 kind (1 unigram, 2 BPE, 3 word, 4 char)
 *   NormalizerSpec      3 add_dummy_prefix
 * The file is untrusted: every length goes through the cursor.  Owns nothing but what it
 * returns. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "moe/base/f16.h"
#include "moe/load/cursor.h"
#include "moe/load/hf_int.h"

enum { VARINT, FIXED64, BYTES, FIXED32 = 5, PIECES_MAX = 1 << 22 };

struct field {
    uint32_t number;
    int kind;
    uint64_t value;    /* VARINT, FIXED32, FIXED64 */
    struct cursor in;  /* BYTES */
};

static uint64_t varint(struct cursor *c)
{
    uint64_t v = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        const uint8_t b = cursor_u8(c);
        v |= (uint64_t)(b & 0x7f) << shift;
        if (!(b & 0x80)) return v;
    }
    (void)cursor_fail(c, 1);
    return 0;
}

/* The next field; false at the end or after a failure (c->failed). */
static bool next(struct cursor *c, struct field *f)
{
    if (c->failed || !cursor_left(c)) return false;
    const uint64_t tag = varint(c);
    f->number = (uint32_t)(tag >> 3);
    f->kind = (int)(tag & 7);
    if (f->kind == VARINT) {
        f->value = varint(c);
    } else if (f->kind == FIXED64) {
        f->value = cursor_u64(c);
    } else if (f->kind == FIXED32) {
        f->value = cursor_u32(c);
    } else if (f->kind == BYTES) {
        const uint64_t n = varint(c), at = c->pos;
        if (cursor_skip(c, n)) {
            cursor_init(&f->in, c->base, at + n);
            f->in.pos = at;
        }
    } else {
        (void)cursor_fail(c, 1);
    }
    return !c->failed;
}

static bool read_piece(struct cursor c, struct hf_piece *p)
{
    struct field f;
    memset(p, 0, sizeof *p);
    p->type = TOK_NORMAL;
    while (next(&c, &f)) {
        if (f.number == 1 && f.kind == BYTES) {
            p->s = (const char *)f.in.base + f.in.pos;
            p->n = (uint32_t)cursor_left(&f.in);
            if (p->n > TOK_PIECE_MAX) return false;
        } else if (f.number == 2 && f.kind == FIXED32) {
            p->score = f32_from_bits((uint32_t)f.value);
        } else if (f.number == 3 && f.kind == VARINT) {
            if (f.value < TOK_NORMAL || f.value > TOK_BYTE) return false;
            p->type = (uint8_t)f.value;
        }
    }
    return !c.failed && p->s && isfinite(p->score);
}

/* The value of a number field, dflt when it is absent; false when the bytes are malformed. */
static bool number(struct cursor c, uint32_t which, uint64_t dflt, uint64_t *out)
{
    struct field f;
    *out = dflt;
    while (next(&c, &f))
        if (f.number == which && f.kind == VARINT) *out = f.value;
    return !c.failed;
}

enum status hf_spm_parse(const char *path, const char *bytes, uint64_t size,
                         struct hf_piece **pieces, uint32_t *n, bool *add_space, struct err *e)
{
    struct cursor c;
    struct field f;
    uint64_t kind = 1, prefix = 1, cap = 0;
    bool good = true;
    *pieces = NULL;
    *n = 0;
    cursor_init(&c, bytes, size);
    while (good && next(&c, &f)) {
        if (f.kind != BYTES) continue;
        if (f.number == 2) good = number(f.in, 3, 1, &kind);
        if (f.number == 3) good = number(f.in, 3, 1, &prefix);
        if (f.number != 1) continue;
        if (*n == cap) {
            cap = cap ? cap * 2 : 1024;
            struct hf_piece *p = cap > PIECES_MAX ? NULL : realloc(*pieces, cap * sizeof *p);
            if (!p) return err_set(e, ERR_MEMORY, "no memory for the pieces of %s", path);
            *pieces = p;
        }
        good = read_piece(f.in, &(*pieces)[*n]);
        *n += good;
    }
    if (!good || c.failed || !*n)
        return err_set_at(e, ERR_FORMAT, c.pos, "%s: byte %llu: this is no SentencePiece model, or "
                          "it is damaged", path, (unsigned long long)c.pos);
    if (kind != 2)
        return err_set(e, ERR_UNSUPPORTED, "%s is a SentencePiece model of kind %llu; 2 (BPE) is "
                       "supported", path, (unsigned long long)kind);
    *add_space = prefix != 0;
    return OK;
}
