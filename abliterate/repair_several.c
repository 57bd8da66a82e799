// repair_several.c: see repair_several.h.
//
// The same two parts as for one component. Descend: round target + sum_k lambda_k take_k, where the prices lambda are found by ascent
// on the dual problem, whose gradient is p. Combine: a search among subsets of the cheapest moves (subsets.h). Where it finds
// nothing, because that many vectors would take longer than anybody waits: sums of two of the cheapest moves that nearly cancel each other are smaller
// moves, sums of two of these still smaller ones, and so on (Wagner 2002, "A generalized birthday problem"); with those of each size
// the rest is taken down by the one or two that fit best.
#include "repair_several.h"

#include <math.h>
#include <stdlib.h>

#include "subsets.h"

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF // the same files from every compiler
#endif

enum { ASCENTS = 60, LEAST = 64, MOST = 512, LEVELS = 5, MAX_PART = 1 << (LEVELS - 1), NONE = -1 };
// Subsets of a quarter of the cheapest moves that are combined (subsets.h). Where there are many rows, a few give enough.
enum { FEW_ROWS = 1280, SIZE_FEW = 4096, SIZE = 128 };

typedef struct {
    int n, n_part;
    float along[MAX_VEC][MOST];   // what each changes
    uint16_t part[MOST][MAX_PART]; // of which moves it consists
} Level;

typedef struct {
    float size; // squared
    int a, b;
} Pair;

struct Several {
    int n, n_vec;
    const double *take;
    double inverse[MAX_VEC][MAX_VEC]; // of the products take_j . take_k
    Move *all;                        // [2 n]
    int *first;                       // [n] of the moves in use the first one of this element; NONE outside first_level
    int element[MOST];                // of the moves in use: the first one of the same element
    float *worth, *shift;             // [n]
    int8_t *start;                    // [n]
    bool used[MOST];                  // by the same numbers
    Level level[2];
    Pair pair[MOST];
    Subsets *subsets;
    float cost[SUBSETS_MOVES], along[MAX_VEC][SUBSETS_MOVES]; // of the moves that are searched
    Move moves[SUBSETS_MOVES];
};

// The inverse of a symmetric positive matrix (Gauss-Jordan); a vector that the others span gets zeros.
static void invert(double a[MAX_VEC][MAX_VEC], double out[MAX_VEC][MAX_VEC], int n) {
    double scale = 0;
    for (int i = 0; i < n; i++) {
        scale = fmax(scale, a[i][i]);
        for (int j = 0; j < n; j++) out[i][j] = i == j;
    }
    for (int i = 0; i < n; i++) {
        const double pivot = a[i][i] > 1e-12 * scale ? 1 / a[i][i] : 0;
        for (int j = 0; j < n; j++) {
            a[i][j] *= pivot;
            out[i][j] *= pivot;
        }
        for (int k = 0; k < n; k++) {
            const double f = a[k][i];
            for (int j = 0; k != i && j < n; j++) {
                a[k][j] -= f * a[i][j];
                out[k][j] -= f * out[i][j];
            }
        }
    }
}

Several *several_open(int n, int n_vec, const double *take) {
    Several *r = calloc(1, sizeof *r);
    if (!r) return NULL;
    r->n = n;
    r->n_vec = n_vec;
    r->take = take;
    r->all = malloc(sizeof *r->all * 2 * (size_t)n);
    r->worth = malloc(sizeof *r->worth * (size_t)n);
    r->shift = malloc(sizeof *r->shift * (size_t)n);
    r->start = malloc((size_t)n);
    r->first = malloc(sizeof *r->first * (size_t)n);
    r->subsets = subsets_open(n_vec);
    if (!r->subsets || !r->all || !r->first || !r->worth || !r->shift || !r->start) {
        several_close(r);
        return NULL;
    }
    for (int i = 0; i < n; i++) r->first[i] = NONE;
    double products[MAX_VEC][MAX_VEC] = {{0}};
    for (int j = 0; j < n_vec; j++)
        for (int k = 0; k < n_vec; k++)
            for (int i = 0; i < n; i++) products[j][k] += take[(int64_t)j * n + i] * take[(int64_t)k * n + i];
    invert(products, r->inverse, n_vec);
    return r;
}

