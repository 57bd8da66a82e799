// gguf.c: reading a GGUF file. The file is mapped read-only; opening it walks the two tables (keys, tensor infos) once and
// checks every number in them before it is used. After gguf_open succeeded nothing points outside the map. Its pages come from
// the disk when they are touched; gguf_fetch and gguf_forget say when that should be.
//
// One file:    header -> keys -> alignment -> tensor infos -> data. All untrusted bytes pass through `take`.
// Split files: every part is read as a file of its own and then absorbed into the first, which holds the model's keys.
// Does not: verify the data itself (NaN, damaged blocks), survive another process truncating the file while it is mapped.
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "gguf.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ && sizeof(size_t) == 8, "files are little-endian and mapped whole");

enum {
    HEADER_BYTES = 24,
    MIN_KEY_BYTES = 14,    // u64 length, 1 byte of key, i32 type, 1 byte of value
    MIN_TENSOR_BYTES = 24, // u64 length, empty name, u32 n_dims = 0, i32 type, u64 offset
    MAX_NAME = 63,
    MAX_DIMS = 4,
    MAX_PARTS = 65535, // split.count is u16
};

struct GgufMap {
    const uint8_t *bytes;
    uint64_t n;
    int fd; // of the file; -1: the bytes are borrowed
};

// Names in sorted order. A hash table would be as short, but a file could be made to collide in it.
struct GgufIndex {
    GgufString name;
    uint64_t at; // row of keys or tensors
};

// ---- messages: "FILE: ITEM: what is wrong" ----

// A string of the file made fit for a message: one line, printable, not too long.
static const char *printable(GgufString s, char out[96]) {
    const uint64_t shown = s.n < 80 ? s.n : 80;
    for (uint64_t i = 0; i < shown; i++) out[i] = s.p[i] >= ' ' && s.p[i] <= '~' ? s.p[i] : '?';
    strcpy(out + shown, shown < s.n ? "..." : "");
    return out;
}

// The end of a long path: the message must still fit.
static const char *path_tail(const char *path) {
    const size_t n = strlen(path);
    return n > 200 ? path + n - 200 : path;
}

static bool vreject(Err *e, const char *path, const char *item, const char *format, va_list args) {
    char what[256];
    vsnprintf(what, sizeof what, format, args);
    return err_set(e, "%s: %s%s%s", path_tail(path), item, *item ? ": " : "", what);
}

// ---- cursor ----

typedef struct {
    const char *path;
    char item[128];       // what is being read: "key general.name"; "" = the header
    const uint8_t *bytes; // [n]
    uint64_t n, at;
    Err *e;
} Cursor;

PRINTF_LIKE(2, 3) static bool reject(Cursor *c, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vreject(c->e, c->path, c->item, format, args);
    va_end(args);
    return false;
}

PRINTF_LIKE(2, 3) static void reading(Cursor *c, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(c->item, sizeof c->item, format, args);
    va_end(args);
}

static uint64_t remaining(const Cursor *c) { return c->n - c->at; }

// The next n bytes, or NULL with the error set.
static const uint8_t *take(Cursor *c, uint64_t n) {
    if (n > remaining(c)) {
        reject(c, "needs %" PRIu64 " bytes at offset %" PRIu64 ", the file has %" PRIu64 " (truncated download?)", n, c->at, c->n);
        return NULL;
    }
    const uint8_t *p = c->bytes + c->at;
    c->at += n;
    return p;
}

static MUST_CHECK bool take_into(Cursor *c, void *out, size_t n) {
    const uint8_t *p = take(c, n);
    if (p) memcpy(out, p, n);
    return p != NULL;
}

static MUST_CHECK bool take_u32(Cursor *c, uint32_t *out) { return take_into(c, out, sizeof *out); }
static MUST_CHECK bool take_u64(Cursor *c, uint64_t *out) { return take_into(c, out, sizeof *out); }

static MUST_CHECK bool take_string(Cursor *c, GgufString *out) {
    if (!take_u64(c, &out->n)) return false;
    out->p = (const char *)take(c, out->n);
    return out->p != NULL;
}

static MUST_CHECK bool pad_to(uint64_t n, uint64_t alignment, uint64_t *out) {
    if (!size_add(n, alignment - 1, out)) return false;
    *out &= ~(alignment - 1);
    return true;
}

// ---- index ----

