// vocab.h: the inside of a Tokenizer, shared by vocab.c (reads it from the file), tokenizer.c (text to ids) and
// detokenizer.c (ids to text).
#ifndef VOCAB_H
#define VOCAB_H

#include "pretokenize.h"
#include "tokenizer.h"

typedef enum { VOCAB_SPM, VOCAB_BPE, VOCAB_GEMMA4 } VocabKind;
typedef enum { TOKEN_UNDEFINED, TOKEN_NORMAL, TOKEN_UNKNOWN, TOKEN_CONTROL, TOKEN_USER, TOKEN_UNUSED, TOKEN_BYTE } TokenType; // as in the file

// Text to index in an array of texts. Open addressing; slots hold index + 1, 0 is empty.
typedef struct {
    uint32_t *slot;
    uint32_t mask; // number of slots - 1
    uint32_t n;
} TextMap;

// FNV-1a, 32 bits, so that a hash can be continued byte by byte.
enum { HASH_START = 0x811C9DC5u };
static inline uint32_t hash_more(uint32_t h, const char *p, size_t n) {
    for (size_t i = 0; i < n; i++) h = (h ^ (uint8_t)p[i]) * 0x01000193u;
    return h;
}
// The hash is that of p[0, n). -1: not there.
int text_map_find_hashed(const TextMap *m, const GgufString *texts, uint32_t hash, const char *p, size_t n);
static inline int text_map_find(const TextMap *m, const GgufString *texts, const char *p, size_t n) {
    return text_map_find_hashed(m, texts, hash_more(HASH_START, p, n), p, n);
}

// Two neighbouring symbols become one. rank: the smaller, the earlier.
typedef struct {
    int left, right, result, rank;
} Merge;

struct Tokenizer {
    VocabKind kind;
    int n_vocab;
    int n_text, cap_text;     // texts 0 .. n_vocab - 1 are the tokens, the rest occurs in merges only
    GgufString *text;         // borrowed from the file, or in `owned`
    TextMap by_text;          // the first index of each text
    TextMap specials;         // texts cut out of the input before it is split: control, unknown and user-defined tokens
    uint8_t *special_length;  // [max_special + 1] 1: some special text has this length
    bool special_first[256];  // some special text begins with this byte
    int max_special;
    uint8_t *type;            // [n_vocab] TokenType
    uint8_t *end;             // [n_vocab] 1: ends a generation
    uint8_t *suppressed;      // [n_vocab]
    float *score;             // [n_vocab] SPM
    uint32_t *merge_slot;     // BPE: (left, right) to index + 1 in merge
    uint32_t merge_mask;
    Merge *merge;
    int n_merge;
    int max_text;             // bytes of the longest token
    const PreTokenizer *pre;  // BPE
    int bos, eos, unk;        // -1 = none
    bool add_bos, add_eos, space_prefix;
    char *decoded;            // what normal tokens look like in a text, back to back
    uint32_t *decoded_at;     // [n_vocab + 1]
    char **owned;             // texts that are not in the file
    int n_owned, cap_owned;
};

const Merge *vocab_merge(const Tokenizer *t, int left, int right); // NULL: they do not merge
// The byte of a token <0xXX>, or -1.
int vocab_byte(GgufString text);
bool vocab_decode_all(Tokenizer *t, Err *e); // fills decoded; detokenizer.c

// The 256 characters that stand for bytes in the texts of byte-level BPE (GPT-2): printable Latin-1 characters stand for
// themselves, the other 68 bytes for U+0100 and up.
uint32_t byte_level_character(uint8_t byte);
int byte_level_byte(uint32_t cp); // -1: stands for none

#endif
