/* Chat templates: a Jinja interpreter, as far as templates in GGUF files (tokenizer.chat_template)
 * and their edited copies go, with the results of jinja2 as Hugging Face sets it up: trim_blocks,
 * lstrip_blocks, loop controls, generation blocks, tojson without HTML escapes, raise_exception,
 * strftime_now, an immutable sandbox.
 *
 * A template is a program from a stranger.  It gets nothing but the variables it is given, and
 * steps, memory, output and depth are counted: what goes beyond the limits is an error, like every
 * mistake in the template.  Errors carry line and column of the template (err.pos is the byte; a
 * CR LF counts as one there).
 *
 * What a template cannot do here and can in jinja2: include, import, extends and block, recursive
 * loops, integers beyond 64 bits, "\N{...}", and the filters that make HTML (urlize, xmlattr,
 * striptags ...).  What it can do here and not there: append to a list.
 *
 * A parsed template is immutable: any thread, any number of renders at a time. */
#ifndef MOE_LOAD_JINJA_H
#define MOE_LOAD_JINJA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "moe/base/err.h"

struct jinja;

/* ERR_FORMAT for a syntax error, ERR_UNSUPPORTED for a statement that is not known here, ERR_RANGE
 * for a template of more than 1 MiB or nested too deep, ERR_MEMORY.  src may go afterwards. */
enum status jinja_parse(const char *src, size_t n, struct jinja **out, struct err *e);
void jinja_free(struct jinja *t); /* NULL is fine */

/* Does the template mention this name anywhere (a variable such as "enable_thinking")? */
bool jinja_mentions(const struct jinja *t, const char *name);

/* 0 means the default. */
struct jinja_limits {
    uint64_t steps; /* evaluated nodes, iterations, and 64 bytes of text each; 20 million */
    size_t bytes;   /* memory of one render, variables and output included; 64 MiB */
    size_t output;  /* bytes of text; 16 MiB */
    int depth;      /* nested evaluations, a call of a macro being some six; 600.  The worst that
                       the tests know takes 256 KiB of stack, 1 MiB under AddressSanitizer. */
};

/* What a template may learn of the world.  Zeroes (or NULL instead of it) are the defaults. */
struct jinja_env {
    /* Local time for strftime_now; NULL is the system's clock.  False: the template fails. */
    bool (*now)(void *arg, struct tm *local);
    void *arg;
    /* Variables whose text is as good as the template's own, see struct jinja_run: paths such as
     * "eos_token" or "messages.*.role" (a star is any key or index; what lies below a path belongs
     * to it), the list ended by NULL, at most 32.  NULL is jinja_trusted. */
    const char *const *trusted;
};

/* bos_token, eos_token, pad_token, unk_token, and messages.*.role, because templates build markers
 * of it ("<|user|>").  Who lets strangers choose roles checks them first, or leaves them out. */
extern const char *const jinja_trusted[];

/* Text between two bytes comes from the template (or a trusted variable), or from a variable:
 * then special tokens that it spells are what somebody typed, not markers.  The origin is known
 * byte by byte and survives every filter; numbers, True, None and the punctuation of printed lists
 * and of tojson count as the template's. */
struct jinja_run {
    size_t start, end;
    bool from_variable;
};

struct jinja_text {
    char *s; /* terminated, but may hold zero bytes */
    size_t n;
    struct jinja_run *run; /* in order, without gaps; neighbours differ */
    size_t n_runs;
};

/* Renders with the members of one JSON object as variables (numbers without fraction or exponent
 * are integers, the order of keys is kept, of equal keys the last one counts).
 * ERR_USAGE: the JSON is malformed.  ERR_RANGE: a limit.  ERR_UNSUPPORTED: the template refused
 * these messages (raise_exception) or needs something unknown.  ERR_FORMAT: any other error of the
 * template: types, undefined things, arguments.  ERR_MEMORY.
 * After an error there is nothing to free in *out. */
enum status jinja_render(const struct jinja *t, const char *vars_json,
                         const struct jinja_limits *limits, const struct jinja_env *env,
                         struct jinja_text *out, struct err *e);
void jinja_text_free(struct jinja_text *t);

#endif
