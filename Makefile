# Tessera: `make` builds ./tessera, `make test` runs every test.  V=1 shows the commands,
# SAN=address|undefined|thread builds (and tests) under a sanitizer in a tree of its own.

CC      ?= cc
PREFIX  ?= /usr/local
BUILD   := build/$(if $(SAN),$(SAN),release)
BIN     := $(if $(SAN),$(BUILD)/tessera,tessera)
COMMIT  := $(shell git describe --always --dirty 2>/dev/null || echo unknown)

CSTD    := -std=c11 -D_POSIX_C_SOURCE=200809L -D_DEFAULT_SOURCE -I. -ffp-contract=off -pthread
WARN    := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wundef \
           -Wpointer-arith -Wwrite-strings $(if $(WERROR),-Werror)
OPT     := $(if $(SAN),-O1 -g -fno-omit-frame-pointer -fsanitize=$(SAN) $(if $(filter undefined,$(SAN)),-fno-sanitize-recover=all),-O2 -g)
CFLAGS  += $(CSTD) $(WARN) $(OPT)
PKGS    := hwloc liburing libpcre2-8 libutf8proc libedit libcjson
LIBS    := $(shell pkg-config --libs $(PKGS)) -lm -ldl $(if $(SAN),,-ljemalloc)
CFLAGS  += $(shell pkg-config --cflags $(PKGS))

ARCH    := $(shell uname -m)
ALL_SRC := $(wildcard moe/*/*.c routing/*.c offload/*.c quant/*.c models/*.c)
ifneq ($(ARCH),x86_64)
ALL_SRC := $(filter-out %_avx2.c %_avx512.c,$(ALL_SRC))
endif
LIB_OBJ := $(ALL_SRC:%.c=$(BUILD)/%.o)
CLI_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(wildcard cli/*.c))
TESTS   := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/test_*.c))
FUZZ    := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/fuzz_*.c))
TOOLS   := $(patsubst bench/%.c,$(BUILD)/bench/%,$(wildcard bench/*.c))
Q       := $(if $(V),,@)

all: $(BIN)

%_avx2.o:   TIER := -mavx2 -mfma -mf16c
%_avx512.o: TIER := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vbmi -mavx512vnni -mavx2 -mfma -mf16c -mprefer-vector-width=512

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	@$(if $(V),,echo "  cc    $<")
	$(Q)$(CC) $(CFLAGS) $(TIER) $(DEFS) -MMD -MP -c -o $@ $<

$(BUILD)/cli/main.o: DEFS := -DTESSERA_COMMIT='"$(COMMIT)"'

$(BUILD)/libtessera.a: $(LIB_OBJ)
	@rm -f $@
	@$(if $(V),,echo "  ar    $@")
	$(Q)ar rcs $@ $(LIB_OBJ)

$(BIN): $(CLI_OBJ) $(BUILD)/libtessera.a
	@$(if $(V),,echo "  link  $@")
	$(Q)$(CC) $(CFLAGS) -o $@ $^ $(LIBS)

$(BUILD)/tests/%: $(BUILD)/tests/%.o $(BUILD)/libtessera.a
	@$(if $(V),,echo "  link  $@")
	$(Q)$(CC) $(CFLAGS) $(LINK_$*) -o $@ $^ $(LIBS) $(shell pkg-config --libs cmocka)

$(BUILD)/bench/%: $(BUILD)/bench/%.o $(BUILD)/libtessera.a
	@$(if $(V),,echo "  link  $@")
	$(Q)$(CC) $(CFLAGS) -o $@ $^ $(LIBS)

tools: $(TOOLS)

clean:
	rm -rf build tessera

install: $(BIN)
	install -D -m 755 $(BIN) $(DESTDIR)$(PREFIX)/bin/tessera

-include $(shell find build -name '*.d' 2>/dev/null)
.PHONY: all tools clean install test check bench fuzz chat
.SECONDARY:
