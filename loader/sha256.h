// sha256.h: SHA-256 (FIPS 180-4), for the fingerprints in direction files. sha256_start, sha256_add as often as wanted, sha256_end.
#ifndef SHA256_H
#define SHA256_H

#include "base.h"

typedef struct {
    uint32_t state[8];
    uint64_t n;        // bytes added
    uint8_t block[64]; // the unfinished one
} Sha256;

void sha256_start(Sha256 *s);
void sha256_add(Sha256 *s, const void *bytes, size_t n);
void sha256_end(Sha256 *s, char hex[65]); // lower case, NUL terminated
void sha256_of(const void *bytes, size_t n, char hex[65]);

#endif
