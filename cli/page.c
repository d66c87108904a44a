/* See page.h.  Cells of one shade are one path, so a map of some thousand cells is some ten kilobytes. */
#include "cli/page.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { SHADES = 12 };

static const char style[] =
    ":root{color-scheme:light dark;--bg:#fff;--fg:#1c2024;--dim:#667079;--line:#d7dce0;--heat:#14508c;"
    "--warm:214,84,28;--cool:24,112,190;--a:#14508c;--b:#c2500f;--c:#2b8a3e;--d:#8b3fa8;--e:#8a6d00;"
    "--f:#0b7a75;--g:#b3003b;--h:#555}"
    "@media(prefers-color-scheme:dark){:root{--bg:#14171a;--fg:#e4e7ea;--dim:#9aa4ad;--line:#343a40;"
    "--heat:#7fb8f5;--warm:240,120,60;--cool:90,160,240;--a:#7fb8f5;--b:#ff9d5c;--c:#6fd388;--d:#d59bf0;"
    "--e:#e3c54a;--f:#5fd0c9;--g:#ff7fa5;--h:#bbb}}"
    "*{box-sizing:border-box}body{margin:0 auto;padding:1rem;max-width:62rem;background:var(--bg);"
    "color:var(--fg);font:16px/1.5 system-ui,sans-serif}h1{font-size:1.5rem;line-height:1.25;"
    "overflow-wrap:anywhere}h2{font-size:1.15rem;margin:2rem 0 .25rem}p{margin:.25rem 0 .75rem}"
    ".how{color:var(--dim);font-size:.9rem}svg{width:100%;height:auto;display:block}"
    "svg text{fill:var(--dim);font-family:system-ui,sans-serif;font-size:11px}"
    "@media(max-width:40rem){svg text{font-size:17px}}"
    ".scroll{overflow-x:auto}"
    "table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}"
    "td,th{padding:.2rem .6rem;border-bottom:1px solid var(--line);text-align:right;font-weight:400}"
    "th{color:var(--dim)}td:first-child,th:first-child{text-align:left}"
    ".words{font-size:1rem;line-height:1.9;white-space:pre-wrap;overflow-wrap:anywhere}"
    ".words span{border-radius:3px}.key span{display:inline-block;margin-right:1rem;font-size:.9rem}"
    ".key i{display:inline-block;width:1.2em;height:.25em;vertical-align:middle;margin-right:.4em}"
    "@media print{body{max-width:none;font-size:11px}h2,svg,table{break-inside:avoid}"
    "*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}";

enum status page_open(struct page *p, const char *path, const char *title, struct err *e)
{
    enum status s = osfile_writer_open(&p->file, path, e);
    if (s) return s;
    p->f = p->file.fp;
    fprintf(p->f, "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
            "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n"
            "<link rel=\"icon\" href=\"data:,\">\n<title>");
    page_text(p, title, strlen(title));
    fprintf(p->f, "</title>\n<style>%s</style>\n</head>\n<body>\n<h1>", style);
    page_text(p, title, strlen(title));
    fprintf(p->f, "</h1>\n");
    return OK;
}

enum status page_close(struct page *p, struct err *e)
{
    fprintf(p->f, "</body>\n</html>\n");
    return osfile_writer_commit(&p->file, e);
}

void page_abort(struct page *p) { osfile_writer_abort(&p->file); }

/* ---- text ---- */

/* Bytes of the character at s, 0 = no valid UTF-8. */
static size_t utf8_at(const unsigned char *s, size_t n)
{
    static const unsigned least[5] = {0, 0, 0x80, 0x800, 0x10000};
    const size_t k = *s < 0x80 ? 1 : *s >= 0xc2 && *s < 0xe0 ? 2 : (*s & 0xf0) == 0xe0 ? 3
                   : *s >= 0xf0 && *s < 0xf5 ? 4 : 0;
    unsigned c = k == 1 ? *s : *s & (0xffu >> (k + 1));
    if (!k || k > n) return 0;
    for (size_t i = 1; i < k; i++) {
        if ((s[i] & 0xc0) != 0x80) return 0;
        c = c << 6 | (s[i] & 0x3f);
    }
    return c < least[k] || (c >= 0xd800 && c < 0xe000) || c > 0x10ffff ? 0 : k;
}

void page_text(struct page *p, const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        const unsigned char *u = (const unsigned char *)s + i;
        const size_t k = utf8_at(u, n - i);
        if (*u == '<') fprintf(p->f, "&lt;");
        else if (*u == '>') fprintf(p->f, "&gt;");
        else if (*u == '&') fprintf(p->f, "&amp;");
        else if (*u == '"') fprintf(p->f, "&quot;");
        else if (!k || (*u < 0x20 && *u != '\n' && *u != '\t') || *u == 0x7f)
            fprintf(p->f, "\xef\xbf\xbd");
        else (void)fwrite(u, 1, k, p->f);
        i += k ? k : 1;
    }
}

void page_head(struct page *p, const char *title, const char *fmt, ...)
{
    char line[512];
    va_list ap;
    va_start(ap, fmt);
    const int n = vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    fprintf(p->f, "<h2>");
    page_text(p, title, strlen(title));
    fprintf(p->f, "</h2>\n<p class=\"how\">");
    page_text(p, line, n < 0 ? 0 : (size_t)n < sizeof line ? (size_t)n : sizeof line - 1);
    fprintf(p->f, "</p>\n");
}

void page_words(struct page *p, bool begin)
{
    fprintf(p->f, begin ? "<div class=\"words\">" : "</div>\n");
}

void page_word(struct page *p, const char *s, size_t n, double x, const char *tip)
{
    fprintf(p->f, "<span");
    if (isfinite(x) && fabs(x) > 0.02)
        fprintf(p->f, " style=\"background:rgba(var(--%s),%.2f)\"", x > 0 ? "warm" : "cool",
                fmin(fabs(x), 1) * 0.85);
    if (tip) {
        fprintf(p->f, " title=\"");
        page_text(p, tip, strlen(tip));
        fprintf(p->f, "\"");
    }
    fprintf(p->f, ">");
    page_text(p, s, n);
    fprintf(p->f, "</span>");
}

void page_table(struct page *p, bool begin)
{
    fprintf(p->f, begin ? "<div class=\"scroll\"><table>\n" : "</table></div>\n");
}

void page_row(struct page *p, bool head, int n, const char *const *cell)
{
    fprintf(p->f, "<tr>");
    for (int i = 0; i < n; i++) {
        fprintf(p->f, head ? "<th>" : "<td>");
        page_text(p, cell[i], strlen(cell[i]));
        fprintf(p->f, head ? "</th>" : "</td>");
    }
    fprintf(p->f, "</tr>\n");
}

/* ---- figures ---- */

