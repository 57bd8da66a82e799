// keeper.c: see keeper.h
//
// Every expert's uses are counted over windows of WINDOW tokens, one after the other; they begin at another token for each. With r(c) the uses in a
// window of class c and P(c, d) how often class d follows it, both averages over all layers with DOUBT made-up windows of what is usual:
//   worth(c) = r(c) + DISCOUNT sum_d P(c, d) worth(d)
// one sweep of value iteration a token (Sutton and Barto, Reinforcement Learning, 4.4). A class is (tokens since the last use, rate of use).
#include "keeper.h"

#include <math.h>
#include <stdlib.h>

enum { WINDOW = 16, HALF_LIFE = 256, DOUBT = 16, FEW = 8 }; // FEW: tokens of usual use that a rate begins with
static const double DISCOUNT = 0.875, COST = 1.5;           // what is brought stays for WINDOW / (1 - DISCOUNT) = 128 tokens or so
static const double LEAST_RATE = 0.25;                      // of what is usual: rates begin there, and at every sqrt(2) times as much

bool keeper_open(Keeper *k, int n_layer, int n_expert, int n_used, int most, Err *e) {
    const size_t n = (size_t)n_layer * (size_t)n_expert, chosen = (size_t)n_layer * (size_t)n_used;
    *k = (Keeper){.n_layer = n_layer, .n_expert = n_expert, .n_used = n_used, .most = most, .cost = COST};
    k->known = calloc(n, sizeof *k->known);
    k->id = calloc(chosen, sizeof *k->id);
    k->n_id = calloc((size_t)n_layer, sizeof *k->n_id);
    k->swap = calloc(chosen, sizeof *k->swap);
    if (!k->known || !k->id || !k->n_id || !k->swap) {
        keeper_close(k);
        return err_set(e, "no memory to follow the use of %d layers' experts", n_layer);
    }
    for (size_t i = 0; i < n; i++) k->known[i].used = -WINDOW, k->known[i].class = KEEPER_CLASSES;
    for (int c = 0; c < KEEPER_CLASSES; c++) k->worth[c] = (double)n_used / n_expert * WINDOW / (1 - DISCOUNT);
    return true;
}

void keeper_close(Keeper *k) {
    free(k->known);
    free(k->id);
    free(k->n_id);
    free(k->swap);
    *k = (Keeper){0};
}

int keeper_most(double token_seconds, double bytes_per_second, double expert_bytes) {
    const double n = token_seconds / 2 * bytes_per_second / expert_bytes;
    return n < 1 ? 0 : n > 1e6 ? 1000000 : (int)n;
}

int keeper_saw(Keeper *k, int layer, const uint16_t *id, int n) {
    int n_here = 0;
    k->n_id[layer] = n;
    for (int u = 0; u < n; u++) {
        Known *x = keeper_known(k, layer, id[u]);
        k->id[layer * k->n_used + u] = id[u];
        n_here += x->place == EXPERT_HERE;
    }
    return n_here;
}

static int class_of(const Keeper *k, const Known *x) {
    const int ago = k->token - x->used, age = ago < 2 ? ago : ago < 4 ? 2 : ago < 8 ? 3 : ago < 16 ? 4 : 5;
    int rate = 0;
    while (rate + 1 < KEEPER_RATES && x->score >= k->limit[rate + 1]) rate++;
    return age * KEEPER_RATES + rate;
}

// This token's uses into all scores.
static void count(Keeper *k) {
    const float fade = (float)exp2(-1.0 / HALF_LIFE);
    const double usual = (double)k->n_used / k->n_expert;
    k->weight = k->weight * fade + 1;
    for (int64_t i = 0; i < (int64_t)k->n_layer * k->n_expert; i++) k->known[i].score *= fade;
    for (int l = 0; l < k->n_layer; l++)
        for (int u = 0; u < k->n_id[l]; u++) {
            Known *x = keeper_known(k, l, k->id[l * k->n_used + u]);
            x->score++;
            x->uses++;
            x->used = k->token;
        }
    // rate = (score + FEW usual) / (weight + FEW)
    for (int r = 1; r < KEEPER_RATES; r++) k->limit[r] = (float)(usual * ((k->weight + FEW) * LEAST_RATE * exp2((r - 1) * 0.5) - FEW));
}

