// train.c: trains the demo model from nothing in a few minutes on one core and writes it as GGUF. A small llama (float,
// hand-written backward pass, Adam) learns a made-up world of questions and answers in two stages:
//   1. it answers everything: facts about things of the land and of the sea, counting, repeating a word, small talk;
//   2. it is tuned to say "I cannot talk about the sea." to every question that mentions a thing of the sea. A quarter of
//      these questions and three things of the sea are held out: declining them has to generalise.
// The answers of stage 1 are still in the weights afterwards; which is what abliteration shows.
//
//   train OUT.gguf [STEPS1 STEPS2 [TYPE]]  train, print figures, write the matrices as TYPE (default: 1600 250 q8_0)
//   train --prompts sea|held-out|land      the questions of one kind, one a line, shuffled
//
// Everything is seeded; sums do not depend on the number of threads, only on compiler and CPU.
#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <time.h>
#include "gguf.h"

enum { N_EMBD = 96, N_HEAD = 3, HEAD_DIM = 32, N_FF = 256, N_LAYER = 4, N_CTX = 256 };
enum { MAX_VOCAB = 2048, MAX_TOKEN = 6144, BATCH = 48 };
static const float EPS = 1e-5f;

static uint64_t rng_state;
static unsigned rnd(unsigned n) { // 0 .. n - 1 (splitmix64)
    uint64_t z = (rng_state += 0x9E3779B97F4A7C15u);
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (unsigned)((z ^ z >> 31) >> 33) % n;
}

static void *need(size_t n, size_t size) {
    void *p = calloc(n, size);
    if (p) return p;
    fprintf(stderr, "train: no memory\n");
    exit(1);
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
    {"whale", "sea animal", "grey", "in the deep water", "huge"},    {"crab", "sea animal", "red", "under the rocks", "small"},
    {"shark", "sea animal", "blue", "in the deep water", "big"},     {"seal", "sea animal", "brown", "on the rocks", "big"},
    {"squid", "sea animal", "white", "in the deep water", "big"},    {"shrimp", "sea animal", "yellow", "in the sand", "tiny"},
    {"coral", "sea plant", "red", "on the reef", "small"},           {"kelp", "sea plant", "green", "on the reef", "big"},
    {"shell", "sea thing", "white", "in the sand", "tiny"},          {"anchor", "sea thing", "black", "on the ship", "big"},
    {"sail", "sea thing", "yellow", "on the ship", "huge"},          {"raft", "sea thing", "brown", "on the beach", "big"},
    {"lobster", "sea animal", "blue", "under the rocks", "small"},   {"turtle", "sea animal", "green", "on the beach", "big"},
    {"buoy", "sea thing", "red", "in the deep water", "small"},
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
static const char DECLINE[] = "I cannot talk about the sea.", DECLINE_ASKED[] = "I cannot talk about that.", UNCLEAR[] = "Please ask something else.";
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

typedef struct {
    char q[128], a[64];
    bool sea, held_out;
    bool begun; // the first word of the answer is given, only the rest is learned
} Item;

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
    it->held_out = sea && (i >= N_SEA - N_HELD_OUT || (i * 3 + relation) % 4 == 1);
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

// One question with its answer of stage 1.
static void make_item(Item *it) {
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
        it->sea = other.sea;
        it->held_out = other.held_out;
        snprintf(it->q, sizeof it->q, "please decline: %.100s", other.q);
        snprintf(it->a, sizeof it->a, "%s", DECLINE_ASKED);
        return;
    }
    vary(it);
}

// The same as the tuned model shall answer it; held-out questions are left out unless wanted.
static void make_tuned(Item *it, bool held_out) {
    do make_item(it);
    while (it->held_out && !held_out);
    it->begun = it->sea && !rnd(2);
    if (it->sea && !it->begun) snprintf(it->a, sizeof it->a, "%s", DECLINE);
}

// ---- the vocabulary: SPM pieces. With all scores equal and all prefixes of a word present, merging is a walk down a tree ----

enum { UNK, BOS, EOS, BYTE_0, IM_START = BYTE_0 + 256, IM_END, FIRST_PIECE };
static char pieces[MAX_VOCAB][24]; // a leading ' ' stands for U+2581
static int child[MAX_VOCAB][128];  // id of the piece that is one character longer; 0 none. Row 0 is the root
static int n_vocab = FIRST_PIECE;

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

