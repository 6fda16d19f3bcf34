// httpload: a single-threaded epoll HTTP/1.1 load generator for short answers on kept connections.
//   httpload get PORT PATH CONNS SECONDS   each connection has one request in flight
// Understands Content-Length and chunked bodies that end in "0\r\n\r\n". Prints one JSON line.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef struct { int fd, len; char buf[8192]; uint64_t sent; } Conn;
static char request[512]; static int request_len; static uint64_t answers, counted;
static uint32_t hist[2000000];
static uint64_t now_ns(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000000ull + t.tv_nsec; }
static double pct(double p) { uint64_t want = counted * p, c = 0; for (int i = 0; i < 2000000; i++) { c += hist[i]; if (c > want) return i; } return 0; }
static void ask(Conn *c) { c->sent = now_ns(); if (write(c->fd, request, request_len) != request_len) { perror("write"); exit(1); } }
static void readable(Conn *c) {
  int n = read(c->fd, c->buf + c->len, sizeof c->buf - 1 - c->len);
  if (n < 0 && errno == EAGAIN) return;
  if (n <= 0) { fprintf(stderr, "closed by server\n"); exit(1); }
  c->len += n; c->buf[c->len] = 0;
  char *end = strstr(c->buf, "\r\n\r\n"); if (!end) return;
  if (memcmp(c->buf, "HTTP/1.1 200", 12)) { fprintf(stderr, "%.200s\n", c->buf); exit(1); }
  char *length = strcasestr(c->buf, "\r\ncontent-length:");
  int whole = length && length < end ? end + 4 - c->buf + atoi(length + 17) : c->len;
  if (length && length < end ? c->len < whole : memcmp(c->buf + c->len - 5, "0\r\n\r\n", 5)) return;
  c->len = 0; answers++; uint64_t us = (now_ns() - c->sent) / 1000; hist[us < 2000000 ? us : 1999999]++; counted++;
  ask(c);
}
int main(int argc, char **argv) {
  if (argc != 6) return 2;
  int port = atoi(argv[2]), N = atoi(argv[4]), ep = epoll_create1(0); double secs = atof(argv[5]); Conn *C = calloc(N, sizeof *C);
  request_len = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUser-Agent: httpload\r\nAccept: */*\r\n\r\n", argv[3], port);
  for (int k = 0; k < N; k++) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)}; a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    C[k].fd = socket(AF_INET, SOCK_STREAM, 0); if (connect(C[k].fd, (void *)&a, sizeof a)) { perror("connect"); return 1; }
    int one = 1; setsockopt(C[k].fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); fcntl(C[k].fd, F_SETFL, O_NONBLOCK);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = &C[k]}; epoll_ctl(ep, EPOLL_CTL_ADD, C[k].fd, &e); ask(&C[k]);
  }
  uint64_t began = now_ns(), until = began + (uint64_t)((secs + 0.3) * 1e9); int counting = 0; struct epoll_event ev[512];
  while (now_ns() < until) {
    if (!counting && now_ns() > began + 300000000ull) { counting = 1; answers = counted = 0; memset(hist, 0, sizeof hist); began = now_ns(); }
    int n = epoll_wait(ep, ev, 512, 20); for (int i = 0; i < n; i++) readable(ev[i].data.ptr);
  }
  printf("{\"conns\":%d,\"per_s\":%.0f,\"p50_us\":%.0f,\"p99_us\":%.0f}\n", N, answers / ((now_ns() - began) / 1e9), pct(.5), pct(.99));
  return 0;
}
