// gguf_write.c: writing a GGUF file, version 3, little-endian, as llama.cpp reads it: tensors in the order of their infos,
// each padded with zeros to 32 bytes, trailing dimensions of 1 left out.
//
// Keys and tensor infos are collected in memory; the first byte of data (or close) writes them and fixes every offset. All
// output goes to PATH.tmp, which becomes PATH only when it is complete and on the disk: whoever opens PATH sees the old
// file or the whole new one, and an old file that is mapped as the source stays readable. The first error is kept in the
// writer; every later call fails with it, and close or abort remove PATH.tmp.
// general.alignment is never written, even if set or copied: readers would then expect a padding other than 32.
//
// gguf_header_like is the exception to all this: what it gives keeps version, alignment and every byte it can of another file.
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include "gguf.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "values are written as they lie in memory");

enum { ALIGNMENT = 32, MAX_KEY = 65535, MAX_NAME = 63, MAX_DIMS = 4 };

typedef struct {
    char *key;      // [n_key], no NUL at the end
    size_t n_key;
    uint8_t *value; // [n_value] from the type number on, as it will lie in the file
    size_t n_value;
} Pair;

typedef struct {
    char name[MAX_NAME + 1];
    int type, n_dims;
    uint64_t ne[MAX_DIMS], bytes, offset; // offset: in the data section
} Info;

struct GgufWriter {
    char *path, *temporary;
    FILE *f;          // the temporary file, NULL when closed, or if nothing will be written
    bool left;        // the temporary file exists under its name
    Err error;        // the first one; text[0] == 0: none
    Pair *pairs;
    size_t n_pair, cap_pair;
    Info *infos;
    size_t n_info, cap_info;
    bool header_done;
    size_t current;   // the tensor that receives data
    uint64_t got;     // bytes of it so far
    uint64_t at;      // bytes written in all
    uint64_t end;     // of the data section so far declared, padded
};

PRINTF_LIKE(2, 3) static bool fail(GgufWriter *w, const char *format, ...) {
    if (w->error.text[0]) return false;
    char what[256];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    for (char *c = what; *c; c++)
        if (*c < ' ' || *c > '~') *c = '?'; // a name that was copied from a file may hold any bytes
    const size_t n = strlen(w->path);
    return err_set(&w->error, "%s: %s", n > 200 ? w->path + n - 200 : w->path, what);
}

static bool report(const GgufWriter *w, Err *e) {
    return w->error.text[0] ? err_set(e, "%s", w->error.text) : true;
}

// One more element at the end of a list, zeroed; NULL with the error set.
static void *append(GgufWriter *w, void *list, size_t *n, size_t *cap, size_t element) {
    void **items = list;
    if (*n == *cap) {
        const size_t wanted = *cap ? 2 * *cap : 64;
        void *more = realloc(*items, wanted * element);
        if (!more) {
            fail(w, "no memory");
            return NULL;
        }
        *items = more;
        *cap = wanted;
    }
    return memset((char *)*items + (*n)++ * element, 0, element);
}

// ---- opening ----

