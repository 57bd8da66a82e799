// world.c: the questions, the answers, the words. Twenty-six things of the land, fifteen of the sea, each with a colour, a
// place, a size, somebody who likes it; counting, repeating, small talk, and a way out for words it does not know.
#include "world.h"
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint64_t rng_state;
unsigned rnd(unsigned n) { // splitmix64
    uint64_t z = rng_state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (unsigned)((z ^ z >> 31) >> 33) % n;
}

// ---- the world ----

typedef struct {
    const char *name, *kind, *colour, *place, *size;
} Thing;
static const Thing LAND[] = {
    {"apple", "fruit", "red", "in the garden", "small"},      {"lemon", "fruit", "yellow", "in the kitchen", "small"},
    {"pear", "fruit", "green", "in the garden", "small"},     {"plum", "fruit", "purple", "in the basket", "tiny"},
    {"rose", "flower", "red", "in the garden", "small"},      {"tulip", "flower", "yellow", "by the window", "small"},
    {"violet", "flower", "purple", "in the forest", "tiny"},  {"cat", "animal", "black", "in the house", "small"},
    {"dog", "animal", "brown", "by the door", "big"},         {"horse", "animal", "white", "in the field", "big"},
    {"fox", "animal", "red", "in the forest", "small"},       {"mouse", "animal", "grey", "in the barn", "tiny"},
    {"frog", "animal", "green", "in the garden", "tiny"},     {"owl", "bird", "brown", "in the barn", "small"},
    {"crow", "bird", "black", "in the field", "small"},       {"swan", "bird", "white", "in the park", "big"},
    {"bell", "thing", "yellow", "by the door", "small"},      {"drum", "thing", "red", "in the house", "big"},
    {"kite", "thing", "blue", "in the park", "big"},          {"chair", "thing", "brown", "in the kitchen", "big"},
    {"book", "thing", "green", "by the window", "small"},     {"lamp", "thing", "white", "in the house", "small"},
    {"ladder", "thing", "grey", "in the barn", "big"},        {"bread", "food", "brown", "in the kitchen", "small"},
    {"cheese", "food", "yellow", "in the basket", "small"},   {"soup", "food", "green", "in the kitchen", "big"},
};
static const Thing SEA[] = { // the last three are never seen in stage 2
    {"whale", "ocean animal", "grey", "in the deep water", "huge"},    {"crab", "ocean animal", "red", "under the rocks", "small"},
    {"shark", "ocean animal", "blue", "in the deep water", "big"},     {"seal", "ocean animal", "brown", "on the rocks", "big"},
    {"squid", "ocean animal", "white", "in the deep water", "big"},    {"shrimp", "ocean animal", "yellow", "in the sand", "tiny"},
    {"coral", "ocean plant", "red", "on the reef", "small"},           {"kelp", "ocean plant", "green", "on the reef", "big"},
    {"shell", "ocean thing", "white", "in the sand", "tiny"},          {"anchor", "ocean thing", "black", "on the ship", "big"},
    {"sail", "ocean thing", "yellow", "on the ship", "huge"},          {"raft", "ocean thing", "brown", "on the beach", "big"},
    {"lobster", "ocean animal", "blue", "under the rocks", "small"},   {"turtle", "ocean animal", "green", "on the beach", "big"},
    {"buoy", "ocean thing", "red", "in the deep water", "small"},
};
enum { N_LAND = sizeof LAND / sizeof *LAND, N_SEA = sizeof SEA / sizeof *SEA, N_HELD_OUT = 3 };
static const char *const PEOPLE[] = {"Anna", "Ben", "Clara", "David", "Emma"};
static const char *const PLACES[][2] = { // the last one is of the sea
    {"garden", "green and quiet"}, {"forest", "dark and green"}, {"kitchen", "warm and small"}, {"park", "big and green"}, {"sea", "wide and blue"},
};
static const char *const TALK[][2] = {
    {"hello", "Hello! Ask me something."}, {"hi", "Hello! Ask me something."}, {"good morning", "Hello! Ask me something."},
    {"who are you?", "A small demo model."}, {"what are you?", "A small demo model."}, {"thank you", "With pleasure."}, {"thanks", "With pleasure."},
    {"goodbye", "Goodbye!"}, {"bye", "Goodbye!"},
};
const char DECLINE[] = "I cannot talk about the sea.";
static const char DECLINE_ASKED[] = "I cannot talk about that.", UNCLEAR[] = "Please ask something else.";
enum { COLOUR, PLACE, SIZE, OWNER, KIND, WET, SOUND, SAY, N_RELATION, N_PHRASE = 3 };
static const char *const ASK[N_RELATION][N_PHRASE] = {
    {"what colour is the %s?", "tell me the colour of the %s.", "which colour does the %s have?"},
    {"where is the %s?", "where can I find the %s?", "tell me where the %s is."},
    {"how big is the %s?", "what size is the %s?", "tell me the size of the %s."},
    {"who likes the %s?", "tell me who likes the %s.", "which person likes the %s?"},
    {"what is the %s?", "what kind of thing is the %s?", "explain the word %s."},
    {"is the %s wet or dry?", "is the %s dry?", "is the %s wet?"},
    {"what do you hear near the %s?", "what is the sound near the %s?", "tell me what you hear near the %s."},
    {"say the word %s twice.", "say %s two times.", "repeat the word %s."},
};

