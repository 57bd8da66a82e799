// undo.c: see undo.h
#include "undo.h"

#include <inttypes.h>
#include <stdlib.h>

#include "sha256.h"

static const char ARCHITECTURE[] = "abliterate.undo";
enum { TYPE_I8 = 24 }; // of no use for weights, hence not in tensor.h
enum { CHUNK = 1 << 20 };

bool undo_write(const char *path, const Gguf *g, const UndoPiece *piece, uint64_t n_piece, const char original[65], const char edited[65],
                void (*note)(const void *ctx, GgufWriter *undo), const void *ctx, Err *e) {
    GgufWriter *w;
    uint64_t *at = malloc(sizeof *at * ((size_t)n_piece + 1)), *n = malloc(sizeof *n * ((size_t)n_piece + 1));
    bool ok = (at && n) || err_set(e, "%s: no memory for %" PRIu64 " pieces", path, n_piece);
    if (ok) ok = gguf_writer_open(&w, path, e);
    if (!ok) {
        free(at);
        free(n);
        return false;
    }
    for (uint64_t i = 0; i < n_piece; i++) at[i] = piece[i].at, n[i] = piece[i].n;
    gguf_set_string(w, "general.architecture", ARCHITECTURE, sizeof ARCHITECTURE - 1);
    gguf_set_string(w, "abliterate.undo.original", original, 64);
    gguf_set_string(w, "abliterate.undo.edited", edited, 64);
    gguf_set_array(w, "abliterate.undo.at", GGUF_U64, at, n_piece);
    gguf_set_array(w, "abliterate.undo.bytes", GGUF_U64, n, n_piece);
    if (note) note(ctx, w);
    free(at);
    free(n);
    for (uint64_t i = 0; i < n_piece; i++)
        if (piece[i].at == UNDO_STORED) gguf_add_tensor(w, piece[i].name, TYPE_I8, 1, &piece[i].n);
    for (uint64_t i = 0; ok && i < n_piece; i++) {
        if (piece[i].at != UNDO_STORED) continue;
        ok = gguf_writer_data(w, piece[i].p, (size_t)piece[i].n, e) && gguf_writer_next(w, e);
        gguf_forget(g, piece[i].p, piece[i].n);
    }
    if (ok) return gguf_writer_close(w, e);
    gguf_writer_abort(w);
    return false;
}

static bool hash_of(const Gguf *g, const char *key, char out[65], Err *e) {
    GgufString s = {0};
    if (!gguf_get_string(g, key, &s, e)) return false;
    if (s.n != 64) return err_set(e, "%s: %s has %" PRIu64 " characters, expected a SHA-256 of 64", g->path, key, s.n);
    memcpy(out, s.p, 64);
    out[64] = 0;
    return true;
}

// Element i of the array of lengths or places.
static uint64_t u64_of(const GgufKey *k, uint64_t i) {
    uint64_t v;
    memcpy(&v, k->raw + i * sizeof v, sizeof v);
    return v;
}

