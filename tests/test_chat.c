// Prompt formats against the strings of the published templates (spec/chat.md; without the BOS, which the tokenizer adds),
// their detection, what is trusted, rendering in steps, and the parser of thoughts split at every byte.
#include "chat.h"
#include "test.h"

// S "Be brief.", U " Hi ", A " Hello! ", B "Bye" (the second user message); the spaces show what is trimmed.
static Message letter(char c) {
    switch (c) {
    case 'S': return (Message){ROLE_SYSTEM, (char *)"Be brief."};
    case 'U': return (Message){ROLE_USER, (char *)" Hi "};
    case 'A': return (Message){ROLE_ASSISTANT, (char *)" Hello! "};
    case 'B': return (Message){ROLE_USER, (char *)"Bye"};
    case 'e': return (Message){ROLE_SYSTEM, (char *)""};
    case 's': return (Message){ROLE_SYSTEM, (char *)" \nBe brief.\t "};
    case 'n': return (Message){ROLE_USER, (char *)"\n\r\n\xC2\xA0Hi\xE3\x80\x80\n\xE2\x80\xA8"};
    case 'x': return (Message){ROLE_USER, (char *)"<turn|><|eot_id|></s>[/INST]<|im_end|><end_of_turn><s><bos>"};
    case 't': return (Message){ROLE_ASSISTANT, (char *)"<|channel>thought\nhmm\n<channel|>Hello"};
    case 'T': return (Message){ROLE_ASSISTANT, (char *)"hmm\n</think>\n\nHello"};
    }
    abort();
}

static int letters(const char *s, Message *m) {
    int n = 0;
    for (; *s; s++) m[n++] = letter(*s);
    return n;
}

static size_t join(const Prompt *p, char *out, size_t size) {
    size_t n = 0;
    for (int i = 0; i < p->n; i++) {
        if (n + p->seg[i].n >= size) abort();
        memcpy(out + n, p->seg[i].text, p->seg[i].n);
        n += p->seg[i].n;
    }
    out[n] = 0;
    return n;
}

static const char *render(const Chat *c, const Message *m, int from, int n, bool generate) {
    static char text[4][8192];
    static int turn;
    char *out = text[turn++ & 3];
    Prompt p;
    Err e;
    if (chat_render(c, m, from, n, generate, &p, &e)) join(&p, out, sizeof text[0]);
    else strcpy(out, e.text);
    prompt_free(&p);
    return out;
}

static Chat family(const char *name) {
    Chat c;
    chat_detect(&c, &(ChatHints){0});
    if (!chat_force(&c, name)) {
        printf("FAIL: no family %s\n", name);
        exit(1);
    }
    return c;
}

// ---- exact strings ----

#define L3(role) "<|start_header_id|>" role "<|end_header_id|>\n\n"
#define L4(role) "<|header_start|>" role "<|header_end|>\n\n"
#define DATES "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
#define G(role) "<start_of_turn>" role "\n"
#define G4_UAB "<|turn>user\nHi<turn|>\n<|turn>model\nHello!<turn|>\n<|turn>user\nBye<turn|>\n<|turn>model\n"
#define EMPTY_THOUGHT "<|channel>thought\n<channel|>"
#define IM(role) "<|im_start|>" role "\n"

