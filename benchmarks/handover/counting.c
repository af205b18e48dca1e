/* Loaded in front of the C library (LD_PRELOAD): counts the bytes that a process copies, itself and through the kernel.

   COUNTING_FILE names a file of one page that all processes may read while it grows. Copies below LEAST bytes are not
   counted: they are records and messages, not payloads. What is copied without memcpy or memmove is not seen. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define LEAST 4096

struct totals {
    uint64_t copied;  /* bytes, by memcpy and memmove */
    uint64_t crossed; /* bytes, between process and kernel */
    uint64_t calls;   /* system calls that did it */
};

static struct totals unread;
static struct totals *totals = &unread;
static void *(*real_move)(void *, const void *, size_t);
static ssize_t (*real_read)(int, void *, size_t);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_readv)(int, const struct iovec *, int);
static ssize_t (*real_writev)(int, const struct iovec *, int);
static ssize_t (*real_recv)(int, void *, size_t, int);
static ssize_t (*real_send)(int, const void *, size_t, int);
static ssize_t (*real_recvmsg)(int, struct msghdr *, int);
static ssize_t (*real_sendmsg)(int, const struct msghdr *, int);

static void add(uint64_t *total, uint64_t number) { __atomic_fetch_add(total, number, __ATOMIC_RELAXED); }

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("COUNTING_FILE");
    int fd = path ? open(path, O_RDWR) : -1;
    void *page = fd < 0 ? MAP_FAILED : mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd >= 0)
        close(fd);
    if (page != MAP_FAILED)
        totals = page;
    unsetenv("LD_PRELOAD"); /* children are not counted */
    real_move = dlsym(RTLD_NEXT, "memmove");
    real_read = dlsym(RTLD_NEXT, "read");
    real_write = dlsym(RTLD_NEXT, "write");
    real_readv = dlsym(RTLD_NEXT, "readv");
    real_writev = dlsym(RTLD_NEXT, "writev");
    real_recv = dlsym(RTLD_NEXT, "recv");
    real_send = dlsym(RTLD_NEXT, "send");
    real_recvmsg = dlsym(RTLD_NEXT, "recvmsg");
    real_sendmsg = dlsym(RTLD_NEXT, "sendmsg");
}

/* Before `begin` has run, and inside of dlsym. */
static void *slowly(char *to, const char *from, size_t n) {
    volatile char *target = to;
    if (to < from)
        for (size_t i = 0; i < n; i++)
            target[i] = from[i];
    else
        while (n--)
            target[n] = from[n];
    return to;
}

void *memmove(void *to, const void *from, size_t n) {
    if (n >= LEAST)
        add(&totals->copied, n);
    return real_move ? real_move(to, from, n) : slowly(to, from, n);
}

void *memcpy(void *restrict to, const void *restrict from, size_t n) { return memmove(to, from, n); }
void *__memmove_chk(void *to, const void *from, size_t n, size_t room) { return n > room ? (abort(), to) : memmove(to, from, n); }
void *__memcpy_chk(void *to, const void *from, size_t n, size_t room) { return __memmove_chk(to, from, n, room); }

static ssize_t counted(ssize_t result) {
    add(&totals->calls, 1);
    if (result > 0)
        add(&totals->crossed, (uint64_t)result);
    return result;
}

ssize_t read(int fd, void *to, size_t n) { return counted(real_read(fd, to, n)); }
ssize_t write(int fd, const void *from, size_t n) { return counted(real_write(fd, from, n)); }
ssize_t readv(int fd, const struct iovec *to, int n) { return counted(real_readv(fd, to, n)); }
ssize_t writev(int fd, const struct iovec *from, int n) { return counted(real_writev(fd, from, n)); }
ssize_t recv(int fd, void *to, size_t n, int flags) { return counted(real_recv(fd, to, n, flags)); }
ssize_t send(int fd, const void *from, size_t n, int flags) { return counted(real_send(fd, from, n, flags)); }
ssize_t recvmsg(int fd, struct msghdr *to, int flags) { return counted(real_recvmsg(fd, to, flags)); }
ssize_t sendmsg(int fd, const struct msghdr *from, int flags) { return counted(real_sendmsg(fd, from, flags)); }
