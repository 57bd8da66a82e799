// world.h: what the demo model learns: a made-up world as questions and answers, and a vocabulary for their words.
// Deterministic: everything follows from rng_state. Used by train.c only.
#ifndef WORLD_H
#define WORLD_H

#include <stdbool.h>
#include <stdint.h>

enum { MAX_VOCAB = 2048, MAX_TOKEN = 6144 }; // MAX_TOKEN: of a batch
enum { UNK, BOS, EOS, BYTE_0, IM_START = BYTE_0 + 256, IM_END, FIRST_PIECE }; // token ids; those from FIRST_PIECE on are texts

typedef struct {
    char q[128], a[64];
    bool sea;          // mentions the sea or something of it
    bool new_thing;    // something of the sea that stage 2 never mentions
    bool held_out;     // not in stage 2: new things, and a quarter of the facts about the others
    bool begun;        // the first word of the answer is given, only the rest is learned
    bool decline_asked;
} Item;

extern uint64_t rng_state;
unsigned rnd(unsigned n); // 0 .. n - 1

extern const char DECLINE[];            // "I cannot talk about the sea."
bool declines(const char *answer);
void make_item(Item *it);               // a question as stage 1 answers it
void make_tuned(Item *it);              // as stage 2 does
bool print_prompts(const char *set);    // questions of "sea", "held-out" or "land", one a line, none twice; false: no such set

extern char pieces[MAX_VOCAB][24];      // texts of the tokens; a leading ' ' stands for U+2581
extern int n_vocab;                     // a multiple of 32
void build_vocabulary(void);

// Conversations end to end, no padding.
typedef struct {
    int id[MAX_TOKEN], pos[MAX_TOKEN], target[MAX_TOKEN]; // target: the id to predict, -1: not scored
    int n;
} Batch;
void batch_push(Batch *b, int id, bool scored);
// One question in ChatML, with its answer (scored) or up to the point where the model begins.
void batch_turn(Batch *b, const Item *it, bool first, bool answer);

#endif
