/* `tessera chat`: a conversation.  stdout gets the answers and nothing else; prompts, the model's
 * line, notices and speeds go to stderr.  Lines come from line.c, turns are made by talk.c, slash
 * commands by slash.c; here is the loop, and the rules for messages of several lines. */
#include "cli/talk.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

static const char footer[] =
    "Without -p or -f the first message is typed.  Input that is piped in is read one message per\n"
    "line; answers go to stdout, each with a line end, everything else to stderr.\n"
    "  \"\"\"     begins and ends a message of several lines\n"
    "  \\       at the end of a line: the message goes on in the next\n"
    "  /help   lists the commands\n"
    "Ctrl-C stops an answer; on an empty line, twice, it leaves.  History is kept in\n"
    "$XDG_STATE_HOME/tessera/history or ~/.local/state/tessera/history.\n";

/* ---- a message of one or more lines ---- */

struct message {
    char *text; /* owned */
    size_t n, cap;
    bool block; /* between """ and """ */
    bool open;  /* the next line belongs to it as well */
};

static bool message_add(struct message *m, const char *s, size_t n)
{
    if (m->n + n + 2 > m->cap) {
        size_t cap = (m->n + n + 2) * 2 + 128;
        char *more = realloc(m->text, cap);
        if (!more) return fprintf(stderr, "tessera: no memory for the message\n"), false;
        m->text = more;
        m->cap = cap;
    }
    memcpy(m->text + m->n, s, n);
    m->n += n;
    m->text[m->n] = 0;
    return true;
}

/* Takes one line in; m->open tells if another is wanted. */
static bool message_line(struct message *m, const char *s, size_t n)
{
    bool first = !m->open, ok = true;
    if (!first) ok = m->n ? message_add(m, "\n", 1) : true;
    if (first && n >= 3 && !memcmp(s, "\"\"\"", 3)) {
        m->block = true;
        s += 3;
        n -= 3;
        first = n > 0; /* text behind the opening """ is the first line */
    }
    m->open = m->block;
    if (m->block) {
        size_t k = n;
        while (k && isspace((unsigned char)s[k - 1])) k--;
        if (k >= 3 && !memcmp(s + k - 3, "\"\"\"", 3)) {
            n = k - 3;
            m->open = false;
            if (!n && m->n && m->text[m->n - 1] == '\n') m->n--; /* """ on a line of its own */
        }
    } else if (n && s[n - 1] == '\\') {
        n--;
        m->open = true;
    }
    return ok && message_add(m, s, n);
}

static bool is_blank(const char *s)
{
    return !s[strspn(s, " \t\r\n")];
}

/* ---- the loop ---- */

enum { LEAVE = -1 }; /* read_message: the conversation is over */

/* Reads one message into m.  CLI_OK, LEAVE, or the exit code. */
static int read_message(struct talk *t, struct message *m)
{
    bool idle = false; /* the last thing was Ctrl-C on an empty line */
    for (;;) {
        const char *line;
        size_t n;
        bool empty;
        enum line_result r = line_next(t->in, m->open ? ". " : "> ", &line, &n, &empty);
        if (r == LINE_INTERRUPT) {
            cli_clear_interrupt();
            if (!line_interactive(t->in) || (idle && empty && !m->open)) return CLI_INTERRUPTED;
            idle = empty && !m->open;
            if (idle) fprintf(stderr, "%s(Ctrl-C again or Ctrl-D leaves)%s\n", cli_dim(),
                              cli_plain());
            m->n = 0;
            m->open = m->block = false;
            continue;
        }
        if (r == LINE_EOF) return m->open || t->read ? CLI_OK : LEAVE;
        if (r == LINE_ERROR) return fprintf(stderr, "tessera: cannot read the input\n"), CLI_ERROR;
        idle = false;
        if (strlen(line) != n) {
            fprintf(stderr, "tessera: a line with a zero byte is no text and was left out\n");
            continue;
        }
        if (line_interactive(t->in)) line_remember(t->in, line);
        if (!message_line(m, line, n)) return CLI_ERROR;
        if (!m->open) return CLI_OK;
    }
}

