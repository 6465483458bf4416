/*
 * client ADDRESS PORT LOCAL-PORT: connects, then does as it is told, a line each:
 * send BYTES, ping, half-close, close, abort (close with SO_LINGER 0, that is with a RST).
 * Without a further word it exits, and the kernel closes what is open.
 */
#include "lab.h"

#include <time.h>

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

NOIPA static void dial(int fd, const char *address, int port)
{
	struct sockaddr_storage to;
	socklen_t length = address_of(address, port, &to);
	double before = now();
	int failed = connect(fd, (struct sockaddr *)&to, length); /* HERE: dial */

	if (failed)
		give_up("connect");
	tell("connected %d %.6f", fd, now() - before);
}

NOIPA static void request(int fd, size_t bytes)
{
	char data[ROOM] = {0};
	ssize_t sent = send(fd, data, bytes, MSG_NOSIGNAL); /* HERE: request */

	tell("sent %zd", sent);
}

NOIPA static void ping(int fd)
{
	char answer[ROOM];
	ssize_t sent = send(fd, "PING\r\n", 6, MSG_NOSIGNAL); /* HERE: ping send */
	ssize_t got = recv(fd, answer, sizeof(answer), 0);    /* HERE: ping receive */

	tell("answered %zd %zd", sent, got);
}

NOIPA static void half_close(int fd)
{
	int failed = shutdown(fd, SHUT_WR); /* HERE: half_close */

	tell("half-closed %d", failed);
}

NOIPA static void hang_up(int fd)
{
	int failed = close(fd); /* HERE: hang_up */

	tell("closed %d", failed);
}

NOIPA static void abandon(int fd)
{
	struct linger none = {.l_onoff = 1, .l_linger = 0};

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof(none));
	hang_up(fd); /* HERE: abandon */
}

int main(int count, char **words)
{
	char room[ROOM];
	begin();
	int fd = bound_socket(words[1], count > 3 ? atoi(words[3]) : 0);

	dial(fd, words[1], atoi(words[2])); /* HERE: main dial */
	for (;;) {
		char *word = strtok(told(room), " ");
		if (strcmp(word, "send") == 0)
			request(fd, atoi(strtok(NULL, " "))); /* HERE: main send */
		else if (strcmp(word, "ping") == 0)
			ping(fd); /* HERE: main ping */
		else if (strcmp(word, "half-close") == 0)
			half_close(fd); /* HERE: main half-close */
		else if (strcmp(word, "close") == 0)
			hang_up(fd); /* HERE: main close */
		else if (strcmp(word, "abort") == 0)
			abandon(fd); /* HERE: main abort */
	}
}
