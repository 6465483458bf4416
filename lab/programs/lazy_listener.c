/*
 * lazy_listener ADDRESS PORT BACKLOG: what `nc -l` is. The laboratory stops it with
 * SIGSTOP before a client comes, so it never accepts anybody.
 */
#include "lab.h"

NOIPA static void serve(int listener)
{
	for (;;) {
		int fd = accept(listener, NULL, NULL); /* HERE: serve */

		if (fd >= 0)
			tell("accepted %d", fd);
	}
}

NOIPA static int open_shop(const char *address, int port, int backlog)
{
	struct sockaddr_storage here;
	socklen_t length = address_of(address, port, &here);
	int fd = tcp_socket(address, 0);
	int failed = bind(fd, (struct sockaddr *)&here, length);

	failed = failed || listen(fd, backlog); /* HERE: open_shop */
	if (failed)
		give_up("listen");
	return fd;
}

int main(int count, char **words)
{
	begin();
	int listener = open_shop(words[1], atoi(words[2]), atoi(words[3])); /* HERE: main listen */

	tell("listening %d", listener);
	serve(listener); /* HERE: main */
	return count < 4;
}
