/* Reading lines: libedit on a terminal, plain reads otherwise.
 *
 * The editor writes to stderr, so that stdout holds the answers alone.  History is a plain text
 * file, one line each, appended to as lines are entered (so that two chats at once lose nothing)
 * and cut to its last HISTORY lines when it is opened; nothing is read or written when the input
 * is not a terminal.  Waiting happens in poll(), which a SIGINT always ends. */
#include "cli/line.h"

#include <errno.h>
#include <fcntl.h>
#include <histedit.h>
#include <langinfo.h>
#include <limits.h>
#include <locale.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utf8proc.h>
#include <wchar.h>

#include "cli/cli.h"

enum { HISTORY = 1000 };

struct line_reader {
    EditLine *el; /* NULL: plain */
    History *hist;
    FILE *out;    /* of the editor: a buffered copy of stderr */
    char *history_path, *prompt;
    int prompt_columns;
    const char *const *words;
    char *buf;    /* plain: bytes read, the current line in front */
    size_t n_buf, cap_buf, n_line;
    bool eof;
};

/* ---- bytes ---- */

/* Set by SIGCONT (back from the background, where the shell used the terminal its own way) and
 * SIGWINCH (another size). */
static volatile sig_atomic_t terminal_changed;

static void on_terminal(int sig)
{
    (void)sig;
    terminal_changed = 1;
}

/* Columns of text from s to end, as a terminal shows it. */
static int columns(const char *s, const char *end)
{
    int sum = 0;
    wchar_t c;
    while (s < end) {
        int n = mbtowc(&c, s, (size_t)(end - s)), w = n > 0 ? utf8proc_charwidth(c) : 1;
        sum += w > 0 ? w : 0;
        s += n > 0 ? n : 1;
    }
    return sum;
}

/* How many rows of the edited line lie above (before) and below the cursor's. */
static void rows_around(EditLine *el, int *above, int *below)
{
    struct line_reader *r = NULL;
    struct winsize w;
    const LineInfo *li = el_line(el);
    el_get(el, EL_CLIENTDATA, &r);
    int width = ioctl(STDERR_FILENO, TIOCGWINSZ, &w) || !w.ws_col ? 80 : w.ws_col;
    int at = r->prompt_columns + columns(li->buffer, li->cursor);
    *above = at / width;
    *below = (at + columns(li->cursor, li->lastchar)) / width - *above;
}

/* Takes the terminal back and draws the line anew where it stood. */
static void redraw(EditLine *el)
{
    struct line_reader *r = NULL;
    int above, below;
    terminal_changed = 0;
    el_get(el, EL_CLIENTDATA, &r);
    rows_around(el, &above, &below);
    el_set(el, EL_PREP_TERM, 0); /* it believes that it still has it */
    el_set(el, EL_PREP_TERM, 1);
    el_resize(el);
    if (above) (void)fprintf(r->out, "\033[%dA", above);
    (void)fputs("\r\033[J", r->out);
    (void)fflush(r->out);
    el_set(el, EL_REFRESH);
}

/* One read after waiting: bytes, 0 at the end, -1 with errno (EINTR after SIGINT). */
static ssize_t read_some(EditLine *el, void *buf, size_t n)
{
    for (;;) {
        /* Not the signal itself: it may come just before poll(), or to another thread. */
        struct pollfd p[2] = {{.fd = STDIN_FILENO, .events = POLLIN},
                              {.fd = cli_interrupt_fd(), .events = POLLIN}};
        if (cli_interrupted()) return errno = EINTR, -1;
        if (el && terminal_changed) redraw(el);
        if (poll(p, 2, -1) < 0) {
            if (errno == EINTR) continue;
            return -1;
        }
        if (!p[0].revents) continue;
        ssize_t got = read(STDIN_FILENO, buf, n);
        if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        return got;
    }
}

