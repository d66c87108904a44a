/* Inside chats: what chat.c, chat_think.c and chat_read.c share. */
#ifndef MOE_LOAD_CHAT_INT_H
#define MOE_LOAD_CHAT_INT_H

#include "moe/load/chat.h"

struct chat {
    const struct tok *t; /* borrowed */
    struct jinja *tpl;
    char *src;           /* [n_src] */
    size_t n_src;
    char origin[256];
    const char *note;    /* static */
    const char *stop;    /* static */
    char *head;          /* the variables that never change: a JSON object without its "}" */
    struct tm now;
    bool fixed_now;
    uint8_t *type;       /* [n_vocab] types of tokens as chats see them */
    uint32_t marks;      /* for struct chat_reader */
    uint32_t ways;       /* how thinking is switched, see chat_think.c */
};

/* Bytes in the making. */
struct chat_text {
    char *s; /* terminated */
    size_t n, cap;
    bool oom;
};
void chat_put(struct chat_text *b, const char *s, size_t n);
void chat_puts(struct chat_text *b, const char *s);
void chat_put_json(struct chat_text *b, const char *s); /* quoted */

/* The first place of a text in s[n], NULL = none. */
const char *chat_find(const char *s, size_t n, const char *part);

/* chat_think.c: finds out c->ways (ERR_MEMORY); puts the variables, each with a comma in front. */
enum status chat_think_find(struct chat *c, struct err *e);
void chat_think_put(const struct chat *c, const char *think, struct chat_text *b);

/* chat_read.c: which marks a template has; the state behind the tail of a prompt, which is what
 * the template wrote last. */
uint32_t chat_marks(const char *src, size_t n);
void chat_reader_begin(struct chat_reader *r, uint32_t marks, const char *tail, size_t n);

#endif
