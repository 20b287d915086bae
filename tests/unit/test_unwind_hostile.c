/*
 * What a hostile file or process can put in the unwinder's way. First a canned
 * stack: one small image made by hand, so that each byte of its unwind table is
 * known and can be made wrong. Then real files and stacks with random bytes in
 * them: any answer will do, but one, and soon.
 */
#include "unit.h"

#include "../../common/clock.h"
#include "../../tracer/unwind_impl.h"

#include <elf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define BASE  0x400000ull /* where the image is mapped */
#define STACK 0x7ff000000000ull

#define TABLE  0x000 /* .eh_frame_hdr */
#define CIE    0x040
#define FDE_A  0x100 /* for code at A; the others likewise */
#define FDE_B  0x300
#define CODE_A 0x800
#define CODE_B 0x840
#define IMAGE  0x1000

static struct ub_capture capture;
static struct ub_stack stack;
static struct ub_unwinder *unwinder;

/* ---- the canned image ---- */

struct image {
    uint8_t bytes[IMAGE];
    struct ub_elf elf;
    struct ub_map map;
    struct ub_maps maps;
};

static void put32(struct image *m, uint32_t at, uint32_t value)
{
    memcpy(m->bytes + at, &value, sizeof(value));
}

static void put_cie(struct image *m, const char *augmentation, uint8_t return_column)
{
    uint8_t *p = m->bytes + CIE + 8;

    put32(m, CIE + 4, 0);
    *p++ = 1; /* version */
    memcpy(p, augmentation, strlen(augmentation) + 1);
    p += strlen(augmentation) + 1;
    *p++ = 1;    /* code alignment */
    *p++ = 0x78; /* data alignment -8 */
    *p++ = return_column;
    if (augmentation[0] == 'z') {
        *p++ = 1;
        *p++ = 0x1b; /* pcrel, sdata4 */
    }
    memcpy(p, "\x0c\x07\x08\x90\x01", 5); /* CFA = rsp + 8, return address at CFA - 8 */
    p += 5;
    put32(m, CIE, (uint32_t)(p - (m->bytes + CIE + 4)));
}

static void put_fde(struct image *m, uint32_t at, uint32_t code, uint32_t size, const void *cfi, size_t len)
{
    put32(m, at, (uint32_t)(13 + len));
    put32(m, at + 4, at + 4 - CIE);
    put32(m, at + 8, code - (at + 8));
    put32(m, at + 12, size);
    m->bytes[at + 16] = 0; /* no augmentation data */
    memcpy(m->bytes + at + 17, cfi, len);
}

static void put_table(struct image *m)
{
    static const uint32_t pair[] = {CODE_A, FDE_A, CODE_B, FDE_B};

    memcpy(m->bytes + TABLE, "\x01\x1b\x03\x3b", 4);
    put32(m, TABLE + 4, CIE - 4);
    put32(m, TABLE + 8, 2);
    for (uint32_t i = 0; i < 4; i++)
        put32(m, TABLE + 12 + 4 * i, pair[i] - TABLE);
}

#define UNDEFINED_RIP "\x07\x10"

/* A: CFA = rsp + 32, rbx saved. B: the outermost. */
static void make_image(struct image *m, const void *cfi_a, size_t len)
{
    memset(m, 0, sizeof(*m));
    put_table(m);
    put_cie(m, "zR", 16);
    put_fde(m, FDE_A, CODE_A, 64, cfi_a, len);
    put_fde(m, FDE_B, CODE_B, 64, UNDEFINED_RIP, 2);
    m->bytes[CODE_B + 16 - 2] = 0xff; /* call *%rax */
    m->bytes[CODE_B + 16 - 1] = 0xd0;
    m->elf = (struct ub_elf){.path = "canned",
                             .basename = "canned",
                             .bytes = m->bytes,
                             .size = IMAGE,
                             .machine = EM_X86_64,
                             .type = ET_DYN,
                             .segment_count = 1,
                             .segment = {{.filesz = IMAGE, .memsz = IMAGE, .flags = PF_R | PF_X}},
                             .eh_frame_hdr = TABLE,
                             .eh_frame_hdr_size = 12 + 16};
    m->map = (struct ub_map){.start = BASE,
                             .end = BASE + IMAGE,
                             .prot = PROT_READ | PROT_EXEC,
                             .kind = UB_MAP_FILE,
                             .path = "canned",
                             .elf = &m->elf,
                             .bias = BASE};
    m->maps = (struct ub_maps){.refs = 1000, .count = 1, .map = &m->map};
}