bool gguf_writer_open(GgufWriter **out, const char *path, Err *e) {
    *out = NULL;
    if (!path) {
        GgufWriter *w = calloc(1, sizeof *w);
        *out = w;
        if (w) w->path = strdup("header");
        if (w && w->path) return true;
        gguf_writer_abort(w);
        *out = NULL;
        return err_set(e, "no memory for a header");
    }
    if (!*path) return err_set(e, "the name of the file to write is empty");
    struct stat s; // rename would replace a device or fail on a directory, after all the work
    if (stat(path, &s) == 0 && !S_ISREG(s.st_mode)) {
        return err_set(e, "%s: is %s, expected a file to write", path, S_ISDIR(s.st_mode) ? "a directory" : "a device or a pipe");
    }
    GgufWriter *w = calloc(1, sizeof *w);
    const size_t n = strlen(path);
    if (w) {
        w->path = strdup(path);
        w->temporary = malloc(n + sizeof ".tmp");
    }
    bool ok = (w && w->path && w->temporary) || err_set(e, "%s: no memory", path);
    if (ok) {
        memcpy(w->temporary, path, n);
        memcpy(w->temporary + n, ".tmp", sizeof ".tmp");
        unlink(w->temporary); // left by a run that was killed; O_EXCL: never write through somebody's link
        const int fd = open(w->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        w->left = fd >= 0;
        w->f = fd >= 0 ? fdopen(fd, "wb") : NULL;
        ok = w->f || err_set(e, "%s: cannot create: %s", w->temporary, strerror(errno));
        if (!ok && fd >= 0) close(fd);
    }
    if (!ok) gguf_writer_abort(w);
    else *out = w;
    return ok;
}

void gguf_writer_abort(GgufWriter *w) {
    if (!w) return;
    if (w->f) fclose(w->f);
    if (w->left) unlink(w->temporary);
    for (size_t i = 0; i < w->n_pair; i++) {
        free(w->pairs[i].key);
        free(w->pairs[i].value);
    }
    free(w->pairs);
    free(w->infos);
    free(w->path);
    free(w->temporary);
    free(w);
}

// ---- keys ----

static Pair *find_pair(const GgufWriter *w, const char *key, size_t n) {
    for (size_t i = 0; i < w->n_pair; i++)
        if (w->pairs[i].n_key == n && !memcmp(w->pairs[i].key, key, n)) return &w->pairs[i];
    return NULL;
}

// Room for the n_value bytes of a key's value, in its old place or at the end. NULL: failed, or the key is not to be written.
static uint8_t *room_for(GgufWriter *w, const char *key, size_t n_key, size_t n_value) {
    static const char alignment[] = "general.alignment";
    if (w->error.text[0] || (n_key == sizeof alignment - 1 && !memcmp(key, alignment, n_key))) return NULL;
    const int shown = n_key < 80 ? (int)n_key : 80;
    if (w->header_done) return fail(w, "key %.*s is set after the data has begun", shown, key), NULL;
    if (!n_key || n_key > MAX_KEY) return fail(w, "key %.*s has %zu bytes, expected 1 to %d", shown, key, n_key, MAX_KEY), NULL;

    uint8_t *value = malloc(n_value);
    if (!value) return fail(w, "no memory for key %.*s", shown, key), NULL;
    Pair *p = find_pair(w, key, n_key);
    if (!p) {
        char *name = malloc(n_key);
        p = name ? append(w, &w->pairs, &w->n_pair, &w->cap_pair, sizeof *p) : NULL;
        if (!p) {
            free(name);
            free(value);
            return fail(w, "no memory for key %.*s", shown, key), NULL;
        }
        p->key = memcpy(name, key, n_key);
        p->n_key = n_key;
    }
    free(p->value);
    p->value = value;
    p->n_value = n_value;
    return value;
}

static uint8_t *put(uint8_t *to, const void *p, size_t n) {
    if (n) memcpy(to, p, n); // an empty string may have no address
    return to + n;
}

static uint8_t *put_u32(uint8_t *to, uint32_t v) { return put(to, &v, sizeof v); }
static uint8_t *put_u64(uint8_t *to, uint64_t v) { return put(to, &v, sizeof v); }

static void set_scalar(GgufWriter *w, const char *key, GgufType type, const void *v, size_t n) {
    uint8_t *to = room_for(w, key, strlen(key), 4 + n);
    if (to) put(put_u32(to, type), v, n);
}

void gguf_set_u16(GgufWriter *w, const char *key, uint16_t v) { set_scalar(w, key, GGUF_U16, &v, sizeof v); }
void gguf_set_u32(GgufWriter *w, const char *key, uint32_t v) { set_scalar(w, key, GGUF_U32, &v, sizeof v); }
void gguf_set_i32(GgufWriter *w, const char *key, int32_t v) { set_scalar(w, key, GGUF_I32, &v, sizeof v); }
void gguf_set_f32(GgufWriter *w, const char *key, float v) { set_scalar(w, key, GGUF_F32, &v, sizeof v); }
void gguf_set_bool(GgufWriter *w, const char *key, bool v) { set_scalar(w, key, GGUF_BOOL, &(uint8_t){v}, 1); }

void gguf_set_string(GgufWriter *w, const char *key, const char *p, size_t n) {
    uint8_t *to = room_for(w, key, strlen(key), 4 + 8 + n);
    if (to) put(put_u64(put_u32(to, GGUF_STRING), n), p, n);
}

static uint8_t *put_array_head(uint8_t *to, GgufType elem, uint64_t n) { return put_u64(put_u32(put_u32(to, GGUF_ARRAY), elem), n); }

// Bytes of one value; 0: not of fixed size.
static size_t scalar_bytes(GgufType t) {
    switch (t) {
    case GGUF_U8: case GGUF_I8: case GGUF_BOOL: return 1;
    case GGUF_U16: case GGUF_I16: return 2;
    case GGUF_U32: case GGUF_I32: case GGUF_F32: return 4;
    case GGUF_U64: case GGUF_I64: case GGUF_F64: return 8;
    default: return 0;
    }
}

void gguf_set_array(GgufWriter *w, const char *key, GgufType elem, const void *packed, uint64_t n) {
    const size_t bytes = scalar_bytes(elem) * (size_t)n;
    if (!scalar_bytes(elem)) {
        fail(w, "key %s: array of %s, expected numbers or bools", key, gguf_type_name(elem));
        return;
    }
    uint8_t *to = room_for(w, key, strlen(key), 16 + bytes);
    if (to) put(put_array_head(to, elem, n), packed, bytes);
}

void gguf_set_strings(GgufWriter *w, const char *key, const GgufString *s, uint64_t n) {
    size_t bytes = 16;
    for (uint64_t i = 0; i < n; i++) bytes += 8 + (size_t)s[i].n;
    uint8_t *to = room_for(w, key, strlen(key), bytes);
    if (!to) return;
    to = put_array_head(to, GGUF_STRING, n);
    for (uint64_t i = 0; i < n; i++) to = put(put_u64(to, s[i].n), s[i].p, (size_t)s[i].n);
}

void gguf_copy_key(GgufWriter *w, const GgufKey *k) {
    const bool array = k->type == GGUF_ARRAY;
    size_t bytes = scalar_bytes(k->elem) * (size_t)k->n;
    if (k->elem == GGUF_STRING && k->n) { // raw runs to the end of the last string
        const GgufString *last = &k->strings[k->n - 1];
        bytes = (size_t)((const uint8_t *)last->p + last->n - k->raw);
    }
    uint8_t *to = room_for(w, k->key.p, (size_t)k->key.n, (array ? 16 : 4) + bytes);
    if (to) put(array ? put_array_head(to, k->elem, k->n) : put_u32(to, k->type), k->raw, bytes);
}

void gguf_remove_key(GgufWriter *w, const char *key) {
    Pair *p = find_pair(w, key, strlen(key));
    if (!p) return;
    if (w->header_done) {
        fail(w, "key %s is removed after the data has begun", key);
        return;
    }
    free(p->key);
    free(p->value);
    memmove(p, p + 1, (size_t)(w->pairs + w->n_pair - (p + 1)) * sizeof *p);
    w->n_pair--;
}

// ---- tensors ----

static MUST_CHECK bool round_up(uint64_t n, uint64_t alignment, uint64_t *out) {
    if (!size_add(n, alignment - 1, out)) return false;
    *out &= ~(alignment - 1);
    return true;
}

void gguf_add_tensor(GgufWriter *w, const char *name, int type, int n_dims, const uint64_t *ne) {
    if (w->error.text[0]) return;
    const TypeInfo *t = type_info(type);
    const size_t n_name = strlen(name);
    if (w->header_done) return (void)fail(w, "tensor %.80s is added after the data has begun", name);
    if (!n_name || n_name > MAX_NAME) return (void)fail(w, "tensor %.80s: the name has %zu bytes, expected 1 to %d", name, n_name, MAX_NAME);
    if (!t) return (void)fail(w, "tensor %s: type %d does not exist", name, type);
    if (n_dims < 0 || n_dims > MAX_DIMS) return (void)fail(w, "tensor %s: %d dimensions, expected 0 to %d", name, n_dims, MAX_DIMS);
    for (size_t i = 0; i < w->n_info; i++)
        if (!strcmp(w->infos[i].name, name)) return (void)fail(w, "tensor %s is added twice", name);

    Info info = {.type = type, .n_dims = 1, .ne = {1, 1, 1, 1}, .offset = w->end};
    memcpy(info.name, name, n_name);
    uint64_t n = 1;
    for (int i = 0; i < n_dims; i++) {
        info.ne[i] = ne[i];
        if (ne[i] != 1) info.n_dims = i + 1;
        if (!ne[i] || !size_mul(n, ne[i], &n) || n >= INT64_MAX) return (void)fail(w, "tensor %s: dimension %d is %" PRIu64 ", which is 0 or too large", name, i, ne[i]);
    }
    if (info.ne[0] % (uint64_t)t->block) return (void)fail(w, "tensor %s: rows of %" PRIu64 " elements, %s needs a multiple of %d", name, info.ne[0], t->name, t->block);
    if (!size_mul(n / (uint64_t)t->block, (uint64_t)t->bytes, &info.bytes) || !size_add(w->end, info.bytes, &w->end) || !round_up(w->end, ALIGNMENT, &w->end)) {
        return (void)fail(w, "tensor %s: ends beyond 2^64 bytes", name);
    }
    Info *added = append(w, &w->infos, &w->n_info, &w->cap_info, sizeof info);
    if (added) *added = info;
}

uint64_t gguf_writer_tensors(const GgufWriter *w) { return w->n_info; }
uint64_t gguf_writer_tensor_bytes(const GgufWriter *w, uint64_t i) { return w->infos[i].bytes; }

// ---- output ----

static MUST_CHECK bool emit(GgufWriter *w, const void *p, size_t n) {
    assert(w->f);
    if (fwrite(p, 1, n, w->f) != n) return fail(w, "cannot write: %s", strerror(errno)); // the disk is full
    w->at += n;
    return true;
}

static MUST_CHECK bool emit_u32(GgufWriter *w, uint32_t v) { return emit(w, &v, sizeof v); }
static MUST_CHECK bool emit_u64(GgufWriter *w, uint64_t v) { return emit(w, &v, sizeof v); }
static MUST_CHECK bool emit_string(GgufWriter *w, const char *p, size_t n) { return emit_u64(w, n) && emit(w, p, n); }
static MUST_CHECK bool emit_padding(GgufWriter *w) {
    static const char zeros[ALIGNMENT];
    return emit(w, zeros, (size_t)(-w->at % ALIGNMENT));
}

static MUST_CHECK bool emit_info(GgufWriter *w, const Info *t, uint64_t offset) {
    return emit_string(w, t->name, strlen(t->name)) && emit_u32(w, (uint32_t)t->n_dims) && emit(w, t->ne, sizeof *t->ne * (size_t)t->n_dims) &&
           emit_u32(w, (uint32_t)t->type) && emit_u64(w, offset);
}

static MUST_CHECK bool emit_header(GgufWriter *w) {
    if (w->header_done) return true;
    w->header_done = true;
    bool ok = emit(w, "GGUF", 4) && emit_u32(w, 3) && emit_u64(w, w->n_info) && emit_u64(w, w->n_pair);
    for (size_t i = 0; ok && i < w->n_pair; i++) ok = emit_string(w, w->pairs[i].key, w->pairs[i].n_key) && emit(w, w->pairs[i].value, w->pairs[i].n_value);
    for (size_t i = 0; ok && i < w->n_info; i++) ok = emit_info(w, &w->infos[i], w->infos[i].offset);
    return ok && emit_padding(w);
}

bool gguf_writer_data(GgufWriter *w, const void *p, size_t n, Err *e) {
    if (w->error.text[0] || !emit_header(w)) return report(w, e);
    if (w->current == w->n_info) fail(w, "%zu bytes of data after the last tensor", n);
    else {
        const Info *t = &w->infos[w->current];
        if (n > t->bytes - w->got) fail(w, "tensor %s: received %" PRIu64 " bytes and %zu more, expected %" PRIu64, t->name, w->got, n, t->bytes);
        else if (emit(w, p, n)) w->got += n;
    }
    return report(w, e);
}

bool gguf_writer_hole(GgufWriter *w, uint64_t n, Err *e) {
    if (w->error.text[0] || !emit_header(w)) return report(w, e);
    if (w->current == w->n_info || n > w->infos[w->current].bytes - w->got) fail(w, "a hole of %" PRIu64 " bytes is longer than what is missing", n);
    else if (n > INT64_MAX - w->at || fflush(w->f) != 0 || ftruncate(fileno(w->f), (off_t)(w->at + n)) != 0 || fseeko(w->f, (off_t)(w->at + n), SEEK_SET) != 0)
        fail(w, "cannot leave out %" PRIu64 " bytes: %s", n, strerror(errno));
    else {
        w->at += n;
        w->got += n;
    }
    return report(w, e);
}

static MUST_CHECK bool finish_tensor(GgufWriter *w) {
    if (w->current == w->n_info) return fail(w, "there are only %zu tensors", w->n_info);
    const Info *t = &w->infos[w->current];
    if (w->got != t->bytes) return fail(w, "tensor %s: received %" PRIu64 " bytes, expected %" PRIu64, t->name, w->got, t->bytes);
    w->current++;
    w->got = 0;
    return emit_padding(w);
}

bool gguf_writer_next(GgufWriter *w, Err *e) {
    return (!w->error.text[0] && emit_header(w) && finish_tensor(w)) || report(w, e);
}

// The new name must survive a power failure, too. Not every file system can promise that, and the file is there: no error.
static void sync_folder(const char *path) {
    char *folder = strdup(path);
    char *slash = folder ? strrchr(folder, '/') : NULL;
    if (slash) slash[slash == folder] = 0; // "/file" lies in "/"
    const int fd = folder ? open(slash ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
    free(folder);
}

// A second writer of the same path has replaced our temporary file by its own.
static bool is_replaced(const GgufWriter *w) {
    struct stat ours, there;
    return fstat(fileno(w->f), &ours) != 0 || stat(w->temporary, &there) != 0 || ours.st_dev != there.st_dev || ours.st_ino != there.st_ino;
}

static MUST_CHECK bool complete(GgufWriter *w) {
    if (w->error.text[0] || !emit_header(w)) return false;
    if (w->got && !finish_tensor(w)) return false; // no gguf_writer_next after the last tensor
    if (w->current < w->n_info) return fail(w, "received data for %zu of %zu tensors", w->current, w->n_info);
    if (fflush(w->f) != 0 || fsync(fileno(w->f)) != 0) return fail(w, "cannot write: %s", strerror(errno));
    w->left = !is_replaced(w);
    if (!w->left) return fail(w, "something else writes this file, too");
    const bool closed = fclose(w->f) == 0;
    w->f = NULL;
    if (!closed || rename(w->temporary, w->path) != 0) return fail(w, "cannot complete: %s", strerror(errno));
    w->left = false;
    sync_folder(w->path);
    return true;
}

// ---- the header of a file like another ----

// Bytes of tensor t as `type`.
static MUST_CHECK bool bytes_as(const GgufTensor *t, int type, uint64_t *bytes) {
    const TypeInfo *to = type_info(type);
    if (!to || t->ne[0] % (uint64_t)to->block) return false;
    return size_mul(t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3] / (uint64_t)to->block, (uint64_t)to->bytes, bytes); // the product was checked
}

static MUST_CHECK bool like(GgufWriter *out, const Gguf *g, const GgufWriter *w, const int *types, uint64_t *offset) {
    uint64_t n_file, end = 0;
    const uint8_t *file = gguf_bytes(g, &n_file), *info = file + g->infos_at;
    for (size_t i = 0; i < w->n_pair; i++)
        for (uint64_t k = 0; k < g->n_key; k++)
            if (g->keys[k].key.n == w->pairs[i].n_key && !memcmp(g->keys[k].key.p, w->pairs[i].key, w->pairs[i].n_key))
                return fail(out, "key %.*s is there already", (int)(w->pairs[i].n_key < 80 ? w->pairs[i].n_key : 80), w->pairs[i].key);
    for (size_t i = 0; i < w->n_info; i++)
        if (gguf_tensor(g, w->infos[i].name)) return fail(out, "tensor %s is there already", w->infos[i].name);

    bool ok = emit(out, file, 8) && emit_u64(out, g->n_tensor + w->n_info) && emit_u64(out, g->n_key + w->n_pair) && emit(out, file + 24, g->infos_at - 24);
    for (size_t i = 0; ok && i < w->n_pair; i++) ok = emit_string(out, w->pairs[i].key, w->pairs[i].n_key) && emit(out, w->pairs[i].value, w->pairs[i].n_value);
    for (uint64_t i = 0; ok && i < g->n_tensor; i++) { // the name as it lies there: it may go on after a NUL
        const GgufTensor *t = &g->tensors[i];
        const int type = types[i] < 0 ? t->type : types[i];
        uint64_t n_name, bytes;
        memcpy(&n_name, info, sizeof n_name);
        const size_t n = 8 + (size_t)n_name + 4 + 8 * (size_t)t->n_dims; // length, name, n_dims, dims
        offset[i] = end;
        if (!bytes_as(t, type, &bytes)) return fail(out, "tensor %s: rows of %" PRIu64 " elements cannot be of type %d", t->name_z, t->ne[0], type);
        ok = emit(out, info, n) && emit_u32(out, (uint32_t)type) && emit_u64(out, end) && ((size_add(end, bytes, &end) && round_up(end, g->alignment, &end)) || fail(out, "2^64 bytes of data"));
        info += n + 4 + 8; // type, offset
    }
    for (size_t i = 0; ok && i < w->n_info; i++) {
        const Info *t = &w->infos[i];
        offset[g->n_tensor + i] = end;
        ok = emit_info(out, t, end) && ((size_add(end, t->bytes, &end) && round_up(end, g->alignment, &end)) || fail(out, "2^64 bytes of data"));
    }
    for (uint64_t rest = ok ? -out->at % g->alignment : 0; ok && rest; rest--) ok = emit(out, "", 1);
    return ok;
}

bool gguf_header_like(const Gguf *g, const GgufWriter *w, const int *types, uint8_t **bytes, uint64_t *n, uint64_t *offset, Err *e) {
    *bytes = NULL;
    *n = 0;
    if (w->error.text[0]) return report(w, e);
    if (g->n_map != 1) return err_set(e, "%s: is split into %d files, expected one", g->path, g->n_map);
    char *memory = NULL;
    size_t size = 0;
    GgufWriter out = {.path = g->path, .f = open_memstream(&memory, &size)};
    if (!out.f) return err_set(e, "%s: no memory for a header", g->path);
    bool ok = like(&out, g, w, types, offset);
    if (fclose(out.f) != 0 && ok) ok = fail(&out, "no memory for a header");
    if (!ok) {
        free(memory);
        return report(&out, e);
    }
    *bytes = (uint8_t *)memory;
    *n = size;
    return true;
}

bool gguf_writer_close(GgufWriter *w, Err *e) {
    const bool ok = complete(w) || report(w, e);
    gguf_writer_abort(w); // what is left of it
    return ok;
}
