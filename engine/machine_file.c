// machine_file.c: see machine.h: the calibration as a text file.
//
//   abliterate machine 1
//   date 2026-11-27T15:04:05Z
//   [host]                            then [gpu], if there was one
//   name Intel(R) Xeon(R) Processor   of the GPU: as the driver calls it
//   threads 2                         of the host only; so is isa
//   isa avx512vnni
//   bandwidth 3.2e+10                 a field of Processor: bytes, bytes or operations per second, or seconds
//   share Q4_K 0.87                   of one weight type: share_of; rate Q4_K 2.1e11: rate_of
//
// Lines are in any order inside their section; what follows a # is for people. A key that is not known, a number out of its range or a missing
// one makes the whole file useless: it was written by another version.
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "machine.h"

enum { MAX_BYTES = 1 << 16 };
static const char FIRST[] = "abliterate machine 1";
static const char *const SECTION[2] = {"[host]", "[gpu]"};

typedef struct {
    const char *key;
    size_t at;
    double min, max;
    enum { HOST, GPU, BOTH } of; // whose section
    const char *says; // for people
} Number;
static const Number NUMBERS[] = {
#define F(field) #field, offsetof(Processor, field)
    {F(memory), 0, 1e15, GPU, "bytes"},
    {F(reserve), 0, 1e15, GPU, "bytes that weights cannot have (assumed)"},
    {F(bandwidth), 1e6, 1e16, BOTH, "bytes/s of reading alone; of a GPU: of its own copy, read and written"},
    {F(experts), 0, 10, BOTH, "of what products reach, what a token's experts reach; 0: not measured"},
    {F(launch), 0, 1, BOTH, "seconds of an op, of a launch in a graph, beside its bytes"},
    {F(token), 0, 1, GPU, "seconds to start a graph and bring an id back"},
    {F(handoff), 0, 1, GPU, "seconds of a row from one side to the other, through mapped memory"},
    {F(up_pinned), 1e6, 1e16, GPU, "bytes/s over the link"},
    {F(up_pageable), 1e6, 1e16, GPU, "bytes/s over the link, of any host memory"},
    {F(down), 1e6, 1e16, GPU, "bytes/s over the link, to any host memory"},
    {F(up_mapped), 0, 1e16, GPU, "bytes/s over the link, of a file's pages that are pinned; 0: they cannot be"},
    {F(fill), 0, 1e16, HOST, "bytes/s of threads that fill pinned slots; 0: not measured"},
#undef F
};
// By weight type.
static const Number LISTS[] = {
    {"share", offsetof(Processor, share_of), 1e-6, 100, BOTH, "of the bandwidth, products with one row"},
    {"rate", offsetof(Processor, rate_of), 1e3, 1e18, BOTH, "operations/s, products with a prompt's rows"},
};
enum { N_NUMBER = sizeof NUMBERS / sizeof *NUMBERS, N_LIST = sizeof LISTS / sizeof *LISTS };

static bool is_of(const Number *n, int section) { return n->of == BOTH || (int)n->of == section; }
static double *number_of(Processor *p, const Number *n) { return (double *)((char *)p + n->at); }

// ---- where ----

bool machine_path(char *path, size_t size) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char host[65] = "this"; // of a name that does not fit the first letters
    gethostname(host, sizeof host - 1);
    for (char *c = host; *c; c++)
        if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._", *c)) *c = '_';
    int n = -1;
    if (cache && *cache == '/') n = snprintf(path, size, "%s/abliterate/machine-%s.txt", cache, host);
    else if (home && *home == '/') n = snprintf(path, size, "%s/.cache/abliterate/machine-%s.txt", home, host);
    return n > 0 && (size_t)n < size;
}

// ---- out ----

