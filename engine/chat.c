// chat.c: prompt templates without a template language. A family is one row of FAMILIES: the text around a message of each
// role, the start of an answer, what is trimmed. A family is recognised by substrings of the template in the file, in the
// order of SIGNS. What rows cannot say is in four functions: system_host, put_preamble, history_text, and the stream parser.
//
// Rendering in steps: [0, k) without generate, then [k, n), gives the text of [0, n) at once, but for two cases.
// - gemma4 joins neighbouring answers in one turn; a step that begins between them cannot.
// - mistral-v3 puts the system text into the last user message; one that is already rendered keeps it.
// What a model generated differs from its rendering as history (trimming; thoughts are dropped), so a conversation is best
// rendered from 0 each turn, keeping the cached tokens that agree.
#include "chat.h"
#include <stdlib.h>

enum { TRIM_SYSTEM = 1 << ROLE_SYSTEM, TRIM_USER = 1 << ROLE_USER, TRIM_ANSWER = 1 << ROLE_ASSISTANT, TRIM_ALL = 7, TRIM_JOINED = 8 };

typedef struct {
    const char *before, *after;
} Wrap;

struct ChatFamily {
    const char *name;
    Wrap system, user, assistant;
    enum { OWN_TURN, IN_NEXT_USER, IN_LAST_USER } system_place; // IN_...: system text stands in a user turn, before its text
    int trim;                  // TRIM_ bits: roles whose text loses the white space at its ends. JOINED: a user text behind the
                               // system text keeps what it starts with, as the two are trimmed as one
    const char *generate;      // the start of an answer
    const char *empty_thought; // Gemma 4: follows generate while thinking is off
    bool dated;                // Llama 3.1+: the system turn is always there and begins with two dates
    enum { NO_THOUGHT, CHANNEL, TAG, TAG_OPEN } thought; // how an answer marks it; TAG_OPEN: generate has opened it already
    const char *stops[4];
};

#define LLAMA3                                                                                                         \
    .system = {"<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"},                                       \
    .user = {"<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"},                                           \
    .assistant = {"<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"}, .trim = TRIM_ALL,               \
    .generate = "<|start_header_id|>assistant<|end_header_id|>\n\n", .stops = {"<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"}
#define GEMMA4                                                                                                         \
    .system = {"<|turn>system\n", "<turn|>\n"}, .user = {"<|turn>user\n", "<turn|>\n"},                               \
    .assistant = {"<|turn>model\n", "<turn|>\n"}, .trim = TRIM_ALL, .generate = "<|turn>model\n", .thought = CHANNEL,  \
    .stops = {"<turn|>", "<eos>", "<|tool_response>"}
#define DEEPSEEK                                                                                                       \
    .user = {"<｜User｜>", ""}, .system = {"", ""}, .assistant = {"<｜Assistant｜>", "<｜end▁of▁sentence｜>"},          \
    .stops = {"<｜end▁of▁sentence｜>"}

