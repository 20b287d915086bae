/* Lengths of instructions, and what they do to the stack pointer. */
#include "unit.h"

#include "../../tracer/unwind_impl.h"

#include <stdio.h>

struct sample {
    const char *bytes;
    uint32_t len;
    enum ub_insn_kind kind;
    int32_t delta;
};

#define S(bytes, ...)                                                                                                  \
    {                                                                                                                  \
        bytes, sizeof(bytes) - 1, __VA_ARGS__                                                                          \
    }

static const struct sample samples[] = {
    S("\x55", UB_INSN_PUSH),                                      /* push %rbp */
    S("\x41\x57", UB_INSN_PUSH),                                  /* push %r15 */
    S("\x68\x00\x01\x00\x00", UB_INSN_PUSH),                      /* push $0x100 */
    S("\x41\xff\xb5\x00\x01\x00\x00", UB_INSN_PUSH),              /* push 0x100(%r13) */
    S("\x48\x89\xe5", UB_INSN_SET_RBP),                           /* mov %rsp,%rbp */
    S("\x48\x8b\xec", UB_INSN_SET_RBP),                           /* the same */
    S("\x89\xe5", UB_INSN_OTHER),                                 /* mov %esp,%ebp */
    S("\x49\x89\xe5", UB_INSN_OTHER),                             /* mov %rsp,%r13 */
    S("\x48\x83\xec\x28", UB_INSN_MOVE_RSP, -0x28),               /* sub $0x28,%rsp */
    S("\x48\x81\xec\x00\x10\x00\x00", UB_INSN_MOVE_RSP, -0x1000), /* sub $0x1000,%rsp */
    S("\x48\x83\xc4\x80", UB_INSN_MOVE_RSP, -128),                /* add $-128,%rsp */
    S("\x48\x83\xc4\x08", UB_INSN_MOVE_RSP, 8),                   /* add $8,%rsp */
    S("\x48\x83\xe4\xc0", UB_INSN_ALIGN_RSP, 64),                 /* and $-64,%rsp */
    S("\x48\x83\xe4\xc8", UB_INSN_CLOBBER_RSP),                   /* and with a strange mask */
    S("\x48\x29\xc4", UB_INSN_CLOBBER_RSP),                       /* sub %rax,%rsp */
    S("\x48\x2b\xe0", UB_INSN_CLOBBER_RSP),                       /* the same */
    S("\x48\x01\xec", UB_INSN_CLOBBER_RSP),                       /* add %rbp,%rsp */
    S("\x48\x03\xe5", UB_INSN_CLOBBER_RSP),                       /* the same */
    S("\x48\x89\xc4", UB_INSN_CLOBBER_RSP),                       /* mov %rax,%rsp */
    S("\x48\x8b\x65\xc8", UB_INSN_CLOBBER_RSP),                   /* mov -0x38(%rbp),%rsp */
    S("\x48\x8d\x24\x04", UB_INSN_CLOBBER_RSP),                   /* lea (%rsp,%rax),%rsp */
    S("\x48\x39\xc4", UB_INSN_OTHER),                             /* cmp %rax,%rsp */
    S("\x48\x83\xfc\x10", UB_INSN_OTHER),                         /* cmp $0x10,%rsp */
    S("\x48\x89\xec", UB_INSN_EPILOGUE),                          /* mov %rbp,%rsp */
    S("\x48\x8d\x65\xd8", UB_INSN_EPILOGUE),                      /* lea -0x28(%rbp),%rsp */
    S("\x49\x8d\x62\xf8", UB_INSN_EPILOGUE),                      /* lea -8(%r10),%rsp */
    S("\x5d", UB_INSN_EPILOGUE),                                  /* pop %rbp */
    S("\xc9", UB_INSN_EPILOGUE),                                  /* leave */
    S("\xc3", UB_INSN_LEAVES),                                    /* ret */
    S("\xe8\x00\x00\x00\x00", UB_INSN_LEAVES),                    /* call */
    S("\xff\xd0", UB_INSN_LEAVES),                                /* call *%rax */
    S("\xeb\xf0", UB_INSN_LEAVES, -16),                           /* jmp */
    S("\xe9\x00\x01\x00\x00", UB_INSN_LEAVES, 256),               /* jmp */
    S("\x0f\x84\x00\x01\x00\x00", UB_INSN_OTHER),                 /* je */
    S("\x74\x05", UB_INSN_OTHER),                                 /* je */
    S("\xf3\x0f\x1e\xfa", UB_INSN_OTHER),                         /* endbr64 */
    S("\x66\x2e\x0f\x1f\x84\x00\x00\x00\x00\x00", UB_INSN_OTHER), /* nopw */
    S("\x48\xb8\x01\x02\x03\x04\x05\x06\x07\x08", UB_INSN_OTHER), /* movabs */
    S("\x66\xc7\x05\x10\x00\x00\x00\x01\x00", UB_INSN_OTHER),     /* movw $1,0x10(%rip) */
    S("\xf7\x05\x10\x00\x00\x00\x01\x00\x00\x00", UB_INSN_OTHER), /* testl $1,0x10(%rip) */
    S("\xf7\xd8", UB_INSN_OTHER),                                 /* neg %eax */
    S("\x64\x48\x8b\x04\x25\x28\x00\x00\x00", UB_INSN_OTHER),     /* mov %fs:0x28,%rax */
    S("\xf0\x0f\xb1\x0f", UB_INSN_OTHER),                         /* lock cmpxchg */
    S("\xc5\xf8\x77", UB_INSN_OTHER),                             /* vzeroupper */
    S("\xc4\xe2\x7d\x58\x05\x10\x00\x00\x00", UB_INSN_OTHER),     /* vpbroadcastd 0x10(%rip),%ymm0 */
    S("\xc4\xe3\x7d\x39\xc0\x01", UB_INSN_OTHER),                 /* vextracti128 */
    S("\x62\xf1\x7c\x48\x28\x44\x24\x01", UB_INSN_OTHER),         /* vmovaps 0x40(%rsp),%zmm0 */
};

