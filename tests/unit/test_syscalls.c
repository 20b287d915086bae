/* System calls: the table against the kernel's own header, and the text of arguments. */
#include "../../tracer/syscalls.h"
#include "../../tracer/line.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

static const char *format(int64_t nr, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3)
{
    static char buf[UB_SYSCALL_ARGS_MAX];
    const uint64_t arg[6] = {a0, a1, a2, a3};

    ub_syscall_format(getpid(), nr, arg, buf, sizeof(buf));
    return buf;
}

#define P(pointer) ((uint64_t)(uintptr_t)(pointer))

static void test_names_are_the_kernels(void **state)
{
    FILE *header = fopen("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "r");
    char text[256], name[64], buf[UB_SYSCALL_NAME_MAX];
    long nr;
    int seen = 0;

    if (header == NULL)
        skip();
    while (fgets(text, sizeof(text), header) != NULL) {
        if (sscanf(text, "#define __NR_%63s %ld", name, &nr) != 2)
            continue;
        seen++;
        assert_string_equal(ub_syscall_name(nr, buf), name);
        assert_int_equal(ub_syscall_number(name), nr);
    }
    fclose(header);
    assert_true(seen > 300);
}

static void test_every_entry_is_well_formed(void **state)
{
    static const struct {
        int64_t nr;
        const char *name, *args;
    } all[] = {
#define X(nr, name, args) {nr, #name, args},
#include "../../tracer/syscalls.def"
#undef X
    };

    for (size_t i = 0; i < UB_ARRAY_LEN(all); i++) {
        char buf[UB_SYSCALL_NAME_MAX];

        assert_true(strspn(all[i].args, "fdpionzNmtvTaxOFCLS-") == strlen(all[i].args));
        assert_true(strlen(all[i].args) <= 6);
        assert_int_equal(ub_syscall_arg_count(all[i].nr), strlen(all[i].args));
        assert_string_equal(ub_syscall_name(all[i].nr, buf), all[i].name);
        /* No argument, however wild, is worth a crash. */
        for (uint64_t wild = 0; wild < 4; wild++) {
            const uint64_t values[] = {0, UINT64_MAX, 0x7fffffffffff, 1};

            format(all[i].nr, values[wild], values[wild], values[wild], values[wild]);
        }
    }
}

static void test_unknown_numbers(void **state)
{
    char buf[UB_SYSCALL_NAME_MAX];

    assert_string_equal(ub_syscall_name(1234, buf), "syscall_1234");
    assert_string_equal(ub_syscall_name(400, buf), "syscall_400");
    assert_string_equal(ub_syscall_name(-1, buf), "syscall_?");
    assert_string_equal(ub_syscall_name(INT64_MAX, buf), "syscall_?");
    assert_int_equal(ub_syscall_fd_arg(1234), -1);
    assert_int_equal(ub_syscall_number("no_such_call"), -ENOENT);
}

static void test_descriptor_argument(void **state)
{
    assert_int_equal(ub_syscall_fd_arg(SYS_read), 0);
    assert_int_equal(ub_syscall_fd_arg(SYS_fsync), 0);
    assert_int_equal(ub_syscall_fd_arg(SYS_mmap), 4);
    assert_int_equal(ub_syscall_fd_arg(SYS_openat), -1);
    assert_int_equal(ub_syscall_fd_arg(SYS_nanosleep), -1);
    assert_int_equal(ub_syscall_fd_arg(SYS_futex), -1);
    assert_int_equal(ub_syscall_fd_arg(SYS_epoll_wait), 0);
}

static void test_plain_arguments(void **state)
{
    assert_string_equal(format(SYS_fsync, 7, 0, 0, 0), "7");
    assert_string_equal(format(SYS_read, 7, 0x1000, 65536, 0), "7, 65536");
    assert_string_equal(format(SYS_pread64, 7, 0x1000, 512, 1ull << 40), "7, 512, 1099511627776");
    assert_string_equal(format(SYS_poll, 0x1000, 3, 1000, 0), "3 fds, 1000 ms");
    assert_string_equal(format(SYS_poll, 0x1000, 3, (uint32_t)-1, 0), "3 fds, no timeout");
    assert_string_equal(format(SYS_futex, 0x7f30d0, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 2, 0), "0x7f30d0, FUTEX_WAIT");
    assert_string_equal(format(SYS_futex, 16, FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME, 2, 0),
                        "0x10, FUTEX_WAIT_BITSET");
    assert_string_equal(format(SYS_flock, 5, LOCK_EX, 0, 0), "5, LOCK_EX");
    assert_string_equal(format(SYS_fcntl, 5, F_SETLKW, 0x1000, 0), "5, F_SETLKW");
    assert_string_equal(format(SYS_kill, 12, SIGTERM, 0, 0), "12, SIGTERM");
    assert_string_equal(format(SYS_sync, 1, 2, 3, 4), "");
    /* The upper half of a register that holds an int is not defined. */
    assert_string_equal(format(SYS_fsync, 0xdeadbeef00000007, 0, 0, 0), "7");
}

static void test_strings(void **state)
{
    assert_string_equal(format(SYS_openat, (uint32_t)AT_FDCWD, P("/etc/app.conf"), O_RDONLY, 0),
                        "\"/etc/app.conf\", O_RDONLY");
    assert_string_equal(format(SYS_openat, 4, P("x"), O_WRONLY | O_CREAT | O_TRUNC, 0),
                        "4, \"x\", O_WRONLY|O_CREAT|O_TRUNC");
    assert_string_equal(format(SYS_openat, 4, P("x"), O_RDWR | O_TMPFILE, 0), "4, \"x\", O_RDWR|O_TMPFILE");
    assert_string_equal(format(SYS_rename, P("a\nb\x1b[31m"), P("q\"\\"), 0, 0), "\"a\\nb\\x1b[31m\", \"q\\\"\\\\\"");
    assert_string_equal(format(SYS_chdir, P("\xff\xc3\xa9"), 0, 0, 0), "\"\\xff\xc3\xa9\"");
    assert_string_equal(format(SYS_chdir, 0, 0, 0, 0), "NULL");
    assert_string_equal(format(SYS_chdir, 8, 0, 0, 0), "0x8");
}

static void test_string_at_the_end_of_memory(void **state)
{
    char *two = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    assert_true(two != MAP_FAILED);
    assert_int_equal(munmap(two + 4096, 4096), 0);
    strcpy(two + 4096 - 5, "/tmp");
    assert_string_equal(format(SYS_chdir, P(two + 4096 - 5), 0, 0, 0), "\"/tmp\"");
    two[4095] = '!';
    assert_string_equal(format(SYS_chdir, P(two + 4096 - 5), 0, 0, 0), "\"/tmp!\"...");
    munmap(two, 4096);
}

static void test_long_strings_are_cut(void **state)
{
    char path[2000];
    const char *text;

    memset(path, 'x', sizeof(path));
    path[sizeof(path) - 1] = '\0';
    text = format(SYS_chdir, P(path), 0, 0, 0);
    assert_true(strlen(text) < UB_SYSCALL_STRING_MAX + 10);
    assert_string_equal(text + strlen(text) - 4, "\"...");
}

static void test_addresses(void **state)
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(443)};
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = htons(80), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    struct sockaddr_un un = {.sun_family = AF_UNIX, .sun_path = "/run/x.sock"};
    struct sockaddr_un abstract = {.sun_family = AF_UNIX, .sun_path = "\0name"};

    inet_pton(AF_INET, "10.0.3.7", &in.sin_addr);
    assert_string_equal(format(SYS_connect, 14, P(&in), sizeof(in), 0), "14, 10.0.3.7:443");
    assert_string_equal(format(SYS_connect, 14, P(&in6), sizeof(in6), 0), "14, [::1]:80");
    assert_string_equal(format(SYS_connect, 14, P(&un), sizeof(un), 0), "14, /run/x.sock");
    assert_string_equal(format(SYS_connect, 14, P(&abstract), offsetof(struct sockaddr_un, sun_path) + 5, 0),
                        "14, @name");
    assert_string_equal(format(SYS_connect, 14, 8, sizeof(in), 0), "14, 0x8");
}