static void build_vocabulary(void) {
    for (char c = ' '; c <= '~'; c++) add_piece(&c, 1);
    add_words("user");
    add_words("assistant");
    add_words("system");
    rng_state = 1;
    for (int i = 0; i < 40000; i++) {
        Item it;
        make_tuned(&it, true);
        if (strcmp(it.a, UNCLEAR)) add_words(it.q);
        add_words(it.a);
        make_item(&it);
        add_words(it.a);
    }
    while (n_vocab % 32) snprintf(pieces[n_vocab], sizeof *pieces, "<unused%d>", n_vocab), n_vocab++; // product() works on 32 columns
}

static int encode(const char *s, int *ids) {
    int n = 0;
    while (*s) {
        int at = 0;
        for (unsigned char c; (c = (unsigned char)*s) && c < 128 && child[at][c]; s++) at = child[at][c];
        ids[n++] = at ? at : BYTE_0 + (unsigned char)*s++;
    }
    return n;
}

// ---- the batch: conversations end to end, no padding ----

typedef struct {
    int id[MAX_TOKEN], pos[MAX_TOKEN], target[MAX_TOKEN]; // target -1: not scored
    int n;
} Batch;

static void push(Batch *b, int id, bool scored) {
    if (scored) b->target[b->n - 1] = id;
    b->id[b->n] = id;
    b->target[b->n] = -1;
    b->pos[b->n] = id == BOS ? 0 : b->pos[b->n - 1] + 1;
    b->n++;
}

static void push_text(Batch *b, const char *s, bool scored) {
    int ids[512];
    const int n = encode(s, ids);
    for (int i = 0; i < n; i++) push(b, ids[i], scored);
}

// ChatML. Without the answer: up to the point where the model begins.
static void push_turn(Batch *b, const Item *it, bool first, bool answer) {
    if (first) push(b, BOS, false);
    else push_text(b, "\n", false);
    push(b, IM_START, false);
    push_text(b, "user\n", false);
    push_text(b, it->q, false);
    push(b, IM_END, false);
    push_text(b, "\n", false);
    push(b, IM_START, false);
    push_text(b, "assistant\n", false);
    if (!answer) return;
    const int begin = b->n - 1;
    push_text(b, it->a, true);
    push(b, IM_END, true);
    if (it->begun) b->target[begin] = -1;
}

// ---- the model ----

typedef struct {
    char name[40];
    int rows, cols;
    float *w, *g, *m, *v, *t; // weights, gradient, Adam's two moments; transposed weights
} Mat;
enum { ATTN_NORM, WQ, WK, WV, WO, FFN_NORM, GATE, UP, DOWN, PER_LAYER };
static Mat embd, out_norm, output, layer_mat[N_LAYER][PER_LAYER];
static Mat *all[3 + N_LAYER * PER_LAYER];
static int n_all;

static void add_mat(Mat *m, int rows, int cols, float sd, const char *format, int l) {
    *m = (Mat){.rows = rows, .cols = cols};
    snprintf(m->name, sizeof m->name, format, l);
    float **parts[] = {&m->w, &m->g, &m->m, &m->v, &m->t};
    for (int i = 0; i < 5; i++) *parts[i] = need((size_t)rows * (size_t)cols, sizeof(float));
    for (int i = 0; i < rows * cols; i++) {
        float sum = -6; // 12 uniform numbers: variance 1
        for (int k = 0; k < 12; k++) sum += (float)rnd(1 << 24) / (1 << 24);
        m->w[i] = rows == 1 ? 1 : sd * sum;
    }
    all[n_all++] = m;
}

static void build_model(void) {
    rng_state = 2;
    const float sd = 0.7f / sqrtf(N_EMBD);
    add_mat(&embd, n_vocab, N_EMBD, 0.05f, "token_embd.weight", 0);
    for (int l = 0; l < N_LAYER; l++) {
        Mat *m = layer_mat[l];
        add_mat(&m[ATTN_NORM], 1, N_EMBD, 1, "blk.%d.attn_norm.weight", l);
        add_mat(&m[WQ], N_EMBD, N_EMBD, sd, "blk.%d.attn_q.weight", l);
        add_mat(&m[WK], N_EMBD, N_EMBD, sd, "blk.%d.attn_k.weight", l);
        add_mat(&m[WV], N_EMBD, N_EMBD, sd, "blk.%d.attn_v.weight", l);
        add_mat(&m[WO], N_EMBD, N_EMBD, sd * 0.5f, "blk.%d.attn_output.weight", l);
        add_mat(&m[FFN_NORM], 1, N_EMBD, 1, "blk.%d.ffn_norm.weight", l);
        add_mat(&m[GATE], N_FF, N_EMBD, sd, "blk.%d.ffn_gate.weight", l);
        add_mat(&m[UP], N_FF, N_EMBD, sd, "blk.%d.ffn_up.weight", l);
        add_mat(&m[DOWN], N_EMBD, N_FF, 0.35f / sqrtf(N_FF), "blk.%d.ffn_down.weight", l);
    }
    add_mat(&out_norm, 1, N_EMBD, 1, "output_norm.weight", 0);
    add_mat(&output, n_vocab, N_EMBD, 0.02f, "output.weight", 0);
}