bool undo_open(Undo *u, const char *path, Err *e) {
    *u = (Undo){0};
    GgufString arch = {0};
    if (!gguf_open(&u->g, path, e) || !gguf_get_string(&u->g, "general.architecture", &arch, e)) return false;
    if (arch.n != sizeof ARCHITECTURE - 1 || memcmp(arch.p, ARCHITECTURE, (size_t)arch.n))
        return err_set(e, "%s: architecture '%.*s', expected '%s'", path, (int)(arch.n < 40 ? arch.n : 40), arch.n ? arch.p : "", ARCHITECTURE);
    if (!hash_of(&u->g, "abliterate.undo.original", u->original, e) || !hash_of(&u->g, "abliterate.undo.edited", u->edited, e)) return false;
    const GgufKey *at = gguf_key(&u->g, "abliterate.undo.at"), *n = gguf_key(&u->g, "abliterate.undo.bytes");
    if (!at || !n || at->type != GGUF_ARRAY || n->type != GGUF_ARRAY || at->elem != GGUF_U64 || n->elem != GGUF_U64 || at->n != n->n)
        return err_set(e, "%s: abliterate.undo.at and .bytes are not two arrays of as many u64", path);
    u->piece = calloc((size_t)at->n + 1, sizeof *u->piece);
    if (!u->piece) return err_set(e, "%s: no memory for %" PRIu64 " pieces", path, at->n);
    uint64_t used = 0; // tensors
    for (; u->n_piece < at->n; u->n_piece++) {
        UndoPiece *p = &u->piece[u->n_piece];
        *p = (UndoPiece){.at = u64_of(at, u->n_piece), .n = u64_of(n, u->n_piece)};
        if (!size_add(u->n, p->n, &u->n) || u->n > INT64_MAX) return err_set(e, "%s: its pieces have 2^63 bytes or more", path);
        if (p->at != UNDO_STORED) continue;
        const GgufTensor *t = used < u->g.n_tensor ? &u->g.tensors[used++] : NULL;
        if (!t || t->bytes != p->n)
            return err_set(e, "%s: piece %" PRIu64 " has %" PRIu64 " bytes, its tensor %" PRIu64, path, u->n_piece, p->n, t ? t->bytes : 0);
        p->name = t->name_z;
        p->p = t->data;
    }
    return true;
}

void undo_close(Undo *u) {
    gguf_close(&u->g);
    free(u->piece);
    *u = (Undo){0};
}

bool undo_is_for(const Undo *u, const uint8_t *edited, uint64_t n) {
    char hex[65];
    sha256_of(edited, (size_t)n, hex);
    return !strcmp(hex, u->edited);
}

bool undo_tells(const Undo *u, char *out, size_t n) {
    bool any = false;
    for (uint64_t i = 0; i < u->g.n_key; i++) {
        const GgufKey *k = &u->g.keys[i];
        int edit, end = 0;
        char name[64], key[64];
        snprintf(name, sizeof name, "%.*s", (int)(k->key.n < 63 ? k->key.n : 63), k->key.p);
        if (sscanf(name, "abliterate.edit.%d.direction%n", &edit, &end) < 1 || !end || name[end] || !k->strings || !k->n) continue;
        float strength = 1;
        GgufString layers = {0};
        Err e;
        snprintf(key, sizeof key, "abliterate.edit.%d.strength", edit);
        if (!gguf_get_float(&u->g, key, &strength, &e)) continue;
        snprintf(key, sizeof key, "abliterate.edit.%d.layers", edit);
        if (!gguf_get_string(&u->g, key, &layers, &e)) continue;
        snprintf(out, n, "direction %.*s...%s, strength %g, layers %.*s", (int)(k->strings[0].n < 12 ? k->strings[0].n : 12), k->strings[0].p, k->n > 1 ? " and others" : "",
                 (double)strength, (int)(layers.n < 16 ? layers.n : 16), layers.n ? layers.p : "");
        any = true;
    }
    return any;
}

bool undo_each(const Undo *u, const uint8_t *edited, uint64_t n, bool (*take)(void *ctx, const uint8_t *p, uint64_t n, Err *e), void *ctx, Err *e) {
    bool ok = true;
    for (uint64_t i = 0; ok && i < u->n_piece; i++) {
        const UndoPiece *p = &u->piece[i];
        if (p->at != UNDO_STORED && (p->at > n || p->n > n - p->at))
            return err_set(e, "%s: piece %" PRIu64 " lies at %" PRIu64 " and has %" PRIu64 " bytes, the edited file %" PRIu64, u->g.path, i, p->at, p->n, n);
        const uint8_t *bytes = p->at == UNDO_STORED ? p->p : edited + p->at;
        for (uint64_t k = 0, chunk; ok && k < p->n; k += chunk) {
            chunk = p->n - k < CHUNK ? p->n - k : CHUNK;
            ok = take(ctx, bytes + k, chunk, e);
            if (p->at == UNDO_STORED) gguf_forget(&u->g, bytes + k, chunk);
        }
    }
    return ok;
}