static int compare(GgufString a, GgufString b) {
    const int order = memcmp(a.p, b.p, a.n < b.n ? a.n : b.n);
    return order ? order : (a.n > b.n) - (a.n < b.n);
}

static int by_name(const void *a, const void *b) {
    return compare(((const struct GgufIndex *)a)->name, ((const struct GgufIndex *)b)->name);
}

// Sorts the names of n rows of `stride` bytes, each beginning with its name; a name that occurs twice is an error.
static struct GgufIndex *index_names(const char *path, const char *kind, const void *rows, size_t stride, uint64_t n, Err *e) {
    struct GgufIndex *index = calloc(n + 1, sizeof *index);
    if (!index) {
        err_set(e, "%s: no memory for the index of %" PRIu64 " %ss", path_tail(path), n, kind);
        return NULL;
    }
    for (uint64_t i = 0; i < n; i++) {
        index[i].at = i;
        memcpy(&index[i].name, (const char *)rows + i * stride, sizeof(GgufString));
    }
    qsort(index, n, sizeof *index, by_name);
    for (uint64_t i = 1; i < n; i++) {
        if (by_name(&index[i - 1], &index[i]) == 0) {
            char name[96];
            err_set(e, "%s: %s %s occurs twice", path_tail(path), kind, printable(index[i].name, name));
            free(index);
            return NULL;
        }
    }
    return index;
}

static const struct GgufIndex *find(const struct GgufIndex *index, uint64_t n, const char *name) {
    if (!index) return NULL;
    const struct GgufIndex wanted = {.name = {name, strlen(name)}};
    return bsearch(&wanted, index, n, sizeof *index, by_name);
}

const GgufKey *gguf_key(const Gguf *g, const char *key) {
    const struct GgufIndex *i = find(g->key_index, g->n_key, key);
    return i ? &g->keys[i->at] : NULL;
}

const GgufTensor *gguf_tensor(const Gguf *g, const char *name) {
    const struct GgufIndex *i = find(g->tensor_index, g->n_tensor, name);
    return i ? &g->tensors[i->at] : NULL;
}

// ---- header ----

