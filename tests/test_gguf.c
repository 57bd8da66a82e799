// test_gguf.c: the GGUF reader against files that are odd, damaged or hostile, and the writer: what it wrote is read back,
// real files are written again byte for byte, and a full disk leaves nothing behind.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <math.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include "gguf.h"
#include "test.h"

// ---- a file under construction ----

static struct {
    uint8_t bytes[1 << 18];
    size_t n;
} f;

static void raw(const void *p, size_t n) {
    if (f.n + n > sizeof f.bytes) abort();
    if (p) memcpy(f.bytes + f.n, p, n);
    else memset(f.bytes + f.n, 0, n);
    f.n += n;
}
static void u8(uint8_t v) { raw(&v, 1); }
static void u32(uint32_t v) { raw(&v, 4); }
static void u64(uint64_t v) { raw(&v, 8); }
static void string_n(const char *p, size_t n) { u64(n), raw(p, n); }
static void string(const char *s) { string_n(s, strlen(s)); }
static void pad(size_t alignment) { raw(NULL, -f.n % alignment); }
static void begin_version(uint32_t version, uint64_t n_tensor, uint64_t n_key) {
    f.n = 0;
    raw("GGUF", 4), u32(version), u64(n_tensor), u64(n_key);
}
static void begin(uint64_t n_tensor, uint64_t n_key) { begin_version(3, n_tensor, n_key); }
static void key(const char *name, uint32_t type) { string(name), u32(type); }
static void key_u32(const char *name, uint32_t v) { key(name, GGUF_U32), u32(v); }
static void array(const char *name, uint32_t elem, uint64_t n) { key(name, GGUF_ARRAY), u32(elem), u64(n); }
static void info(const char *name, uint32_t type, uint64_t offset, uint32_t n_dims, const uint64_t *ne) {
    string(name), u32(n_dims), raw(ne, 8 * n_dims), u32(type), u64(offset);
}
#define DIMS(...) sizeof((uint64_t[]){__VA_ARGS__}) / 8, (uint64_t[]){__VA_ARGS__}

// One tensor and enough data for anything sane.
static void one_tensor(const char *name, uint32_t type, uint64_t offset, uint32_t n_dims, const uint64_t *ne) {
    begin(1, 0);
    info(name, type, offset, n_dims, ne);
    pad(32);
    raw(NULL, 4096);
}

// ---- verdicts ----

static bool one_line(const Err *e) { return e->text[0] && !strpbrk(e->text, "\n\r") && memchr(e->text, 0, sizeof e->text); }

// Reads whatever the tables point to, so that a sanitizer sees a pointer that is out of bounds.
static uint64_t walk(const Gguf *g) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < g->n_key; i++) {
        const GgufKey *k = &g->keys[i];
        for (uint64_t j = 0; j < k->n; j++) {
            if (k->elem == GGUF_STRING) sum += k->strings[j].n ? (uint8_t)k->strings[j].p[k->strings[j].n - 1] : 0;
            else sum += (uint64_t)gguf_elem_int(k, j) + (uint64_t)(gguf_elem_float(k, j) > 0);
        }
    }
    for (uint64_t i = 0; i < g->n_tensor; i++) {
        const GgufTensor *t = &g->tensors[i];
        const uint8_t *data = t->data;
        if (t->bytes) sum += data[0] + (uint64_t)data[t->bytes - 1];
        if (gguf_tensor(g, t->name_z) != t) sum++;
    }
    return sum;
}

static volatile uint64_t sink; // keeps the compiler from leaving walk out

// Opens a copy of exactly n bytes on the heap.
static bool opens(const uint8_t *bytes, size_t n, Err *e) {
    uint8_t *copy = malloc(n ? n : 1);
    if (!copy) abort();
    memcpy(copy, bytes, n);
    Gguf g;
    const bool ok = gguf_open_memory(&g, copy, n, e);
    if (ok) {
        sink += walk(&g);
        gguf_close(&g);
    }
    free(copy);
    return ok;
}

static void accepts(const char *what) {
    Err e = {""};
    CHECK(opens(f.bytes, f.n, &e), "%s: refused: %s", what, e.text);
}

static void refuses(const char *what, const char *reason) {
    Err e = {""};
    const bool ok = opens(f.bytes, f.n, &e);
    CHECK(!ok, "%s: accepted", what);
    if (!ok) CHECK(one_line(&e) && strstr(e.text, reason), "%s: the message is \"%s\", expected something about \"%s\"", what, e.text, reason);
}

static void test_header(void) {
    begin(0, 0), accepts("24 bytes: no keys, no tensors");
    begin_version(2, 0, 0), accepts("version 2");
    for (uint32_t v = 0; v < 6; v++)
        if (v != 2 && v != 3) begin_version(v, 0, 0), refuses("another version", "version");
    begin_version(0x03000000, 0, 0), refuses("big-endian", "big-endian");
    begin(0, 0), f.bytes[0] = 'g', refuses("another magic", "not a GGUF file");
    f.n = 0, refuses("an empty file", "empty");
    for (size_t n = 1; n < 24; n++) begin(0, 0), f.n = n, refuses("a cut header", "GGUF");
    begin(0, 0), raw("anything", 8), accepts("bytes after the end");
    const uint64_t absurd[] = {1, 1ull << 40, 1ull << 50, 1ull << 61, 1ull << 63, UINT64_MAX, UINT64_MAX / 14 + 1, UINT64_MAX / 24 + 1};
    for (size_t i = 0; i < sizeof absurd / sizeof *absurd; i++) {
        begin(0, absurd[i]), refuses("absurdly many keys", "keys");
        begin(absurd[i], 0), refuses("absurdly many tensors", "tensors");
    }
    f.n = 0, raw("PK\003\004aaaaaaaaaaaaaaaaaaaaaaaa", 28), refuses("a zip archive", "zip");
    f.n = 0, u64(64), raw("{\"__metadata__\":                    ", 32), refuses("safetensors", "safetensors");
    f.n = 0, raw("<!DOCTYPE html><html><head></head>", 34), refuses("a web page", "web page");
}