/* How many bytes follow this first byte of a UTF-8 character; -1 = it cannot be first. */
static int utf8_more(unsigned char c)
{
    return c < 0x80 ? 0 : c >= 0xc2 && c < 0xe0 ? 1 : c >= 0xe0 && c < 0xf0 ? 2
           : c >= 0xf0 && c < 0xf5 ? 3 : -1;
}

/* What the tab key adds to the line: the rest of a slash command, as far as it is certain. */
static size_t completion(EditLine *el, char *add, size_t cap)
{
    struct line_reader *r = NULL;
    const LineInfo *li = el_line(el);
    const char *found = NULL;
    size_t n = (size_t)(li->cursor - li->buffer), common = 0;
    el_get(el, EL_CLIENTDATA, &r);
    if (!n || li->buffer[0] != '/' || memchr(li->buffer, ' ', n)) return 0;
    for (int i = 0; r->words[i]; i++) {
        size_t k = n;
        if (strncmp(r->words[i], li->buffer, n)) continue;
        if (!found)
            k = strlen(found = r->words[i]);
        else
            while (k < common && found[k] == r->words[i][k]) k++;
        common = k;
    }
    if (!found || common <= n || common - n >= cap) return 0;
    memcpy(add, found + n, common - n);
    add[common - n] = 0;
    return common - n;
}

/* The editor's source of characters.  The tab key is resolved here: the editor sees what it adds
 * as typed (libedit's own hook for it leaks). */
static int get_char(EditLine *el, wchar_t *out)
{
    unsigned char c[4];
    char add[64];
    ssize_t got;
    for (;;) {
        got = read_some(el, c, 1);
        if (got <= 0) return (int)got;
        if (c[0] != '\t') break;
        if (!completion(el, add, sizeof add)) continue;
        if (add[1]) el_push(el, add + 1);
        c[0] = (unsigned char)add[0];
        break;
    }
    int more = utf8_more(c[0]);
    if (more < 0) return *out = 0xfffd, 1;
    for (int i = 1; i <= more; i++) {
        if (read_some(el, c + i, 1) <= 0) return -1;
        if ((c[i] & 0xc0) != 0x80) return *out = 0xfffd, 1;
    }
    uint32_t v = more == 0 ? c[0] : c[0] & (0x3fu >> more);
    for (int i = 1; i <= more; i++) v = v << 6 | (c[i] & 0x3fu);
    *out = (wchar_t)v;
    return 1;
}

/* ---- history ---- */

/* Makes the folders above path. */
static void make_parents(char *path)
{
    for (char *p = path + 1; (p = strchr(p, '/')); p++) {
        *p = 0;
        (void)mkdir(path, 0700);
        *p = '/';
    }
}

/* $XDG_STATE_HOME/tessera/history or ~/.local/state/tessera/history; NULL without a home. */
static char *history_file(void)
{
    char path[PATH_MAX];
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    int n = -1;
    if (state && *state == '/')
        n = snprintf(path, sizeof path, "%s/tessera/history", state);
    else if (home && *home == '/')
        n = snprintf(path, sizeof path, "%s/.local/state/tessera/history", home);
    if (n < 0 || n >= (int)sizeof path) return NULL;
    make_parents(path);
    return strdup(path);
}

/* Rewrites the file with the lines from `from` on. */
static void history_cut(const char *path, const char *from)
{
    char aside[PATH_MAX];
    (void)snprintf(aside, sizeof aside, "%s.part", path);
    int fd = open(aside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) return;
    size_t n = strlen(from);
    bool ok = write(fd, from, n) == (ssize_t)n;
    if (close(fd) || !ok || rename(aside, path)) (void)unlink(aside);
}

static void history_load(struct line_reader *r)
{
    HistEvent ev;
    struct stat st;
    char *text;
    size_t n;
    int n_lines = 0;
    if (stat(r->history_path, &st) || !S_ISREG(st.st_mode)) return;
    if (cli_read_file(r->history_path, &text, &n, NULL)) return;
    for (size_t i = 0; i < n; i++) n_lines += text[i] == '\n';
    const char *p = text;
    for (; n_lines > HISTORY; n_lines--) p = strchr(p, '\n') + 1;
    if (p != text) history_cut(r->history_path, p);
    for (char *line = text + (p - text); *line;) {
        char *eol = strchr(line, '\n');
        if (!eol) break;
        *eol = 0;
        if (*line) history(r->hist, &ev, H_ENTER, line);
        line = eol + 1;
    }
    free(text);
}

