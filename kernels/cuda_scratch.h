// cuda_scratch.h: how much scratch the cuda backend reserves for Limits, for plans for cards that are not there. Laid out by `carve` (cuda.cu), whose sum
// this repeats, and with cuBLAS; a test holds the two together. Without what is borrowed and lent.
#ifndef CUDA_SCRATCH_H
#define CUDA_SCRATCH_H

#include "backend.h"

static inline uint64_t cuda_scratch_bytes(const Limits *l) {
    enum { ROUNDED = 48, N_SM = 30, PARTS = 128, GEMM_TILE = 32 << 20, GEMM_WORK = 4 << 20, TOP_SLICE_KEYS = 32 }; // of 32 numbers; an RTX 3060's; gemm_cuda.cu
    const int n_col = l->n_col > l->n_embd ? l->n_col : l->n_embd;
    const uint64_t rows = (uint64_t)l->n_rows, slots = rows * (uint64_t)l->n_expert_used, ffx = (uint64_t)l->n_ff_expert;
    const uint64_t wide = ffx > (uint64_t)l->n_embd ? ffx : (uint64_t)l->n_embd;
    const uint64_t always = ROUNDED * ((uint64_t)n_col + 31) / 32 * (rows + 1) + (uint64_t)l->n_vocab / TOP_SLICE_KEYS * sizeof(Likely) * 2;
    const uint64_t attention = (uint64_t)N_SM * PARTS * (uint64_t)(l->head_dim + 2) * sizeof(float);
    const uint64_t gemm = GEMM_TILE + GEMM_WORK + 2 * rows * (uint64_t)n_col;
    const uint64_t experts = slots * (ROUNDED * ((ffx + 31) / 32) + sizeof(int) + sizeof(float) * (ffx + wide));
    const uint64_t most = attention > gemm ? attention : gemm;
    return always + (experts > most ? experts : most);
}

#endif