static void test_timeouts(void **state)
{
    struct timespec long_one = {1, 500000000}, short_one = {0, 2500000}, tiny = {0, 1500};

    assert_string_equal(format(SYS_nanosleep, P(&long_one), 0, 0, 0), "1.5 s");
    assert_string_equal(format(SYS_nanosleep, P(&short_one), 0, 0, 0), "2.5 ms");
    assert_string_equal(format(SYS_nanosleep, P(&tiny), 0, 0, 0), "1.5 us");
    assert_string_equal(format(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, P(&short_one), 0), "2.5 ms");
    assert_string_equal(format(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, P(&long_one), 0),
                        "until 1.500000000");
    assert_string_equal(format(SYS_ppoll, 0x1000, 2, P(&long_one), 0), "2 fds, 1.5 s");
    assert_string_equal(format(SYS_ppoll, 0x1000, 2, 0, 0), "2 fds, no timeout");
}

static void test_copied_memory(void **state)
{
    static const char path[] = "/etc/copied";
    const uint64_t arg[6] = {(uintptr_t)path, O_RDONLY};
    struct ub_syscall_memory memory = {.address = (uintptr_t)path, .bytes = "/was/there", .len = 11};
    char buf[UB_SYSCALL_ARGS_MAX];

    (void)state;
    /* What was copied counts, not what is there now; another address is only an address. */
    ub_syscall_format_copied(&memory, SYS_open, arg, buf, sizeof(buf));
    assert_string_equal(buf, "\"/was/there\", O_RDONLY");
    memory.address++;
    ub_syscall_format_copied(&memory, SYS_open, arg, buf, sizeof(buf));
    assert_non_null(strstr(buf, "0x"));
    assert_null(strstr(buf, "there"));
    assert_int_equal(ub_syscall_pointer_arg(SYS_openat), 1);
    assert_int_equal(ub_syscall_pointer_arg(SYS_connect), 1);
    assert_int_equal(ub_syscall_pointer_arg(SYS_clock_nanosleep), 2);
    assert_int_equal(ub_syscall_pointer_arg(SYS_fsync), -1);
    assert_int_equal(ub_syscall_pointer_arg(100000), -1);
}

