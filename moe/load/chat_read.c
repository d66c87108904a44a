/* Chats, the way back: tells thinking from the answer while tokens arrive.
 *
 * DESIGN.  Marks come in two kinds.  A pair ("<think>" ... "</think>") is found as a special token
 * anywhere; spelled as text it opens only at the start of the answer, because answers talk about
 * such things, and closes where it stands.  The channels of gpt-oss and the sections of Solar are
 * special tokens only, with a name between them:
 *
 *   <|start|>assistant<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final...
 *
 * Bytes that could become a mark are held back (never more than the longest mark has); all others
 * go to the sink at the end of each call at the latest.  Owns nothing; allocates nothing. */
#include <string.h>

#include "moe/load/chat_int.h"

static const struct pair {
    const char *open, *close;
    const char *title; /* first line of what is thought, left out; NULL = none */
} pairs[] = {
    {"<think>", "</think>", NULL}, /* always looked for: fine-tunes think without their template */
    {"<thinking>", "</thinking>", NULL},
    {"[THINK]", "[/THINK]", NULL},
    {"<seed:think>", "</seed:think>", NULL},
    {"<mm:think>", "</mm:think>", NULL},
    {"<|START_THINKING|>", "<|END_THINKING|>", NULL},
    {"<|inner_prefix|>", "<|inner_suffix|>", NULL},
    {"<|channel>", "<channel|>", "thought\n"},
    {"Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]", NULL},
};
enum { N_PAIRS = sizeof pairs / sizeof pairs[0] };

/* What some put around the answer when they think. */
static const struct pair wraps[] = {
    {"<answer>", "</answer>", NULL},
    {"<response>", "</response>", NULL},
    {"[BEGIN FINAL RESPONSE]", "[END FINAL RESPONSE]", NULL},
};
enum { N_WRAPS = sizeof wraps / sizeof wraps[0] };

/* Sections: bits behind those of pairs and wraps in `marks`. */
#define WRAP_BIT(i) (1u << (N_PAIRS + (i)))
#define CHANNELS (1u << (N_PAIRS + N_WRAPS))
#define SECTIONS (2 * CHANNELS)

enum state {
    START,       /* of the answer: only white space so far */
    SAID,
    THOUGHT_TOP, /* white space and the title are left out */
    THOUGHT,
    ROLE,        /* of the section that begins, in held; NAME: of its channel */
    NAME,
    BETWEEN,     /* behind the end of a section: nothing is shown */
};

static const char white[] = " \t\r\n";

uint32_t chat_marks(const char *src, size_t n)
{
    uint32_t marks = 1;
    for (int i = 0; i < N_PAIRS; i++)
        if (chat_holds(src, n, pairs[i].open)) marks |= 1u << i;
    for (int i = 0; i < N_WRAPS; i++)
        if (chat_holds(src, n, wraps[i].open)) marks |= WRAP_BIT(i);
    if (chat_holds(src, n, "<|channel|>") && chat_holds(src, n, "<|message|>")) marks |= CHANNELS;
    if (chat_holds(src, n, "<|begin|>") && chat_holds(src, n, "<|content|>")) marks |= SECTIONS;
    return marks;
}

/* ---- handing out ---- */

struct out {
    struct chat_reader *r;
    chat_sink *sink; /* NULL: to nobody */
    void *arg;
    bool ok;
};

static void flush(struct out *o)
{
    struct chat_reader *r = o->r;
    if (r->n_ready && o->sink && o->ok)
        o->ok = o->sink(o->arg, (enum chat_part)r->ready_part, r->ready, r->n_ready);
    r->n_ready = 0;
}

/* Buffers are cut between characters. */
static void give(struct out *o, enum chat_part part, const char *s, size_t n)
{
    struct chat_reader *r = o->r;
    for (size_t i = 0; i < n; i++) {
        bool starts = ((unsigned char)s[i] & 0xc0) != 0x80;
        if (r->ready_part != part || r->n_ready == sizeof r->ready ||
            (starts && r->n_ready > sizeof r->ready - 4))
            flush(o);
        r->ready_part = (uint8_t)part;
        r->ready[r->n_ready++] = s[i];
    }
}

/* ---- states ---- */

static void enter(struct chat_reader *r, enum state state)
{
    r->state = (uint8_t)state;
    r->n_held = 0;
}

static void think(struct chat_reader *r, int pair)
{
    enter(r, THOUGHT_TOP);
    r->mark = (int8_t)pair;
}

/* Thinking is over, the answer may begin. */
static void answer(struct chat_reader *r)
{
    enter(r, START);
    r->trim = true;
    r->wrap = -1;
    for (int i = 0; i < N_WRAPS; i++) /* some close their thinking with what opens the answer */
        if (r->mark >= 0 && !strcmp(wraps[i].open, pairs[r->mark].close)) r->wrap = (int8_t)i;
    r->mark = -1;
}