// <s> at the very start of a prompt is the BOS; rendering leaves it to the tokenizer (at_start).
static const ChatFamily FAMILIES[] = {
    {.name = "gemma4", GEMMA4, .empty_thought = "<|channel>thought\n<channel|>"}, // 12B, 26B-A4B, 31B
    {.name = "gemma4-e", GEMMA4, .empty_thought = ""},                            // E2B, E4B
    {.name = "gemma", .system = {"", "\n\n"}, .user = {"<start_of_turn>user\n", "<end_of_turn>\n"}, // 1, 2, 3, 3n
     .assistant = {"<start_of_turn>model\n", "<end_of_turn>\n"}, .system_place = IN_NEXT_USER, .trim = TRIM_USER | TRIM_ANSWER,
     .generate = "<start_of_turn>model\n", .stops = {"<end_of_turn>", "<eos>"}},
    {.name = "llama2", .system = {"<<SYS>>\n", "\n<</SYS>>\n\n"}, .user = {"<s>[INST] ", " [/INST]"}, .assistant = {" ", " </s>"},
     .system_place = IN_NEXT_USER, .trim = TRIM_USER | TRIM_ANSWER | TRIM_JOINED, .generate = "", .stops = {"</s>"}},
    {.name = "llama2-sys", .system = {"<<SYS>>\n", "\n<</SYS>>\n\n"}, .user = {"[INST] ", " [/INST]"}, .assistant = {"", "</s>"},
     .system_place = IN_NEXT_USER, .generate = "", .stops = {"</s>"}},
    {.name = "llama2-sys-bos", .system = {"<<SYS>>\n", "\n<</SYS>>\n\n"}, .user = {"<s>[INST] ", " [/INST]"}, .assistant = {"", "</s>"},
     .system_place = IN_NEXT_USER, .generate = "", .stops = {"</s>"}},
    {.name = "llama2-sys-strip", .system = {"<<SYS>>\n", "\n<</SYS>>\n\n"}, .user = {"[INST] ", " [/INST]"}, .assistant = {"", "</s>"},
     .system_place = IN_NEXT_USER, .trim = TRIM_ALL, .generate = "", .stops = {"</s>"}},
    {.name = "llama3", LLAMA3},
    {.name = "llama3.1", LLAMA3, .dated = true}, // 3.1, 3.2, 3.3
    {.name = "llama4", .system = {"<|header_start|>system<|header_end|>\n\n", "<|eot|>"}, .user = {"<|header_start|>user<|header_end|>\n\n", "<|eot|>"},
     .assistant = {"<|header_start|>assistant<|header_end|>\n\n", "<|eot|>"}, .trim = TRIM_ALL,
     .generate = "<|header_start|>assistant<|header_end|>\n\n", .stops = {"<|eot|>"}},
    {.name = "chatml", .system = {"<|im_start|>system\n", "<|im_end|>\n"}, .user = {"<|im_start|>user\n", "<|im_end|>\n"},
     .assistant = {"<|im_start|>assistant\n", "<|im_end|>\n"}, .generate = "<|im_start|>assistant\n", .stops = {"<|im_end|>", "<|endoftext|>"}},
    {.name = "mistral", .system = {"", "\n"}, .user = {"[INST] ", " [/INST]"}, .assistant = {"", "</s>"}, // v0.1, v0.2
     .system_place = IN_NEXT_USER, .generate = "", .stops = {"</s>"}},
    {.name = "mistral-v1", .system = {"", "\n\n"}, .user = {" [INST] ", " [/INST]"}, .assistant = {" ", "</s>"},
     .system_place = IN_NEXT_USER, .generate = "", .stops = {"</s>"}},
    {.name = "mistral-v3", .system = {"", "\n\n"}, .user = {"[INST] ", "[/INST]"}, .assistant = {" ", "</s>"},
     .system_place = IN_LAST_USER, .trim = TRIM_ANSWER, .generate = "", .stops = {"</s>"}},
    {.name = "mistral-v3-tekken", .system = {"", "\n\n"}, .user = {"[INST]", "[/INST]"}, .assistant = {"", "</s>"},
     .system_place = IN_LAST_USER, .generate = "", .stops = {"</s>"}},
    {.name = "mistral-v7", .system = {"[SYSTEM_PROMPT] ", "[/SYSTEM_PROMPT]"}, .user = {"[INST] ", "[/INST]"}, .assistant = {" ", "</s>"},
     .generate = "", .stops = {"</s>"}},
    {.name = "mistral-v7-tekken", .system = {"[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"}, .user = {"[INST]", "[/INST]"}, .assistant = {"", "</s>"},
     .generate = "", .stops = {"</s>"}},
    {.name = "deepseek", DEEPSEEK, .generate = "<｜Assistant｜>", .thought = TAG},
    {.name = "deepseek-r1", DEEPSEEK, .generate = "<｜Assistant｜><think>\n", .thought = TAG_OPEN},
    {.name = "zephyr", .system = {"<|system|>\n", "</s>\n"}, .user = {"<|user|>\n", "</s>\n"}, .assistant = {"<|assistant|>\n", "</s>\n"},
     .generate = "<|assistant|>\n", .stops = {"</s>"}},
    {.name = "stablelm-zephyr", .system = {"<|system|>\n", "<|endoftext|>\n"}, .user = {"<|user|>\n", "<|endoftext|>\n"},
     .assistant = {"<|assistant|>\n", "<|endoftext|>\n"}, .generate = "<|assistant|>\n", .stops = {"<|endoftext|>"}},
    {.name = "phi3", .system = {"<|system|>\n", "<|end|>\n"}, .user = {"<|user|>\n", "<|end|>\n"}, .assistant = {"<|assistant|>\n", "<|end|>\n"},
     .generate = "<|assistant|>\n", .stops = {"<|end|>", "<|endoftext|>"}},
    {.name = "falcon3", .system = {"<|system|>\n", "\n"}, .user = {"<|user|>\n", "\n"}, .assistant = {"<|assistant|>\n", "\n"},
     .generate = "<|assistant|>\n", .stops = {"<|endoftext|>"}},
    {.name = "vicuna", .system = {"", "\n\n"}, .user = {"USER: ", "\n"}, .assistant = {"ASSISTANT: ", "</s>\n"},
     .generate = "ASSISTANT:", .stops = {"</s>"}},
    {.name = "vicuna-orca", .system = {"SYSTEM: ", "\n"}, .user = {"USER: ", "\n"}, .assistant = {"ASSISTANT: ", "</s>\n"},
     .generate = "ASSISTANT:", .stops = {"</s>"}},
    {.name = "alpaca", .system = {"", "\n\n"}, .user = {"### Instruction:\n", "\n\n"}, .assistant = {"### Response:\n", "\n\n"},
     .trim = TRIM_ALL, .generate = "### Response:\n", .stops = {"### Instruction:"}},
    {.name = "deepseek-coder", .system = {"", ""}, .user = {"### Instruction:\n", "\n"}, .assistant = {"### Response:\n", "\n<|EOT|>\n"},
     .generate = "### Response:\n", .stops = {"<|EOT|>"}},
    {.name = "openchat", .system = {"", "<|end_of_turn|>"}, .user = {"GPT4 Correct User: ", "<|end_of_turn|>"},
     .assistant = {"GPT4 Correct Assistant: ", "<|end_of_turn|>"}, .generate = "GPT4 Correct Assistant:", .stops = {"<|end_of_turn|>"}},
    {.name = "monarch", .system = {"<s>system\n", "</s>\n"}, .user = {"<s>user\n", "</s>\n"}, .assistant = {"<s>assistant\n", "</s>\n"},
     .generate = "<s>assistant\n", .stops = {"</s>"}},
    {.name = "orion", .system = {"", "\n\n"}, .user = {"Human: ", "\n\nAssistant: </s>"}, .assistant = {"", "</s>"},
     .system_place = IN_NEXT_USER, .generate = "", .stops = {"</s>"}},
};
enum { N_FAMILY = sizeof FAMILIES / sizeof FAMILIES[0] };