/* TABLE lies at 0, which stands for "none". */
static void shift_image(struct image *m)
{
    m->elf.segment[0].vaddr = 0x10000;
    m->elf.eh_frame_hdr = 0x10000 + TABLE;
    m->map.bias = BASE - 0x10000;
}

/* In A, which was called by B, eight words up. */
static void make_capture(void)
{
    uint64_t words[64];

    memset(&capture, 0, sizeof(capture));
    for (uint32_t i = 0; i < UB_ARRAY_LEN(words); i++)
        words[i] = BASE + CODE_A + 16; /* whoever misses the right word comes to A again */
    words[3] = BASE + CODE_B + 16;
    memcpy(capture.bytes, words, sizeof(words));
    capture.state = UB_THREAD_BLOCKED;
    capture.proof = UB_PROOF_STILL;
    capture.region_count = 1;
    capture.region[0] = (struct ub_stack_region){STACK, sizeof(words), 0};
    capture.reg[UB_REG_RSP] = STACK;
    capture.reg[UB_REG_RIP] = BASE + CODE_A + 8;
    capture.reg_known = UB_REG_BIT(UB_REG_RSP) | UB_REG_BIT(UB_REG_RIP);
}

static struct image image;

static void unwind(void)
{
    uint64_t begin = ub_clock_monotonic_ns();

    assert_int_equal(ub_unwind(unwinder, &image.maps, &capture, &stack), 0);
    assert_true(ub_clock_monotonic_ns() - begin < 2000000000ull);
    assert_true(stack.count >= 1 && stack.count <= UB_FRAMES_MAX);
    assert_true(stack.frame[0].pc == capture.reg[UB_REG_RIP]);
}

/* A different image each time at the same address: no cache may survive that. */
static void unwind_with(const void *cfi, size_t len)
{
    ub_unwinder_free(unwinder);
    assert_int_equal(ub_unwinder_new(&unwinder), 0);
    make_image(&image, cfi, len);
    shift_image(&image);
    make_capture();
}

#define WITH(cfi) unwind_with(cfi, sizeof(cfi) - 1)

static void assert_stopped(void)
{
    unwind();
    assert_int_equal(stack.count, 1);
    assert_false(stack.complete);
}

#define GOOD "\x0e\x20\x83\x02" /* CFA = rsp + 32; rbx at CFA - 16 */

static void canned(void **state)
{
    WITH(GOOD);
    for (int i = 0; i < 3; i++) {
        unwind();
        assert_int_equal(stack.count, 2);
        assert_true(stack.complete);
        assert_true(stack.frame[0].cfa == STACK + 32);
        assert_false(stack.frame[0].is_call);
        assert_true(stack.frame[1].pc == BASE + CODE_B + 16);
        assert_true(stack.frame[1].is_call);
    }
}

/*
 * A pc that once was a return address and once stands by itself: the function's
 * rows differ there, and a cache that has seen the one must not answer the other.
 */