static void test_small_buffers(void **state)
{
    const uint64_t arg[6] = {(uint32_t)AT_FDCWD, P("/a/path/of/some/l\xc3\xa9ngth"), O_RDONLY};
    char buf[64];

    for (size_t size = 1; size < sizeof(buf); size++) {
        memset(buf, '#', sizeof(buf));
        ub_syscall_format(getpid(), SYS_openat, arg, buf, size);
        assert_true(strlen(buf) < size);
        assert_int_equal(buf[size], '#');
        for (size_t i = 0, n; i < strlen(buf); i += n) {
            n = ub_utf8_length(buf + i, strlen(buf) - i);
            assert_true(n > 0);
        }
    }
    ub_syscall_format(getpid(), SYS_openat, arg, buf, 20);
    assert_string_equal(buf, "\"/a/path/of/some...");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names_are_the_kernels),
        cmocka_unit_test(test_every_entry_is_well_formed),
        cmocka_unit_test(test_unknown_numbers),
        cmocka_unit_test(test_descriptor_argument),
        cmocka_unit_test(test_plain_arguments),
        cmocka_unit_test(test_strings),
        cmocka_unit_test(test_string_at_the_end_of_memory),
        cmocka_unit_test(test_long_strings_are_cut),
        cmocka_unit_test(test_addresses),
        cmocka_unit_test(test_timeouts),
        cmocka_unit_test(test_copied_memory),
        cmocka_unit_test(test_small_buffers),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