// Without a family a prompt is its messages' text and nothing else.
static const ChatFamily PLAIN = {.name = "none", .system = {"", ""}, .user = {"", ""}, .assistant = {"", ""}, .generate = ""};

static const ChatFamily *family_of(const Chat *c) { return c->family ? c->family : &PLAIN; }

const char *chat_family_name(const Chat *c) { return family_of(c)->name; }
const char *const *chat_stops(const Chat *c) { return family_of(c)->stops; }
bool chat_can_think(const Chat *c) { return family_of(c)->thought == CHANNEL; }

const char *chat_family_names(void) { // FAMILIES in order; test_chat.c compares
    return "gemma4, gemma4-e, gemma, llama2, llama2-sys, llama2-sys-bos, llama2-sys-strip, llama3, llama3.1, llama4, chatml, mistral, mistral-v1, "
           "mistral-v3, mistral-v3-tekken, mistral-v7, mistral-v7-tekken, deepseek, deepseek-r1, zephyr, stablelm-zephyr, phi3, falcon3, vicuna, "
           "vicuna-orca, alpaca, deepseek-coder, openchat, monarch, orion";
}

static const ChatFamily *family_named(const char *name, size_t n) {
    for (int i = 0; i < N_FAMILY; i++)
        if (strlen(FAMILIES[i].name) == n && !memcmp(FAMILIES[i].name, name, n)) return &FAMILIES[i];
    return NULL;
}

bool chat_force(Chat *c, const char *name) {
    const ChatFamily *f = family_named(name, strlen(name));
    if (f) c->family = f;
    return f != NULL;
}

