// bench.c: the program `bench`: how fast is a model on this machine, and how fast could it be? Chooses the subcommand.
#include "bench.h"

#include <errno.h>

#include "console.h"

static const struct {
    const char *name;
    Status (*run)(int argc, char **argv, Err *e);
} COMMANDS[] = {{"kernels", bench_kernels}, {"roofline", bench_roofline}, {"compare", bench_compare}, {"synth", bench_synth},
              {"calibrate", bench_calibrate}, {"experts", bench_experts}};
enum { N_COMMAND = sizeof COMMANDS / sizeof *COMMANDS };

int main(int argc, char **argv) {
    Err e = {0};
    int i = 0;
    while (i < N_COMMAND && !(argc > 1 && !strcmp(argv[1], COMMANDS[i].name))) i++;
    Status status = i < N_COMMAND ? COMMANDS[i].run(argc - 1, argv + 1, &e) : bench_model(argc, argv, &e);
    if ((fflush(stdout) || ferror(stdout)) && status == DONE) {
        err_set(&e, "standard output: %s", strerror(errno));
        status = FAILED;
    }
    if (status != DONE) fprintf(stderr, "bench: %s%s\n", e.text, status == USAGE ? " (bench --help lists the options)" : "");
    return status;
}
