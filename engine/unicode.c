// unicode.c: UTF-8, and categories by binary search in sorted ranges.
#include "unicode.h"

typedef struct { uint32_t first, last; } Range;
#include "unicode_tables.h"

static bool is_continuation(char c) { return ((uint8_t)c & 0xC0) == 0x80; }

int utf8_decode(const char *p, size_t n, uint32_t *cp) {
    const uint8_t *u = (const uint8_t *)p;
    if (u[0] < 0x80) {
        *cp = u[0];
        return 1;
    }
    if ((u[0] & 0xE0) == 0xC0 && n >= 2 && is_continuation(p[1])) {
        *cp = (uint32_t)(u[0] & 0x1F) << 6 | (u[1] & 0x3F);
        return 2;
    }
    if ((u[0] & 0xF0) == 0xE0 && n >= 3 && is_continuation(p[1]) && is_continuation(p[2])) {
        *cp = (uint32_t)(u[0] & 0x0F) << 12 | (uint32_t)(u[1] & 0x3F) << 6 | (u[2] & 0x3F);
        return 3;
    }
    if ((u[0] & 0xF8) == 0xF0 && n >= 4 && is_continuation(p[1]) && is_continuation(p[2]) && is_continuation(p[3])) {
        *cp = (uint32_t)(u[0] & 0x07) << 18 | (uint32_t)(u[1] & 0x3F) << 12 | (uint32_t)(u[2] & 0x3F) << 6 | (u[3] & 0x3F);
        if (*cp <= 0x10FFFF) return 4;
    }
    *cp = 0xFFFD;
    return 1;
}

int utf8_encode(uint32_t cp, char out[4]) {
    const int n = cp < 0x80 ? 1 : cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    static const uint8_t LEAD[5] = {0, 0, 0xC0, 0xE0, 0xF0};
    for (int i = n - 1; i > 0; i--, cp >>= 6) out[i] = (char)(0x80 | (cp & 0x3F));
    out[0] = (char)(LEAD[n] | cp);
    return n;
}

static bool in_ranges(uint32_t cp, const Range *r, int n) {
    int low = 0, high = n; // r[low - 1].last < cp <= r[high].last
    while (low < high) {
        const int mid = (low + high) / 2;
        if (r[mid].last < cp) low = mid + 1;
        else high = mid;
    }
    return low < n && r[low].first <= cp;
}

#define IN(table) in_ranges(cp, table, (int)(sizeof table / sizeof table[0]))
static bool is_ascii_letter(uint32_t cp) { return (cp | 0x20) >= 'a' && (cp | 0x20) <= 'z'; }
bool is_letter(uint32_t cp) { return cp < 0x80 ? is_ascii_letter(cp) : IN(RANGES_L); }
bool is_number(uint32_t cp) { return cp < 0x80 ? cp >= '0' && cp <= '9' : IN(RANGES_N); }
bool is_punctuation(uint32_t cp) { return IN(RANGES_P); }
bool is_mark(uint32_t cp) { return cp >= 0x80 && IN(RANGES_M); }
bool is_symbol(uint32_t cp) { return IN(RANGES_S); }
bool is_cased_letter(uint32_t cp) { return IN(RANGES_LET); }

bool is_space(uint32_t cp) {
    if (cp < 0x80) return cp == ' ' || (cp >= 0x09 && cp <= 0x0D);
    return cp == 0x85 || cp == 0xA0 || cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 || cp == 0x202F || cp == 0x205F ||
           cp == 0x3000;
}
