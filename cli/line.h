/* Lines from the user: with editing and history on a terminal, as they come from a pipe or file.
 *
 * Private to cmd_chat.  One thread.  Owns the history file's name and the terminal's editor. */
#ifndef CLI_LINE_H
#define CLI_LINE_H

#include <stdbool.h>
#include <stddef.h>

struct line_reader;

enum line_result {
    LINE_OK,
    LINE_EOF,       /* Ctrl-D, or the end of the input */
    LINE_INTERRUPT, /* SIGINT; the line is dropped */
    LINE_ERROR,     /* out of memory, unreadable input */
};

/* words: NULL-ended list for the tab key ("/help", ...); borrowed. */
struct line_reader *line_open(const char *const *words);
void line_close(struct line_reader *r);
/* Is there an editor, that is, does somebody sit there? */
bool line_interactive(const struct line_reader *r);

/* The next line without its end, terminated, valid until the next call; it may hold zero bytes
 * (*n counts).  prompt is shown on a terminal only.  *was_empty (may be NULL): LINE_INTERRUPT came
 * while nothing was typed. */
enum line_result line_next(struct line_reader *r, const char *prompt, const char **line,
                           size_t *n, bool *was_empty);
/* Remembers a line, here and in the history file. */
void line_remember(struct line_reader *r, const char *line);

#endif