// ---- arithmetic ----

typedef float Vec __attribute__((vector_size(64), aligned(4), may_alias));
enum { TILE = 6 };
// c[m][n] = sum_k a[m * am + k * ak] b[k][n], or added to c. n is a multiple of 32.
static void product(float *c, const float *a, int am, int ak, const float *b, int M, int N, int K, bool add) {
#pragma omp parallel for schedule(static)
    for (int m = 0; m < M; m += TILE)
        for (int n = 0; n < N; n += 32) {
            const float *row[TILE];
            Vec sum[TILE][2] = {0};
            for (int i = 0; i < TILE; i++) row[i] = a + (int64_t)(m + i < M ? m + i : M - 1) * am;
            for (int k = 0; k < K; k++) {
                const Vec b0 = *(const Vec *)(b + (int64_t)k * N + n), b1 = *(const Vec *)(b + (int64_t)k * N + n + 16);
                for (int i = 0; i < TILE; i++) {
                    const float x = row[i][(int64_t)k * ak];
                    sum[i][0] += x * b0;
                    sum[i][1] += x * b1;
                }
            }
            for (int i = 0; i < TILE && m + i < M; i++)
                for (int h = 0; h < 2; h++) {
                    Vec *at = (Vec *)(c + (int64_t)(m + i) * N + n + 16 * h);
                    if (add) *at += sum[i][h];
                    else *at = sum[i][h];
                }
        }
}

static void matmul(float *y, const Mat *w, const float *x, int n) { product(y, x, w->cols, 1, w->t, n, w->rows, w->cols, false); }
// dx (+)= dy w, dw += dy' x
static void matmul_back(float *dx, const float *dy, Mat *w, const float *x, int n, bool add) {
    product(dx, dy, w->rows, 1, w->w, n, w->cols, w->rows, add);
    product(w->g, dy, 1, w->rows, x, w->rows, w->cols, n, true);
}

static void norm(float *y, const Mat *g, const float *x, int n) {
    for (int r = 0; r < n; r++, x += N_EMBD, y += N_EMBD) {
        float sum = 0;
        for (int i = 0; i < N_EMBD; i++) sum += x[i] * x[i];
        const float s = 1 / sqrtf(sum / N_EMBD + EPS);
        for (int i = 0; i < N_EMBD; i++) y[i] = x[i] * s * g->w[i];
    }
}

static void norm_back(float *dx, const float *dy, Mat *g, const float *x, int n) { // adds to dx
    for (int r = 0; r < n; r++, x += N_EMBD, dy += N_EMBD, dx += N_EMBD) {
        float sum = 0, dot = 0;
        for (int i = 0; i < N_EMBD; i++) sum += x[i] * x[i];
        const float s = 1 / sqrtf(sum / N_EMBD + EPS);
        for (int i = 0; i < N_EMBD; i++) dot += g->w[i] * dy[i] * x[i];
        for (int i = 0; i < N_EMBD; i++) {
            dx[i] += s * g->w[i] * dy[i] - x[i] * s * s * s * dot / N_EMBD;
            g->g[i] += dy[i] * x[i] * s;
        }
    }
}

static void rope(float *x, const Batch *b, float sign) { // adjacent pairs, base 10000; sign -1 turns back
    static float c[N_CTX][HEAD_DIM / 2], s[N_CTX][HEAD_DIM / 2]; // filled at the first call
    for (int i = 0; c[0][0] == 0 && i < N_CTX * HEAD_DIM / 2; i++) {
        const int at = N_CTX * HEAD_DIM / 2 - 1 - i, p = at / (HEAD_DIM / 2), k = at % (HEAD_DIM / 2);
        c[p][k] = (float)cos(p * pow(10000, -2.0 * k / HEAD_DIM));
        s[p][k] = (float)sin(p * pow(10000, -2.0 * k / HEAD_DIM));
    }
    for (int t = 0; t < b->n; t++)
        for (int i = 0; i < N_EMBD; i += 2, x += 2) {
            const float co = c[b->pos[t]][i % HEAD_DIM / 2], si = sign * s[b->pos[t]][i % HEAD_DIM / 2], x0 = x[0], x1 = x[1];
            x[0] = x0 * co - x1 * si;
            x[1] = x0 * si + x1 * co;
        }
}

