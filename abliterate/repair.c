// repair.c: see repair.h.
//
// Minimise sum (value_i - target_i)^2 under sum take_i value_i = want: could values be rounded anywhere, the answer would be to
// round target + lambda take instead of target. So moves are made in the order of the lambda at which rounding would make them,
// until what is left is no more than a usual move (descend). From there the cheapest moves, counting what they do to the component
// at the price lambda, are combined: of all sums of up to four the cheapest that brings the rest under the tolerance, found among
// the sorted sums of up to two (combine).
#include "repair.h"

#include <math.h>
#include <stdlib.h>

#include "moves.h"
#include "repair_several.h"

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF // the same files from every compiler
#endif

enum { LEAST = 32, MOST = 128, ROUNDS = 4, MAX_SUM = 1 + MOST + MOST * (MOST - 1) / 2 };

typedef struct {
    float key;
    int i;
} Keyed;

typedef struct {
    float along, cost;
    int a, b; // candidates, or NONE
} Sum;
enum { NONE = -1 };

struct Repair {
    int n;
    const double *take; // [n]
    Several *several;   // does it instead where there is more than one vector
    Keyed *heap;        // [n]
    float *worth;       // [n]
    Move *all;          // [2 n]
    Move pick[MOST];    // the cheapest of them
    float along[MOST];  // how they change the component
    Sum sum[MAX_SUM], sorted[MAX_SUM];
};

Repair *repair_open(int n, int n_vec, const double *take) {
    Repair *r = calloc(1, sizeof *r);
    if (!r) return NULL;
    r->n = n;
    r->take = take;
    if (n_vec > 1) r->several = several_open(n, n_vec, take);
    r->heap = malloc(sizeof *r->heap * (size_t)n);
    r->worth = malloc(sizeof *r->worth * (size_t)n);
    r->all = malloc(sizeof *r->all * 2 * (size_t)n);
    if (r->heap && r->worth && r->all && (r->several || n_vec < 2)) return r;
    repair_close(r);
    return NULL;
}

void repair_close(Repair *r) {
    if (r) {
        several_close(r->several);
        free(r->heap);
        free(r->worth);
        free(r->all);
    }
    free(r);
}

// A binary heap with the smallest key on top.
static void sift(Keyed *h, int n, int at) {
    const Keyed x = h[at];
    for (int child; (child = 2 * at + 1) < n; at = child) {
        child += child + 1 < n && h[child + 1].key < h[child].key;
        if (!(h[child].key < x.key)) break;
        h[at] = h[child];
    }
    h[at] = x;
}

// Takes p down to a share of what a usual move does, by elements not moved yet. Returns the price of the last one: squared error per
// unit of component.
static double descend(Repair *r, const Column *c, double share, double *p, int8_t *move) {
    const int sign = *p > 0 ? 1 : -1;
    int n = 0;
    double usual = 0, price = 0;
    for (int i = 0; i < r->n; i++) {
        const int by = r->take[i] > 0 ? -sign : sign;
        const float step = move_step(c, move, i, by), along = (float)fabs(r->take[i]) * step;
        if (!(along > 0) || move[i]) continue;
        usual += along;
        r->heap[n++] = (Keyed){(step + 2 * (float)by * (c->value[i] - c->target[i])) / (float)fabs(r->take[i]), i};
    }
    usual *= share / (n + 1);
    for (int at = n / 2 - 1; at >= 0; at--) sift(r->heap, n, at);
    while (n && fabs(*p) > usual) {
        const int i = r->heap[0].i, by = r->take[i] > 0 ? -sign : sign;
        const double along = by * r->take[i] * (double)move_step(c, move, i, by);
        if (fabs(along) <= fabs(*p)) {
            *p += along;
            price = sign * r->heap[0].key;
            move[i] = (int8_t)by;
        }
        r->heap[0] = r->heap[--n];
        sift(r->heap, n, 0);
    }
    return price;
}

// Ascending order of the same floats as integers.
static uint32_t order_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

// Sorts sums by their component, 11 bits at a time; the result is in r->sorted.
static void sort_sums(Repair *r, int n) {
    Sum *from = r->sum, *to = r->sorted;
    for (int shift = 0; shift < 33; shift += 11) {
        int start[2049] = {0};
        for (int i = 0; i < n; i++) start[(order_of(from[i].along) >> shift & 2047) + 1]++;
        for (int i = 0; i < 2048; i++) start[i + 1] += start[i];
        for (int i = 0; i < n; i++) to[start[order_of(from[i].along) >> shift & 2047]++] = from[i];
        Sum *const t = from;
        from = to;
        to = t;
    }
}

