/* A minimal engine for the benchmark: one thread, epoll, HTTP/1.1 keep-alive.
 *
 * upstream PORT SPACING_MS CHUNKS CHUNK_BYTES
 *
 * A body with "stream":true is answered by CHUNKS server-sent events, one every SPACING_MS, each in a chunk of its own;
 * any other request at once by 2 KB of JSON.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_FDS 16384
#define BUFFER (1 << 20)

struct connection {
    char *data;
    size_t length;
    int remaining; /* chunks still to be sent */
    int64_t due;
};

static struct connection connections[MAX_FDS];
static int queue[MAX_FDS];
static unsigned head, tail; /* streams in the order of their next chunk: the spacing is the same for all */
static char plain[8192], stream_head[512], chunk[8192];
static int plain_length, stream_head_length, chunk_length, chunks;
static int64_t spacing;

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void drop(int fd) {
    free(connections[fd].data);
    memset(&connections[fd], 0, sizeof connections[fd]);
    close(fd);
}

static int put(int fd, const char *data, size_t length) {
    ssize_t sent = send(fd, data, length, MSG_NOSIGNAL);
    if (sent != (ssize_t)length) {
        drop(fd);
        return -1;
    }
    return 0;
}

/* Answer every complete request in the buffer. */
static void serve(int fd) {
    struct connection *self = &connections[fd];
    while (!self->remaining) {
        char *end = memmem(self->data, self->length, "\r\n\r\n", 4);
        if (!end) return;
        *end = 0;
        char *field = strcasestr(self->data, "\r\ncontent-length:");
        *end = '\r';
        size_t body = field ? strtoul(field + 17, NULL, 10) : 0;
        size_t total = end + 4 - self->data + body;
        if (self->length < total) return;
        int streaming = memmem(end + 4, body, "\"stream\":true", 13) != NULL;
        memmove(self->data, self->data + total, self->length - total);
        self->length -= total;
        if (!streaming) {
            if (put(fd, plain, plain_length)) return;
            continue;
        }
        if (put(fd, stream_head, stream_head_length)) return;
        self->remaining = chunks;
        self->due = now() + spacing;
        queue[tail++ % MAX_FDS] = fd;
    }
}

static void send_due(void) {
    while (head != tail) {
        int fd = queue[head % MAX_FDS];
        struct connection *self = &connections[fd];
        if (self->remaining && self->due > now()) return;
        head++;
        if (!self->remaining) continue;
        self->due += spacing;
        if (--self->remaining) {
            if (!put(fd, chunk, chunk_length)) queue[tail++ % MAX_FDS] = fd;
        } else if (!put(fd, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n", 24)) {
            serve(fd);
        }
    }
}

static void receive(int fd) {
    struct connection *self = &connections[fd];
    if (!self->data) return;
    ssize_t got = recv(fd, self->data + self->length, BUFFER - self->length, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        drop(fd);
        return;
    }
    self->length += got;
    self->data[self->length] = 0;
    serve(fd);
}

static void accept_all(int listener, int poll) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= MAX_FDS) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        connections[fd].data = malloc(BUFFER + 1);
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
    }
}

int main(int count, char **arguments) {
    int port = 0, one = 1;
    for (int index = 1; index + 1 < count; index++)
        if (!strcmp(arguments[index], "--port")) port = atoi(arguments[index + 1]);
    const char *shape = getenv("BENCH_STREAM");
    int spacing_ms, events_wanted, bytes;
    if (!port || !shape || sscanf(shape, "%d %d %d", &spacing_ms, &events_wanted, &bytes) != 3) return 2;
    spacing = spacing_ms * 1000000LL;
    chunks = events_wanted + 1;
    char text[4096];
    memset(text, 'x', sizeof text);
    plain_length = sprintf(plain,
        "HTTP/1.1 200 OK\r\ndate: Tue, 24 Nov 2026 00:00:00 GMT\r\nserver: uvicorn\r\ncontent-length: 2048\r\n"
        "content-type: application/json\r\n\r\n{\"choices\":[{\"text\":\"%.*s\"}]}", 2048 - 25, text);
    stream_head_length = sprintf(stream_head,
        "HTTP/1.1 200 OK\r\ndate: Tue, 24 Nov 2026 00:00:00 GMT\r\nserver: uvicorn\r\n"
        "content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n");
    chunk_length = sprintf(chunk, "%x\r\ndata: %.*s\n\n\r\n", bytes, bytes - 8, text);

    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) {
        perror("upstream");
        return 1;
    }
    int poll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[256];
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int64_t wait = -1;
        if (head != tail) {
            wait = connections[queue[head % MAX_FDS]].due - now();
            if (wait < 0) wait = 0;
        }
        struct timespec limit = {wait / 1000000000, wait % 1000000000};
        int ready = epoll_pwait2(poll, events, 256, wait < 0 ? NULL : &limit, NULL);
        for (int index = 0; index < ready; index++) {
            if (events[index].data.fd == listener) accept_all(listener, poll);
            else receive(events[index].data.fd);
        }
        send_due();
    }
}
