/* A minimal engine for the benchmark: one thread, epoll, HTTP/1.1 keep-alive.
 *
 * upstream --port PORT
 *
 * A body with "stream":true is answered by as many server-sent events of 250 bytes as its "max_tokens" says, one every
 * so many milliseconds as its "user" says, each in a chunk of its own. With "user":"0" the second never comes: such a
 * stream is idle. All streams that are open at a time must have the same spacing. Any other request is answered at
 * once, by 2 KB of JSON; a GET by what routers ask a server for: which model it has.
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
#define ROOM 16384         /* what a connection's buffer has at first */
#define STREAM_BODY 16384  /* the body of a request for a stream is not longer */
#define CHUNK_BYTES 250

struct connection {
    char *data;
    size_t length, room;
    int remaining; /* chunks still to be sent */
    int64_t due, spacing;
};

static struct connection connections[MAX_FDS];
static int queue[MAX_FDS];
static unsigned head, tail; /* streams in the order of their next chunk: the spacing is the same for all */
static char plain[8192], about[1024], stream_head[512], chunk[8192];
static int plain_length, about_length, stream_head_length, chunk_length;

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

/* The number behind a key of the body, which is ended by a 0; or -1. */
static long number(const char *body, const char *key) {
    const char *at = strstr(body, key);
    return at ? strtol(at + strlen(key), NULL, 10) : -1;
}

static void begin_stream(int fd, const char *body) {
    struct connection *self = &connections[fd];
    long spacing_ms = number(body, "\"user\":\""), events = number(body, "\"max_tokens\":");
    if (put(fd, stream_head, stream_head_length)) return;
    if (spacing_ms <= 0) {
        put(fd, chunk, chunk_length);
        return;
    }
    self->remaining = events + 1;
    self->spacing = spacing_ms * 1000000LL;
    self->due = now() + self->spacing;
    queue[tail++ % MAX_FDS] = fd;
}

/* Answer every complete request in the buffer. */
static void serve(int fd) {
    struct connection *self = &connections[fd];
    while (self->data && !self->remaining) {
        char *end = memmem(self->data, self->length, "\r\n\r\n", 4);
        if (!end) return;
        *end = 0;
        char *field = strcasestr(self->data, "\r\ncontent-length:");
        *end = '\r';
        size_t body = field ? strtoul(field + 17, NULL, 10) : 0;
        size_t total = end + 4 - self->data + body;
        if (self->length < total) {
            if (total < self->room) return;
            self->room = total + 1;
            self->data = realloc(self->data, self->room);
            return;
        }
        int is_get = !memcmp(self->data, "GET", 3);
        char text[STREAM_BODY + 1];
        size_t looked_at = body < STREAM_BODY ? body : STREAM_BODY;
        memcpy(text, end + 4, looked_at);
        text[looked_at] = 0;
        memmove(self->data, self->data + total, self->length - total);
        self->length -= total;
        if (body <= STREAM_BODY && strstr(text, "\"stream\":true")) begin_stream(fd, text);
        else if (is_get ? put(fd, about, about_length) : put(fd, plain, plain_length)) return;
    }
}

static void send_due(void) {
    while (head != tail) {
        int fd = queue[head % MAX_FDS];
        struct connection *self = &connections[fd];
        if (self->remaining && self->due > now()) return;
        head++;
        if (!self->remaining) continue;
        self->due += self->spacing;
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
    ssize_t got = recv(fd, self->data + self->length, self->room - 1 - self->length, 0);
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
        connections[fd].room = ROOM;
        connections[fd].data = malloc(ROOM);
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
    }
}

int main(int count, char **arguments) {
    int port = 0, one = 1;
    for (int index = 1; index + 1 < count; index++)
        if (!strcmp(arguments[index], "--port")) port = atoi(arguments[index + 1]);
    if (!port) return 2;
    char text[4096];
    memset(text, 'x', sizeof text);
    const char *begin = "{\"id\":\"1\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"m\",\"choices\":"
        "[{\"index\":0,\"finish_reason\":\"stop\",\"message\":{\"role\":\"assistant\",\"content\":\"";
    const char *rest = "\"}}],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1,\"total_tokens\":2}}";
    plain_length = sprintf(plain,
        "HTTP/1.1 200 OK\r\ndate: Tue, 24 Nov 2026 00:00:00 GMT\r\nserver: uvicorn\r\ncontent-length: 2048\r\n"
        "content-type: application/json\r\n\r\n%s%.*s%s",
        begin, 2048 - (int)(strlen(begin) + strlen(rest)), text, rest);
    const char *model = "{\"object\":\"list\",\"data\":[{\"id\":\"model-00\",\"object\":\"model\"}],"
        "\"model_path\":\"model-00\",\"served_model_name\":\"model-00\"}";
    about_length = sprintf(about,
        "HTTP/1.1 200 OK\r\ncontent-length: %d\r\ncontent-type: application/json\r\n\r\n%s", (int)strlen(model), model);
    stream_head_length = sprintf(stream_head,
        "HTTP/1.1 200 OK\r\ndate: Tue, 24 Nov 2026 00:00:00 GMT\r\nserver: uvicorn\r\n"
        "content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n");
    const char *sent = "data: {\"id\":\"1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\","
        "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"";
    chunk_length = sprintf(chunk, "%x\r\n%s%.*s\"}}]}\n\n\r\n",
        CHUNK_BYTES, sent, CHUNK_BYTES - 7 - (int)strlen(sent), text);

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