static void test_keys(void) {
    begin(0, 1), key_u32("a", 1), accepts("one key");
    begin(0, 2), key_u32("a", 1), key_u32("b", 1), accepts("two keys");
    begin(0, 2), key_u32("a", 1), key_u32("a", 1), refuses("a key twice", "twice");
    begin(0, 1), key_u32("", 1), refuses("an empty key", "empty");
    begin(0, 1), key("a", 13), u64(0), refuses("type 13", "type 13");
    begin(0, 1), key("a", UINT32_MAX), u64(0), refuses("type -1", "type");
    begin(0, 1), array("a", GGUF_ARRAY, 1), u32(GGUF_U8), u64(1), u8(0), refuses("an array of arrays", "array");
    begin(0, 1), array("a", 13, 1), u64(0), refuses("an array of type 13", "type 13");
    for (uint32_t elem = 0; elem <= GGUF_F64; elem++)
        if (elem != GGUF_ARRAY) begin(0, 1), array("a", elem, 0), accepts("an empty array");
    const uint64_t counts[] = {1000, 1ull << 61, 1ull << 62, 1ull << 63, UINT64_MAX};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        for (uint32_t elem = 0; elem <= GGUF_F64; elem++)
            if (elem != GGUF_ARRAY) begin(0, 1), array("a", elem, counts[i]), u32(0), u64(0), refuses("an array longer than the file", "does not fit");
    const uint64_t lengths[] = {9, 1ull << 31, 1ull << 32, 1ull << 63, UINT64_MAX - 60, UINT64_MAX};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        begin(0, 1), key("a", GGUF_STRING), u64(lengths[i]), u64(0), refuses("a string longer than the file", "bytes");
        begin(0, 1), u64(lengths[i]), u32(GGUF_U8), u32(0), refuses("a key longer than the file", "bytes");
        begin(0, 1), array("a", GGUF_STRING, 2), string("x"), u64(lengths[i]), u64(0), refuses("a string of an array longer than the file", "bytes");
    }
    begin(0, 1), key("a", GGUF_BOOL), u8(2), accepts("a bool of 2");
    begin(0, 2), string_n("a\0b", 3), u32(GGUF_U8), u8(1), string_n("a\xff\xfe", 3), u32(GGUF_U8), u8(1), accepts("keys of any bytes");
    begin(0, 1), key("a", GGUF_STRING), string_n("\0\xff\n\xc3", 4), accepts("a string of any bytes");

    begin(0, 1), u64(70000), raw(NULL, 70000), u32(GGUF_U8), u8(1), accepts("a key of 70000 bytes");
    begin(0, 2), string("a\nb"), u32(GGUF_U8), u8(1), string("a\nb"), u32(GGUF_U8), u8(1), refuses("a key with a newline twice", "a?b");
}

static void test_alignment(void) {
    for (uint64_t a = 1; a <= 1u << 31; a *= 2) {
        const bool small = a <= 4096;
        begin(small ? 2 : 0, 1), key_u32("general.alignment", (uint32_t)a);
        if (small) {
            const uint64_t second = a > 3 ? a : (3 + a - 1) / a * a;
            info("x", 24, 0, DIMS(3)), info("y", 24, second, DIMS(2)), pad(a), raw(NULL, 3), pad(a), raw(NULL, 2); // I8
        }
        accepts("an alignment that is a power of two");
    }
    const uint32_t odd[] = {0, 3, 24, 33, UINT32_MAX};
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) begin(0, 1), key_u32("general.alignment", odd[i]), refuses("an odd alignment", "power of two");
    begin(0, 1), key("general.alignment", GGUF_I32), u32(32), refuses("an alignment of i32", "i32");
    begin(0, 1), key("general.alignment", GGUF_U64), u64(32), refuses("an alignment of u64", "u64");
    begin(0, 1), array("general.alignment", GGUF_U32, 1), u32(32), refuses("an array of alignments", "array");
    begin(0, 1), array("general.alignment", GGUF_U32, 0), refuses("an empty array of alignments", "array");
    begin(0, 1), key("general.alignment", GGUF_STRING), string("32"), refuses("an alignment in letters", "string");
}

