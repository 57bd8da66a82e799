// subsets.c: see subsets.h.
//
// How many subsets of the moves come within the tolerance by chance? A sum of moves is about normally distributed over the n_vec
// components with deviations d_k, so that of N subsets N V(tolerance) / prod(sqrt(2 pi) d_k) do, V the volume of a ball. A column
// of 256 weights in Q4_K needs N = 2^24 for two vectors and 2^38 for three. The cost of the nearest other point of a rounded weight
// is uniform between 0 and a squared step, so the cheapest 2^24 subsets cost 0.4 squared steps on average and the cheapest 2^38 one,
// where rounding the column has cost 256 / 12: no way of choosing codes adds less than 0.9 % and 2.2 % to its root mean square.
// (Sums of large moves that nearly cancel, as in repair_several.c, add 13 % and 58 %; this search 1.6 % and 3.3 %.)
//
// The subsets are those that consist of one of the `size` cheapest subsets of each of four groups of moves: size^4. They are not
// formed, but met in the middle, window by window (Schroeppel and Shamir 1981, "A T = O(2^(n/2)), S = O(2^(n/4)) algorithm"): sums
// a + b whose first component lies within the window go into a table by their second one; every c + d in it is looked up there.
#include "subsets.h"

#include <math.h>
#include <stdlib.h>

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF // the same files from every compiler
#endif

enum { GROUPS = 4, GROUP_MOVES = SUBSETS_MOVES / GROUPS, LEAST = 32, MOST = 4096, WINDOW = 8192, ROOM = 4 * WINDOW, CELL_BITS = 14, CELLS = 1 << CELL_BITS,
       BIT_BITS = 18, BITS = 1 << BIT_BITS, NONE = 0xffff };
#define ENOUGH 0.25 // solutions to expect where it is tried

typedef struct {
    float along[MAX_VEC], cost;
    uint32_t moves; // of its group, as bits
} Subset;

typedef struct {
    Subset *of;             // [n]
    int n;
    float *first, *second, *third; // [n] their components again, which is all that most of the work looks at; third: 0 if there is none
    int *from;              // [n] of the other list: where the window begins
} List;

typedef struct {
    float second;
    uint16_t a, b, next; // next: of the same cell
} Pair;

struct Subsets {
    int n_vec;
    List list[GROUPS];
    Subset *spare;  // [MOST + 1]
    Pair *pair;     // [ROOM]
    uint16_t *cell; // [CELLS] the first pair of each
    int64_t left;   // pairs of pairs that may still be compared: where many sums are alike, one of them is soon found, or none
    uint64_t *bit;  // [BITS / 64] of a finer hash: is there any?
};

Subsets *subsets_open(int n_vec) {
    Subsets *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    s->n_vec = n_vec;
    s->spare = malloc(sizeof *s->spare * (MOST + 1));
    s->pair = malloc(sizeof *s->pair * ROOM);
    s->cell = malloc(sizeof *s->cell * CELLS);
    s->bit = malloc(sizeof *s->bit * (BITS / 64));
    bool ok = s->spare && s->pair && s->cell && s->bit;
    for (int g = 0; g < GROUPS; g++) {
        s->list[g].of = malloc(sizeof *s->list[g].of * (MOST + 1));
        s->list[g].from = malloc(sizeof *s->list[g].from * MOST);
        s->list[g].first = malloc(sizeof *s->list[g].first * 3 * MOST);
        s->list[g].second = s->list[g].first + MOST;
        s->list[g].third = s->list[g].second + MOST;
        ok = ok && s->list[g].of && s->list[g].from && s->list[g].first;
    }
    if (ok) return s;
    subsets_close(s);
    return NULL;
}

void subsets_close(Subsets *s) {
    for (int g = 0; s && g < GROUPS; g++) free(s->list[g].of), free(s->list[g].from), free(s->list[g].first);
    if (s) free(s->spare), free(s->pair), free(s->cell), free(s->bit);
    free(s);
}

// The `size` cheapest subsets of a group's moves, in ascending order: with each further move, those without it and those with it.
static void cheapest(Subsets *s, List *l, int group, int size, int n, const float *cost, const float *const *along) {
    l->of[0] = (Subset){.moves = 0};
    l->n = 1;
    for (int m = group, bit = 0; m < n; m += GROUPS, bit++) {
        int a = 0, b = 0, k = 0;
        for (; k < size && (a < l->n || b < l->n); k++) {
            if (a < l->n && (b == l->n || l->of[a].cost <= l->of[b].cost + cost[m])) {
                s->spare[k] = l->of[a++];
                continue;
            }
            Subset *to = &s->spare[k];
            *to = l->of[b++];
            to->cost += cost[m];
            to->moves |= 1u << bit;
            for (int v = 0; v < s->n_vec; v++) to->along[v] += along[v][m];
        }
        Subset *const t = l->of;
        l->of = s->spare;
        s->spare = t;
        l->n = k;
    }
}