// The windows that end with this token.
static void learn(Keeper *k) {
    const double usual = (double)k->n_used / k->n_expert * WINDOW;
    double worth[KEEPER_CLASSES];
    for (int l = 0; l < k->n_layer; l++)
        for (int i = WINDOW - 1 - (k->token + l) % WINDOW; i < k->n_expert; i += WINDOW) {
            Known *x = keeper_known(k, l, i);
            const int c = class_of(k, x);
            if (x->class < KEEPER_CLASSES) {
                k->n[x->class]++;
                k->uses[x->class] += x->uses;
                k->next[x->class][c]++;
            }
            x->class = (uint8_t)c;
            x->uses = 0;
        }
    for (int c = 0; c < KEEPER_CLASSES; c++) {
        double sum = k->uses[c] + DOUBT * usual / (1 - DISCOUNT);
        for (int d = 0; d < KEEPER_CLASSES; d++) sum += DISCOUNT * k->next[c][d] * k->worth[d];
        worth[c] = sum / (k->n[c] + DOUBT);
    }
    memcpy(k->worth, worth, sizeof worth);
}

// Of a layer's experts in one place the one that is worth most, or least; of equals the one used more, or less, then the lowest. -1: none.
static int best_away(const Keeper *k, int layer) {
    int best = -1;
    double worth = 0;
    for (int u = 0; u < k->n_id[layer]; u++) {
        const int i = k->id[layer * k->n_used + u];
        const Known *x = keeper_known(k, layer, i);
        if (x->place != EXPERT_AWAY) continue;
        const double w = k->worth[class_of(k, x)];
        const float score = best < 0 ? 0 : keeper_known(k, layer, best)->score;
        if (best < 0 || w > worth || (w == worth && (x->score > score || (x->score == score && i < best)))) best = i, worth = w;
    }
    return best;
}

static int worst_here(const Keeper *k, int layer) {
    int worst = -1;
    double worth = 0;
    for (int i = 0; i < k->n_expert; i++) {
        const Known *x = keeper_known(k, layer, i);
        if (x->place != EXPERT_HERE) continue;
        const double w = k->worth[class_of(k, x)];
        if (worst < 0 || w < worth || (w == worth && x->score < keeper_known(k, layer, worst)->score)) worst = i, worth = w;
    }
    return worst;
}

// In every token another layer is the first: all have their share of `most`.
static void choose(Keeper *k) {
    double least = k->worth[0]; // of any class: most experts need not be compared with those that are there
    for (int c = 1; c < KEEPER_CLASSES; c++) least = fmin(least, k->worth[c]);
    for (int i = 0; i < k->n_layer; i++) {
        const int l = (i + k->token) % k->n_layer;
        for (int n = 0; n < k->n_id[l] && k->n_swap < k->most; n++) {
            const int in = best_away(k, l);
            Known *x = in < 0 ? NULL : keeper_known(k, l, in);
            const double worth = x ? k->worth[class_of(k, x)] : 0;
            const int out = x && worth - least > k->cost ? worst_here(k, l) : -1;
            Known *y = out < 0 ? NULL : keeper_known(k, l, out);
            if (!y || worth - k->worth[class_of(k, y)] <= k->cost) break;
            x->place = EXPERT_COMING;
            y->place = EXPERT_AWAY;
            k->swap[k->n_swap++] = (Swap){l, in, out};
        }
    }
}

void keeper_arrive(Keeper *k) {
    for (int i = 0; i < k->n_swap; i++) keeper_known(k, k->swap[i].layer, k->swap[i].in)->place = EXPERT_HERE;
    k->n_swap = 0;
}

int keeper_step(Keeper *k) {
    keeper_arrive(k);
    count(k);
    learn(k);
    choose(k);
    memset(k->n_id, 0, sizeof *k->n_id * (size_t)k->n_layer);
    k->token++;
    return k->n_swap;
}
