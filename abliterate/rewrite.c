// rewrite.c: see rewrite.h
//
//   old   header | t0 gap | t1 gap | ... | tn gap | rest          gap: padding to the alignment (after the last one perhaps cut off)
//   new   header'| t0 gap | t1' gap'| ... | tn gap | added | rest
//
// The new header is written last: what is left of a killed run does not even begin like a GGUF file.
#include "rewrite.h"

#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

#include "console.h"
#include "outfile.h"
#include "sha256.h"
#include "undo.h"

enum { CHUNK = 1 << 20 };

// One tensor of the new file with the gap that follows.
typedef struct {
    uint64_t old_at, old_n, old_gap; // in the old file; an added one: all 0
    uint64_t at, n, gap;             // in the new one
    bool made;                       // its bytes come from make
} Part;

struct Rewriting {
    const Rewrite *r;
    Rewritten *f;
    OutFile out;
    const uint8_t *old;   // the old file [n_old]
    uint64_t n_old;
    uint8_t *header;      // of the new file [n_header]
    uint64_t n_header;
    Part *part;           // [n_part]
    uint64_t n_part;
    uint64_t rest_at, rest_n; // in the old file
    char (*made)[65];     // [n_part] SHA-256 of what make gave
    Sha256 before, sum;   // of the old file so far; of the tensor being made
    uint64_t got;         // bytes of it so far
    uint64_t expected;
    const char *name;
    Progress progress;
    double done, total;
};

static bool step(Rewriting *w, double cost, Err *e) {
    w->done += cost;
    if (!w->r->quiet) progress_step(&w->progress, w->done, w->total);
    return !interrupted || err_set(e, "%s: interrupted, nothing is written", w->r->path);
}

// ---- the layout ----

static uint64_t padding(uint64_t n, uint64_t alignment) { return -n % alignment; }

static bool make_header(Rewriting *w, uint64_t *offset, Err *e) {
    const Gguf *g = w->r->g;
    if (w->r->stamp) {
        free(w->header);
        return gguf_header_like(g, w->r->stamp, w->r->type, &w->header, &w->n_header, offset, e);
    }
    w->n_header = g->data_at;
    w->header = malloc((size_t)w->n_header);
    if (!w->header) return err_set(e, "%s: no memory for a header", w->r->path);
    memcpy(w->header, w->old, (size_t)w->n_header);
    for (uint64_t i = 0; i < g->n_tensor; i++) offset[i] = (uint64_t)((const uint8_t *)g->tensors[i].data - w->old) - g->data_at;
    return true;
}

// Sizes of tensors of the new file: from where they begin, since each begins where the one before ends, padded.
static uint64_t bytes_as(const GgufTensor *t, int type) {
    const TypeInfo *info = type_info(type);
    return t->ne[0] / (uint64_t)info->block * (uint64_t)info->bytes * t->ne[1] * t->ne[2] * t->ne[3];
}

static bool lay_out(Rewriting *w, uint64_t n_added, const uint64_t *added, Err *e) {
    const Gguf *g = w->r->g;
    const uint64_t align = g->alignment;
    w->n_part = g->n_tensor + n_added;
    w->part = calloc((size_t)w->n_part + 1, sizeof *w->part);
    w->made = calloc((size_t)w->n_part + 1, sizeof *w->made);
    uint64_t *offset = malloc(sizeof *offset * ((size_t)w->n_part + 1));
    bool ok = (w->part && w->made && offset) || err_set(e, "%s: no memory for %" PRIu64 " tensors", w->r->path, w->n_part);
    ok = ok && make_header(w, offset, e);
    uint64_t end = w->n_header, old_end = g->data_at;
    for (uint64_t i = 0; ok && i < w->n_part; i++) {
        Part *p = &w->part[i];
        if (i < g->n_tensor) {
            const GgufTensor *t = &g->tensors[i];
            const int type = w->r->type[i];
            p->old_at = (uint64_t)((const uint8_t *)t->data - w->old);
            p->old_n = t->bytes;
            const uint64_t next = i + 1 < g->n_tensor ? (uint64_t)((const uint8_t *)t[1].data - w->old) : w->n_old, pad = padding(t->bytes, align);
            p->old_gap = next - p->old_at - p->old_n;
            if (i + 1 == g->n_tensor && p->old_gap > pad) p->old_gap = pad;
            old_end = p->old_at + p->old_n + p->old_gap;
            p->made = type >= 0;
            p->n = p->made ? bytes_as(t, type) : t->bytes;
            p->gap = i + 1 == w->n_part && p->n == p->old_n ? p->old_gap : padding(p->n, align);
        } else {
            p->made = true;
            p->n = added[i - g->n_tensor];
            p->gap = padding(p->n, align);
        }
        p->at = w->n_header + offset[i];
        ok = p->at == end || err_set(e, "%s: tensor %" PRIu64 " would lie at %" PRIu64 ", expected %" PRIu64, w->r->path, i, p->at, end);
        end = p->at + p->n + p->gap;
    }
    w->rest_at = old_end;
    w->rest_n = w->n_old - old_end;
    w->f->bytes = end + w->rest_n;
    free(offset);
    return ok;
}

