/* Pages: one self-contained HTML file per report, with figures as inline SVG.
 *
 * No script, no network, no font or style from elsewhere; light and dark as the reader's system is, and
 * printable.  Figures take the width of the page, so they can be read on a phone.  What comes from
 * files is escaped.  The file is written aside and renamed. */
#ifndef CLI_PAGE_H
#define CLI_PAGE_H

#include <stdbool.h>
#include <stddef.h>

#include "moe/base/osfile.h"

struct page {
    struct osfile_writer file;
    FILE *f;
};

enum status page_open(struct page *p, const char *path, const char *title, struct err *e);
enum status page_close(struct page *p, struct err *e);
void page_abort(struct page *p);

/* Text of any bytes between tags. */
void page_text(struct page *p, const char *s, size_t n);
/* A heading and a line below it that says how the figure is read; text is printf's, and escaped. */
void page_head(struct page *p, const char *title, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* n_rows x n_cols cells, the darker the nearer value(arg, row, col) is to 1; NaN is left blank.  Numbers
 * of rows and columns are written along the sides: row_label(arg, row, buf) or, if NULL, the number. */
struct page_heat {
    int n_rows, n_cols;
    double (*value)(void *arg, int row, int col);
    const char *(*row_label)(void *arg, int row, char buf[32]);
    void *arg;
    const char *rows, *cols; /* what they are: "layer", "expert" */
    int first_col;           /* number of the first column */
};
void page_heat(struct page *p, const struct page_heat *h);

/* Lines over the same x; y NaN leaves a gap. */
enum { PAGE_LINES = 8 };
struct page_lines {
    int n, n_lines;
    const double *x;         /* [n] rising */
    const double *y[PAGE_LINES]; /* [n] each */
    const char *name[PAGE_LINES];
    const char *x_name, *y_name;
    bool from_zero;          /* y begins at 0 */
};
void page_lines(struct page *p, const struct page_lines *l);

/* A run of text with a background the stronger the nearer x in [-1, 1] is to its ends: warm above 0, cool
 * below; NaN: none.  Begin and end with page_words. */
void page_words(struct page *p, bool begin);
void page_word(struct page *p, const char *s, size_t n, double x, const char *tip);

/* A table: a row of cells at a time. */
void page_table(struct page *p, bool begin);
void page_row(struct page *p, bool head, int n, const char *const *cell);

#endif