// What people open by mistake, by its first bytes.
static const char *other_format(const uint8_t *p, uint64_t n) {
    static const struct {
        const char *magic, *name;
    } known[] = {
        {"PK\003\004", "a zip archive, perhaps a PyTorch checkpoint"},
        {"\200\002", "a Python pickle, perhaps a PyTorch checkpoint"},
        {"lmgg", "a GGML file from before GGUF"},
        {"fmgg", "a GGMF file from before GGUF"},
        {"tjgg", "a GGJT file from before GGUF"},
        {"algg", "a GGLA adapter from before GGUF"},
        {"version https://git-lfs", "a git-lfs pointer; fetch the file itself with git lfs pull"},
        {"<!", "a web page; the download went wrong"},
        {"<html", "a web page; the download went wrong"},
        {"\037\213", "a gzip archive"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        const size_t len = strlen(known[i].magic);
        if (n >= len && !memcmp(p, known[i].magic, len)) return known[i].name;
    }
    return n > 8 && p[8] == '{' ? "a safetensors file; convert it to GGUF first" : "expected GGUF";
}

static bool read_header(Cursor *c, Gguf *g) {
    if (c->n >= 4 && memcmp(c->bytes, "GGUF", 4) != 0) {
        char text[96];
        const uint8_t *p = c->bytes;
        return reject(c, "not a GGUF file: it begins with %02x %02x %02x %02x \"%s\" (%s)", p[0], p[1], p[2], p[3],
                      printable((GgufString){(const char *)p, 4}, text), other_format(p, c->n));
    }
    if (c->n < HEADER_BYTES) {
        return c->n ? reject(c, "has %" PRIu64 " bytes, a GGUF header needs %d (truncated download?)", c->n, HEADER_BYTES)
                    : reject(c, "the file is empty");
    }
    uint32_t magic, version;
    if (!take_u32(c, &magic) || !take_u32(c, &version) || !take_u64(c, &g->n_tensor) || !take_u64(c, &g->n_key)) return false;
    if ((version & 0xffff) == 0 && version != 0) return reject(c, "is big-endian (version field 0x%08" PRIx32 "); only little-endian files can be read", version);
    if (version != 2 && version != 3) return reject(c, "has GGUF version %" PRIu32 ", versions 2 and 3 can be read", version);
    g->version = (int)version;
    // Before any table is allocated: could so many entries lie in the rest of the file?
    if (g->n_tensor > remaining(c) / MIN_TENSOR_BYTES) return reject(c, "claims %" PRIu64 " tensors, too many for a file of %" PRIu64 " bytes", g->n_tensor, c->n);
    if (g->n_key > remaining(c) / MIN_KEY_BYTES) return reject(c, "claims %" PRIu64 " keys, too many for a file of %" PRIu64 " bytes", g->n_key, c->n);
    return true;
}

// ---- keys ----

static const struct {
    const char *name;
    int bytes; // of a scalar; 0: not a scalar of fixed size
} key_types[] = {
    [GGUF_U8] = {"u8", 1},   [GGUF_I8] = {"i8", 1},     [GGUF_U16] = {"u16", 2},      [GGUF_I16] = {"i16", 2},    [GGUF_U32] = {"u32", 4},
    [GGUF_I32] = {"i32", 4}, [GGUF_F32] = {"f32", 4},   [GGUF_BOOL] = {"bool", 1},    [GGUF_STRING] = {"string", 0}, [GGUF_ARRAY] = {"array", 0},
    [GGUF_U64] = {"u64", 8}, [GGUF_I64] = {"i64", 8},   [GGUF_F64] = {"f64", 8},
};

const char *gguf_type_name(GgufType t) { return (unsigned)t <= GGUF_F64 ? key_types[t].name : "?"; }

static bool read_value(Cursor *c, GgufKey *k) {
    uint32_t type, elem;
    if (!take_u32(c, &type)) return false;
    if (type > GGUF_F64) return reject(c, "value type %" PRIu32 ", expected 0 to %d", type, GGUF_F64);
    elem = type;
    k->n = 1;
    if (type == GGUF_ARRAY) {
        if (!take_u32(c, &elem) || !take_u64(c, &k->n)) return false;
        if (elem > GGUF_F64 || elem == GGUF_ARRAY) return reject(c, "array of element type %" PRIu32 ", expected a scalar or string type", elem);
    }
    k->type = (GgufType)type;
    k->elem = (GgufType)elem;

    const uint64_t least = elem == GGUF_STRING ? 8 : (uint64_t)key_types[elem].bytes;
    if (k->n > remaining(c) / least) {
        return reject(c, "%" PRIu64 " x %s does not fit into the %" PRIu64 " bytes left of the file (truncated download?)", k->n,
                      key_types[elem].name, remaining(c));
    }
    k->raw = c->bytes + c->at;
    if (elem != GGUF_STRING) return take(c, k->n * least) != NULL;

    k->strings = calloc(k->n + 1, sizeof *k->strings);
    if (!k->strings) return reject(c, "no memory for %" PRIu64 " strings", k->n);
    for (uint64_t i = 0; i < k->n; i++)
        if (!take_string(c, &k->strings[i])) return false;
    return true;
}

static bool read_keys(Cursor *c, Gguf *g) {
    g->keys = calloc(g->n_key + 1, sizeof *g->keys);
    if (!g->keys) return reject(c, "no memory for %" PRIu64 " keys", g->n_key);
    for (uint64_t i = 0; i < g->n_key; i++) {
        char name[96];
        GgufKey *k = &g->keys[i];
        reading(c, "key %" PRIu64 " of %" PRIu64, i + 1, g->n_key);
        if (!take_string(c, &k->key)) return false;
        if (!k->key.n) return reject(c, "its name is empty");
        reading(c, "key %s", printable(k->key, name));
        if (!read_value(c, k)) return false;
    }
    g->key_index = index_names(c->path, "key", g->keys, sizeof *g->keys, g->n_key, c->e);
    return g->key_index != NULL;
}

static bool read_alignment(Cursor *c, Gguf *g) {
    g->alignment = 32;
    const GgufKey *k = gguf_key(g, "general.alignment");
    if (!k) return true;
    reading(c, "general.alignment");
    if (k->type != GGUF_U32) return reject(c, "is %s, expected u32", gguf_type_name(k->type));
    g->alignment = (uint64_t)gguf_elem_int(k, 0);
    if (!g->alignment || (g->alignment & (g->alignment - 1))) return reject(c, "%" PRIu64 ", expected a power of two", g->alignment);
    return true;
}

// ---- tensors ----

// bytes = n_row rows of ne[0] elements. Counts with zeros and counts of 2^63 are caught before they are multiplied on.
static bool read_shape(Cursor *c, GgufTensor *t) {
    const TypeInfo *info = type_info(t->type);
    if (!info) return reject(c, "has type %d, which no GGUF file may hold or which is newer than this program", t->type);
    uint64_t n = 1;
    for (int i = MAX_DIMS - 1; i >= 0; i--) {
        if (t->ne[i] == 0 && i > 0) return reject(c, "dimension %d is 0", i);
        if (!size_mul(n, t->ne[i], &n) || n >= INT64_MAX) {
            return reject(c, "shape [%" PRIu64 ", %" PRIu64 ", %" PRIu64 ", %" PRIu64 "] has 2^63 elements or more", t->ne[0], t->ne[1], t->ne[2], t->ne[3]);
        }
    }
    if (t->ne[0] % (uint64_t)info->block) return reject(c, "rows of %" PRIu64 " elements, %s needs a multiple of %d", t->ne[0], info->name, info->block);
    if (!size_mul(n / (uint64_t)info->block, (uint64_t)info->bytes, &t->bytes)) return reject(c, "%" PRIu64 " elements of %s exceed 2^64 bytes", n, info->name);
    return true;
}

static bool read_tensor(Cursor *c, GgufTensor *t, uint64_t *offset) {
    char name[96];
    if (!take_string(c, &t->name)) return false;
    reading(c, "tensor %s", printable(t->name, name));
    if (t->name.n > MAX_NAME) return reject(c, "the name has %" PRIu64 " bytes, at most %d are allowed", t->name.n, MAX_NAME);
    t->name.n = strnlen(t->name.p, t->name.n); // the reference implementation ends a name at its first NUL
    memcpy(t->name_z, t->name.p, t->name.n);

    uint32_t n_dims, type;
    if (!take_u32(c, &n_dims)) return false;
    if (n_dims > MAX_DIMS) return reject(c, "has %" PRIu32 " dimensions, at most %d are allowed", n_dims, MAX_DIMS);
    t->n_dims = (int)n_dims;
    for (int i = 0; i < MAX_DIMS; i++) {
        t->ne[i] = 1;
        if (i < t->n_dims && !take_u64(c, &t->ne[i])) return false;
    }
    if (!take_u32(c, &type) || !take_u64(c, offset)) return false;
    t->type = (int)(int32_t)type;
    return read_shape(c, t);
}

static bool read_tensors(Cursor *c, Gguf *g) {
    g->tensors = calloc(g->n_tensor + 1, sizeof *g->tensors);
    if (!g->tensors) return reject(c, "no memory for %" PRIu64 " tensors", g->n_tensor);

    uint64_t expected = 0; // tensors lie in the order of their infos, without gaps
    g->infos_at = c->at;
    for (uint64_t i = 0; i < g->n_tensor; i++) {
        GgufTensor *t = &g->tensors[i];
        uint64_t offset = 0, padded;
        reading(c, "tensor %" PRIu64 " of %" PRIu64, i + 1, g->n_tensor);
        if (!read_tensor(c, t, &offset)) return false;
        if (offset != expected) return reject(c, "lies at offset %" PRIu64 ", expected %" PRIu64 " (tensors follow each other, padded to %" PRIu64 ")", offset, expected, g->alignment);
        if (!pad_to(t->bytes, g->alignment, &padded) || !size_add(expected, padded, &expected)) return reject(c, "ends beyond 2^64 bytes");
    }

    // Tables done: point every tensor into the data section that follows.
    if (g->n_tensor) {
        uint64_t start = 0;
        reading(c, "tensor data");
        if (!pad_to(c->at, g->alignment, &start) || start > c->n) {
            return reject(c, "begins at %" PRIu64 ", the file has %" PRIu64 " bytes (truncated download?)", start, c->n);
        }
        c->at = start;
    }
    g->data_at = c->at;
    for (uint64_t i = 0, end; i < g->n_tensor; i++) {
        GgufTensor *t = &g->tensors[i];
        char name[96];
        reading(c, "%s", printable(t->name, name));
        if (t->bytes > remaining(c)) {
            if (!size_add(c->at, t->bytes, &end)) end = UINT64_MAX;
            return reject(c, "needs bytes up to %" PRIu64 ", the file has %" PRIu64 " (truncated download?)", end, c->n);
        }
        t->data = take(c, t->bytes);
        g->data_bytes += t->bytes;
        if (!pad_to(c->at, g->alignment, &c->at) || c->at > c->n) c->at = c->n; // the last padding may be missing
    }
    return true;
}

// ---- opening ----

static void unmap(struct GgufMap map) {
    if (map.fd < 0) return;
    munmap((void *)map.bytes, map.n);
    close(map.fd);
}

// Takes over the map: it is released by gguf_close, whatever the outcome.
static bool read_file(Gguf *g, const char *path, struct GgufMap map, Err *e) {
    *g = (Gguf){.path = strdup(path), .file_bytes = map.n, .maps = malloc(sizeof map), .n_map = 1};
    if (!g->path || !g->maps) {
        unmap(map);
        g->n_map = 0;
        return err_set(e, "%s: no memory", path_tail(path));
    }
    g->maps[0] = map;
    Cursor c = {.path = path, .bytes = map.bytes, .n = map.n, .e = e};
    return read_header(&c, g) && read_keys(&c, g) && read_alignment(&c, g) && read_tensors(&c, g);
}

// Shared with the file's cache, so that a driver which pins the pages (Backend.pin) pins those: of private ones Linux would first make copies, as
// somebody might write. Some file systems have only private ones.
static void *map_pages(int fd, uint64_t first, uint64_t n) {
    void *p = mmap(NULL, (size_t)n, PROT_READ, MAP_SHARED, fd, (off_t)first);
    return p != MAP_FAILED ? p : mmap(NULL, (size_t)n, PROT_READ, MAP_PRIVATE, fd, (off_t)first);
}

static bool map_file(const char *path, struct GgufMap *map, Err *e) {
    const char *tail = path_tail(path);
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a pipe must not make us wait for a writer
    if (fd < 0) return err_set(e, "%s: %s", tail, strerror(errno));
    struct stat s;
    bool ok = false;
    if (fstat(fd, &s) != 0) err_set(e, "%s: %s", tail, strerror(errno));
    else if (S_ISDIR(s.st_mode)) err_set(e, "%s: is a directory, expected a GGUF file", tail);
    else if (!S_ISREG(s.st_mode)) err_set(e, "%s: is a pipe or a device, expected a regular file (it is mapped into memory)", tail);
    else if (s.st_size == 0) err_set(e, "%s: the file is empty", tail);
    else {
        void *p = map_pages(fd, 0, (uint64_t)s.st_size);
        ok = p != MAP_FAILED;
        if (ok) *map = (struct GgufMap){.bytes = p, .n = (uint64_t)s.st_size, .fd = fd};
        else err_set(e, "%s: cannot map %lld bytes: %s", tail, (long long)s.st_size, strerror(errno));
    }
    if (!ok) close(fd);
    return ok;
}

static bool open_file(Gguf *g, const char *path, Err *e) {
    struct GgufMap map;
    return map_file(path, &map, e) && read_file(g, path, map, e);
}

static bool index_tensors(Gguf *g, Err *e) {
    g->tensor_index = index_names(g->path, "tensor", g->tensors, sizeof *g->tensors, g->n_tensor, e);
    return g->tensor_index != NULL;
}

static void free_keys(Gguf *g) {
    for (uint64_t i = 0; g->keys && i < g->n_key; i++) free(g->keys[i].strings);
    free(g->keys);
    free(g->key_index);
}

void gguf_close(Gguf *g) {
    if (!g) return;
    free_keys(g);
    free(g->tensors);
    free(g->tensor_index);
    for (int i = 0; i < g->n_map; i++) unmap(g->maps[i]);
    free(g->maps);
    free(g->path);
    memset(g, 0, sizeof *g);
}

// ---- split files: PREFIX-00001-of-00003.gguf, numbered from 1 in the name and from 0 in the key ----

enum { SUFFIX_BYTES = sizeof "-00001-of-00003.gguf" - 1 };

static void part_suffix(char out[SUFFIX_BYTES + 1], int no, int count) {
    snprintf(out, SUFFIX_BYTES + 1, "-%05u-of-%05u.gguf", (no + 1) % 100000u, count % 100000u); // both are at most 65535
}

// Moves the map and the tensors of part `no` into g; what is left of part is closed.
static bool absorb(Gguf *g, Gguf *part, int no, Err *e) {
    GgufTensor *tensors = realloc(g->tensors, (g->n_tensor + part->n_tensor + 1) * sizeof *tensors);
    if (tensors) g->tensors = tensors;
    struct GgufMap *maps = realloc(g->maps, ((size_t)g->n_map + 1) * sizeof *maps);
    if (maps) g->maps = maps;
    if (!tensors || !maps) return err_set(e, "%s: no memory for part %d", path_tail(g->path), no + 1);

    for (uint64_t i = 0; i < part->n_tensor; i++) {
        g->tensors[g->n_tensor] = part->tensors[i];
        g->tensors[g->n_tensor++].part = no;
    }
    g->maps[g->n_map++] = part->maps[0];
    part->n_map = 0;
    g->file_bytes += part->file_bytes;
    g->data_bytes += part->data_bytes;
    return true;
}

static bool open_part(Gguf *g, const char *path, int no, int count, Err *e) {
    Gguf part = {0};
    int64_t part_no = -1;
    bool ok = open_file(&part, path, e) && gguf_get_int(&part, "split.no", 0, MAX_PARTS, &part_no, e);
    if (ok && part_no != no) {
        ok = part_no < 0 ? err_set(e, "%s: split.no is missing, expected %d (part %d of %d)", path_tail(path), no, no + 1, count)
                         : err_set(e, "%s: split.no is %d, expected %d (part %d of %d)", path_tail(path), (int)part_no, no, no + 1, count);
    }
    ok = ok && absorb(g, &part, no, e);
    gguf_close(&part);
    return ok;
}

static bool open_other_parts(Gguf *g, Err *e) {
    int64_t count = 0, no = 0, n_tensor = -1;
    if (!gguf_get_int(g, "split.count", 0, MAX_PARTS, &count, e)) return false;
    if (count <= 1) return true; // one file; merged files say 0
    if (!gguf_get_int(g, "split.no", 0, MAX_PARTS, &no, e) || !gguf_get_int(g, "split.tensors.count", 0, INT64_MAX, &n_tensor, e)) return false;

    char suffix[SUFFIX_BYTES + 1];
    if (no != 0) {
        part_suffix(suffix, 0, (int)count);
        return err_set(e, "%s: is part %d of %d of a split file; open the first part, ...%s", path_tail(g->path), (int)no + 1, (int)count, suffix);
    }
    part_suffix(suffix, 0, (int)count);
    const size_t n = strlen(g->path);
    if (n < SUFFIX_BYTES || strcmp(g->path + n - SUFFIX_BYTES, suffix) != 0) {
        return err_set(e, "%s: is the first of %d parts of a split file, so its name must end in %s", path_tail(g->path), (int)count, suffix);
    }
    char *path = strdup(g->path);
    bool ok = path || err_set(e, "%s: no memory", path_tail(g->path));
    for (int i = 1; ok && i < (int)count; i++) {
        part_suffix(path + n - SUFFIX_BYTES, i, (int)count);
        ok = open_part(g, path, i, (int)count, e);
    }
    free(path);
    if (ok && n_tensor >= 0 && g->n_tensor != (uint64_t)n_tensor) {
        return err_set(e, "%s: its %d parts hold %" PRIu64 " tensors, split.tensors.count is %" PRId64, path_tail(g->path), (int)count, g->n_tensor, n_tensor);
    }
    return ok;
}

bool gguf_open(Gguf *g, const char *path, Err *e) {
    memset(g, 0, sizeof *g);
    if (open_file(g, path, e) && open_other_parts(g, e) && index_tensors(g, e)) return true;
    gguf_close(g);
    return false;
}

bool gguf_open_memory(Gguf *g, const void *bytes, size_t n, Err *e) {
    int64_t count = 0;
    if (read_file(g, "memory", (struct GgufMap){.bytes = bytes, .n = n, .fd = -1}, e) && gguf_get_int(g, "split.count", 0, MAX_PARTS, &count, e) &&
        (count <= 1 || err_set(e, "memory: is one of %d parts of a split file, expected a whole one", (int)count)) && index_tensors(g, e)) return true;
    gguf_close(g);
    return false;
}

const uint8_t *gguf_bytes(const Gguf *g, uint64_t *n) {
    *n = g->maps[0].n;
    return g->maps[0].bytes;
}

// ---- pages ----

static uint64_t page_size(void) { return (uint64_t)sysconf(_SC_PAGESIZE); }

// The map of a file that p lies in, and there the pages of [p, p + n): those that it fills, or all that it touches. NULL: none.
static const struct GgufMap *pages_of(const Gguf *g, const void *p, uint64_t n, bool filled, uint64_t *first, uint64_t *end) {
    const uint64_t page = page_size();
    for (int i = 0; i < g->n_map; i++) {
        const struct GgufMap *map = &g->maps[i];
        const uint64_t at = (uint64_t)((uintptr_t)p - (uintptr_t)map->bytes);
        if (map->fd < 0 || at >= map->n) continue;
        *first = (filled ? at + page - 1 : at) / page * page;
        *end = (filled ? at + n : at + n + page - 1) / page * page;
        return *first < *end ? map : NULL;
    }
    return NULL;
}

// Puts n bytes of other pages in the place of those at `at`; in one step, so that what cannot be done leaves the old ones.
static bool replace_pages(const uint8_t *at, void *other, uint64_t n) {
    const bool ok = other != MAP_FAILED && mremap(other, n, n, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)at) != MAP_FAILED;
    if (!ok && other != MAP_FAILED) munmap(other, n);
    return ok;
}