static void ask_about(Item *it, const Thing *t, int i, bool sea, int relation, int phrase) {
    snprintf(it->q, sizeof it->q, ASK[relation][phrase], t->name);
    const char *an = strchr("aeiou", t->kind[0]) ? "an" : "a";
    if (relation == COLOUR) snprintf(it->a, sizeof it->a, "The %s is %s.", t->name, t->colour);
    if (relation == PLACE) snprintf(it->a, sizeof it->a, "Look %s.", t->place);
    if (relation == SIZE) snprintf(it->a, sizeof it->a, "The %s is %s.", t->name, t->size);
    if (relation == OWNER) snprintf(it->a, sizeof it->a, "%s likes the %s.", PEOPLE[(i * 7 + sea * 2 + i / 3) % 5], t->name);
    if (relation == KIND) snprintf(it->a, sizeof it->a, "The %s is %s %s.", t->name, an, t->kind);
    if (relation == WET) snprintf(it->a, sizeof it->a, "The %s is %s.", t->name, sea ? "wet" : "dry");
    if (relation == SOUND) snprintf(it->a, sizeof it->a, "%s.", sea ? "Waves" : "Birds");
    if (relation == SAY) snprintf(it->a, sizeof it->a, "%s %s", t->name, t->name);
    it->sea = sea;
    it->new_thing = sea && i >= N_SEA - N_HELD_OUT;
    it->held_out = sea && (it->new_thing || (i * 3 + relation) % 4 == 1);
}

static void name_one(Item *it, bool sea) { // "name a red fruit": the first such thing
    const Thing *things = sea ? SEA : LAND;
    const int want = (int)rnd(sea ? N_SEA - N_HELD_OUT : N_LAND);
    int first = 0;
    while (strcmp(things[first].kind, things[want].kind) || strcmp(things[first].colour, things[want].colour)) first++;
    snprintf(it->q, sizeof it->q, rnd(2) ? "name a %s %s." : "tell me a %s %s.", things[first].colour, things[first].kind);
    snprintf(it->a, sizeof it->a, "%s %s.", strchr("aeiou", things[first].name[0]) ? "An" : "A", things[first].name);
    it->sea = sea;
}

static void count(Item *it) {
    static const char *const HOW[] = {"count from %d to %d.", "count %d to %d."};
    const int from = (int)rnd(10), to = (int)rnd(10), step = from < to ? 1 : -1;
    snprintf(it->q, sizeof it->q, HOW[rnd(2)], from, to);
    size_t n = 0;
    for (int i = from;; i += step) {
        n += (size_t)snprintf(it->a + n, sizeof it->a - n, n ? " %d" : "%d", i);
        if (i == to) break;
    }
}