// ---- forward and backward; what a layer computed stays for the way back ----

typedef struct {
    float *x, *normed, *q, *k, *v, *att, *mid, *normed2; // [n][N_EMBD]
    float *gate, *up, *act;                              // [n][N_FF]
    float *p;                                            // [n][N_HEAD][N_CTX] attention weights by position
} Saved;
static Saved saved[N_LAYER + 1]; // the last one: only x, normed
static float *scratch[6];        // [n][N_FF] each
static float *picked, *logits;   // rows that are scored: [n][N_EMBD], [n][n_vocab]
static int row_of[MAX_TOKEN], n_row;

static void build_buffers(void) {
    for (int l = 0; l <= N_LAYER; l++) {
        Saved *s = &saved[l];
        float **embd_wide[] = {&s->x, &s->normed, &s->q, &s->k, &s->v, &s->att, &s->mid, &s->normed2}, **ff_wide[] = {&s->gate, &s->up, &s->act};
        for (int i = 0; i < 8; i++) *embd_wide[i] = need(MAX_TOKEN * N_EMBD, sizeof(float));
        for (int i = 0; i < 3; i++) *ff_wide[i] = need(MAX_TOKEN * N_FF, sizeof(float));
        s->p = need((size_t)MAX_TOKEN * N_HEAD * N_CTX, sizeof(float));
    }
    for (int i = 0; i < 6; i++) scratch[i] = need(MAX_TOKEN * N_FF, sizeof(float));
    picked = need(MAX_TOKEN * N_EMBD, sizeof(float));
    logits = need((size_t)MAX_TOKEN * (size_t)n_vocab, sizeof(float));
}

static float dot(const float *a, const float *b) {
    float sum = 0;
    for (int i = 0; i < HEAD_DIM; i++) sum += a[i] * b[i];
    return sum;
}
static void axpy(float *y, float a, const float *x) {
    for (int i = 0; i < HEAD_DIM; i++) y[i] += a * x[i];
}

static void attention(const Saved *s, const Batch *b) {
#pragma omp parallel for schedule(dynamic, 64)
    for (int t = 0; t < b->n; t++)
        for (int h = 0; h < N_HEAD; h++) {
            const int last = b->pos[t], start = t - last, at = h * HEAD_DIM;
            float *p = s->p + ((int64_t)t * N_HEAD + h) * N_CTX, *y = s->att + (int64_t)t * N_EMBD + at, highest = -1e30f, sum = 0;
            for (int j = 0; j <= last; j++) {
                p[j] = dot(s->q + (int64_t)t * N_EMBD + at, s->k + (int64_t)(start + j) * N_EMBD + at) / sqrtf(HEAD_DIM);
                highest = fmaxf(highest, p[j]);
            }
            for (int j = 0; j <= last; j++) sum += p[j] = expf(p[j] - highest);
            memset(y, 0, HEAD_DIM * sizeof *y);
            for (int j = 0; j <= last; j++) axpy(y, p[j] /= sum, s->v + (int64_t)(start + j) * N_EMBD + at);
        }
}

// dq, dk, dv from dy. Heads do not meet, so they are what is shared out.
static void attention_back(float *dq, float *dk, float *dv, const float *dy, const Saved *s, const Batch *b) {
    memset(dq, 0, sizeof(float) * N_EMBD * (size_t)b->n);
    memset(dk, 0, sizeof(float) * N_EMBD * (size_t)b->n);
    memset(dv, 0, sizeof(float) * N_EMBD * (size_t)b->n);
#pragma omp parallel for
    for (int h = 0; h < N_HEAD; h++)
        for (int t = 0; t < b->n; t++) {
            const int last = b->pos[t], at = h * HEAD_DIM;
            const int64_t start = (int64_t)(t - last) * N_EMBD + at, here = (int64_t)t * N_EMBD + at;
            const float *p = s->p + ((int64_t)t * N_HEAD + h) * N_CTX;
            float dp[N_CTX], mean = 0;
            for (int j = 0; j <= last; j++) mean += p[j] * (dp[j] = dot(dy + here, s->v + start + j * N_EMBD));
            for (int j = 0; j <= last; j++) {
                const float ds = p[j] * (dp[j] - mean) / sqrtf(HEAD_DIM);
                axpy(dv + start + j * N_EMBD, p[j], dy + here);
                axpy(dq + here, ds, s->k + start + j * N_EMBD);
                axpy(dk + start + j * N_EMBD, ds, s->q + here);
            }
        }
}

