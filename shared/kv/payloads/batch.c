/* Many payloads in one call that lets go of the interpreter's lock once, not once for each.

   Of the interpreter only its stable interface is used (3.11 and later), declared here: its headers are often not
   installed beside it. Functions return 0, or -1 with an exception set. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "xxh3.h"

#define KEEP_LOCK_BYTES (256 * 1024) /* read sooner than another thread gives the lock back */
#define CHUNK_BYTES (16u * 1024)     /* copied and hashed in turns: stays in the nearest cache */
#define HOT_BYTES (768 * 1024)       /* received and hashed in turns: stays in a processor's own cache */
#define MAX_PARTS 64                 /* payloads that one system call receives */
#define PEER_ENDED (-2)
#define NOTHING_YET (-3)
#define MAX_HELPERS 15

typedef struct _object PyObject;
typedef struct _ts PyThreadState;
typedef struct {
    void *buf;
    PyObject *obj;
    ptrdiff_t len, itemsize;
    int readonly, ndim;
    char *format;
    ptrdiff_t *shape, *strides, *suboffsets;
    void *internal;
} Py_buffer;
#define PyBUF_WRITABLE 1
#define ANY_LENGTH (-1)

extern PyObject *PyList_GetItem(PyObject *, ptrdiff_t);
extern PyObject *PyErr_NoMemory(void);
extern PyObject *PyExc_ValueError;
extern void PyErr_SetString(PyObject *, const char *);
extern int PyObject_GetBuffer(PyObject *, Py_buffer *, int);
extern void PyBuffer_Release(Py_buffer *);
extern PyThreadState *PyEval_SaveThread(void);
extern void PyEval_RestoreThread(PyThreadState *);

/* Where a layer's entries lie: `num_parts` rows of `part_bytes` for each. */
struct parts {
    uint8_t *first;
    int64_t num_parts, part_stride, part_bytes;
};

static int failed(const char *message) {
    PyErr_SetString(PyExc_ValueError, message);
    return -1;
}

static void release(Py_buffer *views, int64_t count) {
    for (int64_t i = 0; i < count; i++) PyBuffer_Release(views + i);
    free(views);
}

/* Return views of a list's buffers, all of `length` bytes, or NULL with an exception set. */
static Py_buffer *views_of(PyObject *list, int64_t count, int flags, int64_t length) {
    Py_buffer *views = malloc((size_t)count * sizeof *views + 1);
    if (!views) {
        PyErr_NoMemory();
        return NULL;
    }
    for (int64_t i = 0; i < count; i++) {
        PyObject *item = PyList_GetItem(list, i);
        if (!item || PyObject_GetBuffer(item, views + i, flags)) {
            release(views, i);
            return NULL;
        }
        if (length != ANY_LENGTH && views[i].len != length) {
            release(views, i + 1);
            failed("memory is not as long as an entry");
            return NULL;
        }
    }
    return views;
}

/* Payloads that several threads digest: each takes the next one. */
struct digesting {
    const Py_buffer *views;
    const uint8_t *headers;
    int64_t header_bytes, count;
    uint64_t *digests;
    atomic_llong next;
    int64_t num_threads; /* that may be at it, with the one it belongs to */
    int64_t num_others;  /* that are; of `pool` */
};

static void digest(struct digesting *work) {
    for (int64_t i; (i = atomic_fetch_add(&work->next, 1)) < work->count;)
        work->digests[i] = xxh3_long(work->views[i].buf, (size_t)work->views[i].len,
                                     xxh3_header(work->headers + i * work->header_bytes, (size_t)work->header_bytes));
}

/* Threads that help, for as long as the process lives, and never need the interpreter's lock. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t offered, left;
    struct digesting *work; /* that has payloads nobody has taken, or NULL */
    int64_t num_threads;
} pool = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, PTHREAD_COND_INITIALIZER, NULL, 0};

static void *help(void *nothing) {
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        struct digesting *work = pool.work;
        if (!work || work->num_others + 1 >= work->num_threads) {
            pthread_cond_wait(&pool.offered, &pool.lock);
            continue;
        }
        work->num_others++;
        pthread_mutex_unlock(&pool.lock);
        digest(work);
        pthread_mutex_lock(&pool.lock);
        if (pool.work == work) pool.work = NULL;
        if (!--work->num_others) pthread_cond_broadcast(&pool.left);
    }
    return nothing;
}