// ---- the first pass ----

bool rewrite_put(Rewriting *w, const void *p, size_t n, Err *e) {
    if (n > w->expected - w->got) return err_set(e, "%s: %s received %" PRIu64 " bytes and %zu more, expected %" PRIu64, w->r->path, w->name, w->got, n, w->expected);
    w->got += n;
    const char *from = p;
    for (size_t k; n; from += k, n -= k) {
        k = n < CHUNK ? n : CHUNK;
        sha256_add(&w->sum, from, k);
        if (!outfile_write(&w->out, from, k, e) || !step(w, w->r->cost * (double)k, e)) return false;
    }
    return true;
}

// Bytes of the old file, which the new one holds, too (copy), or not.
static bool pass_old(Rewriting *w, uint64_t at, uint64_t n, bool copy, Err *e) {
    const uint8_t *p = w->old + at;
    for (uint64_t done = 0; done < n; done += CHUNK) {
        const size_t k = n - done < CHUNK ? (size_t)(n - done) : CHUNK;
        sha256_add(&w->before, p + done, k);
        if ((copy && !outfile_write(&w->out, p + done, k, e)) || !step(w, (double)k, e)) return false;
        gguf_forget(w->r->g, p + done, k);
    }
    return true;
}

static bool put_zeros(Rewriting *w, uint64_t n, Err *e) {
    static const char zeros[4096];
    for (size_t k; n; n -= k) {
        k = n < sizeof zeros ? (size_t)n : sizeof zeros;
        if (!outfile_write(&w->out, zeros, k, e)) return false;
    }
    return true;
}

static bool make_part(Rewriting *w, uint64_t i, Err *e) {
    const Part *p = &w->part[i];
    w->got = 0;
    w->expected = p->n;
    w->name = i < w->r->g->n_tensor ? w->r->g->tensors[i].name_z : "an added tensor";
    sha256_start(&w->sum);
    if (!w->r->make(w->r->ctx, i, w, e)) return false;
    if (w->got != p->n) return err_set(e, "%s: %s received %" PRIu64 " bytes, expected %" PRIu64, w->r->path, w->name, w->got, p->n);
    sha256_end(&w->sum, w->made[i]);
    if (i >= w->r->g->n_tensor) return true;
    memcpy(w->f->hash[i][1], w->made[i], 65);
    return true;
}

static bool write_parts(Rewriting *w, Err *e) {
    sha256_start(&w->before);
    if (!pass_old(w, 0, w->r->g->data_at, false, e) || !put_zeros(w, w->n_header, e)) return false;
    for (uint64_t i = 0; i < w->n_part; i++) {
        const Part *p = &w->part[i];
        if (p->made && !make_part(w, i, e)) return false;
        if (p->made && p->old_n) sha256_of(w->old + p->old_at, (size_t)p->old_n, w->f->hash[i][0]);
        const uint64_t same = p->n == p->old_n ? (p->gap < p->old_gap ? p->gap : p->old_gap) : 0; // of the gap
        if (!pass_old(w, p->old_at, p->old_n, !p->made, e) || !pass_old(w, p->old_at + p->old_n, same, true, e) ||
            !pass_old(w, p->old_at + p->old_n + same, p->old_gap - same, false, e) || !put_zeros(w, p->gap - same, e))
            return false;
    }
    if (!pass_old(w, w->rest_at, w->rest_n, true, e)) return false;
    sha256_end(&w->before, w->f->before);
    if (w->r->hash_key) { // known only now, and as long as what stood for it
        const uint64_t n = w->n_header;
        uint64_t *offset = malloc(sizeof *offset * ((size_t)w->n_part + 1));
        gguf_set_string(w->r->stamp, w->r->hash_key, w->f->before, 64);
        const bool ok = (offset || err_set(e, "%s: no memory for a header", w->r->path)) && make_header(w, offset, e);
        free(offset);
        if (!ok || (w->n_header != n && !err_set(e, "%s: the header changes its size", w->r->path))) return false;
    }
    w->out.at = 0;
    return outfile_write(&w->out, w->header, (size_t)w->n_header, e);
}

