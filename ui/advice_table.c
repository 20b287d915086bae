/*
 * The advice. The first row that fits is given: programs with a world of their
 * own first, then what was called, by event-loop library, then causes.
 *
 * Rules: say what to do, in one line, with the real names of that world; claim
 * nothing that was not seen (who holds a lock, whether a GIL was held); name
 * only things that exist in versions people run.
 */
#include "advice.h"

#define SLEEPS "nanosleep|clock_nanosleep|usleep|sleep"
#define SYNCS  "fsync|fdatasync|sync|syncfs|sync_file_range|msync"
#define OPENS  "open|open64|openat|openat2|creat"
#define READS  "read|readv|pread|pread64|preadv|preadv2|fread|fgets"
#define WRITES "write|writev|pwrite|pwrite64|pwritev|pwritev2|fwrite|fflush"
#define STATS  "stat|lstat|newfstatat|statx|access|faccessat|faccessat2|getdents64|readlink|readlinkat"
#define FILES                                                                                                          \
    SYNCS "|" OPENS "|" READS "|" WRITES "|" STATS "|" UNLINKS "|sendfile|splice|copy_file_range|fallocate|ftruncate"
#define UNLINKS "unlink|unlinkat|rename|renameat|renameat2|rmdir|truncate"
#define RECVS   "recv|recvfrom|recvmsg|recvmmsg"
#define SENDS   "send|sendto|sendmsg|sendmmsg"
#define ACCEPTS "accept|accept4"
#define NET     "connect|" RECVS "|" SENDS "|" ACCEPTS
#define CHILDS  "wait|wait3|wait4|waitpid|waitid"
#define POLLS   "poll|ppoll|select|pselect|pselect6|epoll_wait|epoll_pwait|epoll_pwait2"
#define FORKS   "fork|vfork|clone|clone3"
#define LOCKF   "flock|fcntl|lockf"
#define LOOKUPS                                                                                                        \
    "getaddrinfo|gethostbyname*|gethostbyaddr*|getnameinfo|__res_*|res_query|res_search|res_nquery|ares_gethostbyname"
#define SYSTEM "system|do_system|popen|pclose|_IO_proc_open|_IO_new_proc_close"
#define MUTEXES                                                                                                        \
    "pthread_mutex_lock|__pthread_mutex_lock|___pthread_mutex_lock|__lll_lock_wait|g_mutex_lock|pthread_rwlock_*|__"   \
    "pthread_rwlock_*"
#define CONDS "pthread_cond_*|___pthread_cond_*|__pthread_cond_*|sem_wait|__new_sem_wait*|g_cond_wait"
#define JOINS "pthread_join|__pthread_clockjoin_ex|__pthread_timedjoin_ex"

#define REDIS "redis-*|valkey-*|keydb-*"
#define NODE  "node|nodejs|node*"