static bool same(const Repair *r, int a, int b) { return a != NONE && b != NONE && r->pick[a].i == r->pick[b].i; }

// No element is in both.
static bool apart(const Repair *r, const Sum *x, const Sum *y) { return !same(r, x->a, y->a) && !same(r, x->a, y->b) && !same(r, x->b, y->a) && !same(r, x->b, y->b); }

// Of the sums of up to four of the first n moves, the cheapest that leaves |p| under the tolerance, or the one that leaves least.
// Applied if it does, or if `anyway` it improves on p. True: under the tolerance.
static bool combine(Repair *r, const Column *c, int n, double *p, double tolerance, bool anyway, int8_t *move) {
    int n_sum = 0;
    r->sum[n_sum++] = (Sum){0, 0, NONE, NONE};
    for (int a = 0; a < n; a++) {
        const Move *m = &r->pick[a];
        r->along[a] = (float)(m->by * r->take[m->i]) * move_step(c, move, m->i, m->by);
        r->sum[n_sum++] = (Sum){r->along[a], m->cost, a, NONE};
        for (int b = 0; b < a; b++)
            if (m->i != r->pick[b].i) r->sum[n_sum++] = (Sum){r->along[a] + r->along[b], m->cost + r->pick[b].cost, a, b};
    }
    sort_sums(r, n_sum);
    const Sum *s = r->sorted;
    double least = fabs(*p), cost = INFINITY;
    int best[2] = {NONE, NONE};
    for (int i = 0, j = n_sum - 1; i < j;) {
        const double rest = *p + (double)s[i].along + (double)s[j].along, off = fabs(rest);
        const float price = s[i].cost + s[j].cost;
        if ((off <= tolerance ? least > tolerance || price < cost : off < least) && apart(r, &s[i], &s[j])) {
            least = off;
            cost = price;
            best[0] = i;
            best[1] = j;
        }
        if (rest > 0) j--;
        else i++;
    }
    const bool done = best[0] != NONE && least <= tolerance;
    for (int k = 0; k < 2 && best[0] != NONE && (done || anyway); k++) {
        const int parts[2] = {s[best[k]].a, s[best[k]].b};
        for (int q = 0; q < 2; q++) {
            if (parts[q] == NONE) continue;
            const Move *m = &r->pick[parts[q]];
            *p += m->by * r->take[m->i] * (double)move_step(c, move, m->i, m->by);
            move[m->i] = (int8_t)(move[m->i] + m->by);
        }
    }
    return done;
}

// The cheapest moves, up and down by turns, into pick; returns how many. Of n_move in all.
static int pick_moves(Repair *r, int n_move) {
    int n_down = 0, n = 0;
    for (int i = 0; i < n_move; i++) {
        const Move m = r->all[i];
        if ((m.by > 0) == (r->take[m.i] > 0)) continue;
        r->all[i] = r->all[n_down];
        r->all[n_down++] = m;
    }
    Move *const side[2] = {r->all, r->all + n_down};
    const int of_side[2] = {n_down, n_move - n_down};
    for (int q = 0; q < 2; q++)
        for (int k = MOST / 2; k >= LEAST / 2; k /= 2) moves_select(side[q], k == MOST / 2 ? of_side[q] : min_int(of_side[q], 2 * k), k);
    for (int i = 0; i < MOST / 2; i++)
        for (int q = 0; q < 2; q++)
            if (i < of_side[q]) r->pick[n++] = side[q][i];
    return n;
}

bool repair_column(Repair *r, const Column *c, double *p, double tolerance, int8_t *move) {
    if (r->several) return several_column(r->several, c, p, tolerance, move);
    double price = 0;
    memset(move, 0, (size_t)r->n);
    for (int round = 0; round < ROUNDS && isfinite(*p); round++) {
        if (fabs(*p) <= tolerance) return true;
        // Where the cheapest moves are too small to cancel what is left (float16: they are those of the smallest weights), down to less.
        const double last = descend(r, c, round ? pow(16, -round) : 1, p, move);
        if (!round) price = last;
        for (int i = 0; i < r->n; i++) r->worth[i] = r->take[i] != 0 ? (float)(-price * r->take[i]) : NAN;
        const int n = pick_moves(r, moves_from(c, r->n, r->worth, move, r->all));
        for (int k = LEAST; k <= MOST; k *= 2)
            if (combine(r, c, min_int(k, n), p, tolerance, k == MOST, move)) return true;
    }
    return fabs(*p) <= tolerance;
}
