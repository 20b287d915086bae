/* The child of `run`: start, refusal, end; and what its program is. Signals and terminals: tests/e2e/test_run*.py. */
#include "../../ui/child.h"
#include "../../ui/target.h"

#include "unit.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static sigset_t old_mask;

static void check_preload(const char *existing, const char *expected)
{
    char *value = ub_child_preload("/a/u.so", existing);

    assert_string_equal(value, expected);
    free(value);
}

static void test_preload(void **state)
{
    check_preload(NULL, "/a/u.so");
    check_preload("", "/a/u.so");
    check_preload("/x.so", "/a/u.so:/x.so");
    check_preload("/x.so /y.so", "/a/u.so:/x.so:/y.so");
    check_preload("/x.so:/a/u.so:/y.so", "/a/u.so:/x.so:/y.so");
    check_preload("/a/u.so", "/a/u.so");
    check_preload("/a/u.so2", "/a/u.so:/a/u.so2");
    check_preload(": :/x.so:", "/a/u.so:/x.so");
}

/* Runs a command to its end; returns the wait status and the child for its exec_error. */
static int run(char *const argv[], const char *preload, struct ub_child *c)
{
    int status = -1;

    ub_child_init(c);
    old_mask = c->inherited_mask;
    assert_int_equal(ub_child_fork(c, argv, preload), 0);
    assert_true(c->pid > 0);
    ub_child_exec(c, "1:2:3");
    assert_int_equal(ub_child_wait(c, 0, &status), 0);
    pthread_sigmask(SIG_SETMASK, &old_mask, NULL);
    return status;
}

