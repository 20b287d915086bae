/* The links of chain.c, each of another make: frames as compilers build them. Part of chain.c, after the waits. */

#define DECLARE(n) long f##n(struct run *r, int depth)
DECLARE(0);
DECLARE(1);
DECLARE(2);
DECLARE(3);
DECLARE(5);
DECLARE(6);
DECLARE(7);
DECLARE(8);
DECLARE(9);
DECLARE(10);
DECLARE(11);
DECLARE(12);
DECLARE(13);
DECLARE(14);
DECLARE(15);
DECLARE(16);
long f4(struct run *r, int depth, long a, long b, long c, long d, long e, long f, long g);

typedef long (*chain_f)(struct run *r, int depth);
static const chain_f by_pointer[CHAIN_FUNCTIONS] = {f0, f1,  f2,  NULL, NULL, f5,  f6,  f7, f8,
                                                    f9, f10, f11, f12,  f13,  f14, f15, f16};

static inline __attribute__((always_inline)) long call_direct(struct run *r, int depth)
{
    switch (r->plan->fn[depth]) {
    case 0:
        return f0(r, depth);
    case 1:
        return f1(r, depth);
    case 2:
        return f2(r, depth);
    case 3:
        return f3(r, depth);
    case 4:
        return f4(r, depth, 1, 2, 3, 4, 5, 6, 7);
    case 5:
        return f5(r, depth);
    case 6:
        return f6(r, depth);
    case 7:
        return f7(r, depth);
    case 8:
        return f8(r, depth);
    case 9:
        return f9(r, depth);
    case 10:
        return f10(r, depth);
    case 11:
        return f11(r, depth);
    case 12:
        return f12(r, depth);
    case 13:
        return f13(r, depth);
    case 14:
        return f14(r, depth);
    case 15:
        return f15(r, depth);
    default:
        return f16(r, depth);
    }
}

/* The next link. Half of the functions call by name, half through a pointer. */
static inline __attribute__((always_inline)) long next(struct run *r, int depth, bool direct)
{
    long v;

    if (depth + 1 == r->plan->depth)
        v = waits[r->plan->wait](r);
    else if (direct || !by_pointer[r->plan->fn[depth + 1]])
        v = call_direct(r, depth + 1);
    else
        v = by_pointer[r->plan->fn[depth + 1]](r, depth + 1);
    __asm__ volatile("" : "+r"(v)); /* not a tail call */
    return v;
}

FRAME long f0(struct run *r, int depth)
{
    return next(r, depth, true) + 1;
}

FRAME long f1(struct run *r, int depth)
{
    return next(r, depth, false) + 1;
}

FRAME long f2(struct run *r, int depth)
{
    volatile char room[700];

    room[0] = (char)depth;
    room[699] = 1;
    return next(r, depth, true) + room[0] + room[699];
}

/*
 * The one with alloca in all builds. Like most such functions it is never
 * called through a pointer; so its address is told without a pointer to it.
 */
__asm__(".pushsection .rodata\n\t.balign 8\nf3_from_f2: .quad f3 - f2\n\t.popsection");
extern const long f3_from_f2 __attribute__((visibility("hidden")));

FRAME long f3(struct run *r, int depth)
{
    size_t n = 16 + (size_t)(r->random % 300);
    volatile char *room = alloca(n);
    long v;

    room[0] = (char)depth;
    v = next(r, depth, true);
    return v + room[0];
}

FRAME long f4(struct run *r, int depth, long a, long b, long c, long d, long e, long f, long g)
{
    return next(r, depth, true) + a + b + c + d + e + f + g;
}

static __thread struct {
    struct run *r;
    int depth;
    bool gone;
    long v;
} pass; /* what qsort's callback has no parameter for */

FRAME int via5(const void *a, const void *b)
{
    if (!pass.gone) {
        pass.gone = true;
        pass.v = next(pass.r, pass.depth, true);
    }
    return 0;
}

FRAME long f5(struct run *r, int depth)
{
    int pair[2] = {1, 2};

    pass.r = r;
    pass.depth = depth;
    pass.gone = false;
    qsort(pair, 2, sizeof(pair[0]), via5);
    return pass.v + pair[0];
}

/* More values alive over the call than there are registers to keep them: rbp is one of them. */
FRAME long f6(struct run *r, int depth)
{
    long a = depth * 3, b = depth ^ 5, c = (long)r->random, d = c >> 3, e = a * b, f = c ^ e, g = d + 7, h = e | 9;
    long v;

    __asm__ volatile("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d), "+r"(e), "+r"(f));
    v = next(r, depth, false);
    __asm__ volatile("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d), "+r"(e), "+r"(f));
    return v + a + b + c + d + e + f + g + h;
}

FRAME long f7(struct run *r, int depth)
{
    double x = depth, y = x * 1.5, z = y + 2;
    long v = next(r, depth, true);

    return v + (long)(x + y + z);
}

FRAME long f8(struct run *r, int depth)
{
    volatile char room[64] __attribute__((aligned(64)));

    room[0] = (char)depth;
    return next(r, depth, true) + room[0];
}

FRAME long f9(struct run *r, int depth)
{
    long v = next(r, depth, false);

    return depth & 1 ? v - 1 : v + 1;
}

FRAME long f10(struct run *r, int depth)
{
#ifdef CHAIN_ALLOCA
    volatile char room[8 + r->random % 200];

    room[depth & 7] = 2;
    return next(r, depth, true) + room[depth & 7];
#else
    return next(r, depth, true) + 10;
#endif
}

FRAME long f11(struct run *r, int depth)
{
    if (r->random % 3)
        return next(r, depth, false) + 2;
    return next(r, depth, true) - 2;
}

FRAME long f12(struct run *r, int depth)
{
    volatile char room[1500];

    room[1499] = room[0] = (char)depth;
    return next(r, depth, true) + room[1499];
}

FRAME long f13(struct run *r, int depth)
{
    jmp_buf env;
    volatile long v = 0;

    if (setjmp(env) == 0)
        v = next(r, depth, true);
    return v;
}

static inline __attribute__((always_inline)) void forget(long *v)
{
    *v = 0;
}

FRAME long f14(struct run *r, int depth)
{
    long kept __attribute__((cleanup(forget))) = depth;
    long v;

    __asm__ volatile("" : "+m"(kept));
    v = next(r, depth, false);
    return v + kept;
}

FRAME __attribute__((optimize("no-omit-frame-pointer"))) long f15(struct run *r, int depth)
{
    return next(r, depth, true) + 15;
}

/* Gives its frame back and jumps away in the middle, behind a condition, and goes on with the frame below that. */
FRAME __attribute__((optimize("no-omit-frame-pointer"))) long f16(struct run *r, int depth)
{
    static long (*volatile elsewhere)(struct run * r, int depth) = f0;
    volatile uintptr_t frame = (uintptr_t)__builtin_frame_address(0);

    if (__builtin_expect(frame == 1, 1)) /* it never is */
        return elsewhere(r, depth);
    return next(r, depth, true) + (long)(frame & 0xf);
}