static void test_tensors(void) {
    begin(1, 0), info("t", TYPE_F32, 0, DIMS(4)), pad(32), raw(NULL, 16), accepts("data without padding at the end");
    f.n--, refuses("data that lacks a byte", "truncated");
    begin(1, 0), info("t", TYPE_F32, 0, DIMS(4)), refuses("no data at all", "truncated");

    const struct { uint64_t first, second; bool ok; } offsets[] = {{0, 32, true}, {0, 64, false}, {0, 0, false}, {32, 0, false}, {32, 64, false}, {0, 33, false}, {0, UINT64_MAX - 31, false}};
    for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++) {
        begin(2, 0), info("a", TYPE_F32, offsets[i].first, DIMS(8)), info("b", TYPE_F32, offsets[i].second, DIMS(8)), pad(32), raw(NULL, 256);
        if (offsets[i].ok) accepts("offsets 0, 32");
        else refuses("other offsets", "offset");
    }
    one_tensor("t", TYPE_F32, 0, 0, NULL), accepts("no dimensions: one element");
    one_tensor("t", TYPE_F32, 0, DIMS(4, 1, 1, 1)), accepts("trailing ones");
    one_tensor("t", TYPE_F32, 0, DIMS(0)), accepts("no elements");
    one_tensor("t", 15, 0, DIMS(256)), accepts("a type known by name only");
    one_tensor("t", TYPE_F32, 0, DIMS(4, 0)), refuses("dims [4, 0]", "dimension");
    one_tensor("t", TYPE_F32, 0, DIMS(4, 1, 0)), refuses("dims [4, 1, 0]", "dimension");
    one_tensor("t", TYPE_F32, 0, DIMS(4, 1, 1, 0)), refuses("dims [4, 1, 1, 0]", "dimension");
    one_tensor("t", TYPE_F32, 0, DIMS(1, 1, 1, 1, 1)), refuses("5 dimensions", "5 dimensions");
    one_tensor("t", TYPE_F32, 0, DIMS(1ull << 33, 1ull << 33)), refuses("2^66 elements", "elements");
    one_tensor("t", 24, 0, DIMS(1ull << 63)), refuses("a negative dimension", "elements");
    one_tensor("t", 24, 0, DIMS(1, UINT64_MAX)), refuses("a dimension of -1", "elements");
    one_tensor("t", 28, 0, DIMS((1ull << 61) - 1)), refuses("2^64 - 8 bytes", "2^64");
    one_tensor("t", TYPE_F32, 0, DIMS(1ull << 40)), refuses("4 TiB", "truncated");
    begin(2, 0), info("a", 24, 0, DIMS((1ull << 63) - 64)), info("b", 24, (1ull << 63) - 64, DIMS((1ull << 63) - 64)), pad(32), raw(NULL, 64), refuses("twice 2^63 - 64 bytes", "");
    one_tensor("t", TYPE_Q4_0, 0, DIMS(33)), refuses("a row of 33 elements in blocks of 32", "multiple of 32");
    one_tensor("t", TYPE_Q4_K, 0, DIMS(128, 2)), refuses("rows of half a block", "multiple of 256");
    const uint32_t types[] = {4, 5, 31, 32, 33, 36, 37, 38, 43, 255, 1u << 31, UINT32_MAX};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) one_tensor("t", types[i], 0, DIMS(256)), refuses("a type that does not exist", "type");

    char name[65] = {0};
    memset(name, 'n', 63);
    one_tensor(name, TYPE_F32, 0, DIMS(4)), accepts("a name of 63 bytes");
    name[63] = 'n';
    one_tensor(name, TYPE_F32, 0, DIMS(4)), refuses("a name of 64 bytes", "64 bytes");
    one_tensor("", TYPE_F32, 0, DIMS(4)), accepts("an empty name");
    begin(2, 0), info("a", TYPE_F32, 0, DIMS(8)), info("a", TYPE_F32, 32, DIMS(8)), pad(32), raw(NULL, 64), refuses("a name twice", "twice");
    begin(2, 0);
    for (uint64_t i = 0; i < 2; i++) string_n(i ? "t\0a" : "t\0b", 3), u32(1), u64(8), u32(TYPE_F32), u64(32 * i);
    pad(32), raw(NULL, 64), refuses("names equal up to a NUL", "twice");
    begin(1, 0), info("t", TYPE_F32, 0, DIMS(4)), f.n -= 9, refuses("a cut tensor info", "truncated");
}

// A small file with everything in it.
static size_t small_file(size_t *data_start) { // returns the length without the last padding
    begin(3, 6);
    key("general.architecture", GGUF_STRING), string("test");
    key("pi", GGUF_F64), raw(&(double){3.25}, 8);
    key_u32("general.alignment", 8);
    array("words", GGUF_STRING, 3), string("one"), string(""), string("three");
    array("numbers", GGUF_I16, 3), raw((int16_t[]){-1, 2, 3}, 6);
    key("flag", GGUF_BOOL), u8(1);
    info("a.weight", TYPE_F32, 0, DIMS(3, 2)), info("b", TYPE_Q8_0, 24, DIMS(32)), info("c", TYPE_F16, 64, DIMS(1, 1, 3));
    pad(8);
    if (data_start) *data_start = f.n;
    for (int i = 0; i < 24; i++) u8((uint8_t)i);
    for (int i = 0; i < 34; i++) u8((uint8_t)(100 + i));
    pad(8);
    raw("cccccc", 6);
    const size_t n = f.n;
    pad(8);
    return n;
}

static void test_damage(void) {
    size_t data = 0, wrong_verdict = 0, bad_message = 0;
    const size_t whole = small_file(&data);
    accepts("the small file");
    const size_t n_file = f.n;
    for (size_t n = 0; n <= n_file; n++) {
        Err e = {""};
        const bool ok = opens(f.bytes, n, &e);
        wrong_verdict += ok != (n >= whole);
        bad_message += !ok && !one_line(&e);
    }
    CHECK(!wrong_verdict, "%zu of %zu cuts of a file have the wrong verdict", wrong_verdict, n_file);
    for (size_t at = 0; at < data; at++) {
        const uint8_t old = f.bytes[at];
        for (int v = 0; v < 256; v++) {
            Err e = {""};
            f.bytes[at] = (uint8_t)v;
            bad_message += !opens(f.bytes, n_file, &e) && !one_line(&e);
        }
        f.bytes[at] = old;
    }
    CHECK(!bad_message, "%zu messages about a damaged file are not one line", bad_message);
}

// ---- values ----

static void test_values(void) {
    small_file(NULL);
    Gguf g;
    Err e;
    if (!gguf_open_memory(&g, f.bytes, f.n, &e)) {
        CHECK(false, "%s", e.text);
        return;
    }
    CHECK(g.version == 3 && g.alignment == 8 && g.n_key == 6 && g.n_tensor == 3 && g.file_bytes == f.n && g.data_bytes == 24 + 34 + 6, "the totals");
    const GgufKey *words = gguf_key(&g, "words"), *numbers = gguf_key(&g, "numbers");
    CHECK(words && words->type == GGUF_ARRAY && words->elem == GGUF_STRING && words->n == 3 && words->strings[2].n == 5 && !memcmp(words->strings[2].p, "three", 5), "words");
    CHECK(numbers && numbers->n == 3 && gguf_elem_int(numbers, 0) == -1 && gguf_elem_float(numbers, 2) == 3 && !numbers->strings, "numbers");
    CHECK(!gguf_key(&g, "word") && !gguf_key(&g, "wordss") && !gguf_key(&g, "") && !gguf_tensor(&g, "a"), "what is not there is not found");
    const GgufTensor *a = gguf_tensor(&g, "a.weight"), *b = gguf_tensor(&g, "b"), *c = gguf_tensor(&g, "c");
    CHECK(a && a->n_dims == 2 && a->ne[0] == 3 && a->ne[1] == 2 && a->ne[2] == 1 && a->ne[3] == 1 && a->bytes == 24 && *(const uint8_t *)a->data == 0, "a.weight");
    CHECK(b && b->type == TYPE_Q8_0 && b->bytes == 34 && *(const uint8_t *)b->data == 100, "b");
    CHECK(c && c->n_dims == 3 && c->ne[2] == 3 && c->bytes == 6 && !memcmp(c->data, "cccccc", 6), "c");
    gguf_close(&g);
    gguf_close(&g);
    gguf_close(NULL);
}

static void test_conversions(void) {
    const struct {
        GgufType type;
        uint64_t bits;
        bool is_int, is_float, is_bool;
        int64_t i; // within +-1000: the range asked for
        float x;
    } cases[] = {
        {GGUF_U8, 200, true, true, false, 200, 200},
        {GGUF_I8, 0xfe, true, true, false, -2, -2},
        {GGUF_U16, 1000, true, true, false, 1000, 1000},
        {GGUF_U16, 1001, false, true, false, 0, 1001},
        {GGUF_I16, 0xfc18, true, true, false, -1000, -1000},
        {GGUF_U32, 1, true, true, true, 1, 1},
        {GGUF_U32, UINT32_MAX, false, true, false, 0, 4294967296.0f},
        {GGUF_I32, UINT32_MAX, true, true, false, -1, -1},
        {GGUF_I32, 0, true, true, true, 0, 0},
        {GGUF_U64, 7, true, true, false, 7, 7},
        {GGUF_U64, UINT64_MAX, false, true, false, 0, 0x1p64f},
        {GGUF_I64, UINT64_MAX, true, true, false, -1, -1},
        {GGUF_I64, 1ull << 63, false, true, false, 0, -0x1p63f},
        {GGUF_BOOL, 2, true, true, true, 1, 1},
        {GGUF_F32, 0x41200000, true, true, false, 10, 10},         // 10
        {GGUF_F32, 0x3fc00000, false, true, false, 0, 1.5f},       // 1.5
        {GGUF_F32, 0x7fc00000, false, false, false, 0, 0},         // NaN
        {GGUF_F32, 0xff800000, false, false, false, 0, 0},         // -infinity
        {GGUF_F64, 0xc059000000000000, true, true, false, -100, -100}, // -100
        {GGUF_F64, 0x7fefffffffffffff, false, false, false, 0, 0}, // the largest double
        {GGUF_F64, 0x43f0000000000000, false, true, false, 0, 0x1p64f}, // 2^64
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        begin(0, 1), key("k", (uint32_t)cases[i].type), u64(cases[i].bits); // bytes beyond the value are ignored
        Gguf g;
        Err e = {""};
        const bool open = gguf_open_memory(&g, f.bytes, f.n, &e);
        CHECK(open, "%s", e.text);
        if (!open) continue;
        int64_t v = -77;
        float x = -77;
        bool b = false;
        GgufString s;
        const bool is_int = gguf_get_int(&g, "k", -1000, 1000, &v, &e), int_line = one_line(&e);
        const bool is_float = gguf_get_float(&g, "k", &x, &e);
        const bool is_bool = gguf_get_bool(&g, "k", &b, &e);
        CHECK(is_int == cases[i].is_int && (is_int ? v == cases[i].i : v == -77 && int_line), "case %zu as an integer: %d, %lld", i, is_int, (long long)v);
        CHECK(is_float == cases[i].is_float && x == (is_float ? cases[i].x : -77), "case %zu as a float: %d, %g", i, is_float, (double)x);
        CHECK(is_bool == cases[i].is_bool && b == (is_bool && cases[i].i), "case %zu as a bool: %d, %d", i, is_bool, b);
        CHECK(!gguf_get_string(&g, "k", &s, &e), "case %zu as a string", i);
        CHECK(gguf_get_int(&g, "absent", 0, 1, &v, &e) && gguf_get_float(&g, "absent", &x, &e) && gguf_get_bool(&g, "absent", &b, &e) && gguf_get_string(&g, "absent", &s, &e),
              "an absent key is an error");
        gguf_close(&g);
    }
    begin(0, 1), key("k", GGUF_U64), u64(UINT64_MAX);
    Gguf g;
    Err e;
    int64_t v = 0;
    if (gguf_open_memory(&g, f.bytes, f.n, &e)) {
        CHECK(!gguf_get_int(&g, "k", INT64_MIN, INT64_MAX, &v, &e), "2^64 - 1 fits into no int64_t");
        gguf_close(&g);
    }
}

// ---- files on the disk ----

static char folder[64];

static const char *in_folder(const char *name) { // four rotating buffers
    static char path[4][512];
    static int turn;
    char *p = path[turn++ & 3];
    snprintf(p, 512, "%s/%s", folder, name);
    return p;
}

static int n_files(void) {
    int n = 0;
    DIR *d = opendir(folder);
    for (struct dirent *entry; d && (entry = readdir(d));) n += entry->d_name[0] != '.';
    if (d) closedir(d);
    return n;
}

static void remove_files(void) {
    DIR *d = opendir(folder);
    for (struct dirent *entry; d && (entry = readdir(d));)
        if (entry->d_name[0] != '.') remove(in_folder(entry->d_name));
    if (d) closedir(d);
}

static void save(const char *path, const void *p, size_t n) {
    FILE *file = fopen(path, "wb");
    const bool ok = file && fwrite(p, 1, n, file) == n;
    if (file) fclose(file);
    CHECK(ok, "cannot write %s", path);
}

static uint8_t *load(const char *path, size_t *n) {
    struct stat s;
    FILE *file = fopen(path, "rb");
    uint8_t *p = file && fstat(fileno(file), &s) == 0 ? malloc((size_t)s.st_size + 1) : NULL;
    if (p) *n = fread(p, 1, (size_t)s.st_size + 1, file);
    if (file) fclose(file);
    return p;
}

static void refuses_file(const char *path, const char *reason) {
    Gguf g;
    Err e = {""};
    const bool ok = gguf_open(&g, path, &e);
    CHECK(!ok, "%s: accepted", path);
    if (ok) gguf_close(&g);
    else CHECK(one_line(&e) && strstr(e.text, reason), "%s: the message is \"%s\", expected something about \"%s\"", path, e.text, reason);
    gguf_close(&g); // allowed after a failure
}

static void fetch_all(const Gguf *g) {
    Err e;
    for (uint64_t i = 0; i < (uint64_t)g->n_tensor; i++) CHECK(gguf_fetch(g, g->tensors[i].data, g->tensors[i].bytes, &e), "%s", e.text);
}

static void test_special_files(void) {
    alarm(20); // a pipe must not make us wait
    refuses_file(in_folder("missing.gguf"), "No such file");
    refuses_file(folder, "directory");
    refuses_file("/dev/null", "device");
    refuses_file("/dev/zero", "device");
    refuses_file("", "No such file");
    save(in_folder("empty.gguf"), "", 0);
    refuses_file(in_folder("empty.gguf"), "empty");
    if (mkfifo(in_folder("pipe"), 0600) == 0) refuses_file(in_folder("pipe"), "pipe");
    else test_skip("no pipes here");
    char longest[5000];
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = 0;
    refuses_file(longest, "File name too long");
    alarm(0);

    const size_t whole = small_file(NULL);
    save(in_folder("cut.gguf"), f.bytes, whole - 1);
    refuses_file(in_folder("cut.gguf"), "truncated");
    save(in_folder("whole.gguf"), f.bytes, whole);
    Gguf g;
    Err e;
    const bool ok = gguf_open(&g, in_folder("whole.gguf"), &e);
    CHECK(ok, "%s", e.text);
    if (ok) {
        CHECK(!strcmp(g.path, in_folder("whole.gguf")) && g.file_bytes == whole, "path and size of an open file");
        fetch_all(&g);
        gguf_close(&g);
    }
    remove_files();
}

// ---- writing ----

static MUST_CHECK bool write_small(GgufWriter *w, Err *e) {
    uint8_t block[34];
    memset(block, 7, sizeof block);
    for (int i = 0; i < 2; i++) {
        if (!gguf_writer_data(w, block, 10, e) || !gguf_writer_data(w, block, 0, e) || !gguf_writer_data(w, block, 24, e) || !gguf_writer_next(w, e)) return false;
    }
    return true;
}