/* How s[n] compares with a mark. */
enum fit { NO, PART, WHOLE };
static enum fit fits(const char *s, size_t n, const char *mark)
{
    size_t len = strlen(mark);
    if (n > len || memcmp(s, mark, n)) return NO;
    return n == len ? WHOLE : PART;
}

static size_t blanks(const struct chat_reader *r)
{
    size_t n = 0;
    while (n < r->n_held && strchr(white, r->held[n])) n++;
    return n;
}

/* ---- bytes ----
 * Each looks at held, which has just got one byte more, and settles what it can. */

static void at_start(struct out *o)
{
    struct chat_reader *r = o->r;
    size_t blank = blanks(r), n = r->n_held - blank;
    bool part = !n && r->n_held < sizeof r->held - 1;
    for (int i = 0; n && i < N_PAIRS; i++) {
        if (!(r->marks >> i & 1)) continue;
        enum fit f = fits(r->held + blank, n, pairs[i].open);
        if (f == WHOLE) return think(r, i);
        part |= f == PART;
    }
    for (int i = 0; n && i < N_WRAPS; i++) {
        if (!(r->marks & WRAP_BIT(i)) || !r->trim) continue;
        enum fit f = fits(r->held + blank, n, wraps[i].open);
        if (f == WHOLE) {
            r->wrap = (int8_t)i;
            r->n_held = 0;
            return;
        }
        part |= f == PART;
    }
    if (part) return;
    size_t from = r->trim ? blank : 0;
    give(o, CHAT_SAID, r->held + from, r->n_held - from);
    if (r->n_held > from) enter(r, SAID);
    r->n_held = 0;
}

/* Gives the bytes that cannot begin `mark`; true when held is the whole of it. */
static bool scan(struct out *o, enum chat_part part, const char *mark)
{
    struct chat_reader *r = o->r;
    size_t done = 0;
    enum fit f = NO;
    while (done < r->n_held && (f = fits(r->held + done, r->n_held - done, mark)) == NO) done++;
    give(o, part, r->held, done);
    memmove(r->held, r->held + done, r->n_held - done);
    r->n_held = (uint8_t)(r->n_held - done);
    return r->n_held && f == WHOLE;
}

static void in_thought(struct out *o)
{
    struct chat_reader *r = o->r;
    if (r->mark < 0) { /* a section: only special tokens end it */
        give(o, CHAT_THOUGHT, r->held, r->n_held);
        r->n_held = 0;
    } else if (scan(o, CHAT_THOUGHT, pairs[r->mark].close)) {
        answer(r);
    }
}

static void at_top(struct out *o)
{
    struct chat_reader *r = o->r;
    const char *title = r->mark >= 0 ? pairs[r->mark].title : NULL;
    enum fit f = title ? fits(r->held, r->n_held, title) : NO;
    if (f == PART) return;
    if (f == WHOLE || blanks(r) == r->n_held) {
        r->n_held = 0;
        return;
    }
    r->state = THOUGHT;
    in_thought(o);
}

static void in_said(struct out *o)
{
    struct chat_reader *r = o->r;
    if (r->wrap < 0) {
        give(o, CHAT_SAID, r->held, r->n_held);
        r->n_held = 0;
    } else if (scan(o, CHAT_SAID, wraps[r->wrap].close)) {
        r->wrap = -1;
        r->n_held = 0;
    }
}

/* What stands where a name should: the model has left the format, so show what it says. */
static void leave_header(struct out *o)
{
    static const char role[] = "assistant";
    struct chat_reader *r = o->r;
    size_t n = sizeof role - 1, from = r->n_held >= n && !memcmp(r->held, role, n) ? n : 0;
    give(o, CHAT_SAID, r->held + from, r->n_held - from);
    enter(r, SAID);
}

static void byte(struct out *o, char c)
{
    struct chat_reader *r = o->r;
    if (r->state == BETWEEN) return;
    r->held[r->n_held++] = c;
    switch ((enum state)r->state) {
    case START: at_start(o); break;
    case SAID: in_said(o); break;
    case THOUGHT_TOP: at_top(o); break;
    case THOUGHT: in_thought(o); break;
    case ROLE:
    case NAME:
        if (r->n_held == sizeof r->held) leave_header(o);
        break;
    case BETWEEN: break;
    }
}

/* What is held back will not become a mark any more. */
static void settle(struct out *o)
{
    struct chat_reader *r = o->r;
    bool blank = blanks(r) == r->n_held;
    if (r->state == SAID || (r->state == START && !(r->trim && blank)))
        give(o, CHAT_SAID, r->held, r->n_held);
    if (r->state == THOUGHT || (r->state == THOUGHT_TOP && !blank))
        give(o, CHAT_THOUGHT, r->held, r->n_held);
    if (r->state == ROLE) leave_header(o);
    if (r->state == START && !blank) r->state = SAID;
    r->n_held = 0;
}

/* ---- special tokens ---- */

