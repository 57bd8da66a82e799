// tokenizer.h: text to token ids and back, from the vocabulary inside a GGUF file. SPM, byte-level BPE, Gemma 4.
#ifndef TOKENIZER_H
#define TOKENIZER_H

#include "gguf.h"

typedef struct Tokenizer Tokenizer;

typedef struct {
    int *id;
    int n, cap;
} Ids; // a growing list; zero-initialise, ids_free at the end
MUST_CHECK bool ids_push(Ids *ids, int id); // false: no memory
void ids_free(Ids *ids);

// A piece of a prompt. Control tokens are recognised only in trusted text (ours), never in what a user typed; adjacent
// raw text is joined across segment borders before it is split into tokens.
typedef struct {
    const char *text;
    size_t n;
    bool trusted;
} Segment;

// Borrows the texts of g: close g last.
MUST_CHECK bool tokenizer_open(Tokenizer **out, const Gguf *g, Err *e);
void tokenizer_close(Tokenizer *t);

int tokenizer_n_vocab(const Tokenizer *t);
int tokenizer_bos(const Tokenizer *t); // -1 = none
int tokenizer_eos(const Tokenizer *t); // -1 = none
bool tokenizer_add_bos(const Tokenizer *t);
bool tokenizer_is_spm(const Tokenizer *t);
bool tokenizer_is_end(const Tokenizer *t, int id);     // ends a generation: EOS, EOT and the like
bool tokenizer_is_control(const Tokenizer *t, int id);
bool tokenizer_is_suppressed(const Tokenizer *t, int id); // must never be sampled (tokenizer.ggml.suppress_tokens)
int tokenizer_find(const Tokenizer *t, const char *piece, size_t n); // id of the token with exactly this text, -1 = none

// Appends the ids of the text. add_special: put BOS (EOS) where the file asks for it. parse_special: recognise control
// tokens written out as text. Invalid UTF-8 is allowed. Fails only for lack of memory.
MUST_CHECK bool tokenizer_encode(const Tokenizer *t, const char *text, size_t n, bool add_special, bool parse_special, Ids *out, Err *e);
MUST_CHECK bool tokenizer_encode_segments(const Tokenizer *t, const Segment *s, int n_seg, bool add_special, Ids *out, Err *e);

// The *n bytes of one token as they appear in the middle of a text (an SPM U+2581 is a space, <0x0A> a newline byte).
// Control tokens give nothing unless show_control. Valid until tokenizer_close.
const char *tokenizer_bytes(const Tokenizer *t, int id, bool show_control, size_t *n);

// Decodes a stream of ids so that only whole UTF-8 characters come out. strip_space: drop the one leading space that SPM
// adds in front of a text (only before the first printed byte; set it when decoding from the start of a text).
typedef struct {
    char hold[8];     // an unfinished character
    int n_hold;
    bool strip_space;
} Utf8Stream;
// Appends the printable bytes to *out (realloc'd, *n bytes used, *cap allocated). flush: give out what is held, invalid bytes as U+FFFD.
MUST_CHECK bool utf8_stream_push(Utf8Stream *s, const char *bytes, size_t n_bytes, bool flush, char **out, size_t *n, size_t *cap);

#endif
