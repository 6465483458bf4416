/*
 * A program that interrupts itself on one CPU is skipped by the kernel (since 6.1,
 * commit 05b24ff9b2cf), and its event would be lost: a system call changes a
 * socket's state, a packet comes in, another socket's state changes. So the
 * program is loaded in COPIES copies, which are called for each event one right
 * after the other. The copy that does the work leaves a note; a later one, knowing
 * its place by a `role` map of its own, takes the event over if there is no note of
 * it. The last one removes the note.
 */

#define NOTES 4 /* a power of two; deeper than interrupts nest */

/* One CPU's notes, a stack: events that interrupt each other end in reverse order. */
struct notes {
	u64 number[NOTES];
	u32 count;
	u32 pad;
};

BPF_ARRAY(role, u64, 1); /* filled by user space: one map for each copy */
BPF_PERCPU_ARRAY(done_on_cpu, struct notes, 1);

/* Sockets lie far more than 256 bytes apart. */
static __always_inline u64 event_number(u64 sk, u32 old_state, u32 new_state)
{
	return sk + (old_state << 4 | new_state);
}

static __always_inline bool is_mine(u64 number)
{
	int only = 0;
	u64 *mine = role.lookup(&only);
	struct notes *done = done_on_cpu.lookup(&only);

	if (!mine || !done)
		return false;
	if (*mine == 0)
		return true;
	u32 count = done->count;
	if (count && done->number[(count - 1) & (NOTES - 1)] == number) {
		if (*mine == COPIES - 1)
			done->count = count - 1;
		return false;
	}
	counts.increment(COUNT_TAKEN_OVER);
	return true;
}

static __always_inline void note_done(u64 number)
{
	int only = 0;
	u64 *mine = role.lookup(&only);
	struct notes *done = done_on_cpu.lookup(&only);

	if (!mine || !done || *mine == COPIES - 1)
		return;
	u32 count = done->count;
	done->number[count & (NOTES - 1)] = number;
	done->count = (count & (NOTES - 1)) + 1;
}
