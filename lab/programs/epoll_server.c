/*
 * epoll_server ADDRESS PORT: the server that forgets. At the end of file it takes the
 * connection out of its epoll set, and never closes it.
 *
 * Told "reply", it writes to the client that came last.
 */
#include "lab.h"

#include <sys/epoll.h>

static int last_client;

static void watch(int set, int fd)
{
	struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};

	if (epoll_ctl(set, EPOLL_CTL_ADD, fd, &event))
		give_up("epoll_ctl");
}

NOIPA static void accept_client(int set, int listener)
{
	int fd = accept(listener, NULL, NULL); /* HERE: accept_client */

	if (fd < 0)
		give_up("accept");
	watch(set, fd);
	last_client = fd;
	tell("accepted %d", fd);
}

NOIPA static void handle_client(int set, int fd)
{
	char request[ROOM];
	ssize_t got = read(fd, request, sizeof(request)); /* HERE: handle_client */

	if (got > 0) {
		tell("read %zd", got);
		return;
	}
	epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL); /* and here close(fd) is missing */
	tell("eof %d", fd);
}

NOIPA static void reply(int fd)
{
	ssize_t sent = write(fd, "200 OK\r\n", 8); /* HERE: reply */

	tell("replied %zd", sent);
}

NOIPA static void obey(void)
{
	char room[ROOM];

	if (strcmp(told(room), "reply") == 0)
		reply(last_client); /* HERE: obey */
}

NOIPA static void serve(int set, int listener)
{
	struct epoll_event event;

	while (epoll_wait(set, &event, 1, -1) == 1) {
		if (event.data.fd == listener)
			accept_client(set, listener); /* HERE: serve accept */
		else if (event.data.fd == STDIN_FILENO)
			obey(); /* HERE: serve obey */
		else
			handle_client(set, event.data.fd); /* HERE: serve handle */
	}
}

int main(int count, char **words)
{
	begin();
	int listener = listen_on(words[1], atoi(words[2]), 128);
	int set = epoll_create1(0);

	watch(set, listener);
	watch(set, STDIN_FILENO);
	tell("listening %d", listener);
	serve(set, listener); /* HERE: main */
	return count < 3;
}