void machine_print(FILE *f, const Calibration *c) {
    fprintf(f, "%s\n# What bench calibrate has measured of this machine, for run --plan and -ngl auto. Without this file they measure or assume.\ndate %s\n", FIRST, c->date);
    if (*c->remark) fprintf(f, "# %s\n", c->remark);
    for (int i = 0; i < 2; i++) {
        Processor p = c->processor[i];
        if (i && !*c->gpu) break;
        fprintf(f, "\n%s\nname %s\n", SECTION[i], i ? c->gpu : c->cpu);
        if (!i) fprintf(f, "threads %d\nisa %s\n", c->threads, c->isa);
        for (const Number *n = NUMBERS; n < NUMBERS + N_NUMBER; n++)
            if (is_of(n, i)) fprintf(f, "%-11s %-12.4g # %s\n", n->key, *number_of(&p, n), n->says);
        for (const Number *n = LISTS; n < LISTS + N_LIST; n++) {
            const char *says = n->says;
            for (int t = 0; t < TYPE_COUNT; t++) {
                const double x = number_of(&p, n)[t];
                if (x <= 0) continue;
                fprintf(f, "%s %-*s %.4g%s%s\n", n->key, (int)(10 - strlen(n->key)), type_info(t)->name, x, *says ? "     # " : "", says);
                says = "";
            }
        }
    }
}

// The folders that a path goes through.
static void make_folder(const char *path) {
    char text[4096];
    if (strlen(path) >= sizeof text) return;
    strcpy(text, path);
    for (char *p = text + 1; (p = strchr(p, '/')); p++) {
        *p = 0;
        mkdir(text, 0777); // that it is not there is said when the file is opened
        *p = '/';
    }
}

bool machine_create(SafeFile *f, const char *path, Err *e) {
    make_folder(path);
    return safe_open(f, path, e);
}

// ---- in ----

typedef struct {
    Calibration *c;
    int section; // -1: before the first
    bool has[2], has_number[2][N_NUMBER];
} Reading;

static bool take_text(char *to, size_t size, const char *value) {
    if (strlen(value) >= size) return false;
    strcpy(to, value);
    return true;
}

static bool take_number(const char *text, const Number *n, double *to) {
    char *end;
    const double x = strtod(text, &end);
    if (end == text || *end || !isfinite(x) || x < n->min || x > n->max) return false;
    *to = x;
    return true;
}

// A line without its comment, blanks at its end, and not empty. NULL, or what is wrong with it.
static const char *take_line(Reading *r, char *line) {
    Calibration *c = r->c;
    for (int i = 0; i < 2; i++)
        if (!strcmp(line, SECTION[i])) {
            if (r->has[i]) return "a section that is there already";
            r->has[r->section = i] = true;
            return NULL;
        }
    char *value = line + strcspn(line, " ");
    if (*value) *value++ = 0;
    while (*value == ' ') value++;
    if (!*value) return "no value";
    if (r->section < 0) return strcmp(line, "date") || !take_text(c->date, sizeof c->date, value) ? "no date" : NULL;
    if (!strcmp(line, "name")) return take_text(r->section ? c->gpu : c->cpu, r->section ? sizeof c->gpu : sizeof c->cpu, value) ? NULL : "too long a name";
    if (!r->section && !strcmp(line, "isa")) return take_text(c->isa, sizeof c->isa, value) ? NULL : "too long a name";
    if (!r->section && !strcmp(line, "threads")) {
        double x;
        if (!take_number(value, &(Number){.min = 1, .max = 1024}, &x)) return "no number of threads";
        c->threads = (int)x;
        return NULL;
    }
    Processor *p = &c->processor[r->section];
    for (int i = 0; i < N_NUMBER; i++)
        if (is_of(&NUMBERS[i], r->section) && !strcmp(line, NUMBERS[i].key)) {
            r->has_number[r->section][i] = true;
            return take_number(value, &NUMBERS[i], number_of(p, &NUMBERS[i])) ? NULL : "a number out of its range";
        }
    for (const Number *n = LISTS; n < LISTS + N_LIST; n++)
        if (!strcmp(line, n->key)) {
            char *x = value + strcspn(value, " ");
            if (*x) *x++ = 0;
            while (*x == ' ') x++;
            const int type = type_by_name(value);
            if (type < 0) return "an unknown weight type";
            return take_number(x, n, &number_of(p, n)[type]) ? NULL : "a number out of its range";
        }
    return "an unknown key";
}