static const struct {
    const char *family, *letters;
    bool think, no_generate;
    const char *want;
} STRINGS[] = {
    // 3 Llama 2
    {"llama2", "UAB", 0, 0, "[INST] Hi [/INST] Hello! </s><s>[INST] Bye [/INST]"},
    {"llama2", "SUAB", 0, 0, "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Hi [/INST] Hello! </s><s>[INST] Bye [/INST]"},
    {"llama2-sys-strip", "SUAB", 0, 0, "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]Hello!</s>[INST] Bye [/INST]"},
    {"llama2-sys", "SUAB", 0, 0, "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Hi  [/INST] Hello! </s>[INST] Bye [/INST]"},
    {"llama2-sys-bos", "SUAB", 0, 0, "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Hi  [/INST] Hello! </s><s>[INST] Bye [/INST]"},
    {"mistral", "SUAB", 0, 0, "[INST] Be brief.\n Hi  [/INST] Hello! </s>[INST] Bye [/INST]"}, // "plain"
    // 4 and 12 Llama 3, 3.1, 4, DeepSeek R1
    {"llama3", "SUAB", 0, 0, L3("system") "Be brief.<|eot_id|>" L3("user") "Hi<|eot_id|>" L3("assistant") "Hello!<|eot_id|>" L3("user") "Bye<|eot_id|>" L3("assistant")},
    {"llama3", "UAB", 0, 0, L3("user") "Hi<|eot_id|>" L3("assistant") "Hello!<|eot_id|>" L3("user") "Bye<|eot_id|>" L3("assistant")},
    {"llama3.1", "UAB", 0, 0, L3("system") DATES "<|eot_id|>" L3("user") "Hi<|eot_id|>" L3("assistant") "Hello!<|eot_id|>" L3("user") "Bye<|eot_id|>" L3("assistant")},
    {"llama3.1", "SUAB", 0, 0, L3("system") DATES "Be brief.<|eot_id|>" L3("user") "Hi<|eot_id|>" L3("assistant") "Hello!<|eot_id|>" L3("user") "Bye<|eot_id|>" L3("assistant")},
    {"llama4", "SUAB", 0, 0, L4("system") "Be brief.<|eot|>" L4("user") "Hi<|eot|>" L4("assistant") "Hello!<|eot|>" L4("user") "Bye<|eot|>" L4("assistant")},
    {"deepseek-r1", "SUAB", 0, 0, "Be brief.<｜User｜> Hi <｜Assistant｜> Hello! <｜end▁of▁sentence｜><｜User｜>Bye<｜Assistant｜><think>\n"},
    {"deepseek", "SUAB", 0, 0, "Be brief.<｜User｜> Hi <｜Assistant｜> Hello! <｜end▁of▁sentence｜><｜User｜>Bye<｜Assistant｜>"},
    {"deepseek-r1", "UTB", 0, 0, "<｜User｜> Hi <｜Assistant｜>\n\nHello<｜end▁of▁sentence｜><｜User｜>Bye<｜Assistant｜><think>\n"},
    // 5 Gemma 1 to 3n
    {"gemma", "UAB", 0, 0, G("user") "Hi<end_of_turn>\n" G("model") "Hello!<end_of_turn>\n" G("user") "Bye<end_of_turn>\n" G("model")},
    {"gemma", "SUAB", 0, 0, G("user") "Be brief.\n\nHi<end_of_turn>\n" G("model") "Hello!<end_of_turn>\n" G("user") "Bye<end_of_turn>\n" G("model")},
    // 6 and 12 Gemma 4
    {"gemma4", "UAB", 0, 0, G4_UAB EMPTY_THOUGHT},
    {"gemma4-e", "UAB", 0, 0, G4_UAB},
    {"gemma4", "SUAB", 0, 0, "<|turn>system\nBe brief.<turn|>\n" G4_UAB EMPTY_THOUGHT},
    {"gemma4-e", "SUAB", 0, 0, "<|turn>system\nBe brief.<turn|>\n" G4_UAB},
    {"gemma4", "SUAB", 1, 0, "<|turn>system\n<|think|>\nBe brief.<turn|>\n" G4_UAB},
    {"gemma4-e", "SUAB", 1, 0, "<|turn>system\n<|think|>\nBe brief.<turn|>\n" G4_UAB},
    {"gemma4", "UAB", 1, 0, "<|turn>system\n<|think|>\n<turn|>\n" G4_UAB},
    {"gemma4-e", "UAB", 1, 0, "<|turn>system\n<|think|>\n<turn|>\n" G4_UAB},
    {"gemma4-e", "SUA", 0, 1, "<|turn>system\nBe brief.<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\nHello!<turn|>\n"},
    {"gemma4", "SUA", 0, 1, "<|turn>system\nBe brief.<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\nHello!<turn|>\n"},
    {"gemma4", "Ut", 0, 1, "<|turn>user\nHi<turn|>\n<|turn>model\nHello<turn|>\n"},
    {"gemma4", "UAA", 0, 1, "<|turn>user\nHi<turn|>\n<|turn>model\nHello!Hello!<turn|>\n"},
    // 7 and 12 ChatML
    {"chatml", "SUAB", 0, 0, IM("system") "Be brief.<|im_end|>\n" IM("user") " Hi <|im_end|>\n" IM("assistant") " Hello! <|im_end|>\n" IM("user") "Bye<|im_end|>\n" IM("assistant")},
    {"chatml", "UAB", 0, 0, IM("user") " Hi <|im_end|>\n" IM("assistant") " Hello! <|im_end|>\n" IM("user") "Bye<|im_end|>\n" IM("assistant")},
    // 8 and 12 Mistral
    {"mistral", "UAB", 0, 0, "[INST]  Hi  [/INST] Hello! </s>[INST] Bye [/INST]"},
    {"mistral-v1", "SUAB", 0, 0, " [INST] Be brief.\n\n Hi  [/INST]  Hello! </s> [INST] Bye [/INST]"},
    {"mistral-v1", "UAB", 0, 0, " [INST]  Hi  [/INST]  Hello! </s> [INST] Bye [/INST]"},
    {"mistral-v3", "SUAB", 0, 0, "[INST]  Hi [/INST] Hello!</s>[INST] Be brief.\n\nBye[/INST]"},
    {"mistral-v3", "UAB", 0, 0, "[INST]  Hi [/INST] Hello!</s>[INST] Bye[/INST]"},
    {"mistral-v3-tekken", "SUAB", 0, 0, "[INST] Hi [/INST] Hello! </s>[INST]Be brief.\n\nBye[/INST]"},
    {"mistral-v3-tekken", "UAB", 0, 0, "[INST] Hi [/INST] Hello! </s>[INST]Bye[/INST]"},
    {"mistral-v7", "SUAB", 0, 0, "[SYSTEM_PROMPT] Be brief.[/SYSTEM_PROMPT][INST]  Hi [/INST]  Hello! </s>[INST] Bye[/INST]"},
    {"mistral-v7", "UAB", 0, 0, "[INST]  Hi [/INST]  Hello! </s>[INST] Bye[/INST]"},
    {"mistral-v7-tekken", "SUAB", 0, 0, "[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST] Hi [/INST] Hello! </s>[INST]Bye[/INST]"},
    // 9 and 12 the others
    {"zephyr", "SUAB", 0, 0, "<|system|>\nBe brief.</s>\n<|user|>\n Hi </s>\n<|assistant|>\n Hello! </s>\n<|user|>\nBye</s>\n<|assistant|>\n"},
    {"zephyr", "UAB", 0, 0, "<|user|>\n Hi </s>\n<|assistant|>\n Hello! </s>\n<|user|>\nBye</s>\n<|assistant|>\n"},
    {"stablelm-zephyr", "SUAB", 0, 0, "<|system|>\nBe brief.<|endoftext|>\n<|user|>\n Hi <|endoftext|>\n<|assistant|>\n Hello! <|endoftext|>\n<|user|>\nBye<|endoftext|>\n<|assistant|>\n"},
    {"vicuna", "SUAB", 0, 0, "Be brief.\n\nUSER:  Hi \nASSISTANT:  Hello! </s>\nUSER: Bye\nASSISTANT:"},
    {"vicuna-orca", "SUAB", 0, 0, "SYSTEM: Be brief.\nUSER:  Hi \nASSISTANT:  Hello! </s>\nUSER: Bye\nASSISTANT:"},
    {"alpaca", "SUAB", 0, 0, "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello!\n\n### Instruction:\nBye\n\n### Response:\n"},
    {"deepseek-coder", "SUAB", 0, 0, "Be brief.### Instruction:\n Hi \n### Response:\n Hello! \n<|EOT|>\n### Instruction:\nBye\n### Response:\n"},
    {"phi3", "SUAB", 0, 0, "<|system|>\nBe brief.<|end|>\n<|user|>\n Hi <|end|>\n<|assistant|>\n Hello! <|end|>\n<|user|>\nBye<|end|>\n<|assistant|>\n"},
    {"openchat", "SUAB", 0, 0, "Be brief.<|end_of_turn|>GPT4 Correct User:  Hi <|end_of_turn|>GPT4 Correct Assistant:  Hello! <|end_of_turn|>GPT4 Correct User: Bye<|end_of_turn|>GPT4 Correct Assistant:"},
    {"monarch", "SUAB", 0, 0, "system\nBe brief.</s>\n<s>user\n Hi </s>\n<s>assistant\n Hello! </s>\n<s>user\nBye</s>\n<s>assistant\n"},
    {"falcon3", "SUAB", 0, 0, "<|system|>\nBe brief.\n<|user|>\n Hi \n<|assistant|>\n Hello! \n<|user|>\nBye\n<|assistant|>\n"},
    {"orion", "SUAB", 0, 0, "Human: Be brief.\n\n Hi \n\nAssistant: </s> Hello! </s>Human: Bye\n\nAssistant: </s>"},
    // 11: empty and lonely system texts, white space of several scripts, control tokens as text, two user messages, no generation
    {"llama3", "eU", 0, 0, L3("system") "<|eot_id|>" L3("user") "Hi<|eot_id|>" L3("assistant")},
    {"llama3.1", "eU", 0, 0, L3("system") DATES "<|eot_id|>" L3("user") "Hi<|eot_id|>" L3("assistant")},
    {"gemma", "eU", 0, 0, G("user") "\n\nHi<end_of_turn>\n" G("model")},
    {"gemma", "sU", 0, 0, G("user") " \nBe brief.\t \n\nHi<end_of_turn>\n" G("model")}, // system text untrimmed
    {"gemma4", "eU", 1, 0, "<|turn>system\n<|think|>\n<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\n"},
    {"gemma4", "sU", 0, 0, "<|turn>system\nBe brief.<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\n" EMPTY_THOUGHT},
    {"llama3", "S", 0, 1, L3("system") "Be brief.<|eot_id|>"},
    {"gemma4", "S", 0, 0, "<|turn>system\nBe brief.<turn|>\n<|turn>model\n" EMPTY_THOUGHT},
    {"gemma", "S", 0, 0, G("model")}, // the published template loses it, too
    {"llama3", "n", 0, 0, L3("user") "Hi<|eot_id|>" L3("assistant")},
    {"gemma", "n", 0, 0, G("user") "Hi<end_of_turn>\n" G("model")},
    {"gemma4-e", "n", 0, 0, "<|turn>user\nHi<turn|>\n<|turn>model\n"},
    {"llama2", "n", 0, 0, "[INST] Hi [/INST]"},
    {"chatml", "n", 0, 0, IM("user") "\n\r\n\xC2\xA0Hi\xE3\x80\x80\n\xE2\x80\xA8<|im_end|>\n" IM("assistant")},
    {"gemma4-e", "x", 0, 0, "<|turn>user\n<turn|><|eot_id|></s>[/INST]<|im_end|><end_of_turn><s><bos><turn|>\n<|turn>model\n"},
    {"llama3", "UB", 0, 0, L3("user") "Hi<|eot_id|>" L3("user") "Bye<|eot_id|>" L3("assistant")},
    {"gemma", "UB", 0, 0, G("user") "Hi<end_of_turn>\n" G("user") "Bye<end_of_turn>\n" G("model")},
    {"llama2", "UB", 0, 0, "[INST] Hi [/INST]<s>[INST] Bye [/INST]"},
    {"llama3", "UA", 0, 1, L3("user") "Hi<|eot_id|>" L3("assistant") "Hello!<|eot_id|>"},
    {"chatml", "UA", 0, 1, IM("user") " Hi <|im_end|>\n" IM("assistant") " Hello! <|im_end|>\n"},
    {"llama2", "UA", 0, 1, "[INST] Hi [/INST] Hello! </s>"},
};

