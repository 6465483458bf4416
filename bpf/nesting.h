/*
 * A program that interrupts itself on one CPU is skipped by the kernel (since 6.1,
 * commit 05b24ff9b2cf), and its event would be lost: a system call changes a
 * socket's state, a packet comes in, another socket's state changes. So the
 * program is loaded twice and both copies are called for each event, one right
 * after the other. The first leaves a note of what it has done; the second, which
 * has its own `role` map, takes the event over if the note is not about it.
 */

#define ROLE_SECOND 1

BPF_ARRAY(role, u64, 1); /* filled by user space: one map for each copy */
BPF_PERCPU_ARRAY(done_by_first, u64, 1);

/* Sockets lie far more than 256 bytes apart. */
static __always_inline u64 event_number(u64 sk, u32 old_state, u32 new_state)
{
	return sk + (old_state << 4 | new_state);
}

static __always_inline bool is_mine(u64 number)
{
	int only = 0;
	u64 *mine = role.lookup(&only), *done = done_by_first.lookup(&only);

	if (!mine || !done)
		return false;
	if (*mine != ROLE_SECOND)
		return true;
	if (*done == number) {
		*done = 0;
		return false;
	}
	counts.increment(COUNT_SECOND_COPY);
	return true;
}

static __always_inline void note_done(u64 number)
{
	int only = 0;
	u64 *mine = role.lookup(&only), *done = done_by_first.lookup(&only);

	if (mine && done && *mine != ROLE_SECOND)
		*done = number;
}