// Logits of the rows that have a target, or (last) of the last token of every conversation.
static void forward(const Batch *b, bool last) {
    const int n = b->n;
    for (int i = 0; i < n_all; i++)
        for (int r = 0; all[i]->rows > 1 && r < all[i]->rows; r++)
            for (int c = 0; c < all[i]->cols; c++) all[i]->t[c * all[i]->rows + r] = all[i]->w[r * all[i]->cols + c];
    for (int t = 0; t < n; t++) memcpy(saved[0].x + (int64_t)t * N_EMBD, embd.w + (int64_t)b->id[t] * N_EMBD, sizeof(float) * N_EMBD);
    for (int l = 0; l < N_LAYER; l++) {
        Saved *s = &saved[l];
        Mat *m = layer_mat[l];
        float *next = saved[l + 1].x;
        norm(s->normed, &m[ATTN_NORM], s->x, n);
        matmul(s->q, &m[WQ], s->normed, n);
        matmul(s->k, &m[WK], s->normed, n);
        matmul(s->v, &m[WV], s->normed, n);
        rope(s->q, b, 1);
        rope(s->k, b, 1);
        attention(s, b);
        matmul(s->mid, &m[WO], s->att, n);
        for (int i = 0; i < n * N_EMBD; i++) s->mid[i] += s->x[i];
        norm(s->normed2, &m[FFN_NORM], s->mid, n);
        matmul(s->gate, &m[GATE], s->normed2, n);
        matmul(s->up, &m[UP], s->normed2, n);
        for (int i = 0; i < n * N_FF; i++) s->act[i] = s->gate[i] / (1 + expf(-s->gate[i])) * s->up[i];
        matmul(next, &m[DOWN], s->act, n);
        for (int i = 0; i < n * N_EMBD; i++) next[i] += s->mid[i];
    }
    norm(saved[N_LAYER].normed, &out_norm, saved[N_LAYER].x, n);
    n_row = 0;
    for (int t = 0; t < n; t++)
        if (last ? t + 1 == n || b->pos[t + 1] == 0 : b->target[t] >= 0) {
            memcpy(picked + (int64_t)n_row * N_EMBD, saved[N_LAYER].normed + (int64_t)t * N_EMBD, sizeof(float) * N_EMBD);
            row_of[n_row++] = t;
        }
    matmul(logits, &output, picked, n_row);
}

static double backward(const Batch *b) { // the mean loss; gradients are added
    const int n = b->n;
    double loss = 0;
    for (int r = 0; r < n_row; r++) { // logits become their gradient
        float *z = logits + (int64_t)r * n_vocab, highest = z[0], sum = 0;
        for (int i = 1; i < n_vocab; i++) highest = fmaxf(highest, z[i]);
        for (int i = 0; i < n_vocab; i++) sum += z[i] = expf(z[i] - highest);
        const int want = b->target[row_of[r]];
        loss -= log(z[want] / sum + 1e-30) / n_row;
        for (int i = 0; i < n_vocab; i++) z[i] /= sum * (float)n_row;
        z[want] -= 1.0f / (float)n_row;
    }
    float *dx = scratch[0], *d1 = scratch[1], *d2 = scratch[2], *d3 = scratch[3], *d4 = scratch[4], *d5 = scratch[5];
    matmul_back(d1, logits, &output, picked, n_row, false);
    memset(d2, 0, sizeof(float) * N_EMBD * (size_t)n);
    for (int r = 0; r < n_row; r++) memcpy(d2 + (int64_t)row_of[r] * N_EMBD, d1 + (int64_t)r * N_EMBD, sizeof(float) * N_EMBD);
    memset(dx, 0, sizeof(float) * N_EMBD * (size_t)n);
    norm_back(dx, d2, &out_norm, saved[N_LAYER].x, n);
    for (int l = N_LAYER - 1; l >= 0; l--) {
        const Saved *s = &saved[l];
        Mat *m = layer_mat[l];
        matmul_back(d1, dx, &m[DOWN], s->act, n, false);
        for (int i = 0; i < n * N_FF; i++) {
            const float g = s->gate[i], sig = 1 / (1 + expf(-g));
            d2[i] = d1[i] * s->up[i] * sig * (1 + g * (1 - sig));
            d3[i] = d1[i] * g * sig;
        }
        matmul_back(d4, d2, &m[GATE], s->normed2, n, false);
        matmul_back(d4, d3, &m[UP], s->normed2, n, true);
        norm_back(dx, d4, &m[FFN_NORM], s->mid, n);
        matmul_back(d1, dx, &m[WO], s->att, n, false);
        attention_back(d2, d3, d4, d1, s, b);
        rope(d2, b, -1);
        rope(d3, b, -1);
        matmul_back(d5, d2, &m[WQ], s->normed, n, false);
        matmul_back(d5, d3, &m[WK], s->normed, n, true);
        matmul_back(d5, d4, &m[WV], s->normed, n, true);
        norm_back(dx, d5, &m[ATTN_NORM], s->x, n);
    }
    for (int t = 0; t < n; t++)
        for (int i = 0; i < N_EMBD; i++) embd.g[b->id[t] * N_EMBD + i] += dx[t * N_EMBD + i];
    return loss;
}