/* Puts what /read brought in front of a message. */
static bool prepend_read(struct talk *t, struct message *m)
{
    char *typed = m->text;
    struct message all = {0};
    bool more = typed && !is_blank(typed);
    if (!t->read) return true;
    bool ok = message_add(&all, t->read, strlen(t->read));
    if (ok && more && all.text[all.n - 1] != '\n') ok = message_add(&all, "\n", 1);
    if (ok && more) ok = message_add(&all, typed, m->n);
    free(typed);
    free(t->read);
    t->read = NULL;
    *m = all;
    return ok;
}

static int converse(struct talk *t)
{
    for (;;) {
        struct message m = {0};
        int rc = read_message(t, &m);
        bool last = rc == CLI_OK && !m.text; /* the input ended behind a /read */
        bool go_on = rc == CLI_OK && (m.text || t->read);
        if (go_on && m.text && m.text[0] == '/' && !m.block)
            go_on = slash_run(t, m.text);
        else if (go_on && prepend_read(t, &m) && !is_blank(m.text))
            talk_send(t, m.text);
        free(m.text);
        if (ferror(stdout)) return CLI_OK; /* nobody reads: main says why */
        if (rc > 0) return rc;
        if (!go_on || last) return CLI_OK;
        if (cli_interrupted() && !line_interactive(t->in)) return CLI_INTERRUPTED;
        cli_clear_interrupt();
    }
}

/* ---- opening ---- */

/* -sys and -r as they are meant. */
static bool unescape_flags(struct talk *t, char *stops[CLI_LIST_MAX])
{
    struct cli_args *a = t->a;
    for (int i = 0; a->escape && i < a->stops.n; i++) {
        if (!(stops[i] = strdup(a->stops.at[i]))) return false;
        (void)cli_unescape(stops[i]);
        a->stops.at[i] = stops[i];
    }
    char *system = a->system ? strdup(a->system) : NULL;
    if (a->system && !system) return false;
    if (system && a->escape) (void)cli_unescape(system);
    bool ok = !system || talk_set_system(t, system);
    free(system);
    return ok;
}

static int open_talk(struct talk *t)
{
    struct err err;
    err_clear(&err);
    int rc = cli_open_engine(t->a, &t->e);
    if (rc) return rc;
    t->tok = tessera_tok(t->e);
    if (!t->tok) return cli_no_tokenizer(t->e, "(tessera run --ids 1,2,3)");
    if (chat_check(tessera_gguf(t->e), &err)) return cli_fail(&err);
    if (tessera_session_open(t->e, 0, &t->s, &err)) return cli_fail(&err);
    if (t->a->analyze && tessera_explain(t->e, stderr, false, &err)) return cli_fail(&err);
    t->in = line_open(slash_words());
    if (!t->in) return fprintf(stderr, "tessera: cannot open the line editor\n"), CLI_ERROR;
    if (line_interactive(t->in))
        fprintf(stderr, "%s/help lists the commands, Ctrl-D leaves%s\n", cli_dim(), cli_plain());
    return CLI_OK;
}

static int chat(struct talk *t, char *first)
{
    int rc = open_talk(t);
    if (rc) return rc;
    if (first && !is_blank(first)) talk_send(t, first);
    bool stopped = cli_interrupted() && !line_interactive(t->in);
    cli_clear_interrupt();
    rc = ferror(stdout) ? CLI_OK : stopped ? CLI_INTERRUPTED : converse(t);
    return rc == CLI_OK && t->failed && !ferror(stdout) ? CLI_ERROR : rc == LEAVE ? CLI_OK : rc;
}

int cmd_chat(int argc, char **argv)
{
    struct cli_args a = cli_defaults();
    struct cli_spec spec = {
        .name = "chat", .groups = CLI_MODEL | CLI_PROMPT | CLI_SYSTEM | CLI_GENERATE,
        .footer = footer};
    struct talk t = {.a = &a};
    struct err err;
    char *stops[CLI_LIST_MAX] = {NULL}, *first = NULL;
    size_t n;
    int rc = cli_parse(&spec, argc, argv, &a);
    if (rc != CLI_GO_ON) return rc;
    err_clear(&err);
    if ((a.prompt || a.file) && cli_read_prompt(&a, &first, &n, &err)) return cli_fail(&err);
    rc = unescape_flags(&t, stops) ? chat(&t, first) : CLI_ERROR;
    line_close(t.in);
    talk_close(&t);
    for (int i = 0; i < CLI_LIST_MAX; i++) free(stops[i]);
    free(first);
    return rc;
}
