/*
 * What the laboratory's programs share. Each tells on standard output what it has done,
 * one line a deed, and is told on standard input what to do: nobody has to sleep to be
 * in time.
 *
 * "HERE: function" marks the line of a call, and the function in which it stands; where
 * one function has two such calls, a word follows. lab/sources.py finds the lines by it,
 * so that they never drift. NOIPA and STAY keep a function and a call what they are in
 * spite of -O2.
 */
#ifndef LAB_H
#define LAB_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define NOIPA __attribute__((noinline, noipa))
#define STAY(result) __asm__ volatile("" : "+r"(result)) /* no tail call before it */
#define ROOM 512

/* A line is told when it is complete, and no line is read before it is asked for. */
static inline void begin(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	setvbuf(stdin, NULL, _IONBF, 0);
}

static inline void tell(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	putchar('\n');
}

static inline void give_up(const char *what)
{
	tell("failed %s: %s", what, strerror(errno));
	exit(1);
}

/* What the laboratory says next, without the newline; it may also say nothing more. */
static inline char *told(char *room)
{
	if (!fgets(room, ROOM, stdin))
		exit(0);
	room[strcspn(room, "\n")] = 0;
	return room;
}

static inline socklen_t address_of(const char *text, int port, struct sockaddr_storage *to)
{
	struct sockaddr_in *four = (struct sockaddr_in *)to;
	struct sockaddr_in6 *six = (struct sockaddr_in6 *)to;

	memset(to, 0, sizeof(*to));
	if (strchr(text, ':')) {
		six->sin6_family = AF_INET6;
		six->sin6_port = htons(port);
		inet_pton(AF_INET6, text, &six->sin6_addr);
		return sizeof(*six);
	}
	four->sin_family = AF_INET;
	four->sin_port = htons(port);
	inet_pton(AF_INET, text, &four->sin_addr);
	return sizeof(*four);
}

static inline int tcp_socket(const char *address, int flags)
{
	int yes = 1;
	int fd = socket(strchr(address, ':') ? AF_INET6 : AF_INET, SOCK_STREAM | flags, 0);

	if (fd < 0)
		give_up("socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
	return fd;
}

static inline int listen_on(const char *address, int port, int backlog)
{
	struct sockaddr_storage here;
	socklen_t length = address_of(address, port, &here);
	int fd = tcp_socket(address, 0);

	if (bind(fd, (struct sockaddr *)&here, length) || listen(fd, backlog))
		give_up("listen");
	return fd;
}

/* From this local port; 0: from any. */
static inline int bound_socket(const char *peer, int port)
{
	struct sockaddr_storage here;
	socklen_t length = address_of(strchr(peer, ':') ? "::" : "0.0.0.0", port, &here);
	int fd = tcp_socket(peer, 0);

	if (port && bind(fd, (struct sockaddr *)&here, length))
		give_up("bind");
	return fd;
}

#endif