static int by_first(const void *a, const void *b) {
    const Subset *x = a, *y = b;
    return x->along[0] != y->along[0] ? (x->along[0] > y->along[0]) - (x->along[0] < y->along[0]) : (x->moves > y->moves) - (x->moves < y->moves);
}

// In ascending order of the first component.
static void sort(List *l) {
    qsort(l->of, (size_t)l->n, sizeof *l->of, by_first);
    for (int i = 0; i < l->n; i++) l->first[i] = l->of[i].along[0], l->second[i] = l->of[i].along[1], l->third[i] = l->of[i].along[2];
}

// The solutions to expect of all sums, if these are distributed normally. Moves that are too small to reach -p give none.
static double expected(const Subsets *s, const double *p, double tolerance) {
    double n = pow(tolerance, s->n_vec) * pow(3.14159265358979, 0.5 * s->n_vec) / tgamma(0.5 * s->n_vec + 1);
    for (int v = 0; v < s->n_vec; v++) {
        double square = tolerance * tolerance, mean = p[v];
        for (int g = 0; g < GROUPS; g++) {
            double sum = 0, sum2 = 0;
            for (int i = 0; i < s->list[g].n; i++) {
                const double x = s->list[g].of[i].along[v];
                sum += x;
                sum2 += x * x;
            }
            square += sum2 / s->list[g].n - sum / s->list[g].n * (sum / s->list[g].n);
            mean += sum / s->list[g].n;
        }
        n *= exp(-mean * mean / (2 * square)) / sqrt(2 * 3.14159265358979 * square);
    }
    for (int g = 0; g < GROUPS; g++) n *= s->list[g].n;
    return n;
}

static void begin(List *x) { memset(x->from, 0, sizeof *x->from * (size_t)x->n); }

// Where sums of element i of x with one of y reach `low` in the first component. From window to window it only grows.
static int window_from(List *x, const List *y, int i, float low) {
    int j = x->from[i];
    while (j < y->n && x->first[i] + y->first[j] < low) j++;
    return x->from[i] = j;
}

typedef struct {
    float cost;
    int of[GROUPS];
} Found;

// Where the second and the third component lie in a grid, over and over; of two vectors the third is 0. So wide for three that a
// cell is mostly empty, and that few sums lie so near its border that the next one counts, too.
typedef struct {
    float least[2], inverse; // 1 / width
} Grid;

static int32_t place(const Grid *g, int k, float x) { return (int32_t)((x - g->least[k]) * g->inverse); }
static uint32_t key_of(int32_t second, int32_t third) { return ((uint32_t)second * 0x9E3779B1u) ^ ((uint32_t)third * 0x85EBCA6Bu); } // odd numbers: only the top is mixed

// All a + b of the window into the table. What is more than there is room for is not looked at.
static int fill(Subsets *s, float low, float high, const Grid *g) {
    List *x = &s->list[0], *y = &s->list[1];
    int n = 0;
    memset(s->cell, 0xff, sizeof *s->cell * CELLS);
    memset(s->bit, 0, sizeof *s->bit * (BITS / 64));
    for (int i = 0; i < x->n; i++)
        for (int j = window_from(x, y, i, low); j < y->n && x->first[i] + y->first[j] < high && n < ROOM; j++) {
            const float second = x->second[i] + y->second[j];
            const uint32_t key = key_of(place(g, 0, second), place(g, 1, x->third[i] + y->third[j]));
            uint16_t *cell = &s->cell[key >> (32 - CELL_BITS)];
            s->bit[key >> (32 - BIT_BITS) >> 6] |= 1ull << (key >> (32 - BIT_BITS) & 63);
            s->pair[n] = (Pair){second, (uint16_t)i, (uint16_t)j, *cell};
            *cell = (uint16_t)n++;
        }
    return n;
}

// a + b against c + d, whose second components are near: the cheapest of those that are near in all.
static void consider(const Subsets *s, const Pair *p, int c, int d, float within, Found *best) {
    const Subset *const of[GROUPS] = {&s->list[0].of[p->a], &s->list[1].of[p->b], &s->list[2].of[c], &s->list[3].of[d]};
    const float cost = of[0]->cost + of[1]->cost + of[2]->cost + of[3]->cost;
    float square = 0;
    for (int v = 0; v < s->n_vec; v++) {
        const float off = of[0]->along[v] + of[1]->along[v] - (of[2]->along[v] + of[3]->along[v]);
        square += off * off;
    }
    if (square <= within && cost < best->cost) *best = (Found){cost, {p->a, p->b, c, d}};
}

