/* Text that settles in place: behind what is printed for good, the rest of an answer as it is now,
 * hidden tokens as shaded boxes, written over itself after every pass.  On a terminal only; whoever
 * prints wipes the rest first and says what it has printed, so that the column is known. */
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <utf8proc.h>

#include "moe/load/tok.h"

static const char HIDDEN[] = "\xe2\x96\x91"; /* U+2591, light shade */

/* Where the cursor is after n bytes of valid UTF-8, in lines below where it was. */
static int advance(struct cli_canvas *c, const char *s, size_t n)
{
    int lines = 0;
    for (size_t i = 0; i < n;) {
        utf8proc_int32_t ch;
        const utf8proc_ssize_t got = utf8proc_iterate((const utf8proc_uint8_t *)s + i,
                                                      (utf8proc_ssize_t)(n - i), &ch);
        i += got > 0 ? (size_t)got : 1;
        if (got <= 0) continue;
        const int w = ch == '\t' ? 8 - c->column % 8 : ch < ' ' ? 0 : utf8proc_charwidth(ch);
        if (ch == '\n' || c->column + w > c->width) {
            c->column = ch == '\n' ? 0 : w;
            lines++;
        } else {
            c->column += w;
        }
    }
    return lines;
}

bool cli_canvas_open(struct cli_canvas *c, const struct tok *tok, int32_t mask)
{
    struct winsize w;
    const char *term = getenv("TERM");
    *c = (struct cli_canvas){.tok = tok, .mask = mask};
    if (!tok || !cli_tty(stdout) || !term || !strcmp(term, "dumb") ||
        ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) || w.ws_col < 20 || w.ws_row < 4)
        return false;
    c->width = w.ws_col;
    c->height = w.ws_row;
    return c->on = true;
}

void cli_canvas_printed(struct cli_canvas *c, const char *text, size_t n)
{
    if (c->on) (void)advance(c, text, n);
}

void cli_canvas_wipe(struct cli_canvas *c)
{
    char seq[48];
    if (!c->on || !c->shown) return;
    int n = c->below ? snprintf(seq, sizeof seq, "\x1b[%dA", c->below) : 0;
    n += snprintf(seq + n, sizeof seq - (size_t)n, "\x1b[%dG\x1b[J", c->column + 1);
    (void)cli_out(seq, (size_t)n);
    c->shown = false;
}

/* What one token looks like; control characters do not steer the terminal. */
static int token_text(struct cli_canvas *c, struct tok_stream *s, int32_t id, char *out)
{
    char piece[TOK_PIECE_MAX];
    int n = 0, k = 0;
    if (id == c->mask) {
        n = tok_stream_flush(s, out);
        memcpy(out + n, HIDDEN, sizeof HIDDEN - 1);
        return n + (int)sizeof HIDDEN - 1;
    }
    const int len = tok_piece(c->tok, id, false, piece, sizeof piece);
    n = tok_stream_push(s, piece, len, out);
    for (int i = 0; i < n; i++) {
        const unsigned char ch = (unsigned char)out[i];
        if ((ch >= ' ' && ch != 0x7f) || ch == '\n') out[k++] = out[i];
    }
    return k;
}

void cli_canvas_show(struct cli_canvas *c, const int32_t *ids, int n)
{
    char text[TOK_STREAM_CAP(TOK_PIECE_MAX) + 16];
    struct tok_stream s = {{0}, 0};
    const int column = c->column;
    if (!c->on) return;
    c->below = 0;
    for (int i = 0; i < n; i++) {
        if (ids[i] != c->mask && tok_is_end(c->tok, ids[i])) break;
        const int len = token_text(c, &s, ids[i], text);
        const int lines = advance(c, text, (size_t)len);
        if (c->below + lines > c->height - 2) break; /* what scrolls away cannot be wiped */
        c->below += lines;
        if (len && !cli_out(text, (size_t)len)) break;
    }
    c->column = column;
    c->shown = true;
}
