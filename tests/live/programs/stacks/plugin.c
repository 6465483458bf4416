/* A shared library with one function, whose name FUNCTION says; host.c loads and unloads it. */
#include <unistd.h>

__attribute__((noinline, noipa)) static int within(int fd)
{
	int failed = close(fd); /* HERE: within */

	__asm__ volatile("" : "+r"(failed));
	return failed;
}

int FUNCTION(int fd)
{
	int failed = within(fd); /* HERE: FUNCTION */

	__asm__ volatile("" : "+r"(failed));
	return failed;
}