void line_remember(struct line_reader *r, const char *line)
{
    HistEvent ev;
    if (!r->el || !*line) return;
    history(r->hist, &ev, H_ENTER, line);
    if (!r->history_path) return;
    int fd = open(r->history_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0) return; /* a read-only home is no reason to stop */
    size_t n = strlen(line);
    char *copy = malloc(n + 1);
    if (copy) {
        memcpy(copy, line, n);
        copy[n] = '\n';
        (void)!write(fd, copy, n + 1);
    }
    free(copy);
    (void)close(fd);
}

/* ---- the editor ---- */

static char *editor_prompt(EditLine *el)
{
    struct line_reader *r = NULL;
    el_get(el, EL_CLIENTDATA, &r);
    return r->prompt;
}

/* Characters above ASCII need a UTF-8 locale; numbers stay in "C". */
static void want_utf8(void)
{
    if (setlocale(LC_CTYPE, "") && !strcmp(nl_langinfo(CODESET), "UTF-8")) return;
    (void)setlocale(LC_CTYPE, "C.UTF-8");
}

static bool open_editor(struct line_reader *r)
{
    HistEvent ev;
    int fd = dup(STDERR_FILENO);
    want_utf8();
    r->out = fd >= 0 ? fdopen(fd, "w") : NULL;
    r->hist = history_init();
    if (!r->out || !r->hist) return false;
    r->el = el_init("tessera", stdin, r->out, stderr);
    if (!r->el) return false;
    history(r->hist, &ev, H_SETSIZE, HISTORY);
    history(r->hist, &ev, H_SETUNIQUE, 1);
    el_set(r->el, EL_CLIENTDATA, r);
    el_set(r->el, EL_EDITOR, "emacs");
    el_set(r->el, EL_SIGNAL, 0);
    el_set(r->el, EL_HIST, history, r->hist);
    el_set(r->el, EL_PROMPT_ESC, editor_prompt, '\1');
    el_set(r->el, EL_GETCFN, get_char);
    el_set(r->el, EL_BIND, "^R", "em-inc-search-prev", NULL);
    el_set(r->el, EL_BIND, "\033[1;5C", "em-next-word", NULL);
    el_set(r->el, EL_BIND, "\033[1;5D", "ed-prev-word", NULL);
    el_set(r->el, EL_BIND, "\033[3~", "ed-delete-next-char", NULL);
    (void)el_source(r->el, NULL);
    struct sigaction sa;
    memset(&sa, 0, sizeof sa);
    sa.sa_handler = on_terminal;
    sa.sa_flags = SA_RESTART;
    (void)sigaction(SIGCONT, &sa, NULL);
    (void)sigaction(SIGWINCH, &sa, NULL);
    r->history_path = history_file();
    if (r->history_path) history_load(r);
    return true;
}

/* Sets the prompt, its look between marks that have no width. */
static bool set_prompt(struct line_reader *r, const char *prompt)
{
    size_t cap = strlen(prompt) + 32;
    char *p = realloc(r->prompt, cap);
    if (!p) return false;
    r->prompt = p;
    r->prompt_columns = (int)strlen(prompt); /* prompts are ASCII */
    int n = r->prompt_columns - 1; /* the editor drops marks behind the last character */
    if (*cli_bold())
        (void)snprintf(p, cap, "\1%s\1%.*s\1%s\1%s", cli_bold(), n, prompt, cli_plain(),
                       prompt + n);
    else
        (void)snprintf(p, cap, "%s", prompt);
    return true;
}

