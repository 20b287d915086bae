# unblock: build, demo, tests. `make help` lists the targets.

BUILD   ?= build
PREFIX  ?= /usr/local
DESTDIR ?=
CC      ?= cc
PYTHON  ?= /usr/bin/python3
V       ?= 0
Q       := $(if $(filter 1,$(V)),,@)
say      = $(if $(filter 1,$(V)),,@printf '  %-7s %s\n' '$(1)' '$(2)')

CFLAGS   ?= -O2 -g
WARN     := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla -Wno-unused-parameter
ifneq ($(CI),)
WARN     += -Werror
endif
STD      := -std=gnu17 -D_GNU_SOURCE
ALL_CFLAGS = $(STD) $(CFLAGS) $(WARN) -MMD -MP

# The agent lives in other people's programs: libc only, nothing exported but
# the hooks, TLS that needs no allocation, unwindable by C++ exceptions.
AGENT_CFLAGS := -fPIC -fvisibility=hidden -ftls-model=initial-exec -fexceptions -fcf-protection=full \
                -fno-stack-protector -fno-plt -U_FORTIFY_SOURCE
AGENT_LDFLAGS := -shared -Wl,-soname,libunblock.so -Wl,-z,initfirst -Wl,-z,now -Wl,-z,relro -Wl,-z,nodelete \
                 -Wl,--no-undefined -Wl,-Bsymbolic -Wl,-e,ub_attach_entry

TRACER_LIBS := -lunwind-x86_64 -lunwind -lbpf -ldw -lelf -ljansson -lzstd -liberty -lncursesw -ltinfo -linih -lpthread -lm
TRACER_CFLAGS := -I/usr/include/libiberty

