# make              bin/run, bin/abliterate, bin/bench (CPU; CUDA joins where nvcc and a GPU are)
# make demo         the technique end to end on a small model of this repository; make demo-gemma: on one of Gemma's shape
# make test         everything; ends with "N passed, N failed, N skipped"
# make asan         the same tests under the address and undefined-behaviour sanitizers
# make bench        tokens/s, and their shares of what memory and processor could do
# make gpu-check    on a machine with a GPU: everything that needs one, right and fast, in 8 minutes (EMU=1: a dry run)
# make fuzz         libFuzzer targets (clang), FUZZ_SECONDS each
# make install      PREFIX=/usr/local DESTDIR=
# Switches: CC=clang  CUDA=0  CUDA=1 (though no GPU is here)  CUDA_ARCH="75 86 89 90" (default: this machine's GPU)  V=1 (shows the commands)
CC      ?= cc
PREFIX  ?= /usr/local
BUILD   ?= build
BIN     ?= bin
FUZZ_SECONDS ?= 300
PYTHON ?= python3

ifeq ($(origin CC),default)
CC := cc
endif

# As many jobs as there are processors; an own -j goes before. (make clean all: in that order.)
ifeq ($(MAKELEVEL)$(filter clean,$(MAKECMDGOALS)),0)
MAKEFLAGS += -j$(shell nproc 2>/dev/null || echo 1)
endif

WARN    := -Wall -Wextra -Werror -Wno-unknown-pragmas -Wvla -Wstrict-prototypes
CFLAGS  ?= -O3 -g
BASE    := -std=c11 -D_GNU_SOURCE $(WARN) -MMD -MP
INCLUDE  = $(foreach d,$(1),-I$(d))
LDLIBS  := -lm -lpthread

# CUDA kernels join where nvcc and a GPU are; CUDA=1: where nvcc is. Everything but the .cu files stays C11 and is linked by $(CC); cudart is
# linked statically and looks for a driver at run time, so that the programs start anywhere.
NVCC      ?= $(firstword $(shell command -v nvcc 2>/dev/null) $(wildcard /usr/local/cuda/bin/nvcc))
CUDA_HOME ?= $(if $(NVCC),$(patsubst %/bin/nvcc,%,$(realpath $(NVCC))))
# For which GPUs: those of this machine that can be (compute capability 7.5 and later); asked for where there are none, an RTX 30 (86). For all: make CUDA_ARCH="75 86 89 90".
GPUS      := $(sort $(subst .,,$(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | grep -E '^(7\.[5-9]|[89]\.[0-9]|[1-9][0-9]\.[0-9])$$')))
ifeq ($(origin CUDA),undefined)
CUDA      := $(if $(or $(GPUS),$(filter-out undefined,$(origin CUDA_ARCH))),1,0)
ifeq ($(MAKELEVEL)$(CUDA)$(if $(NVCC),,none)$(MAKECMDGOALS),00)
$(info nvidia-smi lists no GPU: for the CPU alone; make CUDA=1 builds the CUDA kernels, too)
endif
endif
CUDA_ARCH ?= $(or $(GPUS),86)
CUDA_SRC  := $(wildcard kernels/*.cu)
ifeq ($(and $(filter 1,$(CUDA)),$(NVCC)),)
DEVICE    := $(BUILD)/kernels/cuda_none.o
YARDSTICK := $(BUILD)/bench/yardstick_none.o
else
DEVICE    := $(CUDA_SRC:%=$(BUILD)/%.o)
YARDSTICK := $(BUILD)/bench/yardstick.cu.o
DEVICE_LIBS := -L$(CUDA_HOME)/lib64 -lcudart_static -lpthread -ldl -lrt
# The newest also as PTX, for cards to come.
NVCC_FLAGS := -std=c++17 -O3 --split-compile=0 -Werror all-warnings -Xcompiler -Wall,-Wextra,-fno-threadsafe-statics,-fno-exceptions,-fno-rtti -Ikernels \
              $(foreach a,$(CUDA_ARCH),-gencode arch=compute_$a,code=sm_$a) -gencode arch=compute_$(lastword $(CUDA_ARCH)),code=compute_$(lastword $(CUDA_ARCH))
endif

MACHINE := $(shell $(CC) -dumpmachine 2>/dev/null)

# kernels <- loader <- engine <- abliterate <- bench, tests: a folder sees itself and those to its left.
INC_kernels    := $(call INCLUDE,kernels)
INC_loader     := $(call INCLUDE,kernels loader)
INC_engine     := $(call INCLUDE,kernels loader engine)
INC_abliterate := $(call INCLUDE,kernels loader engine abliterate)
INC_bench      := $(INC_abliterate) -Ibench -I$(BUILD)
INC_tests      := $(INC_abliterate) -Itests

# The only files compiled for more than the baseline CPU; chosen at run time from CPUID and XGETBV (kernels/cpu.c).
ifneq ($(findstring x86_64,$(MACHINE)),)
# Without -fno-var-tracking debug information of their inlined loops takes a third of the time they compile.
ISA_dot_avx2       := -mavx2 -mfma -mf16c -fno-var-tracking
ISA_dot_avxvnni    := $(ISA_dot_avx2) $(shell $(CC) -mavxvnni -E -x c /dev/null -o /dev/null 2>/dev/null && echo -mavxvnni) # gcc 11, clang 12
ISA_dot_avx512vnni := $(ISA_dot_avx2) -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni
ISA_gemm_avx2       = $(ISA_dot_avx2)
ISA_gemm_avxvnni    = $(ISA_dot_avxvnni)
ISA_gemm_avx512vnni = $(ISA_dot_avx512vnni)
ISA_gemm_amx        = $(ISA_dot_avx512vnni) $(shell $(CC) -mamx-tile -mamx-int8 -E -x c /dev/null -o /dev/null 2>/dev/null && echo -mamx-tile -mamx-int8) # gcc 11, clang 12
ISA_test_amx        = $(ISA_dot_avx512vnni) # gemm_amx.c once more, with a model of the tiles
ISA_vec_avx2        = $(ISA_dot_avx2)
ISA_vec_avx512     := $(ISA_dot_avx2) -mavx512f -mavx512bw -mavx512vl -mavx512dq
endif
# Under sanitizers, inner loops with their sums in registers and not in watched memory: 6 times as fast.
SUMS    := $(if $(SANITIZED),-O2 -fno-sanitize-address-use-after-scope)

MAINS   := engine/run.c abliterate/abliterate.c
SRC     := $(filter-out $(MAINS) kernels/cuda_none.c,$(wildcard kernels/*.c loader/*.c engine/*.c abliterate/*.c))
OBJ     := $(SRC:%.c=$(BUILD)/%.o)
LIB     := $(BUILD)/libabliterate.a
PROGRAMS := $(BIN)/run $(BIN)/abliterate $(BIN)/bench
TESTS   := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/test_*.c))
FUZZERS := $(patsubst tests/%.c,$(BUILD)/fuzz/%,$(wildcard tests/fuzz_*.c))

Q   := $(if $(V),,@)
SAY  = $(if $(V),,@echo "  $(1)")

.PRECIOUS: $(BUILD)/%.o
.PHONY: all demo demo-llama demo-gemma demo-train test asan bench gpu-check gpu-check-programs fuzz install uninstall clean check-includes FORCE
all: $(PROGRAMS)

$(BUILD)/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(call SAY,$(CC) $<)
	$(Q)$(CC) $(BASE) $(CFLAGS) $(ISA_$(basename $(notdir $<))) $(if $(filter kernels/dot_% kernels/gemm_%,$<),$(SUMS)) $(INC_$(firstword $(subst /, ,$<))) -c $< -o $@

$(BUILD)/%.cu.o: %.cu Makefile
	@mkdir -p $(@D)
	$(call SAY,nvcc $<)
	$(Q)$(NVCC) $(NVCC_FLAGS) -MMD -MP -c $< -o $@

# What the figures of bench were made with; touched only when it changes.
$(BUILD)/commit.h: FORCE
	@mkdir -p $(@D)
	@echo '#define BUILD_COMMIT "'$$(git --no-optional-locks describe --always --dirty --abbrev=8 2>/dev/null || echo unknown)'"' > $@.tmp
	@if cmp -s $@.tmp $@; then rm $@.tmp; else mv $@.tmp $@; fi
FORCE:
$(BUILD)/bench/bench_model.o: $(BUILD)/commit.h

$(LIB): $(OBJ)
	@rm -f $@
	$(Q)ar rcs $@ $^

$(BIN)/run: $(BUILD)/engine/run.o $(LIB)
$(BIN)/abliterate: $(BUILD)/abliterate/abliterate.o $(LIB)
BENCH_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(filter-out bench/bench_ops.c bench/yardstick_none.c,$(wildcard bench/*.c)))
$(BIN)/bench: $(BENCH_OBJ) $(YARDSTICK) $(LIB)
$(PROGRAMS): $(DEVICE)
	@mkdir -p $(@D)
	$(call SAY,$(CC) $@)
	$(Q)$(CC) $(CFLAGS) $(filter-out $(LIB),$^) $(LIB) -o $@ $(DEVICE_LIBS) $(LDLIBS)

$(BUILD)/tests/%: $(BUILD)/tests/%.o $(LIB) $(BUILD)/kernels/cuda_none.o
	$(call SAY,$(CC) $@)
	$(Q)$(CC) $(CFLAGS) $(filter-out $(LIB),$^) $(LIB) -o $@ $(LDLIBS)

# The .cu files once more, for the CPU: the emulator of tests/emu runs them in test_cuda, and in $(BUILD)/emu/run as a whole program.
ifneq ($(and $(wildcard $(CUDA_HOME)/include/cuda_runtime.h),$(shell command -v g++ 2>/dev/null),$(if $(SANITIZED),,1)),)
EMU_OBJ  := $(CUDA_SRC:%.cu=$(BUILD)/emu/%.o) $(BUILD)/emu/emu_rt.o $(BUILD)/emu/emu_clock.o
EMU_FLAGS := -std=c++17 -O2 -g -mf16c -mfma -Wall -Wextra -Wno-unknown-pragmas -Ikernels -Itests/emu -isystem $(CUDA_HOME)/include -MMD -MP
$(BUILD)/emu/%.o: %.cu Makefile
	@mkdir -p $(@D)
	$(call SAY,g++ -include cuda_emu.h $<)
	$(Q)g++ $(EMU_FLAGS) -fsanitize=alignment,bounds,signed-integer-overflow,shift,integer-divide-by-zero,float-cast-overflow \
		-x c++ -include tests/emu/cuda_emu.h -c $< -o $@
$(BUILD)/emu/emu_clock.o: tests/emu/emu_clock.cpp Makefile
	@mkdir -p $(@D)
	$(call SAY,g++ -include cuda_emu.h $<)
	$(Q)g++ $(EMU_FLAGS) -include tests/emu/cuda_emu.h -c $< -o $@
$(BUILD)/emu/emu_rt.o: tests/emu/emu_rt.cpp Makefile
	@mkdir -p $(@D)
	$(call SAY,g++ $<)
	$(Q)g++ $(EMU_FLAGS) -c $< -o $@
EMU_TESTS := $(patsubst %,$(BUILD)/tests/test_%,attend clock cuda queue handoff resident split stream)
$(EMU_TESTS): $(BUILD)/tests/%: $(BUILD)/tests/%.o $(EMU_OBJ) $(LIB)
	$(call SAY,g++ $@)
	$(Q)g++ $(filter-out $(LIB),$^) $(LIB) -o $@ $(LDLIBS) -ldl -lpthread
EMU_RUN := $(BUILD)/emu/run $(BUILD)/emu/abliterate $(BUILD)/emu/bench_model $(BUILD)/emu/bench_ops
$(BUILD)/emu/run: $(BUILD)/engine/run.o
$(BUILD)/emu/abliterate: $(BUILD)/abliterate/abliterate.o
$(BUILD)/emu/bench_model: $(BENCH_OBJ) $(BUILD)/emu/bench/yardstick.o
$(BUILD)/emu/bench_ops: $(BUILD)/bench/bench_ops.o $(BUILD)/emu/bench/yardstick.o
$(EMU_RUN): $(EMU_OBJ) $(LIB)
	$(call SAY,g++ $@)
	$(Q)g++ $(filter-out $(LIB),$^) $(LIB) -o $@ $(LDLIBS) -ldl -lpthread
endif

# A file may include only from its own folder or from those to the left.
check-includes:
	@sh tests/check_includes.sh

test: check-includes all $(TESTS) $(EMU_RUN)
	@BUILD=$(BUILD) RUN=$(BIN)/run CC="$(CC)" sh tests/run_all.sh

SANITIZE := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
asan:
	@SANITIZED=1 $(MAKE) --no-print-directory BUILD=$(BUILD)-asan BIN=$(BUILD)-asan/bin CUDA=0 CFLAGS="$(SANITIZE)" test

# The technique end to end, on a small model of the Llama's or of Gemma's shape.
DEMO := abliterate/demo
demo demo-llama demo-gemma: all
	@BIN=$(BIN) OUT=$(BUILD)/demo sh $(DEMO)/demo.sh $(if $(filter demo-gemma,$@),gemma,llama)

# Trains the demo models anew (python3 with PyTorch, about 20 minutes) and writes them, in all types, to $(BUILD)/demo.
demo-train: $(BUILD)/demo/quantize
	for shape in llama gemma; do \
		$(PYTHON) $(DEMO)/train.py $$shape $(BUILD)/demo/$$shape-F16.gguf && \
		$(BUILD)/demo/quantize $(BUILD)/demo/$$shape-F16.gguf $(BUILD)/demo/$$shape-Q8_0.gguf q8_0 && \
		$(BUILD)/demo/quantize $(BUILD)/demo/$$shape-F16.gguf $(BUILD)/demo/$$shape-Q4_K_M.gguf q4_k_m || exit 1; done
$(BUILD)/demo/quantize: $(DEMO)/quantize.c $(LIB)
	@mkdir -p $(@D)
	$(call SAY,$(CC) $<)
	$(Q)$(CC) -std=c11 -D_GNU_SOURCE $(WARN) $(CFLAGS) $(INC_loader) $< $(LIB) -o $@ $(LDLIBS)

bench: $(BIN)/bench
	$(BIN)/bench --synthetic 1b

# The tests of ops and models, and the benchmark of ops, on a GPU.
GPU_PROGRAMS := $(BUILD)/gpu/test_cuda $(BUILD)/gpu/test_queue $(BUILD)/gpu/test_handoff $(BUILD)/gpu/test_stream $(BUILD)/gpu/bench_ops
$(BUILD)/gpu/test_cuda: $(BUILD)/tests/test_cuda.o
$(BUILD)/gpu/test_queue: $(BUILD)/tests/test_queue.o
$(BUILD)/gpu/test_handoff: $(BUILD)/tests/test_handoff.o
$(BUILD)/gpu/test_stream: $(BUILD)/tests/test_stream.o
$(BUILD)/gpu/bench_ops: $(BUILD)/bench/bench_ops.o $(BUILD)/bench/yardstick.cu.o
$(GPU_PROGRAMS): $(DEVICE) $(LIB)
	@mkdir -p $(@D)
	$(call SAY,$(CC) $@)
	$(Q)$(CC) $(CFLAGS) $(filter-out $(LIB),$^) $(LIB) -o $@ $(DEVICE_LIBS) $(LDLIBS)

gpu-check:
	@MAKE="$(MAKE) --no-print-directory" \
		BUILD=$(BUILD) BIN=$(BIN) EMU=$(EMU) SHARED=$(SHARED) sh bench/gpu_check.sh
gpu-check-programs: $(if $(EMU),$(EMU_RUN) $(EMU_TESTS),$(BIN)/run $(BIN)/bench $(GPU_PROGRAMS))

$(BUILD)/fuzz/%: tests/%.c $(SRC) Makefile
	@mkdir -p $(@D)
	clang -std=c11 -D_GNU_SOURCE -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all $(INC_tests) $< $(filter-out kernels/dot_% kernels/gemm_% kernels/vec_% kernels/%_cpu.c kernels/cpu.c kernels/%_ref.c kernels/ref.c kernels/cuda_none.c,$(filter kernels/% loader/%,$(SRC))) engine/tokenizer.c engine/detokenizer.c engine/vocab.c engine/unicode.c engine/pretokenize.c engine/chat.c -o $@ -lm
fuzz: $(FUZZERS)
	@for f in $(FUZZERS); do mkdir -p $(BUILD)/corpus/$$(basename $$f); echo "== $$f"; $$f -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 -rss_limit_mb=4096 -max_len=65536 $(BUILD)/corpus/$$(basename $$f) || exit 1; done

MAN := $(wildcard engine/run.1 abliterate/abliterate.1 bench/bench.1)
install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 755 $(PROGRAMS) $(DESTDIR)$(PREFIX)/bin
	install -m 644 $(MAN) $(DESTDIR)$(PREFIX)/share/man/man1
uninstall:
	rm -f $(patsubst %,$(DESTDIR)$(PREFIX)/bin/%,$(notdir $(PROGRAMS))) $(patsubst %,$(DESTDIR)$(PREFIX)/share/man/man1/%,$(notdir $(MAN)))

clean:
	rm -rf build build-* $(BIN)

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