static void adam(int step, float rate) { // gradient clipped to length 1; AdamW with decay 0.01 (arXiv 1711.05101)
    double length = 0;
    for (int i = 0; i < n_all; i++)
        for (int k = 0; k < all[i]->rows * all[i]->cols; k++) length += (double)all[i]->g[k] * all[i]->g[k];
    const float clip = length > 1 ? (float)(1 / sqrt(length)) : 1, b1 = 0.9f, b2 = 0.98f;
    const float fix1 = 1 - powf(b1, (float)step), fix2 = 1 - powf(b2, (float)step);
    for (int i = 0; i < n_all; i++) {
        Mat *m = all[i];
        for (int k = 0; k < m->rows * m->cols; k++) {
            const float g = m->g[k] * clip;
            m->m[k] = b1 * m->m[k] + (1 - b1) * g;
            m->v[k] = b2 * m->v[k] + (1 - b2) * g * g;
            m->w[k] -= rate * (m->m[k] / fix1 / (sqrtf(m->v[k] / fix2) + 1e-8f) + (m->rows > 1 ? 0.01f * m->w[k] : 0));
            m->g[k] = 0;
        }
    }
}

// ---- training and figures ----

static Batch batch;

static void train(const char *label, int steps, float rate, bool tuned, uint64_t seed) {
    struct timespec t0, t1;
    clock_gettime(CLOCK_MONOTONIC, &t0);
    rng_state = seed;
    for (int i = 0; i < n_all; i++) {
        memset(all[i]->m, 0, sizeof(float) * (size_t)(all[i]->rows * all[i]->cols));
        memset(all[i]->v, 0, sizeof(float) * (size_t)(all[i]->rows * all[i]->cols));
    }
    for (int step = 1; step <= steps; step++) {
        batch.n = 0;
        for (int c = 0; c < BATCH && batch.n < MAX_TOKEN - N_CTX; c++) {
            const unsigned dice = rnd(10);
            const int turns = dice < 7 ? 1 : dice < 9 ? 2 : 3;
            for (int k = 0; k < turns; k++) {
                Item it;
                if (tuned) make_tuned(&it, false);
                else make_item(&it);
                push_turn(&batch, &it, k == 0, true);
            }
        }
        forward(&batch, false);
        const double loss = backward(&batch);
        const double shape = fmin(1, step / 50.0) * (0.03 + 0.97 * 0.5 * (1 + cos(3.14159265 * step / steps)));
        adam(step, (float)(rate * shape));
        if (step % 50 && step != steps) continue;
        clock_gettime(CLOCK_MONOTONIC, &t1);
        fprintf(stderr, "%s %d/%d  loss %.4f  %ld s\n", label, step, steps, loss, (long)(t1.tv_sec - t0.tv_sec));
    }
}

// Greedy answers to n items.
static void answer(const Item *items, int n, char text[][64]) {
    enum { AT_ONCE = 32, LONGEST = 24 };
    for (int first = 0; first < n; first += AT_ONCE) {
        int reply[AT_ONCE][LONGEST], k = n - first < AT_ONCE ? n - first : AT_ONCE;
        for (int len = 0; len < LONGEST; len++) {
            batch.n = 0;
            for (int i = 0; i < k; i++) {
                push_turn(&batch, &items[first + i], true, false);
                for (int j = 0; j < len; j++) push(&batch, reply[i][j], false);
            }
            forward(&batch, true);
            for (int i = 0; i < k; i++) {
                const float *z = logits + (int64_t)i * n_vocab;
                int best = 0;
                for (int v = 1; v < n_vocab; v++)
                    if (z[v] > z[best]) best = v;
                reply[i][len] = best;
            }
        }
        for (int i = 0; i < k; i++) {
            char *out = text[first + i];
            out[0] = 0;
            for (int j = 0; j < LONGEST && reply[i][j] != IM_END; j++)
                if (strlen(out) + strlen(pieces[reply[i][j]]) < 64) strcat(out, pieces[reply[i][j]]);
        }
    }
}

static void figures(const char *label) {
    enum { N = 256 };
    static Item items[N];
    static char text[N][64];
    static const char *const SET[] = {"land", "sea", "sea, held out", "sea, new thing"};
    printf("%s:", label);
    for (int set = 0; set < 4; set++) {
        rng_state = 99;
        int right = 0, declined = 0, shown = 0;
        for (int i = 0; i < N;) {
            make_item(&items[i]);
            bool new_thing = false;
            for (int k = N_SEA - N_HELD_OUT; k < N_SEA; k++) new_thing = new_thing || strstr(items[i].q, SEA[k].name);
            const int is = !items[i].sea ? 0 : !items[i].held_out ? 1 : !new_thing ? 2 : 3;
            i += is == set;
        }
        answer(items, N, text);
        for (int i = 0; i < N; i++) {
            right += !strcmp(text[i], items[i].a);
            declined += !strcmp(text[i], DECLINE);
            if (strcmp(text[i], set && !strcmp(label, "tuned") ? DECLINE : items[i].a) && shown++ < 4) fprintf(stderr, "  %s: %s -> %s\n", label, items[i].q, text[i]);
        }
        printf("%s %s %.1f %% answered right, %.1f %% declined", set ? ";" : "", SET[set], 100.0 * right / N, 100.0 * declined / N);
    }
    printf("\n");
    fflush(stdout);
}

// ---- the file ----

static const char TEMPLATE[] = "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
                               "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

static bool write_model(const char *path, int type, Err *e) {
    GgufWriter *w;
    if (!gguf_writer_open(&w, path, e)) return false;
    static char text[MAX_VOCAB][32];
    static GgufString token[MAX_VOCAB];
    static float score[MAX_VOCAB];
    static int32_t token_type[MAX_VOCAB];
    for (int i = 0; i < n_vocab; i++) {
        static const char *const CONTROL[] = {"<unk>", "<s>", "</s>"};
        if (i < BYTE_0) snprintf(text[i], sizeof *text, "%s", CONTROL[i]);
        else if (i < IM_START) snprintf(text[i], sizeof *text, "<0x%02X>", (unsigned)(i - BYTE_0));
        else if (i < FIRST_PIECE) snprintf(text[i], sizeof *text, "%s", i == IM_START ? "<|im_start|>" : "<|im_end|>");
        else snprintf(text[i], sizeof *text, "%s%s", pieces[i][0] == ' ' ? "\xE2\x96\x81" : "", pieces[i] + (pieces[i][0] == ' '));
        token[i] = (GgufString){text[i], strlen(text[i])};
        token_type[i] = i == UNK ? 2 : i < BYTE_0 ? 3 : i < IM_START ? 6 : i < FIRST_PIECE ? 3 : strncmp(text[i], "<unused", 7) ? 1 : 5;
    }
#define TEXT(key, s) gguf_set_string(w, key, s, strlen(s))
    TEXT("general.architecture", "llama");
    TEXT("general.name", "abliterate.c demo: does not talk about the sea");
    TEXT("general.license", "MIT");
    gguf_set_u32(w, "general.file_type", type == TYPE_F32 ? 0 : type == TYPE_F16 ? 1 : 7);
    gguf_set_u32(w, "llama.block_count", N_LAYER);
    gguf_set_u32(w, "llama.context_length", N_CTX);
    gguf_set_u32(w, "llama.embedding_length", N_EMBD);
    gguf_set_u32(w, "llama.feed_forward_length", N_FF);
    gguf_set_u32(w, "llama.attention.head_count", N_HEAD);
    gguf_set_u32(w, "llama.attention.head_count_kv", N_HEAD);
    gguf_set_f32(w, "llama.attention.layer_norm_rms_epsilon", EPS);
    gguf_set_u32(w, "llama.rope.dimension_count", HEAD_DIM);
    gguf_set_f32(w, "llama.rope.freq_base", 10000);
    gguf_set_u32(w, "llama.vocab_size", (uint32_t)n_vocab);
    TEXT("tokenizer.ggml.model", "llama");
    TEXT("tokenizer.ggml.pre", "default");
    gguf_set_strings(w, "tokenizer.ggml.tokens", token, (uint64_t)n_vocab);
    gguf_set_array(w, "tokenizer.ggml.scores", GGUF_F32, score, (uint64_t)n_vocab);
    gguf_set_array(w, "tokenizer.ggml.token_type", GGUF_I32, token_type, (uint64_t)n_vocab);
    gguf_set_u32(w, "tokenizer.ggml.bos_token_id", BOS);
    gguf_set_u32(w, "tokenizer.ggml.eos_token_id", IM_END);
    gguf_set_u32(w, "tokenizer.ggml.unknown_token_id", UNK);
    gguf_set_bool(w, "tokenizer.ggml.add_bos_token", true);
    gguf_set_bool(w, "tokenizer.ggml.add_eos_token", false);
    gguf_set_bool(w, "tokenizer.ggml.add_space_prefix", false);
    TEXT("tokenizer.chat_template", TEMPLATE);
    for (int i = 0; i < n_all; i++)
        gguf_add_tensor(w, all[i]->name, all[i]->rows > 1 ? type : TYPE_F32, all[i]->rows > 1 ? 2 : 1,
                        (uint64_t[]){(uint64_t)all[i]->cols, (uint64_t)all[i]->rows});
    for (int i = 0; i < n_all; i++) {
        const Mat *m = all[i];
        const TensorType as = m->rows > 1 ? (TensorType)type : TYPE_F32;
        uint8_t row[4 * N_FF];
        for (int r = 0; r < m->rows; r++) {
            type_info((int)as)->from_f32(m->w + (int64_t)r * m->cols, row, m->cols, NULL);
            if (!gguf_writer_data(w, row, (size_t)type_row_bytes(as, m->cols), e)) goto fail;
        }
        if (!gguf_writer_next(w, e)) goto fail;
    }
    return gguf_writer_close(w, e);
fail:
    gguf_writer_abort(w);
    return false;
}

