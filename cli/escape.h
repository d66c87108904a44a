/* Bytes from files, made fit to print: for a terminal, and as JSON strings.
 *
 * What a file holds may move the cursor, reverse the reading direction or be no UTF-8 at all; none
 * of that reaches the reader.  Pure but for the stream written to. */
#ifndef CLI_ESCAPE_H
#define CLI_ESCAPE_H

#include <stddef.h>
#include <stdio.h>

/* Prints n bytes: control and format characters as \n, \xHH or \u{HHHH}, invalid UTF-8 as \xHH,
 * at most max characters (0 = all), then "..." when there are more.  Returns characters printed. */
size_t escape_print(FILE *to, const char *s, size_t n, size_t max);

/* Prints n bytes as a JSON string with its quotes; invalid UTF-8 becomes U+FFFD. */
void escape_json(FILE *to, const char *s, size_t n);

#endif