// All c + d of the window: is there an a + b so near?
static void look_up(Subsets *s, float low, float high, const Grid *g, float tolerance, Found *best) {
    List *x = &s->list[2], *y = &s->list[3];
    for (int i = 0; i < x->n; i++)
        for (int j = window_from(x, y, i, low); j < y->n && x->first[i] + y->first[j] < high; j++) {
            const float second = x->second[i] + y->second[j], third = x->third[i] + y->third[j];
            const int32_t from[2] = {place(g, 0, second - tolerance), place(g, 1, third - tolerance)}, to[2] = {place(g, 0, second + tolerance), place(g, 1, third + tolerance)};
            for (int32_t a = from[0]; a <= to[0]; a++)
                for (int32_t b = from[1]; b <= to[1]; b++) {
                    const uint32_t key = key_of(a, b);
                    if (!(s->bit[key >> (32 - BIT_BITS) >> 6] >> (key >> (32 - BIT_BITS) & 63) & 1)) continue;
                    for (int q = s->cell[key >> (32 - CELL_BITS)]; q != NONE; q = s->pair[q].next) {
                        if (s->left-- <= 0) return;
                        if (fabsf(s->pair[q].second - second) <= tolerance) consider(s, &s->pair[q], i, j, tolerance * tolerance, best);
                    }
                }
        }
}

static bool meet(Subsets *s, double tolerance, Found *best) {
    double square = 0, low = 0, high = 0, low2 = 0, high2 = 0;
    for (int g = 0; g < 2; g++) {
        const List *l = &s->list[g], *m = &s->list[g + 2];
        double sum = 0, sum2 = 0;
        for (int i = 0; i < l->n; i++) {
            sum += (double)l->of[i].along[0];
            sum2 += (double)l->of[i].along[0] * (double)l->of[i].along[0];
        }
        square += sum2 / l->n - sum / l->n * (sum / l->n);
        low += (double)l->of[0].along[0];
        high += (double)l->of[l->n - 1].along[0];
        low2 += (double)m->of[0].along[0];
        high2 += (double)m->of[m->n - 1].along[0];
    }
    // So wide that where they lie closest, about WINDOW sums fall into one; at least so that borders do not count.
    const double width = fmax(WINDOW * sqrt(2 * 3.14159265358979 * square) / ((double)s->list[0].n * s->list[1].n), 16 * tolerance);
    Grid grid = {.inverse = (float)(1 / ((s->n_vec > 2 ? 32 : 4) * tolerance))};
    for (int k = 0; k < 2; k++)
        for (int g = 0; g < GROUPS; g += 2) { // below every sum of two
            float sum = (float)(-8 * tolerance);
            for (int h = g; h < g + 2; h++) {
                const List *l = &s->list[h];
                const float *x = k ? l->third : l->second;
                float least = 0;
                for (int i = 0; i < l->n; i++) least = fminf(least, x[i]);
                sum += least;
            }
            grid.least[k] = fminf(grid.least[k], sum);
        }
    for (int g = 0; g < GROUPS; g += 2) begin(&s->list[g]);
    s->left = 8 * (int64_t)s->list[0].n * s->list[1].n;
    for (double at = fmax(low, low2 - tolerance); at <= fmin(high, high2 + tolerance); at += width)
        if (fill(s, (float)at, (float)(at + width), &grid)) look_up(s, (float)(at - tolerance), (float)(at + width + tolerance), &grid, (float)tolerance, best);
    return best->cost < INFINITY;
}

// Scales of a damaged file may be anything.
static bool sensible(const Subsets *s, int n, const float *cost, const float *const *along, const double *p, double tolerance) {
    double size = 0;
    for (int v = 0; v < s->n_vec; v++) {
        size += fabs(p[v]);
        for (int i = 0; i < n; i++) size += fabs((double)along[v][i]);
    }
    for (int i = 0; i < n; i++)
        if (!isfinite(cost[i])) return false;
    return tolerance > 0 && size < 1e8 * tolerance;
}

bool subsets_search(Subsets *s, int n, const float *cost, const float *const *along, const double *p, double tolerance, int most, bool *taken) {
    if (!sensible(s, n, cost, along, p, tolerance)) return false;
    for (int size = LEAST; size <= min_int(most, MOST); size *= 2) {
        for (int g = 0; g < GROUPS; g++) cheapest(s, &s->list[g], g, size, n, cost, along);
        const double hope = expected(s, p, tolerance);
        if (hope * pow((double)most / size, GROUPS) < ENOUGH) return false;
        if (hope < ENOUGH) continue;
        for (int g = 0; g < GROUPS; g++) {
            for (int i = 0; g > 1 && i < s->list[g].n; i++) // c and d: their negative; p to one of them
                for (int v = 0; v < s->n_vec; v++) s->list[g].of[i].along[v] = -s->list[g].of[i].along[v] - (g == 2 ? (float)p[v] : 0);
            sort(&s->list[g]);
        }
        Found best = {.cost = INFINITY};
        if (!meet(s, 0.999 * tolerance, &best)) {
            if (hope > 4) return false; // then they are not distributed normally
            continue;
        }
        memset(taken, 0, sizeof *taken * (size_t)n);
        for (int g = 0; g < GROUPS; g++)
            for (int bit = 0; bit < GROUP_MOVES; bit++)
                if (s->list[g].of[best.of[g]].moves >> bit & 1) taken[g + GROUPS * bit] = true;
        return true;
    }
    return false;
}