static void test_round_trip(void) {
    GgufWriter *w;
    Err e = {""};
    const char *path = in_folder("round.gguf");
    bool ok = gguf_writer_open(&w, path, &e);
    CHECK(ok, "%s", e.text);
    if (!ok) return;
    gguf_set_u16(w, "u16", 65535);
    gguf_set_string(w, "replaced", "at first a string", 17);
    gguf_set_u32(w, "u32", 4000000000u);
    gguf_set_i32(w, "i32", -5);
    gguf_set_f32(w, "f32", -0.0f);
    gguf_set_bool(w, "true", true);
    gguf_set_bool(w, "false", false);
    gguf_set_string(w, "string", "a\0b", 3);
    gguf_set_string(w, "nothing", NULL, 0);
    static const uint8_t packed[24] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24};
    static const int size[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    for (int t = 0; t <= GGUF_F64; t++)
        if (size[t]) gguf_set_array(w, gguf_type_name((GgufType)t) /* some are the names of scalars above: replaced */, (GgufType)t, packed, 3);
    gguf_set_array(w, "empty array", GGUF_F64, NULL, 0);
    const GgufString strings[] = {{"", 0}, {"two\n", 4}, {"\0", 1}};
    gguf_set_strings(w, "strings", strings, 3);
    gguf_set_strings(w, "no strings", NULL, 0);
    gguf_set_f32(w, "removed", 1);
    gguf_set_u32(w, "general.alignment", 64);
    gguf_remove_key(w, "removed");
    gguf_remove_key(w, "never there");
    gguf_set_i32(w, "replaced", 42);

    static const struct { const char *name; int type, n_dims; uint64_t ne[4]; int want_dims; } tensors[] = {
        {"f32", TYPE_F32, 1, {5}, 1},        {"scalar", TYPE_F32, 0, {0}, 1},          {"f16", TYPE_F16, 2, {3, 3}, 2},
        {"q4_0", TYPE_Q4_0, 3, {32, 2, 3}, 3}, {"q6_k", TYPE_Q6_K, 4, {256, 1, 1, 2}, 4}, {"q4_k", TYPE_Q4_K, 4, {512, 3, 1, 1}, 2},
        {"mxfp4", TYPE_MXFP4, 2, {64, 1}, 1}, {"bf16", TYPE_BF16, 1, {1}, 1},           {"i8", 24, 1, {3}, 1},
    };
    enum { N = sizeof tensors / sizeof *tensors };
    for (int i = 0; i < N; i++) gguf_add_tensor(w, tensors[i].name, tensors[i].type, tensors[i].n_dims, tensors[i].ne);
    CHECK(access(path, F_OK) != 0, "the file is there before it is complete");
    static const uint64_t bytes[N] = {20, 4, 18, 6 * 18, 2 * 210, 6 * 144, 34, 2, 3};
    uint8_t data[1024];
    for (int i = 0; i < N && ok; i++) {
        memset(data, 'A' + i, sizeof data);
        ok = gguf_writer_data(w, data, (size_t)bytes[i] / 2, &e) && gguf_writer_data(w, data, (size_t)(bytes[i] - bytes[i] / 2), &e);
        if (i < N - 1) ok = ok && gguf_writer_next(w, &e); // not after the last: close does it
    }
    CHECK(ok, "%s", e.text);
    ok = gguf_writer_close(w, &e);
    CHECK(ok, "%s", e.text);
    CHECK(n_files() == 1, "%d files, expected one", n_files());

    Gguf g;
    ok = gguf_open(&g, path, &e);
    CHECK(ok, "%s", e.text);
    if (!ok) return;
    CHECK(g.version == 3 && g.alignment == 32 && g.file_bytes % 32 == 0, "version, alignment, padding at the end");
    CHECK(!gguf_key(&g, "removed") && !gguf_key(&g, "general.alignment"), "removed keys are gone");
    CHECK(g.keys[1].key.n == 8 && !memcmp(g.keys[1].key.p, "replaced", 8) && g.keys[1].type == GGUF_I32 && gguf_elem_int(&g.keys[1], 0) == 42, "a key set twice keeps its place and takes the last value");
    for (int t = 0; t <= GGUF_F64; t++) {
        if (!size[t]) continue;
        const GgufKey *k = gguf_key(&g, gguf_type_name((GgufType)t));
        CHECK(k && k->type == GGUF_ARRAY && (int)k->elem == t && k->n == 3 && !memcmp(k->raw, packed, 3 * (size_t)size[t]), "array of %s", gguf_type_name((GgufType)t));
    }
    const GgufKey *k = gguf_key(&g, "strings");
    CHECK(k && k->n == 3 && k->strings[0].n == 0 && k->strings[1].n == 4 && !memcmp(k->strings[1].p, "two\n", 4) && k->strings[2].n == 1, "strings");
    k = gguf_key(&g, "no strings");
    CHECK(k && k->type == GGUF_ARRAY && k->elem == GGUF_STRING && k->n == 0, "no strings");
    k = gguf_key(&g, "empty array");
    CHECK(k && k->elem == GGUF_F64 && k->n == 0, "empty array");
    GgufString s = {0};
    bool yes = false, no = true;
    CHECK(gguf_get_string(&g, "string", &s, &e) && s.n == 3 && !memcmp(s.p, "a\0b", 3), "string");
    CHECK(gguf_get_string(&g, "nothing", &s, &e) && s.n == 0, "empty string");
    CHECK(gguf_get_bool(&g, "true", &yes, &e) && yes && gguf_get_bool(&g, "false", &no, &e) && !no, "bools");
    CHECK(g.n_tensor == N, "%d tensors", (int)g.n_tensor);
    for (int i = 0; i < N && g.n_tensor == N; i++) {
        const GgufTensor *t = &g.tensors[i];
        CHECK(!strcmp(t->name_z, tensors[i].name) && t->type == tensors[i].type && t->bytes == bytes[i] && t->n_dims == tensors[i].want_dims, "tensor %s", tensors[i].name);
        memset(data, 'A' + i, sizeof data);
        CHECK(!memcmp(t->data, data, (size_t)bytes[i]), "data of %s", tensors[i].name);
        for (int d = 0; d < tensors[i].n_dims; d++) CHECK(t->ne[d] == tensors[i].ne[d], "shape of %s", tensors[i].name);
    }

    // Scalars of the types that have a setter, by copying them into a second file; then over the first, which stays mapped.
    begin(0, 13);
    for (uint32_t t = 0; t <= GGUF_F64; t++) {
        key(gguf_type_name((GgufType)t), t);
        if (t == GGUF_STRING) string("s");
        else if (t == GGUF_ARRAY) u32(GGUF_STRING), u64(2), string("x"), string("yy");
        else raw(packed, (size_t)size[t]);
    }
    pad(32);
    Gguf all;
    ok = gguf_open_memory(&all, f.bytes, f.n, &e) && gguf_writer_open(&w, path, &e);
    CHECK(ok, "%s", e.text);
    if (ok) {
        for (uint64_t i = 0; i < all.n_key; i++) gguf_copy_key(w, &all.keys[i]);
        CHECK(gguf_writer_close(w, &e), "%s", e.text);
        size_t n = 0;
        uint8_t *written = load(path, &n);
        CHECK(written && n == f.n && !memcmp(written, f.bytes, n), "keys of all types, copied: %zu bytes, expected the same %zu", n, f.n);
        free(written);
        gguf_close(&all);
    }
    CHECK(g.tensors[0].bytes == 20 && *(const uint8_t *)g.tensors[0].data == 'A', "the old file under the new one is damaged");
    gguf_close(&g);
    remove_files();
}