// ---- the second pass ----

static bool differs(const Rewriting *w, const char *what, Err *e) {
    return err_set(e, "%s: read back, %s is not what was written: the disk or the memory is damaged", w->r->path, what);
}

// The next n bytes of the new file; against `same` if there is.
static bool read_new(Rewriting *w, Sha256 *all, const Gguf *g, uint64_t *at, uint64_t n, const uint8_t *same, const char *what, Err *e) {
    uint64_t n_new;
    const uint8_t *p = gguf_bytes(g, &n_new) + *at;
    if (n > n_new - *at) return differs(w, what, e);
    for (uint64_t done = 0; done < n; done += CHUNK) {
        const size_t k = n - done < CHUNK ? (size_t)(n - done) : CHUNK;
        sha256_add(all, p + done, k);
        if (same && memcmp(p + done, same + done, k)) return differs(w, what, e);
        if (!step(w, (double)k, e)) return false;
        gguf_forget(g, p + done, k);
        if (same) gguf_forget(w->r->g, same + done, k);
    }
    *at += n;
    return true;
}

static bool check_parts(Rewriting *w, const Gguf *g, Err *e) {
    Sha256 all;
    uint64_t at = 0;
    sha256_start(&all);
    if (!read_new(w, &all, g, &at, w->n_header, w->header, "the header", e)) return false;
    for (uint64_t i = 0; i < w->n_part; i++) {
        const Part *p = &w->part[i];
        const char *name = g->tensors[i].name_z;
        char hash[65];
        if (p->made) {
            sha256_of(g->tensors[i].data, (size_t)p->n, hash);
            if (strcmp(hash, w->made[i])) return differs(w, name, e);
        }
        if (!read_new(w, &all, g, &at, p->n, p->made ? NULL : w->old + p->old_at, name, e)) return false;
        const uint64_t same = p->n == p->old_n ? (p->gap < p->old_gap ? p->gap : p->old_gap) : 0;
        if (!read_new(w, &all, g, &at, same, w->old + p->old_at + p->old_n, name, e) || !read_new(w, &all, g, &at, p->gap - same, NULL, name, e)) return false;
    }
    if (!read_new(w, &all, g, &at, w->rest_n, w->old + w->rest_at, "what follows the tensors", e)) return false;
    sha256_end(&all, w->f->after);
    return true;
}

static bool check(Rewriting *w, Err *e) {
    Gguf g;
    if (!gguf_open(&g, w->out.tmp, e)) return false;
    const bool ok = (g.n_tensor == w->n_part && g.file_bytes == w->f->bytes) || differs(w, "the file", e);
    const bool same = ok && check_parts(w, &g, e);
    gguf_close(&g);
    return same;
}

// ---- the undo file ----

static uint64_t n_header_stored(const Rewriting *w) { return w->r->stamp ? w->r->g->data_at : 0; }

static uint64_t undo_bytes(const Rewriting *w) {
    uint64_t n = n_header_stored(w);
    for (uint64_t i = 0; i < w->r->g->n_tensor; i++)
        if (w->part[i].made) n += w->part[i].old_n + w->part[i].old_gap + 160; // its info and padding
    return n + 4096;
}

typedef struct {
    const Rewriting *w;
    const Gguf *g; // the new file
    uint64_t at;
} Comparison;

static bool compare(void *ctx, const uint8_t *p, uint64_t n, Err *e) {
    Comparison *c = ctx;
    if (n > c->w->n_old - c->at || memcmp(p, c->w->old + c->at, (size_t)n)) return err_set(e, "%s: read back, it does not give the original", c->w->r->undo);
    gguf_forget(c->w->r->g, c->w->old + c->at, n);
    gguf_forget(c->g, p, n);
    c->at += n;
    return !interrupted || err_set(e, "%s: interrupted, nothing is written", c->w->r->path);
}

