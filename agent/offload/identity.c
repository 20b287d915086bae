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
    uint64_t mounts, network;
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
    ret->mounts = inode("/proc/thread-self/ns/mnt");
    ret->network = inode("/proc/thread-self/ns/net");
}

static bool shares(int32_t tid, int what)
{
    long r = ub_raw6(SYS_kcmp, ub_raw0(SYS_gettid), tid, what, 0, 0, 0);

    return r == 0 || r == -ENOSYS || r == -EPERM; /* a kernel that cannot say */
}

bool ub_identity_is_the_pools(void)
{
    static struct identity first;
    static int32_t of; /* the process: a forked child's pool is new */
    int32_t worker = ub_pool_thread();
    struct identity now;

    ask(&now);
    if (of != ub_process->pid) {
        first = now;
        of = ub_process->pid;
    }
    return memcmp(&first, &now, sizeof(now)) == 0 &&
           (!worker || (shares(worker, KCMP_FS) && shares(worker, KCMP_FILES)));
}