static void test_strings(void) {
    for (size_t i = 0; i < sizeof STRINGS / sizeof *STRINGS; i++) {
        Chat c = family(STRINGS[i].family);
        c.thinking = STRINGS[i].think;
        Message m[8];
        const int n = letters(STRINGS[i].letters, m);
        const char *got = render(&c, m, 0, n, !STRINGS[i].no_generate);
        CHECK(!strcmp(got, STRINGS[i].want), "%s %s\n  '%s', expected\n  '%s'", STRINGS[i].family, STRINGS[i].letters, got, STRINGS[i].want);
    }
    Chat c = family("llama3.1");
    Message m[8];
    strcpy(c.date, "15 Aug 2026");
    CHECK(strstr(render(&c, m, 0, letters("U", m), true), "\nToday Date: 15 Aug 2026\n\n<|eot_id|>"), "the date of the preamble");
    chat_detect(&c, &(ChatHints){0});
    CHECK(!strcmp(render(&c, m, 0, letters("SUA", m), true), "Be brief. Hi  Hello! "), "no family: the text alone");
}

// Every family by its name: one user message, and what all must have in common.
static void for_all(void (*f)(const char *name)) {
    char names[1024];
    snprintf(names, sizeof names, "%s", chat_family_names());
    for (char *save, *name = strtok_r(names, ", ", &save); name; name = strtok_r(NULL, ", ", &save)) f(name);
}

