/* See escape.h. */
#include "cli/escape.h"

#include <stdbool.h>
#include <string.h>

#include <utf8proc.h>

/* Characters that a terminal acts on instead of showing. */
static bool acts(utf8proc_int32_t c)
{
    utf8proc_category_t k = utf8proc_category(c);
    return k == UTF8PROC_CATEGORY_CC || k == UTF8PROC_CATEGORY_CF || k == UTF8PROC_CATEGORY_ZL ||
           k == UTF8PROC_CATEGORY_ZP;
}

/* Length of the character at s, or 0 when it is no valid UTF-8; *c is the character. */
static size_t next_char(const char *s, size_t n, utf8proc_int32_t *c)
{
    utf8proc_ssize_t len = utf8proc_iterate((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)n, c);
    return len > 0 ? (size_t)len : 0;
}

static size_t print_special(FILE *to, utf8proc_int32_t c)
{
    static const char from[] = "\n\r\t", names[] = "nrt";
    const char *at = c > 0 && c < 128 ? strchr(from, (int)c) : NULL;
    int n = at ? fprintf(to, "\\%c", names[at - from])
               : fprintf(to, c < 256 ? "\\x%02x" : "\\u{%x}", (unsigned)c);
    return n > 0 ? (size_t)n : 0;
}

size_t escape_print(FILE *to, const char *s, size_t n, size_t max)
{
    size_t shown = 0;
    while (n) {
        if (max && shown >= max) {
            (void)fputs("...", to);
            return shown + 3;
        }
        utf8proc_int32_t c = 0;
        size_t len = next_char(s, n, &c);
        if (!len || acts(c)) {
            shown += print_special(to, len ? c : (unsigned char)*s);
            len = len ? len : 1;
        } else {
            (void)fwrite(s, 1, len, to);
            shown++;
        }
        s += len;
        n -= len;
    }
    return shown;
}

void escape_json(FILE *to, const char *s, size_t n)
{
    static const char from[] = "\n\r\t\"\\", names[] = "nrt\"\\";
    (void)fputc('"', to);
    while (n) {
        utf8proc_int32_t c = 0;
        size_t len = next_char(s, n, &c);
        const char *at = len == 1 && *s ? strchr(from, *s) : NULL;
        if (!len)
            (void)fputs("\xef\xbf\xbd", to);
        else if (at)
            (void)fprintf(to, "\\%c", names[at - from]);
        else if (c < 0x20 || c == 0x7f)
            (void)fprintf(to, "\\u%04x", (unsigned)c);
        else
            (void)fwrite(s, 1, len, to);
        len = len ? len : 1;
        s += len;
        n -= len;
    }
    (void)fputc('"', to);
}