// Each must fail at close, with one line, and leave nothing behind.
static void test_writer_errors(void) {
    char long_name[65] = {0};
    memset(long_name, 'n', 64);
    for (int which = 0; which < 17; which++) {
        GgufWriter *w;
        Err e = {""};
        if (!gguf_writer_open(&w, in_folder("bad.gguf"), &e)) {
            CHECK(false, "%s", e.text);
            return;
        }
        gguf_set_u32(w, "fine", 1);
        bool ok = true;
        const uint64_t row = which == 5 ? 33 : which == 6 ? 0 : 32;
        gguf_add_tensor(w, which == 1 ? long_name : which == 2 ? "" : "a", which == 3 ? 4 : which == 4 ? -1 : TYPE_Q8_0, which == 7 ? 5 : 1, (uint64_t[5]){row, 1, 1, 1, 1});
        gguf_add_tensor(w, which == 8 ? "a" : "b", TYPE_Q8_0, 2, (uint64_t[]){32, which == 9 ? 1ull << 62 : 1});
        if (which == 10) gguf_set_array(w, "array", GGUF_STRING, "", 0);
        if (which == 11) gguf_set_u32(w, "", 0);
        if (which == 12) ok = gguf_writer_data(w, long_name, 35, &e); // one byte too many
        if (which == 13) ok = gguf_writer_data(w, long_name, 33, &e) && gguf_writer_next(w, &e); // one too few
        if (which == 14) ok = gguf_writer_data(w, long_name, 34, &e) && gguf_writer_next(w, &e) && !gguf_writer_close(w, &e); // one tensor of two
        if (which == 15) {
            ok = write_small(w, &e) && gguf_writer_data(w, "x", 1, &e); // beyond the last
        }
        if (which == 16) {
            ok = write_small(w, &e);
            gguf_set_u32(w, "late", 1);
        }
        if (which == 12 || which == 13 || which == 15) CHECK(!ok && one_line(&e), "writer error %d is not reported at once", which);
        if (which && which < 12) CHECK(!gguf_writer_data(w, long_name, 1, &e) && one_line(&e), "writer error %d is not reported with the first data", which);
        if (which == 14) CHECK(ok && one_line(&e), "a file without all its data is accepted");
        else if (which) {
            e.text[0] = 0;
            CHECK(!gguf_writer_close(w, &e) && one_line(&e), "writer error %d is not reported at close", which);
        } else {
            gguf_writer_abort(w); // without an error; and with none of its data
        }
        CHECK(n_files() == 0, "writer error %d leaves a file behind", which);
        remove_files();
    }
    gguf_writer_abort(NULL);

    GgufWriter *w;
    Err e;
    const char *refused[] = {in_folder("no/such/folder.gguf"), folder, "/dev/null", "/dev/full", ""};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        e.text[0] = 0;
        CHECK(!gguf_writer_open(&w, refused[i], &e) && one_line(&e) && !w, "opening \"%s\" for writing", refused[i]);
    }
    save(in_folder("bad.gguf"), "precious", 8); // an old file survives a failure, and what a killed run left is replaced
    save(in_folder("bad.gguf.tmp"), "rubbish", 7);
    if (gguf_writer_open(&w, in_folder("bad.gguf"), &e)) {
        gguf_set_u32(w, "", 0);
        CHECK(!gguf_writer_close(w, &e), "an empty key");
    }
    size_t n = 0;
    uint8_t *old = load(in_folder("bad.gguf"), &n);
    CHECK(old && n == 8 && !memcmp(old, "precious", 8) && n_files() == 1, "the old file does not survive a failed write");
    free(old);
    remove_files();

    GgufWriter *second; // of the same file: the later one wins, no mixture appears
    if (gguf_writer_open(&w, in_folder("bad.gguf"), &e) && gguf_writer_open(&second, in_folder("bad.gguf"), &e)) {
        gguf_set_u32(second, "second", 2);
        CHECK(!gguf_writer_close(w, &e) && one_line(&e), "a file that another writer has begun is completed");
        CHECK(gguf_writer_close(second, &e), "%s", e.text);
        CHECK(n_files() == 1 && access(in_folder("bad.gguf"), F_OK) == 0, "two writers leave %d files", n_files());
    }
    remove_files();
}

// A file size limit behaves like a full disk: a short write, then an error.
static void test_full_disk(void) {
    struct rlimit old, small;
    if (getrlimit(RLIMIT_FSIZE, &old) != 0 || signal(SIGXFSZ, SIG_IGN) == SIG_ERR) {
        test_skip("no file size limits here");
        return;
    }
    static const uint8_t data[1 << 16];
    const rlim_t limits[] = {0, 100, 4096, 10000, 65536, 65536 + 200};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        small = old;
        small.rlim_cur = limits[i];
        GgufWriter *w = NULL;
        Err e = {""}, at_close = {""};
        if (!gguf_writer_open(&w, in_folder("full.gguf"), &e)) {
            CHECK(false, "%s", e.text);
            break;
        }
        setrlimit(RLIMIT_FSIZE, &small);
        gguf_set_u32(w, "key", 1);
        gguf_add_tensor(w, "t", TYPE_F32, 2, (uint64_t[]){128, 128});
        bool ok = true;
        for (size_t at = 0; ok && at < sizeof data; at += 512) ok = gguf_writer_data(w, data + at, 512, &e);
        const bool closed = gguf_writer_close(w, &at_close);
        setrlimit(RLIMIT_FSIZE, &old);
        const bool fits = limits[i] >= 65536 + 96; // 24 + 15 + 41 bytes of tables, padded
        CHECK(closed == fits, "limit %llu: closed %d", (unsigned long long)limits[i], closed);
        if (!closed) CHECK(one_line(&at_close) && strstr(at_close.text, strerror(EFBIG)) && (ok || one_line(&e)), "limit %llu: \"%s\"", (unsigned long long)limits[i], at_close.text);
        CHECK(n_files() == (fits ? 1 : 0), "limit %llu leaves %d files", (unsigned long long)limits[i], n_files());
        remove_files();
    }
    signal(SIGXFSZ, SIG_DFL);
}

// ---- split files ----

typedef struct {
    int no, count, total; // -1: the key is left out
    const char *tensor[3];
} Part;

static void write_part(const char *name, const Part *p) {
    GgufWriter *w;
    Err e = {""};
    bool ok = gguf_writer_open(&w, in_folder(name), &e);
    if (ok) {
        if (p->no >= 0) gguf_set_u16(w, "split.no", (uint16_t)p->no);
        if (p->count >= 0) gguf_set_u16(w, "split.count", (uint16_t)p->count);
        if (p->total >= 0) gguf_set_i32(w, "split.tensors.count", p->total);
        gguf_set_u32(w, "from", (uint32_t)max_int(p->no, 0));
        for (int i = 0; i < 3 && p->tensor[i]; i++) gguf_add_tensor(w, p->tensor[i], TYPE_F32, 1, (uint64_t[]){3});
        for (int i = 0; i < 3 && p->tensor[i] && ok; i++) ok = gguf_writer_data(w, (char[12]){p->tensor[i][0]}, 12, &e) && gguf_writer_next(w, &e);
        ok = gguf_writer_close(w, &e) && ok;
    }
    CHECK(ok, "%s", e.text);
}

static const Part PARTS[3] = {{0, 3, 5, {NULL}}, {1, 3, 5, {"a", "b", NULL}}, {2, 3, 5, {"c", "d", "e"}}};
static const char *const PART_NAMES[3] = {"m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"};

static void write_parts(void) {
    remove_files();
    for (int i = 0; i < 3; i++) write_part(PART_NAMES[i], &PARTS[i]);
}

static void refuses_split(Part replacement, int which, const char *reason) {
    write_parts();
    write_part(PART_NAMES[which], &replacement);
    refuses_file(in_folder(PART_NAMES[0]), reason);
}

