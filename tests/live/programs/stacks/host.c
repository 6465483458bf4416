/* Accepts by itself, and closes in shared libraries that come and go. */
#include "../obey.h"

#include <dlfcn.h>

static void *library;

/* load PATH -> where its code lies, in pages: the next library may come to lie there */
static int do_load(char **words, char *reply)
{
	Dl_info info;

	library = dlopen(words[1], RTLD_NOW);
	errno = ENOENT;
	if (!library || !dladdr(dlsym(library, words[2]), &info))
		return -1;
	sprintf(reply, "%lu", (unsigned long)((uintptr_t)info.dli_fbase >> 12));
	return 0;
}

static int do_unload(char **words, char *reply)
{
	(void)words;
	(void)reply;
	return dlclose(library);
}

/* close FUNCTION FD */
NOIPA static int do_close(char **words, char *reply)
{
	int (*function)(int) = (int (*)(int))dlsym(library, words[1]);
	int failed = function(number(words[2])); /* HERE: host_close */

	STAY(failed);
	(void)reply;
	return failed;
}

/* swap FUNCTION FD PATH FUNCTION: close, and at once another library in its place */
NOIPA static int do_swap(char **words, char *reply)
{
	if (do_close(words, reply)) /* HERE: do_swap */
		return -1;
	return do_unload(words, reply) ? -1 : do_load(words + 2, reply);
}

/* listen ADDRESS PORT -> fd port */
static int do_listen(char **words, char *reply)
{
	int fd = bound_to(words[1], number(words[2]));

	sprintf(reply, "%d %d", fd, local_port(fd));
	return listen(fd, 128);
}

/* accept FD -> fd 0 */
static int do_accept(char **words, char *reply)
{
	int fd = accept(number(words[1]), NULL, NULL);

	sprintf(reply, "%d 0", fd);
	return fd < 0 ? -1 : 0;
}

const struct command commands[] = {
	{"cookie", do_cookie}, {"fork", do_fork},     {"listen", do_listen},
	{"accept", do_accept}, {"load", do_load},     {"unload", do_unload},
	{"close", do_close},   {"swap", do_swap},     {NULL, NULL},
};
