/* UTF-8 as a stream: which bytes are a character, and pieces of text put together again.
 *
 * Ids of a byte-level vocabulary cut characters anywhere; a terminal and JSON want whole ones.
 * Owns nothing, allocates nothing; knows no vocabulary. */
#include <string.h>

#include "moe/load/tok_int.h"

/* What the second byte may be after lead byte b: this excludes overlong forms, surrogates and
 * everything above U+10FFFF (table 3-7 of the Unicode standard); later bytes are 80..BF. */
static int lead(unsigned char b, unsigned char *lo, unsigned char *hi)
{
    *lo = b == 0xe0 ? 0xa0 : b == 0xf0 ? 0x90 : 0x80;
    *hi = b == 0xed ? 0x9f : b == 0xf4 ? 0x8f : 0xbf;
    if (b < 0x80) return 1;
    if (b < 0xc2) return 0;
    if (b < 0xe0) return 2;
    if (b < 0xf0) return 3;
    return b < 0xf5 ? 4 : 0;
}

enum utf8_kind utf8_look(const char *s, size_t n, int *len)
{
    unsigned char lo, hi;
    int want = lead((unsigned char)s[0], &lo, &hi);
    *len = 1;
    if (!want) return UTF8_BAD;
    for (; *len < want; ++*len) {
        if ((size_t)*len == n) return UTF8_PART;
        unsigned char b = (unsigned char)s[*len];
        if (b < lo || b > hi) return UTF8_BAD;
        lo = 0x80;
        hi = 0xbf;
    }
    return UTF8_CHAR;
}

static int put_replacement(char *out)
{
    memcpy(out, "\xef\xbf\xbd", 3);
    return 3;
}

/* Settles the held bytes with one more byte in sight: writes the character or U+FFFD once it is
 * known which, and keeps the rest. */
static int settle(struct tok_stream *s, char *out)
{
    int n_out = 0;
    while (s->n_held) {
        int len;
        enum utf8_kind kind = utf8_look(s->held, (size_t)s->n_held, &len);
        if (kind == UTF8_PART) break;
        if (kind == UTF8_CHAR) memcpy(out + n_out, s->held, (size_t)len);
        n_out += kind == UTF8_CHAR ? len : put_replacement(out + n_out);
        s->n_held -= len;
        memmove(s->held, s->held + len, (size_t)s->n_held);
    }
    return n_out;
}

int tok_stream_push(struct tok_stream *s, const char *piece, int n, char *out)
{
    int n_out = 0;
    for (int i = 0; i < n; i++) {
        s->held[s->n_held++] = piece[i]; /* at most 3 are held between bytes */
        n_out += settle(s, out + n_out);
    }
    return n_out;
}

int tok_stream_flush(struct tok_stream *s, char *out)
{
    int n_out = s->n_held ? put_replacement(out) : 0;
    s->n_held = 0;
    return n_out;
}