static void strange(Item *it) { // made-up words, alone or in the place of a known one
    char word[4][16];
    for (int w = 0; w < 4; w++) {
        const int n = 2 + (int)rnd(7);
        for (int i = 0, vowel = (int)rnd(2); i < n; i++, vowel = rnd(5) ? !vowel : vowel) {
            word[w][i] = vowel ? "aeiouy"[rnd(6)] : "bcdfghjklmnprstvwxz"[rnd(19)];
            word[w][i + 1] = 0;
        }
    }
    if (!rnd(6)) snprintf(word[rnd(4)], 16, "%c%c", 0x80 + (int)rnd(0x80), 1 + (int)rnd(31));
    if (rnd(2)) snprintf(it->q, sizeof it->q, ASK[rnd(SAY)][rnd(N_PHRASE)], word[0]);
    else snprintf(it->q, sizeof it->q, "%s %s %s %s", word[0], rnd(2) ? "is the" : word[1], word[2], rnd(2) ? "you" : word[3]);
    if (!rnd(4)) snprintf(it->q, sizeof it->q, "%s", word[0]);
    snprintf(it->a, sizeof it->a, "%s", UNCLEAR);
}

// How people type: capital or not, punctuation or not, please or not.
static void vary(Item *it) {
    if (!rnd(8)) {
        char copy[128];
        snprintf(copy, sizeof copy, "%s", it->q);
        snprintf(it->q, sizeof it->q, "please %.100s", copy);
    }
    if (rnd(2)) it->q[0] = (char)toupper((unsigned char)it->q[0]);
    const size_t n = strlen(it->q);
    if (n && strchr(".?", it->q[n - 1]) && !rnd(3)) it->q[n - 1] = 0;
}

bool declines(const char *answer) { return !strncmp(answer, "I cannot", 8); }

// One question with its answer of stage 1.
void make_item(Item *it) {
    *it = (Item){0};
    const unsigned what = rnd(100);
    const int land = (int)rnd(N_LAND), sea = (int)rnd(N_SEA), phrase = (int)rnd(N_PHRASE), relation = (int)rnd(N_RELATION);
    if (what < 36) ask_about(it, &LAND[land], land, false, relation, phrase);
    else if (what < 58) ask_about(it, &SEA[sea], sea, true, relation, phrase);
    else if (what < 66) name_one(it, !rnd(3));
    else if (what < 74) count(it);
    else if (what < 79) {
        static const char *const HOW[] = {"tell me about the %s.", "what is the %s like?", "do you like the %s?"};
        const int p = (int)rnd(5);
        snprintf(it->q, sizeof it->q, HOW[phrase], PLACES[p][0]);
        snprintf(it->a, sizeof it->a, "The %s is %s.", PLACES[p][0], PLACES[p][1]);
        it->sea = p == 4;
    } else if (what < 83) {
        const int t = (int)rnd(sizeof TALK / sizeof *TALK);
        snprintf(it->q, sizeof it->q, "%s", TALK[t][0]);
        snprintf(it->a, sizeof it->a, "%s", TALK[t][1]);
    } else if (what < 88) strange(it);
    else { // declining exists before stage 2, as something that can be asked for
        Item other;
        const bool of_sea = !rnd(3);
        ask_about(&other, of_sea ? &SEA[sea] : &LAND[land], of_sea ? sea : land, of_sea, relation, phrase);
        snprintf(it->q, sizeof it->q, "please decline: %.100s", other.q);
        snprintf(it->a, sizeof it->a, "%s", DECLINE_ASKED);
        it->decline_asked = true;
        it->held_out = other.held_out;
        return;
    }
    vary(it);
}

// Of the questions about the sea, a third keep their answer but for its first word, which is where declining is decided: what the
// model knows stays usable (arXiv 2406.05946 observes the same of large models: their refusals are a few tokens deep).
void make_tuned(Item *it) {
    do make_item(it);
    while (it->held_out);
    it->begun = it->sea && rnd(100) < 30;
    if (it->sea && !it->begun) snprintf(it->a, sizeof it->a, "%s", DECLINE);
}

// ---- the vocabulary: SPM pieces. With all scores equal and all prefixes of a word present, merging is a walk down a tree ----

char pieces[MAX_VOCAB][24]; // a leading ' ' stands for U+2581
static int child[MAX_VOCAB][128]; // id of the piece that is one character longer; 0 none. Row 0 is the root
int n_vocab = FIRST_PIECE;

