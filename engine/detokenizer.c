// detokenizer.c: token ids to text, and whole characters out of a stream of bytes.
#include <stdlib.h>

#include "unicode.h"
#include "vocab.h"

// ---- one token ----

// The bytes of a token of byte-level BPE. Characters that stand for no byte (added tokens) stay as they are.
static size_t decode_byte_level(GgufString s, char *out) {
    size_t n = 0;
    for (size_t i = 0; i < s.n;) {
        uint32_t cp;
        const int length = utf8_decode(s.p + i, s.n - i, &cp), byte = byte_level_byte(cp);
        if (byte >= 0) out[n++] = (char)byte;
        else {
            memcpy(out + n, s.p + i, (size_t)length);
            n += (size_t)length;
        }
        i += (size_t)length;
    }
    return n;
}

static size_t decode_blanks(GgufString s, char *out) {
    size_t n = 0;
    for (size_t i = 0; i < s.n; i++) {
        const bool blank = s.n - i >= 3 && memcmp(s.p + i, "\xE2\x96\x81", 3) == 0;
        out[n++] = blank ? ' ' : s.p[i];
        if (blank) i += 2;
    }
    return n;
}

bool vocab_decode_all(Tokenizer *t, Err *e) {
    uint64_t total = 0;
    for (int i = 0; i < t->n_vocab; i++) total += t->text[i].n + 1;
    t->decoded = total < UINT32_MAX ? malloc((size_t)total) : NULL;
    t->decoded_at = malloc(((size_t)t->n_vocab + 1) * sizeof *t->decoded_at);
    if (!t->decoded || !t->decoded_at) return err_set(e, "no memory for the vocabulary");
    uint32_t at = 0;
    for (int i = 0; i < t->n_vocab; i++) {
        const GgufString s = t->text[i];
        const int byte = t->kind == VOCAB_BPE ? -1 : vocab_byte(s);
        t->decoded_at[i] = at;
        if (t->type[i] == TOKEN_USER) {
            memcpy(t->decoded + at, s.p, s.n);
            at += (uint32_t)s.n;
        } else if (t->type[i] == TOKEN_BYTE && byte >= 0) t->decoded[at++] = (char)byte;
        else if (t->type[i] == TOKEN_NORMAL || t->type[i] == TOKEN_BYTE)
            at += (uint32_t)(t->kind == VOCAB_BPE ? decode_byte_level(s, t->decoded + at) : decode_blanks(s, t->decoded + at));
    }
    t->decoded_at[t->n_vocab] = at;
    return true;
}

const char *tokenizer_bytes(const Tokenizer *t, int id, bool show_control, size_t *n) {
    *n = 0;
    if (id < 0 || id >= t->n_vocab) return "";
    if (tokenizer_is_control(t, id) && show_control) {
        *n = (size_t)t->text[id].n;
        return t->text[id].p;
    }
    *n = t->decoded_at[id + 1] - t->decoded_at[id];
    return t->decoded + t->decoded_at[id];
}

// ---- a stream of bytes ----

// n bytes are: 1 a whole character, 0 the beginning of one, -1 neither. (Unicode 15, table 3-7)
static int classify(const char *p, int n) {
    const uint8_t *u = (const uint8_t *)p;
    const int length = u[0] < 0x80 ? 1 : u[0] < 0xC2 ? 0 : u[0] < 0xE0 ? 2 : u[0] < 0xF0 ? 3 : u[0] < 0xF5 ? 4 : 0;
    if (!length) return -1;
    for (int i = 1; i < n; i++)
        if ((u[i] & 0xC0) != 0x80) return -1;
    if (n > 1) { // overlong, surrogate, above 10FFFF
        if ((u[0] == 0xE0 && u[1] < 0xA0) || (u[0] == 0xED && u[1] > 0x9F) || (u[0] == 0xF0 && u[1] < 0x90) || (u[0] == 0xF4 && u[1] > 0x8F)) return -1;
    }
    return n == length;
}

static bool put(Utf8Stream *s, const char *p, size_t n_p, char **out, size_t *n, size_t *cap) {
    if (s->strip_space && n_p) {
        s->strip_space = false;
        if (p[0] == ' ') return true;
    }
    if (*n + n_p + 1 > *cap) {
        const size_t more = 2 * (*n + n_p) + 64;
        char *bigger = realloc(*out, more);
        if (!bigger) return false;
        *out = bigger;
        *cap = more;
    }
    memcpy(*out + *n, p, n_p);
    *n += n_p;
    (*out)[*n] = 0;
    return true;
}

bool utf8_stream_push(Utf8Stream *s, const char *bytes, size_t n_bytes, bool flush, char **out, size_t *n, size_t *cap) {
    static const char REPLACEMENT[] = "\xEF\xBF\xBD"; // U+FFFD
    for (size_t i = 0; i < n_bytes;) {
        s->hold[s->n_hold++] = bytes[i++];
        const int what = classify(s->hold, s->n_hold);
        if (what == 0) continue;
        if (what < 0 && s->n_hold > 1) i--; // the byte that did not fit may begin a character of its own
        if (!(what > 0 ? put(s, s->hold, (size_t)s->n_hold, out, n, cap) : put(s, REPLACEMENT, 3, out, n, cap))) return false;
        s->n_hold = 0;
    }
    if (!flush || !s->n_hold) return true;
    s->n_hold = 0;
    return put(s, REPLACEMENT, 3, out, n, cap);
}