static void label(struct page *p, double x, double y, const char *anchor, const char *s)
{
    fprintf(p->f, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", x, y, anchor);
    page_text(p, s, strlen(s));
    fprintf(p->f, "</text>");
}

/* Every how manieth of n is labelled. */
static int every(int n, int most)
{
    static const int steps[] = {1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, 2000, 5000};
    size_t i = 0;
    while (i + 1 < sizeof steps / sizeof *steps && n / steps[i] > most) i++;
    return steps[i];
}

/* Width 640 whatever the number of cells: text keeps its size. */
void page_heat(struct page *p, const struct page_heat *h)
{
    enum { WIDTH = 640, TOP = 40 };
    char buf[32];
    int left = 44; /* room for the widest label on a phone */
    for (int r = 0; r < h->n_rows && h->row_label; r++) {
        const int need = 9 * (int)strlen(h->row_label(h->arg, r, buf)) + 10;
        left = need > left ? need : left;
    }
        const double w = (double)(WIDTH - left - 4) / h->n_cols;
    double tall = w < 4 ? 4 : w > 22 ? 22 : w;
    if (h->n_rows * tall > 520) tall = 520.0 / h->n_rows;
    if (h->n_rows * tall < 120) tall = fmin(120.0 / h->n_rows, 22);
    const double bottom = TOP + h->n_rows * tall;
    fprintf(p->f, "<svg class=\"figure\" role=\"img\" viewBox=\"0 0 %d %.0f\">\n", WIDTH, bottom + 6);
    for (int shade = 1; shade <= SHADES; shade++) {
        bool open = false;
        for (int r = 0; r < h->n_rows; r++)
            for (int c = 0; c < h->n_cols; c++) {
                const double v = h->value(h->arg, r, c);
                const int s = isfinite(v) ? (int)(fmin(fmax(v, 0), 1) * SHADES + 0.5) : 0;
                if (s != shade) continue;
                if (!open)
                    fprintf(p->f, "<path fill=\"var(--heat)\" fill-opacity=\"%.2f\" d=\"",
                            (double)shade / SHADES);
                open = true;
                fprintf(p->f, "M%.2f %.2fh%.2fv%.2fh-%.2fz", left + c * w, TOP + r * tall, w * 0.96,
                        tall * 0.96, w * 0.96);
            }
        if (open) fprintf(p->f, "\"/>\n");
    }
    fprintf(p->f, "<rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%.1f\" fill=\"none\" "
            "stroke=\"var(--line)\"/>", left, TOP, w * h->n_cols, tall * h->n_rows);
    const int by_row = h->row_label && h->n_rows <= 24 ? 1 : every(h->n_rows, (int)(h->n_rows * tall / 18));
    for (int r = 0; r < h->n_rows; r += by_row) {
        (void)snprintf(buf, sizeof buf, "%d", r);
        label(p, left - 5, TOP + (r + 0.5) * tall + 3.5, "end",
              h->row_label ? h->row_label(h->arg, r, buf) : buf);
    }
    for (int c = 0, step = every(h->n_cols, 14); c < h->n_cols; c += step) {
        (void)snprintf(buf, sizeof buf, "%d", h->first_col + c);
        label(p, left + (c + 0.5) * w, TOP - 5, "middle", buf);
    }
    label(p, 2, 14, "start", h->rows);
    label(p, WIDTH - 4, 14, "end", h->cols);
    fprintf(p->f, "</svg>\n");
}

static void range_of(const struct page_lines *l, double *lo, double *hi)
{
    *lo = l->from_zero ? 0 : INFINITY;
    *hi = l->from_zero ? 0 : -INFINITY;
    for (int k = 0; k < l->n_lines; k++)
        for (int i = 0; i < l->n; i++) {
            if (!isfinite(l->y[k][i])) continue;
            *lo = fmin(*lo, l->y[k][i]);
            *hi = fmax(*hi, l->y[k][i]);
        }
    if (!(*lo <= *hi)) *lo = *hi = 0;
    if (!(*hi > *lo)) *hi = *lo + 1;
    /* Four steps of a round number. */
    double step = pow(10, floor(log10((*hi - *lo) / 4)));
    static const double rounds[] = {1, 2, 2.5, 5, 10, 20};
    for (size_t i = 0; i < sizeof rounds / sizeof *rounds; i++) {
        const double from = floor(*lo / (step * rounds[i])) * step * rounds[i];
        if (from + 4 * step * rounds[i] < *hi - 1e-9 * fabs(*hi)) continue;
        *lo = from;
        *hi = from + 4 * step * rounds[i];
        break;
    }
}

void page_lines(struct page *p, const struct page_lines *l)
{
    enum { WIDTH = 640, LEFT = 58, RIGHT = 14, TOP = 34, TALL = 230, BOTTOM = 44 };
    static const char colour[] = "abcdefgh";
    double lo, hi;
    char buf[32];
    range_of(l, &lo, &hi);
    const double x0 = l->x[0], x1 = l->x[l->n - 1] > x0 ? l->x[l->n - 1] : x0 + 1;
    const double kx = (WIDTH - LEFT - RIGHT) / (x1 - x0), ky = TALL / (hi - lo);
    fprintf(p->f, "<svg class=\"figure\" role=\"img\" viewBox=\"0 0 %d %d\">\n", WIDTH,
            TOP + TALL + BOTTOM);
    for (int i = 0; i <= 4; i++) {
        const double y = TOP + TALL - i * TALL / 4.0;
        fprintf(p->f, "<path stroke=\"var(--line)\" d=\"M%d %.1fH%d\"/>", LEFT, y, WIDTH - RIGHT);
        (void)snprintf(buf, sizeof buf, "%.3g", lo + (hi - lo) * i / 4);
        label(p, LEFT - 6, y + 3.5, "end", buf);
    }
    double last = -INFINITY;
    for (int i = 0; i < l->n; i++) {
        if ((l->x[i] - last) * kx < 44) continue;
        last = l->x[i];
        (void)snprintf(buf, sizeof buf, "%g", l->x[i]);
        label(p, LEFT + (l->x[i] - x0) * kx, TOP + TALL + 18, "middle", buf);
    }
    label(p, WIDTH - RIGHT, TOP + TALL + 38, "end", l->x_name);
    label(p, 2, 16, "start", l->y_name);
    for (int k = 0; k < l->n_lines; k++) {
        bool on = false;
        fprintf(p->f, "<path fill=\"none\" stroke=\"var(--%c)\" stroke-width=\"2\" d=\"", colour[k % 8]);
        for (int i = 0; i < l->n; i++) {
            if (!isfinite(l->y[k][i])) {
                on = false;
                continue;
            }
            fprintf(p->f, "%c%.1f %.1f", on ? 'L' : 'M', LEFT + (l->x[i] - x0) * kx,
                    TOP + TALL - (l->y[k][i] - lo) * ky);
            on = true;
        }
        fprintf(p->f, "\"/>\n");
    }
    fprintf(p->f, "</svg>\n<p class=\"key\">");
    for (int k = 0; k < l->n_lines; k++) {
        fprintf(p->f, "<span><i style=\"background:var(--%c)\"></i>", colour[k % 8]);
        page_text(p, l->name[k], strlen(l->name[k]));
        fprintf(p->f, "</span>");
    }
    fprintf(p->f, "</p>\n");
}