static int n_families;
static void one_user_message(const char *name) {
    n_families++;
    const Chat c = family(name);
    Message m[8];
    CHECK(!strcmp(chat_family_name(&c), name), "%s is called %s", name, chat_family_name(&c));
    const char *got = render(&c, m, 0, letters("B", m), true);
    const char *bye = strstr(got, "Bye");
    CHECK(bye && !strstr(bye + 1, "Bye") && strlen(got) > 3 && strncmp(got, "<s>", 3) && strncmp(got, "<bos>", 5), "%s: one user message is '%s'", name, got);
    CHECK(chat_stops(&c) && chat_stops(&c)[0], "%s ends its turns with something", name);
    bool known = false;
    for (size_t i = 0; i < sizeof STRINGS / sizeof *STRINGS; i++) known |= !strcmp(STRINGS[i].family, name);
    CHECK(known, "%s has a string above", name);

    // What others wrote (and llama3.1's date) is not trusted, what we wrote is, and the two never share a segment.
    Prompt p;
    Err e;
    if (!chat_render(&c, m, 0, letters("xAx", m), true, &p, &e)) return;
    size_t ours = 0, theirs = 0;
    for (int i = 0; i < p.n; i++) {
        const bool user = p.seg[i].n == strlen(m[0].text) && !memcmp(p.seg[i].text, m[0].text, p.seg[i].n);
        *(p.seg[i].trusted ? &ours : &theirs) += 1;
        CHECK(!user || !p.seg[i].trusted, "%s trusts a user", name);
    }
    CHECK(theirs == (strcmp(name, "llama3.1") ? 3u : 4u) && ours >= 1, "%s: %zu segments of theirs, %zu of ours", name, theirs, ours);
    prompt_free(&p);
}