/* Digest with help, if nobody else has it. Who has not begun when all is taken is not waited for. */
static void digest_together(struct digesting *work) {
    pthread_mutex_lock(&pool.lock);
    while (pool.num_threads + 1 < work->num_threads && pool.num_threads < MAX_HELPERS) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, help, NULL)) break;
        pthread_detach(thread);
        pool.num_threads++;
    }
    if (!pool.work) {
        pool.work = work;
        pthread_cond_broadcast(&pool.offered);
    }
    pthread_mutex_unlock(&pool.lock);
    digest(work);
    pthread_mutex_lock(&pool.lock);
    if (pool.work == work) pool.work = NULL;
    while (work->num_others) pthread_cond_wait(&pool.left, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
}

/* Digest `count` payloads, all longer than XXH3_SHORT, each seeded with the digest of its header. It is done in
   `num_threads` at most, this one among them. Where others hold the interpreter's lock, to wait for it would take
   longer than to digest a megabyte. */
int prfaas_digests(const uint8_t *headers, int64_t header_bytes, PyObject *payloads, int64_t count, uint64_t *digests,
                   int64_t num_threads) {
    Py_buffer *views = views_of(payloads, count, 0, ANY_LENGTH);
    if (!views) return -1;
    int64_t total = 0;
    for (int64_t i = 0; i < count; i++) {
        if (views[i].len <= XXH3_SHORT) {
            release(views, count);
            return failed("a payload is too short for this");
        }
        total += views[i].len;
    }
    struct digesting work = {views, headers, header_bytes, count, digests, 0, num_threads, 0};
    PyThreadState *thread = total > KEEP_LOCK_BYTES ? PyEval_SaveThread() : NULL;
    if (num_threads > 1 && count > 1)
        digest_together(&work);
    else
        digest(&work);
    if (thread) PyEval_RestoreThread(thread);
    release(views, count);
    return 0;
}

/* Copy a multiple of 64 bytes to memory that this processor will not read: past its caches, so that neither is the
   memory read before it is written, nor what a model computes with driven out. */
static void copy_past_caches(uint8_t *target, const uint8_t *source, size_t size) {
#ifdef __AVX2__
    if ((uintptr_t)target % sizeof(__m256i) == 0) {
        for (size_t at = 0; at < size; at += 64) {
            __m256i low = _mm256_loadu_si256((const void *)(source + at));
            __m256i high = _mm256_loadu_si256((const void *)(source + at + 32));
            _mm256_stream_si256((void *)(target + at), low);
            _mm256_stream_si256((void *)(target + at + 32), high);
        }
        return;
    }
#endif
    memcpy(target, source, size);
}

/* Have everything that was copied past the caches seen by others before what is written from now on. */
static void fence(void) {
#ifdef __AVX2__
    _mm_sfence();
#endif
}

/* Copy one entry, part after part, and digest what was read. */
static uint64_t copy_out(const struct parts *parts, int64_t number, uint8_t *slot, uint64_t seed) {
    size_t part_bytes = (size_t)parts->part_bytes, length = part_bytes * (size_t)parts->num_parts;
    const uint8_t *part = parts->first + number * parts->part_bytes;
    struct xxh3 state;
    xxh3_begin(&state, seed);
    for (int64_t i = 0; i < parts->num_parts; i++, part += parts->part_stride, slot += part_bytes)
        for (size_t at = 0; at < part_bytes; at += CHUNK_BYTES) {
            size_t size = part_bytes - at < CHUNK_BYTES ? part_bytes - at : CHUNK_BYTES;
            int is_last = i + 1 == parts->num_parts && at + size == part_bytes;
            copy_past_caches(slot + at, part + at, size);
            xxh3_update(&state, part + at, size / STRIPE - (size_t)is_last);
        }
    return xxh3_end(&state, part - parts->part_stride + part_bytes - STRIPE, length);
}

/* Copy entries into slots of exactly their size, and digest them as `prfaas_digests` does. A part is a multiple of
   64 bytes, an entry longer than XXH3_SHORT. */
