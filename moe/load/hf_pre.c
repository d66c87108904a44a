/* Which pre-tokenizer a byte-level tokenizer.json has: its chain of steps, compared with those that
 * the makers of the known vocabularies publish.
 *
 * llama.cpp tells vocabularies apart by a hash of what they make of one text; the expressions
 * themselves say it more directly, also of fine-tunes with other tokens.  They are compared as text
 * in one spelling: code points above 0x7f as \x{hex}, line ends as \r and \n.  A chain that is not
 * in the table is an error, never a guess: --pre names it.  Constant data; owns nothing. */
#include <stdio.h>
#include <string.h>

#include "moe/load/hf_int.h"
#include "moe/load/jsonfile.h"

#define BYTES "bytes"   /* ByteLevel with GPT-2's own expression */
#define DIGITS "digits" /* each digit alone */
#define SHORT_FORMS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define MARKS_AND_SPACES "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define CL100K SHORT_FORMS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}" MARKS_AND_SPACES
#define QWEN2 SHORT_FORMS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}" MARKS_AND_SPACES
#define QWEN35                                                                  \
    SHORT_FORMS "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}" \
                "\\p{M}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define CASED(end)                                         \
    "[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+" end "|" \
    "[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER "*" end
#define CASED_TAIL "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define O200K CASED(SHORT_FORMS "?") "|\\p{N}{1,3}" CASED_TAIL
#define TEKKEN CASED("") "|\\p{N}" CASED_TAIL
#define BAILING                                                                              \
    "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]++" \
    "[\\r\\n]*|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+"
#define SEED_CODER                                                                            \
    SHORT_FORMS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\\r\\n]+|" \
                "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define DEEPSEEK3                                                                              \
    "\\p{N}{1,3}", "[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{309f}\\x{30a0}-\\x{30ff}]+",         \
        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?" \
        "[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define CJK "[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+"
#define DEEPSEEK_MARKS                                                                    \
    "\\s?[!-/:-~\\x{ff01}-\\x{ff0f}\\x{ff1a}-\\x{ff5e}\\x{2018}-\\x{201f}\\x{3000}-" \
    "\\x{3002}]+"

enum { STEPS = 7, STEP_BYTES = 2048 };

/* Several names have the same expressions; the first of moe/load/tok_pre.c's is given. */
static const struct chain {
    const char *name;
    bool ignore_merges;
    const char *step[STEPS + 1]; /* NULL-terminated; a last ByteLevel that only maps bytes counts
                                    as nothing */
} chains[] = {
    {"gpt-2", false, {BYTES}},
    {"smollm", false, {DIGITS, BYTES}},
    {"qwen2", false, {QWEN2}},
    {"qwen35", false, {QWEN35}},
    {"llama-bpe", true, {CL100K}},
    {"dbrx", false, {CL100K}},
    {"gpt-4o", false, {O200K}},
    {"tekken", true, {TEKKEN}},
    {"bailingmoe2", false, {BAILING}},
    {"seed-coder", false, {SEED_CODER}},
    {"deepseek-v3", false, {DEEPSEEK3}},
    {"deepseek-llm", false, {"[\\r\\n]", "\\s?[" TOK_DEEPSEEK_LETTERS "]+", DEEPSEEK_MARKS,
                             "\\s+$", CJK, DIGITS}},
    {"deepseek-coder", false, {"[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", CJK, DIGITS}},
};
enum { N_CHAINS = sizeof chains / sizeof *chains };

void hf_pre_names(char *buf, size_t cap)
{
    size_t n = 0;
    buf[0] = 0;
    for (int i = 0; i < N_CHAINS && n < cap; i++)
        n += (size_t)snprintf(buf + n, cap - n, "%s%s", i ? ", " : "", chains[i].name);
}

/* ---- one spelling ---- */

/* The code point at s (valid UTF-8), its length in *len; 0 where it is not valid. */
static uint32_t code_point(const char *s, int *len)
{
    static const uint8_t mask[5] = {0, 0x7f, 0x1f, 0x0f, 0x07};
    if (utf8_look(s, strlen(s), len) != UTF8_CHAR) return 0;
    uint32_t c = (uint8_t)s[0] & mask[*len];
    for (int i = 1; i < *len; i++) c = c << 6 | ((uint8_t)s[i] & 0x3fu);
    return c;
}

/* False when it is not valid UTF-8 or too long to be a known one. */
static bool spell(const char *s, char out[STEP_BYTES])
{
    size_t n = 0;
    while (*s) {
        int len = 1;
        if (n + 16 > STEP_BYTES) return false;
        if (*s == '\r' || *s == '\n') {
            out[n++] = '\\';
            out[n++] = *s == '\r' ? 'r' : 'n';
        } else if ((unsigned char)*s < 0x80) {
            out[n++] = *s;
        } else {
            const uint32_t c = code_point(s, &len);
            if (!c) return false;
            n += (size_t)snprintf(out + n, STEP_BYTES - n, "\\x{%x}", c);
        }
        s += len;
    }
    out[n] = 0;
    return true;
}

/* ---- the chain of a file ---- */

struct steps {
    char text[STEPS][STEP_BYTES];
    int n;
};

/* True when a member is absent or says what is given. */
static bool is_or_absent(const cJSON *o, const char *name, bool value)
{
    const cJSON *v = jf_get(o, name);
    return !v || cJSON_IsTrue(v) == value;
}

/* A Split that keeps what it finds as pieces: found between others, or nothing but found. */
static bool split(const cJSON *p, char out[STEP_BYTES])
{
    const char *regex = jf_str(jf_get(p, "pattern"), "Regex");
    const char *how = jf_str(p, "behavior");
    const bool invert = jf_true(p, "invert");
    if (!regex || !how) return false;
    const bool isolated = !strcmp(how, "Isolated") && !invert;
    const bool removed = !strcmp(how, "Removed") && invert;
    return (isolated || removed) && spell(regex, out);
}

/* Adds one step; false when it is of no known kind. */
static bool add_step(struct steps *s, const cJSON *p, bool last)
{
    const char *type = jf_str(p, "type");
    if (!type || s->n == STEPS) return false;
    char *out = s->text[s->n];
    if (!strcmp(type, "ByteLevel")) {
        if (!last || !is_or_absent(p, "add_prefix_space", false)) return false;
        if (!is_or_absent(p, "use_regex", true)) return true;
        (void)snprintf(out, STEP_BYTES, BYTES);
    } else if (!strcmp(type, "Digits")) {
        if (!jf_true(p, "individual_digits")) return false;
        (void)snprintf(out, STEP_BYTES, DIGITS);
    } else if (strcmp(type, "Split") || !split(p, out)) {
        return false;
    }
    s->n++;
    return true;
}

static bool same(const struct steps *s, const struct chain *c)
{
    int i = 0;
    for (; i < s->n && c->step[i]; i++)
        if (strcmp(s->text[i], c->step[i])) return false;
    return i == s->n && !c->step[i];
}

const char *hf_pre_name(const char *path, const cJSON *pre_tokenizer, bool ignore_merges,
                        struct err *e)
{
    struct steps s = {.n = 0};
    char known[256];
    const cJSON *list = jf_get(pre_tokenizer, "pretokenizers"), *strange = NULL;
    if (!cJSON_IsArray(list)) {
        if (pre_tokenizer && !add_step(&s, pre_tokenizer, true)) strange = pre_tokenizer;
    } else {
        for (const cJSON *p = list->child; p && !strange; p = p->next)
            if (!add_step(&s, p, !p->next)) strange = p;
    }
    for (int i = 0; i < N_CHAINS && !strange; i++)
        if (chains[i].ignore_merges == ignore_merges && same(&s, &chains[i])) return chains[i].name;
    hf_pre_names(known, sizeof known);
    const char *what = strange ? jf_str(strange, "type") : s.n ? s.text[0] : "nothing";
    (void)err_set(e, ERR_UNSUPPORTED, "%s: the \"pre_tokenizer\" (%.60s ...) is none of the known "
                  "ones (%s): name one that cuts words in the same way with --pre", path,
                  what ? what : "?", known);
    return NULL;
}