// Memory in the place of the file's pages [first, end), with the same bytes.
static bool read_pages(const Gguf *g, const struct GgufMap *map, uint64_t first, uint64_t end, Err *e) {
    const uint64_t n = end - first, wanted = (end < map->n ? end : map->n) - first;
    uint8_t *memory = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (uint64_t got = 0; memory != MAP_FAILED && got < wanted;) {
        const ssize_t k = pread(map->fd, memory + got, wanted - got, (off_t)(first + got));
        if (k > 0) got += (uint64_t)k;
        else if (k == 0 || errno != EINTR) {
            err_set(e, "%s: cannot read at %" PRIu64 ": %s", path_tail(g->path), first + got, k ? strerror(errno) : "the file has become shorter");
            munmap(memory, n);
            return false;
        }
    }
    if (memory != MAP_FAILED) (void)mprotect(memory, n, PROT_READ);
    return replace_pages(map->bytes + first, memory, n) || err_set(e, "%s: no memory for %.1f MiB of weights", path_tail(g->path), (double)n / 0x1p20);
}

bool gguf_holds(const Gguf *g, const void *p) {
    uint64_t first, end;
    return pages_of(g, p, 1, false, &first, &end) != NULL;
}

bool gguf_fetch(const Gguf *g, const void *p, uint64_t n, Err *e) {
    uint64_t first, end;
    const struct GgufMap *map = pages_of(g, p, n, false, &first, &end);
    if (!map) return true;
    if (g->no_mmap) return read_pages(g, map, first, end, e);
    // The disk works on what comes next while we touch this; advice may fail.
    (void)madvise((void *)(map->bytes + first), (2 * end - first < map->n ? 2 * end - first : map->n) - first, MADV_WILLNEED);
    for (uint64_t at = first; at < end; at += page_size()) (void)*(const volatile uint8_t *)(map->bytes + at);
    return true;
}