void several_close(Several *r) {
    if (r) {
        free(r->all);
        free(r->first);
        free(r->worth);
        free(r->shift);
        free(r->start);
        subsets_close(r->subsets);
    }
    free(r);
}

static double take_of(const Several *r, int k, int i) { return r->take[(int64_t)k * r->n + i]; }

static double size_of(const Several *r, const double *p) {
    double sum = 0;
    for (int k = 0; k < r->n_vec; k++) sum += p[k] * p[k];
    return sqrt(sum);
}

// Moves every element to the one of its three points that is nearest to target + sum price_k take_k; p becomes what is left.
static void round_at(Several *r, const Column *c, const double *price, const double *start, double *p, int8_t *move) {
    memcpy(p, start, sizeof *p * (size_t)r->n_vec);
    for (int i = 0; i < r->n; i++) r->shift[i] = c->target[i] - c->value[i];
    for (int k = 0; k < r->n_vec; k++)
        for (int i = 0; i < r->n; i++) r->shift[i] += (float)(price[k] * take_of(r, k, i));
    for (int i = 0; i < r->n; i++) {
        const float to = 2 * r->shift[i];
        move[i] = (int8_t)((c->above[i] > 0 && to > c->above[i]) - (c->below[i] > 0 && to < -c->below[i]));
        if (!move[i]) continue;
        const double step = move[i] > 0 ? (double)c->above[i] : -(double)c->below[i];
        for (int k = 0; k < r->n_vec; k++) p[k] += step * take_of(r, k, i);
    }
}

// Leaves in price the best found, in p and move what it does.
static void ascend(Several *r, const Column *c, double tolerance, double *price, double *p, int8_t *move) {
    double start[MAX_VEC], best[MAX_VEC] = {0}, here[MAX_VEC] = {0}, least, rate = 1, usual = 0;
    memcpy(start, p, sizeof *p * (size_t)r->n_vec);
    for (int i = 0; i < r->n; i++) {
        double square = 0;
        for (int k = 0; k < r->n_vec; k++) square += take_of(r, k, i) * take_of(r, k, i);
        usual += sqrt(square) * (double)fmaxf(c->above[i], c->below[i]) / r->n;
    }
    memset(move, 0, (size_t)r->n);
    least = size_of(r, p);
    for (int turn = 0; turn < ASCENTS && least > fmax(tolerance, usual); turn++) {
        for (int k = 0; k < r->n_vec; k++)
            for (int j = 0; j < r->n_vec; j++) here[k] -= rate * r->inverse[k][j] * p[j];
        round_at(r, c, here, start, p, move);
        const double size = size_of(r, p);
        if (size <= least) {
            least = size;
            memcpy(best, here, sizeof best);
            rate *= 1.5;
        } else {
            memcpy(here, best, sizeof best);
            round_at(r, c, here, start, p, move);
            rate /= 2;
        }
    }
    memcpy(price, best, sizeof best);
    round_at(r, c, best, start, p, move);
}

static void first_level(Several *r, const Column *c, int n, const int8_t *move) {
    Level *l = &r->level[0];
    l->n = n;
    l->n_part = 1;
    for (int a = 0; a < n; a++) {
        const Move *m = &r->all[a];
        const double step = m->by * (double)move_step(c, move, m->i, m->by);
        for (int k = 0; k < r->n_vec; k++) l->along[k][a] = (float)(step * take_of(r, k, m->i));
        l->part[a][0] = (uint16_t)a;
        r->used[a] = false;
        if (r->first[m->i] == NONE) r->first[m->i] = a;
        r->element[a] = r->first[m->i];
    }
    for (int a = 0; a < n; a++) r->first[r->all[a].i] = NONE;
}

static bool apart(const Several *r, const Level *l, int a, int b) {
    for (int i = 0; i < l->n_part; i++)
        for (int j = 0; j < l->n_part; j++)
            if (r->element[l->part[a][i]] == r->element[l->part[b][j]]) return false;
    return true;
}