// [0, k) and then [k, n) is [0, n), apart from what chat.c says.
static void steps(const char *name) {
    static const char *const TALKS[] = {"SUABA", "UABAU", "eUABAB", "SUtBTU", "UUSAB"};
    for (size_t t = 0; t < sizeof TALKS / sizeof *TALKS; t++)
        for (int think = 0; think < 2; think++) {
            Chat c = family(name);
            c.thinking = think;
            Message m[8];
            const int n = letters(TALKS[t], m);
            if (!strncmp(name, "mistral-v3", 10) && strchr(TALKS[t], 'S')) continue;
            if (!strncmp(name, "mistral-v3", 10) && strchr(TALKS[t], 'e')) continue;
            for (int k = 0; k <= n; k++) {
                char both[8192];
                snprintf(both, sizeof both, "%s%s", render(&c, m, 0, k, false), k == 0 ? render(&c, m, 0, n, true) : render(&c, m, k, n, true));
                const char *whole = render(&c, m, 0, n, true);
                if (k == 0 && *render(&c, m, 0, 0, false)) continue; // a preamble of its own: nothing before the first message is no step
                CHECK(!strcmp(both, whole), "%s %s cut at %d\n  '%s', expected\n  '%s'", name, TALKS[t], k, both, whole);
            }
        }
}

// A conversation that grows: each prompt starts with the one before (up to the generation prompt), but for the system text of
// mistral-v3, which moves to the last user message.
static void growing(const char *name) {
    if (!strncmp(name, "mistral-v3", 10)) return;
    const Chat c = family(name);
    Message m[8];
    char last[8192] = "";
    static const char *const TALKS[] = {"SU", "SUA", "SUAB", "SUABA", "SUABAB"};
    for (int t = 0; t < 5; t++) {
        const char *got = render(&c, m, 0, letters(TALKS[t], m), false);
        CHECK(!strncmp(got, last, strlen(last)) && strlen(got) > strlen(last), "%s %s\n  '%s' does not go on from\n  '%s'", name, TALKS[t], got, last);
        strcpy(last, got);
    }
}

// ---- detection ----

static const char *detect(const char *text, bool is_spm) {
    Chat c;
    chat_detect(&c, &(ChatHints){.template_text = text, .template_n = strlen(text), .is_spm = is_spm});
    return chat_family_name(&c);
}