static void two_meanings_of_a_pc(void **state)
{
    static const char rows[] = GOOD "\x51\x0e\x10"; /* from A + 17 on: CFA = rsp + 16 */
    uint64_t words[64] = {0};

    unwind_with(rows, sizeof(rows) - 1);
    image.bytes[CODE_A + 15] = 0xff;
    image.bytes[CODE_A + 16] = 0xd0;
    words[3] = BASE + CODE_A + 17; /* returns there: as of the call, CFA = rsp + 32 */
    words[7] = BASE + CODE_B + 16;
    words[1] = BASE + CODE_B + 16;
    memcpy(capture.bytes, words, sizeof(words));
    for (int i = 0; i < 3; i++) {
        capture.reg[UB_REG_RIP] = BASE + CODE_A + 8;
        unwind();
        assert_int_equal(stack.count, 3);
        assert_true(stack.complete && stack.frame[1].cfa == STACK + 64);
        capture.reg[UB_REG_RIP] = BASE + CODE_A + 17; /* stands there: CFA = rsp + 16 */
        unwind();
        assert_int_equal(stack.count, 2);
        assert_true(stack.complete && stack.frame[0].cfa == STACK + 16);
    }
}

/* Each of these is refused: libunwind would crash, loop or run out of memory over some. */
static void bad_instructions(void **state)
{
    char bomb[600];

    WITH(GOOD "\x16\x03\x06\x11\x01\x11\x7f\x1b\x06"); /* val_expression with a division */
    assert_stopped();
    WITH("\x0f\x0c\x11\x80\x80\x80\x80\x80\x80\x80\x80\x80\x7f\x31\x1b"); /* LONG_MIN / lit1 */
    assert_stopped();
    WITH(GOOD "\x05\x40\x01"); /* a register that there is not */
    assert_stopped();
    WITH(GOOD "\xb3\x01");
    assert_stopped();
    WITH("\x0c\xff\xff\xff\xff\x0f\x08");
    assert_stopped();
    WITH(GOOD "\x09\x03\x50"); /* rbx is in a register that there is not */
    assert_stopped();
    WITH(GOOD "\x0b"); /* restores what was not remembered */
    assert_stopped();
    WITH(GOOD "\x3f");
    assert_stopped();
    WITH(GOOD "\x10\x03\x7f"); /* a block longer than the entry */
    assert_stopped();
    WITH("\x0e\x80\x80\x80"); /* a number without an end */
    assert_stopped();
    memset(bomb, 0x0a, sizeof(bomb));
    unwind_with(bomb, 400);
    assert_stopped();
}

/* DW_OP_skip to itself: libunwind evaluates it as often as we let it. */
static void endless_expression(void **state)
{
    WITH("\x0f\x03\x2f\xfd\xff");
    assert_stopped();
    WITH("\x0f\x06\x30\x31\x28\xfc\xff\x06"); /* DW_OP_bra, backwards */
    unwind();
    assert_false(stack.complete);
}

static void bad_frames(void **state)
{
    WITH("\x0e\x00\x11\x10\x7d"); /* the caller's frame begins where this one does; B's address is found all the same */
    assert_stopped();
    WITH("\x12\x07\x08\x11\x10\x75"); /* and below it */
    assert_stopped();
    WITH("\x0e\x80\x80\x80\x80\x80\x80\x80\x01"); /* far away */
    assert_stopped();
    WITH("\x08\x07"); /* nothing is wrong; but A returns into A for ever */
    memcpy(capture.bytes + 24, capture.bytes, 8);
    unwind();
    assert_false(stack.complete);
    assert_true(stack.count > 2);
}

