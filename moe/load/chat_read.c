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

static const char *const sections[] = {
    "<|start|>", "<|begin|>", "<|channel|>", "<|message|>", "<|content|>", "<|think|>", "<|end|>",
    "<|return|>", "<|call|>",
};
enum { N_SECTIONS = sizeof sections / sizeof sections[0] };

/* What a special token means here: sections in their order, then pairs. */
enum mark {
    OTHER = -1,
    S_START, S_BEGIN, S_CHANNEL, S_MESSAGE, S_CONTENT, S_THINK, S_END, S_RETURN, S_CALL,
    OPEN,                   /* OPEN + i opens pair i */
    CLOSE = OPEN + N_PAIRS, /* CLOSE + i closes it */
};

/* Bits of `marks`: pairs, wraps, sections. */
#define WRAP_BIT(i) (1u << (N_PAIRS + (i)))
#define SECTIONS (1u << (N_PAIRS + N_WRAPS))

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
enum { MAX_BLANK = 32 }; /* in front of a mark; with the longest mark it fits into held */

uint32_t chat_marks(const char *src, size_t n)
{
    uint32_t marks = 1;
    for (int i = 0; i < N_PAIRS; i++)
        if (chat_find(src, n, pairs[i].open)) marks |= 1u << i;
    for (int i = 0; i < N_WRAPS; i++)
        if (chat_find(src, n, wraps[i].open)) marks |= WRAP_BIT(i);
    if (chat_find(src, n, "<|channel|>") && chat_find(src, n, "<|message|>")) marks |= SECTIONS;
    if (chat_find(src, n, "<|begin|>") && chat_find(src, n, "<|content|>")) marks |= SECTIONS;
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
    bool part = !n && r->n_held < MAX_BLANK;
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

static void begin_section(struct out *o, enum mark mark)
{
    struct chat_reader *r = o->r;
    bool header = r->state == ROLE || r->state == NAME;
    if (header && mark == S_MESSAGE) {
        bool thought = r->n_held >= 8 && !memcmp(r->held, "analysis", 8);
        enter(r, thought ? THOUGHT_TOP : SAID);
        r->mark = r->wrap = -1;
        return;
    }
    if (header && (mark == S_CHANNEL || mark == S_CONTENT || mark == S_THINK)) r->n_held = 0;
    settle(o);
    switch (mark) {
    case S_START:
    case S_BEGIN: enter(r, ROLE); break;
    case S_CHANNEL: enter(r, NAME); break;
    case S_CONTENT:
        enter(r, SAID);
        r->wrap = -1;
        break;
    case S_THINK: think(r, -1); break;
    case S_END:
    case S_RETURN:
    case S_CALL: enter(r, BETWEEN); break;
    default: break;
    }
}

static void special(struct out *o, enum mark mark)
{
    struct chat_reader *r = o->r;
    if (mark >= 0 && mark < OPEN) {
        begin_section(o, mark);
    } else if (mark >= OPEN) {
        if (r->state == START && blanks(r) == r->n_held) r->n_held = 0;
        settle(o);
        if (mark < CLOSE) {
            think(r, (int)mark - OPEN);
        } else {
            r->mark = (int8_t)(mark - CLOSE);
            answer(r);
        }
    } else if (r->state != ROLE && r->state != NAME) { /* "<|constrain|>" in a header */
        settle(o);
    }
}

/* The text of a mark, NULL when this template has no such. */
static const char *mark_text(uint32_t marks, int mark)
{
    int pair = mark < CLOSE ? mark - OPEN : mark - CLOSE;
    if (mark < OPEN) return marks & SECTIONS ? sections[mark] : NULL;
    if (!(marks >> pair & 1)) return NULL;
    return mark < CLOSE ? pairs[pair].open : pairs[pair].close;
}
enum { N_MARKS = CLOSE + N_PAIRS };

static enum mark mark_of(uint32_t marks, const char *s, size_t n)
{
    for (int i = 0; i < N_MARKS; i++) {
        const char *text = mark_text(marks, i);
        if (text && strlen(text) == n && !memcmp(s, text, n)) return (enum mark)i;
    }
    return OTHER;
}

/* ---- the calls ---- */

/* The first mark in s[n]. */
static const char *next_mark(uint32_t marks, const char *s, size_t n, enum mark *mark)
{
    const char *best = NULL;
    for (int i = 0; i < N_MARKS; i++) {
        const char *text = mark_text(marks, i), *at = text ? chat_find(s, n, text) : NULL;
        if (!at || (best && at >= best)) continue;
        best = at;
        *mark = (enum mark)i;
    }
    return best;
}

void chat_reader_begin(struct chat_reader *r, uint32_t marks, const char *tail, size_t n)
{
    struct out o = {.r = r, .ok = true};
    const char *end = tail + n;
    *r = (struct chat_reader){.marks = marks, .state = START, .mark = -1, .wrap = -1};
    for (;;) {
        enum mark mark = OTHER;
        const char *at = next_mark(marks, tail, (size_t)(end - tail), &mark);
        const char *to = at ? at : end;
        for (; tail < to && (r->state == ROLE || r->state == NAME); tail++) byte(&o, *tail);
        if (!at) break;
        special(&o, mark);
        tail = at + strlen(mark_text(marks, mark));
    }
    if (r->state == BETWEEN || r->state == SAID) enter(r, START);
    r->n_ready = 0;
}

static void bytes(struct out *o, const char *s, size_t n)
{
    for (size_t i = 0; i < n && o->ok; i++) byte(o, s[i]);
    o->r->n_read += n;
}

bool chat_read_text(struct chat_reader *r, const char *s, size_t n, chat_sink *sink, void *arg)
{
    struct out o = {.r = r, .sink = sink, .arg = arg, .ok = true};
    while (r->n_pending && r->pending[0].at <= r->n_read + n) {
        size_t before = (size_t)(r->pending[0].at - r->n_read);
        enum mark mark = (enum mark)r->pending[0].mark;
        memmove(r->pending, r->pending + 1, --r->n_pending * sizeof r->pending[0]);
        bytes(&o, s, before);
        special(&o, mark);
        s += before;
        n -= before;
    }
    bytes(&o, s, n);
    flush(&o);
    return o.ok;
}

bool chat_read_special(struct chat_reader *r, const char *s, size_t n, size_t held, chat_sink *sink,
                       void *arg)
{
    struct out o = {.r = r, .sink = sink, .arg = arg, .ok = true};
    enum mark mark = mark_of(r->marks, s, n);
    if (!held && !r->n_pending) {
        special(&o, mark);
        flush(&o);
    } else if (r->n_pending < CHAT_PENDING) {
        r->pending[r->n_pending].at = r->n_read + held;
        r->pending[r->n_pending++].mark = (int8_t)mark;
    }
    return o.ok;
}

bool chat_read_end(struct chat_reader *r, chat_sink *sink, void *arg)
{
    struct out o = {.r = r, .sink = sink, .arg = arg, .ok = true};
    for (int i = 0; i < r->n_pending; i++) special(&o, (enum mark)r->pending[i].mark);
    r->n_pending = 0;
    settle(&o);
    flush(&o);
    return o.ok;
}