// sizes[b] = |q + along b|^2 for b < n
static void sizes_with(const Several *r, const Level *l, const float *q, int n, float *sizes) {
    for (int b = 0; b < n; b++) sizes[b] = (q[0] + l->along[0][b]) * (q[0] + l->along[0][b]);
    for (int k = 1; k < r->n_vec; k++)
        for (int b = 0; b < n; b++) sizes[b] += (q[k] + l->along[k][b]) * (q[k] + l->along[k][b]);
}

// The one or two of a level whose sum leaves least of p; false: none leaves less than is there.
static bool best_fit(const Several *r, const Level *l, const double *p, int best[2]) {
    float least = 0, sizes[MOST], q[MAX_VEC];
    for (int k = 0; k < r->n_vec; k++) least += (float)(p[k] * p[k]);
    best[0] = best[1] = NONE;
    for (int a = NONE; a < l->n; a++) {
        const int n = a == NONE ? l->n : a;
        for (int k = 0; k < r->n_vec; k++) q[k] = (float)p[k] + (a == NONE ? 0 : l->along[k][a]);
        sizes_with(r, l, q, n, sizes);
        for (int b = 0; b < n; b++)
            if (sizes[b] < least && (a == NONE || apart(r, l, a, b))) {
                least = sizes[b];
                best[0] = b;
                best[1] = a;
            }
    }
    return best[0] != NONE;
}

static void apply(Several *r, const Level *l, int which, double *p, int8_t *move) {
    for (int k = 0; k < r->n_vec; k++) p[k] += (double)l->along[k][which];
    for (int i = 0; i < l->n_part; i++) {
        const Move *m = &r->all[l->part[which][i]];
        move[m->i] = (int8_t)(move[m->i] + m->by);
        r->used[r->element[l->part[which][i]]] = true;
    }
}

// Takes out what has a part that is used.
static void drop_used(const Several *r, Level *l) {
    int n = 0;
    for (int a = 0; a < l->n; a++) {
        bool free_ = true;
        for (int i = 0; i < l->n_part; i++) free_ = free_ && !r->used[r->element[l->part[a][i]]];
        if (!free_) continue;
        for (int k = 0; k < r->n_vec; k++) l->along[k][n] = l->along[k][a];
        memmove(l->part[n], l->part[a], sizeof l->part[n]);
        n++;
    }
    l->n = n;
}

// A binary heap with the largest on top.
static void sift(Pair *h, int n, int at) {
    const Pair x = h[at];
    for (int child; (child = 2 * at + 1) < n; at = child) {
        child += child + 1 < n && h[child + 1].size > h[child].size;
        if (!(h[child].size > x.size)) break;
        h[at] = h[child];
    }
    h[at] = x;
}

// The `most` smallest sums of two of a level.
static void next_level(Several *r, int most, const Level *from, Level *to) {
    int n = 0;
    float sizes[MOST], q[MAX_VEC];
    for (int a = 1; a < from->n; a++) {
        for (int k = 0; k < r->n_vec; k++) q[k] = from->along[k][a];
        sizes_with(r, from, q, a, sizes);
        for (int b = 0; b < a; b++) {
            if (n == most && !(sizes[b] < r->pair[0].size)) continue;
            if (!apart(r, from, a, b)) continue;
            if (n < most) {
                r->pair[n++] = (Pair){sizes[b], a, b};
                for (int at = n / 2 - 1; n == most && at >= 0; at--) sift(r->pair, n, at);
            } else {
                r->pair[0] = (Pair){sizes[b], a, b};
                sift(r->pair, n, 0);
            }
        }
    }
    to->n = n;
    to->n_part = 2 * from->n_part;
    for (int c = 0; c < n; c++) {
        const Pair *x = &r->pair[c];
        for (int k = 0; k < r->n_vec; k++) to->along[k][c] = from->along[k][x->a] + from->along[k][x->b];
        memcpy(to->part[c], from->part[x->a], sizeof to->part[0][0] * (size_t)from->n_part);
        memcpy(to->part[c] + from->n_part, from->part[x->b], sizeof to->part[0][0] * (size_t)from->n_part);
    }
}