static void bad_tables(void **state)
{
    static const char *const augmentations[] = {"zRx", "eh", "R", "zZ"};

    for (uint32_t i = 0; i < UB_ARRAY_LEN(augmentations); i++) {
        WITH(GOOD);
        put_cie(&image, augmentations[i], 16);
        assert_stopped();
    }
    WITH(GOOD);
    put_cie(&image, "zR", 200); /* an index into libunwind's array of registers */
    assert_stopped();
    WITH(GOOD);
    put32(&image, FDE_A + 4, FDE_A + 4); /* the CIE would be the header */
    assert_stopped();
    WITH(GOOD);
    put32(&image, FDE_A, 0xffffffffu);
    assert_stopped();
    WITH(GOOD);
    put32(&image, FDE_A, 3);
    assert_stopped();
    WITH(GOOD);
    put32(&image, FDE_A + 12, 4); /* the function is too short for the pc */
    assert_stopped();
    WITH(GOOD);
    put32(&image, TABLE + 8, 0x7fffffff); /* more entries than there is room */
    assert_stopped();
    WITH(GOOD);
    put32(&image, TABLE + 16, 0x7ffffff0u); /* an entry outside the file */
    assert_stopped();
    WITH(GOOD);
    image.bytes[TABLE + 3] = 0x3c;
    assert_stopped();
    WITH(GOOD);
    image.elf.eh_frame_hdr_size = 1ull << 60;
    assert_stopped();
    WITH(GOOD);
    image.elf.eh_frame_hdr = 0; /* and no section headers either */
    assert_stopped();
}

/* No table for the pc: frame pointers must not be guessed, even where they would work. */
static void no_guess(void **state)
{
    uint64_t words[4] = {0, BASE + CODE_B + 16, 0, 0};

    WITH(GOOD);
    memcpy(capture.bytes, words, sizeof(words));
    capture.reg[UB_REG_RIP] = BASE + CODE_B + 128;
    capture.reg[UB_REG_RBP] = STACK;
    capture.reg_known |= UB_REG_BIT(UB_REG_RBP);
    assert_stopped();
    image.map.elf = NULL; /* as code that a JIT made, they are followed */
    unwind();
    assert_int_equal(stack.count, 2);
    assert_int_equal(stack.frame[0].how, UB_FRAME_FP);
    assert_true(stack.frame[1].pc == BASE + CODE_B + 16);
    capture.reg[UB_REG_RBP] = STACK - 8; /* not into the void */
    assert_stopped();
    capture.reg[UB_REG_RBP] = STACK + 4;
    assert_stopped();
}

/* ---- random damage ---- */

static uint64_t rnd(void)
{
    static uint64_t x = 0x9e3779b97f4a7c15ull;

    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return x;
}

/* A real stack of this very program's child, and copies of its files to be damaged. */
struct victim {
    struct ub_maps *maps, damaged;
    struct ub_map map[512];
    struct ub_elf elf[64];
    uint8_t *copy[64];
    uint32_t elf_count;
};

static void __attribute__((noipa)) sleeper(int depth)
{
    volatile char room[40];

    room[depth] = 1;
    if (depth == 0)
        pause();
    else
        sleeper(depth - 1);
    room[depth]++;
}

static struct ub_elf *damaged_elf(struct victim *v, const struct ub_elf *elf)
{
    uint32_t i;

    for (i = 0; i < v->elf_count; i++)
        if (v->elf[i].path == elf->path)
            return &v->elf[i];
    assert_true(v->elf_count < UB_ARRAY_LEN(v->elf));
    v->elf[i] = *elf;
    v->copy[i] = malloc(elf->size);
    memcpy(v->copy[i], elf->bytes, elf->size);
    v->elf[i].bytes = v->copy[i];
    v->elf_count++;
    return &v->elf[i];
}

static void take_victim(struct victim *v)
{
    pid_t pid = fork();

    if (pid == 0)
        sleeper(12);
    do
        usleep(1000);
    while (ub_capture_peek(pid, pid, &capture) == 0 && capture.nr != SYS_pause);
    v->maps = NULL;
    v->elf_count = 0;
    assert_int_equal(ub_maps_load(pid, NULL, &v->maps), 0);
    assert_int_equal(ub_capture_blocked(pid, pid, v->maps, &capture), 0);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    assert_true(v->maps->count <= UB_ARRAY_LEN(v->map));
    memcpy(v->map, v->maps->map, v->maps->count * sizeof(v->map[0]));
    v->damaged = *v->maps;
    v->damaged.refs = 1000000;
    v->damaged.map = v->map;
    for (uint32_t i = 0; i < v->maps->count; i++)
        if (v->map[i].elf)
            v->map[i].elf = damaged_elf(v, v->map[i].elf);
}

