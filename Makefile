# Tessera: `make` builds ./tessera, `make test` runs every test.  V=1 shows the commands,
# SAN=address|undefined|thread builds (and tests) under a sanitizer in a tree of its own.

CC      ?= cc
STRIP   ?= strip
PREFIX  ?= /usr/local
BUILD   := build/$(if $(SAN),$(SAN),release)
BIN     := $(if $(SAN),$(BUILD)/tessera,tessera)
COMMIT  := $(shell git describe --always --dirty 2>/dev/null || echo unknown)

CSTD    := -std=c11 -D_POSIX_C_SOURCE=200809L -D_DEFAULT_SOURCE -I. -ffp-contract=off -pthread
WARN    := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wundef \
           -Wpointer-arith -Wwrite-strings -Wno-missing-field-initializers $(if $(WERROR),-Werror)
OPT     := $(if $(SAN),-O1 -g -fno-omit-frame-pointer -fsanitize=$(SAN) $(if $(findstring undefined,$(SAN)),-fno-sanitize-recover=all),-O2 -g)
CFLAGS  += $(CSTD) $(WARN) $(OPT)
PKGS    := hwloc liburing libpcre2-8 libutf8proc libedit libcjson
LIBS    := $(shell pkg-config --libs $(PKGS)) -lm -ldl $(if $(SAN),,-ljemalloc)
CFLAGS  += $(shell pkg-config --cflags $(PKGS))