// ---- detection ----

// The first row whose marks all occur in the template decides; backslash-n is two characters there, as written in Jinja.
// A row may name "" (known to be something else) or "?" (a function below decides).
static const struct {
    const char *mark[3], *family;
} SIGNS[] = {
    {{"<|turn>", "<|channel>thought\\n<channel|>"}, "gemma4"},
    {{"<|turn>"}, "gemma4-e"},
    {{"<start_of_turn>"}, "gemma"},
    {{"<|start_header_id|>", "Cutting Knowledge Date"}, "llama3.1"},
    {{"<|start_header_id|>"}, "llama3"},
    {{"<|header_start|>"}, "llama4"},
    {{"<|im_start|>", "<|im_sep|>"}, ""}, // Phi-4
    {{"<|im_start|>"}, "chatml"},
    {{"[INST]", "[SYSTEM_PROMPT]"}, "mistral-v7"},
    {{"' [INST] ' + system_message"}, "mistral-v1"},
    {{"[AVAILABLE_TOOLS]", " [INST]"}, "mistral-v1"},
    {{"[AVAILABLE_TOOLS]", "\"[INST]\""}, "mistral-v3-tekken"},
    {{"[INST]", "[AVAILABLE_TOOLS]"}, "mistral-v3"},
    {{"[INST]", "content.strip()"}, "llama2"},
    {{"bos_token + '[INST]"}, "llama2-sys-bos"},
    {{"[INST]", "<<SYS>>"}, "llama2-sys"},
    {{"[INST]"}, "mistral"},
    {{"<｜User｜>", "<｜Assistant｜><think>"}, "deepseek-r1"},
    {{"<｜User｜>"}, "deepseek"},
    {{"<|user|>"}, "?"},
    {{"USER:", "ASSISTANT:", "SYSTEM:"}, "vicuna-orca"},
    {{"USER:", "ASSISTANT:"}, "vicuna"},
    {{"### Instruction", "<|EOT|>"}, "deepseek-coder"},
    {{"### Instruction"}, "alpaca"},
    {{"GPT4 Correct "}, "openchat"},
    {{"bos_token + message['role']"}, "monarch"},
    {{"'\\n\\nAssistant: ' + eos_token"}, "orion"},
};

// Where mark begins in text[from, n); n if it does not occur.
static size_t find(const char *text, size_t from, size_t n, const char *mark) {
    const char *p = from < n ? memmem(text + from, n - from, mark, strlen(mark)) : NULL;
    return p ? (size_t)(p - text) : n;
}

// Formats with <|user|> differ in what ends a message: the first terminator between the user's content and the next role.
static const char *user_bar_family(const char *t, size_t n) {
    static const char *const ROLES[] = {"<|user|>", "<|assistant|>", "<|system|>"};
    static const char *const ENDS[][2] = {{"eos_token", "zephyr"}, {"</s>", "zephyr"}, {"<|end|>", "phi3"}, {"<|endoftext|>", "stablelm-zephyr"}};
    const size_t content = find(t, find(t, 0, n, "<|user|>"), n, "content");
    size_t first = n;
    for (int i = 0; i < 3; i++) {
        const size_t role = find(t, content, n, ROLES[i]);
        if (role < first) first = role;
    }
    const char *family = "falcon3"; // nothing but a newline
    for (int i = 0; i < 4; i++) {
        const size_t end = find(t, content, first, ENDS[i][0]);
        if (end < first) {
            first = end;
            family = ENDS[i][1];
        }
    }
    return family;
}

void chat_detect(Chat *c, const ChatHints *h) {
    *c = (Chat){.date = "26 Jul 2024"};
    const char *t = h->template_text;
    const size_t n = h->template_n;
    if (!n) return;
    c->family = family_named(t, n); // some converters wrote only a name
    for (size_t s = 0; !c->family && s < sizeof SIGNS / sizeof SIGNS[0]; s++) {
        bool all = true;
        for (int i = 0; i < 3 && SIGNS[s].mark[i]; i++) all = all && find(t, 0, n, SIGNS[s].mark[i]) < n;
        if (!all) continue;
        const char *name = SIGNS[s].family;
        if (!strcmp(name, "?")) name = user_bar_family(t, n);
        if (!strcmp(name, "mistral-v7") && !h->is_spm) name = "mistral-v7-tekken";
        c->family = family_named(name, strlen(name));
        return;
    }
    // A template we do not know over a ChatML vocabulary is most likely a dressed-up ChatML.
    if (!c->family && h->has_im_start) c->family = family_named("chatml", 6);
}

bool chat_from_file(Chat *c, const Gguf *g, const Tokenizer *t, Err *e) {
    static const char IM_START[] = "<|im_start|>";
    GgufString text = {0};
    if (!gguf_get_string(g, "tokenizer.chat_template", &text, e)) return false;
    chat_detect(c, &(ChatHints){.template_text = text.p, .template_n = text.n, .is_spm = tokenizer_is_spm(t), .has_im_start = tokenizer_find(t, IM_START, strlen(IM_START)) >= 0});
    return true;
}

// ---- text ----

// Bytes of the white space character (Python's str.strip) at the start of p, 0 if there is none.
static size_t space_at(const char *p, size_t n) {
    const unsigned char *u = (const unsigned char *)p;
    if (n < 1) return 0;
    if ((u[0] >= 0x09 && u[0] <= 0x0D) || (u[0] >= 0x1C && u[0] <= 0x20)) return 1;
    if (n < 2) return 0;
    if (u[0] == 0xC2 && (u[1] == 0x85 || u[1] == 0xA0)) return 2; // U+0085, U+00A0
    if (n < 3) return 0;
    if (u[0] == 0xE1 && u[1] == 0x9A && u[2] == 0x80) return 3; // U+1680
    if (u[0] == 0xE2 && u[1] == 0x80 && ((u[2] >= 0x80 && u[2] <= 0x8A) || u[2] == 0xA8 || u[2] == 0xA9 || u[2] == 0xAF)) return 3; // U+2000..
    if (u[0] == 0xE2 && u[1] == 0x81 && u[2] == 0x9F) return 3; // U+205F
    if (u[0] == 0xE3 && u[1] == 0x80 && u[2] == 0x80) return 3; // U+3000
    return 0;
}

static void trim(const char **p, size_t *n, bool start) {
    for (size_t k; start && (k = space_at(*p, *n)) > 0;) {
        *p += k;
        *n -= k;
    }
    for (size_t k = 1; k <= 3 && k <= *n; k++)
        if (space_at(*p + *n - k, k) == k) {
            *n -= k;
            k = 0;
        }
}

// Gemma 4's strip_thinking, in place: of the pieces between <channel|> marks, keep what precedes the first <|channel>.
static size_t drop_channels(char *text, size_t n) {
    static const char OPEN[] = "<|channel>", CLOSE[] = "<channel|>";
    size_t kept = 0;
    for (size_t at = 0; at < n;) {
        const size_t close = find(text, at, n, CLOSE), open = find(text, at, close, OPEN);
        memmove(text + kept, text + at, open - at);
        kept += open - at;
        at = close + strlen(CLOSE);
    }
    return kept;
}

// ---- rendering ----

void prompt_free(Prompt *p) {
    for (int i = 0; i < p->n_owned; i++) free(p->owned[i]);
    free(p->owned);
    free(p->seg);
    *p = (Prompt){0};
}

static bool no_memory(Err *e) { return err_set(e, "no memory for the prompt"); }

static bool put(Prompt *p, const char *text, size_t n, bool trusted, Err *e) {
    if (!n) return true;
    if (p->n == p->cap) {
        const int cap = p->cap ? 2 * p->cap : 16;
        Segment *seg = realloc(p->seg, sizeof *seg * (size_t)cap);
        if (!seg) return no_memory(e);
        p->seg = seg;
        p->cap = cap;
    }
    p->seg[p->n++] = (Segment){text, n, trusted};
    return true;
}

static bool put_ours(Prompt *p, const char *text, Err *e) { return put(p, text, strlen(text), true, e); }

// A copy of text that lives as long as the prompt; NULL: no memory.
static char *own(Prompt *p, const char *text) {
    if (p->n_owned == p->cap_owned) {
        const int cap = p->cap_owned ? 2 * p->cap_owned : 16;
        char **owned = realloc(p->owned, sizeof *owned * (size_t)cap);
        if (!owned) return NULL;
        p->owned = owned;
        p->cap_owned = cap;
    }
    char *copy = strdup(text);
    if (copy) p->owned[p->n_owned++] = copy;
    return copy;
}

// A message's text as the family shows it: thoughts of earlier answers dropped, trimmed. joined: behind the system text.
static bool put_text(const ChatFamily *f, Role role, const char *original, bool joined, Prompt *p, Err *e) {
    char *copy = own(p, original);
    if (!copy) return no_memory(e);
    const char *text = copy;
    size_t n = strlen(copy);
    if (role == ROLE_ASSISTANT && f->thought == CHANNEL) n = drop_channels(copy, n);
    if (role == ROLE_ASSISTANT && (f->thought == TAG || f->thought == TAG_OPEN))
        for (const char *end; (end = strstr(text, "</think>")); n = strlen(text)) text = end + strlen("</think>");
    if (f->trim & 1 << role) trim(&text, &n, !(joined && f->trim & TRIM_JOINED));
    return put(p, text, n, false, e);
}

// What our own text puts at the start of the first system turn; such a turn is made if there is none.
static bool has_preamble(const Chat *c) { return family_of(c)->dated || (c->thinking && chat_can_think(c)); }

static bool put_preamble(const Chat *c, Prompt *p, Err *e) {
    if (!family_of(c)->dated) return put_ours(p, "<|think|>\n", e);
    const char *date = own(p, c->date[0] ? c->date : "26 Jul 2024");
    if (!date) return no_memory(e);
    return put_ours(p, "Cutting Knowledge Date: December 2023\nToday Date: ", e) && put(p, date, strlen(date), false, e) && put_ours(p, "\n\n", e);
}

// The user message that shows system message j; -1: none yet.
static int system_host(const ChatFamily *f, const Message *m, int j, int from, int n) {
    int host = -1;
    for (int i = j + 1; i < n; i++) {
        if (m[i].role != ROLE_USER) continue;
        host = i;
        if (f->system_place == IN_NEXT_USER || i < from) break; // what is rendered stays where it is
    }
    return host;
}

// Nothing has been rendered before message i.
static bool at_start(const ChatFamily *f, const Message *m, int i) {
    for (int j = 0; j < i; j++)
        if (f->system_place == OWN_TURN || m[j].role != ROLE_SYSTEM) return false;
    return true;
}

static const char *skip_bos(const char *text) { return strncmp(text, "<s>", 3) ? text : text + 3; }

bool chat_render(const Chat *c, const Message *m, int from, int n, bool generate, Prompt *out, Err *e) {
    const ChatFamily *f = family_of(c);
    const Wrap *wrap[] = {[ROLE_SYSTEM] = &f->system, [ROLE_USER] = &f->user, [ROLE_ASSISTANT] = &f->assistant};
    *out = (Prompt){0};
    if (from == 0 && has_preamble(c) && (n == 0 || m[0].role != ROLE_SYSTEM))
        if (!put_ours(out, f->system.before, e) || !put_preamble(c, out, e) || !put_ours(out, f->system.after, e)) return false;
    for (int i = from; i < n; i++) {
        const Role role = m[i].role;
        if (role == ROLE_SYSTEM && f->system_place != OWN_TURN) continue;
        const bool joins = f->thought == CHANNEL && role == ROLE_ASSISTANT; // Gemma 4: neighbouring answers share a turn
        if (!(joins && i > from && m[i - 1].role == ROLE_ASSISTANT))
            if (!put_ours(out, at_start(f, m, i) ? skip_bos(wrap[role]->before) : wrap[role]->before, e)) return false;
        if (i == 0 && role == ROLE_SYSTEM && has_preamble(c) && !put_preamble(c, out, e)) return false;
        bool joined = false;
        for (int j = 0; j < i && role == ROLE_USER && f->system_place != OWN_TURN; j++) {
            if (m[j].role != ROLE_SYSTEM || system_host(f, m, j, from, n) != i) continue;
            joined = true;
            if (!put_ours(out, f->system.before, e) || !put_text(f, ROLE_SYSTEM, m[j].text, false, out, e) || !put_ours(out, f->system.after, e)) return false;
        }
        if (!put_text(f, role, m[i].text, joined, out, e)) return false;
        if (!(joins && i + 1 < n && m[i + 1].role == ROLE_ASSISTANT))
            if (!put_ours(out, wrap[role]->after, e)) return false;
    }
    if (!generate) return true;
    if (!put_ours(out, n == 0 ? skip_bos(f->generate) : f->generate, e)) return false;
    return !f->empty_thought || c->thinking || put_ours(out, f->empty_thought, e);
}

