#include "identity.h"

#include "../process.h"
#include "../raw.h"
#include "pool.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <string.h>
#include <sys/stat.h>

#define CAPABILITY_VERSION 0x20080522u /* the third, of 64 bits each */

struct identity {
    long fsuid, fsgid;
    uint32_t capabilities[6];
};

static uint64_t inode(const char *path)
{
    struct stat st = {0};

    return ub_raw4(SYS_newfstatat, AT_FDCWD, path, &st, 0) < 0 ? 0 : st.st_ino;
}

static void ask(struct identity *ret)
{
    struct {
        uint32_t version;
        int32_t tid;
    } header = {CAPABILITY_VERSION, 0};

    memset(ret, 0, sizeof(*ret));
    ret->fsuid = ub_raw1(SYS_setfsuid, -1); /* sets nothing, and says what is set */
    ret->fsgid = ub_raw1(SYS_setfsgid, -1);
    ub_raw2(SYS_capget, &header, ret->capabilities);
}

enum { SAME, OTHER, UNKNOWN };

static int compare(int32_t own, int32_t tid, int what)
{
    long r = ub_raw6(SYS_kcmp, own, tid, what, 0, 0, 0);

    return r == 0                                       ? SAME
           : r == -ENOSYS || r == -EPERM || r == -ESRCH ? UNKNOWN
                                                        : OTHER; /* a kernel that cannot say; it has ended */
}

/* A thread with mounts of its own has a folder of its own, too: the kernel does not give it the one without the other.
 */
static bool has_files_of(int32_t tid, uint64_t mounts)
{
    int32_t own = (int32_t)ub_raw0(SYS_gettid);
    int folder = compare(own, tid, KCMP_FS);

    return folder != OTHER && compare(own, tid, KCMP_FILES) != OTHER &&
           (folder == SAME || inode("/proc/thread-self/ns/mnt") == mounts);
}

bool ub_identity_is_the_pools(bool makes_sockets)
{
    static struct identity first;
    static uint64_t mounts, network;
    static int32_t of; /* the process: a forked child's pool is new */
    static int32_t asker;
    int32_t worker = ub_pool_thread();
    struct identity now;

    ask(&now);
    if (of != ub_process->pid) {
        first = now;
        mounts = inode("/proc/thread-self/ns/mnt");
        network = inode("/proc/thread-self/ns/net");
        asker = (int32_t)ub_raw0(SYS_gettid);
        of = ub_process->pid;
    }
    return memcmp(&first, &now, sizeof(now)) == 0 && (!makes_sockets || inode("/proc/thread-self/ns/net") == network) &&
           has_files_of(worker ? worker : asker, mounts) &&
           (worker || inode("/proc/thread-self/ns/mnt") == mounts); /* the first of them may be on its way */
}
