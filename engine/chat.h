// chat.h: prompt templates. The family is recognised from the template string in the file; the text is made by our own
// code, one row of a table per family (spec: exact strings of the published templates). No Jinja.
#ifndef CHAT_H
#define CHAT_H

#include "tokenizer.h"

typedef enum { ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT } Role;

typedef struct {
    Role role;
    char *text; // NUL terminated UTF-8
} Message;

typedef struct ChatFamily ChatFamily;

typedef struct {
    const ChatFamily *family; // NULL: the file has no template, or one we do not know
    bool thinking;            // Gemma 4: ask for a thought channel
    char date[32];            // Llama 3.1+ preamble, "26 Jul 2024"
} Chat;

// What the detection looks at. template_n = 0: no template in the file.
typedef struct {
    const char *template_text;
    size_t template_n;
    bool is_spm;       // the vocabulary is SentencePiece
    bool has_im_start; // <|im_start|> is a token
} ChatHints;

// Recognises the family. Never fails; family stays NULL for none. Any bytes are allowed.
void chat_detect(Chat *c, const ChatHints *hints);
MUST_CHECK bool chat_from_file(Chat *c, const Gguf *g, const Tokenizer *t, Err *e);
// Forces a family by name; false: unknown (chat_family_names lists them, comma separated).
bool chat_force(Chat *c, const char *name);
const char *chat_family_name(const Chat *c); // "none" without one
const char *chat_family_names(void);
bool chat_can_think(const Chat *c);

// The prompt as segments: our own text trusted, the messages' text not. Everything is owned by the list.
typedef struct {
    Segment *seg;
    int n, cap;
    char **owned; // strings behind the segments
    int n_owned, cap_owned;
} Prompt;
void prompt_free(Prompt *p);
// Renders messages [from, n) as they continue a conversation whose earlier messages were rendered before; from = 0 starts it.
// Without the BOS text (the tokenizer adds it). generate: end with the start of an answer. False: no memory.
// The rendering of [0, n) equals the published template's; rendering in steps gives the same text as at once, except where
// chat.c says otherwise (Gemma 4's thoughts are dropped from history).
MUST_CHECK bool chat_render(const Chat *c, const Message *m, int from, int n, bool generate, Prompt *out, Err *e);

// End-of-turn texts of the family beyond the file's EOS/EOT ids; NULL-terminated list, may be empty.
const char *const *chat_stops(const Chat *c);

// Splits an answer into thought and content while it streams (Gemma 4 channels; <think> of R1 distills).
typedef enum { CHAT_CONTENT, CHAT_THOUGHT } ChatPart;
typedef struct {
    const Chat *chat;
    ChatPart part;
    char hold[64]; // text that may become a marker
    int n_hold;
    int state;
} ChatParser;
void chat_parser_init(ChatParser *p, const Chat *c);
// Calls emit for each run of text; flush at the end of the answer.
void chat_parser_push(ChatParser *p, const char *text, size_t n, bool flush, void (*emit)(void *ctx, ChatPart part, const char *text, size_t n), void *ctx);

#endif