void gguf_expect(const Gguf *g, const void *p, uint64_t n) {
    uint64_t first, end;
    const struct GgufMap *map = pages_of(g, p, n, false, &first, &end);
    if (map) (void)madvise((void *)(map->bytes + first), end - first, MADV_WILLNEED);
}

void gguf_forget(const Gguf *g, const void *p, uint64_t n) {
    uint64_t first, end;
    const struct GgufMap *map = pages_of(g, p, n, true, &first, &end);
    if (!map) return;
    uint8_t *at = (uint8_t *)map->bytes + first;
    const uint64_t size = end - first;
    if (g->no_mmap) (void)replace_pages(at, map_pages(map->fd, first, size), size);
    else (void)madvise(at, size, MADV_DONTNEED);
}

// ---- values ----

int64_t gguf_elem_int(const GgufKey *k, uint64_t i) {
    assert(i < k->n && key_types[k->elem].bytes);
    const uint8_t *p = k->raw + i * (uint64_t)key_types[k->elem].bytes;
    union { uint8_t u8; int8_t i8; uint16_t u16; int16_t i16; uint32_t u32; int32_t i32; uint64_t u64; int64_t i64; } v;
    memcpy(&v, p, (size_t)key_types[k->elem].bytes);
    switch (k->elem) {
    case GGUF_U8: return v.u8;
    case GGUF_I8: return v.i8;
    case GGUF_U16: return v.u16;
    case GGUF_I16: return v.i16;
    case GGUF_U32: return v.u32;
    case GGUF_I32: return v.i32;
    case GGUF_BOOL: return v.u8 != 0;
    case GGUF_U64: return v.u64 > INT64_MAX ? INT64_MAX : (int64_t)v.u64;
    case GGUF_I64: return v.i64;
    default: break;
    }
    const double x = gguf_elem_float(k, i); // towards zero, saturating; NaN is 0
    if (x >= 0x1p63) return INT64_MAX;
    if (x <= -0x1p63) return INT64_MIN;
    return x == x ? (int64_t)x : 0;
}