AGENT_SRC  := $(wildcard agent/*.c agent/*/*.c)
AGENT_ASM  := $(wildcard agent/*.S agent/*/*.S)
# tracer/bpf/*.bpf.c is built by `make bpf`.
TRACER_SRC := $(filter-out %.bpf.c,$(wildcard tracer/*.c tracer/bpf/*.c))
TRACER_ASM := $(wildcard tracer/*.S)
UI_SRC     := $(wildcard ui/*.c)
UI_LIB_SRC := $(filter-out ui/main.c,$(UI_SRC))

AGENT_OBJ  := $(AGENT_SRC:%.c=$(BUILD)/obj/%.o) $(AGENT_ASM:%.S=$(BUILD)/obj/%.o)
TRACER_OBJ := $(TRACER_SRC:%.c=$(BUILD)/obj/%.o) $(TRACER_ASM:%.S=$(BUILD)/obj/%.o)
UI_LIB_OBJ := $(UI_LIB_SRC:%.c=$(BUILD)/obj/%.o)

AGENT      := $(BUILD)/lib/unblock/libunblock.so
COMMAND    := $(BUILD)/bin/unblock

# For each CPython whose headers are there: what the agent needs of it to move asyncio's calls (agent/offload/python).
PYTHON_HEADERS ?= $(wildcard /usr/include/python3.11 /usr/include/python3.12 /usr/include/python3.13)
PYTHON_OBJECTS := $(patsubst %,$(BUILD)/lib/unblock/%.so,$(notdir $(PYTHON_HEADERS)))
CORE_LIB   := $(BUILD)/obj/libcore.a

UNIT_SRC   := $(wildcard tests/unit/test_*.c)
UNIT_BIN   := $(UNIT_SRC:%.c=$(BUILD)/%)
PROG_SRC   := $(wildcard tests/programs/*.c)
FUZZ_SRC   := $(wildcard tests/fuzz/fuzz_*.c)
FUZZ_BIN   := $(FUZZ_SRC:%.c=$(BUILD)/%)
FUZZ_TIME  ?= 60
PROG_BIN   := $(PROG_SRC:%.c=$(BUILD)/%)

.PHONY: all bpf bpf-object programs units demo check check-unit check-e2e check-servers check-offload check-offload-suites \
        check-aarch64 check-attach check-sanitizers \
        check-bpf check-exports check-peers bench soak fuzz lint deps man install clean help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

# Where nothing is asked for but compiling, as many at once as there are CPUs. Tests have the machine to themselves.
ifeq ($(filter-out all programs units,$(or $(MAKECMDGOALS),all)),)
MAKEFLAGS += -j$(shell nproc)
endif

all: $(AGENT) $(COMMAND) $(PYTHON_OBJECTS)

help:
	@sed -n 's/^## //p' Makefile

## make            build build/bin/unblock and build/lib/unblock/libunblock.so
## make deps       install what is missing to build and test (Debian), or say what to install
## make demo       set everything up and show the main job on a real server
## make check      set everything up and run every core test
## make check-servers  the same tests on redis, nginx, memcached, node, aiohttp
## make check-offload  calls moved: asyncio's, on every CPython that is here, and uvloop; libevent's, GLib's, sd-event's, libev's, real programs
## make check-offload-suites  CPython's own tests with calls moved: what differs is explained
## make check-sanitizers  calls moved in programs with ASan and UBSan in them, by an agent with UBSan; the executor under ASan, UBSan and TSan
## make check-aarch64  stacks of our own on that CPU, under QEMU
## make check-attach   into running servers and out again, 50 times each under load
## make check-exports  each export format in the tool it is for; the HTML report in a browser
## make check-peers    programs nobody here wrote behave byte for byte the same with the agent
## make check-bpf  the view from the kernel (skipped, and counted, where BPF cannot be loaded)
## make bench      what it costs, beside other tools, one table
## make soak       the long runs
## make fuzz       libFuzzer on all that reads strangers' input, FUZZ_TIME=60 seconds each
## make bpf        compile tracer/bpf/unblock.bpf.o again (clang); only for who changes the program
## make lint       clang-format, clang-tidy, cppcheck, shellcheck
## make man        man pages into build/man (scdoc)
## make install    PREFIX=/usr/local DESTDIR=

deps:
	$(Q)tests/deps.sh core

# Every target below that compiles needs the packages, so a fresh machine gets them first.
$(BUILD)/.deps: tests/deps.sh
	$(Q)mkdir -p $(BUILD)
	$(Q)tests/deps.sh core
	$(Q)touch $@

$(BUILD)/obj/agent/%.o: agent/%.c | $(BUILD)/.deps
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) $(AGENT_CFLAGS) -c $< -o $@

$(BUILD)/obj/agent/%.o: agent/%.S | $(BUILD)/.deps
	$(call say,AS,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) $(AGENT_CFLAGS) -c $< -o $@

$(BUILD)/obj/tracer/%.o: tracer/%.S | $(BUILD)/.deps
	$(call say,AS,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) -c $< -o $@

$(BUILD)/obj/%.o: %.c | $(BUILD)/.deps
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) $(TRACER_CFLAGS) -c $< -o $@

# The page of the HTML report is part of the command.
$(BUILD)/obj/ui/html_page.o $(BUILD)/fuzz/ui/html_page.o: $(wildcard ui/html/*)

PYTHON_SRC := $(wildcard agent/offload/python/*.c)

$(BUILD)/lib/unblock/python3.%.so: $(PYTHON_SRC) $(wildcard agent/offload/python/*.h agent/offload/python/*.py) \
                                   common/python_table.h | $(BUILD)/.deps
	$(call say,CC,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(STD) $(CFLAGS) $(WARN) -fPIC -shared -fvisibility=hidden -fexceptions \
	    -isystem $(filter %/python3.$*,$(PYTHON_HEADERS)) $(PYTHON_SRC) -o $@

# The export list comes from the list of hooks: a name is hooked if and only if it is exported.
$(BUILD)/obj/agent/exports.map: agent/hooks.def common/calls.def agent/exports.sh
	$(call say,GEN,$@)
	$(Q)mkdir -p $(@D)
	$(Q)agent/exports.sh agent/hooks.def common/calls.def > $@

$(AGENT): $(AGENT_OBJ) $(BUILD)/obj/agent/exports.map
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(AGENT_LDFLAGS) -Wl,--version-script=$(BUILD)/obj/agent/exports.map $(AGENT_OBJ) -o $@
	$(Q)agent/verify.sh $@

$(BUILD)/obj/tracer/bpf/object.o: tracer/bpf/unblock.bpf.o

# The BPF program is committed as an object, so that clang is needed only by who changes it.
BPF_BUILD = clang -O2 -g -target bpf -mcpu=v3 -Wall -Werror -D__TARGET_ARCH_x86 -ffile-prefix-map=$(CURDIR)=. \
            -fdebug-compilation-dir=. -c tracer/bpf/unblock.bpf.c -o $(1) && llvm-strip -g $(1)
bpf:
	$(Q)tests/deps.sh bpf
	$(call say,BPF,tracer/bpf/unblock.bpf.o)
	$(Q)$(call BPF_BUILD,tracer/bpf/unblock.bpf.o)
	$(Q)clang --version | head -n 1 > tracer/bpf/compiler

# The same into another file, to compare.
bpf-object:
	$(Q)$(call BPF_BUILD,$(BPF_OUTPUT))

$(CORE_LIB): $(TRACER_OBJ) $(UI_LIB_OBJ)
	$(call say,AR,$@)
	$(Q)rm -f $@ && ar rcs $@ $^

$(COMMAND): $(BUILD)/obj/ui/main.o $(CORE_LIB)
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $< $(CORE_LIB) $(TRACER_LIBS) -o $@

# tests ------------------------------------------------------------------

# A test states its own extra flags in a line "// flags: ..." (compiler) or "// libs: ..." (linker), and what it takes of
# the agent in a line "// agent: OBJECT...".
FLAGS_OF = $$(sed -n 's,^// flags: ,,p' $<)
LIBS_OF  = $$(sed -n 's,^// libs: ,,p' $<)
AGENT_OF = $$(sed -n 's,^// agent: ,,p' $< | sed 's,[^ ]*,$(BUILD)/obj/agent/&,g')

$(BUILD)/tests/programs/%: tests/programs/%.c | $(BUILD)/.deps
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(STD) -O2 -g -Wall -MMD -MP $(FLAGS_OF) $< $(AGENT_OF) -o $@ $(LIBS_OF) -lpthread

$(BUILD)/tests/unit/%: tests/unit/%.c $(CORE_LIB) $(AGENT)
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(STD) -O1 -g -Wall -MMD -MP $(TRACER_CFLAGS) $(FLAGS_OF) $< $(AGENT_OF) $(CORE_LIB) $(TRACER_LIBS) -lcmocka -o $@

programs: $(PROG_BIN)

units: $(UNIT_BIN)

$(BUILD)/tests/programs/fibers: $(AGENT)

check-unit: $(UNIT_BIN) programs
	$(Q)for t in $(UNIT_BIN); do echo "== $$t"; $$t || exit 1; done

# The machine may be shared: what failed is run once more, and that is printed (tests/e2e/retried.py). RETRY= is without.
RETRY ?= --reruns 1 --reruns-delay 2

# What says nothing of how long things take goes two at a time; the rest has the machine to itself.
E2E := UNBLOCK_RETRIED=$(abspath $(BUILD)/retried) $(PYTHON) -m pytest -q -rs $(RETRY) -p no:cacheprovider tests/e2e
check-e2e: all programs
	$(Q)rm -f $(BUILD)/retried; status=0; \
	    $(E2E) -n 2 --dist loadfile -m "beside and not alone" || status=1; \
	    $(E2E) -m "not beside or alone" || status=1; exit $$status

check:
	$(Q)$(MAKE) --no-print-directory all programs units
	$(Q)$(MAKE) --no-print-directory check-unit
	$(Q)$(MAKE) --no-print-directory check-e2e

check-servers: all programs
	$(Q)tests/deps.sh servers
	$(Q)$(PYTHON) -m pytest -q -rs $(RETRY) -p no:cacheprovider tests/servers

# The consumers that are no Debian packages; only these tests ever need them.
# Later versions of otlp-transformer no longer ship OpenTelemetry's definitions.
NPM_PACKAGES := speedscope playwright-core pprof-format @opentelemetry/otlp-transformer@0.208.0 @microsoft/sarif-multitool-linux

check-offload: all programs
	$(Q)tests/deps.sh servers
	$(Q)tests/deps.sh offload
	$(Q)UNBLOCK_SOAK=1 $(PYTHON) -m pytest -q -rs -p no:cacheprovider tests/e2e/test_offload_python.py \
	    tests/e2e/test_seeds_python.py tests/e2e/test_offload_event.py tests/e2e/test_offload_glib.py tests/e2e/test_offload_glib_races.py tests/e2e/test_offload_sd.py tests/e2e/test_offload_ev.py tests/e2e/test_offload_hosts.py tests/e2e/test_offload_stress.py tests/e2e/test_stress_python.py tests/e2e/test_yield_python.py tests/e2e/test_functions_python.py \
	    tests/servers/test_offload_tickers.py tests/servers/test_offload_libuv.py tests/servers/test_offload_libevent.py tests/servers/test_offload_libev.py tests/servers/test_offload_sd_event.py tests/servers/test_offload_glib_programs.py tests/servers/test_offload_databases.py

check-offload-suites: all
	$(Q)tests/deps.sh peers
	$(Q)$(PYTHON) -m pytest -q -rsP -p no:cacheprovider tests/suites

check-aarch64: all
	$(Q)tests/deps.sh aarch64
	$(Q)$(PYTHON) -m pytest -q -rs -p no:cacheprovider tests/aarch64

# The agent with UBSan's checks, which end the program; told of each switch, ASan can follow programs whose calls move (that is only done
# here, where no locks are taken: those it takes past our hooks, and semaphores, SIGPIPE's write and the setitimer of `armed`; and what a
# callback that is suspended at the end has, it takes for leaked).
SANITIZED     := $(BUILD)/sanitized
SANITIZE      := -O1 -g -DUB_SANITIZED -fsanitize=undefined -fsanitize-undefined-trap-on-error
SANITIZE_POOL := $(CC) $(STD) -O1 -g -fno-sanitize-recover=all tests/unit/test_pool_tsan.c -lcmocka -lpthread
check-sanitizers:
	$(Q)tests/deps.sh fuzz
	$(Q)$(MAKE) BUILD=$(SANITIZED) CFLAGS="$(SANITIZE)" all programs
	$(Q)$(SANITIZE_POOL) -fsanitize=address,undefined -o $(SANITIZED)/test_pool_asan && $(SANITIZED)/test_pool_asan
	$(Q)$(SANITIZE_POOL) -fsanitize=thread -o $(SANITIZED)/test_pool_tsan && $(SANITIZED)/test_pool_tsan
	$(Q)UNBLOCK_SANITIZED=1 UNBLOCK_SOAK=1 UNBLOCK_BUILD=$(abspath $(SANITIZED)) UNBLOCK_BIN=$(abspath $(SANITIZED)/bin/unblock) \
	    $(PYTHON) -m pytest -q -rs -p no:cacheprovider tests/e2e/test_offload_stress.py tests/e2e/test_offload_ready.py \
	    tests/e2e/test_offload_eager.py -k "(reordered or same_as_without) and not sigpipe and not semaphore and not exit and not armed"

check-attach: all programs
	$(Q)tests/deps.sh servers
	$(Q)UNBLOCK_CYCLES=50 $(PYTHON) -m pytest -q -s -rs -p no:cacheprovider tests/e2e/test_attach.py tests/e2e/test_attach_middle.py tests/e2e/test_attach_unload.py \
	    tests/servers/test_attach.py

check-exports: all
	$(Q)tests/deps.sh exports
	$(Q)npm install --prefix $(BUILD)/npm --no-audit --no-fund --silent $(NPM_PACKAGES) || echo "npm could not fetch: $(NPM_PACKAGES)"
	$(Q)$(PYTHON) -m pytest -q -rs -p no:cacheprovider tests/exports

check-peers: all programs
	$(Q)tests/deps.sh peers
	$(Q)$(PYTHON) -m pytest -q -rs -p no:cacheprovider tests/peers

check-bpf: all programs
	$(Q)tests/deps.sh check-bpf
	$(Q)tests/bpf/object.sh
	$(Q)$(PYTHON) -m pytest -q -rs -p no:cacheprovider tests/bpf

demo: all
	$(Q)tests/deps.sh demo
	$(Q)tests/demo.sh $(COMMAND)

bench: all programs
	$(Q)tests/deps.sh bench
	$(Q)$(PYTHON) tests/bench/bench.py

soak: all programs $(UNIT_BIN)
	$(Q)UNBLOCK_SOAK=1 $(BUILD)/tests/unit/test_chains
	$(Q)UNBLOCK_SOAK=1 UNBLOCK_STRESS=50000 $(PYTHON) -m pytest -q -rs -p no:cacheprovider tests/e2e tests/servers

# Everything of ours is built once more, with clang's instrumentation.
FUZZ_CC     := clang
FUZZ_CFLAGS := -g -O1 -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
FUZZ_LIB_OBJ := $(filter-out $(BUILD)/fuzz/ui/cmd_%,$(UI_LIB_SRC:%.c=$(BUILD)/fuzz/%.o)) $(TRACER_SRC:%.c=$(BUILD)/fuzz/%.o) \
                $(TRACER_ASM:%.S=$(BUILD)/obj/%.o)

$(BUILD)/fuzz/%.o: %.c
	$(call say,FUZZCC,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(FUZZ_CC) $(STD) $(FUZZ_CFLAGS) -MMD -MP $(TRACER_CFLAGS) -c $< -o $@

$(FUZZ_BIN): $(BUILD)/%: %.c $(FUZZ_LIB_OBJ)
	$(call say,FUZZLD,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(FUZZ_CC) $(STD) $(FUZZ_CFLAGS) -fsanitize=fuzzer -MMD -MP $(TRACER_CFLAGS) $< $(FUZZ_LIB_OBJ) $(TRACER_LIBS) -o $@

fuzz:
	$(Q)tests/deps.sh fuzz
	$(Q)$(MAKE) --no-print-directory $(FUZZ_BIN)
	$(Q)tests/fuzz/fuzz.sh $(FUZZ_TIME) $(FUZZ_BIN)

lint:
	$(Q)tests/deps.sh lint
	$(Q)tests/lint.sh

man: all
	$(Q)if command -v scdoc >/dev/null; then ui/man/build.sh $(COMMAND) $(BUILD)/man; else echo "scdoc is missing: no man pages"; fi

install: all man
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/unblock/pytest
	install -m 755 $(COMMAND) $(DESTDIR)$(PREFIX)/bin/unblock
	install -m 755 $(AGENT) $(DESTDIR)$(PREFIX)/lib/unblock/libunblock.so
	for object in $(PYTHON_OBJECTS); do install -m 755 $$object $(DESTDIR)$(PREFIX)/lib/unblock/; done
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/share/zsh/site-functions \
	    $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d $(DESTDIR)$(PREFIX)/share/man/man1
	$(COMMAND) completion bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/unblock
	$(COMMAND) completion zsh > $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_unblock
	$(COMMAND) completion fish > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/unblock.fish
	for page in $(BUILD)/man/*.1; do [ ! -e $$page ] || install -m 644 $$page $(DESTDIR)$(PREFIX)/share/man/man1/; done
	for page in $(BUILD)/man/*.5; do [ ! -e $$page ] || install -D -m 644 $$page $(DESTDIR)$(PREFIX)/share/man/man5/$${page##*/}; done
	install -m 644 ui/pytest/unblock_pytest.py $(DESTDIR)$(PREFIX)/lib/unblock/pytest/unblock_pytest.py

clean:
	rm -rf $(BUILD)

-include $(AGENT_OBJ:.o=.d) $(TRACER_OBJ:.o=.d) $(UI_LIB_OBJ:.o=.d) $(BUILD)/obj/ui/main.d $(UNIT_BIN:=.d) $(PROG_BIN:=.d) $(FUZZ_LIB_OBJ:.o=.d) $(FUZZ_BIN:=.d)