static void test_split(void) {
    write_parts();
    Gguf g;
    Err e = {""};
    const bool ok = gguf_open(&g, in_folder(PART_NAMES[0]), &e);
    CHECK(ok, "%s", e.text);
    if (ok) {
        CHECK(g.n_tensor == 5 && g.n_map == 3 && g.data_bytes == 60, "%d tensors in %d parts", (int)g.n_tensor, g.n_map);
        int64_t from = -1;
        CHECK(gguf_get_int(&g, "from", 0, 9, &from, &e) && from == 0, "keys come from the first part");
        for (const char *name = "abcde"; *name; name++) {
            const GgufTensor *t = gguf_tensor(&g, (char[2]){*name, 0});
            CHECK(t && *(const char *)t->data == *name && t->part == (*name < 'c' ? 1 : 2), "tensor %c", *name);
        }
        fetch_all(&g);
        gguf_close(&g);
    }
    refuses_file(in_folder(PART_NAMES[1]), "first part");
    refuses_file(in_folder(PART_NAMES[2]), "first part");
    remove(in_folder(PART_NAMES[2]));
    refuses_file(in_folder(PART_NAMES[0]), "No such file");

    write_parts(); // under another name the others cannot be found
    if (rename(in_folder(PART_NAMES[0]), in_folder("m.gguf")) == 0) refuses_file(in_folder("m.gguf"), "must end in");
    write_parts();
    if (rename(in_folder(PART_NAMES[0]), in_folder("m-00001-of-00004.gguf")) == 0) refuses_file(in_folder("m-00001-of-00004.gguf"), "must end in");
    write_parts(); // truncated part
    if (truncate(in_folder(PART_NAMES[2]), 300) == 0) refuses_file(in_folder(PART_NAMES[2]), "");
    refuses_file(in_folder(PART_NAMES[0]), "truncated");

    refuses_split((Part){2, 3, 5, {"a", "b", NULL}}, 1, "split.no is 2, expected 1"); // the wrong order
    refuses_split((Part){-1, 3, 5, {"a", "b", NULL}}, 1, "split.no is missing");
    refuses_split((Part){2, 3, 5, {"c", "d", "a"}}, 2, "twice");
    refuses_split((Part){2, 3, 5, {"c", "d", NULL}}, 2, "split.tensors.count");
    refuses_split((Part){0, 3, 6, {NULL}}, 0, "split.tensors.count");
    refuses_split((Part){0, 4, 5, {NULL}}, 0, "must end in");
    refuses_split((Part){0, 65535, 5, {NULL}}, 0, "must end in");
    for (int count = -1; count < 2; count++) { // one file, whatever its name
        write_parts();
        write_part("whole.gguf", &(Part){0, count, -1, {"a", NULL}});
        const bool one = gguf_open(&g, in_folder("whole.gguf"), &e);
        CHECK(one && g.n_tensor == 1 && g.n_map == 1, "split.count %d is one file", count);
        if (one) gguf_close(&g);
    }
    begin(0, 1), key("split.count", GGUF_U16), raw((uint16_t[]){3}, 2), refuses("a part in memory", "split");
    begin(0, 1), key("split.count", GGUF_STRING), string("3"), refuses("split.count in letters", "split.count");
    remove_files();
}

// ---- real files ----

// Written again with the same keys and tensors in the same order: the same bytes. Old files may lack the last padding.
static void rewrite(const char *path) {
    Gguf g;
    Err e = {""};
    bool ok = gguf_open(&g, path, &e);
    CHECK(ok, "%s", e.text);
    if (!ok) return;
    GgufWriter *w = NULL;
    const char *copy = in_folder("copy.gguf");
    ok = gguf_writer_open(&w, copy, &e);
    for (uint64_t i = 0; ok && i < g.n_key; i++) gguf_copy_key(w, &g.keys[i]);
    for (uint64_t i = 0; ok && i < g.n_tensor; i++) gguf_add_tensor(w, g.tensors[i].name_z, g.tensors[i].type, g.tensors[i].n_dims, g.tensors[i].ne);
    for (uint64_t i = 0; ok && i < g.n_tensor; i++) ok = gguf_writer_data(w, g.tensors[i].data, g.tensors[i].bytes, &e) && gguf_writer_next(w, &e);
    ok = w && gguf_writer_close(w, &e) && ok;
    CHECK(ok, "%s", e.text);

    size_t n = 0, m = 0;
    uint8_t *before = load(path, &n), *after = load(copy, &m);
    CHECK(before && after && m >= n && m - n < 32 && !memcmp(before, after, n), "%s: written again it has other bytes (%zu, then %zu)", path, n, m);
    for (size_t i = n; after && i < m; i++) CHECK(after[i] == 0, "%s: padding", path);
    free(before);
    free(after);
    gguf_close(&g);
}

static void test_real_files(void) {
    static const char *const folders[] = {"reference", "vocab", "stories260K"};
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        const char *where = shared_path(folders[i]);
        DIR *d = where ? opendir(where) : NULL;
        if (!d) test_skip(folders[i]);
        for (struct dirent *entry; d && (entry = readdir(d));) {
            const size_t n = strlen(entry->d_name);
            char path[600];
            snprintf(path, sizeof path, "%s/%s", where, entry->d_name);
            if (n > 5 && !strcmp(entry->d_name + n - 5, ".gguf")) rewrite(path);
        }
        if (d) closedir(d);
    }
    remove_files();
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/test_gguf.XXXXXX", tmp && strlen(tmp) < 40 ? tmp : "/tmp");
    if (!mkdtemp(folder)) {
        CHECK(false, "no temporary folder %s", folder);
        return test_end();
    }
    test_header();
    test_keys();
    test_alignment();
    test_tensors();
    test_damage();
    test_values();
    test_conversions();
    test_special_files();
    test_round_trip();
    test_writer_errors();
    test_full_disk();
    test_split();
    test_real_files();
    rmdir(folder);
    return test_end();
}