ARCH    := $(shell uname -m)
ALL_SRC := $(wildcard moe/*/*.c routing/*.c routing/fit/*.c offload/*.c quant/*.c quant/build/*.c \
             models/*.c)
ifneq ($(ARCH),x86_64)
ALL_SRC := $(filter-out %_avx2.c %_avx512.c %_amx.c,$(ALL_SRC))
endif
LIB_OBJ := $(ALL_SRC:%.c=$(BUILD)/%.o)
CLI_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(wildcard cli/*.c))
TESTS   := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/test_*.c))
FUZZ    := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/fuzz_*.c))
TOOLS   := $(patsubst bench/%.c,$(BUILD)/bench/%,$(wildcard bench/*.c))
JOBS    ?= $(shell nproc)
Q       := $(if $(V),,@)
comma   := ,

all: $(BIN)

%_avx2.o:   TIER := -mavx2 -mfma -mf16c
%_avx512.o %_amx.o: TIER := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vbmi -mavx512vnni -mavx2 -mfma -mf16c -mprefer-vector-width=512

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	@$(if $(V),,echo "  cc    $<")
	$(Q)$(CC) $(CFLAGS) $(TIER) $(DEFS) -MMD -MP -c -o $@ $<

$(BUILD)/cli/main.o: DEFS := -DTESSERA_COMMIT='"$(COMMIT)"'

# A plugin and the program must have been built from the same layouts and arithmetic: both carry a
# digest of the sources that fix these.
DIGEST := $(shell cat $(sort $(wildcard quant/*.[ch] moe/compute/*.[ch] moe/compute/cuda/*.[ch] \
            moe/compute/cuda/*.cu moe/base/*.h)) | \
            sha256sum | cut -c1-16)
DEVID  := -DDEV_DIGEST='"$(DIGEST)"'
# A file that is newer than what was built with another digest.
$(shell mkdir -p build; echo $(DIGEST) | cmp -s - build/digest || echo $(DIGEST) >build/digest)
$(BUILD)/moe/compute/devid.o: DEFS := $(DEVID)
$(BUILD)/moe/compute/devid.o: build/digest

$(BUILD)/libtessera.a: $(LIB_OBJ)
	@rm -f $@
	@$(if $(V),,echo "  ar    $@")
	$(Q)ar rcs $@ $(LIB_OBJ)

# A budget is charged for what starting reads of files: so jemalloc is part of the program, without the
# C++ library that its shared object brings along (where the system has it so), and what a debugger needs
# stays in the build.  Plugins and their libraries must find all of its functions.
HEAP_FN := malloc calloc realloc free aligned_alloc posix_memalign memalign valloc malloc_usable_size
HEAP    := $(if $(filter /%,$(shell $(CC) -print-file-name=libjemalloc_pic.a)),-l:libjemalloc_pic.a \
             $(HEAP_FN:%=-Wl$(comma)--export-dynamic-symbol=%),-ljemalloc)

$(BUILD)/tessera: $(CLI_OBJ) $(BUILD)/libtessera.a
	@$(if $(V),,echo "  link  $@")
	$(Q)$(CC) $(CFLAGS) -o $@ $^ $(if $(SAN),$(LIBS),$(LIBS:-ljemalloc=$(HEAP)))

tessera: $(BUILD)/tessera
	$(Q)$(STRIP) -o $@ $<

# Tests that fail the Nth call (tests/fault.h) wrap the functions that they fail.
FAULTS := malloc calloc realloc free strdup aligned_alloc mmap mprotect open pread fopen fwrite \
          fflush fsync fclose rename pthread_create
FAULT_LINK := $(FAULTS:%=-Wl$(comma)--wrap=%)
LINK_test_engine := $(FAULT_LINK)
LINK_test_budget := $(FAULT_LINK)
LINK_test_recurrent := $(FAULT_LINK)
LINK_test_fault_base := $(FAULT_LINK)
LINK_test_fault_tok := $(FAULT_LINK)
LINK_test_fault_gguf := $(FAULT_LINK)
LINK_test_fault_convert := $(FAULT_LINK)

$(BUILD)/tests/%: $(BUILD)/tests/%.o $(BUILD)/libtessera.a
	@$(if $(V),,echo "  link  $@")
	$(Q)$(CC) $(CFLAGS) $(LINK_$*) -o $@ $^ $(LIBS) $(shell pkg-config --libs cmocka)

# ---- the CUDA plugin ----

# What of the program a plugin brings along, once more, as code for a shared object.
DEVICE_SRC := $(wildcard moe/compute/cuda/*.c)
PLUGIN_SRC := $(DEVICE_SRC) moe/compute/devid.c moe/base/err.c quant/qtype.c
PLUGIN_CC  = $(CC) $(CFLAGS) -fPIC -fvisibility=hidden $(DEVID)

# Without CUDA: its runtime, and the threads of kernels, emulated, for tests.
EMU     := $(BUILD)/cuda_emu
EMU_CC   = $(PLUGIN_CC) -Itests/cuda_emu -DCHECK_CUDA_ON='"the CPU, emulated"' -DCHECK_CUDA_CLOCK=0 -MMD -MP
EMU_OBJ := $(EMU)/kernels.o $(EMU)/product.o $(EMU)/emu.o $(EMU)/emu_mma.o
EMU_SO  := $(EMU)/tessera_cuda.so

$(EMU)/%.o: moe/compute/cuda/%.cu
	@mkdir -p $(@D)
	@$(if $(V),,echo "  cc    $< (as C)")
	$(Q)$(EMU_CC) -x c -c -o $@ $<

$(EMU)/%.o: tests/cuda_emu/%.c
	@mkdir -p $(@D)
	@$(if $(V),,echo "  cc    $<")
	$(Q)$(EMU_CC) -c -o $@ $<

$(EMU)/plugin/%.o: %.c build/digest
	@mkdir -p $(@D)
	@$(if $(V),,echo "  cc    $< (emulated)")
	$(Q)$(EMU_CC) -c -o $@ $<

$(EMU_SO): $(PLUGIN_SRC:%.c=$(EMU)/plugin/%.o) $(EMU_OBJ)
	@$(if $(V),,echo "  link  $@")
	$(Q)$(CC) $(CFLAGS) -shared -Wl,-Bsymbolic -o $@ $^ -lm

# The same of another build, which the program must refuse.
$(EMU)/old/tessera_cuda.so: $(filter-out %devid.o,$(PLUGIN_SRC:%.c=$(EMU)/plugin/%.o)) $(EMU_OBJ) moe/compute/devid.c
	@mkdir -p $(@D)
	$(Q)$(filter-out -DDEV_DIGEST%,$(EMU_CC)) -DDEV_DIGEST='"of yesterday"' -shared -Wl,-Bsymbolic -o $@ $^ -lm

$(BUILD)/tests/test_device $(BUILD)/tests/test_stack: | $(EMU_SO) $(EMU)/old/tessera_cuda.so

$(BUILD)/tests/check_cuda: $(EMU)/plugin/tests/check_cuda.o $(DEVICE_SRC:%.c=$(EMU)/plugin/%.o) $(EMU_OBJ) $(BUILD)/libtessera.a
	@mkdir -p $(@D)
	@$(if $(V),,echo "  link  $@")
	$(Q)$(CC) $(CFLAGS) -o $@ $^ $(LIBS)

# With CUDA: `make cuda` builds tessera_cuda.so beside the program, and the same checker for a GPU.
# CUDA_ARCH: compute capabilities to compile for; the last one is kept as PTX, too, for newer ones.
NVCC      ?= $(firstword $(wildcard $(shell command -v nvcc 2>/dev/null) /usr/local/cuda/bin/nvcc) nvcc)
CUDA_HOME ?= $(abspath $(dir $(shell command -v $(NVCC) 2>/dev/null))/..)
CUDA_ARCH ?= 75 80 86 89 90
NVFLAGS    = -O3 -std=c++17 -I. -fmad=false -ftz=false -prec-div=true -Xcompiler -fPIC,-fvisibility=hidden,-fno-threadsafe-statics \
             $(foreach a,$(CUDA_ARCH),-gencode arch=compute_$(a),code=sm_$(a)) \
             -gencode arch=compute_$(lastword $(CUDA_ARCH)),code=compute_$(lastword $(CUDA_ARCH))
CUDA_CC    = $(PLUGIN_CC) -I$(CUDA_HOME)/include -DCHECK_CUDA_ON='"a GPU"' -DCHECK_CUDA_CLOCK=1 -MMD -MP
CUDA_LINK  = -L$(CUDA_HOME)/lib64 -lcudart_static -lpthread -ldl -lrt -lm
CUDA_H    := $(wildcard moe/compute/cuda/*.h) moe/compute/elem.h moe/compute/elem_exp.h moe/compute/op.h quant/tile.h quant/qtype.h quant/grid_body.h quant/nest_body.h

cuda: tessera_cuda.so build/cuda/check_cuda

CUDA_OBJ  := build/cuda/kernels.o build/cuda/product.o

$(CUDA_OBJ): build/cuda/%.o: moe/compute/cuda/%.cu $(CUDA_H)
	@mkdir -p $(@D)
	@$(if $(V),,echo "  nvcc  $< ($(CUDA_ARCH))")
	$(Q)$(NVCC) $(NVFLAGS) -c -o $@ $<

build/cuda/%.o: %.c build/digest
	@mkdir -p $(@D)
	@$(if $(V),,echo "  cc    $< (CUDA)")
	$(Q)$(CUDA_CC) -c -o $@ $<

tessera_cuda.so: $(PLUGIN_SRC:%.c=build/cuda/%.o) $(CUDA_OBJ)
	@$(if $(V),,echo "  link  $@")
	$(Q)$(CC) $(CFLAGS) -shared -Wl,-Bsymbolic,-z,defs -Wl,--exclude-libs,ALL -static-libgcc -o $@ $^ $(CUDA_LINK)

build/cuda/check_cuda: build/cuda/tests/check_cuda.o $(DEVICE_SRC:%.c=build/cuda/%.o) $(CUDA_OBJ) $(BUILD)/libtessera.a
	@$(if $(V),,echo "  link  $@")
	$(Q)$(CC) $(CFLAGS) -o $@ $^ $(LIBS) $(CUDA_LINK)

$(BUILD)/bench/%: $(BUILD)/bench/%.o $(BUILD)/libtessera.a
	@$(if $(V),,echo "  link  $@")
	$(Q)$(CC) $(CFLAGS) -o $@ $^ $(LIBS)

tools: $(TOOLS)

# ---- tests ----

CHECKS  := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/check_*.c))
SCRIPTS := $(wildcard tests/cli_*.sh)
REPLAY  := $(foreach f,$(FUZZ),"$(f) tests/corpus/$(f:$(BUILD)/tests/fuzz_%=%)")

LONGEST := $(addprefix $(BUILD)/tests/test_,budget stack device depth engine)

# One configuration: what takes longest, so that no core waits for it in the end, the kernel checks,
# unit tests, fuzz corpora, command line.
test-one: $(BIN) $(EMU_SO) $(EMU)/old/tessera_cuda.so $(TESTS) $(CHECKS) $(FUZZ) $(TOOLS)
	$(Q)BIN=./$(BIN) EMU=$(EMU) GEN=$(BUILD)/bench/gen_model bash tests/run.sh $(LONGEST) $(CHECKS) \
	    $(if $(SAN),,tests/includes.sh) $(filter-out $(LONGEST),$(TESTS)) $(REPLAY) $(SCRIPTS)

# Everything, twice: as released, and under AddressSanitizer and UBSan.
test:
	$(Q)$(MAKE) -j$(JOBS) test-one
	$(Q)$(MAKE) -j$(JOBS) SAN=address,undefined test-one
	@echo "all tests passed"

check: $(CHECKS)
	$(Q)for c in $(CHECKS); do $$c || exit 1; done

bench: $(BIN) $(CHECKS) $(TOOLS)
	$(Q)for c in $(CHECKS); do $$c --bench || exit 1; done

# Coverage-guided fuzzing with clang's libFuzzer, MINUTES each (needs clang and libclang-rt), in a tree
# of its own.  What it finds goes to build/fuzz; what is worth keeping is copied to tests/corpus by hand.
MINUTES ?= 5
fuzz:
	$(Q)$(MAKE) -j$(JOBS) CC=clang SAN=address,undefined,fuzzer-no-link DEFS=-DFUZZER fuzz-targets
	$(Q)for n in $(patsubst tests/fuzz_%.c,%,$(wildcard tests/fuzz_*.c)); do \
	  mkdir -p build/fuzz/$$n && \
	  build/fuzz/fuzz_$$n -max_total_time=$$(( $(MINUTES) * 60 )) -max_len=65536 \
	    build/fuzz/$$n tests/corpus/$$n || exit 1; done

fuzz-targets: $(FUZZ:$(BUILD)/tests/%=build/fuzz/%)

build/fuzz/%: $(BUILD)/tests/%.o $(BUILD)/libtessera.a
	@mkdir -p $(@D)
	@$(if $(V),,echo "  link  $@")
	$(Q)$(CC) $(CFLAGS) -fsanitize=fuzzer -o $@ $^ $(LIBS)

chat: $(BIN)
	./$(BIN) chat -m models/zoo/story-q8_0.gguf

clean:
	rm -rf build tessera tessera_cuda.so

install: $(BIN)
	install -D -m 755 $(BIN) $(DESTDIR)$(PREFIX)/bin/tessera
	[ ! -f tessera_cuda.so ] || install -D -m 755 tessera_cuda.so $(DESTDIR)$(PREFIX)/lib/tessera/tessera_cuda.so

-include $(shell find build -name '*.d' 2>/dev/null)
.PHONY: all cuda tools clean install test test-one check bench fuzz fuzz-targets chat
.SECONDARY:
