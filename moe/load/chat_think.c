/* Chats: switching thinking on and off.
 *
 * Templates agree on no name for it.  A way of switching counts when the template mentions its
 * variable and a small conversation comes out different with it on and off; all ways that count are
 * used together. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moe/load/chat_int.h"

/* reasoning_effort has levels; which one means "off" differs, see low_level. */
static const struct way {
    const char *name, *on, *off; /* off NULL: the lowest level */
} ways[] = {
    {"enable_thinking", "true", "false"},
    {"thinking", "true", "false"},
    {"reasoning", "true", "false"},
    {"thinking_mode", "\"enabled\"", "\"disabled\""},
    {"thinking_budget", "-1", "0"},
    {"reasoning_effort", "\"high\"", NULL},
};
enum { N_WAYS = sizeof ways / sizeof ways[0], EFFORT = N_WAYS - 1 };

/* The lowest level that the template spells out, as JSON. */
static const char *low_level(const struct chat *c)
{
    static const char *const levels[] = {"\"none\"", "\"no_think\"", "\"minimal\""};
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++) {
        char single[16];
        size_t n = strlen(levels[i]);
        memcpy(single, levels[i], n + 1);
        single[0] = single[n - 1] = '\'';
        if (chat_find(c->src, c->n_src, levels[i]) || chat_find(c->src, c->n_src, single))
            return levels[i];
    }
    return "\"low\"";
}

static const char *value(const struct chat *c, int way, bool on)
{
    return on ? ways[way].on : ways[way].off ? ways[way].off : low_level(c);
}

static bool is_auto(const char *think) { return !think || !strcmp(think, "auto"); }
static bool is_level(const char *think)
{
    return !is_auto(think) && strcmp(think, "on") && strcmp(think, "off");
}

/* Is this way used for that word?  A level is for reasoning_effort, and thinking is on then; on and
 * off leave the level alone when there is a switch. */
static bool used(const struct chat *c, int way, const char *think)
{
    if (is_auto(think)) return false;
    if (way == EFFORT && is_level(think)) return true;
    if (way == EFFORT && c->ways & ((1u << EFFORT) - 1)) return false;
    return c->ways >> way & 1;
}

void chat_think_put(const struct chat *c, const char *think, struct chat_text *b)
{
    for (int i = 0; i < N_WAYS; i++) {
        if (!used(c, i, think)) continue;
        chat_puts(b, ",");
        chat_put_json(b, ways[i].name);
        chat_puts(b, ":");
        if (i == EFFORT && is_level(think)) chat_put_json(b, think);
        else chat_puts(b, value(c, i, strcmp(think, "off") != 0));
    }
}

/* ---- what the template offers ---- */

static const struct chat_msg question = {.role = "user", .content = "hello"};

/* The small conversation, terminated; NULL when the template refuses it. */
static char *sample(const struct chat *c, const char *think, struct err *e)
{
    struct jinja_text text;
    struct chat_turn turn = {.msgs = &question, .n = 1, .add_prompt = true, .think = think};
    if (chat_render(c, &turn, &text, e)) return NULL;
    char *s = text.s;
    text.s = NULL;
    jinja_text_free(&text);
    return s;
}

enum status chat_think_find(struct chat *c, struct err *e)
{
    uint32_t found = 0;
    for (int i = 0; i < N_WAYS; i++) {
        struct err inner; /* a refusal is an answer; a lack of memory is none */
        err_clear(&inner);
        if (!jinja_mentions(c->tpl, ways[i].name)) continue;
        c->ways = 1u << i;
        char *on = sample(c, "on", &inner), *off = sample(c, "off", &inner);
        if (on && off && strcmp(on, off)) found |= c->ways;
        free(on);
        free(off);
        if (inner.code == ERR_MEMORY) return err_set(e, ERR_MEMORY, "%s", inner.msg);
    }
    c->ways = found;
    return OK;
}

/* `,"a":1,"b":"x"` to `a=1, b=x`. */
static void describe(const char *json, char *what, size_t cap)
{
    size_t n = 0;
    for (const char *p = json + 1; *p && n + 3 < cap; p++) {
        if (*p == '"') continue;
        what[n++] = *p == ':' ? '=' : *p;
        if (*p == ',') what[n++] = ' ';
    }
    what[n] = 0;
}

static enum status refuse(const struct chat *c, const char *think, struct err *e)
{
    if (is_level(think))
        return err_set(e, ERR_UNSUPPORTED, "%s has no levels of thinking such as \"%.20s\"%s",
                       c->origin, think, c->ways ? "; it has on and off" : "");
    return err_set(e, ERR_UNSUPPORTED, "%s has no switch for thinking", c->origin);
}

enum status chat_think_check(const struct chat *c, const char *think, char *what, size_t cap,
                             struct err *e)
{
    struct chat_text b = {0};
    (void)snprintf(what, cap, "as the template has it");
    if (is_auto(think)) return OK;
    if (is_level(think) ? !jinja_mentions(c->tpl, "reasoning_effort") : !c->ways)
        return refuse(c, think, e);
    chat_think_put(c, think, &b);
    if (b.oom) return err_set(e, ERR_MEMORY, "no memory for the chat template");
    describe(b.s, what, cap);
    free(b.s);
    struct err inner; /* some templates refuse levels that they do not know */
    err_clear(&inner);
    char *text = sample(c, think, &inner);
    free(text);
    return text ? OK : err_set(e, inner.code, "%s", inner.msg);
}
