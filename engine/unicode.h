// unicode.h: UTF-8 and the few character properties that tokenizers split text by.
#ifndef UNICODE_H
#define UNICODE_H

#include "base.h"

// Decodes one code point from p[0, n), n >= 1; returns the bytes used. What is not UTF-8 is U+FFFD, one byte long. Overlong
// forms and surrogates are decoded as if they were legal, since the tokenizers' reference does so.
int utf8_decode(const char *p, size_t n, uint32_t *cp);
int utf8_encode(uint32_t cp, char out[4]); // returns 1..4
// Bytes of a sequence with this first byte, by its high bits alone; 1 for a stray continuation byte.
static inline int utf8_length(char first) {
    static const uint8_t LENGTH[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 4};
    return LENGTH[(uint8_t)first >> 4];
}

// General categories (Unicode 15.1). Code points that are not assigned are in none.
bool is_letter(uint32_t cp);      // \p{L}
bool is_number(uint32_t cp);      // \p{N}
bool is_punctuation(uint32_t cp); // \p{P}
bool is_mark(uint32_t cp);        // \p{M}
bool is_symbol(uint32_t cp);      // \p{S}
bool is_space(uint32_t cp);       // \s: the 25 white space characters
bool is_cased_letter(uint32_t cp); // the explicit list in DeepSeek-LLM's expression

#endif