static enum line_result editor_next(struct line_reader *r, const char *prompt, const char **line,
                                    size_t *n, bool *was_empty)
{
    int got = 0;
    if (!set_prompt(r, prompt)) return LINE_ERROR;
    el_resize(r->el);
    terminal_changed = 0;
    const char *s = el_gets(r->el, &got);
    if (!s || got <= 0) {
        int code = errno;
        const LineInfo *li = el_line(r->el);
        if (was_empty) *was_empty = li->lastchar == li->buffer;
        int above, below;
        rows_around(r->el, &above, &below);
        while (below-- >= 0) (void)fputc('\n', r->out); /* leave below a wrapped line */
        (void)fflush(r->out);
        el_reset(r->el);
        if (cli_interrupted()) return LINE_INTERRUPT;
        return got < 0 && code ? LINE_ERROR : LINE_EOF;
    }
    size_t len = (size_t)got;
    if (len && s[len - 1] == '\n') len--;
    char *copy = realloc(r->buf, len + 1);
    if (!copy) return LINE_ERROR;
    r->buf = copy;
    memcpy(copy, s, len);
    copy[len] = 0;
    *line = copy;
    *n = len;
    return LINE_OK;
}

/* ---- plain ---- */

/* Reads until buf holds a line end or the input ends; the length of the line with its end. */
static enum line_result fill_line(struct line_reader *r, size_t *len)
{
    size_t seen = 0;
    for (;;) {
        char *eol = seen < r->n_buf ? memchr(r->buf + seen, '\n', r->n_buf - seen) : NULL;
        if (eol) return *len = (size_t)(eol - r->buf) + 1, LINE_OK;
        seen = r->n_buf;
        if (r->eof) return *len = r->n_buf, r->n_buf ? LINE_OK : LINE_EOF;
        if (r->cap_buf - r->n_buf < 4096) {
            char *more = realloc(r->buf, r->cap_buf * 2 + 8192);
            if (!more) return LINE_ERROR;
            r->buf = more;
            r->cap_buf = r->cap_buf * 2 + 8192;
        }
        ssize_t got = read_some(NULL, r->buf + r->n_buf, r->cap_buf - r->n_buf - 1);
        if (got < 0) return errno == EINTR ? LINE_INTERRUPT : LINE_ERROR;
        if (!got) r->eof = true;
        r->n_buf += (size_t)got;
    }
}

static enum line_result plain_next(struct line_reader *r, const char **line, size_t *n)
{
    size_t len;
    if (r->n_line) memmove(r->buf, r->buf + r->n_line, r->n_buf - r->n_line);
    r->n_buf -= r->n_line;
    r->n_line = 0;
    enum line_result res = fill_line(r, &len);
    if (res) return res;
    r->n_line = len;
    if (len && r->buf[len - 1] == '\n') len--;
    if (len && r->buf[len - 1] == '\r') len--;
    r->buf[len] = 0; /* over the line end, or in the room kept behind the last byte */
    *line = r->buf;
    *n = len;
    return LINE_OK;
}

/* ---- both ---- */

struct line_reader *line_open(const char *const *words)
{
    struct line_reader *r = calloc(1, sizeof *r);
    if (!r) return NULL;
    r->words = words;
    if (cli_tty(stdin) && cli_tty(stderr) && !open_editor(r)) {
        line_close(r);
        return NULL;
    }
    return r;
}

void line_close(struct line_reader *r)
{
    if (!r) return;
    if (r->el) el_end(r->el);
    if (r->hist) history_end(r->hist);
    if (r->out) (void)fclose(r->out);
    free(r->history_path);
    free(r->prompt);
    free(r->buf);
    free(r);
}

bool line_interactive(const struct line_reader *r) { return r->el != NULL; }

enum line_result line_next(struct line_reader *r, const char *prompt, const char **line,
                           size_t *n, bool *was_empty)
{
    if (was_empty) *was_empty = true;
    return r->el ? editor_next(r, prompt, line, n, was_empty) : plain_next(r, line, n);
}