int prfaas_copy_out(const struct parts *parts, const int64_t *numbers, PyObject *slots, int64_t count,
                    const uint8_t *headers, int64_t header_bytes, uint64_t *digests) {
    int64_t length = parts->part_bytes * parts->num_parts;
    if (parts->part_bytes % STRIPE || length <= XXH3_SHORT) return failed("an entry of these parts cannot be copied");
    Py_buffer *views = views_of(slots, count, PyBUF_WRITABLE, length);
    if (!views) return -1;
    PyThreadState *thread = length * count > KEEP_LOCK_BYTES ? PyEval_SaveThread() : NULL;
    for (int64_t i = 0; i < count; i++)
        digests[i] = copy_out(parts, numbers[i], views[i].buf,
                              xxh3_header(headers + i * header_bytes, (size_t)header_bytes));
    fence();
    if (thread) PyEval_RestoreThread(thread);
    release(views, count);
    return 0;
}

static void copy_in(const struct parts *parts, int64_t number, const uint8_t *payload) {
    uint8_t *part = parts->first + number * parts->part_bytes;
    for (int64_t i = 0; i < parts->num_parts; i++, part += parts->part_stride, payload += parts->part_bytes)
        memcpy(part, payload, (size_t)parts->part_bytes);
}

/* Copy payloads, each of exactly an entry's length, to where entries lie. */
int prfaas_copy_in(const struct parts *parts, const int64_t *numbers, PyObject *payloads, int64_t count) {
    int64_t length = parts->part_bytes * parts->num_parts;
    Py_buffer *views = views_of(payloads, count, 0, length);
    if (!views) return -1;
    PyThreadState *thread = length * count > KEEP_LOCK_BYTES ? PyEval_SaveThread() : NULL;
    for (int64_t i = 0; i < count; i++) copy_in(parts, numbers[i], views[i].buf);
    if (thread) PyEval_RestoreThread(thread);
    release(views, count);
    return 0;
}

/* Do so with those whose digest, as `prfaas_digests` has it, is what it should be; say which these are. A payload is
   copied right after it was digested, while it is near. */
int prfaas_copy_in_sealed(const struct parts *parts, const int64_t *numbers, PyObject *payloads, int64_t count,
                          const uint8_t *headers, int64_t header_bytes, const uint64_t *checksums, uint8_t *intact) {
    int64_t length = parts->part_bytes * parts->num_parts;
    if (length <= XXH3_SHORT) return failed("an entry is too short for this");
    Py_buffer *views = views_of(payloads, count, 0, length);
    if (!views) return -1;
    PyThreadState *thread = length * count > KEEP_LOCK_BYTES ? PyEval_SaveThread() : NULL;
    for (int64_t i = 0; i < count; i++) {
        uint64_t seed = xxh3_header(headers + i * header_bytes, (size_t)header_bytes);
        intact[i] = xxh3_long(views[i].buf, (size_t)length, seed) == checksums[i];
        if (intact[i]) copy_in(parts, numbers[i], views[i].buf);
    }
    if (thread) PyEval_RestoreThread(thread);
    release(views, count);
    return 0;
}

/* Fill memory from a blocking socket. Return 0, PEER_ENDED, or the number of the error. */
static int fill(int fd, struct iovec *parts, int count) {
    while (count) {
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)count};
        ssize_t moved = recvmsg(fd, &message, MSG_WAITALL);
        if (moved == 0) return PEER_ENDED;
        if (moved < 0 && errno != EINTR) return errno;
        while (moved > 0 && count) {
            size_t taken = (size_t)moved < parts->iov_len ? (size_t)moved : parts->iov_len;
            parts->iov_base = (uint8_t *)parts->iov_base + taken;
            parts->iov_len -= taken;
            moved -= (ssize_t)taken;
            if (!parts->iov_len) parts++, count--;
        }
    }
    return 0;
}

/* The beginning of a batch: a header that starts with `magic`, then how many records follow. */
struct head {
    uint8_t *at;
    int64_t header_bytes, record_bytes, most;
    uint32_t magic;
    int64_t received; /* bytes: the header, and its records unless it cannot be a header */
};

static size_t head_bytes(const struct head *head) {
    uint32_t start[2]; /* magic, records */
    memcpy(start, head->at, sizeof start);
    int is_head = start[0] == head->magic && start[1] <= head->most;
    return (size_t)(head->header_bytes + (is_head ? head->record_bytes * start[1] : 0));
}