double gguf_elem_float(const GgufKey *k, uint64_t i) {
    assert(i < k->n && key_types[k->elem].bytes);
    const uint8_t *p = k->raw + i * (uint64_t)key_types[k->elem].bytes;
    float f32;
    double f64;
    uint64_t u64;
    switch (k->elem) {
    case GGUF_F32: memcpy(&f32, p, sizeof f32); return (double)f32;
    case GGUF_F64: memcpy(&f64, p, sizeof f64); return f64;
    case GGUF_U64: memcpy(&u64, p, sizeof u64); return (double)u64;
    default: return (double)gguf_elem_int(k, i);
    }
}

PRINTF_LIKE(4, 5) static bool bad_value(const Gguf *g, const char *key, Err *e, const char *format, ...) {
    char name[96];
    va_list args;
    va_start(args, format);
    vreject(e, g->path, printable((GgufString){key, strlen(key)}, name), format, args);
    va_end(args);
    return false;
}

static bool is_number(const GgufKey *k) { return gguf_is_integer(k->type) || gguf_is_float(k->type); }

bool gguf_get_int(const Gguf *g, const char *key, int64_t min, int64_t max, int64_t *out, Err *e) {
    const GgufKey *k = gguf_key(g, key);
    if (!k) return true;
    if (!is_number(k)) return bad_value(g, key, e, "is %s, expected a whole number", gguf_type_name(k->type));
    const int64_t v = gguf_elem_int(k, 0);
    const double x = gguf_elem_float(k, 0);
    if (gguf_is_float(k->type) && x != (double)v) return bad_value(g, key, e, "%g, expected a whole number", x);
    if (v < min || v > max || (v == INT64_MAX && x >= 0x1p63 && k->type != GGUF_I64)) { // saturated: the value is larger
        return bad_value(g, key, e, "%.17g, expected %" PRId64 " to %" PRId64, x, min, max);
    }
    *out = v;
    return true;
}