// ---- the answer ----

// The parser's state says which marks it looks for. A mark contains '<' only as its first byte, so what fails to become one
// is plain text up to the byte that failed. Splitting the stream differently gives the same text.
enum { START, CONTENT, NAME, BLANKS, THOUGHT };
typedef struct {
    int thought, state; // of the family; of the parser
    const char *mark;
    int next;           // state after the mark, which itself is not shown
} Move;
static const Move MOVES[] = {
    {CHANNEL, START, "<|turn>model\n", CONTENT},
    {CHANNEL, START, "<|channel>", NAME},
    {CHANNEL, START, "<channel|>", CONTENT},
    {CHANNEL, CONTENT, "<|channel>", NAME},
    {CHANNEL, CONTENT, "<channel|>", CONTENT}, // unmatched
    {CHANNEL, NAME, "thought", BLANKS},        // any other name: the <|channel> before it is dropped, the name shown
    {CHANNEL, THOUGHT, "<channel|>", CONTENT},
    {TAG, CONTENT, "<think>", THOUGHT},
    {TAG, CONTENT, "</think>", CONTENT},
    {TAG, THOUGHT, "</think>", CONTENT},
};

void chat_parser_init(ChatParser *p, const Chat *c) {
    *p = (ChatParser){.chat = c, .state = CONTENT};
    if (family_of(c)->thought == CHANNEL) p->state = START;
    if (family_of(c)->thought == TAG_OPEN) p->state = THOUGHT;
    p->part = p->state == THOUGHT ? CHAT_THOUGHT : CHAT_CONTENT;
}

static void go(ChatParser *p, int state) {
    p->state = state;
    p->part = state == BLANKS || state == THOUGHT ? CHAT_THOUGHT : CHAT_CONTENT;
    p->n_hold = 0;
}

// Takes b if what is held and b begin a mark of this state.
static bool hold(ChatParser *p, char b) {
    const int thought = family_of(p->chat)->thought == TAG_OPEN ? TAG : (int)family_of(p->chat)->thought;
    p->hold[p->n_hold] = b;
    for (size_t i = 0; i < sizeof MOVES / sizeof MOVES[0]; i++) {
        const Move *v = &MOVES[i];
        const int n = p->n_hold + 1;
        if (v->thought != thought || v->state != p->state || strncmp(v->mark, p->hold, (size_t)n)) continue;
        if (v->mark[n]) p->n_hold = n;
        else go(p, v->next);
        return true;
    }
    return false;
}

void chat_parser_push(ChatParser *p, const char *text, size_t n, bool flush, void (*emit)(void *ctx, ChatPart part, const char *text, size_t n), void *ctx) {
    for (size_t i = 0; i < n;) {
        if (p->state == BLANKS) {
            if (memchr(" \t\r\n\v\f", text[i], 6)) i++;
            else go(p, THOUGHT);
        } else if (hold(p, text[i])) {
            i++;
        } else if (p->n_hold || p->state == NAME) { // no mark after all; look at this byte again
            if (p->n_hold) emit(ctx, p->part, p->hold, (size_t)p->n_hold);
            go(p, p->state == THOUGHT ? THOUGHT : CONTENT);
        } else { // plain text up to the next possible mark
            const char *mark = memchr(text + i + 1, '<', n - i - 1);
            const size_t end = mark ? (size_t)(mark - text) : n;
            emit(ctx, p->part, text + i, end - i);
            if (p->state == START) go(p, CONTENT);
            i = end;
        }
    }
    if (!flush) return;
    if (p->n_hold) emit(ctx, p->part, p->hold, (size_t)p->n_hold);
    p->n_hold = 0;
}