static uint64_t offset_of(const struct ub_elf *elf, uint64_t vaddr)
{
    for (uint32_t i = 0; i < elf->segment_count; i++)
        if (vaddr - elf->segment[i].vaddr < elf->segment[i].filesz)
            return vaddr - elf->segment[i].vaddr + elf->segment[i].offset;
    return 0;
}

/* The tables of a frame's function are where damage is felt: its FDE, its CIE, or anywhere near. */
static void damage_tables(struct victim *v, const struct ub_stack *good)
{
    const struct ub_frame *f = &good->frame[rnd() % good->count];
    const struct ub_map *m = ub_maps_find(&v->damaged, f->pc - 1);
    uint32_t i = m && m->elf ? (uint32_t)(m->elf - v->elf) : 0;
    const struct ub_elf *elf = &v->elf[i];
    struct ub_fde fde;
    uint64_t at;

    if (m && m->elf && ub_fde_find(unwinder, elf, f->pc - 1 - m->bias, &fde, NULL) == 0)
        at = offset_of(elf, fde.address) + rnd() % 64;
    else
        at = offset_of(elf, elf->eh_frame_hdr) + rnd() % 256;
    if (at < elf->size)
        v->copy[i][at] = (uint8_t)rnd();
}

static void random_damage(void **state)
{
    static struct ub_capture good_capture;
    static struct ub_stack good;
    static struct victim v; /* not on the stack that is captured: it is larger than a copy */
    uint32_t complete = 0, rounds = 3000;

    ub_unwinder_free(unwinder);
    assert_int_equal(ub_unwinder_new(&unwinder), 0);
    take_victim(&v);
    good_capture = capture;
    assert_int_equal(ub_unwind(unwinder, v.maps, &capture, &good), 0);
    assert_true(good.complete && good.count > 12);
    for (uint32_t i = 0; i < rounds; i++) {
        if (i % 20 == 0) /* start anew */
            for (uint32_t k = 0; k < v.elf_count; k++)
                for (uint32_t s = 0; s < v.maps->count; s++)
                    if (v.map[s].elf == &v.elf[k]) {
                        memcpy(v.copy[k], v.maps->map[s].elf->bytes, v.elf[k].size);
                        break;
                    }
        capture = good_capture;
        for (uint32_t k = rnd() % 3; k; k--)
            capture.bytes[rnd() % capture.region[0].len] = (uint8_t)rnd();
        damage_tables(&v, &good);
        if (rnd() % 4 == 0) {
            capture.reg[UB_REG_RBP] = capture.reg[UB_REG_RSP] + rnd() % 4096;
            capture.reg_known |= UB_REG_BIT(UB_REG_RBP);
        }
        image.maps = v.damaged;
        image.maps.hash = i;
        unw_flush_cache(unwinder->space[0].as, 0, 0);
        unw_flush_cache(unwinder->space[1].as ? unwinder->space[1].as : unwinder->plain, 0, 0);
        unwind();
        complete += stack.complete;
    }
    printf("  %u of %u damaged stacks still complete\n", complete, rounds);
    for (uint32_t k = 0; k < v.elf_count; k++)
        free(v.copy[k]);
    ub_unwinder_free(unwinder);
    unwinder = NULL;
    ub_maps_unref(v.maps);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(canned),           cmocka_unit_test(two_meanings_of_a_pc),
        cmocka_unit_test(bad_instructions), cmocka_unit_test(endless_expression),
        cmocka_unit_test(bad_frames),       cmocka_unit_test(bad_tables),
        cmocka_unit_test(no_guess),         cmocka_unit_test(random_damage),
    };

    setbuf(stdout, NULL);
    return cmocka_run_group_tests_name("unwind, hostile", tests, NULL, NULL);
}