static const char *what_lacks(const Reading *r) {
    if (!r->has[0] || !*r->c->cpu || !*r->c->isa || !r->c->threads || !*r->c->date || r->has[1] != (*r->c->gpu != 0)) return "its names are not all there";
    for (int s = 0; s < 2; s++)
        for (int i = 0; i < N_NUMBER; i++)
            if (r->has[s] && is_of(&NUMBERS[i], s) && !r->has_number[s][i]) return NUMBERS[i].key;
    return NULL;
}

// What follows from the numbers.
static void complete(Calibration *c, const char *path) {
    static char how[2][4096 + 64];
    for (int i = 0; i < 2; i++) {
        Processor *p = &c->processor[i];
        double seconds = 0, n = 0;
        p->name = "this";
        p->label = i ? c->gpu : c->cpu;
        snprintf(how[i], sizeof how[i], "calibrated %s, %s", c->date, path);
        p->measured = how[i];
        p->share = 0;
        for (int t = 0; t < TYPE_COUNT; t++) { // of a type that was not measured: as the slowest
            if (p->share_of[t] > 0 && (p->share == 0 || p->share_of[t] < p->share)) p->share = p->share_of[t];
            if (p->rate_of[t] > 0) n++, seconds += 1 / p->rate_of[t];
        }
        p->rate = n > 0 ? n / seconds : 0;
    }
}

static bool parse(Calibration *c, FILE *f, const char *path, Err *e) {
    char line[512];
    Reading r = {.c = c, .section = -1};
    for (int n = 1; fgets(line, sizeof line, f); n++) {
        const size_t length = strlen(line);
        if (!length || line[length - 1] != '\n') return err_set(e, "%.200s: line %d: too long, or no text", path, n);
        if (n == 1 && strncmp(line, FIRST, sizeof FIRST - 1)) break;
        for (const char *p = line; *p && *p != '\n'; p++)
            if ((unsigned char)*p < ' ' || (unsigned char)*p > '~') return err_set(e, "%.200s: line %d: no text", path, n);
        line[strcspn(line, "#\n")] = 0;
        for (char *end = line + strlen(line); end > line && end[-1] == ' ';) *--end = 0;
        const char *wrong = n == 1 || !*line ? NULL : take_line(&r, line);
        if (wrong) return err_set(e, "%.200s: line %d: %s", path, n, wrong);
    }
    if (!feof(f)) return err_set(e, "%.200s: its first line is not '%s'", path, FIRST);
    const char *lacks = what_lacks(&r);
    if (lacks) return err_set(e, "%.200s: incomplete: %s", path, lacks);
    for (int s = 0; s < 2; s++) {
        bool any = false;
        for (int t = 0; t < TYPE_COUNT; t++) any |= c->processor[s].share_of[t] > 0 && c->processor[s].rate_of[t] > 0;
        if (r.has[s] && !any) return err_set(e, "%.200s: incomplete: no weight type in %s", path, SECTION[s]);
    }
    complete(c, path);
    return true;
}

bool machine_load(Calibration *c, const char *path, Err *e) {
    struct stat st;
    *c = (Calibration){0};
    const int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC); // a pipe must not stop us
    if (fd < 0) return err_set(e, "%.200s: %s", path, strerror(errno));
    if (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_size > MAX_BYTES) {
        close(fd);
        return err_set(e, "%.200s: no file of at most %d bytes", path, MAX_BYTES);
    }
    FILE *f = fdopen(fd, "r");
    if (!f) {
        close(fd);
        return err_set(e, "%.200s: no memory", path);
    }
    const bool ok = parse(c, f, path, e);
    fclose(f);
    return ok;
}