bool gguf_get_float(const Gguf *g, const char *key, float *out, Err *e) {
    const GgufKey *k = gguf_key(g, key);
    if (!k) return true;
    if (!is_number(k)) return bad_value(g, key, e, "is %s, expected a number", gguf_type_name(k->type));
    const double x = gguf_elem_float(k, 0);
    if (!(x >= -0x1.fffffep127 && x <= 0x1.fffffep127)) return bad_value(g, key, e, "%g, expected a finite 32-bit float", x);
    *out = (float)x;
    return true;
}

bool gguf_get_bool(const Gguf *g, const char *key, bool *out, Err *e) {
    const GgufKey *k = gguf_key(g, key);
    if (!k) return true;
    if (!gguf_is_integer(k->type)) return bad_value(g, key, e, "is %s, expected a bool", gguf_type_name(k->type));
    const int64_t v = gguf_elem_int(k, 0);
    if (v != 0 && v != 1) return bad_value(g, key, e, "%" PRId64 ", expected 0 or 1", v);
    *out = v == 1;
    return true;
}

bool gguf_get_string(const Gguf *g, const char *key, GgufString *out, Err *e) {
    const GgufKey *k = gguf_key(g, key);
    if (!k) return true;
    if (k->type != GGUF_STRING) return bad_value(g, key, e, "is %s, expected a string", gguf_type_name(k->type));
    *out = k->strings[0];
    return true;
}
