// gguf.h: the GGUF container, version 2 and 3: map it, check every byte of its tables, look up keys and tensors; write one.
// Knows no transformer. Files are little-endian; big-endian ones are refused. Everything a file claims is hostile until checked.
//
// Reading: gguf_open (follows split files from part 1), lookups, gguf_close. All returned pointers live until gguf_close.
// Amending: gguf_header_like gives the header of a file that is an open one with keys and tensors added, all else as it was.
// Writing: gguf_writer_open, set keys and declare tensors in order, then for each tensor in the same order
// gguf_writer_data (in one or more pieces) and gguf_writer_next; gguf_writer_close. The file appears under its name only when it is complete (FILE.tmp, then rename).
#ifndef GGUF_H
#define GGUF_H

#include "quant.h"

typedef enum {
    GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL, GGUF_STRING, GGUF_ARRAY, GGUF_U64, GGUF_I64, GGUF_F64
} GgufType;

typedef struct {
    const char *p; // not NUL terminated, may hold any bytes
    uint64_t n;
} GgufString;

typedef struct {
    GgufString key;
    GgufType type;      // GGUF_ARRAY: see elem, n
    GgufType elem;      // type of the elements (scalar: same as type)
    uint64_t n;         // number of elements; 1 for a scalar
    const uint8_t *raw; // n packed little-endian elements at any address; strings: n x {u64 length, bytes}
    GgufString *strings; // element type string: [n] views; else NULL
} GgufKey;

typedef struct {
    GgufString name;    // at most 63 bytes, no NUL
    char name_z[64];    // the same, terminated
    int n_dims;         // 0..4
    uint64_t ne[4];     // fastest first, missing ones are 1
    int type;           // a number of the type table; may be one we cannot compute with
    uint64_t bytes;
    const void *data;   // NULL only if the file was opened with gguf_open's metadata_only
    int part;           // 0-based split file that holds it
} GgufTensor;

typedef struct Gguf {
    char *path;
    int version;
    uint64_t alignment;
    uint64_t n_key, n_tensor;
    GgufKey *keys;
    GgufTensor *tensors;
    uint64_t file_bytes; // all parts
    uint64_t data_bytes; // all tensors
    uint64_t infos_at;   // where the tensor infos begin in the first part, after the keys
    uint64_t data_at;    // and the first tensor; without tensors: where the infos end
    struct GgufMap *maps; // one per part
    int n_map;
    bool no_mmap;        // gguf_fetch reads; may be set after opening
    struct GgufIndex *key_index, *tensor_index;
} Gguf;

MUST_CHECK bool gguf_open(Gguf *g, const char *path, Err *e);
// The same on bytes in memory (fuzzing, tests); borrowed, no split files.
MUST_CHECK bool gguf_open_memory(Gguf *g, const void *bytes, size_t n, Err *e);
const uint8_t *gguf_bytes(const Gguf *g, uint64_t *n); // the first part as it lies in the file
void gguf_close(Gguf *g); // accepts zeroed and half-open objects
bool gguf_holds(const Gguf *g, const void *p); // p lies in a mapped file
// Brings the bytes at p into memory, so that who computes with them does not wait for the disk: their pages are touched, or with
// no_mmap replaced by memory that is read from the file (a page is a round trip on a slow network disk). The address stays the
// same. What lies in no file is left alone. Only no_mmap can fail.
MUST_CHECK bool gguf_fetch(const Gguf *g, const void *p, uint64_t n, Err *e);
// The opposite: gives back the memory of the pages that they fill. Touched again, they are read again.
void gguf_forget(const Gguf *g, const void *p, uint64_t n);
void gguf_expect(const Gguf *g, const void *p, uint64_t n); // it may soon be read: if it is on disk only, that begins to come; nobody waits

const GgufKey *gguf_key(const Gguf *g, const char *key);          // NULL if absent
const GgufTensor *gguf_tensor(const Gguf *g, const char *name);   // NULL if absent
const char *gguf_type_name(GgufType t);

