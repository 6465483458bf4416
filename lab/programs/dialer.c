/*
 * dialer ADDRESS PORT COUNT: opens so many connections at once, without waiting for any,
 * and then waits for what becomes of them.
 */
#include "lab.h"

#include <poll.h>

#define MOST 1024

NOIPA static void dial(int fd, const char *address, int port)
{
	struct sockaddr_storage to;
	socklen_t length = address_of(address, port, &to);
	int failed = connect(fd, (struct sockaddr *)&to, length); /* HERE: dial */

	if (!failed || errno != EINPROGRESS)
		give_up("connect");
}

static int error_of(int fd)
{
	int error = 0;
	socklen_t length = sizeof(error);

	getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
	return error;
}

/* How many ended with ETIMEDOUT. */
static int wait_for_all(struct pollfd *waiting, int count)
{
	int left = count, timed_out = 0;

	while (left && poll(waiting, count, -1) > 0) {
		for (int one = 0; one < count; one++) {
			if (!waiting[one].revents)
				continue;
			timed_out += error_of(waiting[one].fd) == ETIMEDOUT;
			waiting[one].fd = -1; /* stays open: poll() alone forgets it */
			left--;
		}
	}
	return timed_out;
}

int main(int count, char **words)
{
	static struct pollfd waiting[MOST];
	char room[ROOM];
	int wanted = count > 3 ? atoi(words[3]) : 1;

	begin();
	for (int one = 0; one < wanted && one < MOST; one++) {
		int fd = tcp_socket(words[1], SOCK_NONBLOCK);

		dial(fd, words[1], atoi(words[2])); /* HERE: main */
		waiting[one] = (struct pollfd){.fd = fd, .events = POLLOUT};
	}
	tell("dialing %d", wanted);
	tell("timed-out %d", wait_for_all(waiting, wanted));
	told(room);
	return 0;
}
