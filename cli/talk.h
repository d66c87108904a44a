/* A conversation: messages, their token ids, and the session whose KV cache follows them.
 *
 * Private to cmd_chat and its parts (slash.c, talk_file.c).  One thread.
 *
 * ids holds the tokens of all messages as they really were sampled, so that the next turn finds
 * them in the KV cache; where that cannot be (a stop string cut the text, a new system message, a
 * loaded file) `exact` is false and the next turn encodes all messages anew.  Invariant between
 * turns: with exact, ids ends with the <|im_end|> of the last message. */
#ifndef CLI_TALK_H
#define CLI_TALK_H

#include "cli/cli.h"
#include "cli/line.h"
#include "moe/load/tok.h"

struct talk {
    struct cli_args *a;
    tessera_engine *e;
    tessera_session *s;
    const struct tok *tok;
    struct line_reader *in;

    struct chat_msg *msgs;  /* owned, with their strings */
    int n_msgs, cap_msgs;
    int32_t *ids;           /* owned */
    int n_ids, cap_ids;
    bool exact;
    int n_prompt;           /* how many of ids were the prompt of the last answer; 0 = unknown */
    char *system;           /* owned: the system message, NULL = none; msgs[0] when there is one */
    char *read;             /* owned: text of /read for the next message, NULL = none */

    int n_answers;          /* seeds differ from answer to answer */
    struct tessera_timing last, sum; /* sum.n_prompt counts what was computed */
    bool failed;            /* something went wrong that is worth exit code 1 */
};

/* Messages; false and a message on stderr when there is no memory. */
bool talk_add(struct talk *t, const char *role, const char *content);
void talk_pop(struct talk *t);
/* Forgets everything but the system message. */
bool talk_clear(struct talk *t);
/* Sets or removes (NULL or "") the system message; the next turn reads everything anew. */
bool talk_set_system(struct talk *t, const char *text);
void talk_close(struct talk *t);

/* Sends text as the user's message and prints the answer. */
void talk_send(struct talk *t, const char *text);
/* The last answer once more. */
void talk_again(struct talk *t);

/* talk_file.c: FILE holds the messages as JSON, FILE.kv tokens and KV cache. */
void talk_save(struct talk *t, const char *path);
void talk_load(struct talk *t, const char *path);

/* slash.c: a line that begins with "/"; false = leave. */
bool slash_run(struct talk *t, const char *line);
/* The commands, for the tab key. */
const char *const *slash_words(void);

#endif
