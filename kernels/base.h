// base.h: errors, overflow-checked sizes, small helpers; nothing else. Valid C11 and C++.
//
// Every function that can fail returns bool (true = done) and takes an Err * last; the message is one line:
// subject, what was found, what was expected. Libraries never print and never exit.
#ifndef BASE_H
#define BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define MUST_CHECK __attribute__((warn_unused_result))
#define PRINTF_LIKE(f, a) __attribute__((format(printf, f, a)))

typedef struct {
    char text[512]; // one line, no newline, NUL terminated
} Err;

// Fills the message and returns false, so that a failing function can end with `return err_set(e, ...)`.
PRINTF_LIKE(2, 3) static inline bool err_set(Err *e, const char *format, ...) {
    if (e) {
        va_list args;
        va_start(args, format);
        vsnprintf(e->text, sizeof e->text, format, args);
        va_end(args);
        for (char *c = e->text; *c; c++) // names from a file may hold anything
            if ((unsigned char)*c < ' ' || *c == 0x7F) *c = '?';
    }
    return false;
}

// out = a * b or a + b; false on overflow. For every size that comes from a file.
static inline MUST_CHECK bool size_mul(uint64_t a, uint64_t b, uint64_t *out) { return !__builtin_mul_overflow(a, b, out); }
static inline MUST_CHECK bool size_add(uint64_t a, uint64_t b, uint64_t *out) { return !__builtin_add_overflow(a, b, out); }

static inline int min_int(int a, int b) { return a < b ? a : b; }
static inline int max_int(int a, int b) { return a > b ? a : b; }

#endif