// Abridged; the marks are those of the published templates.
static const struct {
    const char *family, *text;
    bool bpe;
} TEMPLATES[] = {
    {"gemma4", "{{- '<|turn>' + role + '\\n' -}}{{- '<|turn>model\\n' -}}{%- if not enable_thinking -%}{{- '<|channel>thought\\n<channel|>' -}}{%- endif -%}", 0},
    {"gemma4-e", "{{- bos_token -}}{{- '<|turn>system\\n' -}}{{- '<|think|>\\n' -}}{{- '<turn|>\\n' -}}{{- '<|channel>thought\\n' + reasoning + '\\n<channel|>' -}}", 0},
    {"gemma", "{{ bos_token }}{%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}{{ '<start_of_turn>' + role + '\\n' }}{{ '<end_of_turn>\\n' }}", 0},
    {"gemma", "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}", 0},
    {"llama3", "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' %}", 1},
    {"llama3.1", "{{- \"<|start_header_id|>system<|end_header_id|>\\n\\n\" }}{{- \"Cutting Knowledge Date: December 2023\\n\" }}{{- \"Today Date: \" + date_string + \"\\n\\n\" }}", 1},
    {"llama4", "{{- '<|header_start|>' + message['role'] + '<|header_end|>\\n\\n' }}{{- '<|eot|>' }}", 1},
    {"chatml", "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}", 1},
    {"none", "{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'}}", 1}, // Phi-4
    {"mistral", "{{ bos_token }}{% for message in messages %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{{ message['content'] + eos_token}}{% endfor %}", 0},
    {"mistral-v1", "{{- ' [INST] ' + system_message + '\\n\\n' + message['content'] + ' [/INST]' }}", 0},
    {"mistral-v1", "{{- '[AVAILABLE_TOOLS] [' }}{{- ' [INST] ' + message['content'] + ' [/INST]' }}", 0},
    {"mistral-v3", "{{- \"[AVAILABLE_TOOLS] [\" }}{{- \"[INST] \" + system_message + \"\\n\\n\" + message[\"content\"] + \"[/INST]\" }}", 0},
    {"mistral-v3-tekken", "{{- \"[AVAILABLE_TOOLS][\" }}{{- \"[INST]\" + message[\"content\"] + \"[/INST]\" }}", 1},
    {"mistral-v7", "{{- \"[SYSTEM_PROMPT] \" + message[\"content\"] + \"[/SYSTEM_PROMPT]\" }}{{- \"[INST] \" + message[\"content\"] + \"[/INST]\" }}", 0},
    {"mistral-v7-tekken", "{{- '[SYSTEM_PROMPT]' + system_message + '[/SYSTEM_PROMPT]' }}{{- '[INST]' + message['content'] + '[/INST]' }}", 1},
    {"llama2", "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}", 0},
    {"llama2-sys-bos", "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' %}{{ bos_token + '[INST] ' + content + ' [/INST]' }}", 0},
    {"llama2-sys", "{{ '[INST] <<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + content + ' [/INST]' }}", 0},
    {"deepseek-r1", "{{'<｜User｜>' + message['content']}}{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{{'<｜Assistant｜><think>\\n'}}", 1},
    {"deepseek", "{{'<｜User｜>' + message['content']}}{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}", 1},
    {"zephyr", "{% if message['role'] == 'user' %}{{ '<|user|>\\n' + message['content'] + eos_token }}{% elif message['role'] == 'system' %}{{ '<|system|>\\n' + message['content'] + eos_token }}{{ '<|assistant|>' }}", 0},
    {"zephyr", "{{ '<|user|>\\n' + message['content'] + '</s>\\n' }}{{ '<|assistant|>\\n' }}", 0},
    {"stablelm-zephyr", "{% if message['role'] == 'user' %}{{ '<|user|>\\n' + message['content'] + '<|endoftext|>\\n' }}{{ '<|assistant|>\\n' }}", 1},
    {"phi3", "{{'<|user|>' + '\\n' + message['content'] + '<|end|>' + '\\n' + '<|assistant|>' + '\\n'}}{{ message['content'] + '<|end|>' + '\\n'}}{{ eos_token }}", 0},
    {"falcon3", "{{ '<|user|>\\n' + message['content'] + '\\n' }}{{ '<|assistant|>\\n' + message['content'] + eos_token }}", 1},
    {"vicuna", "{{ 'USER: ' + message['content'] + '\\n' }}{{ 'ASSISTANT: ' + message['content'] + eos_token }}", 0},
    {"vicuna-orca", "{{ 'SYSTEM: ' + message['content'] }}{{ 'USER: ' + message['content'] + '\\n' }}{{ 'ASSISTANT: ' }}", 0},
    {"alpaca", "{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}{{ '### Response:\\n' }}", 0},
    {"deepseek-coder", "{{'### Instruction:\\n' + message['content'] + '\\n'}}{{'### Response:\\n' + message['content'] + '\\n<|EOT|>\\n'}}", 1},
    {"openchat", "{{ bos_token }}{{ 'GPT4 Correct ' + message['role'].title() + ': ' + message['content'] + '<|end_of_turn|>'}}", 0},
    {"monarch", "{% for message in messages %}{{bos_token + message['role'] + '\\n' + message['content'] + eos_token + '\\n'}}{% endfor %}", 0},
    {"orion", "{{ 'Human: ' + message['content'] + '\\n\\nAssistant: ' + eos_token }}{{ message['content'] + eos_token }}", 0},
    {"none", "{{ messages[0]['content'] }}", 0},
    {"none", "", 0},
    {"chatml", "chatml", 0},
    {"llama3", "llama3", 1},
};

