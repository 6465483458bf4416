/*
 * busy_server ADDRESS PORT: accepts a client, and then waits for something else (here
 * for poll() without any descriptor), so that it never learns that the client went away.
 */
#include "lab.h"

#include <poll.h>

NOIPA static int accept_client(int listener)
{
	int fd = accept(listener, NULL, NULL); /* HERE: accept_client */

	if (fd < 0)
		give_up("accept");
	tell("accepted %d", fd);
	return fd;
}

NOIPA static void wait_for_backend(void)
{
	int failed = poll(NULL, 0, -1); /* HERE: wait_for_backend */

	STAY(failed);
}

NOIPA static void serve(int listener)
{
	int fd = accept_client(listener); /* HERE: serve accept */

	wait_for_backend(); /* HERE: serve */
	close(fd);
}

int main(int count, char **words)
{
	begin();
	int listener = listen_on(words[1], atoi(words[2]), 128);

	tell("listening %d", listener);
	serve(listener); /* HERE: main */
	return count < 3;
}
