/*
 * A program that interrupts itself on one CPU is skipped by the kernel (since 6.1,
 * commit 05b24ff9b2cf), and its event would be lost: a system call changes a
 * socket's state, a packet comes in, another socket's state changes. So the
 * program is loaded twice. The second copy, which has its own `role` map, does
 * nothing unless the first one is at work below it.
 */

#define ROLE_SECOND 1

BPF_ARRAY(role, u64, 1); /* filled by user space: one map for each copy */
BPF_PERCPU_ARRAY(at_work, u64, 1);

static __always_inline bool enter(void)
{
	int only = 0;
	u64 *mine = role.lookup(&only), *busy = at_work.lookup(&only);

	if (!mine || !busy)
		return false;
	if (*mine != ROLE_SECOND) {
		*busy = 1;
		return true;
	}
	if (*busy)
		counts.increment(COUNT_SECOND_COPY);
	return *busy != 0;
}

static __always_inline void leave(void)
{
	int only = 0;
	u64 *mine = role.lookup(&only), *busy = at_work.lookup(&only);

	if (mine && busy && *mine != ROLE_SECOND)
		*busy = 0;
}
