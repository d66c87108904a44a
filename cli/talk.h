/* A conversation: messages, their token ids, and the session whose KV cache follows them.
 *
 * Private to cmd_chat and its parts (slash.c, talk_file.c).  One thread.
 *
 * Every turn renders and encodes all messages; ids holds the tokens of the last turn as they really
 * were, so that what did not change is spelled as before and is found in the KV cache. */
#ifndef CLI_TALK_H
#define CLI_TALK_H

#include "cli/cli.h"
#include "cli/line.h"
#include "moe/load/chat.h"

struct talk {
    struct cli_args *a;
    tessera_engine *e;
    tessera_session *s;
    const struct tok *tok;
    struct chat *chat;
    char think[24];         /* as in struct chat_turn; "" = auto */
    struct line_reader *in;

    struct chat_msg *msgs;  /* owned, with their strings */
    int n_msgs, cap_msgs;
    int32_t *ids;           /* owned: prompt and answer of the last turn */
    int n_ids, cap_ids;
    char *system;           /* owned: the system message, NULL = none; msgs[0] when there is one */
    char *read;             /* owned: text of /read for the next message, NULL = none */

    int n_answers;          /* seeds differ from answer to answer */
    struct tessera_timing last, sum; /* sum.n_prompt counts what was computed */
    bool show_depth;        /* answers are coloured by the depth of each token's pass */
    bool show_concepts;     /* a mark behind tokens of answers that close one */
    bool failed;            /* something went wrong that is worth exit code 1 */
};

/* Messages; false and a message on stderr when there is no memory. */
bool talk_add(struct talk *t, const char *role, const char *content, const char *thinking);
void talk_pop(struct talk *t);
/* Forgets everything but the system message. */
bool talk_clear(struct talk *t);
/* Sets or removes (NULL or "") the system message. */
bool talk_set_system(struct talk *t, const char *text);
/* Sets t->think, with a word on stderr when it is not offered. */
bool talk_set_think(struct talk *t, const char *think);
void talk_close(struct talk *t);

/* Sends text as the user's message and prints the answer. */
void talk_send(struct talk *t, const char *text);
/* The last answer once more. */
void talk_again(struct talk *t);

/* What a terminal is sent for text of a depth, 0 .. n_max: from blue, soon done, to red. */
const char *talk_depth_colour(int depth, int n_max);

/* talk_file.c: FILE holds the messages as JSON, FILE.kv tokens and KV cache. */
void talk_save(struct talk *t, const char *path);
void talk_load(struct talk *t, const char *path);

/* slash.c: a line that begins with "/"; false = leave. */
bool slash_run(struct talk *t, const char *line);
/* The commands, for the tab key. */
const char *const *slash_words(void);

#endif