static void test_detection(void) {
    for (size_t i = 0; i < sizeof TEMPLATES / sizeof *TEMPLATES; i++) {
        const char *got = detect(TEMPLATES[i].text, !TEMPLATES[i].bpe);
        CHECK(!strcmp(got, TEMPLATES[i].family), "%s is taken for %s", TEMPLATES[i].text, got);
    }
    Chat c = family("gemma4");
    CHECK(chat_can_think(&c) && !chat_force(&c, "gemma5") && !chat_force(&c, "") && !strcmp(chat_family_name(&c), "gemma4"), "an unknown name changes nothing");
    c = family("llama3");
    CHECK(!chat_can_think(&c), "llama3 has no channel for thoughts");

    chat_detect(&c, &(ChatHints){.template_text = "{{ x }}", .template_n = 7, .has_im_start = true});
    CHECK(!strcmp(chat_family_name(&c), "chatml"), "an unknown template over a ChatML vocabulary is taken for ChatML");
    chat_detect(&c, &(ChatHints){.template_text = "{{ x }}", .template_n = 7});
    CHECK(!c.family, "an unknown template is none");
    // Files at hand that hold a template: it must be one we know. (Those of the reference set hold none.)
    static const char *const FILES[] = {"vocab/llama-spm.gguf", "vocab/llama-bpe.gguf", "vocab/gemma4-small.gguf", "reference/gemma3-Q4_K_M.gguf",
                                        "reference/gemma4-e-Q4_K_M.gguf", "reference/gemma4-dense-Q4_K_M.gguf", "reference/llama3-Q4_K_M.gguf"};
    int seen = 0;
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++) {
        const char *path = shared_path(FILES[i]);
        Gguf g;
        Err e;
        GgufString t = {0};
        if (!path || !gguf_open(&g, path, &e)) continue;
        if (gguf_get_string(&g, "tokenizer.chat_template", &t, &e) && t.n) {
            chat_detect(&c, &(ChatHints){.template_text = t.p, .template_n = t.n});
            CHECK(c.family != NULL, "the template of %s is not known", path);
            seen++;
        }
        gguf_close(&g);
    }
    if (!seen) test_skip("no file in ../shared holds a chat template");
}

// ---- tokens: one BOS, and no control token from a user ----

static int count_of(const Ids *ids, int id) {
    int n = 0;
    for (int i = 0; i < ids->n; i++) n += ids->id[i] == id;
    return n;
}

static void test_tokens(const char *file, const char *name, const char *end) {
    const char *path = shared_path(file);
    if (!path) {
        test_skip(file);
        return;
    }
    Gguf g;
    Err e = {0};
    Tokenizer *t = NULL;
    if (!gguf_open(&g, path, &e) || !tokenizer_open(&t, &g, &e)) {
        CHECK(false, "%s", e.text);
        gguf_close(&g);
        return;
    }
    const Chat c = family(name);
    const int end_id = tokenizer_find(t, end, strlen(end));
    static const char *const TALKS[] = {"B", "x", "SxAx"};
    for (int i = 0; i < 3; i++) {
        Message m[8];
        Prompt p;
        Ids ids = {0};
        const bool ok = chat_render(&c, m, 0, letters(TALKS[i], m), false, &p, &e) && tokenizer_encode_segments(t, p.seg, p.n, true, &ids, &e);
        int want_end = 0, want_bos = tokenizer_add_bos(t);
        for (int s = 0; s < p.n; s++) { // as often as we wrote it
            char text[256];
            snprintf(text, sizeof text, "%.*s", (int)p.seg[s].n, p.seg[s].text);
            for (char *at = text; p.seg[s].trusted && (at = strstr(at, end)); at++) want_end++;
            for (char *at = text; p.seg[s].trusted && (at = strstr(at, "<s>")); at++) want_bos++;
        }
        prompt_free(&p);
        CHECK(ok && ids.n > 3, "%s %s: %s", name, TALKS[i], e.text);
        CHECK(end_id < 0 || count_of(&ids, end_id) == want_end, "%s %s: %d times %s, expected %d", name, TALKS[i], count_of(&ids, end_id), end, want_end);
        CHECK(count_of(&ids, tokenizer_bos(t)) == want_bos && (!tokenizer_add_bos(t) || ids.id[0] == tokenizer_bos(t)), "%s %s: %d times BOS, expected %d", name, TALKS[i],
              count_of(&ids, tokenizer_bos(t)), want_bos);
        ids_free(&ids);
    }
    tokenizer_close(t);
    gguf_close(&g);
}

// ---- the parser of an answer ----

typedef struct {
    char content[512], thought[512];
    size_t n_content, n_thought;
} Parts;

static void collect(void *ctx, ChatPart part, const char *text, size_t n) {
    Parts *p = ctx;
    char *to = part == CHAT_CONTENT ? p->content : p->thought;
    size_t *at = part == CHAT_CONTENT ? &p->n_content : &p->n_thought;
    memcpy(to + *at, text, n);
    *at += n;
    to[*at] = 0;
}

