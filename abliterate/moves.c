// moves.c: see moves.h
#include "moves.h"

#include <math.h>

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF // the same files from every compiler
#endif

int moves_from(const Column *c, int n, const float *worth, const int8_t *move, Move *out) {
    int n_move = 0;
    for (int i = 0; i < n; i++) {
        if (isnan(worth[i])) continue;
        for (int by = -1; by <= 1; by += 2) {
            if (move[i] == by) continue;
            const float step = move_step(c, move, i, by), from = c->value[i] - c->target[i] + (float)move[i] * step, to = from + (float)by * step;
            if (step > 0) out[n_move++] = (Move){to * to - from * from - worth[i] * (float)by * step, i, by};
        }
    }
    return n_move;
}

void moves_select(Move *m, int n, int k) { // Hoare's selection
    for (int low = 0, high = n - 1; low < high && k < n;) {
        const float pivot = m[low + (high - low) / 2].cost;
        int i = low, j = high;
        while (i <= j) {
            while (m[i].cost < pivot) i++;
            while (m[j].cost > pivot) j--;
            if (i > j) break;
            const Move t = m[i];
            m[i++] = m[j];
            m[j--] = t;
        }
        if (k <= j) high = j;
        else if (k >= i) low = i;
        else break;
    }
}
