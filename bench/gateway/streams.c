/* Reads many streams at once and checks every one of them.
 *
 * streams PORT STREAMS CHUNKS SPACING_MS
 *
 * Opens STREAMS connections, spread over one SPACING_MS, posts a streaming request of about 1 KB on each and reads until
 * all have ended. Prints "CHUNKS ERRORS"; an error is a stream without status 200, without exactly CHUNKS events and
 * [DONE], without its clean end, or open when nothing has come on any for 10 s.
 *
 * With SPACING_MS 0 the streams are idle: prints "STREAMS ERRORS" once each has had its first event, and then waits for
 * the end of its standard input.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_FDS 16384
#define KEPT 7
#define SILENCE_SECONDS 10

struct stream {
    int begun, events, failed, ended;
    size_t kept;
    char tail[KEPT];
};

static struct stream streams[MAX_FDS];
static char data[1 << 17];

static double seconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

/* Whether the stream goes on. An event begins with "data: ", of which a cut leaves at most 5 bytes to the next read. */
static int receive(int fd) {
    struct stream *self = &streams[fd];
    memcpy(data, self->tail, self->kept);
    ssize_t got = recv(fd, data + self->kept, sizeof data - KEPT, 0);
    if (got <= 0) return 0;
    char *start = data + self->kept, *end = start + got;
    if (!self->begun) {
        self->begun = 1;
        self->failed = got < 12 || memcmp(start, "HTTP/1.1 200", 12) != 0;
    }
    char *at = self->kept > 5 ? start - 5 : data;
    for (; (at = memmem(at, end - at, "data: ", 6)); at += 6) self->events++;
    size_t all = end - data;
    self->kept = all < KEPT ? all : KEPT;
    memcpy(self->tail, end - self->kept, self->kept);
    self->ended = self->kept == KEPT && !memcmp(self->tail, "\r\n0\r\n\r\n", KEPT);
    return !self->ended;
}

static int start(int fd, struct sockaddr_in *address, int chunks, int spacing_ms) {
    int one = 1;
    char text[901], body[2048], request[4096];
    memset(text, 'y', 900);
    text[900] = 0;
    int length = sprintf(body,
        "{\"messages\":[{\"role\":\"user\",\"content\":\"%s\"}],\"stream\":true,\"max_tokens\":%d,\"user\":\"%d\","
        "\"model\":\"model-00\"}", text, chunks, spacing_ms);
    int size = sprintf(request,
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        "Content-Length: %d\r\n\r\n%s", length, body);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return !connect(fd, (struct sockaddr *)address, sizeof *address) && send(fd, request, size, MSG_NOSIGNAL) == size;
}

int main(int count, char **arguments) {
    if (count != 5) return 2;
    int wanted = atoi(arguments[2]), chunks = atoi(arguments[3]);
    int spacing = atoi(arguments[4]);
    int poll = epoll_create1(0), left = 0, errors = 0;
    long total = 0;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(arguments[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int index = 0; index < wanted; index++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0 || fd >= MAX_FDS || !start(fd, &address, chunks, spacing)) {
            errors++;
            close(fd);
            continue;
        }
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
        left++;
        usleep((spacing ? spacing : 500) * 1000 / wanted);
    }
    double limit = seconds() + spacing / 1000.0 + SILENCE_SECONDS;
    while (left && seconds() < limit) {
        struct epoll_event events[256];
        int ready = epoll_wait(poll, events, 256, 1000);
        if (ready > 0) limit = seconds() + spacing / 1000.0 + SILENCE_SECONDS;
        for (int index = 0; index < ready; index++) {
            int fd = events[index].data.fd;
            struct stream *self = &streams[fd];
            int goes_on = receive(fd);
            if (!spacing) {
                left -= self->events == 1;
                errors += !goes_on || self->failed;
                continue;
            }
            if (goes_on) continue;
            total += self->events;
            if (!self->ended || self->failed || self->events != chunks + 1) errors++;
            close(fd);
            left--;
        }
    }
    printf("%ld %d\n", spacing ? total : wanted - left, errors + left);
    fflush(stdout);
    if (!spacing) while (read(0, data, sizeof data) > 0);
    return 0;
}
