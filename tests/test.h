// test.h: the smallest test frame. Each tests/test_NAME.c is one program:
//   int main(int argc, char **argv) { test_begin(argc, argv); ... CHECK(cond, "what %d", x); ... return test_end(); }
// A test program prints one line per failure and ends with "NAME: N passed, N failed, N skipped"; exit status is the verdict.
// tests/run_all.sh adds the lines up. A whole program may also be a shell script tests/test_NAME.sh with the same last line.
#ifndef TEST_H
#define TEST_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int test_passed, test_failed, test_skipped;
static const char *test_name = "test";

static inline void test_begin(int argc, char **argv) {
    const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
    test_name = slash ? slash + 1 : argv[0];
}

#define CHECK(cond, ...)                                     \
    do {                                                     \
        if (cond) test_passed++;                             \
        else {                                               \
            test_failed++;                                   \
            printf("FAIL %s:%d: ", __FILE__, __LINE__);      \
            printf(__VA_ARGS__);                             \
            printf("\n");                                    \
        }                                                    \
    } while (0)

static inline void test_skip(const char *what) {
    test_skipped++;
    printf("SKIP %s: %s\n", test_name, what);
}

static inline int test_end(void) {
    printf("%s: %d passed, %d failed, %d skipped\n", test_name, test_passed, test_failed, test_skipped);
    return test_failed ? 1 : 0;
}

// Path under ../shared, or NULL when it is not there. Two rotating buffers.
static inline const char *shared_path(const char *file) {
    static char path[4][512];
    static int turn;
    char *p = path[turn++ & 3];
    snprintf(p, 512, "../shared/%s", file);
    return access(p, R_OK) == 0 ? p : NULL;
}

// Path of a file in a folder of the test's own. Sixteen rotating buffers.
static inline const char *file_in(const char *folder, const char *name) {
    static char path[16][256];
    static int turn;
    char *p = path[turn++ & 15];
    snprintf(p, 256, "%s/%s", folder, name);
    return p;
}

#endif