/* Take the next batch's beginning along, if all of it is here. */
static void receive_head_if_here(int fd, struct head *head) {
    int here = 0;
    size_t header_bytes = (size_t)head->header_bytes;
    head->received = 0;
    if (recv(fd, head->at, header_bytes, MSG_PEEK | MSG_DONTWAIT) != (ssize_t)header_bytes) return;
    size_t size = head_bytes(head);
    if (ioctl(fd, FIONREAD, &here) || here < 0 || (size_t)here < size) return;
    if (recv(fd, head->at, size, MSG_DONTWAIT) == (ssize_t)size) head->received = (int64_t)size;
}

/* Receive a batch's beginning from a blocking socket. Return 0, PEER_ENDED or NOTHING_YET before its first byte, or the
   number of the error. */
int prfaas_receive_head(int fd, struct head *head) {
    PyThreadState *thread = PyEval_SaveThread();
    struct iovec part = {head->at, (size_t)head->header_bytes};
    ssize_t moved;
    do moved = recv(fd, part.iov_base, part.iov_len, 0);
    while (moved < 0 && errno == EINTR);
    int status = moved > 0 ? 0 : moved == 0 ? PEER_ENDED : errno == EAGAIN ? NOTHING_YET : errno;
    if (!status && (size_t)moved < part.iov_len) {
        part = (struct iovec){head->at + moved, part.iov_len - (size_t)moved};
        status = fill(fd, &part, 1);
        if (status == PEER_ENDED) status = ECONNRESET;
    }
    if (!status) {
        head->received = (int64_t)head_bytes(head);
        part = (struct iovec){head->at + head->header_bytes, (size_t)(head->received - head->header_bytes)};
        status = part.iov_len ? fill(fd, &part, 1) : 0;
        if (status == PEER_ENDED) status = ECONNRESET;
    }
    PyEval_RestoreThread(thread);
    return status;
}

/* Receive payloads one after the other, and then the next batch's beginning if it is here. With `headers`, digest them
   as `prfaas_digests` does, some at a time, while they are near: then all are longer than XXH3_SHORT. Return 0, or what
   `fill` returns. */
int prfaas_receive(int fd, PyObject *payloads, int64_t count, const uint8_t *headers, int64_t header_bytes,
                   uint64_t *digests, struct head *next) {
    Py_buffer *views = views_of(payloads, count, PyBUF_WRITABLE, ANY_LENGTH);
    if (!views) return -1;
    for (int64_t i = 0; headers && i < count; i++)
        if (views[i].len <= XXH3_SHORT) {
            release(views, count);
            return failed("a payload is too short for this");
        }
    PyThreadState *thread = PyEval_SaveThread();
    int status = 0;
    for (int64_t first = 0, end = 0; first < count && !status; first = end) {
        struct iovec parts[MAX_PARTS];
        int64_t size = 0;
        for (; end < count && end - first < MAX_PARTS && (end == first || !headers || size < HOT_BYTES); end++) {
            parts[end - first] = (struct iovec){views[end].buf, (size_t)views[end].len};
            size += views[end].len;
        }
        status = fill(fd, parts, (int)(end - first));
        for (int64_t i = first; headers && i < end && !status; i++)
            digests[i] = xxh3_long(views[i].buf, (size_t)views[i].len,
                                   xxh3_header(headers + i * header_bytes, (size_t)header_bytes));
    }
    if (!status) receive_head_if_here(fd, next);
    PyEval_RestoreThread(thread);
    release(views, count);
    return status;
}

/* Say where payloads lie. */
int prfaas_addresses(PyObject *payloads, int64_t count, uint64_t *addresses) {
    Py_buffer *views = views_of(payloads, count, 0, ANY_LENGTH);
    if (!views) return -1;
    for (int64_t i = 0; i < count; i++) addresses[i] = (uint64_t)(uintptr_t)views[i].buf;
    release(views, count);
    return 0;
}

/* Have `copy`, CUDA's `cudaMemcpyAsync`, called for each; return the first status that is not 0, with nothing queued
   after it. The addresses tell which way a copy goes. */
#define BY_ADDRESS 4
int prfaas_queue_copies(int (*copy)(void *, const void *, size_t, int, void *), const uint64_t *targets,
                        const uint64_t *sources, const uint64_t *sizes, int64_t count, void *stream) {
    PyThreadState *thread = PyEval_SaveThread();
    int status = 0;
    for (int64_t i = 0; i < count && !status; i++)
        status = copy((void *)(uintptr_t)targets[i], (const void *)(uintptr_t)sources[i], (size_t)sizes[i], BY_ADDRESS,
                      stream);
    PyEval_RestoreThread(thread);
    return status;
}