static void test_exit_status(void **state)
{
    char *const seven[] = {"sh", "-c", "exit 7", NULL}, *const killed[] = {"sh", "-c", "kill -9 $$", NULL};
    struct ub_child c;
    int status = run(seven, NULL, &c);

    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    assert_int_equal(c.exec_error, 0);
    status = run(killed, NULL, &c);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static void test_environment_of_the_child(void **state)
{
    /* Any library will do that the loader finds without a word. */
    char *const check[] = {"sh", "-c", "test \"$LD_PRELOAD $UNBLOCK_ARENA\" = 'libm.so.6 1:2:3'", NULL};
    char *const none[] = {"sh", "-c", "test -z \"$LD_PRELOAD$UNBLOCK_ARENA\"", NULL};
    struct ub_child c;

    assert_int_equal(run(check, "libm.so.6", &c), 0);
    assert_int_equal(run(none, NULL, &c), 0);
    assert_null(getenv("UNBLOCK_ARENA"));
}

static void test_not_executed(void **state)
{
    char *const missing[] = {"/nonexistent/program", NULL}, *const folder[] = {"/tmp", NULL};
    struct ub_child c;

    run(missing, NULL, &c);
    assert_int_equal(c.exec_error, -ENOENT);
    run(folder, NULL, &c);
    assert_int_equal(c.exec_error, -EACCES);
}

static void test_cancelled_before_it_ran(void **state)
{
    char mark[] = "/tmp/unblock-child-XXXXXX", *argv[] = {"rm", "-f", mark, NULL};
    struct ub_child c;
    int fd = mkstemp(mark);

    close(fd);
    ub_child_init(&c);
    assert_int_equal(ub_child_fork(&c, argv, NULL), 0);
    ub_child_cancel(&c);
    pthread_sigmask(SIG_SETMASK, &c.inherited_mask, NULL);
    assert_int_equal(access(mark, F_OK), 0);
    unlink(mark);
}

static void test_deadline(void **state)
{
    char *const argv[] = {"sleep", "100", NULL};
    struct ub_child c;
    int status;

    ub_child_init(&c);
    assert_int_equal(ub_child_fork(&c, argv, NULL), 0);
    ub_child_exec(&c, "1:2:3");
    assert_int_equal(ub_child_wait(&c, 1, &status), -ETIME);
    kill(c.pid, SIGTERM);
    assert_int_equal(ub_child_wait(&c, 0, &status), 0);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
    pthread_sigmask(SIG_SETMASK, &c.inherited_mask, NULL);
}

/* ---- target ---------------------------------------------------------- */

static char folder[] = "/tmp/unblock-target-XXXXXX";

static const char *file(const char *name, const void *bytes, size_t len, mode_t mode)
{
    static char path[256];
    int fd;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    unlink(path);
    fd = open(path, O_WRONLY | O_CREAT, 0700);
    assert_int_equal(write(fd, bytes, len), len);
    fchmod(fd, mode);
    close(fd);
    return path;
}

struct image {
    Elf64_Ehdr eh;
    Elf64_Phdr ph;
    char loader[32];
};

static struct image elf(uint8_t class, uint16_t machine, uint32_t type, const char *loader)
{
    struct image i = {.eh = {.e_ident = {0x7f, 'E', 'L', 'F', class, ELFDATA2LSB},
                             .e_machine = machine,
                             .e_phoff = offsetof(struct image, ph),
                             .e_phentsize = sizeof(Elf64_Phdr),
                             .e_phnum = 1},
                      .ph = {.p_type = type, .p_offset = offsetof(struct image, loader), .p_filesz = sizeof(i.loader)}};

    snprintf(i.loader, sizeof(i.loader), "%s", loader);
    return i;
}

static enum ub_image look_at(struct image image)
{
    char interpreter[PATH_MAX];
    enum ub_image t = ub_target_look(file("elf", &image, sizeof(image), 0700), interpreter, sizeof(interpreter));

    assert_string_equal(interpreter, "");
    return t;
}

static void test_target_kinds(void **state)
{
    struct image cut = elf(ELFCLASS64, EM_X86_64, PT_INTERP, "/lib64/ld-linux-x86-64.so.2");
    char interpreter[PATH_MAX];

    assert_non_null(mkdtemp(folder));
    assert_int_equal(look_at(cut), UB_IMAGE_FINE);
    assert_int_equal(look_at(elf(ELFCLASS64, EM_X86_64, PT_LOAD, "")), UB_IMAGE_STATIC);
    assert_int_equal(look_at(elf(ELFCLASS32, EM_386, PT_INTERP, "/lib/ld-linux.so.2")), UB_IMAGE_MACHINE);
    assert_int_equal(look_at(elf(ELFCLASS64, EM_AARCH64, PT_INTERP, "/lib/ld.so")), UB_IMAGE_MACHINE);
    assert_int_equal(look_at(elf(ELFCLASS64, EM_X86_64, PT_INTERP, "/lib/ld-musl-x86_64.so.1")), UB_IMAGE_LIBC);
    /* Damaged files are no reason to stay away: the kernel will judge them. */
    cut.eh.e_phoff = 1ull << 60;
    assert_int_equal(look_at(cut), UB_IMAGE_FINE);
    cut.eh.e_phentsize = 3;
    assert_int_equal(look_at(cut), UB_IMAGE_FINE);
    assert_int_equal(ub_target_look(file("short",
                                         "\x7f"
                                         "ELF",
                                         4, 0700),
                                    interpreter, PATH_MAX),
                     UB_IMAGE_FINE);
    assert_int_equal(ub_target_look("/nonexistent", interpreter, PATH_MAX), UB_IMAGE_FINE);
}

static void test_target_scripts(void **state)
{
    struct image fixed = elf(ELFCLASS64, EM_X86_64, PT_LOAD, "");
    char interpreter[PATH_MAX], elf_path[256], text[512];

    strcpy(elf_path, file("static", &fixed, sizeof(fixed), 0700));
    snprintf(text, sizeof(text), "#! %s -x\nhello\n", elf_path);
    assert_int_equal(ub_target_look(file("script", text, strlen(text), 0700), interpreter, PATH_MAX), UB_IMAGE_STATIC);
    assert_string_equal(interpreter, elf_path);
    snprintf(text, sizeof(text), "#!%s/loop\n", folder);
    assert_int_equal(ub_target_look(file("loop", text, strlen(text), 0700), interpreter, PATH_MAX), UB_IMAGE_FINE);
}

static void test_target_privileges(void **state)
{
    struct image image = elf(ELFCLASS64, EM_X86_64, PT_INTERP, "/lib64/ld-linux-x86-64.so.2");
    char interpreter[PATH_MAX];
    const char *path;

    if (geteuid() != 0)
        skip();
    path = file("suid", &image, sizeof(image), 0700);
    assert_int_equal(chown(path, 65534, 65534), 0);
    chmod(path, 04755);
    assert_int_equal(ub_target_look(path, interpreter, PATH_MAX), UB_IMAGE_SECURE);
    chmod(path, 0755);
    assert_int_equal(ub_target_look(path, interpreter, PATH_MAX), UB_IMAGE_FINE);
    path = file("own", &image, sizeof(image), 04755); /* set-user-ID to whom we are already */
    assert_int_equal(ub_target_look(path, interpreter, PATH_MAX), UB_IMAGE_FINE);
}

static void test_target_search(void **state)
{
    char path[PATH_MAX], command[PATH_MAX], search[600], *old = strdup(getenv("PATH"));

    file("tool", "x", 1, 0700);
    file("data", "x", 1, 0600);
    snprintf(command, sizeof(command), "%s/dir", folder);
    mkdir(command, 0700);
    snprintf(search, sizeof(search), "/nonexistent:%s", folder);
    setenv("PATH", search, 1);
    snprintf(command, sizeof(command), "%s/tool", folder);
    assert_int_equal(ub_target_find("tool", path, sizeof(path)), 0);
    assert_string_equal(path, command);
    assert_int_equal(ub_target_find(command, path, sizeof(path)), 0);
    assert_int_equal(ub_target_find("data", path, sizeof(path)), -EACCES);
    assert_int_equal(ub_target_find("missing", path, sizeof(path)), -ENOENT);
    assert_int_equal(ub_target_find("dir", path, sizeof(path)), -ENOENT);
    assert_int_equal(ub_target_find("", path, sizeof(path)), -ENOENT);
    assert_int_equal(ub_target_find(folder, path, sizeof(path)), -EISDIR);
    assert_int_equal(ub_target_find("/nonexistent/x", path, sizeof(path)), -ENOENT);
    setenv("PATH", old, 1);
    free(old);
    snprintf(command, sizeof(command), "rm -r %s", folder);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_preload),
        cmocka_unit_test(test_exit_status),
        cmocka_unit_test(test_environment_of_the_child),
        cmocka_unit_test(test_not_executed),
        cmocka_unit_test(test_cancelled_before_it_ran),
        cmocka_unit_test(test_deadline),
        cmocka_unit_test(test_target_kinds),
        cmocka_unit_test(test_target_scripts),
        cmocka_unit_test(test_target_privileges),
        cmocka_unit_test(test_target_search),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
