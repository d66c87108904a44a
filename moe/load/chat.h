/* Chats: from messages to the ids of a prompt, and from the tokens of an answer back to what was
 * thought and what was said.
 *
 * How turns are laid out is a chat template's business: the file's own (tokenizer.chat_template, a
 * Jinja program, see jinja.h), one that the caller brings, or a built-in one by its name.  A file
 * without a template gets ChatML when its vocabulary has the markers, otherwise plain text
 * ("User: ..."), and chat_note() says so.
 *
 * What a message holds is text.  Special tokens are recognised in what the template wrote, never in
 * what it took from a message: a content that spells "<|im_end|>" ends nothing.  That covers every
 * token that is a marker, also where the file calls it user-defined.
 *
 * A struct chat is immutable: any thread, any number of calls at a time. */
#ifndef MOE_LOAD_CHAT_H
#define MOE_LOAD_CHAT_H

#include "moe/load/jinja.h"
#include "moe/load/tok.h"

struct chat;

struct chat_options {
    /* At most one of them; NULL: as the file wants it.  name: a built-in template, or NAME of the
     * file's own tokenizer.chat_template.NAME.  text[n]: a template, origin is what messages call
     * it ("the file x.jinja"). */
    const char *name;
    const char *text, *origin;
    size_t n;
    const char *kwargs;   /* a JSON object: more variables for the template; NULL = none */
    const struct tm *now; /* local time for strftime_now; NULL: that of the call */
};

/* Everything is copied but t, which must live longer.  A template that cannot be parsed is an error
 * with the template's name and line.  ERR_USAGE: kwargs are no JSON object.  ERR_MISSING: no
 * template has that name. */
enum status chat_open(const struct gguf *g, const struct tok *t, const struct chat_options *o,
                      struct chat **out, struct err *e);
void chat_close(struct chat *c); /* NULL is fine */

/* Where the template is from: "the model's tokenizer.chat_template", "the built-in template llama3". */
const char *chat_origin(const struct chat *c);
/* What was decided in want of a template, one line; NULL: nothing was. */
const char *chat_note(const struct chat *c);
/* A text at which answers end, because the template has no token for it; NULL = none. */
const char *chat_stop(const struct chat *c);
/* The name of the i-th built-in template, NULL past the end. */
const char *chat_builtin_at(int i);
/* Its text, NULL = there is none of that name. */
const char *chat_builtin(const char *name);

/* ---- there: messages to ids ---- */

struct chat_msg {
    const char *role;     /* "system", "user", "assistant"; becomes part of markers, so never text
                             that a stranger chose */
    const char *content;
    const char *thinking; /* of an answer: what was thought before it; NULL = nothing */
};

/* Thinking, where the template offers it: NULL or "auto" leaves it to the template; "on", "off"; any
 * other word is a level ("low", "high"), which goes to reasoning_effort. */
struct chat_turn {
    const struct chat_msg *msgs; /* [n], the whole conversation */
    int n;
    bool add_prompt;             /* open the assistant's turn */
    const char *think;
    const int32_t *held;         /* [n_held] ids that a session holds; may be NULL */
    int n_held;
};

/* Writes what `think` means for this template ("enable_thinking=false") to what[cap].
 * ERR_UNSUPPORTED: the template does not offer it; the message says what it does offer. */
enum status chat_think_check(const struct chat *c, const char *think, char *what, size_t cap,
                             struct err *e);

/* The text of a conversation, with what is markers and what is text.  Errors are those of
 * jinja_render, with the template's name in front.  Caller frees with jinja_text_free. */
enum status chat_render(const struct chat *c, const struct chat_turn *turn, struct jinja_text *out,
                        struct err *e);

/* ---- back: tokens to thinking and answer ---- */

enum chat_part { CHAT_SAID, CHAT_THOUGHT };

/* Gets pieces of an answer in order, never empty, never a part of a character; false stops. */
typedef bool chat_sink(void *arg, enum chat_part part, const char *text, size_t n);

/* Tells thinking ("<think>", the channels of gpt-oss, ...) from the answer and drops what marks it.
 * Plain state, filled by chat_encode; it may be copied. */
enum { CHAT_PENDING = 8 };
struct chat_reader {
    uint32_t marks;   /* which kinds of marks this template has */
    uint64_t n_read;  /* bytes of text so far */
    struct {
        uint64_t at;
        int8_t mark;
    } pending[CHAT_PENDING]; /* special tokens whose place lies in text that is still to come */
    uint8_t n_pending;
    uint8_t state;
    int8_t mark;      /* the kind of mark that opened what is being thought, -1 = none */
    int8_t wrap;      /* the same for what wraps the answer */
    bool trim;        /* white space at the start of the answer is left out */
    uint8_t n_held;   /* bytes that could become a mark */
    uint16_t n_ready;
    char held[64];
    char ready[256];  /* bytes for the sink, of ready_part */
    uint8_t ready_part;
};

/* Text of the answer, whole characters; a special token, by its text, which stands behind `held`
 * bytes that come later (struct tessera_answer has them); the end.  False: the sink said so. */
bool chat_read_text(struct chat_reader *r, const char *s, size_t n, chat_sink *sink, void *arg);
bool chat_read_special(struct chat_reader *r, const char *s, size_t n, size_t held, chat_sink *sink,
                       void *arg);
bool chat_read_end(struct chat_reader *r, chat_sink *sink, void *arg);

struct chat_prompt {
    int32_t *ids; /* malloc'd */
    int n;
    struct chat_reader reader; /* for the answer to this prompt */
};

/* The ids of a conversation from its start, BOS included when the vocabulary wants one or the
 * template writes it.  They are those of the rendered text, except that stretches between special
 * tokens which `held` spells in other tokens stay as they are held: an answer is rarely cut into
 * tokens as its text would be, and what a session holds need not be computed again. */
enum status chat_encode(const struct chat *c, const struct chat_turn *turn,
                        struct chat_prompt *out, struct err *e);

#endif
