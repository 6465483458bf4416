/*
 * polite_server ADDRESS PORT: the server that does it right, one client after the other:
 * answers each PING, and closes at the end of file.
 */
#include "lab.h"

NOIPA static void hang_up(int fd)
{
	int failed = close(fd); /* HERE: hang_up */

	STAY(failed);
}

NOIPA static void handle_client(int fd)
{
	char line[ROOM];

	while (read(fd, line, sizeof(line)) > 0)        /* HERE: handle_client */
		send(fd, "+PONG\r\n", 7, MSG_NOSIGNAL); /* HERE: handle_client send */
	hang_up(fd);                                    /* HERE: handle_client close */
}

NOIPA static void serve(int listener)
{
	for (;;) {
		int fd = accept(listener, NULL, NULL); /* HERE: serve accept */

		if (fd < 0)
			give_up("accept");
		handle_client(fd); /* HERE: serve */
	}
}

int main(int count, char **words)
{
	begin();
	int listener = listen_on(words[1], atoi(words[2]), 128);

	tell("listening %d", listener);
	serve(listener); /* HERE: main */
	return count < 3;
}