// By the n cheapest moves.
static bool combine(Several *r, const Column *c, int n, double *p, double tolerance, int8_t *move) {
    first_level(r, c, n, move);
    Level *now = &r->level[0], *next = &r->level[1];
    for (int level = 0;; level++) {
        int best[2];
        while (best_fit(r, now, p, best)) {
            for (int k = 0; k < 2; k++)
                if (best[k] != NONE) apply(r, now, best[k], p, move);
            if (size_of(r, p) <= tolerance) return true;
            drop_used(r, now);
        }
        if (level + 1 == LEVELS) return false;
        next_level(r, n, now, next);
        Level *const t = now;
        now = next;
        next = t;
    }
}

static int by_cost(const void *a, const void *b) {
    const Move *x = a, *y = b;
    return x->cost != y->cost ? (x->cost > y->cost) - (x->cost < y->cost) : (x->i > y->i) - (x->i < y->i);
}

// By a search among the cheapest moves, one of each element. n: how many there are in r->all.
static bool search(Several *r, const Column *c, int n, double *p, double tolerance, int8_t *move) {
    const int n_near = min_int(n, 2 * SUBSETS_MOVES);
    const float *along[MAX_VEC];
    bool taken[SUBSETS_MOVES];
    int k = 0;
    moves_select(r->all, n, n_near);
    qsort(r->all, (size_t)n_near, sizeof *r->all, by_cost);
    for (int a = 0; a < n_near && k < SUBSETS_MOVES; a++) {
        const Move *m = &r->all[a];
        if (r->first[m->i] != NONE) continue;
        r->first[m->i] = k;
        const double step = m->by * (double)move_step(c, move, m->i, m->by);
        for (int v = 0; v < r->n_vec; v++) r->along[v][k] = (float)(step * take_of(r, v, m->i));
        r->cost[k] = m->cost;
        r->moves[k++] = *m;
    }
    for (int a = 0; a < k; a++) r->first[r->moves[a].i] = NONE;
    for (int v = 0; v < r->n_vec; v++) along[v] = r->along[v];
    if (!subsets_search(r->subsets, k, r->cost, along, p, tolerance, r->n <= FEW_ROWS ? SIZE_FEW : SIZE, taken)) return false;
    for (int a = 0; a < k; a++) {
        if (!taken[a]) continue;
        const Move *m = &r->moves[a];
        const double step = m->by * (double)move_step(c, move, m->i, m->by);
        for (int v = 0; v < r->n_vec; v++) p[v] += step * take_of(r, v, m->i);
        move[m->i] = (int8_t)(move[m->i] + m->by);
    }
    return size_of(r, p) <= tolerance;
}

bool several_column(Several *r, const Column *c, double *p, double tolerance, int8_t *move) {
    double price[MAX_VEC], start[MAX_VEC];
    ascend(r, c, tolerance, price, p, move);
    if (size_of(r, p) <= tolerance) return true;
    for (int i = 0; i < r->n; i++) {
        double worth = 0, size = 0;
        for (int k = 0; k < r->n_vec; k++) {
            worth += 2 * price[k] * take_of(r, k, i);
            size += fabs(take_of(r, k, i));
        }
        r->worth[i] = size > 0 ? (float)worth : NAN;
    }
    const int n = moves_from(c, r->n, r->worth, move, r->all);
    memcpy(start, p, sizeof start);
    memcpy(r->start, move, (size_t)r->n);
    if (search(r, c, n, p, tolerance, move)) return true;
    memcpy(p, start, sizeof *p * (size_t)r->n_vec);
    memcpy(move, r->start, (size_t)r->n);
    for (int k = MOST; k >= LEAST; k /= 2) moves_select(r->all, k == MOST ? n : min_int(n, 2 * k), k);
    for (int k = LEAST;; k *= 2) { // the fewer to choose from, the cheaper
        if (combine(r, c, min_int(n, k), p, tolerance, move)) return true;
        if (k >= n || k == MOST) return false;
        memcpy(p, start, sizeof *p * (size_t)r->n_vec);
        memcpy(move, r->start, (size_t)r->n);
    }
}