const struct ub_advice ub_advice_table[] = {
    /* redis and its kin: one thread runs every command. */
    {.program = REDIS,
     .function = "debugCommand",
     .call = SLEEPS,
     .title = "DEBUG SLEEP",
     .text = "a client sent DEBUG SLEEP: shut it off (enable-debug-command no, or ACL -debug)"},
    {.program = REDIS,
     .function = "debugCommand",
     .title = "DEBUG",
     .text = "a client sent a DEBUG command: shut it off (enable-debug-command no, or ACL -debug)"},
    {.program = REDIS,
     .function = "keysCommand",
     .title = "KEYS",
     .text = "SCAN with COUNT instead of KEYS; SLOWLOG GET names the client"},
    {.program = REDIS, .function = "saveCommand", .title = "SAVE", .text = "BGSAVE instead of SAVE"},
    {.program = REDIS,
     .function = "flushAppendOnlyFile",
     .call = SYNCS,
     .title = "AOF fsync",
     .text = "appendfsync everysec instead of always: the fsync moves to a background thread"},
    {.program = REDIS,
     .function = "flushAppendOnlyFile",
     .call = WRITES,
     .title = "AOF write",
     .text = "the write waits for the disk: no-appendfsync-on-rewrite yes while the AOF is rewritten; a disk of its "
             "own for the AOF"},
    {.program = REDIS,
     .function = "flushallCommand|flushdbCommand|emptyData|emptyDbStructure",
     .title = "FLUSHALL",
     .text = "FLUSHALL ASYNC or FLUSHDB ASYNC, or lazyfree-lazy-user-flush yes"},
    {.program = REDIS,
     .function = "activeExpireCycle|deleteExpiredKeyAndPropagate|expireIfNeeded",
     .title = "expiry",
     .text = "lazyfree-lazy-expire yes; spread the expiry times of big keys"},
    {.program = REDIS,
     .function = "performEvictions|freeMemoryIfNeeded",
     .title = "eviction",
     .text = "lazyfree-lazy-eviction yes; a lower maxmemory-eviction-tenacity"},
    {.program = REDIS,
     .function = "delCommand|delGenericCommand|dbSyncDelete|dbGenericDelete",
     .title = "DEL",
     .text = "UNLINK instead of DEL, or lazyfree-lazy-user-del yes"},
    {.program = REDIS,
     .function = "scriptCall|luaCallFunction|evalGenericCommand|evalCommand|fcallCommandGeneric",
     .title = "Lua script",
     .text = "a script holds the server as long as it runs: split it into shorter calls; SLOWLOG GET shows which"},
    {.program = REDIS,
     .function = "sortCommand|sortCommandGeneric",
     .title = "SORT",
     .text = "SORT of a big collection: on a replica, or sort in the client"},
    {.program = REDIS,
     .function = "smembersCommand|sinterGenericCommand|sunionDiffGenericCommand|genericHgetallCommand|hgetallCommand|"
                 "lrangeCommand|zrangeGenericCommand|genericZrange*|zunionInterDiffGenericCommand",
     .title = "big collection",
     .text = "take big collections in pieces: HSCAN, SSCAN, ZSCAN, or a range with LIMIT"},
    {.program = REDIS,
     .function = "redisFork",
     .title = "fork",
     .text =
         "fork copies the page tables: turn transparent huge pages off, keep instances small (INFO latest_fork_usec)"},
    {.program = REDIS,
     .function = "loadDataFromDisk|loadAppendOnlyFiles|loadSingleAppendOnlyFile|rdbLoad",
     .title = "loading",
     .text = "the data set is loaded before clients are served; a replica can serve meanwhile"},
    {.program = REDIS,
     .cause = "pagefault",
     .text = "memory was swapped out: maxmemory well below the RAM, and no swap for it"},
    {.program = REDIS,
     .cause = "cpu",
     .function = "call|processCommand",
     .text = "one command ran this long: SLOWLOG GET (with slowlog-log-slower-than) names it and its client"},

    /* nginx: one worker serves many connections. */
    {.program = "nginx",
     .function = "ngx_inet_resolve_host|" LOOKUPS,
     .title = "name look-up",
     .text = "host names in the configuration are resolved blocking: a variable in proxy_pass plus `resolver` is not"},
    {.program = "nginx",
     .function = "ngx_http_lua_*",
     .text = "blocking code in Lua: cosockets (ngx.socket.tcp, lua-resty-*) instead of LuaSocket, io and os.execute"},
    {.program = "nginx",
     .function = "ngx_http_log_*",
     .call = WRITES,
     .title = "access log",
     .text = "access_log ... buffer=64k flush=1s, or log to syslog or a faster disk"},
    {.program = "nginx",
     .function = "ngx_write_chain_to_temp_file|ngx_event_pipe*",
     .call = WRITES,
     .title = "temporary file",
     .text = "bigger proxy_buffers or proxy_max_temp_file_size 0; aio_write on with aio threads"},
    {.program = "nginx",
     .call = OPENS "|" STATS,
     .title = "opening a file",
     .text = "open_file_cache; opening is not covered by `aio threads`: keep the files on a local disk"},
    {.program = "nginx",
     .call = READS "|sendfile",
     .fd = UB_ADVICE_FD_FILE,
     .title = "cold file",
     .text = "aio threads (with sendfile on, or directio for big files): the read moves to a thread pool"},
    {.program = "nginx",
     .call = READS "|sendfile",
     .title = "cold file",
     .function = "ngx_read_file|ngx_linux_sendfile_chain|ngx_output_chain",
     .text = "aio threads (with sendfile on, or directio for big files): the read moves to a thread pool"},
    {.program = "nginx",
     .call = UNLINKS,
     .text = "deleting big files blocks: lower manager_files and manager_threshold of proxy_cache_path, or a file "
             "system with fast deletes"},
    {.program = "nginx",
     .cause = "cpu",
     .function = "deflate*|ngx_http_gzip*",
     .title = "gzip",
     .text = "a lower gzip_comp_level, or gzip_static with files compressed beforehand"},
    {.program = "nginx",
     .cause = "cpu",
     .function = "SSL_do_handshake|ngx_ssl_handshake|SSL_*",
     .title = "TLS handshake",
     .text = "ssl_session_cache shared, ECDSA certificates, more worker_processes"},
    {.program = "nginx",
     .cause = "cpu",
     .function = "pcre*_exec|pcre2_match*",
     .title = "regular expression",
     .text = "pcre_jit on, and look at the regular expressions of location and map"},

    /* memcached: a few event threads share the items. */
    {.program = "memcached",
     .call = WRITES "|" SENDS,
     .fd = UB_ADVICE_FD_TERMINAL,
     .text = "verbose logging waits for the terminal: drop -v"},
    {.program = "memcached",
     .call = WRITES,
     .fd = UB_ADVICE_FD_PIPE,
     .text = "verbose logging waits for the reader of the pipe: drop -v"},
    {.program = "memcached",
     .cause = "pagefault",
     .text = "memory was swapped out: -k locks it (with a memlock limit), or a smaller -m"},
    {.program = "memcached",
     .cause = "lock",
     .text = "event threads wait for each other: fewer or more threads (-t), not more than CPUs"},

    /* node: JavaScript frames are not in a native stack. */
    {.program = NODE,
     .function = "node::SyncProcessRunner::*",
     .title = "spawnSync",
     .text = "child_process.spawn or exec instead of spawnSync and execSync"},
    {.program = NODE,
     .function = "v8::internal::Heap::*|v8::internal::MarkCompact*|v8::internal::Scavenge*",
     .title = "garbage collection",
     .text = "node --trace-gc shows the collections; allocate less at once, or raise --max-semi-space-size"},
    {.program = NODE,
     .function = "node::fs::*",
     .title = "synchronous file call",
     .text = "fs.promises.* (or the form with a callback) instead of fs.*Sync"},
    {.program = NODE,
     .call = FILES,
     .fd = UB_ADVICE_FD_FILE,
     .title = "synchronous file call",
     .text = "fs.promises.* (or the form with a callback) instead of fs.*Sync"},
    {.program = NODE,
     .function = "node::crypto::*",
     .cause = "cpu",
     .title = "crypto",
     .text = "the asynchronous form (crypto.pbkdf2, scrypt, randomBytes with a callback) runs in the thread pool"},
    {.program = NODE,
     .function = "node::zlib::*|node::(anonymous namespace)::Zlib*|deflate*|inflate*",
     .cause = "cpu",
     .title = "zlib",
     .text = "zlib.gzip and the like with a callback instead of *Sync run in the thread pool"},
    {.program = NODE,
     .cause = "cpu",
     .text = "worker_threads for computation, or pieces with setImmediate between; JavaScript functions are not known "
             "here: node --cpu-prof"},
    {.program = NODE,
     .call = WRITES,
     .text = "console output to a pipe, file or terminal is synchronous: write less, or through a stream of your own"},

    /* CPython: only native frames are known so far, neither the Python function nor the GIL. */
    {.program = "python*",
     .function = "take_gil|_PyEval_AcquireLock|PyEval_RestoreThread|PyEval_AcquireThread",
     .cause = "call|lock|gil",
     .title = "GIL",
     .text =
         "waits for Python's GIL; which thread held it is not known: long C calls or computation in another thread"},
    {.program = "python*",
     .function = "gc_collect_main|gc_collect_generations",
     .cause = "cpu|gc",
     .title = "garbage collection",
     .text = "gc.freeze() after start-up and a higher gc.set_threshold()"},
    {.program = "python*",
     .call = SLEEPS,
     .title = "time.sleep",
     .text = "await asyncio.sleep(...) instead of time.sleep(...)"},
    {.program = "python*",
     .function = LOOKUPS,
     .title = "name look-up",
     .text = "await loop.getaddrinfo(...) instead of socket.getaddrinfo(...) or a client that looks names up itself"},
    {.program = "python*",
     .call = CHILDS,
     .title = "subprocess",
     .text = "asyncio.create_subprocess_exec(...) and await proc.wait() instead of subprocess.run(...)"},
    {.program = "python*",
     .call = NET "|" POLLS,
     .title = "blocking network call",
     .text = "await asyncio.to_thread(f, ...), or an asyncio client; which Python function f is, native frames do not "
             "tell"},
    {.program = "python*",
     .call = FILES "|" LOCKF,
     .text = "await asyncio.to_thread(f, ...) or loop.run_in_executor(None, f, ...); which Python function f is, "
             "native frames do not tell"},
    {.program = "python*",
     .cause = "lock",
     .text = "asyncio.Lock between tasks; a threading.Lock stops the whole loop while another thread holds it"},
    {.program = "python*",
     .cause = "cpu",
     .text = "computation: ProcessPoolExecutor with loop.run_in_executor; a thread helps only while it releases the "
             "GIL, which is not known here"},

    /* Looking names up: the system calls below it say little, the functions say all. */
    {.loop = "libuv",
     .function = LOOKUPS,
     .title = "name look-up",
     .text = "uv_getaddrinfo(loop, req, cb, node, service, hints)"},
    {.loop = "libevent",
     .function = LOOKUPS,
     .title = "name look-up",
     .text = "evdns_getaddrinfo(dns_base, ...), or bufferevent_socket_connect_hostname()"},
    {.loop = "glib", .function = LOOKUPS, .title = "name look-up", .text = "g_resolver_lookup_by_name_async()"},
    {.loop = "sd-event",
     .function = LOOKUPS,
     .title = "name look-up",
     .text = "systemd-resolved over D-Bus (ResolveHostname), with sd_bus_call_async()"},
    {.function = LOOKUPS,
     .title = "name look-up",
     .text = "look names up in a thread, with getaddrinfo_a() or c-ares; keep the answers"},
    {.function = "getpw*|getgr*|initgroups|__nss_*|_nss_*",
     .title = "user look-up",
     .text = "user and group look-ups may ask a server (LDAP, SSSD): once at start-up, or in a thread"},
    {.function = SYSTEM,
     .title = "system",
     .text = "posix_spawn() and a watcher for the child's end (pidfd or SIGCHLD) instead of system() and popen()"},
    {.function = "syslog|__vsyslog_internal|vsyslog",
     .title = "syslog",
     .text = "syslog() waits when the log daemon is slow: log from a thread of its own"},

    /* Sleeping. */
    {.loop = "libuv", .call = SLEEPS, .text = "uv_timer_start(timer, cb, ms, 0) instead of a sleep"},
    {.loop = "libevent", .call = SLEEPS, .text = "evtimer_add(ev, &tv) instead of a sleep"},
    {.loop = "libev", .call = SLEEPS, .text = "ev_timer_start(loop, w) instead of a sleep"},
    {.loop = "glib", .call = SLEEPS, .text = "g_timeout_add(ms, callback, data) instead of a sleep"},
    {.loop = "sd-event", .call = SLEEPS, .text = "sd_event_add_time_relative(...) instead of a sleep"},
    {.call = SLEEPS, .text = "a timer of the event loop (or timerfd) instead of a sleep"},

    /* Files. */
    {.call = WRITES,
     .fd = UB_ADVICE_FD_TERMINAL,
     .text = "the terminal does not take the output (Ctrl-S, slow ssh): log to a file or a thread"},
    {.loop = "libuv", .call = "fsync", .text = "uv_fs_fsync(loop, req, fd, cb)"},
    {.loop = "libuv", .call = "fdatasync", .text = "uv_fs_fdatasync(loop, req, fd, cb)"},
    {.loop = "libuv", .call = OPENS, .text = "uv_fs_open(loop, req, path, flags, mode, cb)"},
    {.loop = "libuv",
     .call = READS,
     .fd = UB_ADVICE_FD_FILE,
     .text = "uv_fs_read(loop, req, fd, bufs, nbufs, offset, cb)"},
    {.loop = "libuv",
     .call = WRITES,
     .fd = UB_ADVICE_FD_FILE,
     .text = "uv_fs_write(loop, req, fd, bufs, nbufs, offset, cb)"},
    {.loop = "libuv", .call = STATS, .text = "uv_fs_stat(loop, req, path, cb)"},
    {.loop = "libuv", .call = "unlink|unlinkat", .text = "uv_fs_unlink(loop, req, path, cb)"},
    {.loop = "libuv",
     .call = FILES,
     .fd = UB_ADVICE_FD_FILE,
     .text = "the uv_fs_* call with a callback, or uv_queue_work(loop, req, work, done)"},
    {.loop = "glib",
     .call = OPENS "|" READS "|" WRITES "|" STATS,
     .fd = UB_ADVICE_FD_FILE,
     .text = "the GIO call that ends in _async (g_file_load_contents_async ...), or g_task_run_in_thread()"},
    {.loop = "glib", .call = SYNCS "|" UNLINKS, .text = "g_task_run_in_thread(task, func)"},
    {.call = SYNCS,
     .text = "sync in a worker thread that wakes the loop with an eventfd; or batch: one sync for many writes"},
    {.call = OPENS,
     .text = "open in a worker thread, or keep it open: a cold path, a network file system or a FIFO blocks"},
    {.call = READS,
     .fd = UB_ADVICE_FD_FILE,
     .text = "read in a worker thread, or readahead(2)/posix_fadvise(WILLNEED) some time before"},
    {.call = WRITES,
     .fd = UB_ADVICE_FD_FILE,
     .text = "write in a worker thread: the kernel holds writers while it flushes dirty pages"},
    {.call = STATS, .text = "in a worker thread, or keep the answer: cold or network directories block"},
    {.call = UNLINKS, .text = "in a worker thread: deleting or truncating a big file takes the file system long"},
    {.call = "sendfile|splice|copy_file_range|fallocate|ftruncate", .text = "in a worker thread, or in smaller pieces"},
    {.call = LOCKF,
     .text = "try with LOCK_NB (F_SETLK) and again from a timer, or take the lock in a worker thread; /proc/locks "
             "names the holder"},

    /* Descriptors that a loop could have waited for. */
    {.loop = "libuv", .call = "connect", .text = "uv_tcp_connect(req, handle, addr, cb)"},
    {.loop = "libevent", .call = "connect", .text = "bufferevent_socket_connect(bev, addr, len)"},
    {.loop = "glib", .call = "connect", .text = "g_socket_client_connect_async()"},
    {.call = "connect",
     .text = "set O_NONBLOCK first; connect gives EINPROGRESS, and the loop says when the socket is writable"},
    {.call = ACCEPTS, .text = "set O_NONBLOCK on the listening socket: another process may have taken the connection"},
    {.call = RECVS, .text = "set O_NONBLOCK (or MSG_DONTWAIT) and receive when the loop says readable"},
    {.call = READS, .fd = UB_ADVICE_FD_SOCKET, .text = "set O_NONBLOCK and read when the loop says readable"},
    {.call = READS, .fd = UB_ADVICE_FD_PIPE, .text = "set O_NONBLOCK and read when the loop says readable"},
    {.call = SENDS, .text = "set O_NONBLOCK, keep what did not fit, and send on when the loop says writable"},
    {.call = WRITES,
     .fd = UB_ADVICE_FD_SOCKET,
     .text = "set O_NONBLOCK, keep what did not fit, and write on when the loop says writable"},
    {.call = WRITES,
     .fd = UB_ADVICE_FD_PIPE,
     .text = "the reader of the pipe is slow: O_NONBLOCK, and write on when the loop says writable"},
    {.call = READS, .text = "O_NONBLOCK for pipes, sockets and terminals; a worker thread for files"},
    {.call = WRITES, .text = "O_NONBLOCK for pipes, sockets and terminals; a worker thread for files"},
    {.call = POLLS, .text = "a wait inside a callback: give that descriptor to the event loop instead"},
    {.call = "close|shutdown",
     .text = "closing may write back (network file systems) or linger (SO_LINGER): close in a worker thread"},

    /* Children. */
    {.loop = "libuv", .call = CHILDS, .text = "uv_spawn() calls exit_cb when the child ends"},
    {.loop = "libevent", .call = CHILDS, .text = "evsignal_new(base, SIGCHLD, ...) and waitpid with WNOHANG"},
    {.loop = "libev", .call = CHILDS, .text = "an ev_child watcher instead of waiting"},
    {.loop = "glib", .call = CHILDS, .text = "g_child_watch_add(pid, callback, data), or GSubprocess"},
    {.loop = "sd-event", .call = CHILDS, .text = "sd_event_add_child(event, &source, pid, WEXITED, callback, data)"},
    {.call = CHILDS, .text = "pidfd_open(2) in the loop, or SIGCHLD and waitpid with WNOHANG"},
    {.call = FORKS,
     .text = "fork copies the page tables of a big process: posix_spawn(), or a small helper process that forks"},

    /* Other threads. */
    {.function = JOINS, .text = "let the thread say when it is done (eventfd in the loop), and join it then"},
    {.function = CONDS,
     .loop = "libuv",
     .text = "let the other thread wake the loop with uv_async_send() instead of waiting for it"},
    {.function = CONDS,
     .loop = "glib",
     .text =
         "let the other thread wake the loop with g_idle_add() or g_main_context_invoke() instead of waiting for it"},
    {.function = CONDS, .text = "let the other thread wake the loop (eventfd) instead of waiting for it"},
    {.function = MUTEXES,
     .text = "another thread held the lock (which one is not known): hold it for less, or trylock and try again from a "
             "timer"},
    {.cause = "lock",
     .text = "another thread held the lock (which one is not known): hold it for less, or trylock and try again from a "
             "timer"},
    {.call = "futex", .text = "waits for another thread: let it wake the loop (eventfd) instead"},
    {.call = "semop|semtimedop|msgrcv|msgsnd|mq_timedreceive|mq_timedsend",
     .text = "IPC_NOWAIT and again from a timer, or wait in a thread that wakes the loop"},

    /* Memory. */
    {.call = "munmap|mmap|mremap|madvise|brk",
     .text =
         "mapping and unmapping much memory takes the kernel long: in a worker thread, in pieces, or keep the memory"},
    {.cause = "pagefault",
     .text = "memory was not resident: mlock(2), less swap, or read mapped files ahead (MADV_WILLNEED, MAP_POPULATE)"},

    /* Neither call nor lock. */
    {.cause = "runqueue",
     .text = "there was no free CPU: look at the CPU limit of its cgroup (cpu.max, cpu.stat nr_throttled), other "
             "processes, nice"},
    {.loop = "libuv",
     .cause = "cpu",
     .text = "uv_queue_work(loop, req, work, done), or pieces with uv_idle or uv_check between"},
    {.loop = "glib", .cause = "cpu", .text = "g_task_run_in_thread(), or pieces with g_idle_add() between"},
    {.cause = "cpu", .text = "computation: a worker thread, or pieces with a turn of the loop between"},
};

const size_t ub_advice_rows = UB_ARRAY_LEN(ub_advice_table);
