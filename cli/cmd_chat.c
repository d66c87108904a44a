/* `tessera chat`: a conversation.  stdout gets the answers and nothing else; prompts, the model's
 * line, notices and speeds go to stderr.  Lines come from line.c, turns are made by talk.c, slash
 * commands by slash.c; here is the loop, and the rules for messages of several lines. */
#include "cli/talk.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cjson/cJSON.h>

struct chat_args {
    const char *template, *template_file, *kwargs, *think;
    bool single;
};

static const struct cli_flag flags[] = {
    {"--chat-template", "NAME|FILE", "the chat template: a file, a built-in one, or one of the "
     "model's own variants (default: the model's)", CLI_STR, offsetof(struct chat_args, template),
     0, 0},
    {"--chat-template-file", "FILE", "the same, always a file", CLI_STR,
     offsetof(struct chat_args, template_file), 0, 0},
    {"--chat-template-kwargs", "JSON", "variables for it: {\"enable_thinking\": false}", CLI_STR,
     offsetof(struct chat_args, kwargs), 0, 0},
    {"--think -rea --reasoning", "WHEN", "thinking: on, off, a level such as low, or auto = as the "
     "template has it (default)", CLI_STR, offsetof(struct chat_args, think), 0, 0},
    {"-st --single-turn", NULL, "leave after one answer", CLI_TRUE,
     offsetof(struct chat_args, single), 0, 0},
    {0}};

static const char footer[] =
    "Without -p or -f the first message is typed.  Input that is piped in is read one message per\n"
    "line; answers go to stdout, each with a line end, everything else to stderr.\n"
    "  \"\"\"     begins and ends a message of several lines\n"
    "  \\       at the end of a line: the message goes on in the next\n"
    "  /help   lists the commands\n"
    "What a model thinks before it answers goes to stderr.\n"
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

