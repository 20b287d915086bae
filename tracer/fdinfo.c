/*
 * Descriptors of another process in words: /proc/PID/fd for files, the socket
 * tables of its network namespace for peers.
 */
#include "fdinfo.h"

#include "line.h"

#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/xattr.h>
#include <unistd.h>

/* Bound on what is read of one socket table: some 25,000 sockets, 20 ms. */
#define TABLE_MAX ((size_t)4 << 20)

#define TCP_LISTEN_STATE 0x0a

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

static void close_file(FILE **f)
{
    if (*f != NULL)
        fclose(*f);
}

/* "0100007F" or 32 hexadecimal digits: words in the machine's byte order, as the kernel prints them. */
static bool parse_ip(const char *text, size_t len, struct in6_addr *ret, int *ret_family)
{
    char word[9] = "";

    if (len != 8 && len != 32)
        return false;
    *ret_family = len == 8 ? AF_INET : AF_INET6;
    for (size_t i = 0; i < len / 8; i++) {
        char *end;

        memcpy(word, text + i * 8, 8);
        ret->s6_addr32[i] = (uint32_t)strtoul(word, &end, 16);
        if (*end != '\0')
            return false;
    }
    return true;
}

/* "10.0.0.1:443" "[::1]:443" from "0100000A:01BB". */
static bool add_endpoint(struct ub_line *line, const char *text)
{
    const char *colon = strchr(text, ':');
    char name[INET6_ADDRSTRLEN];
    struct in6_addr address;
    int family;

    if (colon == NULL || !parse_ip(text, (size_t)(colon - text), &address, &family))
        return false;
    if (family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&address)) {
        family = AF_INET;
        memcpy(&address, &address.s6_addr32[3], 4);
    }
    inet_ntop(family, &address, name, sizeof(name));
    ub_line_printf(line, family == AF_INET ? "%s:%lu" : "[%s]:%lu", name, strtoul(colon + 1, NULL, 16));
    return true;
}

static FILE *open_table(pid_t pid, const char *table)
{
    char path[64];

    snprintf(path, sizeof(path), "/proc/%d/net/%s", (int)pid, table);
    return fopen(path, "re");
}

/* One line of /proc/PID/net/{tcp,tcp6,udp,udp6}: true when it was that inode and `line` was filled in. */
static bool describe_inet_line(const char *text, uint64_t inode, const char *proto, struct ub_line *line)
{
    char local[64], remote[64];
    unsigned long long found;
    unsigned state;

    if (sscanf(text, " %*d: %63s %63s %x %*s %*s %*s %*u %*d %llu", local, remote, &state, &found) != 4 ||
        found != inode)
        return false;
    ub_line_printf(line, "socket %s", proto);
    if (strcmp(strchr(remote, ':') != NULL ? strchr(remote, ':') : "", ":0000") != 0)
        return add_endpoint(line, remote);
    if (state == TCP_LISTEN_STATE && *proto == '\0')
        ub_line_printf(line, "listening ");
    return add_endpoint(line, local);
}

static bool describe_inet(pid_t pid, const char *table, const char *proto, uint64_t inode, struct ub_line *line)
{
    UB_CLEANUP(close_file) FILE *f = open_table(pid, table);
    char text[512];
    size_t total = 0;

    if (f == NULL)
        return false;
    while (total < TABLE_MAX && fgets(text, sizeof(text), f) != NULL) {
        total += strlen(text);
        if (describe_inet_line(text, inode, proto, line))
            return true;
    }
    return false;
}

/* Path of the socket with that inode, "" when it has no name. False when it is not in the table. */
static bool unix_path(pid_t pid, uint64_t inode, char *buf, size_t size)
{
    UB_CLEANUP(close_file) FILE *f = open_table(pid, "unix");
    char text[512];
    size_t total = 0;

    *buf = '\0';
    while (f != NULL && total < TABLE_MAX && fgets(text, sizeof(text), f) != NULL) {
        unsigned long long found;
        int path_at = 0;

        total += strlen(text);
        if (sscanf(text, "%*x: %*x %*x %*x %*x %*x %llu%n", &found, &path_at) != 1 || found != inode)
            continue;
        text[strcspn(text, "\n")] = '\0';
        snprintf(buf, size, "%s", text[path_at] == ' ' ? text + path_at + 1 : "");
        return true;
    }
    return false;
}

static bool same_network(pid_t pid)
{
    char path[64], ours[64], theirs[64];
    ssize_t a, b;

    snprintf(path, sizeof(path), "/proc/%d/ns/net", (int)pid);
    a = readlink("/proc/self/ns/net", ours, sizeof(ours));
    b = readlink(path, theirs, sizeof(theirs));
    return a > 0 && a == b && !memcmp(ours, theirs, (size_t)a);
}

struct unix_query {
    struct nlmsghdr header;
    struct unix_diag_req request;
};

static ssize_t ask_kernel(const struct unix_query *query, void *answer, size_t size)
{
    UB_CLEANUP(close_fd) int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);

    if (fd < 0 || send(fd, query, sizeof(*query), 0) != (ssize_t)sizeof(*query))
        return -1;
    /* The kernel answers within the send: waiting would mean that it does not answer at all. */
    return recv(fd, answer, size, MSG_DONTWAIT);
}