static void decode(void **state)
{
    for (uint32_t i = 0; i < UB_ARRAY_LEN(samples); i++) {
        const struct sample *s = &samples[i];
        struct ub_insn insn;
        uint8_t bytes[20] = {0};

        memcpy(bytes, s->bytes, s->len);
        if (!ub_insn_decode(bytes, sizeof(bytes), &insn) || insn.len != s->len || insn.kind != s->kind ||
            insn.delta != s->delta)
            fail_msg("sample %u: length %u, kind %d, delta %d", i, insn.len, insn.kind, insn.delta);
        for (uint32_t len = 0; len < s->len; len++) /* never beyond the bytes that there are */
            assert_false(ub_insn_decode(bytes, len, &insn));
    }
}

static void details(void **state)
{
    struct ub_insn insn;

    assert_true(ub_insn_decode((const uint8_t *)"\xc3", 1, &insn) && insn.returns && !insn.jumps);
    assert_true(ub_insn_decode((const uint8_t *)"\xeb\x10", 2, &insn) && insn.jumps && !insn.returns);
    assert_true(ub_insn_decode((const uint8_t *)"\x48\x8b\x5c\x24\xf8", 5, &insn) &&
                insn.below_stack); /* mov -8(%rsp),%rbx */
    assert_true(ub_insn_decode((const uint8_t *)"\x48\x8b\x5c\x24\x08", 5, &insn) && !insn.below_stack);
    assert_true(ub_insn_decode((const uint8_t *)"\x48\x8b\x5d\xf8", 4, &insn) &&
                !insn.below_stack); /* mov -8(%rbp),%rbx */
    assert_false(ub_insn_decode((const uint8_t *)"\x06\x00\x00", 3, &insn));
}

static void calls(void **state)
{
    static const struct {
        const char *bytes;
        enum ub_call call;
    } before[] = {
        {"\x90\x90\xe8\x10\x00\x00\x00", UB_CALL_DIRECT},   {"\x90\x90\x90\x90\x90\xff\xd0", UB_CALL_INDIRECT},
        {"\x90\x90\x90\x90\x41\xff\xd4", UB_CALL_INDIRECT}, {"\x90\x90\x90\x90\xff\x50\x18", UB_CALL_INDIRECT},
        {"\x90\xff\x15\x10\x20\x30\x00", UB_CALL_INDIRECT}, {"\xff\x94\xc3\x10\x00\x00\x00", UB_CALL_INDIRECT},
        {"\x90\x90\x90\xff\x54\x24\x08", UB_CALL_INDIRECT}, {"\x90\x90\x90\x90\xff\x14\xc8", UB_CALL_INDIRECT},
        {"\x90\x90\x90\x90\x90\x0f\x05", UB_CALL_NONE},     {"\x90\x90\x90\x90\x90\xff\xe0", UB_CALL_NONE},
        {"\x90\x90\xe9\x10\x00\x00\x00", UB_CALL_NONE},     {"\x90\x90\x90\x90\x90\x90\x90", UB_CALL_NONE},
    };

    for (uint32_t i = 0; i < UB_ARRAY_LEN(before); i++) {
        uint64_t target = 0;

        assert_int_equal(ub_arch_call_before((const uint8_t *)before[i].bytes, 7, 0x1000, &target), before[i].call);
        if (before[i].call == UB_CALL_DIRECT)
            assert_int_equal(target, 0x1010);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decode),
        cmocka_unit_test(details),
        cmocka_unit_test(calls),
    };

    return cmocka_run_group_tests_name("insn", tests, NULL, NULL);
}