static int converse(struct talk *t, bool single)
{
    for (;;) {
        struct message m = {0};
        int rc = read_message(t, &m);
        bool last = rc == CLI_OK && !m.text; /* the input ended behind a /read */
        int n_msgs = t->n_msgs;
        bool go_on = rc == CLI_OK && (m.text || t->read);
        if (go_on && m.text && m.text[0] == '/' && !m.block)
            go_on = slash_run(t, m.text);
        else if (go_on && prepend_read(t, &m) && !is_blank(m.text))
            talk_send(t, m.text);
        last |= single && (t->n_msgs > n_msgs || t->failed);
        free(m.text);
        if (ferror(stdout)) return CLI_OK; /* nobody reads: main says why */
        if (rc > 0) return rc;
        if (!go_on || last) return CLI_OK;
        if (!cli_interrupted()) continue;
        if (!line_interactive(t->in)) return CLI_INTERRUPTED;
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

/* What --chat-template names: a text, a name, or else a file.  *text is malloc'd. */
static enum status template_options(const struct chat_args *own, struct chat_options *o,
                                    char **text, struct err *err)
{
    const char *what = own->template, *path = own->template_file;
    if (what && (strstr(what, "{{") || strstr(what, "{%"))) {
        o->text = what;
        o->n = strlen(what);
        o->origin = "--chat-template";
        return OK;
    }
    bool word = what && !strpbrk(what, "/.");
    if (word) o->name = what;
    if (word || (!what && !path)) return OK;
    if (what) path = what;
    enum status s = cli_read_file(path, text, &o->n, err);
    o->text = *text;
    o->origin = path;
    return s;
}

static int no_such_template(const char *name, const struct err *err)
{
    int rc = cli_fail(err);
    fprintf(stderr, "built in:");
    for (int i = 0; chat_builtin_at(i); i++) fprintf(stderr, " %s", chat_builtin_at(i));
    fprintf(stderr, "\n(a file called %s: --chat-template ./%s)\n", name, name);
    return rc;
}

/* A template that refuses the first message is better known before it is typed. */
static enum status try_template(const struct talk *t, struct err *err)
{
    struct jinja_text text;
    struct chat_msg msgs[2] = {{.role = "system", .content = t->system ? t->system : ""},
                               {.role = "user", .content = "hello"}};
    struct chat_turn turn = {.msgs = t->system ? msgs : msgs + 1, .n = t->system ? 2 : 1,
                             .add_prompt = true, .think = *t->think ? t->think : NULL};
    enum status s = chat_render(t->chat, &turn, &text, err);
    jinja_text_free(&text);
    return s;
}

static int open_template(struct talk *t, const struct chat_args *own)
{
    struct err err;
    struct tm tm;
    time_t now = time(NULL); /* one for all turns: a date that changes would change the prompt */
    struct chat_options o = {.kwargs = own->kwargs};
    char *text = NULL;
    err_clear(&err);
    if (localtime_r(&now, &tm)) o.now = &tm;
    enum status s = template_options(own, &o, &text, &err);
    if (!s) s = chat_open(tessera_gguf(t->e), t->tok, &o, &t->chat, &err);
    free(text);
    if (s == ERR_MISSING && o.name) return no_such_template(o.name, &err);
    if (s) return cli_fail(&err);
    if (own->think && !talk_set_think(t, own->think)) return CLI_ERROR;
    if (try_template(t, &err)) return cli_fail(&err);
    if (chat_note(t->chat)) fprintf(stderr, "tessera: %s\n", chat_note(t->chat));
    if (chat_stop(t->chat) && t->a->stops.n < CLI_LIST_MAX)
        t->a->stops.at[t->a->stops.n++] = chat_stop(t->chat);
    return CLI_OK;
}

static int open_talk(struct talk *t, const struct chat_args *own)
{
    struct err err;
    err_clear(&err);
    t->a->background = !t->a->analyze;
    int rc = cli_open_engine(t->a, &t->e);
    if (rc) return rc;
    t->tok = tessera_tok(t->e);
    cli_sampling_of(t->a, t->e);
    if (!t->tok) return cli_no_tokenizer(t->e, "(tessera run --ids 1,2,3)");
    if ((rc = open_template(t, own))) return rc;
    if (tessera_session_open(t->e, 0, &t->s, &err)) return cli_fail(&err);
    if (t->a->analyze && tessera_explain(t->e, stderr, false, &err)) return cli_fail(&err);
    t->in = line_open(slash_words());
    if (!t->in) return fprintf(stderr, "tessera: cannot open the line editor\n"), CLI_ERROR;
    if (line_interactive(t->in))
        fprintf(stderr, "%s/help lists the commands, Ctrl-D leaves%s\n", cli_dim(), cli_plain());
    return CLI_OK;
}

static int chat(struct talk *t, const struct chat_args *own, char *first)
{
    int rc = open_talk(t, own);
    if (rc) return rc;
    bool said = first && !is_blank(first);
    if (said) talk_send(t, first);
    if (cli_interrupted()) {
        if (!line_interactive(t->in) && !ferror(stdout)) return CLI_INTERRUPTED;
        cli_clear_interrupt();
    }
    rc = ferror(stdout) || (said && own->single) ? CLI_OK : converse(t, own->single);
    return rc == CLI_OK && t->failed && !ferror(stdout) ? CLI_ERROR : rc == LEAVE ? CLI_OK : rc;
}

static int check_flags(const struct chat_args *own)
{
    if (own->template && own->template_file)
        return cli_usage("chat", "give one of --chat-template and --chat-template-file");
    if (!own->kwargs) return CLI_GO_ON;
    cJSON *o = cJSON_ParseWithOpts(own->kwargs, NULL, true);
    bool good = cJSON_IsObject(o);
    cJSON_Delete(o);
    return good ? CLI_GO_ON : cli_usage("chat", "--chat-template-kwargs wants a JSON object like "
                                                "{\"enable_thinking\": false}");
}

int cmd_chat(int argc, char **argv)
{
    struct chat_args own = {0};
    struct cli_args a = cli_defaults();
    struct cli_spec spec = {
        .name = "chat", .groups = CLI_MODEL | CLI_PROMPT | CLI_SYSTEM | CLI_GENERATE,
        .own = flags, .own_base = &own, .footer = footer};
    struct talk t = {.a = &a};
    struct err err;
    char *stops[CLI_LIST_MAX] = {NULL}, *first = NULL;
    size_t n;
    int rc = cli_parse(&spec, argc, argv, &a);
    if (rc == CLI_GO_ON) rc = check_flags(&own);
    if (rc != CLI_GO_ON) return rc;
    err_clear(&err);
    if ((a.prompt || a.file) && cli_read_prompt(&a, &first, &n, &err)) return cli_fail(&err);
    rc = unescape_flags(&t, stops) ? chat(&t, &own, first) : CLI_ERROR;
    line_close(t.in);
    talk_close(&t);
    for (int i = 0; i < CLI_LIST_MAX; i++) free(stops[i]);
    free(first);
    return rc;
}
