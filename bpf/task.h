/*
 * Processes: who a task is, which file stands behind a descriptor, and which
 * descriptor holds a file. All of it works on any task, not only on current.
 */

struct owner {
	u64 task;     /* the thread group's leader; only ever compared and probed */
	u64 start_ns; /* its start_boottime: with tgid this survives pid reuse */
	u32 pid;
	u32 tid;
	u32 uid;
	s32 fd;
	u8 how;
	u8 pad[7];
	char comm[16];
};

#define FD_CHUNK 32
#define FD_CHUNKS 16 /* descriptors 0..511 are searched; above, user space looks in /proc */

struct fd_chunk {
	u64 file[FD_CHUNK];
	s64 found; /* in memory, where the verifier does not follow each value */
};
BPF_PERCPU_ARRAY(fd_scratch, struct fd_chunk, 1);

static __always_inline void identify(struct owner *who, u64 leader, u8 how)
{
	u64 cred = 0;

	who->task = leader;
	who->how = how;
	who->fd = -1;
	READ(who->pid, leader, O_task_struct__tgid);
	who->tid = who->pid;
	READ(who->start_ns, leader, O_task_struct__start_boottime);
	READ(who->comm, leader, O_task_struct__comm);
	READ(cred, leader, O_task_struct__cred);
	READ(who->uid, cred, O_cred__uid);
}

static __always_inline u64 current_leader(void)
{
	u64 leader = 0;

	READ(leader, bpf_get_current_task(), O_task_struct__group_leader);
	return leader;
}

static __always_inline u32 current_flags(void)
{
	u32 flags = 0;

	READ(flags, bpf_get_current_task(), O_task_struct__flags);
	return flags;
}

static __always_inline u32 current_tgid(void)
{
	return bpf_get_current_pid_tgid() >> 32;
}

static __always_inline void identify_current(struct owner *who, u8 how)
{
	identify(who, current_leader(), how);
	who->tid = (u32)bpf_get_current_pid_tgid();
}

/* The task's memory may have been given to another process since we stored it. */
static __always_inline bool still_the_same(struct owner *who)
{
	u32 tgid = 0;
	u64 start_ns = 0;

	if (!who->task)
		return false;
	READ(tgid, who->task, O_task_struct__tgid);
	READ(start_ns, who->task, O_task_struct__start_boottime);
	return tgid == who->pid && start_ns == who->start_ns;
}

static __always_inline u32 fd_table(u64 task, u64 *slots)
{
	u64 files = 0, table = 0;
	u32 size = 0;

	READ(files, task, O_task_struct__files);
	if (!files)
		return 0;
	READ(table, files, O_files_struct__fdt);
	READ(size, table, O_fdtable__max_fds);
	READ(*slots, table, O_fdtable__fd);
	return size;
}

static __always_inline u64 file_at(u64 task, s32 fd)
{
	u64 slots = 0, file = 0;
	u32 size = fd_table(task, &slots);

	if (fd < 0 || (u32)fd >= size)
		return 0;
	READ(file, slots, (u64)fd * 8);
	return file;
}

static __always_inline s32 fd_of_file(u64 task, u64 file)
{
	int first = 0;
	u64 slots = 0;
	u32 size = fd_table(task, &slots);
	struct fd_chunk *chunk = fd_scratch.lookup(&first);

	if (!chunk)
		return -1;
	chunk->found = -1;
	LOOP (u32 base = 0; base < FD_CHUNK * FD_CHUNKS; base += FD_CHUNK) {
		if (base >= size || READ(chunk->file, slots, (u64)base * 8))
			break;
		LOOP (u32 i = 0; i < FD_CHUNK; i++) {
			if (chunk->file[i] == file)
				chunk->found = base + i;
		}
		if (chunk->found >= 0)
			break;
	}
	/* An interrupt on this CPU may have used the scratch space: look once more. */
	s32 fd = chunk->found;
	return fd >= 0 && file_at(task, fd) == file ? fd : -1;
}

/* What the registers were when current entered the kernel. */
static __always_inline u64 user_registers(void)
{
#ifdef HAVE_TASK_PT_REGS
	struct task_struct *task = (void *)bpf_get_current_task_btf();

	return bpf_task_pt_regs(task);
#else
	/* Before 5.15 (commit dd6e10fbd9fb): they lie at the top of the kernel's stack. */
	u64 stack = 0;

	READ(stack, bpf_get_current_task(), O_task_struct__stack);
	return stack + KERNEL_STACK_BYTES - PT_REGS_BYTES;
#endif
}

/* The first argument of the system call that current is in, where it is a descriptor. */
static __always_inline s32 syscall_fd(void)
{
	u64 argument = 0;

	READ(argument, user_registers(), O_pt_regs__first_argument);
	return (s32)argument;
}

static __always_inline s32 current_fd_of(u64 file)
{
	u64 task = current_leader();
	s32 fd = syscall_fd();

	if (file_at(task, fd) == file)
		return fd;
	return fd_of_file(task, file); /* io_uring, dup'ed in between */
}