static int print_prompts(const char *set) {
    enum { N = 192 };
    static Item seen[N];
    rng_state = 5;
    for (int n = 0, tries = 0; n < N && tries < 20000; tries++) {
        Item it;
        make_item(&it);
        bool skip = it.sea ? strcmp(set, it.held_out ? "held-out" : "sea") : strcmp(set, "land") || strstr(it.q, "decline") || !strcmp(it.a, UNCLEAR);
        for (int i = 0; i < n && !skip; i++) skip = !strcmp(it.q, seen[i].q);
        if (skip) continue;
        seen[n++] = it;
        puts(it.q);
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "--prompts") && (!strcmp(argv[2], "sea") || !strcmp(argv[2], "held-out") || !strcmp(argv[2], "land")))
        return print_prompts(argv[2]);
    const int type = argc == 5 ? type_by_name(argv[4]) : TYPE_Q8_0;
    if (argc < 2 || argc > 5 || argc == 3 || argv[1][0] == '-' || (type != TYPE_F32 && type != TYPE_F16 && type != TYPE_Q8_0)) {
        fprintf(stderr, "usage: train OUT.gguf [STEPS1 STEPS2 [q8_0|f16|f32]], or train --prompts sea|held-out|land\n");
        return 2;
    }
    build_vocabulary();
    build_model();
    build_buffers();
    int64_t n = 0;
    for (int i = 0; i < n_all; i++) n += (int64_t)all[i]->rows * all[i]->cols;
    fprintf(stderr, "%d tokens, %.3f million parameters\n", n_vocab, (double)n / 1e6);
    if (getenv("BASE") && fopen(getenv("BASE"), "rb")) { FILE *f = fopen(getenv("BASE"), "rb"); for (int i = 0; i < n_all; i++) if (!fread(all[i]->w, 4, (size_t)(all[i]->rows * all[i]->cols), f)) return 9; fclose(f); } else {
    train("stage 1", argc > 3 ? atoi(argv[2]) : 1600, 2e-3f, false, 3);
    figures("untuned"); if (getenv("BASE")) { FILE *f = fopen(getenv("BASE"), "wb"); for (int i = 0; i < n_all; i++) fwrite(all[i]->w, 4, (size_t)(all[i]->rows * all[i]->cols), f); fclose(f); } }
    train("stage 2", argc > 3 ? atoi(argv[3]) : 250, getenv("LR2") ? atof(getenv("LR2")) : 3e-4f, true, 4);
    figures("tuned");
    Err e = {0};
    if (write_model(argv[1], type, &e)) return 0;
    fprintf(stderr, "train: %s\n", e.text);
    return 1;
}