static bool check_undo(const Rewriting *w, Err *e) {
    Undo u = {0};
    Gguf g = {0};
    Comparison c = {.w = w, .g = &g};
    bool ok = undo_open(&u, w->r->undo, e) && gguf_open(&g, w->out.tmp, e);
    if (ok) {
        uint64_t n;
        const uint8_t *p = gguf_bytes(&g, &n);
        ok = undo_each(&u, p, n, compare, &c, e) && (c.at == w->n_old || err_set(e, "%s: gives %" PRIu64 " bytes of the original's %" PRIu64, w->r->undo, c.at, w->n_old));
    }
    undo_close(&u);
    gguf_close(&g);
    return ok;
}

static void add(UndoPiece *piece, uint64_t *n, uint64_t at, uint64_t bytes, const char *name, const void *p) {
    UndoPiece *last = *n ? &piece[*n - 1] : NULL;
    if (!bytes) return;
    if (at != UNDO_STORED && last && last->at != UNDO_STORED && last->at + last->n == at) last->n += bytes;
    else piece[(*n)++] = (UndoPiece){at, bytes, name, p};
}

static bool write_undo(const Rewriting *w, Err *e) {
    UndoPiece *piece = calloc((size_t)w->n_part + 2, sizeof *piece);
    if (!piece) return err_set(e, "%s: no memory for an undo file", w->r->path);
    uint64_t n = 0;
    const uint64_t header = n_header_stored(w);
    add(piece, &n, header ? UNDO_STORED : 0, w->r->g->data_at, "abliterate.header", w->old);
    for (uint64_t i = 0; i < w->r->g->n_tensor; i++) {
        const Part *p = &w->part[i];
        add(piece, &n, p->made ? UNDO_STORED : p->at, p->old_n + p->old_gap, w->r->g->tensors[i].name_z, w->old + p->old_at);
    }
    add(piece, &n, w->f->bytes - w->rest_n, w->rest_n, NULL, NULL);
    bool ok = undo_write(w->r->undo, w->r->g, piece, n, w->f->before, w->f->after, w->r->note, w->r->complete_ctx, e);
    free(piece);
    if (!ok) return false;
    Gguf g; // its size
    ok = gguf_open(&g, w->r->undo, e);
    if (ok) w->f->undo_bytes = g.file_bytes;
    if (ok) gguf_close(&g);
    ok = ok && check_undo(w, e);
    if (!ok) unlink(w->r->undo);
    return ok;
}

bool rewrite_file(const Rewrite *r, Rewritten *f, Err *e) {
    Rewriting w = {.r = r, .f = f, .out = {.fd = -1}};
    *f = (Rewritten){0};
    if (r->g->n_map != 1) return err_set(e, "%s: is split into %d files; merge them first (llama-gguf-split --merge)", r->g->path, r->g->n_map);
    w.old = gguf_bytes(r->g, &w.n_old);
    f->hash = calloc((size_t)r->g->n_tensor + 1, sizeof *f->hash);
    uint64_t n_added = 0, *added = NULL;
    bool ok = f->hash || err_set(e, "%s: no memory for hashes", r->path);
    if (ok && r->stamp) {
        n_added = gguf_writer_tensors(r->stamp);
        added = malloc(sizeof *added * ((size_t)n_added + 1));
        ok = added || err_set(e, "%s: no memory for a layout", r->path);
        for (uint64_t i = 0; ok && i < n_added; i++) added[i] = gguf_writer_tensor_bytes(r->stamp, i);
    }
    ok = ok && lay_out(&w, n_added, added, e);
    for (uint64_t i = 0; ok && i < w.n_part; i++) w.total += (double)w.part[i].n * (w.part[i].made ? r->cost + 2 : 2);
    progress_start(&w.progress, "writing");
    ok = ok && outfile_open(&w.out, r->path, f->bytes, r->undo ? undo_bytes(&w) : 0, e) && write_parts(&w, e) && outfile_sync(&w.out, e) && check(&w, e);
    progress_end(&w.progress);
    bool has_undo = false;
    if (ok && r->undo) ok = has_undo = write_undo(&w, e);
    ok = ok && (!r->complete || r->complete(r->complete_ctx, f, e)) && outfile_commit(&w.out, e);
    if (!ok && has_undo) unlink(r->undo);
    outfile_close(&w.out);
    free(added);
    free(w.header);
    free(w.part);
    free(w.made);
    return ok;
}