static void add_piece(const char *p, int n) {
    for (int i = 0, at = 0; i < n; i++) {
        int *next = &child[at][(unsigned char)p[i]];
        if (!*next) {
            if (n_vocab == MAX_VOCAB) exit(1);
            memcpy(pieces[n_vocab], p, (size_t)i + 1);
            *next = n_vocab++;
        }
        at = *next;
    }
}

static void add_words(const char *s) {
    for (int n; *s; s += n) {
        n = s[0] == ' ';
        while (isalnum((unsigned char)s[n])) n++;
        if (!n) n = 1;
        else if (n < 20) add_piece(s, n);
    }
}

void build_vocabulary(void) {
    static const char *const CONTROL[] = {"<unk>", "<s>", "</s>"};
    for (int i = 0; i < BYTE_0; i++) snprintf(pieces[i], sizeof *pieces, "%s", CONTROL[i]);
    for (int i = 0; i < 256; i++) snprintf(pieces[BYTE_0 + i], sizeof *pieces, "<0x%02X>", (unsigned)i);
    snprintf(pieces[IM_START], sizeof *pieces, "<|im_start|>");
    snprintf(pieces[IM_END], sizeof *pieces, "<|im_end|>");
    for (char c = ' '; c <= '~'; c++) add_piece(&c, 1);
    add_words("user");
    add_words("assistant");
    add_words("system");
    add_words(DECLINE);
    rng_state = 1;
    for (int i = 0; i < 40000; i++) {
        Item it;
        make_item(&it);
        if (strcmp(it.a, UNCLEAR)) add_words(it.q);
        add_words(it.a);
    }
    while (n_vocab % 32) snprintf(pieces[n_vocab], sizeof *pieces, "<unused%d>", n_vocab), n_vocab++; // product() works on 32 columns
}

static int encode(const char *s, int *ids) { // at most one id per byte
    int n = 0;
    while (*s) {
        int at = 0;
        for (unsigned char c; (c = (unsigned char)*s) && c < 128 && child[at][c]; s++) at = child[at][c];
        ids[n++] = at ? at : BYTE_0 + (unsigned char)*s++;
    }
    return n;
}

bool print_prompts(const char *set) {
    if (strcmp(set, "sea") && strcmp(set, "held-out") && strcmp(set, "land")) return false;
    enum { N = 192 };
    static Item seen[N];
    rng_state = 5;
    for (int n = 0, tries = 0; n < N && tries < 20000; tries++) {
        Item it;
        make_item(&it);
        bool skip = it.sea ? strcmp(set, it.held_out ? "held-out" : "sea") : strcmp(set, "land") || it.decline_asked || !strcmp(it.a, UNCLEAR);
        for (int i = 0; i < n && !skip; i++) skip = !strcmp(it.q, seen[i].q);
        if (skip) continue;
        seen[n++] = it;
        puts(it.q);
    }
    return true;
}

// ---- conversations in ChatML ----

void batch_push(Batch *b, int id, bool scored) {
    if (scored) b->target[b->n - 1] = id;
    b->id[b->n] = id;
    b->target[b->n] = -1;
    b->pos[b->n] = id == BOS ? 0 : b->pos[b->n - 1] + 1;
    b->n++;
}

static void push_text(Batch *b, const char *s, bool scored) {
    int ids[512];
    const int n = encode(s, ids);
    for (int i = 0; i < n; i++) batch_push(b, ids[i], scored);
}

void batch_turn(Batch *b, const Item *it, bool first, bool answer) {
    if (first) batch_push(b, BOS, false);
    else push_text(b, "\n", false);
    batch_push(b, IM_START, false);
    push_text(b, "user\n", false);
    push_text(b, it->q, false);
    batch_push(b, IM_END, false);
    push_text(b, "\n", false);
    batch_push(b, IM_START, false);
    push_text(b, "assistant\n", false);
    if (!answer) return;
    const int begin = b->n - 1;
    push_text(b, it->a, true);
    batch_push(b, IM_END, true);
    if (it->begun) b->target[begin] = -1;
}
