/*
 * hasty_server ADDRESS PORT: reads one message of 58 bytes, answers with as many, and
 * closes at once, whatever the client still wants to say.
 */
#include "lab.h"

#define MESSAGE 58

NOIPA static void answer(int fd)
{
	char message[MESSAGE];
	ssize_t got = recv(fd, message, sizeof(message), MSG_WAITALL);
	ssize_t sent = send(fd, message, got, MSG_NOSIGNAL); /* HERE: answer send */
	int failed = close(fd);                              /* HERE: answer close */

	STAY(failed);
	tell("answered %zd", sent);
}

NOIPA static void serve(int listener)
{
	for (;;) {
		int fd = accept(listener, NULL, NULL); /* HERE: serve accept */

		if (fd < 0)
			give_up("accept");
		answer(fd); /* HERE: serve */
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