// Scalars. Absent: *out keeps its value and the call succeeds. Present with a wrong type or a value that does not fit: error.
// Integers accept every integer type and whole-number floats; floats accept f32, f64 and integers; bool accepts bool and integers 0, 1.
MUST_CHECK bool gguf_get_int(const Gguf *g, const char *key, int64_t min, int64_t max, int64_t *out, Err *e);
MUST_CHECK bool gguf_get_float(const Gguf *g, const char *key, float *out, Err *e); // finite
MUST_CHECK bool gguf_get_bool(const Gguf *g, const char *key, bool *out, Err *e);
MUST_CHECK bool gguf_get_string(const Gguf *g, const char *key, GgufString *out, Err *e);
// Element i of an array (or of a scalar, i = 0), converted; the caller has checked i < n and the element type.
int64_t gguf_elem_int(const GgufKey *k, uint64_t i);
double gguf_elem_float(const GgufKey *k, uint64_t i);
static inline bool gguf_is_integer(GgufType t) { return t <= GGUF_I32 || t == GGUF_BOOL || t == GGUF_U64 || t == GGUF_I64; }
static inline bool gguf_is_float(GgufType t) { return t == GGUF_F32 || t == GGUF_F64; }

// ---- writing ----
typedef struct GgufWriter GgufWriter;
// path NULL: only collects keys and tensors, for gguf_header_like; then gguf_writer_abort.
MUST_CHECK bool gguf_writer_open(GgufWriter **out, const char *path, Err *e);
// Keys, in order; a key set twice keeps its place and takes the last value. Errors surface in gguf_writer_close.
void gguf_set_u16(GgufWriter *w, const char *key, uint16_t v);
void gguf_set_u32(GgufWriter *w, const char *key, uint32_t v);
void gguf_set_i32(GgufWriter *w, const char *key, int32_t v);
void gguf_set_f32(GgufWriter *w, const char *key, float v);
void gguf_set_bool(GgufWriter *w, const char *key, bool v);
void gguf_set_string(GgufWriter *w, const char *key, const char *p, size_t n);
void gguf_set_array(GgufWriter *w, const char *key, GgufType elem, const void *packed, uint64_t n); // not strings
void gguf_set_strings(GgufWriter *w, const char *key, const GgufString *s, uint64_t n);
void gguf_copy_key(GgufWriter *w, const GgufKey *k); // any key of an open file, byte for byte
// Drops a key set or copied before; absent is fine.
void gguf_remove_key(GgufWriter *w, const char *key);
// Declares the next tensor. ne: n_dims sizes, fastest first.
void gguf_add_tensor(GgufWriter *w, const char *name, int type, int n_dims, const uint64_t *ne);
uint64_t gguf_writer_tensors(const GgufWriter *w);                  // how many so far
uint64_t gguf_writer_tensor_bytes(const GgufWriter *w, uint64_t i); // of tensor i, without padding
// Appends bytes to the tensors' data, in declaration order; may be called in pieces. The first call writes the header.
MUST_CHECK bool gguf_writer_data(GgufWriter *w, const void *p, size_t n, Err *e);
// The same for n zero bytes, which take no room on a disk that can leave them out: files for whoever reads only the tables.
MUST_CHECK bool gguf_writer_hole(GgufWriter *w, uint64_t n, Err *e);
// Starts on the next tensor: checks that the current one received exactly its bytes, pads.
MUST_CHECK bool gguf_writer_next(GgufWriter *w, Err *e);
// Completes, fsyncs and renames. On any error the temporary file is removed and nothing is left behind.
MUST_CHECK bool gguf_writer_close(GgufWriter *w, Err *e);
void gguf_writer_abort(GgufWriter *w); // removes the temporary file; accepts NULL

// Everything before the data of a file that is g, in one part, with w's keys and tensors after its own and types[i] (-1: as it
// is) the type of its tensor i. g's keys keep their bytes, and where no tensor changes its size so do its infos. A key or
// tensor of w that g has, too, is an error. *bytes [*n] is the caller's; offset [g's and w's tensors] receives where each
// tensor begins in the data that follows.
MUST_CHECK bool gguf_header_like(const Gguf *g, const GgufWriter *w, const int *types, uint8_t **bytes, uint64_t *n, uint64_t *offset, Err *e);

#endif