/* The other end of a unix socket by sock_diag: 0 or its inode. Only of our own network namespace. */
static uint64_t unix_peer(uint64_t inode)
{
    struct unix_query query = {
        .header = {.nlmsg_len = sizeof(query), .nlmsg_type = SOCK_DIAG_BY_FAMILY, .nlmsg_flags = NLM_F_REQUEST},
        .request = {.sdiag_family = AF_UNIX,
                    .udiag_states = ~0u,
                    .udiag_ino = (uint32_t)inode,
                    .udiag_show = UDIAG_SHOW_PEER,
                    .udiag_cookie = {~0u, ~0u}},
    };
    _Alignas(struct nlmsghdr) char answer[1024];
    ssize_t n = ask_kernel(&query, answer, sizeof(answer));
    const struct nlmsghdr *header = (const struct nlmsghdr *)answer;
    const size_t fixed = NLMSG_LENGTH(sizeof(struct unix_diag_msg));

    if (n < (ssize_t)fixed || header->nlmsg_type != SOCK_DIAG_BY_FAMILY || header->nlmsg_len > (size_t)n)
        return 0;
    for (size_t at = fixed; at + sizeof(struct nlattr) <= header->nlmsg_len;) {
        const struct nlattr *attr = (const struct nlattr *)(answer + at);
        uint32_t peer;

        if (attr->nla_len < sizeof(*attr) || at + attr->nla_len > header->nlmsg_len)
            return 0;
        if (attr->nla_type == UNIX_DIAG_PEER && attr->nla_len >= sizeof(*attr) + sizeof(peer)) {
            memcpy(&peer, attr + 1, sizeof(peer));
            return peer;
        }
        at += NLA_ALIGN(attr->nla_len);
    }
    return 0;
}

/* A client's end of a connection has no name of its own: its peer's says what it is connected to. */
static void describe_unix(pid_t pid, uint64_t inode, struct ub_line *line)
{
    char path[512];

    unix_path(pid, inode, path, sizeof(path));
    if (*path == '\0' && same_network(pid)) {
        uint64_t peer = unix_peer(inode);

        if (peer != 0)
            unix_path(pid, peer, path, sizeof(path));
    }
    ub_line_printf(line, *path != '\0' ? "socket unix " : "socket unix");
    ub_line_escape(line, path, strlen(path), 0);
}

static void describe_socket(pid_t pid, int fd, uint64_t inode, struct ub_line *line)
{
    static const struct {
        const char *protocol, *table, *word;
    } inet[] = {{"TCP", "tcp", ""},        {"TCPv6", "tcp6", ""},       {"UDP", "udp", "udp "},
                {"UDPv6", "udp6", "udp "}, {"RAW", "raw", "raw "},      {"RAWv6", "raw6", "raw "},
                {"PING", "icmp", "icmp "}, {"PINGv6", "icmp6", "icmp "}};
    char path[64], protocol[32];
    ssize_t n;

    snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)pid, fd);
    n = getxattr(path, "system.sockprotoname", protocol, sizeof(protocol) - 1);
    protocol[n > 0 ? n : 0] = '\0';
    if (!strncmp(protocol, "UNIX", 4)) {
        describe_unix(pid, inode, line);
        return;
    }
    for (uint32_t i = 0; i < UB_ARRAY_LEN(inet); i++)
        if (!strcmp(protocol, inet[i].protocol) && describe_inet(pid, inet[i].table, inet[i].word, inode, line))
            return;
    for (char *p = protocol; *p != '\0'; p++)
        *p |= *p >= 'A' && *p <= 'Z' ? 0x20 : 0;
    ub_line_printf(line, *protocol != '\0' && strcmp(protocol, "tcp") != 0 ? "socket %s" : "socket", protocol);
}

char *ub_fd_link(pid_t pid, int fd)
{
    char path[64], target[PATH_MAX];
    ssize_t n;

    snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)pid, fd);
    n = readlink(path, target, sizeof(target));
    return n > 0 ? strndup(target, (size_t)n) : NULL;
}

int ub_fd_describe(pid_t pid, int fd, char *buf, size_t size)
{
    char path[64], target[4096];
    unsigned long long inode;
    struct ub_line line;
    ssize_t n;

    ub_line_begin(&line, buf, size);
    if (fd < 0)
        return -EBADF;
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)pid, fd);
    n = readlink(path, target, sizeof(target) - 1);
    if (n < 0) {
        int error = errno;

        snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
        return error != ENOENT ? -error : access(path, F_OK) == 0 ? -EBADF : -ESRCH;
    }
    target[n] = '\0';
    if (sscanf(target, "socket:[%llu]", &inode) == 1)
        describe_socket(pid, fd, inode, &line);
    else if (!strncmp(target, "pipe:[", 6))
        ub_line_printf(&line, "pipe");
    else if (!strncmp(target, "anon_inode:", 11)) /* "anon_inode:[eventfd]", "anon_inode:inotify" */
        ub_line_escape(&line, target + 11 + (target[11] == '['), strcspn(target + 11 + (target[11] == '['), "]"), 0);
    else
        ub_line_escape(&line, target, (size_t)n, 0);
    return 0;
}