static bool is(const char *s, size_t n, const char *text)
{
    return strlen(text) == n && !memcmp(s, text, n);
}

/* Sections; false when the token is none of theirs. */
static bool section(struct out *o, const char *s, size_t n)
{
    struct chat_reader *r = o->r;
    if (!(r->marks & (CHANNELS | SECTIONS))) return false;
    bool header = r->state == ROLE || r->state == NAME;
    if (header && is(s, n, "<|message|>")) {
        bool thought = r->n_held >= 8 && !memcmp(r->held, "analysis", 8);
        enter(r, thought ? THOUGHT_TOP : SAID);
        r->mark = r->wrap = -1;
        return true;
    }
    if (header && (is(s, n, "<|channel|>") || is(s, n, "<|content|>") || is(s, n, "<|think|>")))
        r->n_held = 0;
    settle(o);
    if (is(s, n, "<|start|>") || is(s, n, "<|begin|>")) {
        enter(r, ROLE);
    } else if (is(s, n, "<|channel|>")) {
        enter(r, NAME);
    } else if (is(s, n, "<|content|>")) {
        enter(r, SAID);
        r->wrap = -1;
    } else if (is(s, n, "<|think|>")) {
        think(r, -1);
    } else if (is(s, n, "<|end|>") || is(s, n, "<|return|>") || is(s, n, "<|call|>")) {
        enter(r, BETWEEN);
    } else {
        return false;
    }
    return true;
}

static void special(struct out *o, const char *s, size_t n)
{
    struct chat_reader *r = o->r;
    if (section(o, s, n)) return;
    for (int i = 0; i < N_PAIRS; i++) {
        if (!(r->marks >> i & 1)) continue;
        bool open = is(s, n, pairs[i].open), close = is(s, n, pairs[i].close);
        if (!open && !close) continue;
        if (r->state == START) r->n_held = blanks(r) == r->n_held ? 0 : r->n_held;
        settle(o);
        if (open) return think(r, i);
        r->mark = (int8_t)i;
        return answer(r);
    }
    if (r->state != ROLE && r->state != NAME) settle(o);
}

/* ---- the calls ---- */

static const char *find(const char *s, size_t n, const char *part)
{
    size_t len = strlen(part);
    for (size_t i = 0; i + len <= n; i++)
        if (!memcmp(s + i, part, len)) return s + i;
    return NULL;
}

/* The first mark in s[n]; *len gets its length. */
static const char *next_mark(uint32_t marks, const char *s, size_t n, size_t *len)
{
    static const char *const sections[] = {"<|start|>", "<|channel|>", "<|message|>", "<|begin|>",
                                           "<|content|>", "<|think|>", "<|end|>"};
    const char *best = NULL;
    const char *list[2 * N_PAIRS + sizeof sections / sizeof *sections];
    size_t k = 0;
    for (int i = 0; i < N_PAIRS; i++) {
        if (!(marks >> i & 1)) continue;
        list[k++] = pairs[i].open;
        list[k++] = pairs[i].close;
    }
    for (size_t i = 0; marks & (CHANNELS | SECTIONS) && i < sizeof sections / sizeof *sections; i++)
        list[k++] = sections[i];
    for (size_t i = 0; i < k; i++) {
        const char *at = find(s, n, list[i]);
        if (at && (!best || at < best)) {
            best = at;
            *len = strlen(list[i]);
        }
    }
    return best;
}

void chat_reader_begin(struct chat_reader *r, uint32_t marks, const char *tail, size_t n)
{
    struct out o = {.r = r, .ok = true};
    const char *end = tail + n;
    *r = (struct chat_reader){.marks = marks, .state = START, .mark = -1, .wrap = -1};
    for (;;) {
        size_t len = 0;
        const char *at = next_mark(marks, tail, (size_t)(end - tail), &len);
        const char *to = at ? at : end;
        for (; tail < to && (r->state == ROLE || r->state == NAME); tail++) byte(&o, *tail);
        if (!at) break;
        special(&o, at, len);
        tail = at + len;
    }
    if (r->state == BETWEEN || r->state == SAID) enter(r, START);
    r->n_ready = 0;
}

bool chat_read_text(struct chat_reader *r, const char *s, size_t n, chat_sink *sink, void *arg)
{
    struct out o = {.r = r, .sink = sink, .arg = arg, .ok = true};
    for (size_t i = 0; i < n && o.ok; i++) byte(&o, s[i]);
    flush(&o);
    return o.ok;
}

bool chat_read_special(struct chat_reader *r, const char *s, size_t n, chat_sink *sink, void *arg)
{
    struct out o = {.r = r, .sink = sink, .arg = arg, .ok = true};
    special(&o, s, n);
    flush(&o);
    return o.ok;
}

bool chat_read_end(struct chat_reader *r, chat_sink *sink, void *arg)
{
    struct out o = {.r = r, .sink = sink, .arg = arg, .ok = true};
    settle(&o);
    flush(&o);
    return o.ok;
}
