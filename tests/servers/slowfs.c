/*
 * A slow disk: a folder shown again at another place, with delays.
 *
 *     slowfs FOLDER MOUNTPOINT CONTROL
 *
 * CONTROL is a file of lines "OPERATION MILLISECONDS", read at each operation:
 * open, create, read, write, fsync, fallocate, rename. One that is not named is
 * as quick as FOLDER itself. For tests of real programs (servers.py builds it);
 * runs in the foreground, unmounts itself when it is asked to end.
 */
#define FUSE_USE_VERSION 31
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse3/fuse.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

static const char *folder, *control;

static void delay(const char *operation)
{
    FILE *f = fopen(control, "re");
    char name[32];
    long ms;

    while (f && fscanf(f, "%31s %ld", name, &ms) == 2) {
        if (strcmp(name, operation) == 0)
            nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
    }
    if (f)
        fclose(f);
}

static const char *real(const char *path, char *buf)
{
    snprintf(buf, PATH_MAX, "%s%s", folder, path);
    return buf;
}
#define REAL(path) real(path, (char[PATH_MAX]){0})
#define DO(call)   ((call) < 0 ? -errno : 0)

static int do_getattr(const char *path, struct stat *st, struct fuse_file_info *fi)
{
    return fi ? DO(fstat((int)fi->fh, st)) : DO(lstat(REAL(path), st));
}

static int do_readdir(const char *path, void *buf, fuse_fill_dir_t fill, off_t offset, struct fuse_file_info *fi,
                      enum fuse_readdir_flags flags)
{
    DIR *dir = opendir(REAL(path));

    if (!dir)
        return -errno;
    for (struct dirent *e = readdir(dir); e; e = readdir(dir))
        fill(buf, e->d_name, NULL, 0, 0);
    closedir(dir);
    return 0;
}

static int do_open(const char *path, struct fuse_file_info *fi)
{
    int fd;

    delay("open");
    fd = open(REAL(path), fi->flags & ~O_APPEND, 0);
    fi->fh = (uint64_t)fd;
    return fd < 0 ? -errno : 0;
}

static int do_create(const char *path, mode_t mode, struct fuse_file_info *fi)
{
    int fd;

    delay("create");
    fd = open(REAL(path), fi->flags & ~O_APPEND, mode);
    fi->fh = (uint64_t)fd;
    return fd < 0 ? -errno : 0;
}

static int do_read(const char *path, char *buf, size_t size, off_t offset, struct fuse_file_info *fi)
{
    ssize_t n;

    delay("read");
    n = pread((int)fi->fh, buf, size, offset);
    return n < 0 ? -errno : (int)n;
}

static int do_write(const char *path, const char *buf, size_t size, off_t offset, struct fuse_file_info *fi)
{
    ssize_t n;

    delay("write");
    n = pwrite((int)fi->fh, buf, size, offset);
    return n < 0 ? -errno : (int)n;
}

static int do_fsync(const char *path, int only_data, struct fuse_file_info *fi)
{
    delay("fsync");
    return DO(fsync((int)fi->fh));
}

static int do_fallocate(const char *path, int mode, off_t offset, off_t length, struct fuse_file_info *fi)
{
    delay("fallocate");
    return DO(fallocate((int)fi->fh, mode, offset, length));
}

static int do_release(const char *path, struct fuse_file_info *fi)
{
    return DO(close((int)fi->fh));
}

static int do_truncate(const char *path, off_t size, struct fuse_file_info *fi)
{
    return fi ? DO(ftruncate((int)fi->fh, size)) : DO(truncate(REAL(path), size));
}

static int do_rename(const char *from, const char *to, unsigned flags)
{
    delay("rename");
    return flags ? -EINVAL : DO(rename(REAL(from), REAL(to)));
}

static int do_unlink(const char *path)
{
    return DO(unlink(REAL(path)));
}

static int do_mkdir(const char *path, mode_t mode)
{
    return DO(mkdir(REAL(path), mode));
}

static int do_rmdir(const char *path)
{
    return DO(rmdir(REAL(path)));
}

static int do_link(const char *from, const char *to)
{
    return DO(link(REAL(from), REAL(to)));
}

static int do_chmod(const char *path, mode_t mode, struct fuse_file_info *fi)
{
    return DO(chmod(REAL(path), mode));
}

static int do_chown(const char *path, uid_t uid, gid_t gid, struct fuse_file_info *fi)
{
    return DO(lchown(REAL(path), uid, gid));
}

static int do_utimens(const char *path, const struct timespec at[2], struct fuse_file_info *fi)
{
    return DO(utimensat(AT_FDCWD, REAL(path), at, AT_SYMLINK_NOFOLLOW));
}

static int do_statfs(const char *path, struct statvfs *st)
{
    return DO(statvfs(REAL(path), st));
}

static const struct fuse_operations operations = {
    .getattr = do_getattr,
    .readdir = do_readdir,
    .open = do_open,
    .create = do_create,
    .read = do_read,
    .write = do_write,
    .fsync = do_fsync,
    .fallocate = do_fallocate,
    .release = do_release,
    .truncate = do_truncate,
    .rename = do_rename,
    .unlink = do_unlink,
    .mkdir = do_mkdir,
    .rmdir = do_rmdir,
    .link = do_link,
    .chmod = do_chmod,
    .chown = do_chown,
    .utimens = do_utimens,
    .statfs = do_statfs,
};

int main(int argc, char **argv)
{
    char *args[] = {argv[0], argc == 4 ? argv[2] : NULL, "-f", "-o", "allow_other,default_permissions", NULL};

    if (argc != 4) {
        fprintf(stderr, "usage: slowfs FOLDER MOUNTPOINT CONTROL\n");
        return 2;
    }
    folder = argv[1];
    control = argv[3];
    umask(0);
    return fuse_main(5, args, &operations, NULL);
}
