/*
 * Many short connections, counted.
 *   load server ADDRESS [greet]         prints its port; takes connections until stdin
 *                                       ends, closing each after the peer's FIN; prints how many
 *   load client ADDRESS PORT N [greet]  makes N, one after the other (0: until a line
 *                                       comes on stdin, unhurried); prints how many
 * Both wait for a line on stdin before they start to work. With greet the server sends
 * a byte and the client waits for it: it never closes before the server has accepted.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static socklen_t address_of(const char *text, int port, struct sockaddr_storage *to)
{
	struct sockaddr_in *four = (void *)to;
	struct sockaddr_in6 *six = (void *)to;

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

static void check(int failed, const char *what)
{
	if (failed) {
		perror(what);
		exit(1);
	}
}

static int listen_on(const char *address_text)
{
	struct sockaddr_storage address;
	socklen_t length = address_of(address_text, 0, &address);
	int fd = socket(address.ss_family, SOCK_STREAM, 0);

	check(bind(fd, (void *)&address, length) || listen(fd, 512), "listen");
	length = sizeof(address);
	getsockname(fd, (void *)&address, &length);
	printf("%d\n", ntohs(((struct sockaddr_in *)&address)->sin_port)); /* same place in both */
	return fd;
}

static void serve_one(int listener, int greet)
{
	char byte = 'g';
	int fd = accept(listener, NULL, NULL);

	check(fd < 0, "accept");
	check(greet && write(fd, &byte, 1) != 1, "write");
	while (read(fd, &byte, 1) > 0)
		;
	close(fd);
}

static long serve(int listener, int greet)
{
	struct pollfd both[] = {{.fd = listener, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
	long served = 0;

	while (poll(both, 2, -1) > 0) {
		if (both[0].revents) {
			serve_one(listener, greet);
			served++;
		} else {
			break; /* nobody waits, and stdin has ended */
		}
	}
	return served;
}

static int told_to_stop(void)
{
	struct pollfd one = {.fd = 0, .events = POLLIN};

	return poll(&one, 1, 0) == 1;
}

static long visit(const char *address_text, int port, long wanted, int greet)
{
	struct sockaddr_storage address;
	socklen_t length = address_of(address_text, port, &address);
	long made = 0;
	char byte;

	for (; wanted ? made < wanted : !told_to_stop(); made++) {
		int fd = socket(address.ss_family, SOCK_STREAM, 0);

		check(connect(fd, (void *)&address, length), "connect");
		check(greet && read(fd, &byte, 1) != 1, "read");
		close(fd);
		if (!wanted)
			usleep(200);
	}
	return made;
}

static void wait_for_go(void)
{
	char byte;

	while (read(0, &byte, 1) == 1 && byte != '\n')
		;
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (strcmp(argv[1], "server") == 0) {
		int listener = listen_on(argv[2]);

		wait_for_go();
		printf("%ld\n", serve(listener, argc > 3));
		return 0;
	}
	printf("client\n");
	wait_for_go();
	printf("%ld\n", visit(argv[2], atoi(argv[3]), atol(argv[4]), argc > 5));
	return 0;
}