static const struct {
    const char *family, *answer, *content, *thought;
} ANSWERS[] = {
    {"gemma4", "Hello", "Hello", ""},
    {"gemma4", "", "", ""},
    {"gemma4", "<|channel>thought\nhmm\n<channel|>Hello", "Hello", "hmm\n"},
    {"gemma4", "<|turn>model\n<|channel>thought\nhmm<channel|>Hello", "Hello", "hmm"},
    {"gemma4", "<|turn>model\nHello", "Hello", ""},
    {"gemma4", "<|channel>thought\n<channel|>Hello", "Hello", ""},
    {"gemma4", "Hello<|channel>thought\n<channel|>", "Hello", ""},
    {"gemma4", "Hello<channel|>", "Hello", ""},
    {"gemma4", "<channel|>Hello", "Hello", ""},
    {"gemma4", "one<|channel>thought a<channel|>two<|channel>thought b<channel|>three", "onetwothree", "ab"},
    {"gemma4", "<|channel>final answer", "final answer", ""}, // no thought: the mark alone goes
    {"gemma4", "<|channel>thou", "thou", ""},
    {"gemma4", "<|channel>thought\nendless", "", "endless"},
    {"gemma4", "<|channel>thought \t\n\n  hmm  <channel|>Hello", "Hello", "hmm  "},
    {"gemma4", "a < b <| c <|channel d <channel|", "a < b <| c <|channel d <channel|", ""},
    {"gemma4", "<<|channel>thought\n<<channel|>x", "<x", "<"},
    {"gemma4", "<|channel>thought\na <b> <|channel> c<channel|>d", "d", "a <b> <|channel> c"},
    {"gemma4", "<|turn>modem", "<|turn>modem", ""},
    {"gemma4", "x<|turn>model\n", "x<|turn>model\n", ""}, // only at the start
    {"gemma4-e", "<|channel>thought\nhmm\n<channel|>Hello", "Hello", "hmm\n"},
    {"gemma4", "<|channel><|channel>thought\nx<channel|>y", "y", "x"},
    {"deepseek", "<think>\nhmm\n</think>\n\nHello", "\n\nHello", "\nhmm\n"},
    {"deepseek", "Hello</think>", "Hello", ""},
    {"deepseek-r1", "hmm\n</think>\n\nHello", "\n\nHello", "hmm\n"},
    {"deepseek-r1", "endless", "", "endless"},
    {"deepseek-r1", "a</think>b<think>c</think>d", "bd", "ac"},
    {"deepseek-r1", "a </thin</think>b </thin", "b </thin", "a </thin"},
    {"llama3", "<|channel>thought\nhmm<channel|><think>x</think>", "<|channel>thought\nhmm<channel|><think>x</think>", ""},
    {"chatml", "<think>x</think>", "<think>x</think>", ""},
};

static void test_parser(void) {
    for (size_t a = 0; a < sizeof ANSWERS / sizeof *ANSWERS; a++) {
        const Chat c = family(ANSWERS[a].family);
        const char *s = ANSWERS[a].answer;
        const size_t n = strlen(s);
        int bad = 0;
        for (size_t i = 0; i <= n; i++)
            for (size_t j = i; j <= n; j++) {    // pieces [0, i) [i, j) [j, n)
                Parts p = {0};
                ChatParser parser;
                chat_parser_init(&parser, &c);
                chat_parser_push(&parser, s, i, false, collect, &p);
                chat_parser_push(&parser, s + i, j - i, false, collect, &p);
                chat_parser_push(&parser, s + j, n - j, true, collect, &p);
                bad += strcmp(p.content, ANSWERS[a].content) || strcmp(p.thought, ANSWERS[a].thought);
            }
        Parts p = {0};
        ChatParser parser;
        chat_parser_init(&parser, &c);
        for (size_t i = 0; i < n; i++) chat_parser_push(&parser, s + i, 1, false, collect, &p);
        chat_parser_push(&parser, NULL, 0, true, collect, &p);
        bad += strcmp(p.content, ANSWERS[a].content) || strcmp(p.thought, ANSWERS[a].thought);
        CHECK(bad == 0, "%s '%s' in pieces: content '%s', expected '%s'; thought '%s', expected '%s'", ANSWERS[a].family, s, p.content, ANSWERS[a].content, p.thought,
              ANSWERS[a].thought);
    }
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    test_strings();
    for_all(one_user_message);
    CHECK(n_families == 30, "%d families", n_families);
    for_all(steps);
    for_all(growing);
    test_detection();
    test_tokens("vocab/llama-spm.gguf", "llama2", "</s>");
    test_tokens("vocab/llama-bpe.gguf", "llama3", "<|eot_id|>");
    test_tokens("vocab/gemma4-small.gguf", "gemma4", "<turn|>");
    test_parser();
    return test_end();
}
