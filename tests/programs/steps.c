// flags: -O2 -fno-reorder-blocks-and-partition
/*
 * Stops itself, then goes through a bit of everything that compilers and libc
 * do with the stack, and exits. tests/unit/test_unwind_step.c follows it
 * instruction by instruction.
 */
#include <alloca.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define FRAME __attribute__((noipa))

FRAME int leaf(int x)
{
    return x * 3 + 1;
}

FRAME int fixed(int x)
{
    volatile char room[100];

    room[x & 63] = (char)x;
    return leaf(x) + room[x & 63];
}

FRAME int by_alloca(int x)
{
    volatile char *room;

    leaf(x);
    room = alloca(16 + (size_t)x);
    room[x] = 1;
    return fixed(x) + room[x];
}

FRAME int realigned(int x)
{
    volatile char room[64] __attribute__((aligned(64)));

    room[0] = (char)x;
    return fixed(x) + room[0];
}

FRAME int many_arguments(int a, int b, int c, int d, int e, int f, int g, int h, int i)
{
    return fixed(a) + b + c + d + e + f + g + h + i;
}

/* It pushes arguments, too: then GCC finds the frame through a register of its own (r10). */
FRAME int realigned_by_r10(int x)
{
    volatile char room[64] __attribute__((aligned(64)));

    room[0] = (char)x;
    return many_arguments(x, 2, 3, 4, 5, 6, 7, 8, 9) + room[0];
}

/* What that one gives back in rbp is needed here, and here again. */
FRAME int around_realigned(int x)
{
    volatile char *room = alloca(16 + (size_t)(x & 31));

    room[3] = 1;
    return realigned_by_r10(x) + room[3];
}

FRAME __attribute__((optimize("no-omit-frame-pointer"))) int framed(int x)
{
    return around_realigned(x) + 1;
}

FRAME int variadic(int n, ...)
{
    int sum = 0;
    va_list ap;

    va_start(ap, n);
    for (int i = 0; i < n; i++)
        sum += va_arg(ap, int) + leaf(i);
    va_end(ap);
    return sum;
}

FRAME int recursive(int n)
{
    return n ? recursive(n - 1) + leaf(n) : fixed(n);
}

FRAME int tail(int x)
{
    return fixed(x + 1);
}

FRAME int compare(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}

FRAME int saves_all(int a, int b, int c)
{
    long r1 = a * 3, r2 = b * 5, r3 = c * 7, r4 = a ^ b, r5 = b ^ c, r6 = a + c;

    __asm__ volatile("" : "+r"(r1), "+r"(r2), "+r"(r3), "+r"(r4), "+r"(r5), "+r"(r6));
    leaf(a);
    __asm__ volatile("" : "+r"(r1), "+r"(r2), "+r"(r3), "+r"(r4), "+r"(r5), "+r"(r6));
    return (int)(r1 + r2 + r3 + r4 + r5 + r6);
}

FRAME int with_setjmp(int x)
{
    jmp_buf env;

    return setjmp(env) ? 0 : fixed(x);
}

FRAME int library(int x)
{
    int numbers[] = {5, 3, 9, 1};
    char text[64];
    struct tm tm;
    time_t now = 1700000000;
    char *p = malloc(100);

    qsort(numbers, 4, sizeof(numbers[0]), compare);
    snprintf(text, sizeof(text), "%d %s %.3f", x, "text", x / 3.0);
    gmtime_r(&now, &tm);
    memset(p, x, 100);
    x += (int)strlen(text) + (int)strtol("77", NULL, 10) + tm.tm_year + p[3] + numbers[0];
    free(p);
    return x;
}

int main(void)
{
    volatile int x = 5;

    raise(SIGSTOP);
    x += fixed(x);
    x += by_alloca(7);
    x += realigned(x);
    x += framed(x);
    x += many_arguments(1, 2, 3, 4, 5, 6, 7, 8, 9);
    x += variadic(3, 1, 2, 3);
    x += recursive(5);
    x += tail(3);
    x += saves_all(x, 2, 3);
    x += with_setjmp(x);
    x += library(x);
    raise(SIGSTOP); /* behind it comes start-up code without unwind tables */
    return x == 0;
}
