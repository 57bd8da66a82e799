// test_place.c: how much of a model goes to a device: place_units, and sizes as --vram takes them.
#include "place.h"
#include "test.h"

int main(int argc, char **argv) {
    test_begin(argc, argv);
    // 3 layers: head 50; from the last layer on FFN 30, attention 10
    const uint64_t bytes[] = {50, 30, 10, 30, 10, 30, 10};
    const Units u = {bytes, 7, false}, whole = {bytes, 7, true};
    const struct { int gpu_layers; uint64_t budget; int units, units_whole; } cases[] = {
        {0, 1000, 0, 0}, {-1, 1000, 0, 0}, {1, 1000, 1, 1}, {2, 1000, 3, 3}, {3, 1000, 5, 5}, {4, 1000, 7, 7}, {90, 1000, 7, 7},
        {90, 170, 7, 7}, {90, 169, 6, 5}, {90, 159, 5, 5}, {90, 130, 5, 5}, {90, 129, 4, 3}, {90, 80, 2, 1}, {90, 79, 1, 1}, {90, 50, 1, 1},
        {90, 49, 0, 0}, {90, 0, 0, 0}, {2, 85, 2, 1}, {90, UINT64_MAX, 7, 7},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int n = place_units(&u, cases[i].gpu_layers, cases[i].budget), w = place_units(&whole, cases[i].gpu_layers, cases[i].budget);
        CHECK(n == cases[i].units && w == cases[i].units_whole, "-ngl %d, %llu bytes: %d and %d units, expected %d and %d", cases[i].gpu_layers,
              (unsigned long long)cases[i].budget, n, w, cases[i].units, cases[i].units_whole);
    }
    const uint64_t huge[] = {UINT64_MAX, 1, 1}; // sums must not wrap
    CHECK(place_units(&(Units){huge, 3, false}, 90, UINT64_MAX) == 1, "a sum of sizes wrapped");

    const struct { const char *text; uint64_t bytes; } sizes[] = {{"12G", 12ull << 30}, {"1.5G", 3ull << 29}, {"800M", 800ull << 20}, {"64K", 64 << 10}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint64_t got = 0;
        Err e = {0};
        CHECK(place_parse_bytes(sizes[i].text, &got, &e) && got == sizes[i].bytes, "%s is %llu", sizes[i].text, (unsigned long long)got);
    }
    const char *const wrong[] = {"", "12", "G", "-1G", "0G", "nanG", "infG", "1e30G", "12GB", "12 G", "12g"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        uint64_t got = 0;
        Err e = {0};
        CHECK(!place_parse_bytes(wrong[i], &got, &e) && strstr(e.text, "12G or 800M"), "'%s' was taken as %llu", wrong[i], (unsigned long long)got);
    }
    return test_end();
}
